"""CUDA files written by tests: a few kernels each, compiled for the CPU."""

from minisegnet.cuda import emulator
from minisegnet.cuda.launch import KernelFile

ORDERS = tuple(emulator.FIBER_ORDERS)


def kernel_file(folder, code, name="kernels", **options):
    """Write `code`, of which common.h is included, and return its `KernelFile`."""
    path = folder / f"{name}.cu"
    path.write_text(f'#include "common.h"\n{code}', encoding="utf-8")
    return KernelFile(path.with_suffix(".py"), **options)


def in_every_order(launch):
    """Return what `launch()` returns when the threads of a block run in each order."""
    results = []
    for order in ORDERS:
        with emulator.fiber_order(order):
            results.append(launch())
    return results
