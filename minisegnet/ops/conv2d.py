"""2-D convolution (cross-correlation, as torch.nn.Conv2d), forward and backward, NHWC.

    out[n, oh, ow, o] = bias[o] + sum over kh, kw, c of x[n, h, w, c] * weight[kh, kw, c, o]
    with h = oh*stride + kh*dilation - padding, and w likewise; x is 0 outside

Source: Dumoulin and Visin, "A guide to convolution arithmetic for deep learning" (2016).
"""

from typing import NamedTuple

import numpy as np

from minisegnet.backend import get_array_module
from minisegnet.ops import conv2d_cuda
from minisegnet.ops._checks import check_dtype, check_upstream, choose, gradient_array
from minisegnet.ops._windows import check_window, output_size, valid_taps
from minisegnet.parallel import matmul, parallel_map

# Below this many weights per output channel the matrix products of single taps are too thin for
# BLAS, and gathering all taps into one matrix (im2col) is faster.
IM2COL_MAX_WEIGHTS = 128


class Conv2dCache(NamedTuple):
    """What the backward pass needs."""

    x: np.ndarray  # (N, H, W, C)
    weight: np.ndarray  # (KH, KW, C, OC)
    has_bias: bool
    stride: int
    padding: int
    dilation: int
    cast: np.ndarray | None = None  # the weight in x's dtype, where that is of 16 bits


def conv2d_forward(x, weight, bias=None, *, stride=1, padding=0, dilation=1,
                   implementation=None):
    """Convolve `x` (N, H, W, C) with `weight` (KH, KW, C, OC), zero-padded.

    Returns `out` (N, OH, OW, OC) and a cache for `conv2d_backward`. `implementation` is
    "loops" (the definition), "numpy" (matrix products), "cuda" or "cuda_cpu"; None chooses by the
    array. Raises ValueError for shapes that do not fit, TypeError for mixed dtypes.
    """
    check_window(stride, padding, dilation)
    if (x.ndim != 4 or weight.ndim != 4 or x.shape[3] != weight.shape[2]
            or 0 in x.shape + weight.shape):
        raise ValueError(f"conv2d takes x (N, H, W, C) and weight (KH, KW, C, OC) with the same C,"
                         f" none of them 0, not {x.shape} and {weight.shape}")
    if bias is not None and bias.shape != weight.shape[3:]:
        raise ValueError(f"conv2d bias must be (OC,) = {weight.shape[3:]}, not {bias.shape}")
    check_dtype("conv2d", x, weight, *(() if bias is None else (bias,)))
    forward = choose(implementation, x, loops=conv2d_forward_loops, numpy=conv2d_forward_numpy,
                     cuda=conv2d_forward_cuda)
    cast = conv2d_cuda.cast_weight(x, weight)
    given = {} if cast is None else {"cast": cast}
    out = forward(x, weight, bias, stride, padding, dilation, **given)
    return out, Conv2dCache(x, weight, bias is not None, stride, padding, dilation, cast)


def conv2d_backward(dout, cache, *, input_gradient=True, dweight=None, dbias=None,
                    implementation=None):
    """Return `(dx, dweight, dbias)` for `dout` (N, OH, OW, OC).

    `dbias` is None if the forward had no bias; `dx` is None with `input_gradient=False`, which
    spares the first layer of a network the gradient of the picture. Where arrays `dweight` and
    `dbias` are given, the gradients are added to them.
    """
    expected = _output_shape(cache.x, cache.weight, cache.stride, cache.padding, cache.dilation)
    check_upstream("conv2d", dout, expected, cache.x)
    backward = choose(implementation, dout, loops=conv2d_backward_loops,
                      numpy=conv2d_backward_numpy, cuda=conv2d_backward_cuda)
    xp, weight = get_array_module(dout), cache.weight
    dweight = gradient_array("conv2d", "dweight", dweight, weight.shape, weight.dtype, xp)
    dbias = (gradient_array("conv2d", "dbias", dbias, weight.shape[3:], weight.dtype, xp)
             if cache.has_bias else None)
    return backward(dout, cache, input_gradient, dweight, dbias), dweight, dbias


def _output_shape(x, weight, stride, padding, dilation):
    KH, KW, _, OC = weight.shape
    return (x.shape[0], output_size(x.shape[1], KH, stride, padding, dilation),
            output_size(x.shape[2], KW, stride, padding, dilation), OC)


# ---------------------------------------------------------------- the definition


def conv2d_forward_loops(x, weight, bias, stride, padding, dilation):
    N, H, W, C = x.shape
    KH, KW, _, OC = weight.shape
    shape = _output_shape(x, weight, stride, padding, dilation)
    out = np.zeros(shape, x.dtype)
    if bias is not None:
        out += bias
    for n, oh, ow, o in np.ndindex(shape):
        for kh, kw in np.ndindex(KH, KW):
            h = oh * stride + kh * dilation - padding
            w = ow * stride + kw * dilation - padding
            if 0 <= h < H and 0 <= w < W:
                for c in range(C):
                    out[n, oh, ow, o] += x[n, h, w, c] * weight[kh, kw, c, o]
    return out


def conv2d_backward_loops(dout, cache, input_gradient, dweight, dbias):
    x, weight, _, stride, padding, dilation, _ = cache
    N, H, W, C = x.shape
    KH, KW, _, OC = weight.shape
    dx = np.zeros_like(x)
    # Each multiplication x * weight -> out of the forward sends dout to both of its factors.
    for n, oh, ow, o in np.ndindex(dout.shape):
        if dbias is not None:
            dbias[o] += dout[n, oh, ow, o]
        for kh, kw in np.ndindex(KH, KW):
            h = oh * stride + kh * dilation - padding
            w = ow * stride + kw * dilation - padding
            if 0 <= h < H and 0 <= w < W:
                for c in range(C):
                    dx[n, h, w, c] += dout[n, oh, ow, o] * weight[kh, kw, c, o]
                    dweight[kh, kw, c, o] += dout[n, oh, ow, o] * x[n, h, w, c]
    return dx if input_gradient else None


# ---------------------------------------------------------------- matrix products


def conv2d_forward_numpy(x, weight, bias, stride, padding, dilation):
    out = _convolve(x, weight, stride, padding, dilation)
    if bias is not None:
        out += bias
    return out


def _convolve(x, weight, stride, padding, dilation):
    KH, KW, C, OC = weight.shape
    shape = _output_shape(x, weight, stride, padding, dilation)
    if KH == KW == 1 and padding == 0:
        # In NHWC a 1x1 convolution is one matrix product over the channels.
        x = x[:, ::stride, ::stride]
        return matmul(x.reshape(-1, C), weight[0, 0]).reshape(shape)
    if KH * KW * C <= IM2COL_MAX_WEIGHTS:
        cols = _im2col(x, weight.shape, shape, stride, padding, dilation)
        return matmul(cols, weight.reshape(-1, OC)).reshape(shape)
    out = get_array_module(x).zeros(shape, x.dtype)
    taps = valid_taps(x.shape, shape, (KH, KW), stride, padding, dilation)

    def forward_image(n):  # one image at a time: its sums stay in the cache from tap to tap
        for tap in taps:
            x_tap = x[n][tap.x[1:]]  # (rows, cols, C)
            product = matmul(x_tap.reshape(-1, C), weight[tap.kh, tap.kw])
            out[n][tap.out[1:]] += product.reshape(*x_tap.shape[:2], OC)

    parallel_map(forward_image, range(len(x)), work=out.size * KH * KW * C // 8)
    return out


def conv2d_backward_numpy(dout, cache, input_gradient, dweight, dbias):
    x, weight, _, stride, padding, dilation, _ = cache
    KH, KW, C, OC = weight.shape
    if dbias is not None:
        # dbias = sum of dout over every pixel
        dbias += dout.sum(axis=(0, 1, 2))
    if KH == KW == 1 and padding == 0:
        return _pointwise_backward(dout, x, weight, stride, input_gradient, dweight)
    if KH * KW * C <= IM2COL_MAX_WEIGHTS:
        return _im2col_backward(dout, cache, input_gradient, dweight)
    taps = valid_taps(x.shape, dout.shape, (KH, KW), stride, padding, dilation)
    for tap in taps:
        # dweight = x^T dout
        dweight[tap.kh, tap.kw] += matmul(x[tap.x].reshape(-1, C).T,
                                          dout[tap.out].reshape(-1, OC))
    if not input_gradient:
        return None
    dx = get_array_module(x).zeros_like(x)

    def input_gradient_of_image(n):
        for tap in taps:
            dout_tap = dout[n][tap.out[1:]]  # (rows, cols, OC)
            # dx = dout weight^T, added where the tap had read
            product = matmul(dout_tap.reshape(-1, OC), weight[tap.kh, tap.kw].T)
            dx[n][tap.x[1:]] += product.reshape(*dout_tap.shape[:2], C)

    parallel_map(input_gradient_of_image, range(len(x)), work=dout.size * KH * KW * C // 8)
    return dx


def _pointwise_backward(dout, x, weight, stride, input_gradient, dweight):
    C, OC = weight.shape[2:]
    dout_rows = dout.reshape(-1, OC)  # (P, OC)
    x_rows = x[:, ::stride, ::stride].reshape(-1, C)  # (P, C)
    dweight += matmul(x_rows.T, dout_rows).reshape(weight.shape)
    if not input_gradient:
        return None
    dx_rows = matmul(dout_rows, weight[0, 0].T)  # (P, C)
    if stride == 1:
        return dx_rows.reshape(x.shape)
    dx = get_array_module(x).zeros_like(x)
    dx[:, ::stride, ::stride] = dx_rows.reshape(*dout.shape[:3], C)
    return dx


def _padded(x, padding):
    if padding == 0:
        return x
    N, H, W, C = x.shape
    padded = get_array_module(x).zeros((N, H + 2 * padding, W + 2 * padding, C), x.dtype)
    padded[:, padding:padding + H, padding:padding + W] = x
    return padded


def _im2col(x, weight_shape, out_shape, stride, padding, dilation):
    """Gather the KH*KW*C inputs of every output pixel into a row: (N*OH*OW, KH*KW*C)."""
    KH, KW, C, _ = weight_shape
    N, OH, OW, _ = out_shape
    xp = get_array_module(x)
    x = xp.ascontiguousarray(_padded(x, padding))
    image, row, col, channel = x.strides
    windows = xp.lib.stride_tricks.as_strided(
        x, (N, OH, OW, KH, KW, C),
        (image, row * stride, col * stride, row * dilation, col * dilation, channel))
    return windows.reshape(N * OH * OW, KH * KW * C)


def _im2col_backward(dout, cache, input_gradient, dweight):
    x, weight, _, stride, padding, dilation, _ = cache
    KH, KW, C, OC = weight.shape
    N, OH, OW, _ = dout.shape
    dout_rows = dout.reshape(-1, OC)
    # The columns are gathered a second time: keeping them would hold KH*KW copies of the input.
    cols = _im2col(x, weight.shape, dout.shape, stride, padding, dilation)
    dweight += matmul(cols.T, dout_rows).reshape(weight.shape)
    if not input_gradient:
        return None
    dcols = matmul(dout_rows, weight.reshape(-1, OC).T).reshape(N, OH, OW, KH, KW, C)
    dx = get_array_module(x).zeros_like(x)
    for tap in valid_taps(x.shape, dout.shape, (KH, KW), stride, padding, dilation):
        dx[tap.x] += dcols[tap.out][..., tap.kh, tap.kw, :]
    return dx


# ---------------------------------------------------------------- CUDA: conv2d.cu
#
# conv2d_cuda.py launches its kernels.


def conv2d_forward_cuda(x, weight, bias, stride, padding, dilation, cast=None):
    xp = get_array_module(x)
    x, weight = xp.ascontiguousarray(x), xp.ascontiguousarray(weight)
    bias = None if bias is None else xp.ascontiguousarray(bias)
    out = xp.empty(_output_shape(x, weight, stride, padding, dilation), x.dtype)
    taps, window = conv2d_cuda.seen_taps(x, weight, out, stride, padding, dilation)
    weight, cast = weight[taps], None if cast is None else cast[taps]
    if conv2d_cuda.is_direct(weight):
        conv2d_cuda.convolve_directly(x, weight, bias, out, window)
        return out
    conv2d_cuda.convolve(x, weight if cast is None else cast, out, window)
    if bias is not None:
        conv2d_cuda.add_bias(out, bias)
    return out


def conv2d_backward_cuda(dout, cache, input_gradient, dweight, dbias):
    x, weight, _, stride, padding, dilation, cast = cache
    xp = get_array_module(dout)
    dout, x, weight = map(xp.ascontiguousarray, (dout, x, weight))
    dx = xp.empty(x.shape, x.dtype) if input_gradient else None
    if dbias is not None:
        conv2d_cuda.add_bias_gradient(dout, dbias)
    taps, window = conv2d_cuda.seen_taps(x, weight, dout, stride, padding, dilation)
    weight, dweight = weight[taps], dweight[taps]
    cast = None if cast is None else cast[taps]
    if conv2d_cuda.is_direct(weight):
        conv2d_cuda.add_weight_gradient_directly(dout, x, dweight, window)
        if input_gradient:
            conv2d_cuda.input_gradient_directly(dout, weight, dx, window)
        return dx
    conv2d_cuda.add_weight_gradient(dout, x, dweight, window)
    if input_gradient:
        conv2d_cuda.input_gradient(dout, weight, dx, window, cast)
    return dx
