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
from minisegnet.cuda.gemm import gemm
from minisegnet.cuda.launch import KernelFile, blocks
from minisegnet.ops import conv2d_cuda
from minisegnet.ops._checks import check_dtype, check_upstream, choose, gradient_array
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
    cast: np.ndarray | None = None  # the weight in x's dtype, where that is of 16 bits


def conv_transpose2d_forward(x, weight, bias=None, *, stride=1, padding=0,
                             implementation=None):
    """Spread `x` (N, H, W, C) by `weight` (KH, KW, OC, C) over a larger map.

    Returns `out` (N, OH, OW, OC) with OH = (H - 1) * stride - 2 * padding + KH, and a cache for
    `conv_transpose2d_backward`. As in torch `padding` makes the map smaller. `implementation` is
    "loops" (the definition), "numpy" (matrix products), "cuda" or "cuda_cpu"; None chooses by the
    array. Raises ValueError for shapes that do not fit, TypeError for mixed dtypes.
    """
    check_window(stride, padding, 1)
    if (x.ndim != 4 or weight.ndim != 4 or x.shape[3] != weight.shape[3]
            or 0 in x.shape + weight.shape):
        raise ValueError(f"conv_transpose2d takes x (N, H, W, C) and weight (KH, KW, OC, C) with "
                         f"the same C, none of them 0, not {x.shape} and {weight.shape}")
    if bias is not None and bias.shape != weight.shape[2:3]:
        raise ValueError(f"conv_transpose2d bias must be (OC,) = {weight.shape[2:3]}, not "
                         f"{bias.shape}")
    check_dtype("conv_transpose2d", x, weight, *(() if bias is None else (bias,)))
    if min(_output_shape(x, weight, stride, padding)) < 1:
        raise ValueError(f"padding {padding} cuts off all of the output of an input {x.shape} "
                         f"and a kernel {weight.shape[:2]}; use less padding")
    forward = choose(implementation, x, loops=conv_transpose2d_forward_loops,
                     numpy=conv_transpose2d_forward_numpy, cuda=conv_transpose2d_forward_cuda)
    cast = conv2d_cuda.cast_weight(x, weight)
    given = {} if cast is None else {"cast": cast}
    out = forward(x, weight, bias, stride, padding, **given)
    return out, ConvTranspose2dCache(x, weight, bias is not None, stride, padding, cast)


def conv_transpose2d_backward(dout, cache, *, dweight=None, dbias=None, implementation=None):
    """Return `(dx, dweight, dbias)` for `dout` (N, OH, OW, OC).

    `dbias` is None if the forward had no bias. Where arrays `dweight` and `dbias` are given, the
    gradients are added to them.
    """
    expected = _output_shape(cache.x, cache.weight, cache.stride, cache.padding)
    check_upstream("conv_transpose2d", dout, expected, cache.x)
    backward = choose(implementation, dout, loops=conv_transpose2d_backward_loops,
                      numpy=conv_transpose2d_backward_numpy, cuda=conv_transpose2d_backward_cuda)
    op, xp, weight = "conv_transpose2d", get_array_module(dout), cache.weight
    dweight = gradient_array(op, "dweight", dweight, weight.shape, weight.dtype, xp)
    dbias = (gradient_array(op, "dbias", dbias, weight.shape[2:3], weight.dtype, xp)
             if cache.has_bias else None)
    return backward(dout, cache, dweight, dbias), dweight, dbias


def _output_shape(x, weight, stride, padding):
    N, H, W, _ = x.shape
    KH, KW, OC, _ = weight.shape
    return (N, (H - 1) * stride - 2 * padding + KH, (W - 1) * stride - 2 * padding + KW, OC)


# ---------------------------------------------------------------- the definition


def conv_transpose2d_forward_loops(x, weight, bias, stride, padding):
    KH, KW, OC, C = weight.shape
    out = np.zeros(_output_shape(x, weight, stride, padding), x.dtype)
    if bias is not None:
        out += bias
    for n, h, w, c in np.ndindex(x.shape):
        for kh, kw in np.ndindex(KH, KW):
            oh, ow = h * stride + kh - padding, w * stride + kw - padding
            if 0 <= oh < out.shape[1] and 0 <= ow < out.shape[2]:
                for o in range(OC):
                    out[n, oh, ow, o] += x[n, h, w, c] * weight[kh, kw, o, c]
    return out


def conv_transpose2d_backward_loops(dout, cache, dweight, dbias):
    x, weight, _, stride, padding, _ = cache
    KH, KW, OC, C = weight.shape
    if dbias is not None:
        for n, oh, ow, o in np.ndindex(dout.shape):
            dbias[o] += dout[n, oh, ow, o]
    dx = np.zeros_like(x)
    # Each multiplication x * weight -> out of the forward sends dout to both of its factors.
    for n, h, w, c in np.ndindex(x.shape):
        for kh, kw in np.ndindex(KH, KW):
            oh, ow = h * stride + kh - padding, w * stride + kw - padding
            if 0 <= oh < dout.shape[1] and 0 <= ow < dout.shape[2]:
                for o in range(OC):
                    dx[n, h, w, c] += dout[n, oh, ow, o] * weight[kh, kw, o, c]
                    dweight[kh, kw, o, c] += dout[n, oh, ow, o] * x[n, h, w, c]
    return dx


# ---------------------------------------------------------------- matrix products


def _is_disjoint(weight, stride, padding):
    """Each output pixel comes from one input pixel only, as in a UNet: windows side by side."""
    return weight.shape[:2] == (stride, stride) and padding == 0


def conv_transpose2d_forward_numpy(x, weight, bias, stride, padding):
    out = _spread(x, weight, stride, padding)
    if bias is not None:
        out += bias
    return out


def _spread(x, weight, stride, padding):
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


def conv_transpose2d_backward_numpy(dout, cache, dweight, dbias):
    x, weight, _, stride, padding, _ = cache
    KH, KW, OC, C = weight.shape
    N, H, W, _ = x.shape
    if dbias is not None:
        # dbias = sum of dout over every pixel
        dbias += dout.sum(axis=(0, 1, 2))
    if _is_disjoint(weight, stride, padding):
        windows = dout.reshape(N, H, KH, W, KW, OC).transpose(0, 1, 3, 2, 4, 5)
        windows = windows.reshape(-1, KH * KW * OC)  # (N*H*W, KH*KW*OC)
        dweight += matmul(windows.T, x.reshape(-1, C)).reshape(weight.shape)
        return matmul(windows, weight.reshape(-1, C)).reshape(x.shape)
    # dweight = that convolution's weight gradient: its input is dout, its upstream gradient x
    convolution = Conv2dCache(dout, weight, False, stride, padding, 1)
    conv2d_backward_numpy(x, convolution, False, dweight, None)
    # dx = the convolution of dout
    return conv2d_forward_numpy(dout, weight, None, stride, padding, 1)


# ---------------------------------------------------------------- CUDA: conv_transpose2d.cu
#
# A kernel of its own only where the windows lie side by side; else those of conv2d.cu.

THREADS = 256  # of a block

KERNELS = KernelFile(__file__, templates={"conv_transpose2d_forward_kernel": ("1", "4")})


def conv_transpose2d_forward_cuda(x, weight, bias, stride, padding, cast=None):
    xp = get_array_module(x)
    x, weight = xp.ascontiguousarray(x), xp.ascontiguousarray(weight)
    bias = None if bias is None else xp.ascontiguousarray(bias)
    out = xp.empty(_output_shape(x, weight, stride, padding), x.dtype)
    if _is_disjoint(weight, stride, padding):
        _spread_side_by_side(x, weight if cast is None else cast, bias, out)
        return out
    # out = the input gradient of the convolution from out to x
    conv2d_cuda.input_gradient(x, weight, out, conv2d_cuda.Window(stride, 1, padding, padding),
                               cast)
    if bias is not None:
        conv2d_cuda.add_bias(out, bias)
    return out


def _spread_side_by_side(x, weight, bias, out):
    N, H, W, C = x.shape
    KH, KW, OC, _ = weight.shape
    weight = conv2d_cuda.in_dtype_of(x, weight).reshape(-1, C)
    # Of whole rows of x, their windows stay in the cache until they are put in place.
    pieces = conv2d_cuda.chunks(N * H, W * KH * KW * OC * x.itemsize)
    memory = get_array_module(x).empty((pieces[0].stop * W, KH * KW * OC), x.dtype)
    x_rows, out_rows = x.reshape(N * H, W, C), out.reshape(N * H, KH, W * KW, OC)
    vector = 4 if OC % 4 == 0 else 1
    for rows in pieces:
        x_piece, out_piece = x_rows[rows].reshape(-1, C), out_rows[rows]
        windows = memory[:len(x_piece)]  # (P, KH*KW*OC)
        gemm(x_piece, weight, windows, transpose_b=True)
        KERNELS.launch(f"conv_transpose2d_forward_kernel<{vector}>",
                       (blocks(out_piece.size // vector, THREADS),), (THREADS,), windows=windows,
                       bias=bias, out=out_piece, size=out_piece.size, W=W, OC=OC, KH=KH, KW=KW)


def conv_transpose2d_backward_cuda(dout, cache, dweight, dbias):
    x, weight, _, stride, padding, cast = cache
    xp = get_array_module(dout)
    dout, x, weight = map(xp.ascontiguousarray, (dout, x, weight))
    if dbias is not None:
        conv2d_cuda.add_bias_gradient(dout, dbias)
    dx = xp.empty(x.shape, x.dtype)
    weight_rows, dweight_rows, x_rows, dx_rows = map(
        conv2d_cuda.rows_of,
        (conv2d_cuda.in_dtype_of(dout, weight) if cast is None else cast, dweight, x, dx))
    window = conv2d_cuda.Window(stride, 1, padding, padding)
    # The windows of dout are columns to a convolution: gathered once, multiplied twice.
    for pixels, windows in conv2d_cuda.columns(dout, weight, x, window):
        # dx = windows weight, dweight = windows^T x
        gemm(windows, weight_rows, dx_rows[pixels])
        gemm(windows, x_rows[pixels], dweight_rows, transpose_a=True, add=True)
    return dx
