"""Threads for NumPy: map a function over a few large blocks.

NumPy releases the GIL inside an operation, so two threads double the speed of elementwise work,
but only where the blocks are large: every small call pays for the lock. Results come back in
the order of the items, so a sum over them does not depend on which thread was first.
"""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import lru_cache

import numpy as np

from minisegnet.backend import get_array_module

# Work of one block: about half of a core's second-level cache, so that the temporaries of a few
# chained operations are still warm when the next one reads them.
BLOCK_BYTES = 256 * 1024

_worker = threading.local()


@lru_cache(maxsize=1)
def num_threads():
    """Number of threads: MINISEGNET_NUM_THREADS, else the processors this process may use.

    Asked for the first time, it also sets NumPy's BLAS to one thread: the others are ours.
    """
    _set_blas_to_one_thread()
    requested = os.environ.get("MINISEGNET_NUM_THREADS", "")
    if requested.isdigit() and int(requested) > 0:
        return int(requested)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@lru_cache(maxsize=1)
def _pool():
    def mark_as_worker():
        _worker.busy = True

    return ThreadPoolExecutor(num_threads(), "minisegnet", initializer=mark_as_worker)


def _set_blas_to_one_thread():
    """Set NumPy's OpenBLAS to one thread for this process, where threadpoolctl is installed.

    Two layers of threads are worse than one: OpenBLAS threads wait for each other in a spinning
    loop, and as soon as anything else wants a core, a product of 0.5 ms takes 8 or 16.
    """
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return
    # torch, where it is loaded too, brings other libraries than OpenBLAS and keeps its threads.
    ThreadpoolController().select(internal_api="openblas").limit(limits=1)


def parallel_map(function, items):
    """Return `[function(item) for item in items]`, computed by threads.

    Runs inline when there is one thread or one item, or when called from inside a worker
    (a worker that waited for other workers could wait for ever).
    """
    items = list(items)
    if len(items) < 2 or num_threads() == 1 or getattr(_worker, "busy", False):
        return [function(item) for item in items]
    # Each call gets a copy of the caller's context, where NumPy keeps its errstate.
    calls = [_pool().submit(copy_context().run, function, item) for item in items]
    return [call.result() for call in calls]


def row_blocks(rows, bytes_per_row):
    """Cut `rows` rows into slices of about BLOCK_BYTES each, in order."""
    step = max(1, BLOCK_BYTES // max(1, bytes_per_row))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


MATMUL_THREADS_FROM = 1_000_000  # multiply-adds; below, handing out the work costs more than it


def matmul(a, b):
    """Return a (P, Q) @ b (Q, R), the longer side of the result cut into one piece per thread."""
    P, Q = a.shape
    R = b.shape[1]
    if get_array_module(a) is not np or num_threads() == 1 or P * Q * R < MATMUL_THREADS_FROM:
        return a @ b
    out = np.empty((P, R), np.result_type(a, b))
    length = max(P, R)
    step = -(-length // num_threads())
    pieces = [slice(start, start + step) for start in range(0, length, step)]
    if P >= R:
        parallel_map(lambda rows: np.matmul(a[rows], b, out=out[rows]), pieces)
    else:
        parallel_map(lambda cols: np.matmul(a, b[:, cols], out=out[:, cols]), pieces)
    return out
