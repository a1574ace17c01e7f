"""Two settings of the whole process that NumPy needs to be fast, made on first use.

Measured on a training step of `deeplab_light` on two cores: kept memory takes it from 260-280 to
187 ms, and one BLAS thread keeps it steady when something else wants a core.
"""

import ctypes
import sys
from functools import lru_cache

# glibc's malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


@lru_cache(maxsize=1)
def set_up():
    """Set NumPy's BLAS to one thread and let the allocator keep freed memory; once."""
    _one_blas_thread()
    _keep_freed_memory()


def _one_blas_thread():
    """Set NumPy's OpenBLAS to one thread, where threadpoolctl is installed.

    The threads are ours (`minisegnet.parallel`), and two layers of them are worse than one:
    OpenBLAS threads wait for each other in a spinning loop, and as soon as anything else wants a
    core, a product of 0.5 ms takes 8 or 16.
    """
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return
    # torch, where it is loaded too, brings other libraries than OpenBLAS and keeps its threads.
    ThreadpoolController().select(internal_api="openblas").limit(limits=1)


def _keep_freed_memory():
    """Tell glibc to keep freed memory for the next array instead of handing it back; Linux only.

    A training step makes and drops hundreds of large arrays, the same ones every time. By default
    each goes back to the system, and the next one is a fresh mapping whose every page costs a
    page fault at first touch: a third of the step. The peak does not change.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # other C libraries have none
        mallopt(_M_MMAP_THRESHOLD, 2 ** 30)
        mallopt(_M_TRIM_THRESHOLD, 2 ** 31 - 1)
