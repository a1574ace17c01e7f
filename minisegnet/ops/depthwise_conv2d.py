"""Depthwise 2-D convolution: every channel is filtered by its own kernel, NHWC.

    out[n, oh, ow, c] = sum over kh, kw of x[n, h, w, c] * weight[kh, kw, c]
    with h = oh*stride + kh*dilation - padding, and w likewise; x is 0 outside

It is torch.nn.Conv2d(C, C, groups=C). There is no sum over channels, so no matrix product: the
work is one multiply-add per tap, and memory traffic decides its speed.

Source: Chollet, "Xception: Deep learning with depthwise separable convolutions" (2017).
"""

from typing import NamedTuple

import numpy as np

from minisegnet.backend import get_array_module
from minisegnet.ops._checks import check_dtype, check_upstream, choose
from minisegnet.ops._windows import check_window, output_size, valid_taps
from minisegnet.parallel import parallel_map


class DepthwiseConv2dCache(NamedTuple):
    """What the backward pass needs."""

    x: np.ndarray  # (N, H, W, C)
    weight: np.ndarray  # (KH, KW, C)
    stride: int
    padding: int
    dilation: int


def depthwise_conv2d_forward(x, weight, *, stride=1, padding=0, dilation=1,
                             implementation="numpy"):
    """Filter each channel of `x` (N, H, W, C) by its own `weight` (KH, KW, C), zero-padded.

    Returns `out` (N, OH, OW, C) and a cache for `depthwise_conv2d_backward`. `implementation`
    is "loops" (the definition) or "numpy". Raises ValueError for shapes that do not fit,
    TypeError for mixed dtypes.
    """
    check_window(stride, padding, dilation)
    if x.ndim != 4 or weight.ndim != 3 or x.shape[3] != weight.shape[2]:
        raise ValueError(f"depthwise_conv2d takes x (N, H, W, C) and weight (KH, KW, C) with the "
                         f"same C, not {x.shape} and {weight.shape}")
    check_dtype("depthwise_conv2d", x, weight)
    forward = choose(implementation, loops=depthwise_conv2d_forward_loops,
                     numpy=depthwise_conv2d_forward_numpy)
    return (forward(x, weight, stride, padding, dilation),
            DepthwiseConv2dCache(x, weight, stride, padding, dilation))


def depthwise_conv2d_backward(dout, cache, *, implementation="numpy"):
    """Return `(dx, dweight)` for `dout` (N, OH, OW, C)."""
    expected = _output_shape(cache.x, cache.weight, cache.stride, cache.padding, cache.dilation)
    check_upstream("depthwise_conv2d", dout, expected)
    backward = choose(implementation, loops=depthwise_conv2d_backward_loops,
                      numpy=depthwise_conv2d_backward_numpy)
    return backward(dout, cache)


def _output_shape(x, weight, stride, padding, dilation):
    KH, KW, C = weight.shape
    return (x.shape[0], output_size(x.shape[1], KH, stride, padding, dilation),
            output_size(x.shape[2], KW, stride, padding, dilation), C)


# ---------------------------------------------------------------- the definition


def depthwise_conv2d_forward_loops(x, weight, stride, padding, dilation):
    N, H, W, C = x.shape
    KH, KW, _ = weight.shape
    shape = _output_shape(x, weight, stride, padding, dilation)
    out = np.zeros(shape, x.dtype)
    for n, oh, ow, c in np.ndindex(shape):
        for kh, kw in np.ndindex(KH, KW):
            h = oh * stride + kh * dilation - padding
            w = ow * stride + kw * dilation - padding
            if 0 <= h < H and 0 <= w < W:
                out[n, oh, ow, c] += x[n, h, w, c] * weight[kh, kw, c]
    return out


def depthwise_conv2d_backward_loops(dout, cache):
    x, weight, stride, padding, dilation = cache
    N, H, W, C = x.shape
    KH, KW, _ = weight.shape
    dx = np.zeros_like(x)
    dweight = np.zeros_like(weight)
    for n, oh, ow, c in np.ndindex(dout.shape):
        for kh, kw in np.ndindex(KH, KW):
            h = oh * stride + kh * dilation - padding
            w = ow * stride + kw * dilation - padding
            if 0 <= h < H and 0 <= w < W:
                dx[n, h, w, c] += dout[n, oh, ow, c] * weight[kh, kw, c]
                dweight[kh, kw, c] += dout[n, oh, ow, c] * x[n, h, w, c]
    return dx, dweight


# ---------------------------------------------------------------- NumPy
#
# With stride 1 the row of one tap, (OW, C), is contiguous in the padded image. A strided view
# (OH, KH, KW, OW*C) of it repeats no data, and einsum runs down it in long vector multiply-adds:
# about twice as fast as nine shifted products, since no temporary is written. One image at a
# time, so that it stays in the cache; images are spread over threads.


def depthwise_conv2d_forward_numpy(x, weight, stride, padding, dilation):
    KH, KW, C = weight.shape
    N, OH, OW, _ = shape = _output_shape(x, weight, stride, padding, dilation)
    xp = get_array_module(x)
    out = xp.empty(shape, x.dtype)
    if stride == 1:
        weight_rows = _tile(xp, weight, OW)

        def forward_image(n):
            taps = _tap_rows(_padded_rows(x[n], padding), weight.shape, OH, OW, dilation)
            out[n] = xp.einsum("hkjp,kjp->hp", taps, weight_rows).reshape(OH, OW, C)
    else:
        def forward_image(n):
            out[n] = 0
            for tap in valid_taps(x.shape, shape, (KH, KW), stride, padding, dilation):
                out[n][tap.out[1:]] += x[n][tap.x[1:]] * weight[tap.kh, tap.kw]

    parallel_map(forward_image, range(N), work=out.size * KH * KW)
    return out


def depthwise_conv2d_backward_numpy(dout, cache):
    x, weight, stride, padding, dilation = cache
    xp = get_array_module(x)
    KH, KW, C = weight.shape
    N, H, W, _ = x.shape
    _, OH, OW, _ = dout.shape
    # The turned kernel slides over dout when that needs no cropping: dx is then a forward pass.
    margin = dilation * (KH - 1) - padding
    if stride == 1 and KH == KW and margin >= 0:
        # dx[h, w] = sum over kh, kw of dout[h + padding - kh*dilation, ...] * weight[kh, kw]
        dx = depthwise_conv2d_forward_numpy(dout, weight[::-1, ::-1], 1, margin, dilation)

        def backward_image(n):
            taps = _tap_rows(_padded_rows(x[n], padding), weight.shape, OH, OW, dilation)
            # dweight[kh, kw] = sum over pixels of x (as the tap saw it) * dout
            dweight_rows = xp.einsum("hkjp,hp->kjp", taps, dout[n].reshape(OH, OW * C))
            return dweight_rows.reshape(KH, KW, OW, C).sum(axis=2)
    else:
        dx = xp.empty_like(x)

        def backward_image(n):
            dx[n] = 0
            dweight = xp.zeros_like(weight)
            for tap in valid_taps(x.shape, dout.shape, (KH, KW), stride, padding, dilation):
                dout_tap = dout[n][tap.out[1:]]  # (rows, cols, C)
                dx[n][tap.x[1:]] += dout_tap * weight[tap.kh, tap.kw]
                dweight[tap.kh, tap.kw] = xp.einsum("hwc,hwc->c", x[n][tap.x[1:]], dout_tap)
            return dweight

    # Summed in the order of the images, whichever thread was first.
    return dx, sum(parallel_map(backward_image, range(N), work=dout.size * KH * KW))


def _tile(xp, weight, width):
    """Repeat each tap's (C,) weights along a row: (KH, KW, width*C)."""
    KH, KW, C = weight.shape
    return xp.tile(weight, (1, 1, width)).reshape(KH, KW, width * C)


def _padded_rows(image, padding):
    """Zero-pad an (H, W, C) image and merge its last two axes: (H + 2p, (W + 2p) * C)."""
    H, W, C = image.shape
    padded = get_array_module(image).zeros((H + 2 * padding, W + 2 * padding, C), image.dtype)
    padded[padding:padding + H, padding:padding + W] = image
    return padded.reshape(H + 2 * padding, -1)


def _tap_rows(rows, kernel, OH, OW, dilation):
    """View padded rows as (OH, KH, KW, OW*C): what each tap sees for each output row."""
    KH, KW, C = kernel
    row, channel = rows.strides
    return get_array_module(rows).lib.stride_tricks.as_strided(
        rows, (OH, KH, KW, OW * C), (row, row * dilation, C * dilation * channel, channel))
