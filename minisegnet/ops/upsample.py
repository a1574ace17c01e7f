"""Bilinear resizing is linear, so it is a matrix: one for the rows, one for the columns.

    out = Wy @ x @ Wx^T        per image and channel

Every row of `Wy` (OH, H) and `Wx` (OW, W) holds at most two numbers, which sum to one. The
backward pass is the exact transpose: every input pixel collects the share it gave away.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from minisegnet.backend import get_array_module
from minisegnet.cuda.launch import KernelFile, blocks
from minisegnet.ops._checks import check_dtype, choose
from minisegnet.parallel import BLOCK_BYTES, parallel_map


class UpsampleBilinearCache(NamedTuple):
    """What the backward pass needs: sizes only, for the operation is linear."""

    in_size: tuple  # (H, W)
    out_size: tuple  # (OH, OW)


def source_positions(in_size, out_size):
    """Return for each output index its two source indices and the share of the second.

    `align_corners=False`: pixels are small squares, and centres are mapped to centres,
    `src = max(0, (dst + 0.5) * in_size / out_size - 0.5)`. Returns i0, i1 (out_size,) int and
    the share (out_size,) float64; at the last pixel i1 = i0.
    """
    position = (np.arange(out_size) + 0.5) * (in_size / out_size) - 0.5
    position = np.maximum(position, 0.0)
    first = np.minimum(position.astype(np.intp), in_size - 1)
    second = np.minimum(first + 1, in_size - 1)
    return first, second, position - first


def interpolation_matrix(in_size, out_size, dtype=np.float64):
    """Return the (out_size, in_size) matrix that resizes a line of `in_size` numbers.

    Bilinear, align_corners=False, without antialiasing, as torch.nn.functional.interpolate.
    """
    first, second, share = source_positions(in_size, out_size)
    matrix = np.zeros((out_size, in_size))
    rows = np.arange(out_size)
    matrix[rows, first] += 1.0 - share
    matrix[rows, second] += share  # the border: second == first, and the two shares add up
    return matrix.astype(dtype)


def row_bands(matrix, rows_per_band):
    """Cut an interpolation matrix into bands of rows, without the columns that are zero there.

    Returns a list of (rows, sources, block): slices of the output and of the input, and
    `block = matrix[rows, sources]`. Small blocks spare the products with all those zeros.
    """
    bands = []
    for start in range(0, matrix.shape[0], rows_per_band):
        rows = slice(start, min(start + rows_per_band, matrix.shape[0]))
        used = matrix[rows].any(axis=0).nonzero()[0]
        sources = slice(int(used[0]), int(used[-1]) + 1)
        bands.append((rows, sources, matrix[rows, sources]))
    return bands


def cached_rows(bytes_per_row):
    """Return how many rows of an image to work on at once, so that they stay in the cache.

    At least four: neighbouring bands share source rows, and thinner ones would share too many.
    """
    return max(4, BLOCK_BYTES // max(1, bytes_per_row))


def upsample_bilinear_forward(x, size, *, implementation=None):
    """Resize x (N, H, W, C) bilinearly to (N, OH, OW, C), size = (OH, OW), up or down.

    Equals torch.nn.functional.interpolate(mode="bilinear", align_corners=False).
    `implementation` is "loops" (the definition), "numpy", "cuda" or "cuda_cpu"; None chooses by
    the array. Raises ValueError for another shape or size, TypeError unless x is float32 or
    float64.
    """
    if x.ndim != 4 or 0 in x.shape:
        raise ValueError(f"x has shape {x.shape}; expected (N, H, W, C), none of them 0")
    check_dtype("upsample_bilinear", x)
    out_size = tuple(int(length) for length in size)
    if len(out_size) != 2 or min(out_size) < 1:
        raise ValueError(f"size is {size}; expected (height, width), both at least 1")
    forward = choose(implementation, x, loops=upsample_bilinear_forward_loops,
                     numpy=upsample_bilinear_forward_numpy, cuda=upsample_bilinear_forward_cuda)
    return forward(x, out_size), UpsampleBilinearCache(x.shape[1:3], out_size)


def upsample_bilinear_backward(dout, cache, *, implementation=None):
    """Return dx (N, H, W, C) for dout (N, OH, OW, C): the transpose of the forward pass."""
    if dout.ndim != 4 or dout.shape[1:3] != cache.out_size:
        raise ValueError(f"dout has shape {dout.shape}; expected (N, OH, OW, C) with "
                         f"(OH, OW) = {cache.out_size}")
    check_dtype("upsample_bilinear", dout)
    backward = choose(implementation, dout, loops=upsample_bilinear_backward_loops,
                      numpy=upsample_bilinear_backward_numpy,
                      cuda=upsample_bilinear_backward_cuda)
    return backward(dout, cache.in_size)


# ---------------------------------------------------------------- the definition


def upsample_bilinear_forward_loops(x, out_size):
    N, H, W, C = x.shape
    OH, OW = out_size
    rows = list(zip(*source_positions(H, OH)))  # (top, bottom, share of the bottom) per row
    columns = list(zip(*source_positions(W, OW)))
    out = np.empty((N, OH, OW, C), x.dtype)
    for i, (top, bottom, v) in enumerate(rows):
        for j, (left, right, u) in enumerate(columns):
            out[:, i, j] = (
                (1 - v) * (1 - u) * x[:, top, left]
                + (1 - v) * u * x[:, top, right]
                + v * (1 - u) * x[:, bottom, left]
                + v * u * x[:, bottom, right]
            )
    return out


def upsample_bilinear_backward_loops(dout, in_size):
    N, OH, OW, C = dout.shape
    H, W = in_size
    rows = list(zip(*source_positions(H, OH)))
    columns = list(zip(*source_positions(W, OW)))
    dx = np.zeros((N, H, W, C), dout.dtype)
    for i, (top, bottom, v) in enumerate(rows):
        for j, (left, right, u) in enumerate(columns):
            # Each source pixel gets back its own share; several outputs add up in it.
            dx[:, top, left] += (1 - v) * (1 - u) * dout[:, i, j]
            dx[:, top, right] += (1 - v) * u * dout[:, i, j]
            dx[:, bottom, left] += v * (1 - u) * dout[:, i, j]
            dx[:, bottom, right] += v * u * dout[:, i, j]
    return dx


# ---------------------------------------------------------------- two matrices


def upsample_bilinear_forward_numpy(x, out_size):
    xp = get_array_module(x)
    N, H, W, C = x.shape
    OH, OW = out_size
    wx = xp.asarray(interpolation_matrix(W, OW, x.dtype))
    wy = interpolation_matrix(H, OH, x.dtype)
    bands = [(rows, sources, xp.asarray(block))
             for rows, sources, block in row_bands(wy, cached_rows(OW * C * x.itemsize))]
    out = xp.empty((N, OH, OW, C), x.dtype)

    def resize(n):
        # Columns first, while there are few rows; then bands of rows, each one small GEMM.
        wide = xp.matmul(wx, x[n]).reshape(H, OW * C)
        out_n = out[n].reshape(OH, OW * C)  # a view
        for rows, sources, block in bands:
            xp.matmul(block, wide[sources], out=out_n[rows])

    parallel_map(resize, range(N), work=out.size)
    return out


def upsample_bilinear_backward_numpy(dout, in_size):
    xp = get_array_module(dout)
    N, OH, OW, C = dout.shape
    H, W = in_size
    dout = xp.ascontiguousarray(dout)
    wx_transposed = xp.asarray(interpolation_matrix(W, OW, dout.dtype).T)
    wy = interpolation_matrix(H, OH, dout.dtype)
    bands = [(rows, sources, xp.asarray(block.T))
             for rows, sources, block in row_bands(wy, cached_rows(OW * C * dout.itemsize))]
    dx = xp.empty((N, H, W, C), dout.dtype)

    def resize_transposed(n):
        dout_n = dout[n].reshape(OH, OW * C)
        dwide = xp.zeros((H, OW * C), dout.dtype)
        for rows, sources, block_transposed in bands:
            dwide[sources] += xp.matmul(block_transposed, dout_n[rows])  # dwide = Wy^T @ dout
        xp.matmul(wx_transposed, dwide.reshape(H, OW, C), out=dx[n])  # dx = Wx^T @ dwide

    parallel_map(resize_transposed, range(N), work=dout.size)
    return dx


# ---------------------------------------------------------------- CUDA: upsample.cu

THREADS = 256  # of a block, at most

KERNELS = KernelFile(__file__, templates={
    "upsample_bilinear_forward_kernel": ("1", "4"),
    "upsample_bilinear_backward_kernel": ("1", "4"),
})


class AxisTables(NamedTuple):
    """What the kernels look up along one axis, made once per pair of sizes.

    Positions need float64, in which many GPUs are slow, and they are few: one per row.
    """

    first: np.ndarray  # (out_size,) int32 first source of each output; the second is the next one
    share: np.ndarray  # (out_size,) share of the second
    start: np.ndarray  # (in_size,) int32 first of the neighbouring outputs that read each input
    stop: np.ndarray  # (in_size,) int32 end of them
    weight: np.ndarray  # (in_size, taps) what those outputs read it with


def axis_tables(in_size, out_size, dtype):
    """Return the AxisTables, NumPy arrays, of resizing `in_size` numbers to `out_size`."""
    first, second, share = source_positions(in_size, out_size)
    share = share.astype(dtype)  # rounded once: forward and backward must share by the same number
    # Outputs and their sources are in one order: those that read i as the first or second source
    # are neighbours.
    start = np.searchsorted(second, np.arange(in_size), side="left")
    stop = np.searchsorted(first, np.arange(in_size), side="right")
    outputs = start[:, None] + np.arange(max(1, (stop - start).max()))  # (in_size, taps)
    reads = outputs < stop[:, None]
    outputs = np.minimum(outputs, out_size - 1)
    source = np.arange(in_size)[:, None]
    weight = (reads * (first[outputs] == source) * (1 - share[outputs])
              + reads * (second[outputs] == source) * share[outputs])
    return AxisTables(first.astype(np.int32), share, start.astype(np.int32),
                      stop.astype(np.int32), weight.astype(dtype))


@lru_cache(maxsize=None)
def _tables_on(xp, in_size, out_size, dtype):
    """Return `axis_tables` on the device of array module `xp`, uploaded the first time only.

    They are a few kilobytes and never given up: recorded launches go on reading them.
    """
    return AxisTables(*map(xp.asarray, axis_tables(in_size, out_size, dtype)))


def upsample_bilinear_forward_cuda(x, out_size):
    xp = get_array_module(x)
    x = xp.ascontiguousarray(x)
    N, H, W, C = x.shape
    OH, OW = out_size
    out = xp.empty((N, OH, OW, C), x.dtype)
    rows = _tables_on(xp, H, OH, _real(x))
    columns = _tables_on(xp, W, OW, _real(x))
    vector, grid, block = _row_blocks(out.shape)
    KERNELS.launch(f"upsample_bilinear_forward_kernel<{vector}>", grid, block, x=x, out=out,
                   first_row=rows.first, row_share=rows.share, first_column=columns.first,
                   column_share=columns.share, H=H, W=W, C=C, OH=OH, OW=OW)
    return out


def upsample_bilinear_backward_cuda(dout, in_size):
    xp = get_array_module(dout)
    dout = xp.ascontiguousarray(dout)
    N, OH, OW, C = dout.shape
    H, W = in_size
    dx = xp.empty((N, H, W, C), dout.dtype)
    rows = _tables_on(xp, H, OH, _real(dout))
    columns = _tables_on(xp, W, OW, _real(dout))
    vector, grid, block = _row_blocks(dx.shape)
    KERNELS.launch(f"upsample_bilinear_backward_kernel<{vector}>", grid, block, dout=dout, dx=dx,
                   row_start=rows.start, row_stop=rows.stop, row_weight=rows.weight,
                   column_start=columns.start, column_stop=columns.stop,
                   column_weight=columns.weight, H=H, W=W, C=C, OH=OH, OW=OW,
                   row_taps=rows.weight.shape[1], column_taps=columns.weight.shape[1])
    return dx


def _real(x):
    """Return the name of the dtype that shares of activations `x` are computed in."""
    return "float64" if x.dtype == np.float64 else "float32"


def _row_blocks(shape):
    """Return (vector, grid, block): grid x is the rows of all images, grid y pieces of one."""
    N, H, W, C = shape
    vector = 4 if C % 4 == 0 else 1
    threads = min(THREADS, 32 * blocks(W * C // vector, 32))
    return vector, (N * H, blocks(W * C // vector, threads)), (threads,)
