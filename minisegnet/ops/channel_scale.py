"""Every channel of an image times a number of its own: the product of squeeze-and-excitation.

    out[n, h, w, c] = x[n, h, w, c] * gate[n, 0, 0, c]

Source: Hu et al., "Squeeze-and-excitation networks" (2018), equation 4.
"""

from typing import NamedTuple

import numpy as np

from minisegnet.backend import get_array_module
from minisegnet.cuda.launch import KernelFile
from minisegnet.ops._checks import check_dtype, check_upstream, choose
from minisegnet.ops.pooling import pixel_blocks, sum_pixels


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
    chosen = {"implementation": implementation}
    return (channel_scale_backward_input(dout, cache, **chosen),
            channel_scale_backward_gate(dout, cache, **chosen))


def channel_scale_backward_gate(dout, cache, *, implementation=None):
    """Return dgate (N, 1, 1, C), the sum of dout * x over the pixels."""
    check_upstream("channel_scale", dout, cache.x.shape, cache.x)
    backward = choose(implementation, dout, loops=channel_scale_backward_gate_loops,
                      numpy=channel_scale_backward_gate_numpy,
                      cuda=channel_scale_backward_gate_cuda)
    return backward(dout, cache.x)


def channel_scale_backward_input(dout, cache, *, dmean=None, implementation=None):
    """Return dx = dout * gate (N, H, W, C).

    Where the gate comes from the mean of x over the pixels, as in squeeze-and-excitation, that
    mean's gradient `dmean` (N, 1, 1, C) may be given: dx of each pixel then has its share of it
    too, dmean / (H * W).
    """
    check_upstream("channel_scale", dout, cache.x.shape, cache.x)
    if dmean is not None:
        check_upstream("channel_scale (dmean)", dmean, cache.gate.shape, cache.gate)
    backward = choose(implementation, dout, loops=channel_scale_backward_input_loops,
                      numpy=channel_scale_backward_input_numpy,
                      cuda=channel_scale_backward_input_cuda)
    return backward(dout, cache.gate, dmean)


# ---------------------------------------------------------------- the definition


def channel_scale_forward_loops(x, gate):
    out = np.empty_like(x)
    for n, h, w, c in np.ndindex(x.shape):
        out[n, h, w, c] = x[n, h, w, c] * gate[n, 0, 0, c]
    return out


def channel_scale_backward_gate_loops(dout, x):
    N, _, _, C = x.shape
    dgate = np.zeros((N, 1, 1, C), x.dtype)
    for n, h, w, c in np.ndindex(x.shape):
        dgate[n, 0, 0, c] += dout[n, h, w, c] * x[n, h, w, c]
    return dgate


def channel_scale_backward_input_loops(dout, gate, dmean):
    N, H, W, C = dout.shape
    dx = np.empty_like(dout)
    for n, h, w, c in np.ndindex(dout.shape):
        dx[n, h, w, c] = dout[n, h, w, c] * gate[n, 0, 0, c]
        if dmean is not None:
            dx[n, h, w, c] += dmean[n, 0, 0, c] / (H * W)
    return dx


# ---------------------------------------------------------------- NumPy


def channel_scale_backward_gate_numpy(dout, x):
    return (dout * x).sum(axis=(1, 2), keepdims=True)


def channel_scale_backward_input_numpy(dout, gate, dmean):
    dx = dout * gate
    if dmean is not None:
        dx += dmean / (dx.shape[1] * dx.shape[2])
    return dx


# ---------------------------------------------------------------- CUDA: channel_scale.cu

KERNELS = KernelFile(__file__, templates={
    "channel_scale_forward_kernel": ("1", "4"),
    "channel_scale_backward_input_kernel": ("1", "4"),
})


def channel_scale_forward_cuda(x, gate):
    xp = get_array_module(x)
    x, gate = xp.ascontiguousarray(x), xp.ascontiguousarray(gate)
    out = xp.empty(x.shape, x.dtype)
    vector, grid, block, sizes = pixel_blocks(x.shape)
    KERNELS.launch(f"channel_scale_forward_kernel<{vector}>", grid, block, x=x, gate=gate, out=out,
                   **sizes)
    return out


def channel_scale_backward_gate_cuda(dout, x):
    return sum_pixels(dout, times=x)


def channel_scale_backward_input_cuda(dout, gate, dmean):
    xp = get_array_module(dout)
    dout, gate = xp.ascontiguousarray(dout), xp.ascontiguousarray(gate)
    dmean = None if dmean is None else xp.ascontiguousarray(dmean)
    dx = xp.empty(dout.shape, dout.dtype)
    vector, grid, block, sizes = pixel_blocks(dout.shape)
    KERNELS.launch(f"channel_scale_backward_input_kernel<{vector}>", grid, block, dout=dout,
                   gate=gate, dmean=dmean, dx=dx, **sizes)
    return dx
