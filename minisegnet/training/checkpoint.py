"""Checkpoints: one .npz of plain arrays, no pickle, written whole or not at all.

    param/NAME, buffer/NAME    the model's arrays under their dotted names
    optimizer/KEY, ema/KEY     the state of the optimizer and of the averages
    meta                       JSON text: model name, classes, image size, epoch, scores, ...
"""

import json
import os
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minisegnet.backend import asnumpy, get_array_module
from minisegnet.errors import UserError
from minisegnet.models import MODEL_NAMES, build_model


class Checkpoint(NamedTuple):
    """A checkpoint in memory."""

    path: Path
    parameters: dict  # dotted name -> array
    buffers: dict  # dotted name -> array
    optimizer: dict  # key -> array; empty if it was saved without
    ema: dict  # key -> array; empty if it was saved without
    meta: dict


@contextmanager
def writing(path):
    """Turn an OSError of the block (disk full, folder gone) into a UserError that names `path`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror or error}); make room, or "
                        f"write to another folder") from error


def write_atomically(path, write):
    """Call `write(file)` on a temporary file beside `path`, then move it there in one step.

    Raises UserError if that fails; nothing is left behind, and an older `path` stays as it was.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with writing(path):
            with open(temporary, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def save_checkpoint(path, model, *, optimizer=None, ema=None, meta):
    """Write `model`, the states of optimizer and averages, and `meta` (JSON-able).

    `meta` gains the model's name and number of classes. A run also puts there:

    classes        {"names", "palette", "pixels", "ignore_index", "map"}: of each class its name,
                   its colour and its pixels in the training set; the label that means ignored;
                   and which values of the mask files they are, as `ClassMap.to_dict` has it
    image_size     [H, W] of a picture in training, in the epoch at hand
    original_size  [H, W] of the first training picture in its file
    config         the flags of the run
    epoch, step    epochs finished, optimizer steps done
    """
    meta = {**meta, "model": model.name, "num_classes": model.num_classes}
    arrays = {"meta": np.array(json.dumps(meta))}
    for kind, named in (("param", model.named_parameters()), ("buffer", model.named_buffers()),
                        ("optimizer", optimizer.state_dict().items() if optimizer else ()),
                        ("ema", ema.state_dict().items() if ema else ())):
        for name, array in named:
            arrays[f"{kind}/{name}"] = np.asarray(asnumpy(array))
    write_atomically(path, lambda file: np.savez(file, **arrays))


def read_checkpoint(path):
    """Return the `Checkpoint` in file `path`; UserError if it is not one."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}; give the path of a .npz file of a run")
    groups = {"param": {}, "buffer": {}, "optimizer": {}, "ema": {}}
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            meta = json.loads(str(arrays["meta"]))
            if not isinstance(meta, dict):
                raise ValueError("its meta is no JSON object")
            for key in arrays.files:
                kind, _, name = key.partition("/")
                if kind in groups:
                    groups[kind][name] = arrays[key]
    except Exception as error:  # a damaged archive can make zipfile and NumPy raise anything
        reason = "no .npz archive" if "allow_pickle" in str(error) else error
        raise UserError(f"{path} is not a checkpoint of minisegnet ({reason}); "
                        f"use a last.npz or best.npz of a run folder") from error
    return Checkpoint(path, *groups.values(), meta)


def load_model(path):
    """Return (model, checkpoint): the model that file `path` holds, in evaluation.

    Where the run kept averages of its weights, they are what it scored, and what comes back: from
    last.npz too, whose parameters are those in training. Raises UserError where the file is no
    checkpoint, or its numbers are not finite.
    """
    checkpoint = read_checkpoint(path)
    name, num_classes = (checkpoint.meta.get(key) for key in ("model", "num_classes"))
    if name not in MODEL_NAMES or type(num_classes) is not int or num_classes < 2:
        raise UserError(f"{path} holds the model {name!r} with {num_classes} classes, which is "
                        f"none of {', '.join(MODEL_NAMES)}; was it written by another version?")
    if checkpoint.ema:
        averages = [{key: checkpoint.ema.get(key) for key in kind}
                    for kind in (checkpoint.parameters, checkpoint.buffers)]
        checkpoint = checkpoint._replace(parameters=averages[0], buffers=averages[1])
    model = build_model(name, num_classes)
    load_weights(model, checkpoint)
    for key, array in (*model.named_parameters(), *model.named_buffers()):
        if not np.isfinite(array).all():
            raise UserError(f"{path} is spoilt: {key} holds nan or infinite numbers; use an "
                            f"earlier checkpoint")
    return model.eval(), checkpoint


def load_weights(model, checkpoint):
    """Copy the checkpoint's parameters and buffers into `model`.

    Raises UserError, before anything is changed, unless every name and shape fits.
    """
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    saved = {name: np.asarray(array) for name, array in
             {**checkpoint.parameters, **checkpoint.buffers}.items()}
    misfits = [f"{name} is {saved[name].shape} there and {own[name].shape} here"
               for name in own if name in saved and saved[name].shape != own[name].shape]
    misfits += [f"{name} is of {saved[name].dtype} there" for name in own
                if name in saved and saved[name].dtype.kind not in "fiu"]
    misfits += [f"{name} is missing there" for name in own if name not in saved]
    misfits += [f"{name} is unknown here" for name in saved if name not in own]
    if misfits:
        raise UserError(
            f"{checkpoint.path} holds {checkpoint.meta.get('model')} with "
            f"{checkpoint.meta.get('num_classes')} classes, which does not fit {model.name} with "
            f"{model.num_classes}: {misfits[0]} ({len(misfits)} misfits in all); build the model "
            f"it was saved from (--model, --data)")
    with np.errstate(over="ignore"):  # a float64 may lie beyond float32
        for name, array in own.items():
            array[...] = get_array_module(array).asarray(saved[name], array.dtype)
