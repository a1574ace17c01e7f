"""Pooling over all pixels and over windows, and its opposite, repeating; NHWC."""

from typing import NamedTuple

import numpy as np

from minisegnet.backend import get_array_module
from minisegnet.cuda.launch import KernelFile, blocks
from minisegnet.ops._checks import check_dtype, check_upstream, choose
from minisegnet.ops._windows import check_window, output_size, valid_taps

NO_WINNER = -1  # before a window has seen its first pixel, which may be -inf
MAX_KERNEL_SIZE = 181  # of max pooling: winners are numbered in int16, up to 32767


def global_average_pool_forward(x, *, implementation=None):
    """Mean over the pixels: `x` (N, H, W, C) -> `out` (N, 1, 1, C). The cache is x's shape.

    `implementation` is "numpy", "cuda" or "cuda_cpu"; None chooses by the array. Raises ValueError
    for another rank or no pixels, TypeError unless x is float32 or float64.
    """
    if x.ndim != 4 or 0 in x.shape:
        raise ValueError(f"global_average_pool takes x (N, H, W, C), none of them 0, not "
                         f"{x.shape}")
    check_dtype("global_average_pool", x)
    forward = choose(implementation, x, numpy=global_average_pool_forward_numpy,
                     cuda=global_average_pool_forward_cuda)
    return forward(x), x.shape


def global_average_pool_backward(dout, x_shape, *, add_to=None, implementation=None):
    """dx = dout / (H * W) at every pixel: (N, 1, 1, C) -> (N, H, W, C).

    Where `add_to`, a gradient of that shape, is given, dx is added to it in place: it is returned.
    """
    N, H, W, C = x_shape
    check_upstream("global_average_pool", dout, (N, 1, 1, C))
    if add_to is not None:
        if add_to.shape != tuple(x_shape):
            raise ValueError(f"add_to has shape {add_to.shape}; expected {tuple(x_shape)}")
        check_dtype("global_average_pool", dout, add_to)
    backward = choose(implementation, dout, numpy=global_average_pool_backward_numpy,
                      cuda=global_average_pool_backward_cuda)
    return backward(dout, x_shape, add_to)


def repeat_pixels_forward(x, size, *, implementation=None):
    """Repeat one pixel everywhere: `x` (N, 1, 1, C) -> `out` (N, H, W, C), size = (H, W).

    It is what bilinear resizing makes of a 1x1 map. The cache is the output's shape. With NumPy
    `out` is a read-only view of x. Raises ValueError for another shape or size.
    """
    if x.ndim != 4 or x.shape[1:3] != (1, 1) or 0 in x.shape:
        raise ValueError(f"repeat_pixels takes x (N, 1, 1, C), none of them 0, not {x.shape}")
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size is {size}; expected (height, width), both at least 1")
    check_dtype("repeat_pixels", x)
    shape = (x.shape[0], *size, x.shape[3])
    forward = choose(implementation, x, numpy=np.broadcast_to, cuda=repeat_pixels_forward_cuda)
    return forward(x, shape), shape


def repeat_pixels_backward(dout, shape, *, implementation=None):
    """dx: the sum of `dout` (N, H, W, C) over the pixels, (N, 1, 1, C)."""
    check_upstream("repeat_pixels", dout, shape)
    backward = choose(implementation, dout, numpy=repeat_pixels_backward_numpy,
                      cuda=repeat_pixels_backward_cuda)
    return backward(dout)


def global_average_pool_forward_numpy(x):
    return x.mean(axis=(1, 2), keepdims=True)


def global_average_pool_backward_numpy(dout, x_shape, add_to):
    _, H, W, _ = x_shape
    if add_to is None:
        return np.broadcast_to(dout / (H * W), x_shape).copy()
    add_to += dout / (H * W)
    return add_to


def repeat_pixels_backward_numpy(dout):
    return dout.sum(axis=(1, 2), keepdims=True)


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
    ValueError for a window that does not fit or is larger than 181, or a padding above half of it.
    """
    stride = kernel_size if stride is None else stride
    if not isinstance(kernel_size, int) or not 1 <= kernel_size <= MAX_KERNEL_SIZE:
        raise ValueError(f"kernel_size must be a whole number >= 1 and at most {MAX_KERNEL_SIZE}, "
                         f"not {kernel_size!r}")
    check_window(stride, padding, 1)
    if x.ndim != 4 or 0 in x.shape or 2 * padding > kernel_size:
        raise ValueError(f"max_pool2d takes x (N, H, W, C), none of them 0, and padding <= "
                         f"kernel_size / 2, not {x.shape} and padding {padding} for kernel_size "
                         f"{kernel_size}")
    check_dtype("max_pool2d", x)
    forward = choose(implementation, x, loops=max_pool2d_forward_loops,
                     numpy=max_pool2d_forward_numpy, cuda=max_pool2d_forward_cuda)
    out, winner = forward(x, kernel_size, stride, padding)
    return out, MaxPool2dCache(x.shape, winner, kernel_size, stride, padding)


def max_pool2d_backward(dout, cache, *, implementation=None):
    """dx: each output's gradient goes to the one pixel that was its maximum."""
    check_upstream("max_pool2d", dout, cache.winner.shape)
    backward = choose(implementation, dout, loops=max_pool2d_backward_loops,
                      numpy=max_pool2d_backward_numpy, cuda=max_pool2d_backward_cuda)
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


# ---------------------------------------------------------------- CUDA: pooling.cu

THREADS = 256  # of a block
SWEEP = 4  # pixels of one thread of a kernel that sums nothing: as many loads are on their way
# A block that sums: enough pixels to be worth its start, enough blocks to fill a large GPU.
# Half of REDUCTION_BLOCKS is MAX_SUMS of pooling.cu.
PIXELS_PER_THREAD, REDUCTION_BLOCKS, ENOUGH_BLOCKS = 8, 1024, 128

KERNELS = KernelFile(__file__, templates={
    "sum_pixels_kernel": ("1, false", "4, false", "1, true", "4, true"),
    "repeat_pixels_kernel": ("1, false", "4, false", "1, true", "4, true"),
    "max_pool2d_forward_kernel": ("1", "4"),
    "max_pool2d_backward_kernel": ("1", "4"),
})


def global_average_pool_forward_cuda(x):
    return sum_pixels(x, divisor=x.shape[1] * x.shape[2])


def global_average_pool_backward_cuda(dout, x_shape, add_to):
    if add_to is None:
        add_to = get_array_module(dout).empty(x_shape, dout.dtype)
        return _repeat_pixels(dout, add_to, x_shape[1] * x_shape[2])
    return _repeat_pixels(dout, add_to, x_shape[1] * x_shape[2], adds=True)


def repeat_pixels_forward_cuda(x, shape):
    return _repeat_pixels(x, get_array_module(x).empty(shape, x.dtype), 1)


def repeat_pixels_backward_cuda(dout):
    return sum_pixels(dout)


def sum_pixels(x, *, times=None, divisor=1):
    """Return the sums of x (N, H, W, C) over its pixels, divided: (N, 1, 1, C).

    With `times`, an array like x, they are the sums of the products.
    """
    xp = get_array_module(x)
    x = xp.ascontiguousarray(x)
    times = None if times is None else xp.ascontiguousarray(times)
    N, H, W, C = x.shape
    out = xp.empty((N, 1, 1, C), x.dtype)
    vector, columns, rows = _block_of(C)
    rest = N * blocks(C, columns * vector)  # blocks at one chunk per image
    count = min(blocks(H * W, rows * PIXELS_PER_THREAD), max(1, REDUCTION_BLOCKS // rest))
    if rest >= ENOUGH_BLOCKS and H * W <= REDUCTION_BLOCKS:
        count = 1
    vector, grid, block, sizes = pixel_blocks(x.shape, count)
    real = real_dtype(x)
    shares = xp.empty((N, sizes["count"], C), real) if sizes["count"] > 1 else None
    KERNELS.launch(f"sum_pixels_kernel<{vector}, {str(times is not None).lower()}>", grid, block,
                   shared_bytes=THREADS * vector * real.itemsize, x=x, factor=times, out=out,
                   shares=shares, divisor=divisor, **sizes)
    return out


def _repeat_pixels(x, out, divisor, adds=False):
    """Write x (N, 1, 1, C), divided, to every pixel of `out`, or add it; return `out`."""
    x = get_array_module(x).ascontiguousarray(x)
    vector, grid, block, sizes = pixel_blocks(out.shape)
    KERNELS.launch(f"repeat_pixels_kernel<{vector}, {str(adds).lower()}>", grid, block, x=x,
                   out=out, divisor=divisor, **sizes)
    return out


def pixel_blocks(shape, count=None):
    """Return (vector, grid, block, sizes) of a kernel whose threads walk down pixels.

    A block is (columns of `vector` channels, rows of pixels); grid x is (image, chunk of pixels),
    grid y a group of channels. `sizes` are the kernel's P, C, count and chunk: how many chunks an
    image has, as near to the given `count` as whole rows allow, and of how many pixels.
    """
    N, H, W, C = shape
    P = H * W
    vector, columns, rows = _block_of(C)
    chunk = rows * (SWEEP if count is None else blocks(P, rows * count))
    count = blocks(P, chunk)
    grid = (N * count, blocks(C, columns * vector))
    return vector, grid, (columns, rows), dict(P=P, C=C, count=count, chunk=chunk)


def real_dtype(x):
    """Return the dtype that is computed in for activations `x`: float32, or float64."""
    return np.dtype(np.float64 if x.dtype == np.float64 else np.float32)


def _block_of(C):
    """Return (vector, columns, rows) of a block for C channels.

    Up to 32 vectors are one row of the block each: its threads then read without a gap. Beyond,
    8 vectors of 4 float32 are one line of memory, 128 bytes.
    """
    vector = 4 if C % 4 == 0 else 1
    columns = C // vector
    if columns > 32:
        columns = 8 if vector == 4 else 32
    return vector, columns, THREADS // columns


def max_pool2d_forward_cuda(x, kernel_size, stride, padding):
    xp = get_array_module(x)
    x = xp.ascontiguousarray(x)
    N, H, W, C = x.shape
    _, OH, OW, _ = shape = _output_shape(x, kernel_size, stride, padding)
    out, winner = xp.empty(shape, x.dtype), xp.empty(shape, np.int16)
    vector = 4 if C % 4 == 0 else 1
    KERNELS.launch(f"max_pool2d_forward_kernel<{vector}>",
                   (blocks(out.size // vector, THREADS),), (THREADS,), x=x, out=out,
                   winner=winner, N=N, H=H, W=W, C=C, OH=OH, OW=OW, K=kernel_size, stride=stride,
                   padding=padding)
    return out, winner


def max_pool2d_backward_cuda(dout, cache):
    xp = get_array_module(dout)
    dout, winner = xp.ascontiguousarray(dout), xp.ascontiguousarray(cache.winner)
    N, H, W, C = cache.x_shape
    _, OH, OW, _ = dout.shape
    dx = xp.empty(cache.x_shape, dout.dtype)
    vector = 4 if C % 4 == 0 else 1
    KERNELS.launch(f"max_pool2d_backward_kernel<{vector}>", (blocks(dx.size // vector, THREADS),),
                   (THREADS,), dout=dout, winner=winner, dx=dx, N=N, H=H, W=W, C=C, OH=OH, OW=OW,
                   K=cache.kernel_size, stride=cache.stride, padding=cache.padding)
    return dx
