"""Inverted dropout: what is kept is scaled up, so that evaluation does nothing.

On a GPU the random numbers are a function of a seed and a counter, Philox: every thread computes
its own, in any order, and the backward pass computes them again instead of reading a stored mask.

Sources: Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting"
(2014); Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011), section 3.
"""

import math
from typing import NamedTuple

import numpy as np

from minisegnet.backend import asnumpy, get_array_module
from minisegnet.cuda.launch import KernelFile, blocks
from minisegnet.ops._checks import check_dtype, check_upstream, choose

WORDS = 4  # random numbers of one counter value
PRECISION = 24  # bits of a uniform number, as many as a float32 holds


class DroppedCache(NamedTuple):
    """What the backward pass on a device needs to draw the same mask again."""

    drawn: np.ndarray  # (2,) uint64 seed, counter of the first draw
    p: float
    shape: tuple


class DeviceRandom:
    """A stream of random numbers whose place is kept in the memory of a device.

    Each draw moves the counter on by a launch of its own, so that a recorded list of launches
    draws new numbers whenever it is run again. `xp` is the array module of the device; with numpy
    the same numbers are drawn on the CPU.
    """

    def __init__(self, seed, xp):
        self.place = xp.asarray(np.array([seed, 0], np.uint64))  # seed, counter

    @property
    def state(self):
        """{"seed": ..., "counter": ...}; waits for the device."""
        seed, counter = asnumpy(self.place).tolist()
        return {"seed": seed, "counter": counter}

    def set_state(self, state):
        """Go to a place that `state` told, in the same memory."""
        place = np.array([state["seed"], state["counter"]], np.uint64)
        self.place[...] = get_array_module(self.place).asarray(place)


def dropout_forward(x, p, rng, *, implementation=None):
    """Zero each element of `x` with probability `p` and scale the rest by 1 / (1 - p).

    `rng` is a NumPy Generator, or a DeviceRandom, as a device needs it. Returns `out` and a cache:
    the scaled mask, or on a device where it was drawn. `implementation` is "numpy", "cuda" or
    "cuda_cpu"; None chooses by the array. Raises ValueError unless 0 <= p < 1, TypeError for a
    Generator on a device.
    """
    if not 0 <= p < 1:
        raise ValueError(f"dropout probability must be in [0, 1), not {p}")
    check_dtype("dropout", x)
    forward = choose(implementation, x, numpy=dropout_forward_numpy, cuda=dropout_forward_cuda)
    return forward(x, p, rng)


def dropout_backward(dout, cache, *, implementation=None):
    """dx = dout * mask / (1 - p)."""
    mask = None if isinstance(cache, DroppedCache) else cache
    check_upstream("dropout", dout, cache.shape, mask)
    backward = choose(implementation, dout, numpy=dropout_backward_numpy,
                      cuda=dropout_backward_cuda)
    return backward(dout, cache)


def dropout_forward_numpy(x, p, rng):
    if isinstance(rng, DeviceRandom):
        keep = _kept(rng.place, p, x.shape)
        rng.place[1] += np.uint64(blocks(x.size, WORDS))
    else:
        keep = rng.random(x.shape, dtype="float32") >= p
    scaled_mask = keep * x.dtype.type(1 / (1 - p))
    return x * scaled_mask, scaled_mask


def dropout_backward_numpy(dout, cache):
    if isinstance(cache, DroppedCache):
        keep = _kept(cache.drawn, cache.p, cache.shape)
        cache = keep * dout.dtype.type(1 / (1 - cache.p))
    return dout * cache


def _kept(place, p, shape):
    """Return the mask (bool) that the kernel draws at a `place`, (2,) seed and counter."""
    uniform = philox_uniform(*place.tolist(), math.prod(shape)).reshape(shape)
    return uniform >= np.float64(p)  # not rounded to float32


# ---------------------------------------------------------------- Philox, as the kernel has it


def philox4x32(counter, key):
    """Philox-4x32-10: four random words for each `counter` (..., 4) under a `key` (2,), uint32."""
    c0, c1, c2, c3 = np.moveaxis(np.asarray(counter, np.uint64), -1, 0)
    key0, key1 = (int(word) for word in key)
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        product0, product1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (product1 >> np.uint64(32) ^ c1 ^ np.uint64(key0), product1 & low,
                          product0 >> np.uint64(32) ^ c3 ^ np.uint64(key1), product0 & low)
        key0, key1 = (key0 + 0x9E3779B9) % 2 ** 32, (key1 + 0xBB67AE85) % 2 ** 32
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def philox_uniform(seed, counter, size):
    """Return `size` float32 numbers from [0, 1), the 64-bit `counter` counting fours of them."""
    count = np.arange(blocks(size, WORDS), dtype=np.uint64) + np.uint64(counter)
    halves = [count & np.uint64(0xFFFFFFFF), count >> np.uint64(32)]
    zero = np.zeros_like(count)
    words = philox4x32(np.stack([*halves, zero, zero], axis=-1), (seed % 2 ** 32, seed >> 32))
    uniform = (words >> np.uint32(32 - PRECISION)) * np.float32(2.0 ** -PRECISION)
    return uniform.astype(np.float32).reshape(-1)[:size]


# ---------------------------------------------------------------- CUDA: dropout.cu

THREADS = 256  # of a block

KERNELS = KernelFile(__file__)


def dropout_forward_cuda(x, p, rng):
    if not isinstance(rng, DeviceRandom):
        raise TypeError(f"dropout on a device draws from a DeviceRandom, not {type(rng).__name__}")
    drawn = get_array_module(x).empty((2,), np.uint64)
    KERNELS.launch("dropout_draw_kernel", (1,), (1,), place=rng.place, drawn=drawn,
                   count=blocks(x.size, WORDS))
    return _drop(x, p, drawn), DroppedCache(drawn, p, x.shape)


def dropout_backward_cuda(dout, cache):
    return _drop(dout, cache.p, cache.drawn)


def _drop(x, p, drawn):
    xp = get_array_module(x)
    x = xp.ascontiguousarray(x)
    out = xp.empty(x.shape, x.dtype)
    # A uniform number is k / 2^24 for a whole k, and kept if k / 2^24 >= p.
    KERNELS.launch("dropout_kernel", (max(1, blocks(x.size, THREADS * WORDS)),), (THREADS,), x=x,
                   out=out, drawn=drawn, threshold=math.ceil(p * 2 ** PRECISION),
                   scale=1 / (1 - p), size=x.size)
    return out
