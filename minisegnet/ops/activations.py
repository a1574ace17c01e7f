"""Activation functions and their derivatives, in blocks that stay in the cache.

The cache is the input or the output, whichever is likely to be kept by the next layer anyway: a
ReLU's output tells its slope, so its input can be freed. Conventions at the kinks are torch's:
relu'(0) = 0, relu6 is open at both ends, hardswish' is 0 at -3 and 1 at +3.

Source: Howard et al., "Searching for MobileNetV3" (2019) for hardswish and hardsigmoid.
"""

import numpy as np

from minisegnet.backend import get_array_module
from minisegnet.ops._checks import check_dtype
from minisegnet.parallel import parallel_map, row_blocks


def _blockwise(function, *arrays):
    """Apply `function(*blocks) -> block` over flat blocks of equal arrays, in threads.

    Raises ValueError if the arrays' shapes differ, TypeError if their dtypes do or are not float.
    """
    if len({array.shape for array in arrays}) > 1:
        raise ValueError(f"an activation's backward takes dout of the output's shape, not "
                         f"{' for '.join(str(array.shape) for array in arrays)}")
    check_dtype("an activation", *arrays)
    xp = get_array_module(arrays[0])
    if xp is not np:
        return function(*arrays)
    out = np.empty(arrays[0].shape, arrays[0].dtype)
    flat = [np.ascontiguousarray(array).reshape(-1) for array in arrays]
    flat_out = out.reshape(-1)

    def apply(block):
        flat_out[block] = function(*(array[block] for array in flat))

    parallel_map(apply, row_blocks(out.size, out.itemsize), work=2 * out.size)
    return out


def relu_forward(x):
    """max(x, 0), any shape; the cache is the output."""
    out = _blockwise(lambda x: x.clip(0), x)
    return out, out


def relu_backward(dout, out):
    """dx = dout where x > 0, which is where out > 0."""
    return _blockwise(lambda dout, out: dout * (out > 0), dout, out)


def relu6_forward(x):
    """min(max(x, 0), 6), any shape; the cache is the output."""
    out = _blockwise(lambda x: x.clip(0, 6), x)
    return out, out


def relu6_backward(dout, out):
    """dx = dout where 0 < x < 6, which is where 0 < out < 6."""
    return _blockwise(lambda dout, out: dout * ((out > 0) & (out < 6)), dout, out)


def hardsigmoid_forward(x):
    """clip(x + 3, 0, 6) / 6, any shape; the cache is the input."""
    return _blockwise(lambda x: (x + 3).clip(0, 6) / 6, x), x


def hardsigmoid_backward(dout, x):
    """dx = dout / 6 where -3 < x < 3."""
    return _blockwise(lambda dout, x: dout * ((x > -3) & (x < 3)) / 6, dout, x)


def hardswish_forward(x):
    """x * clip(x + 3, 0, 6) / 6, any shape; the cache is the input."""

    def hardswish(x):
        gate = x + 3
        gate.clip(0, 6, out=gate)
        gate *= x
        gate /= 6
        return gate

    return _blockwise(hardswish, x), x


def hardswish_backward(dout, x):
    """dx = dout * (0 for x <= -3, 1 for x >= 3, else (2x + 3) / 6)."""

    def derivative(dout, x):
        # The line (2x + 3) / 6 would be -1/2 at -3 and 3/2 at 3: outside, the value jumps.
        slope = x / 3
        slope += x.dtype.type(0.5)
        slope *= x > -3
        slope[x >= 3] = 1
        slope *= dout
        return slope

    return _blockwise(derivative, dout, x)


def sigmoid_forward(x):
    """1 / (1 + exp(-x)), any shape; the cache is the output. No overflow for any x."""

    def sigmoid(x):
        # exp(-|x|) never overflows; for x < 0 the same fraction is exp(x) / (1 + exp(x)).
        small = get_array_module(x).exp(-abs(x))
        return get_array_module(x).where(x >= 0, 1, small) / (1 + small)

    out = _blockwise(sigmoid, x)
    return out, out


def sigmoid_backward(dout, out):
    """dx = dout * out * (1 - out), with `out` the forward's result."""
    return _blockwise(lambda dout, out: dout * out * (1 - out), dout, out)
