"""Global average pooling and max pooling, NHWC, forward and backward."""

from typing import NamedTuple

import numpy as np

from minisegnet.backend import get_array_module
from minisegnet.ops._checks import check_dtype, check_upstream, choose
from minisegnet.ops._windows import check_window, output_size, valid_taps

NO_WINNER = -1  # before a window has seen its first pixel, which may be -inf


def global_average_pool_forward(x):
    """Mean over the pixels: `x` (N, H, W, C) -> `out` (N, 1, 1, C). The cache is x's shape."""
    if x.ndim != 4:
        raise ValueError(f"global_average_pool takes x (N, H, W, C), not {x.shape}")
    check_dtype("global_average_pool", x)
    return x.mean(axis=(1, 2), keepdims=True), x.shape


def global_average_pool_backward(dout, x_shape):
    """dx = dout / (H * W) at every pixel: (N, 1, 1, C) -> (N, H, W, C)."""
    xp = get_array_module(dout)
    N, H, W, C = x_shape
    check_upstream("global_average_pool", dout, (N, 1, 1, C))
    return xp.broadcast_to(dout / (H * W), x_shape).copy()


class MaxPool2dCache(NamedTuple):
    """What the backward pass needs."""

    x_shape: tuple
    winner: np.ndarray  # (N, OH, OW, C) index kh * KW + kw of the tap that held the maximum
    kernel_size: int
    stride: int
    padding: int


def max_pool2d_forward(x, kernel_size, *, stride=None, padding=0, implementation=None):
    """Maximum over windows: `x` (N, H, W, C) -> `out` (N, OH, OW, C). Stride defaults to kernel.

    Among equal values the first in row order wins, and nan wins over all, as in torch. Raises
    ValueError for a window that does not fit or a padding above half of it.
    """
    stride = kernel_size if stride is None else stride
    if not isinstance(kernel_size, int) or kernel_size < 1:
        raise ValueError(f"kernel_size must be a whole number >= 1, not {kernel_size!r}")
    check_window(stride, padding, 1)
    if x.ndim != 4 or 2 * padding > kernel_size:
        raise ValueError(f"max_pool2d takes x (N, H, W, C) and padding <= kernel_size / 2, not "
                         f"{x.shape} and padding {padding} for kernel_size {kernel_size}")
    check_dtype("max_pool2d", x)
    forward = choose(implementation, x, loops=max_pool2d_forward_loops,
                     numpy=max_pool2d_forward_numpy)
    out, winner = forward(x, kernel_size, stride, padding)
    return out, MaxPool2dCache(x.shape, winner, kernel_size, stride, padding)


def max_pool2d_backward(dout, cache, *, implementation=None):
    """dx: each output's gradient goes to the one pixel that was its maximum."""
    check_upstream("max_pool2d", dout, cache.winner.shape)
    backward = choose(implementation, dout, loops=max_pool2d_backward_loops,
                      numpy=max_pool2d_backward_numpy)
    return backward(dout, cache)


def _output_shape(x, kernel_size, stride, padding):
    N, H, W, C = x.shape
    return (N, output_size(H, kernel_size, stride, padding, 1),
            output_size(W, kernel_size, stride, padding, 1), C)


def max_pool2d_forward_loops(x, kernel_size, stride, padding):
    N, H, W, C = x.shape
    shape = _output_shape(x, kernel_size, stride, padding)
    out = np.full(shape, -np.inf, x.dtype)
    winner = np.full(shape, NO_WINNER, np.int16)
    for n, oh, ow, c in np.ndindex(shape):
        for kh, kw in np.ndindex(kernel_size, kernel_size):
            h, w = oh * stride + kh - padding, ow * stride + kw - padding
            if 0 <= h < H and 0 <= w < W:
                value, best = x[n, h, w, c], out[n, oh, ow, c]
                if value > best or np.isnan(value) or winner[n, oh, ow, c] == NO_WINNER:
                    out[n, oh, ow, c] = value
                    winner[n, oh, ow, c] = kh * kernel_size + kw
    return out, winner


def max_pool2d_backward_loops(dout, cache):
    dx = np.zeros(cache.x_shape, dout.dtype)
    for n, oh, ow, c in np.ndindex(dout.shape):
        kh, kw = divmod(int(cache.winner[n, oh, ow, c]), cache.kernel_size)
        h = oh * cache.stride + kh - cache.padding
        w = ow * cache.stride + kw - cache.padding
        dx[n, h, w, c] += dout[n, oh, ow, c]
    return dx


def max_pool2d_forward_numpy(x, kernel_size, stride, padding):
    xp = get_array_module(x)
    shape = _output_shape(x, kernel_size, stride, padding)
    out = xp.full(shape, -xp.inf, x.dtype)
    winner = xp.full(shape, NO_WINNER, xp.int16)
    for tap in valid_taps(x.shape, shape, (kernel_size, kernel_size), stride, padding, 1):
        x_tap = x[tap.x]
        wins = (x_tap > out[tap.out]) | xp.isnan(x_tap) | (winner[tap.out] == NO_WINNER)
        out[tap.out][wins] = x_tap[wins]
        winner[tap.out][wins] = tap.kh * kernel_size + tap.kw
    return out, winner


def max_pool2d_backward_numpy(dout, cache):
    dx = get_array_module(dout).zeros(cache.x_shape, dout.dtype)
    kernel = (cache.kernel_size, cache.kernel_size)
    for tap in valid_taps(cache.x_shape, dout.shape, kernel, cache.stride, cache.padding, 1):
        won = cache.winner[tap.out] == tap.kh * cache.kernel_size + tap.kw
        dx[tap.x] += dout[tap.out] * won
    return dx
