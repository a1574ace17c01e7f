"""Activation functions and their derivatives, in blocks that stay in the cache.

The cache is the input or the output, whichever is likely to be kept by the next layer anyway: a
ReLU's output tells its slope, so its input can be freed. Conventions at the kinks are torch's:
relu'(0) = 0, relu6 is open at both ends, hardswish' is 0 at -3 and 1 at +3.

Each function takes an `implementation`, "numpy", "cuda" or "cuda_cpu"; None chooses by the array.

Source: Howard et al., "Searching for MobileNetV3" (2019) for hardswish and hardsigmoid.
"""

import numpy as np

from minisegnet.backend import get_array_module
from minisegnet.cuda.launch import KernelFile, blocks
from minisegnet.ops._checks import check_dtype, choose
from minisegnet.parallel import parallel_map, row_blocks


def relu_forward(x, *, implementation=None):
    """max(x, 0), any shape; the cache is the output."""
    out = _forward("RELU", lambda x: x.clip(0), x, implementation)
    return out, out


def relu_backward(dout, out, *, implementation=None):
    """dx = dout where x > 0, which is where out > 0."""
    return _backward("RELU", lambda dout, out: dout * (out > 0), dout, out, implementation)


def relu6_forward(x, *, implementation=None):
    """min(max(x, 0), 6), any shape; the cache is the output."""
    out = _forward("RELU6", lambda x: x.clip(0, 6), x, implementation)
    return out, out


def relu6_backward(dout, out, *, implementation=None):
    """dx = dout where 0 < x < 6, which is where 0 < out < 6."""
    return _backward("RELU6", lambda dout, out: dout * ((out > 0) & (out < 6)), dout, out,
                     implementation)


def hardsigmoid_forward(x, *, implementation=None):
    """clip(x + 3, 0, 6) / 6, any shape; the cache is the input."""
    return _forward("HARDSIGMOID", lambda x: (x + 3).clip(0, 6) / 6, x, implementation), x


def hardsigmoid_backward(dout, x, *, implementation=None):
    """dx = dout / 6 where -3 < x < 3."""
    return _backward("HARDSIGMOID", lambda dout, x: dout * ((x > -3) & (x < 3)) / 6, dout, x,
                     implementation)


def hardswish_forward(x, *, implementation=None):
    """x * clip(x + 3, 0, 6) / 6, any shape; the cache is the input."""

    def hardswish(x):
        gate = x + 3
        gate.clip(0, 6, out=gate)
        gate *= x
        gate /= 6
        return gate

    return _forward("HARDSWISH", hardswish, x, implementation), x


def hardswish_backward(dout, x, *, implementation=None):
    """dx = dout * (0 for x <= -3, 1 for x >= 3, else (2x + 3) / 6)."""

    def derivative(dout, x):
        # The line (2x + 3) / 6 would be -1/2 at -3 and 3/2 at 3: outside, the value jumps.
        slope = x / 3
        slope += x.dtype.type(0.5)
        slope *= x > -3
        slope[x >= 3] = 1
        slope *= dout
        return slope

    return _backward("HARDSWISH", derivative, dout, x, implementation)


def sigmoid_forward(x, *, implementation=None):
    """1 / (1 + exp(-x)), any shape; the cache is the output. No overflow for any x."""

    def sigmoid(x):
        # exp(-|x|) never overflows; for x < 0 the same fraction is exp(x) / (1 + exp(x)).
        small = np.exp(-abs(x))
        return np.where(x >= 0, 1, small) / (1 + small)

    out = _forward("SIGMOID", sigmoid, x, implementation)
    return out, out


def sigmoid_backward(dout, out, *, implementation=None):
    """dx = dout * out * (1 - out), with `out` the forward's result."""
    return _backward("SIGMOID", lambda dout, out: dout * out * (1 - out), dout, out,
                     implementation)


def _forward(kind, function, x, implementation):
    """Return `function(x)`, or on a device what the kernel of that kind makes of it.

    Raises TypeError for other dtypes than float32 and float64.
    """
    check_dtype("an activation", x)
    if choose(implementation, x, numpy="numpy", cuda="cuda") == "numpy":
        return _blockwise(function, x)
    return _elementwise_cuda("activation_forward_kernel", kind, x=x)


def _backward(kind, function, dout, kept, implementation):
    """Return dx by `function(dout, kept)`, or by the kernel; `kept` is the forward's cache.

    Raises ValueError if their shapes differ, TypeError if their dtypes do.
    """
    if dout.shape != kept.shape:
        raise ValueError(f"an activation's backward takes dout of the output's shape, not "
                         f"{dout.shape} for {kept.shape}")
    check_dtype("an activation", dout, kept)
    if choose(implementation, dout, numpy="numpy", cuda="cuda") == "numpy":
        return _blockwise(function, dout, kept)
    return _elementwise_cuda("activation_backward_kernel", kind, dout=dout, kept=kept)


def _blockwise(function, *arrays):
    """Apply `function(*blocks) -> block` over flat blocks of equal NumPy arrays, in threads."""
    out = np.empty(arrays[0].shape, arrays[0].dtype)
    flat = [np.ascontiguousarray(array).reshape(-1) for array in arrays]
    flat_out = out.reshape(-1)

    def apply(block):
        flat_out[block] = function(*(array[block] for array in flat))

    parallel_map(apply, row_blocks(out.size, out.itemsize), work=2 * out.size)
    return out


# ---------------------------------------------------------------- CUDA: activations.cu

THREADS = 256  # of a block

_INSTANCES = tuple(f"{kind}, {vector}" for vector in (1, 4) for kind in (
    "RELU", "RELU6", "HARDSIGMOID", "HARDSWISH", "SIGMOID"))
KERNELS = KernelFile(__file__, templates={"activation_forward_kernel": _INSTANCES,
                                          "activation_backward_kernel": _INSTANCES})


def _elementwise_cuda(kernel, kind, **arrays):
    """Launch `kernel` on equal arrays; return what it writes, its one array not given here."""
    given = next(iter(arrays.values()))
    xp = get_array_module(given)
    arrays = {name: xp.ascontiguousarray(array) for name, array in arrays.items()}
    result = xp.empty(given.shape, given.dtype)
    vector = 4 if given.size % 4 == 0 else 1
    KERNELS.launch(f"{kernel}<{kind}, {vector}>", (max(1, blocks(given.size, THREADS * vector)),),
                   (THREADS,), **arrays, size=given.size,
                   **{"dx" if "dout" in arrays else "out": result})
    return result
