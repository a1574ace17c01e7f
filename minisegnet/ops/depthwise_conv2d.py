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
from minisegnet.cuda.launch import KernelFile, blocks
from minisegnet.ops._checks import check_dtype, check_upstream, choose, gradient_array
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
                             implementation=None):
    """Filter each channel of `x` (N, H, W, C) by its own `weight` (KH, KW, C), zero-padded.

    Returns `out` (N, OH, OW, C) and a cache for `depthwise_conv2d_backward`. `implementation`
    is "loops" (the definition), "numpy", "cuda" or "cuda_cpu"; None chooses by the array. Raises
    ValueError for shapes that do not fit, TypeError for mixed dtypes.
    """
    check_window(stride, padding, dilation)
    if (x.ndim != 4 or weight.ndim != 3 or x.shape[3] != weight.shape[2]
            or 0 in x.shape + weight.shape):
        raise ValueError(f"depthwise_conv2d takes x (N, H, W, C) and weight (KH, KW, C) with the "
                         f"same C, none of them 0, not {x.shape} and {weight.shape}")
    check_dtype("depthwise_conv2d", x, weight)
    forward = choose(implementation, x, loops=depthwise_conv2d_forward_loops,
                     numpy=depthwise_conv2d_forward_numpy, cuda=depthwise_conv2d_forward_cuda)
    return (forward(x, weight, stride, padding, dilation),
            DepthwiseConv2dCache(x, weight, stride, padding, dilation))


def depthwise_conv2d_backward(dout, cache, *, dweight=None, implementation=None):
    """Return `(dx, dweight)` for `dout` (N, OH, OW, C).

    Where an array `dweight` (KH, KW, C) is given, the gradient is added to it.
    """
    expected = _output_shape(cache.x, cache.weight, cache.stride, cache.padding, cache.dilation)
    check_upstream("depthwise_conv2d", dout, expected, cache.x)
    backward = choose(implementation, dout, loops=depthwise_conv2d_backward_loops,
                      numpy=depthwise_conv2d_backward_numpy, cuda=depthwise_conv2d_backward_cuda)
    dweight = gradient_array("depthwise_conv2d", "dweight", dweight, cache.weight.shape,
                             cache.weight.dtype, get_array_module(dout))
    return backward(dout, cache, dweight), dweight


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


def depthwise_conv2d_backward_loops(dout, cache, dweight):
    x, weight, stride, padding, dilation = cache
    N, H, W, C = x.shape
    KH, KW, _ = weight.shape
    dx = np.zeros_like(x)
    for n, oh, ow, c in np.ndindex(dout.shape):
        for kh, kw in np.ndindex(KH, KW):
            h = oh * stride + kh * dilation - padding
            w = ow * stride + kw * dilation - padding
            if 0 <= h < H and 0 <= w < W:
                dx[n, h, w, c] += dout[n, oh, ow, c] * weight[kh, kw, c]
                dweight[kh, kw, c] += dout[n, oh, ow, c] * x[n, h, w, c]
    return dx


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


def depthwise_conv2d_backward_numpy(dout, cache, dweight):
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
            share = xp.zeros_like(weight)
            for tap in valid_taps(x.shape, dout.shape, (KH, KW), stride, padding, dilation):
                dout_tap = dout[n][tap.out[1:]]  # (rows, cols, C)
                dx[n][tap.x[1:]] += dout_tap * weight[tap.kh, tap.kw]
                share[tap.kh, tap.kw] = xp.einsum("hwc,hwc->c", x[n][tap.x[1:]], dout_tap)
            return share

    # Summed in the order of the images, whichever thread was first.
    dweight += sum(parallel_map(backward_image, range(N), work=dout.size * KH * KW))
    return dx


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


# ---------------------------------------------------------------- CUDA: depthwise_conv2d.cu

THREADS = 256  # of a block
UNROLLED = (3, 5)  # kernel sizes with a version of their own
STRIP = 4  # outputs of one thread of the forward kernel
BACKWARD_BLOCKS = 1024  # about: enough for every multiprocessor, few enough shares of dweight

KERNELS = KernelFile(__file__, templates={
    "depthwise_conv2d_forward_kernel": ("0, 1", "0, 4", "3, 1", "3, 4", "5, 1", "5, 4"),
    "depthwise_conv2d_backward_kernel": ("3, 1", "3, 4", "5, 1", "5, 2"),
})


def depthwise_conv2d_forward_cuda(x, weight, stride, padding, dilation):
    xp = get_array_module(x)
    x, weight = xp.ascontiguousarray(x), xp.ascontiguousarray(weight)
    N, H, W, C = x.shape
    KH, KW, _ = weight.shape
    _, OH, OW, _ = shape = _output_shape(x, weight, stride, padding, dilation)
    out = xp.empty(shape, x.dtype)
    kernel = KH if KH == KW and KH in UNROLLED else 0
    vector = 4 if C % 4 == 0 else 1
    columns, rows = _block_of(C // vector)
    KERNELS.launch(
        f"depthwise_conv2d_forward_kernel<{kernel}, {vector}>",
        (blocks(N * OH * blocks(OW, STRIP), rows), blocks(C // vector, columns)), (columns, rows),
        x=x, weight=weight, out=out, N=N, H=H, W=W, C=C, OH=OH, OW=OW, KH=KH, KW=KW,
        stride=stride, padding=padding, dilation=dilation)
    return out


def depthwise_conv2d_backward_cuda(dout, cache, dweight):
    x, weight, stride, padding, dilation = cache
    xp = get_array_module(dout)
    dout, x, weight = map(xp.ascontiguousarray, (dout, x, weight))
    N, H, W, C = x.shape
    KH, KW, _ = weight.shape
    _, OH, OW, _ = dout.shape
    dx = xp.empty(x.shape, x.dtype)
    sizes = dict(N=N, H=H, W=W, C=C, OH=OH, OW=OW, stride=stride, padding=padding,
                 dilation=dilation)
    if KH == KW and KH in UNROLLED:
        # A thread holds KH*KW*vector sums in registers: 36 or 50.
        widest = {3: 4, 5: 2}[KH]
        vector = widest if C % widest == 0 else 1
        columns, rows = _block_of(C // vector)
        across = blocks(C // vector, columns)
        count = min(blocks(N * H * W, rows), max(1, BACKWARD_BLOCKS // across))
        shares = xp.empty((count, KH, KW, C), weight.dtype)
        KERNELS.launch(f"depthwise_conv2d_backward_kernel<{KH}, {vector}>", (count, across),
                       (columns, rows), shared_bytes=THREADS * vector * weight.dtype.itemsize,
                       dout=dout, x=x, weight=weight, dx=dx, shares=shares, **sizes)
        rows = min(count, 32)
        KERNELS.launch("depthwise_conv2d_sum_kernel", (1, blocks(weight.size, 32)), (32, rows),
                       shared_bytes=32 * rows * weight.dtype.itemsize, shares=shares,
                       dweight=dweight, P=count, size=weight.size)
        return dx
    KERNELS.launch("depthwise_conv2d_backward_input_kernel", (blocks(x.size, THREADS),),
                   (THREADS,), dout=dout, weight=weight, dx=dx, KH=KH, KW=KW, **sizes)
    KERNELS.launch("depthwise_conv2d_backward_weight_kernel", (blocks(C, 32), KH * KW), (32, 8),
                   dout=dout, x=x, dweight=dweight, KW=KW, **sizes)
    return dx


def _block_of(vectors):
    """Return (columns, rows) of a block: as many columns as there are vectors of channels."""
    columns = 1
    while columns < min(vectors, 32):
        columns *= 2
    return columns, THREADS // columns
