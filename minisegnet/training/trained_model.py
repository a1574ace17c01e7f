"""A trained model taken up again: the checkpoint that is meant, fit for use, and its data."""

import hashlib
from pathlib import Path

from minisegnet.datasets import ClassMap, open_dataset
from minisegnet.errors import UserError
from minisegnet.training.checkpoint import load_model


def checkpoint_path(given):
    """Return the checkpoint that `given` means: itself, or the best.npz of a run folder."""
    path = Path(given)
    if path.is_dir():
        path = path / "best.npz"
        if not path.is_file():
            raise UserError(f"the folder {given} has no best.npz; give a run folder, or the path "
                            f"of a .npz file")
    return path


def load_checked(path):
    """Return (model, meta) of a checkpoint, the model in evaluation.

    Raises UserError if it does not know its classes, sizes or data.
    """
    model, checkpoint = load_model(path)
    meta = checkpoint.meta
    try:
        if not [side >= 1 for side in meta["image_size"]] == [True, True]:
            raise KeyError("image_size")
        meta["epoch"], meta["config"]["data"]
        [meta["classes"][key] for key in ("names", "pixels", "ignore_index")]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} does not say its {error}; it was written by another version: "
                        f"train again") from error
    return model, meta


def checkpoints_of(folder):
    """Return the checkpoints of a run folder by epoch number, each a list of paths.

    Files of one epoch with the same weights are one checkpoint.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"--all needs a run folder, and {folder} is none; leave --all out for one "
                        f"checkpoint")
    found, names = {}, None  # found: (epoch, hash of the weights) -> paths
    for path in (*sorted(folder.glob("epoch_*.npz")), folder / "best.npz", folder / "last.npz"):
        if path.is_file():
            model, meta = load_checked(path)
            names = names or meta["classes"]["names"]
            refuse_other_classes(meta["classes"]["names"], path, names, "the first")
            weights = hashlib.sha256()
            for _, array in (*model.named_parameters(), *model.named_buffers()):
                weights.update(array.tobytes())
            found.setdefault((meta["epoch"], weights.digest()), []).append(path)
    if not found:
        raise UserError(f"the folder {folder} has no checkpoint (epoch_NNNN.npz, best.npz, "
                        f"last.npz); give the folder of a run")
    return [found[key] for key in sorted(found, key=lambda key: key[0])]


def open_data(data, layout, split, *, classes, path, given=None, own_data=True):
    """Return a split of the data set `data`; UserError unless it has the classes of a model.

    `classes` is what the meta of checkpoint `path` says of them. Masks are read by the class map
    `given` (a path); without one as in training, or, if these are not its data, as they declare.
    """
    if given is None and own_data and ("map" in classes or "mask_values" in classes):
        given = class_map_of(classes, path)
    dataset = open_dataset(data, layout, split, classes=given,
                           ignore_index=classes["ignore_index"])
    cure = "" if own_data else "; --classes FILE says which classes its masks hold"
    refuse_other_classes(dataset.class_names, data, classes["names"], path, cure)
    return dataset


def class_map_of(classes, path):
    """Return the `ClassMap` of a training, told what the meta of checkpoint `path` says of it.

    Raises UserError if that makes no sense. Checkpoints of earlier versions had no map, but the
    value of each class and that of void.
    """
    try:
        if "map" in classes:
            return ClassMap.from_dict(classes["map"])
        void = classes.get("void")
        return ClassMap(classes["names"], classes["mask_values"], classes["palette"],
                        {} if void is None else {void: "void"}, classes.get("ignore_index"))
    except (KeyError, TypeError, UserError) as error:
        raise UserError(f"{path} does not say what its classes are, which runs of this version "
                        f"save ({error}); train again") from error


def refuse_other_classes(names, where, expected, path, cure=""):
    """Raise UserError unless the classes of `where` are those of the checkpoint `path`."""
    names, expected = list(names), list(expected)
    if names != expected:
        first = next((f"class {c} is {a!r} there and {b!r} here" for c, (a, b) in
                      enumerate(zip(names, expected)) if a != b), "the first ones agree")
        raise UserError(f"{where} has {len(names)} classes and {path} has {len(expected)}, not "
                        f"the same by name ({first}); both need the same classes in one "
                        f"order{cure}")
