"""Which array module a computation runs on: numpy, or cupy on a GPU.

The only module of the package that imports cupy. Functions are written against the module of
the arrays they are given (`xp = get_array_module(x)`), so one source serves both.
"""

import sys

import numpy as np

from minisegnet.errors import UserError


def get_array_module(*arrays):
    """Return the array module that holds `arrays`: numpy, cupy, or the emulated device.

    numpy if none is on a device.
    """
    for array in arrays:
        top, _, rest = type(array).__module__.partition(".")
        if top == "cupy":
            import cupy

            return cupy
        if rest == "cuda.emulated_device":
            return sys.modules[type(array).__module__]
    return np


def asnumpy(array):
    """Return `array` as a NumPy array, copying from the GPU where it lives there."""
    if get_array_module(array) is np:
        return np.asarray(array)
    return array.get()


def compile_for_gpu(code, names, options):
    """Return the `cupy.RawModule` of CUDA source with the kernels `names`, compiled by NVRTC."""
    import cupy

    return cupy.RawModule(code=code, options=options, name_expressions=names)


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
