"""`pytest -m gpu`, the tests of the kernels on a GPU.

    python -m pytest -m gpu

It runs what is marked gpu, and every test that elsewhere has its kernels run by the emulator: the
same calls, but each launch is done by the GPU (minisegnet/cuda/host_arrays.py), product of
matrices in full float32. Without a GPU all are skipped, with the reason; with
MINISEGNET_REQUIRE_GPU=1 that is an error.
"""

import os
from contextlib import contextmanager

import pytest

from minisegnet.backend import select_device
from minisegnet.cuda import gemm
from minisegnet.cuda.host_arrays import host_arrays_on
from minisegnet.errors import UserError

# Tests of the emulator itself, and of what stands in for a GPU.
WITHOUT_GPU = ("test_cuda_compile", "test_cuda_emulator", "test_cuda_planted", "test_cuda_sandbox",
               "test_cuda_worker", "test_fake_cupy", "test_step_gpu")

xp = None  # CuPy, in a run with a GPU
why_not = None  # the reason, in a run for a GPU that is not there
_is_asked_for = False


def begin(markexpr):
    """Look for the GPU if the expression of `-m` asks for it."""
    global xp, why_not, _is_asked_for
    _is_asked_for = "gpu" in markexpr and "not gpu" not in markexpr
    if not _is_asked_for:
        return
    try:
        xp = select_device("cuda")
    except UserError as error:
        if os.environ.get("MINISEGNET_REQUIRE_GPU") == "1":
            raise pytest.UsageError(str(error)) from error
        why_not = str(error)


def concerns(item):
    """Whether a test that is collected belongs to this run, though it is not marked so."""
    if not _is_asked_for or item.path.stem in WITHOUT_GPU:
        return False
    call = getattr(item, "callspec", None)
    implementation = str(call.params.get("implementation", "")) if call is not None else ""
    return "cuda_cpu" in implementation or "compiler" in item.fixturenames


def skip_without(item):
    """Skip a test of this run where there is no GPU."""
    if why_not is not None and item.get_closest_marker("gpu") is not None:
        pytest.skip(why_not)


def report(terminal):
    """Say at the end what the tests ran on, or why they did not."""
    if why_not is not None:
        terminal.write_line(f"no test of a GPU was run: {why_not}")
    elif xp is not None:
        name = xp.cuda.runtime.getDeviceProperties(0)["name"].decode()
        terminal.write_line(f"kernels were run by {name}, CuPy {xp.__version__}")


@contextmanager
def on_gpu(item):
    """Within it, a test marked gpu has its launches done by the GPU."""
    if xp is None or item.get_closest_marker("gpu") is None:
        yield
        return
    before, gemm.allow_tf32 = gemm.allow_tf32, False
    try:
        with host_arrays_on(xp):
            yield
    finally:
        gemm.allow_tf32 = before
