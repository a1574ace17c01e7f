"""Every channel of an image times a number of its own: the product of squeeze-and-excitation.

    out[n, h, w, c] = x[n, h, w, c] * gate[n, 0, 0, c]

Source: Hu et al., "Squeeze-and-excitation networks" (2018), equation 4.
"""

from typing import NamedTuple

import numpy as np

from minisegnet.backend import get_array_module
from minisegnet.cuda.launch import KernelFile
from minisegnet.ops._checks import check_dtype, check_upstream, choose
from minisegnet.ops.pooling import pixel_blocks, reduction_blocks, sum_shares


class ChannelScaleCache(NamedTuple):
    """What the backward pass needs."""

    x: np.ndarray  # (N, H, W, C)
    gate: np.ndarray  # (N, 1, 1, C)


def channel_scale_forward(x, gate, *, implementation=None):
    """Multiply `x` (N, H, W, C) by `gate` (N, 1, 1, C); return `out` (N, H, W, C) and a cache.

    `implementation` is "loops" (the definition), "numpy", "cuda" or "cuda_cpu"; None chooses by
    the array. Raises ValueError for shapes that do not fit, TypeError for mixed dtypes.
    """
    if x.ndim != 4 or 0 in x.shape or gate.shape != (x.shape[0], 1, 1, x.shape[3]):
        raise ValueError(f"channel_scale takes x (N, H, W, C), none of them 0, and gate "
                         f"(N, 1, 1, C), not {x.shape} and {gate.shape}")
    check_dtype("channel_scale", x, gate)
    forward = choose(implementation, x, loops=channel_scale_forward_loops,
                     numpy=lambda x, gate: x * gate, cuda=channel_scale_forward_cuda)
    return forward(x, gate), ChannelScaleCache(x, gate)


def channel_scale_backward(dout, cache, *, implementation=None):
    """Return `(dx, dgate)` for `dout` (N, H, W, C): dgate (N, 1, 1, C) sums over the pixels."""
    check_upstream("channel_scale", dout, cache.x.shape)
    backward = choose(implementation, dout, loops=channel_scale_backward_loops,
                      numpy=channel_scale_backward_numpy, cuda=channel_scale_backward_cuda)
    return backward(dout, cache)


# ---------------------------------------------------------------- the definition


def channel_scale_forward_loops(x, gate):
    out = np.empty_like(x)
    for n, h, w, c in np.ndindex(x.shape):
        out[n, h, w, c] = x[n, h, w, c] * gate[n, 0, 0, c]
    return out


def channel_scale_backward_loops(dout, cache):
    x, gate = cache
    dx, dgate = np.empty_like(x), np.zeros_like(gate)
    for n, h, w, c in np.ndindex(x.shape):
        dx[n, h, w, c] = dout[n, h, w, c] * gate[n, 0, 0, c]
        dgate[n, 0, 0, c] += dout[n, h, w, c] * x[n, h, w, c]
    return dx, dgate


# ---------------------------------------------------------------- NumPy


def channel_scale_backward_numpy(dout, cache):
    x, gate = cache
    return dout * gate, (dout * x).sum(axis=(1, 2), keepdims=True)


# ---------------------------------------------------------------- CUDA: channel_scale.cu

KERNELS = KernelFile(__file__, templates={
    "channel_scale_forward_kernel": ("1", "4"),
    "channel_scale_backward_kernel": ("1", "4"),
})


def channel_scale_forward_cuda(x, gate):
    xp = get_array_module(x)
    x, gate = xp.ascontiguousarray(x), xp.ascontiguousarray(gate)
    out = xp.empty(x.shape, x.dtype)
    vector, grid, block, sizes = pixel_blocks(x.shape)
    KERNELS.launch(f"channel_scale_forward_kernel<{vector}>", grid, block, x=x, gate=gate, out=out,
                   **sizes)
    return out


def channel_scale_backward_cuda(dout, cache):
    xp = get_array_module(dout)
    dout, x, gate = map(xp.ascontiguousarray, (dout, *cache))
    dx, dgate = xp.empty(x.shape, x.dtype), xp.empty(gate.shape, gate.dtype)
    vector, grid, block, shares, shared_bytes, sizes = reduction_blocks(x)
    KERNELS.launch(f"channel_scale_backward_kernel<{vector}>", grid, block,
                   shared_bytes=shared_bytes, dout=dout, x=x, gate=gate, dx=dx, dgate=dgate,
                   shares=shares, **sizes)
    sum_shares(shares, dgate)
    return dx, dgate
