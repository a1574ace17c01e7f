"""What every op refuses at its door, and which of its implementations it runs."""

import numpy as np

from minisegnet.backend import get_array_module

HALF = ("float16", "bfloat16")  # the names of the types of 16 bits


def is_half(array):
    """Whether `array` is of 16-bit floating-point numbers."""
    return array.dtype.itemsize == 2 and str(array.dtype) in HALF


def check_dtype(op, x, *others):
    """Raise TypeError unless all arrays are float32, or all float64: nothing is converted.

    One float64 array among float32 ones would silently double the memory of all that follows.
    Mixed precision is for kernels (see `choose`): activations of 16 bits, `x` the first of them,
    and the others either of its type, activations too, or float32, parameters.
    """
    first = str(x.dtype)
    found = {str(array.dtype) for array in others}
    if first in ("float32", "float64"):
        fits = found <= {first}
    else:
        fits = first in HALF and (found <= {first} or found == {"float32"})
    if not fits:
        raise TypeError(f"{op} takes arrays of one dtype, float32 or float64, not "
                        f"{' and '.join(str(array.dtype) for array in (x, *others))}; use "
                        f"x.astype(...)")


def check_upstream(op, dout, expected, like=None):
    """Raise ValueError unless `dout` has the shape of the forward's output, `expected`.

    Raises TypeError unless it has the dtype of the array `like`, an activation; or, of an op whose
    backward needs none, any that activations may have.
    """
    if dout.shape != tuple(expected):
        raise ValueError(f"{op} backward takes dout of the output's shape {tuple(expected)}, "
                         f"not {dout.shape}")
    if like is not None and dout.dtype != like.dtype:
        raise TypeError(f"{op} backward takes dout of the output's dtype {like.dtype}, not "
                        f"{dout.dtype}; use dout.astype(...)")
    check_dtype(op, dout)


def gradient_array(op, name, given, shape, dtype, xp):
    """Return the array that a parameter's gradient is added to: `given`, or zeros where None.

    Raises ValueError for a given one of another shape or with gaps, TypeError for another dtype.
    """
    if given is None:
        return xp.zeros(shape, dtype)
    if given.shape != tuple(shape) or not given.flags.c_contiguous:
        gaps = "" if given.flags.c_contiguous else " with gaps or another order of axes"
        raise ValueError(f"{op} backward adds to a contiguous {name} of shape {tuple(shape)}, not "
                         f"to one of {given.shape}{gaps}")
    if given.dtype != dtype:
        raise TypeError(f"{op} backward adds to a {name} of {dtype}, not {given.dtype}")
    return given


def choose(implementation, x, **choices):
    """Return the choice of that name, for an array `x`; ValueError names all there are.

    None chooses by where `x` is: "numpy", or "cuda" on a device. "cuda_cpu" is "cuda" on NumPy
    arrays, its kernels run by the emulator of `minisegnet.cuda`, and "cuda_cpu_naive" likewise
    "cuda_naive". Raises TypeError for an `x` of 16 bits unless kernels are chosen: only they
    compute with it in float32.
    """
    on_device = get_array_module(x) is not np
    if implementation is None:
        implementation = "cuda" if on_device else "numpy"
    on_cpu = {name.replace("cuda", "cuda_cpu"): name for name in choices if "cuda" in name}
    if implementation in on_cpu:
        implementation = on_cpu[implementation]
    elif implementation in on_cpu.values() and not on_device:
        raise ValueError(f"implementation {implementation!r} takes arrays on a GPU; "
                         f"{implementation.replace('cuda', 'cuda_cpu')!r} runs the same kernels "
                         "on NumPy arrays")
    if implementation not in choices:
        raise ValueError(f"implementation {implementation!r} is not one of "
                         f"{', '.join((*choices, *on_cpu))}")
    if is_half(x) and "cuda" not in implementation:
        raise TypeError(f"arrays of {x.dtype} are for a GPU; NumPy takes float32 or float64: use "
                        f"x.astype(...)")
    return choices[implementation]
