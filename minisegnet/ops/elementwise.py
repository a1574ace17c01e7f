"""Sums and copies of whole maps: what a fan-out, where one map has several readers, comes to.

And casts: where mixed precision begins.
"""

import numpy as np

from minisegnet.backend import get_array_module
from minisegnet.cuda.launch import KernelFile, blocks
from minisegnet.ops._checks import HALF, check_dtype, choose


def add(a, b, *, implementation=None):
    """Return a + b, a new array, for arrays of one shape.

    `implementation` is "numpy", "cuda" or "cuda_cpu"; None chooses by the array. Raises ValueError
    if the shapes differ, TypeError if the dtypes do.
    """
    _check("add", a, b)
    return choose(implementation, a, numpy=lambda a, b: a + b, cuda=add_cuda)(a, b)


def add_into(a, b, *, implementation=None):
    """Add `b` to `a` in place, and return `a`.

    The one op that changes an argument. It is for a backward pass that holds a gradient of its
    own, just made, to which the gradient of another reader of the same map is to be added: a new
    array would cost a third of the memory traffic more. Raises what `add` raises, and on a
    device ValueError for an `a` with gaps.
    """
    _check("add_into", a, b)
    return choose(implementation, a, numpy=_add_into_numpy, cuda=add_into_cuda)(a, b)


def copy(a, *, implementation=None):
    """Return a contiguous array of the same numbers. Raises TypeError unless they are floats."""
    check_dtype("copy", a)
    return choose(implementation, a, numpy=lambda a: a.copy(), cuda=copy_cuda)(a)


def cast(a, dtype, *, implementation=None):
    """Return the float32 array `a` rounded to the 16-bit type `dtype`, float16 or bfloat16.

    To nearest, ties to even; beyond 65504 float16 has nothing but infinity. An array that is of
    `dtype` already is returned as it is. Raises TypeError for other dtypes.
    """
    if a.dtype == dtype:
        return a
    if a.dtype != np.float32 or str(np.dtype(dtype)) not in HALF:
        raise TypeError(f"cast makes 16 bits of float32, not {np.dtype(dtype)} of {a.dtype}")
    return choose(implementation, a, numpy=lambda a, dtype: a.astype(dtype), cuda=cast_cuda)(
        a, dtype)


def _check(op, a, b):
    if a.shape != b.shape:
        raise ValueError(f"{op} takes two arrays of one shape, not {a.shape} and {b.shape}")
    check_dtype(op, a, b)


def _add_into_numpy(a, b):
    a += b
    return a


# ---------------------------------------------------------------- CUDA: elementwise.cu

THREADS = 256  # of a block
VECTOR = 4  # elements of one thread

KERNELS = KernelFile(__file__)


def add_cuda(a, b):
    xp = get_array_module(a)
    a, b = xp.ascontiguousarray(a), xp.ascontiguousarray(b)
    out = xp.empty(a.shape, a.dtype)
    _launch("add_kernel", a.size, a=a, b=b, out=out)
    return out


def add_into_cuda(a, b):
    b = get_array_module(b).ascontiguousarray(b)
    _launch("add_into_kernel", a.size, a=a, b=b)
    return a


def copy_cuda(a):
    xp = get_array_module(a)
    a = xp.ascontiguousarray(a)
    out = xp.empty(a.shape, a.dtype)
    _launch("copy_kernel", a.size, a=a, out=out)
    return out


def cast_cuda(a, dtype):
    xp = get_array_module(a)
    a = xp.ascontiguousarray(a)
    out = xp.empty(a.shape, dtype)
    _launch("cast_kernel", a.size, a=a, out=out)
    return out


def _launch(name, size, **arrays):
    KERNELS.launch(name, (max(1, blocks(size, THREADS * VECTOR)),), (THREADS,), size=size,
                   **arrays)
