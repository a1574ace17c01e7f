"""Transposed convolution (as torch.nn.ConvTranspose2d), forward and backward, NHWC.

    out[n, oh, ow, o] = bias[o] + sum over h, w, kh, kw, c of x[n, h, w, c] * weight[kh, kw, o, c]
    with oh = h*stride + kh - padding, and ow likewise; what falls outside is cut off

A convolution gathers a window into one output; this spreads one input over a window. It is the
input gradient of the convolution that leads from `out` back to `x`, with the same weight, and so
its own backward is that convolution. Hence the weight (KH, KW, OC, C): read as (KH, KW, in, out),
it is the weight of that convolution.

Source: Dumoulin and Visin, "A guide to convolution arithmetic for deep learning" (2016), part 4.
"""

from typing import NamedTuple

import numpy as np

from minisegnet.backend import get_array_module
from minisegnet.ops._checks import check_dtype, check_upstream, choose
from minisegnet.ops._windows import check_window, valid_taps
from minisegnet.ops.conv2d import Conv2dCache, conv2d_backward_numpy, conv2d_forward_numpy
from minisegnet.parallel import matmul, parallel_map


class ConvTranspose2dCache(NamedTuple):
    """What the backward pass needs."""

    x: np.ndarray  # (N, H, W, C)
    weight: np.ndarray  # (KH, KW, OC, C)
    has_bias: bool
    stride: int
    padding: int


def conv_transpose2d_forward(x, weight, bias=None, *, stride=1, padding=0,
                             implementation=None):
    """Spread `x` (N, H, W, C) by `weight` (KH, KW, OC, C) over a larger map.

    Returns `out` (N, OH, OW, OC) with OH = (H - 1) * stride - 2 * padding + KH, and a cache for
    `conv_transpose2d_backward`. As in torch `padding` makes the map smaller. `implementation` is
    "loops" (the definition) or "numpy" (matrix products). Raises ValueError for shapes that do
    not fit, TypeError for mixed dtypes.
    """
    check_window(stride, padding, 1)
    if x.ndim != 4 or weight.ndim != 4 or x.shape[3] != weight.shape[3]:
        raise ValueError(f"conv_transpose2d takes x (N, H, W, C) and weight (KH, KW, OC, C) with "
                         f"the same C, not {x.shape} and {weight.shape}")
    if bias is not None and bias.shape != weight.shape[2:3]:
        raise ValueError(f"conv_transpose2d bias must be (OC,) = {weight.shape[2:3]}, not "
                         f"{bias.shape}")
    check_dtype("conv_transpose2d", x, weight, *(() if bias is None else (bias,)))
    if min(_output_shape(x, weight, stride, padding)) < 1:
        raise ValueError(f"padding {padding} cuts off all of the output of an input {x.shape} "
                         f"and a kernel {weight.shape[:2]}; use less padding")
    forward = choose(implementation, x, loops=conv_transpose2d_forward_loops,
                     numpy=conv_transpose2d_forward_numpy)
    out = forward(x, weight, stride, padding)
    if bias is not None:
        out += bias
    return out, ConvTranspose2dCache(x, weight, bias is not None, stride, padding)


def conv_transpose2d_backward(dout, cache, *, implementation=None):
    """Return `(dx, dweight, dbias)` for `dout` (N, OH, OW, OC).

    `dbias` is None if the forward had no bias.
    """
    expected = _output_shape(cache.x, cache.weight, cache.stride, cache.padding)
    check_upstream("conv_transpose2d", dout, expected)
    backward = choose(implementation, dout, loops=conv_transpose2d_backward_loops,
                      numpy=conv_transpose2d_backward_numpy)
    dx, dweight = backward(dout, cache)
    # dbias = sum of dout over every pixel
    dbias = dout.sum(axis=(0, 1, 2)) if cache.has_bias else None
    return dx, dweight, dbias


def _output_shape(x, weight, stride, padding):
    N, H, W, _ = x.shape
    KH, KW, OC, _ = weight.shape
    return (N, (H - 1) * stride - 2 * padding + KH, (W - 1) * stride - 2 * padding + KW, OC)


# ---------------------------------------------------------------- the definition


def conv_transpose2d_forward_loops(x, weight, stride, padding):
    KH, KW, OC, C = weight.shape
    out = np.zeros(_output_shape(x, weight, stride, padding), x.dtype)
    for n, h, w, c in np.ndindex(x.shape):
        for kh, kw in np.ndindex(KH, KW):
            oh, ow = h * stride + kh - padding, w * stride + kw - padding
            if 0 <= oh < out.shape[1] and 0 <= ow < out.shape[2]:
                for o in range(OC):
                    out[n, oh, ow, o] += x[n, h, w, c] * weight[kh, kw, o, c]
    return out


def conv_transpose2d_backward_loops(dout, cache):
    x, weight, _, stride, padding = cache
    KH, KW, OC, C = weight.shape
    dx = np.zeros_like(x)
    dweight = np.zeros_like(weight)
    # Each multiplication x * weight -> out of the forward sends dout to both of its factors.
    for n, h, w, c in np.ndindex(x.shape):
        for kh, kw in np.ndindex(KH, KW):
            oh, ow = h * stride + kh - padding, w * stride + kw - padding
            if 0 <= oh < dout.shape[1] and 0 <= ow < dout.shape[2]:
                for o in range(OC):
                    dx[n, h, w, c] += dout[n, oh, ow, o] * weight[kh, kw, o, c]
                    dweight[kh, kw, o, c] += dout[n, oh, ow, o] * x[n, h, w, c]
    return dx, dweight


# ---------------------------------------------------------------- matrix products


def _is_disjoint(weight, stride, padding):
    """Each output pixel comes from one input pixel only, as in a UNet: windows side by side."""
    return weight.shape[:2] == (stride, stride) and padding == 0


def conv_transpose2d_forward_numpy(x, weight, stride, padding):
    KH, KW, OC, C = weight.shape
    N, H, W, _ = x.shape
    shape = _output_shape(x, weight, stride, padding)
    if _is_disjoint(weight, stride, padding):
        windows = matmul(x.reshape(-1, C), weight.reshape(-1, C).T)  # (N*H*W, KH*KW*OC)
        windows = windows.reshape(N, H, W, KH, KW, OC)
        return windows.transpose(0, 1, 3, 2, 4, 5).reshape(shape)
    out = get_array_module(x).zeros(shape, x.dtype)
    # The taps of the convolution from out to x: where it reads, this writes.
    taps = valid_taps(shape, x.shape, (KH, KW), stride, padding, 1)

    def forward_image(n):
        for tap in taps:
            x_tap = x[n][tap.out[1:]]  # (rows, cols, C)
            product = matmul(x_tap.reshape(-1, C), weight[tap.kh, tap.kw].T)
            out[n][tap.x[1:]] += product.reshape(*x_tap.shape[:2], OC)

    parallel_map(forward_image, range(N), work=x.size * KH * KW * OC // 8)
    return out


def conv_transpose2d_backward_numpy(dout, cache):
    x, weight, _, stride, padding = cache
    KH, KW, OC, C = weight.shape
    N, H, W, _ = x.shape
    if _is_disjoint(weight, stride, padding):
        windows = dout.reshape(N, H, KH, W, KW, OC).transpose(0, 1, 3, 2, 4, 5)
        windows = windows.reshape(-1, KH * KW * OC)  # (N*H*W, KH*KW*OC)
        dx = matmul(windows, weight.reshape(-1, C)).reshape(x.shape)
        dweight = matmul(windows.T, x.reshape(-1, C)).reshape(weight.shape)
        return dx, dweight
    # dx = the convolution of dout
    dx = conv2d_forward_numpy(dout, weight, stride, padding, 1)
    # dweight = that convolution's weight gradient: its input is dout, its upstream gradient x
    convolution = Conv2dCache(dout, weight, False, stride, padding, 1)
    _, dweight = conv2d_backward_numpy(x, convolution, input_gradient=False)
    return dx, dweight
