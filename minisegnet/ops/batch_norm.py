"""Batch normalisation over the pixels of a batch, NHWC, forward and backward.

    xhat = (x - mean) / sqrt(var + eps),   out = weight * xhat + bias,   per channel

Source: Ioffe and Szegedy, "Batch normalization" (2015). As in torch the biased variance (1/n)
normalises and the unbiased one (1/(n-1)) goes into the running statistics.
"""

from typing import NamedTuple

import numpy as np

from minisegnet.backend import get_array_module
from minisegnet.ops._checks import check_dtype, check_upstream, choose
from minisegnet.parallel import parallel_map, row_blocks


class BatchNormCache(NamedTuple):
    """What the backward pass needs."""

    x: np.ndarray  # (N, H, W, C)
    weight: np.ndarray  # (C,)
    mean: np.ndarray  # (C,) of the batch, or the running mean in evaluation
    inv_std: np.ndarray  # (C,) 1 / sqrt(var + eps)
    training: bool


def batch_norm_forward(x, weight, bias, running_mean, running_var, *, training, momentum=0.1,
                       eps=1e-5, implementation=None):
    """Normalise each channel of `x` (N, H, W, C); all others are (C,).

    In training the batch's own statistics are used, and returned are
    `(out, cache, new_running_mean, new_running_var)` with
    running = (1 - momentum) * running + momentum * batch; nothing is changed in place. In
    evaluation the running statistics are used and returned as they are.

    Raises ValueError for shapes that do not fit, and in training for one value per channel,
    which has no variance; TypeError for mixed dtypes.
    """
    C = x.shape[-1]
    if x.ndim != 4 or any(v.shape != (C,) for v in (weight, bias, running_mean, running_var)):
        raise ValueError(f"batch_norm takes x (N, H, W, C) and vectors (C,), not {x.shape} and "
                         f"{weight.shape}, {bias.shape}, {running_mean.shape}, "
                         f"{running_var.shape}")
    check_dtype("batch_norm", x, weight, bias, running_mean, running_var)
    n = x.shape[0] * x.shape[1] * x.shape[2]
    if training and n < 2:
        raise ValueError(f"batch_norm in training needs more than one value per channel, and got "
                         f"an input of shape {x.shape}; use a batch of at least 2, a larger "
                         f"image, or eval()")
    statistics, normalize, _ = choose(implementation, x, **_IMPLEMENTATIONS)
    if training:
        mean, var = statistics(x)
        running_mean = ((1 - momentum) * running_mean + momentum * mean).astype(x.dtype)
        unbiased = var * (n / (n - 1))
        running_var = ((1 - momentum) * running_var + momentum * unbiased).astype(x.dtype)
    else:
        mean, var = running_mean, running_var
    inv_std = 1 / (var + x.dtype.type(eps)) ** x.dtype.type(0.5)
    out = normalize(x, mean, weight * inv_std, bias)
    return out, BatchNormCache(x, weight, mean, inv_std, training), running_mean, running_var


def batch_norm_backward(dout, cache, *, implementation=None):
    """Return `(dx, dweight, dbias)` for `dout` (N, H, W, C).

    In training x also acts through the batch's mean and variance, which takes two terms away:

        dx = weight * inv_std * (dout - mean(dout) - xhat * mean(dout * xhat))
    """
    check_upstream("batch_norm", dout, cache.x.shape)
    return choose(implementation, dout, **_IMPLEMENTATIONS)[2](dout, cache)


# ---------------------------------------------------------------- the definition


def _statistics_loops(x):
    mean = np.array([x[..., c].mean() for c in range(x.shape[-1])], x.dtype)
    var = np.array([((x[..., c] - mean[c]) ** 2).mean() for c in range(x.shape[-1])], x.dtype)
    return mean, var


def _normalize_loops(x, mean, scale, bias):
    out = np.empty(x.shape, x.dtype)
    for c in range(x.shape[-1]):
        out[..., c] = (x[..., c] - mean[c]) * scale[c] + bias[c]
    return out


def _backward_loops(dout, cache):
    x, weight, mean, inv_std, training = cache
    dx = np.empty(x.shape, x.dtype)
    dweight, dbias = np.empty_like(weight), np.empty_like(weight)
    for c in range(x.shape[-1]):
        d = dout[..., c]
        xhat = (x[..., c] - mean[c]) * inv_std[c]
        dweight[c] = (d * xhat).sum()
        dbias[c] = d.sum()
        if training:
            d = d - d.mean() - xhat * (d * xhat).mean()
        dx[..., c] = weight[c] * inv_std[c] * d
    return dx, dweight, dbias


# ---------------------------------------------------------------- NumPy
#
# (N, H, W, C) is worked on as rows (N*H, W*C): a per-channel vector, repeated W times, then
# meets long contiguous rows, which vectorise however few the channels are. Rows are taken in
# blocks that stay in the cache through all steps of a formula, and blocks go to threads.


def _as_rows(x):
    N, H, W, C = x.shape
    return x.reshape(N * H, W * C)


def _blocks_of(rows):
    return row_blocks(len(rows), rows.itemsize * rows.shape[1])


def _per_channel(row_sums, C):
    """Add up partial sums (W*C,) of several blocks to (C,)."""
    return sum(row_sums).reshape(-1, C).sum(axis=0)


def _statistics_numpy(x):
    N, H, W, C = x.shape
    rows = _as_rows(x)
    blocks = _blocks_of(rows)
    # Two passes: the mean first, then the squares of what is left. E[x^2] - mean^2 in one pass
    # would lose every digit where the mean is large against the deviation.
    n = N * H * W
    mean = _per_channel(parallel_map(lambda b: rows[b].sum(axis=0), blocks, work=x.size), C) / n
    mean_row = get_array_module(x).tile(mean, W)

    def squares(block):
        centred = rows[block] - mean_row
        centred *= centred
        return centred.sum(axis=0)

    return mean, _per_channel(parallel_map(squares, blocks, work=3 * x.size), C) / n


def _normalize_numpy(x, mean, scale, bias):
    xp = get_array_module(x)
    W = x.shape[2]
    rows, out = _as_rows(x), xp.empty(x.shape, x.dtype)
    out_rows = _as_rows(out)
    mean_row, scale_row, bias_row = (xp.tile(v, W) for v in (mean, scale, bias))

    def normalize(block):
        o = out_rows[block]
        xp.subtract(rows[block], mean_row, out=o)
        o *= scale_row
        o += bias_row

    parallel_map(normalize, _blocks_of(rows), work=3 * x.size)
    return out


def _backward_numpy(dout, cache):
    x, weight, mean, inv_std, training = cache
    xp = get_array_module(x)
    N, H, W, C = x.shape
    rows, dout_rows = _as_rows(x), _as_rows(dout)
    blocks = _blocks_of(rows)
    mean_row = xp.tile(mean, W)

    def sums(block):
        centred = rows[block] - mean_row
        centred *= dout_rows[block]
        return dout_rows[block].sum(axis=0), centred.sum(axis=0)

    partial = parallel_map(sums, blocks, work=4 * x.size)
    dbias = _per_channel([d for d, _ in partial], C)
    dweight = _per_channel([c for _, c in partial], C) * inv_std

    dx = xp.empty(x.shape, x.dtype)
    dx_rows = _as_rows(dx)
    scale_row = xp.tile(weight * inv_std, W)
    if training:
        n = N * H * W
        # xhat * mean(dout * xhat) = (x - mean) * slope
        slope_row = xp.tile(inv_std * dweight / n, W)
        dbias_row = xp.tile(dbias / n, W)

    def input_gradient(block):
        d = dx_rows[block]
        if training:
            xp.subtract(mean_row, rows[block], out=d)
            d *= slope_row
            d += dout_rows[block]
            d -= dbias_row
            d *= scale_row
        else:
            xp.multiply(dout_rows[block], scale_row, out=d)

    parallel_map(input_gradient, blocks, work=5 * x.size)
    return dx, dweight, dbias


_IMPLEMENTATIONS = {
    "loops": (_statistics_loops, _normalize_loops, _backward_loops),
    "numpy": (_statistics_numpy, _normalize_numpy, _backward_numpy),
}
