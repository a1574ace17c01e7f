"""`python -m minisegnet.checkpoint`: look into a file of weights, or take them to torch.

    python -m minisegnet.checkpoint inspect runs/floorplans_combined_001/best.npz
    python -m minisegnet.checkpoint inspect downloaded.pth
    python -m minisegnet.checkpoint export runs/floorplans_combined_001/best.npz weights.pth

`inspect` exits with 1 if a number is NaN or infinite. `export` writes a torch state dict, which
`minisegnet.verify.torch_models.torch_twin` gives the module for; a unet's fits Pytorch-UNet.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minisegnet.cli import ArgumentParser
from minisegnet.errors import UserError, run_command
from minisegnet.models import to_torch_state_dict
from minisegnet.models.torch_layout import COUNTER
from minisegnet.tables import ruled
from minisegnet.training.checkpoint import load_model, read_checkpoint
from minisegnet.training.weight_files import (
    SUFFIXES,
    is_checkpoint,
    read_tensors,
    write_state_dict,
)

MIB = 2 ** 20
BUFFERS = ("running_mean", "running_var", COUNTER)  # ends of torch names that are not trained


class Row(NamedTuple):
    """One array of the file; minimum, maximum and mean |x| over its finite numbers, or None."""

    name: str
    shape: tuple
    dtype: str
    minimum: float | None
    maximum: float | None
    mean_magnitude: float | None
    not_finite: int  # how many numbers are NaN or infinite


def describe(name, array, dtype):
    """Return the `Row` of an array of numbers."""
    finite = array[np.isfinite(array)].astype(np.float64)
    if finite.size == 0:
        return Row(name, array.shape, dtype, None, None, None, array.size)
    return Row(name, array.shape, dtype, finite.min(), finite.max(), np.abs(finite).mean(),
               array.size - finite.size)


def inspect(path):
    """Return the `Row`s of every array in file `path`, and a sentence on the whole."""
    if is_checkpoint(path):
        checkpoint = read_checkpoint(path)
        found = {**checkpoint.parameters, **checkpoint.buffers}
        for kind in ("optimizer", "ema"):
            found.update({f"{kind}/{key}": array
                          for key, array in getattr(checkpoint, kind).items()})
        rows = [describe(name, array, str(array.dtype)) for name, array in found.items()
                if array.dtype.kind in "fiub"]
        whole = _describe_run(checkpoint.meta)
        parameters = sum(array.size for array in checkpoint.parameters.values())
    else:
        tensors = read_tensors(path)
        rows = [describe(name, tensor.array, tensor.stored_dtype)
                for name, tensor in tensors.items()]
        whole = "a torch state dict"
        parameters = sum(tensor.array.size for name, tensor in tensors.items()
                         if not name.endswith(BUFFERS))
    return rows, (f"{path}: {whole}; {len(rows)} arrays, {parameters:,} parameters, "
                  f"{Path(path).stat().st_size / MIB:.2f} MiB on disk")


def _describe_run(meta):
    """Return what a checkpoint's meta says of its run, as far as it is there."""
    words = f"{meta.get('model')} with {meta.get('num_classes')} classes"
    classes = meta.get("classes")
    if isinstance(classes, dict) and classes.get("names"):
        words += f" ({', '.join(map(str, classes['names']))})"
    if "epoch" in meta:
        words += f", epoch {meta['epoch']}"
    if isinstance(meta.get("best"), (int, float)):
        words += f", best {meta.get('monitor', 'score')} {meta['best']:.4f}"
    return words


def format_table(rows):
    """Return the table of `rows` as text."""
    cells = [("name", "shape", "dtype", "min", "max", "mean |x|", "NaN/Inf")]
    for row in rows:
        numbers = ("-" if value is None else f"{value:.4g}" for value in row[3:6])
        cells.append((row.name, str(row.shape), row.dtype, *numbers, str(row.not_finite)))
    return "\n".join(ruled(cells, left=3))


def _inspect(arguments):
    rows, whole = inspect(arguments.file)
    print(format_table(rows))
    print()
    print(whole)
    bad = [row for row in rows if row.not_finite]
    if bad:
        print(f"NaN or Inf in {len(bad)} of {len(rows)} arrays, first in {bad[0].name} "
              f"({bad[0].not_finite} of {np.prod(bad[0].shape, dtype=int)} numbers)")
        return 1
    return 0


def _export(arguments):
    source, out = Path(arguments.file), Path(arguments.out)
    if out.exists() and source.exists() and out.samefile(source):
        raise UserError(f"{out} is the checkpoint itself; give another name to write to")
    if out.suffix.lower() not in SUFFIXES:  # before the reading, which may take a while
        raise UserError(f"cannot tell the format of {out}; end its name in {', '.join(SUFFIXES)}")
    if not is_checkpoint(source) and source.suffix.lower() in SUFFIXES and source.is_file():
        raise UserError(f"{source} is no checkpoint of minisegnet; export takes the best.npz or "
                        f"last.npz of a run, and what is under torch's names already needs none")
    model, _ = load_model(source)
    state = to_torch_state_dict(model)
    write_state_dict(out, state)
    print(f"{out}: {len(state)} arrays of {model.name} with {model.num_classes} classes, under "
          f"torch's names and in its layouts")
    return 0


def main(argv=None):
    """Inspect a file of weights, or export a checkpoint."""
    parser = ArgumentParser(prog="python -m minisegnet.checkpoint",
                            description="Look into a file of weights, or take them to torch.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    command = commands.add_parser("inspect", help="every array, its range, NaN and Inf")
    command.add_argument("file", metavar="FILE",
                         help=f"a checkpoint, or a state dict ({', '.join(SUFFIXES)})")
    command.set_defaults(run=_inspect)
    command = commands.add_parser("export", help="write a checkpoint's weights for torch")
    command.add_argument("file", metavar="FILE", help="a checkpoint, best.npz or last.npz")
    command.add_argument("out", metavar="OUT", help=f"file to write ({', '.join(SUFFIXES)})")
    command.set_defaults(run=_export)
    arguments = parser.parse_args(argv)
    return arguments.run(arguments)


if __name__ == "__main__":
    sys.exit(run_command(main))
