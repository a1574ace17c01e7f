"""Which array module a computation runs on: numpy, or cupy on a GPU.

The only module of the package that imports cupy. Functions are written against the module of
the arrays they are given (`xp = get_array_module(x)`), so one source serves both.
"""

import numpy as np

from minisegnet.errors import UserError


def get_array_module(*arrays):
    """Return the array module (numpy or cupy) that holds `arrays`; numpy if none is on a GPU."""
    for array in arrays:
        if type(array).__module__.partition(".")[0] == "cupy":
            import cupy

            return cupy
    return np


def asnumpy(array):
    """Return `array` as a NumPy array, copying from the GPU where it lives there."""
    if get_array_module(array) is np:
        return np.asarray(array)
    return array.get()


def select_device(device):
    """Return the array module for `device`: "cpu", "cuda", or "auto" (cuda where there is one).

    Raises UserError if "cuda" is asked for and cannot be had.
    """
    if device == "cpu":
        return np
    if device not in ("auto", "cuda"):
        raise UserError(f"device {device!r} is not one of auto, cpu, cuda")
    try:
        import cupy
    except ImportError:
        cupy, reason = None, "CuPy is not installed (pip install 'minisegnet[gpu]')"
    else:
        reason = "CuPy finds no usable NVIDIA driver or GPU"
    if cupy is not None and cupy.cuda.is_available():
        return cupy
    if device == "auto":
        return np
    raise UserError(f"--device cuda: {reason}; use --device cpu")
