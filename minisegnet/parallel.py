"""Threads for NumPy: map a function over a few large blocks.

NumPy releases the GIL inside an operation, so threads can share elementwise work, but only where
the blocks are large: every small call pays for the lock. Results come back in
the order of the items, so a sum over them does not depend on which thread was first.
"""

import os
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import copy_context
from functools import lru_cache

import numpy as np

from minisegnet import process
from minisegnet.backend import get_array_module

# Work of one block: the temporaries of a few chained operations should still be in the cache when
# the next one reads them. Smaller blocks spend their time handing the GIL back and forth.
BLOCK_BYTES = 512 * 1024

_state = threading.local()


@lru_cache(maxsize=1)
def num_threads():
    """Number of threads: MINISEGNET_NUM_THREADS, else the processors this process may use."""
    process.set_up()
    requested = os.environ.get("MINISEGNET_NUM_THREADS", "")
    if requested.isdigit() and int(requested) > 0:
        return int(requested)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@lru_cache(maxsize=1)
def _pool():
    return ThreadPoolExecutor(num_threads() - 1, "minisegnet")  # the calling thread works too


def _free_threads():
    """How many threads a call may use: one within a share, where the others have theirs."""
    return 1 if getattr(_state, "in_share", False) else num_threads()


@contextmanager
def one_thread():
    """Within it, what this thread calls is not shared with others: to measure it, say."""
    before, _state.in_share = getattr(_state, "in_share", False), True
    try:
        yield
    finally:
        _state.in_share = before


# Fewer elementary operations than this, one thread does alone before a second one has woken up.
WORTH_A_THREAD = 1_000_000


def parallel_map(function, items, *, work=WORTH_A_THREAD):
    """Return `[function(item) for item in items]`, each thread working through one share of them.

    `work` is a rough count of the additions or multiplications in all of it. Runs inline when
    that is too little to share, when there is one thread or one item, or when called from within
    a share (a worker that waited for other workers could wait for ever).
    """
    items = list(items)
    workers = min(_free_threads(), len(items)) if work >= WORTH_A_THREAD else 1
    if workers < 2:
        return [function(item) for item in items]

    # One hand-over per thread, not one per item: it takes as long as a megabyte of work. Each
    # then takes the next item that nobody has, so that one whose core is busy elsewhere (loading
    # pictures, say) holds nobody up for longer than an item.
    results, numbered = [None] * len(items), enumerate(items)

    def work_through():
        with one_thread():
            for i, item in numbered:
                results[i] = function(item)

    # Each worker gets a copy of the caller's context, where NumPy keeps its errstate.
    others = [_pool().submit(copy_context().run, work_through) for _ in range(1, workers)]
    try:
        work_through()
    finally:
        wait(others)  # nobody may still write into the arrays when this call is over
    for other in others:
        other.result()
    return results


def row_blocks(rows, bytes_per_row):
    """Cut `rows` rows into slices of about BLOCK_BYTES each, in order."""
    step = max(1, BLOCK_BYTES // max(1, bytes_per_row))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def matmul(a, b):
    """Return a (P, Q) @ b (Q, R), the longer side of the result cut into one piece per thread."""
    P, Q = a.shape
    R = b.shape[1]
    threads = _free_threads()
    if get_array_module(a) is not np or threads == 1 or P * Q * R < 8 * WORTH_A_THREAD:
        # BLAS does about eight multiply-adds in the time of one elementwise operation.
        return a @ b
    out = np.empty((P, R), np.result_type(a, b))
    length = max(P, R)
    step = -(-length // threads)
    pieces = [slice(start, start + step) for start in range(0, length, step)]
    if P >= R:
        parallel_map(lambda rows: np.matmul(a[rows], b, out=out[rows]), pieces)
    else:
        parallel_map(lambda cols: np.matmul(a, b[:, cols], out=out[:, cols]), pieces)
    return out
