"""The gate of squeeze-and-excitation: two small layers on the mean of every channel.

    hidden = relu(pooled weight1 + bias1),   gate = hardsigmoid(hidden weight2 + bias2)

Each is a 1x1 convolution of a 1x1 map. On a GPU such layers take longer to start than to run: here
they are one launch forward and two backward.

Source: Hu et al., "Squeeze-and-excitation networks" (2018), section 3.2; hardsigmoid as in Howard
et al., "Searching for MobileNetV3" (2019).
"""

from typing import NamedTuple

import numpy as np

from minisegnet.backend import get_array_module
from minisegnet.cuda.emulator import MAX_SHARED_BYTES
from minisegnet.cuda.launch import KernelFile, blocks
from minisegnet.ops._checks import check_dtype, check_upstream, choose, gradient_array


class SqueezeExciteGateCache(NamedTuple):
    """What the backward pass needs."""

    pooled: np.ndarray  # (N, 1, 1, C)
    weight1: np.ndarray  # (1, 1, C, S)
    weight2: np.ndarray  # (1, 1, S, C)
    hidden: np.ndarray  # (N, S)
    z: np.ndarray  # (N, C) what goes into the hardsigmoid


def squeeze_excite_gate_forward(pooled, weight1, bias1, weight2, bias2, *, implementation=None):
    """Return `gate` (N, 1, 1, C), between 0 and 1, for `pooled` (N, 1, 1, C), and a cache.

    `weight1` (1, 1, C, S) and `bias1` (S,) squeeze C channels to S, `weight2` (1, 1, S, C) and
    `bias2` (C,) excite them again. `implementation` is "loops" (the definition), "numpy", "cuda"
    or "cuda_cpu"; None chooses by the array. Raises ValueError for shapes that do not fit,
    TypeError for mixed dtypes.
    """
    shapes = [array.shape for array in (pooled, weight1, bias1, weight2, bias2)]
    N, C, S = len(pooled), bias2.size, bias1.size
    if shapes != [(N, 1, 1, C), (1, 1, C, S), (S,), (1, 1, S, C), (C,)] or 0 in (N, C, S):
        raise ValueError(f"squeeze_excite_gate takes pooled (N, 1, 1, C), weights (1, 1, C, S) "
                         f"and (1, 1, S, C), biases (S,) and (C,), none of them 0, not "
                         f"{', '.join(map(str, shapes))}")
    check_dtype("squeeze_excite_gate", pooled, weight1, bias1, weight2, bias2)
    forward = choose(implementation, pooled, loops=squeeze_excite_gate_forward_loops,
                     numpy=squeeze_excite_gate_forward_numpy,
                     cuda=squeeze_excite_gate_forward_cuda)
    gate, hidden, z = forward(pooled, weight1, bias1, weight2, bias2)
    return gate, SqueezeExciteGateCache(pooled, weight1, weight2, hidden, z)


def squeeze_excite_gate_backward(dgate, cache, *, dweight1=None, dbias1=None, dweight2=None,
                                 dbias2=None, implementation=None):
    """Return `(dpooled, dweight1, dbias1, dweight2, dbias2)` for `dgate` (N, 1, 1, C).

    Where arrays for the parameters' gradients are given, these are added to them.
    """
    check_upstream("squeeze_excite_gate", dgate, cache.pooled.shape, cache.pooled)
    backward = choose(implementation, dgate, loops=squeeze_excite_gate_backward_loops,
                      numpy=squeeze_excite_gate_backward_numpy,
                      cuda=squeeze_excite_gate_backward_cuda)
    _, _, C, S = cache.weight1.shape
    gradients = [
        gradient_array("squeeze_excite_gate", name, given, shape, cache.weight1.dtype,
                       get_array_module(dgate))
        for name, given, shape in (
            ("dweight1", dweight1, (1, 1, C, S)), ("dbias1", dbias1, (S,)),
            ("dweight2", dweight2, (1, 1, S, C)), ("dbias2", dbias2, (C,)))]
    return backward(dgate, cache, *gradients), *gradients


# ---------------------------------------------------------------- the definition


def squeeze_excite_gate_forward_loops(pooled, weight1, bias1, weight2, bias2):
    N, _, _, C = pooled.shape
    S = bias1.size
    hidden, z = np.zeros((N, S), pooled.dtype), np.zeros((N, C), pooled.dtype)
    gate = np.zeros_like(pooled)
    for n in range(N):
        for s in range(S):
            total = bias1[s]
            for c in range(C):
                total += pooled[n, 0, 0, c] * weight1[0, 0, c, s]
            hidden[n, s] = np.maximum(total, 0)
        for c in range(C):
            total = bias2[c]
            for s in range(S):
                total += hidden[n, s] * weight2[0, 0, s, c]
            z[n, c] = total
            gate[n, 0, 0, c] = np.clip(total + 3, 0, 6) / 6
    return gate, hidden, z


def squeeze_excite_gate_backward_loops(dgate, cache, dweight1, dbias1, dweight2, dbias2):
    pooled, weight1, weight2, hidden, z = cache
    (N, S), C = hidden.shape, z.shape[1]
    dpooled = np.zeros_like(pooled)
    for n in range(N):
        dhidden = np.zeros(S, pooled.dtype)
        for c in range(C):
            dz = dgate[n, 0, 0, c] / 6 if -3 < z[n, c] < 3 else 0
            dbias2[c] += dz
            for s in range(S):
                dweight2[0, 0, s, c] += hidden[n, s] * dz
                dhidden[s] += weight2[0, 0, s, c] * dz
        for s in range(S):
            if not hidden[n, s] > 0:
                continue
            dbias1[s] += dhidden[s]
            for c in range(C):
                dweight1[0, 0, c, s] += pooled[n, 0, 0, c] * dhidden[s]
                dpooled[n, 0, 0, c] += weight1[0, 0, c, s] * dhidden[s]
    return dpooled


# ---------------------------------------------------------------- NumPy


def squeeze_excite_gate_forward_numpy(pooled, weight1, bias1, weight2, bias2):
    hidden = (pooled[:, 0, 0] @ weight1[0, 0] + bias1).clip(0)
    z = hidden @ weight2[0, 0] + bias2
    gate = (z + 3).clip(0, 6) / 6
    return gate.reshape(pooled.shape), hidden, z


def squeeze_excite_gate_backward_numpy(dgate, cache, dweight1, dbias1, dweight2, dbias2):
    pooled, weight1, weight2, hidden, z = cache
    dz = dgate[:, 0, 0] * ((z > -3) & (z < 3)) / 6
    dweight2[0, 0] += hidden.T @ dz
    dbias2 += dz.sum(axis=0)
    dhidden = dz @ weight2[0, 0].T * (hidden > 0)
    dweight1[0, 0] += pooled[:, 0, 0].T @ dhidden
    dbias1 += dhidden.sum(axis=0)
    return (dhidden @ weight1[0, 0].T).reshape(pooled.shape)


# ---------------------------------------------------------------- CUDA: squeeze_excite.cu

MAX_THREADS = 1024  # of a block: THREADS of squeeze_excite.cu
WEIGHTS_PER_THREAD = 8  # about, where the layers are too small for all threads

KERNELS = KernelFile(__file__)


def squeeze_excite_gate_forward_cuda(pooled, *parameters):
    xp = get_array_module(pooled)
    pooled, weight1, bias1, weight2, bias2 = map(xp.ascontiguousarray, (pooled, *parameters))
    N, C, S = pooled.shape[0], bias2.size, bias1.size
    threads, shared_bytes = _block_of(C, S, weight1.dtype)
    gate = xp.empty(pooled.shape, pooled.dtype)
    hidden, z = xp.empty((N, S), weight1.dtype), xp.empty((N, C), weight1.dtype)
    KERNELS.launch("squeeze_excite_gate_forward_kernel", (N,), (threads,),
                   shared_bytes=shared_bytes, pooled=pooled, weight1=weight1, bias1=bias1,
                   weight2=weight2, bias2=bias2, gate=gate, hidden=hidden, z=z, C=C, S=S)
    return gate, hidden, z


def squeeze_excite_gate_backward_cuda(dgate, cache, dweight1, dbias1, dweight2, dbias2):
    xp = get_array_module(dgate)
    dgate, pooled, weight1, weight2, hidden, z = map(xp.ascontiguousarray, (dgate, *cache))
    (N, S), C = hidden.shape, z.shape[1]
    threads, shared_bytes = _block_of(C, S, weight1.dtype)
    dpooled = xp.empty(pooled.shape, dgate.dtype)
    dz, dhidden = xp.empty(z.shape, z.dtype), xp.empty(hidden.shape, z.dtype)
    KERNELS.launch("squeeze_excite_gate_backward_input_kernel", (N,), (threads,),
                   shared_bytes=shared_bytes, dgate=dgate, weight1=weight1, weight2=weight2,
                   hidden=hidden, z=z, dz=dz, dhidden=dhidden, dpooled=dpooled, C=C, S=S)
    KERNELS.launch("squeeze_excite_gate_backward_weight_kernel", (blocks(2 * C * S, 256),), (256,),
                   pooled=pooled, hidden=hidden, dz=dz, dhidden=dhidden, dweight1=dweight1,
                   dbias1=dbias1, dweight2=dweight2, dbias2=dbias2, N=N, C=C, S=S)
    return dpooled


def _block_of(C, S, dtype):
    """Return (threads, bytes of shared memory) of a block."""
    threads = min(MAX_THREADS, 32 * blocks(C * S, 32 * WEIGHTS_PER_THREAD))
    shared_bytes = (C + S + threads) * dtype.itemsize
    if shared_bytes > MAX_SHARED_BYTES:
        raise ValueError(f"squeeze_excite_gate on a device takes fewer channels than {C} and {S} "
                         f"squeezed: together {MAX_SHARED_BYTES // dtype.itemsize - threads}")
    return threads, shared_bytes
