"""Batch normalisation over the pixels of a batch, NHWC, with the activation that follows it.

    xhat = (x - mean) / sqrt(var + eps),   z = weight * xhat + bias,   out = activation(z),
    per channel

Source: Ioffe and Szegedy, "Batch normalization" (2015). As in torch the biased variance (1/n)
normalises and the unbiased one (1/(n-1)) goes into the running statistics.
"""

from functools import partial
from typing import NamedTuple

import numpy as np

from minisegnet.backend import get_array_module
from minisegnet.cuda.launch import KernelFile, blocks
from minisegnet.ops import activations
from minisegnet.ops._checks import check_dtype, check_upstream, choose, gradient_array
from minisegnet.parallel import parallel_map, row_blocks

# Those whose slope at z their backward can tell from z itself.
ACTIVATIONS = {None: None,
               "relu": (activations.relu_forward, activations.relu_backward),
               "relu6": (activations.relu6_forward, activations.relu6_backward),
               "hardswish": (activations.hardswish_forward, activations.hardswish_backward)}


class BatchNormCache(NamedTuple):
    """What the backward pass needs: it makes z again from x, so that no second array is kept."""

    x: np.ndarray  # (N, H, W, C)
    weight: np.ndarray  # (C,)
    bias: np.ndarray  # (C,)
    mean: np.ndarray  # (C,) of the batch, or the running mean in evaluation
    inv_std: np.ndarray  # (C,) 1 / sqrt(var + eps)
    training: bool
    activation: str | None


def batch_norm_forward(x, weight, bias, running_mean, running_var, *, training, momentum=0.1,
                       eps=1e-5, activation=None, residual=None, running_out=None,
                       implementation=None):
    """Normalise each channel of `x` (N, H, W, C); all others are (C,).

    `activation` None, "relu", "relu6" or "hardswish" is applied to the result, and `residual`, an
    array like x, added to it; the residual's gradient is dout itself.

    In training the batch's own statistics are used, and returned are
    `(out, cache, new_running_mean, new_running_var)` with
    running = (1 - momentum) * running + momentum * batch. They are new arrays, and nothing given
    is changed, unless `running_out` is a pair of arrays (mean, var) that are to receive them: it
    may be the running statistics themselves. In evaluation the running statistics are used and
    returned as they are.

    `implementation` is "loops" (the definition), "numpy", "cuda" or "cuda_naive", or "cuda_cpu"
    or "cuda_cpu_naive" for their kernels on NumPy arrays; None chooses by the array. Raises
    ValueError for shapes that do not fit, for an unknown activation, and in training for one value
    per channel, which has no variance; TypeError for mixed dtypes.
    """
    C = x.shape[-1]
    vectors = weight, bias, running_mean, running_var
    if x.ndim != 4 or 0 in x.shape or any(v.shape != (C,) for v in vectors):
        raise ValueError(f"batch_norm takes x (N, H, W, C), none of them 0, and vectors (C,), not "
                         f"{x.shape} and {', '.join(str(v.shape) for v in vectors)}")
    check_dtype("batch_norm", x, *vectors)
    if activation not in ACTIVATIONS:
        raise ValueError(f"batch_norm has no activation {activation!r}; it has "
                         f"{', '.join(map(str, ACTIVATIONS))}")
    if residual is not None:
        if residual.shape != x.shape:
            raise ValueError(f"batch_norm's residual is to have the shape of x, {x.shape}, not "
                             f"{residual.shape}")
        check_dtype("batch_norm", x, residual)
    n = x.shape[0] * x.shape[1] * x.shape[2]
    if training and n < 2:
        raise ValueError(f"batch_norm in training needs more than one value per channel, and got "
                         f"an input of shape {x.shape}; use a batch of at least 2, a larger "
                         f"image, or eval()")
    for name, array in zip(("mean", "var"), running_out or ()):
        if array.shape != (C,) or array.dtype != running_mean.dtype:
            raise ValueError(f"batch_norm's running_out takes {running_mean.dtype} arrays of "
                             f"shape {(C,)}; its {name} is {array.dtype} {array.shape}")
    forward = choose(implementation, x, loops=batch_norm_forward_loops,
                     numpy=batch_norm_forward_numpy, cuda=batch_norm_forward_cuda,
                     cuda_naive=batch_norm_forward_cuda_naive)
    out, mean, inv_std, *running = forward(x, weight, bias, running_mean, running_var, training,
                                           momentum, eps, activation, residual, running_out)
    return out, BatchNormCache(x, weight, bias, mean, inv_std, training, activation), *running


def batch_norm_backward(dout, cache, *, dweight=None, dbias=None, implementation=None):
    """Return `(dx, dweight, dbias)` for `dout` (N, H, W, C).

    Where arrays `dweight` and `dbias` (C,) are given, the gradients are added to them. With
    dz = dout * activation'(z); in training x also acts through the batch's mean and variance,
    which takes two terms away:

        dx = weight * inv_std * (dz - mean(dz) - xhat * mean(dz * xhat))
    """
    check_upstream("batch_norm", dout, cache.x.shape, cache.x)
    backward = choose(implementation, dout, loops=batch_norm_backward_loops,
                      numpy=batch_norm_backward_numpy, cuda=batch_norm_backward_cuda,
                      cuda_naive=batch_norm_backward_cuda_naive)
    dweight, dbias = (
        gradient_array("batch_norm", name, given, cache.weight.shape, cache.weight.dtype,
                       get_array_module(dout))
        for name, given in (("dweight", dweight), ("dbias", dbias)))
    return backward(dout, cache, dweight, dbias), dweight, dbias


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
    x, weight, _, mean, inv_std, training, _ = cache
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
    x, weight, _, mean, inv_std, training, _ = cache
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


# ---------------------------------------------------------------- loops and NumPy, put together


def _forward(statistics, normalize, x, weight, bias, running_mean, running_var, training, momentum,
             eps, activation, residual, running_out):
    if training:
        n = x.shape[0] * x.shape[1] * x.shape[2]
        mean, var = statistics(x)
        new_mean = ((1 - momentum) * running_mean + momentum * mean).astype(x.dtype)
        unbiased = var * (n / (n - 1))
        new_var = ((1 - momentum) * running_var + momentum * unbiased).astype(x.dtype)
        if running_out is None:
            running_out = new_mean, new_var
        else:
            running_out[0][...], running_out[1][...] = new_mean, new_var
    else:
        mean, var = running_out = running_mean, running_var
    inv_std = 1 / (var + x.dtype.type(eps)) ** x.dtype.type(0.5)
    out = normalize(x, mean, weight * inv_std, bias)
    if activation:
        out = ACTIVATIONS[activation][0](out)[0]
    if residual is not None:
        out += residual
    return out, mean, inv_std, *running_out


def _backward(normalize, backward, dout, cache, dweight, dbias):
    if cache.activation:
        z = normalize(cache.x, cache.mean, cache.weight * cache.inv_std, cache.bias)
        dout = ACTIVATIONS[cache.activation][1](dout, z)
    dx, dweight_share, dbias_share = backward(dout, cache)
    dweight += dweight_share
    dbias += dbias_share
    return dx


batch_norm_forward_loops = partial(_forward, _statistics_loops, _normalize_loops)
batch_norm_backward_loops = partial(_backward, _normalize_loops, _backward_loops)
batch_norm_forward_numpy = partial(_forward, _statistics_numpy, _normalize_numpy)
batch_norm_backward_numpy = partial(_backward, _normalize_numpy, _backward_numpy)


# ---------------------------------------------------------------- CUDA: batch_norm.cu

THREADS, CHANNELS = 256, 32  # of a block, at most; batch_norm.cu has the same numbers
MAX_GROUPS = 4096  # of channels: it counts the blocks of so many
# About so many blocks add up: two for each multiprocessor of a large GPU run at once, and the last
# of them has few shares to add.
SUM_BLOCKS = 264
# About so many write at least, where there are rows for them; a thread at most so many rows.
WRITE_BLOCKS, ROWS_PER_THREAD = 1024, 8

_KINDS = {None: "NONE", "relu": "RELU", "relu6": "RELU6", "hardswish": "HARDSWISH"}
_FUSED = tuple(f"{kind}, {vector}" for kind in _KINDS.values() for vector in (1, 4))
KERNELS = KernelFile(__file__, templates={
    "batch_norm_statistics_kernel": ("1", "4"),
    "batch_norm_forward_kernel": _FUSED,
    "batch_norm_backward_sums_kernel": _FUSED,
    "batch_norm_backward_input_kernel": _FUSED,
    "batch_norm_forward_naive_kernel": tuple(_KINDS.values()),
    "batch_norm_backward_sums_naive_kernel": tuple(_KINDS.values()),
    "batch_norm_backward_input_naive_kernel": tuple(_KINDS.values()),
})


class _Plan(NamedTuple):
    """How (P, C) is split over blocks and threads."""

    vector: int  # channels of a thread
    block: tuple  # (columns, rows) threads
    sum_grid: tuple  # (blocks that share the rows, groups of channels)
    write_grid: tuple
    chunk: int  # rows of a block that writes


def _plan(P, C):
    vector = 4 if C % 4 == 0 else 1
    groups = blocks(C, CHANNELS)
    if groups > MAX_GROUPS:
        raise ValueError(f"batch_norm on a device takes at most {MAX_GROUPS * CHANNELS} channels, "
                         f"not {C}")
    columns = blocks(C // vector, groups)
    rows = THREADS // columns
    shares = max(1, min(blocks(P, 4 * rows), SUM_BLOCKS // groups))
    chunk = rows * min(max(P * groups // (rows * WRITE_BLOCKS), 1), ROWS_PER_THREAD)
    return _Plan(vector, (columns, rows), (shares, groups), (max(1, blocks(P, chunk)), groups),
                 chunk)


def batch_norm_forward_cuda(x, weight, bias, running_mean, running_var, training, momentum, eps,
                            activation, residual, running_out):
    xp = get_array_module(x)
    x, weight, bias, mean, running_var = map(
        xp.ascontiguousarray, (x, weight, bias, running_mean, running_var))
    residual = None if residual is None else xp.ascontiguousarray(residual)
    N, H, W, C = x.shape
    P = N * H * W
    plan = _plan(P, C)
    out, inv_std = xp.empty(x.shape, x.dtype), xp.empty(C, weight.dtype)
    running = running_mean, running_var
    if training:
        running = running_out or (xp.empty(C, weight.dtype), xp.empty(C, weight.dtype))
        batch_mean = xp.empty(C, weight.dtype)
        shares = xp.empty((plan.sum_grid[0], 2, C), weight.dtype)
        KERNELS.launch(
            f"batch_norm_statistics_kernel<{plan.vector}>", plan.sum_grid, plan.block,
            x=x, shares=shares, running_mean=mean, running_var=running_var,
            new_running_mean=running[0], new_running_var=running[1], mean=batch_mean,
            inv_std=inv_std, P=P, C=C, momentum=momentum, eps=eps)
        mean, running_var = batch_mean, None
    KERNELS.launch(
        f"batch_norm_forward_kernel<{_KINDS[activation]}, {plan.vector}>", plan.write_grid,
        plan.block, x=x, mean=mean, running_var=running_var, inv_std=inv_std, weight=weight,
        bias=bias, residual=residual, out=out, P=P, C=C, chunk=plan.chunk, eps=eps)
    return out, mean, inv_std, *running


def batch_norm_backward_cuda(dout, cache, dweight, dbias):
    xp = get_array_module(dout)
    dout, x, weight, bias, mean, inv_std = map(xp.ascontiguousarray, (dout, *cache[:5]))
    N, H, W, C = x.shape
    P = N * H * W
    plan = _plan(P, C)
    dx = xp.empty(x.shape, x.dtype)
    shares = xp.empty((plan.sum_grid[0], 2, C), weight.dtype)
    mean_dz, slope = xp.empty(C, weight.dtype), xp.empty(C, weight.dtype)
    given = dict(dout=dout, x=x, mean=mean, inv_std=inv_std, weight=weight, bias=bias)
    instance = f"<{_KINDS[cache.activation]}, {plan.vector}>"
    KERNELS.launch(
        f"batch_norm_backward_sums_kernel{instance}", plan.sum_grid, plan.block, **given,
        shares=shares, dx=None if cache.training else dx, mean_dz=mean_dz, slope=slope,
        dweight=dweight, dbias=dbias, P=P, C=C)
    if cache.training:
        KERNELS.launch(
            f"batch_norm_backward_input_kernel{instance}", plan.write_grid, plan.block, **given,
            mean_dz=mean_dz, slope=slope, dx=dx, P=P, C=C, chunk=plan.chunk)
    return dx


def batch_norm_forward_cuda_naive(x, weight, bias, running_mean, running_var, training, momentum,
                                  eps, activation, residual, running_out):
    xp = get_array_module(x)
    x, weight, bias, mean, running_var = map(
        xp.ascontiguousarray, (x, weight, bias, running_mean, running_var))
    residual = None if residual is None else xp.ascontiguousarray(residual)
    N, H, W, C = x.shape
    P = N * H * W
    out, inv_std = xp.empty(x.shape, x.dtype), xp.empty(C, weight.dtype)
    running = running_mean, running_var
    if training:
        running = running_out or (xp.empty(C, weight.dtype), xp.empty(C, weight.dtype))
        batch_mean = xp.empty(C, weight.dtype)
        KERNELS.launch(
            "batch_norm_statistics_naive_kernel", (C,), (THREADS,), x=x, running_mean=mean,
            running_var=running_var, new_running_mean=running[0], new_running_var=running[1],
            mean=batch_mean, inv_std=inv_std, P=P, C=C, momentum=momentum, eps=eps)
        mean = batch_mean
    else:
        KERNELS.launch("batch_norm_inv_std_naive_kernel", (blocks(C, THREADS),), (THREADS,),
                       running_var=running_var, inv_std=inv_std, C=C, eps=eps)
    KERNELS.launch(
        f"batch_norm_forward_naive_kernel<{_KINDS[activation]}>",
        (max(1, blocks(x.size, THREADS)),), (THREADS,), x=x, mean=mean, inv_std=inv_std,
        weight=weight, bias=bias, residual=residual, out=out, P=P, C=C)
    return out, mean, inv_std, *running


def batch_norm_backward_cuda_naive(dout, cache, dweight, dbias):
    xp = get_array_module(dout)
    dout, x, weight, bias, mean, inv_std = map(xp.ascontiguousarray, (dout, *cache[:5]))
    N, H, W, C = x.shape
    dx = xp.empty(x.shape, x.dtype)
    means = dict(mean_dz=xp.empty(C, weight.dtype), mean_dz_xhat=xp.empty(C, weight.dtype))
    given = dict(dout=dout, x=x, mean=mean, inv_std=inv_std, weight=weight, bias=bias, **means,
                 P=N * H * W, C=C)
    kind = _KINDS[cache.activation]
    KERNELS.launch(f"batch_norm_backward_sums_naive_kernel<{kind}>", (C,), (THREADS,), **given,
                   dweight=dweight, dbias=dbias)
    KERNELS.launch(f"batch_norm_backward_input_naive_kernel<{kind}>",
                   (max(1, blocks(x.size, THREADS)),), (THREADS,), **given, dx=dx,
                   training=cache.training)
    return dx
