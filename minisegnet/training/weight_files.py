"""Weights from elsewhere: files of plain arrays under torch's names, and what of them fits.

    .npz            arrays under torch names, no pickle; our own checkpoints, which have a "meta"
    .safetensors    needs the package safetensors
    .pth, .pt       needs torch; only tensors are unpickled, no code is run
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from minisegnet.errors import UserError
from minisegnet.models.torch_layout import COUNTER, torch_arrays
from minisegnet.training.checkpoint import load_weights, read_checkpoint, write_atomically

SUFFIXES = (".npz", ".safetensors", ".pth", ".pt")
WRAPPERS = ("state_dict", "model_state_dict", "model")  # where training scripts put the tensors
MOST_NAMES = 8  # of a longer list the rest is only counted

_SAFETENSORS_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "I64": "int64",
                       "I32": "int32", "I16": "int16", "I8": "int8", "U64": "uint64",
                       "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool"}


class Tensor(NamedTuple):
    """An array of a file, half precision made float32, and the dtype it has in the file."""

    array: np.ndarray
    stored_dtype: str


class Loaded(NamedTuple):
    """What `initialize` did: `count` of the model's `total` arrays, and lines that tell it."""

    count: int
    total: int
    report_lines: list


def is_checkpoint(path):
    """Whether `path` is a checkpoint of this package, and not a file of torch's names."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return "meta" in arrays.files
    except Exception:  # not an archive, or a damaged one: whoever reads it will say so
        return False


def read_state_dict(path):
    """Return {torch name: array} of a .npz, .safetensors, .pth or .pt file, in torch's layouts.

    Half-precision arrays come as float32; what is no array is passed over, and a prefix "module."
    of all names is taken off. UserError for a file that cannot be read.
    """
    return {name: tensor.array for name, tensor in read_tensors(path).items()}


def read_tensors(path):
    """As `read_state_dict`, but returns {name: Tensor}."""
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path} is no file of weights that can be read; give one that ends in "
                        f"{', '.join(SUFFIXES)}")
    if not path.is_file():
        raise UserError(f"there is no file {path}; check the path")
    read = {".npz": _read_npz, ".safetensors": _read_safetensors}.get(path.suffix.lower(),
                                                                      _read_torch)
    tensors = {name: tensor for name, tensor in read(path).items()
               if tensor.array.dtype.kind in "fiub"}
    if not tensors:
        raise UserError(f"{path} holds no arrays of numbers; save a model's state_dict()")
    if all(name.startswith("module.") for name in tensors):  # torch's DataParallel
        tensors = {name.removeprefix("module."): t for name, t in tensors.items()}
    return tensors


def _read_npz(path):
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except Exception as error:  # a damaged archive can make zipfile and NumPy raise anything
        raise UserError(f"cannot read {path} as .npz of plain arrays "
                        f"({_first_line(error)}); write it again") from error
    return {name: Tensor(_in_single_precision(array), str(array.dtype))
            for name, array in found.items()}


def _read_safetensors(path):
    safetensors = _import("safetensors", path)
    tensors = {}
    try:
        for name, entry in safetensors.deserialize(path.read_bytes()):
            dtype, data = entry["dtype"], entry["data"]
            if dtype == "BF16":  # the upper half of a float32
                array = (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
            else:
                array = np.frombuffer(data, np.dtype(_SAFETENSORS_DTYPES[dtype]))
            stored = "bfloat16" if dtype == "BF16" else str(array.dtype)
            tensors[name] = Tensor(_in_single_precision(array.reshape(entry["shape"])), stored)
    except Exception as error:
        raise UserError(f"cannot read {path} as .safetensors ({_first_line(error)}); write or "
                        f"download it again") from error
    return tensors


def _read_torch(path):
    torch = _import("torch", path)
    try:
        with open(path, "rb") as file:
            content = torch.load(file, map_location="cpu", weights_only=True)
        content = _unwrapped(content, torch)
        tensors = {}
        for name, value in content.items():
            if isinstance(value, torch.Tensor):
                stored = str(value.dtype).removeprefix("torch.")
                if value.is_floating_point() and stored not in ("float32", "float64"):
                    value = value.float()
                tensors[str(name)] = Tensor(value.detach().numpy(), stored)
    except Exception as error:  # damaged, or a pickled model: code, which is not run
        raise UserError(f"{path} is not a torch file of tensors alone ({type(error).__name__}); "
                        f"save model.state_dict() with torch.save") from error
    return tensors


def _unwrapped(content, torch):
    """Return the dictionary that holds the tensors."""
    for key in WRAPPERS:
        inner = content.get(key)
        if isinstance(inner, dict):
            inner = _unwrapped(inner, torch)
            if any(isinstance(value, torch.Tensor) for value in inner.values()):
                return inner
    return content


def _in_single_precision(array):
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _import(name, path):
    try:
        return __import__(name)
    except ImportError as error:
        raise UserError(f"{path.suffix} files need {name}, which is not installed: pip install "
                        f"'minisegnet[torch]', or use a .npz file") from error


def _first_line(error):
    return (str(error).splitlines() or [type(error).__name__])[0]


def write_state_dict(path, state):
    """Write {torch name: array} to a .npz, .safetensors, .pth or .pt file, whole or not at all.

    Raises UserError for another suffix, where a package is missing, and where writing fails.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"cannot tell the format of {path}; end its name in {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent} to write {path.name} into; make it")
    if suffix == ".npz":
        write_atomically(path, lambda file: np.savez(file, **state))
    elif suffix == ".safetensors":
        _import("safetensors", path)
        from safetensors.numpy import save

        content = save(state, metadata={"format": "pt"})  # who loads it into torch asks for that
        write_atomically(path, lambda file: file.write(content))
    else:
        torch = _import("torch", path)
        tensors = {name: torch.from_numpy(array) for name, array in state.items()}
        write_atomically(path, lambda file: torch.save(tensors, file))


# ---------------------------------------------------------------- into a model


def initialize(model, path, *, allow_partial=False):
    """Copy the weights in file `path` into `model`; return what was `Loaded`.

    The file is a checkpoint of ours or a torch state dict. Where everything fits by name and
    shape, everything is loaded. torchvision's MobileNetV3-Small loads into a backbone that is
    one, and its classifier is left out. Anything else is refused, or, with `allow_partial`, what
    fits is loaded and the rest is named. Raises UserError, before anything is changed, for a
    misfit, where nothing fits, and for numbers that are not finite.
    """
    if is_checkpoint(path):
        checkpoint = read_checkpoint(path)
        found = {**checkpoint.parameters, **checkpoint.buffers}
        targets = {name: _OwnArray(array) for named in (model.named_parameters(),
                                                        model.named_buffers())
                   for name, array in named}
        _check_finite(path, found, targets)
        if not allow_partial:
            try:
                load_weights(model, checkpoint)
            except UserError as error:
                raise UserError(f"{error}, or load what fits with --allow-partial") from error
            return _loaded(path, targets, targets)
        return _load_what_fits(model, path, found, targets)

    found = {name: array for name, array in read_state_dict(path).items()
             if not name.endswith(COUNTER)}
    targets = torch_arrays(model)
    _check_finite(path, found, targets)
    backbone = {name: target for name, target in targets.items() if name.startswith("backbone.")}
    if backbone and "features.0.0.weight" in found:
        found = {f"backbone.{name}" if name.startswith("features.") else name: array
                 for name, array in found.items()}
        in_backbone = {name: array for name, array in found.items()
                       if name.startswith("backbone.")}
        if not _misfits(in_backbone, backbone):
            return _load(path, in_backbone, backbone, targets, note=": the backbone",
                         left_over=[name for name in found if name not in in_backbone])
    misfits = _misfits(found, targets)
    if misfits and not allow_partial:
        raise UserError(
            f"{path} does not fit {model.name} with {model.num_classes} classes: {misfits[0]} "
            f"({len(misfits)} misfits in all); build the model it belongs to (--model, --data), "
            f"or load what fits with --allow-partial")
    return _load_what_fits(model, path, found, targets)


class _OwnArray(NamedTuple):
    """What `TorchArray` is for torch's names, for our own."""

    array: np.ndarray

    @property
    def shape(self):
        return self.array.shape

    def load(self, saved):
        self.array[...] = saved


def _check_finite(path, found, targets):
    dtype = next(iter(targets.values())).array.dtype
    for name, array in found.items():
        with np.errstate(over="ignore"):  # a float64 may be beyond float32
            array = array.astype(dtype)
        if not np.isfinite(array).all():
            count = array.size - np.isfinite(array).sum()
            raise UserError(f"{path}: {name} holds {count} of {array.size} numbers that are NaN "
                            f"or infinite; use weights from before that happened")


def _fits(name, found, targets):
    return (name in found and name in targets and found[name].shape == targets[name].shape
            and found[name].dtype.kind == "f")


def _misfits(found, targets):
    """Return what does not fit, in words: wrong shapes first, then missing, then unknown."""
    shared = [name for name in targets if name in found]
    misfits = [f"{name} is {_words(found[name])} there and {targets[name].shape} here"
               for name in shared if not _fits(name, found, targets)]
    misfits += [f"{name} is missing there" for name in targets if name not in found]
    return misfits + [f"{name} is unknown here" for name in found if name not in targets]


def _words(array):
    return str(array.shape) if array.dtype.kind == "f" else f"{array.dtype} {array.shape}"


def _load_what_fits(model, path, found, targets):
    fitting = {name: target for name, target in targets.items() if _fits(name, found, targets)}
    if not fitting:
        raise UserError(f"nothing in {path} fits {model.name}: it holds "
                        f"{_some(list(found), 2)}, and {model.name} has "
                        f"{_some(list(targets), 2)}; build the model it belongs to (--model)")
    return _load(path, found, fitting, targets,
                 left_over=[name for name in found if name not in targets],
                 kept=[f"{name} ({_words(found[name])} there, {targets[name].shape} here)"
                       if name in found else name for name in targets if name not in fitting])


def _load(path, found, fitting, targets, *, note="", kept=(), left_over=()):
    for name, target in fitting.items():
        target.load(found[name])
    return _loaded(path, fitting, targets, note=note, kept=kept, left_over=left_over)


def _loaded(path, fitting, targets, *, note="", kept=(), left_over=()):
    lines = [f"{len(fitting)} of {len(targets)} arrays loaded from {path}{note}"]
    if kept:
        lines.append(f"  kept as they were: {_some(kept)}")
    if left_over:
        lines.append(f"  left over in the file: {_some(left_over)}")
    return Loaded(len(fitting), len(targets), lines)


def _some(names, most=MOST_NAMES):
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
