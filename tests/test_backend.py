"""The array backend: NumPy alone is enough, and a missing GPU is one clear line."""

import subprocess
import sys
import types

import numpy as np
import pytest
from checks import assert_refused

from minisegnet import backend
from minisegnet.backend import asnumpy, get_array_module, select_device
from minisegnet.errors import UserError


@pytest.fixture
def machine(monkeypatch):
    """A function that pretends to be a machine: its driver, its packages, what CuPy does there."""

    def pretend(*, driver=(12, 4), gpus=1, packages=(), cupy=None):
        monkeypatch.setattr(backend, "_load_driver", lambda: driver and FakeDriver(driver, gpus))
        monkeypatch.setattr(backend.metadata, "distribution", lambda name: find(name, packages))
        monkeypatch.setitem(sys.modules, "cupy", cupy)  # None: importing it fails

    return pretend


def find(name, packages):
    """Stand in for importlib.metadata.distribution."""
    if name not in packages:
        raise backend.metadata.PackageNotFoundError(name)


class FakeDriver:
    """libcuda.so.1, as far as it is asked."""

    def __init__(self, cuda, gpus):
        self.cuda, self.gpus = cuda, gpus

    def cuInit(self, flags):
        return 0 if self.gpus else 100  # CUDA_ERROR_NO_DEVICE

    def cuDriverGetVersion(self, pointer):
        pointer._obj.value = self.cuda[0] * 1000 + self.cuda[1] * 10
        return 0

    def cuDeviceGetCount(self, pointer):
        pointer._obj.value = self.gpus
        return 0


class Refusing:
    """A function that fails when called."""

    def __init__(self, error):
        self.error = error

    def __call__(self, *arguments):
        raise self.error


class Stream:
    """A stream, as far as it is entered."""

    def __init__(self, entered, non_blocking):
        self.entered, self.non_blocking = entered, non_blocking

    def __enter__(self):
        self.entered.append(self)


def fake_cupy(*, built_for=12, gpus=1, capability="90", nvrtc=None, cublas=None):
    """Return a module like CuPy; `gpus`, `nvrtc` and `cublas` may be errors that asking raises."""

    def answer(value):
        return Refusing(value) if isinstance(value, Exception) else lambda: value

    class Cuda(types.ModuleType):
        @property
        def cublas(self):
            if cublas is not None:
                raise cublas

    module = types.ModuleType("cupy")
    module.cuda = Cuda("cupy.cuda")
    module.cuda.runtime = types.SimpleNamespace(runtimeGetVersion=answer(built_for * 1000 + 90),
                                                getDeviceCount=answer(gpus))
    module.cuda.nvrtc = types.SimpleNamespace(getVersion=answer(nvrtc))
    module.cuda.streams = ["default"]  # entered, the current one last
    module.cuda.Stream = lambda non_blocking: Stream(module.cuda.streams, non_blocking)
    module.cuda.get_current_stream = lambda: module.cuda.streams[-1]
    module.cuda.Device = answer(types.SimpleNamespace(compute_capability=capability))
    return module


class Unimportable:
    """Makes `import cupy` fail with `error`, as a broken installation does."""

    def __init__(self, error):
        self.error = error

    def find_spec(self, name, path=None, target=None):
        if name == "cupy":
            raise self.error


def test_numpy_arrays_belong_to_numpy():
    assert get_array_module() is np
    assert get_array_module(np.zeros(2), np.float32(1)) is np
    x = np.zeros(2)
    assert asnumpy(x) is x


def test_an_array_of_cupy_selects_cupy_and_is_fetched(monkeypatch):
    cupy = fake_cupy()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    array_type = type("ndarray", (), {"get": lambda self: np.ones(3)})
    array_type.__module__ = "cupy._core.core"
    assert get_array_module(np.zeros(1), array_type()) is cupy
    np.testing.assert_array_equal(asnumpy(array_type()), np.ones(3))


# Choosing a device

# Errors as CuPy 14.2 words them.
TOO_OLD = RuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA "
                       "runtime version")
NO_GPU = RuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")
NO_NVRTC = RuntimeError("CuPy failed to load libnvrtc.so.12: OSError: libnvrtc.so.12: cannot open "
                        "shared object file: No such file or directory")
NO_CUBLAS = ImportError('Failure finding "libcublasLt.so.13": No such file: libcublasLt.so.13\n'
                        '  listdir("/usr/lib"):\n    libnvrtc.so.13')
BROKEN = ImportError("\n=====\nFailed to import CuPy.\n\nOriginal error:\n"
                     "  ImportError: libcudart.so.11.0: cannot open shared object file\n=====\n")
TWELVE, THIRTEEN = ("cupy-cuda12x",), ("cupy-cuda13x",)

UNUSABLE = {
    "no driver": (dict(driver=None), ["no NVIDIA driver", "install one", "--gpus all"]),
    "an old driver": (dict(driver=(11, 8)), ["CUDA 11.8 only", "525 or newer"]),
    "no CuPy": (dict(), ["CuPy is not installed: pip install 'minisegnet[gpu]'"]),
    "no CuPy, CUDA 13": (dict(driver=(13, 0)), [
        "CuPy is not installed: pip install 'minisegnet[gpu13]'", "[gpu] if the GPU is older"]),
    "two CuPys": (dict(packages=("cupy-cuda12x", "cupy-cuda13x"), cupy=fake_cupy()), [
        "cupy-cuda12x and cupy-cuda13x are installed at once",
        "pip uninstall -y cupy-cuda12x cupy-cuda13x, then pip install 'minisegnet[gpu]'"]),
    "no GPU": (dict(gpus=0, packages=TWELVE, cupy=fake_cupy(gpus=NO_GPU)),
               ["finds no GPU", "nvidia-smi", "CUDA_VISIBLE_DEVICES"]),
    "no GPU, counted": (dict(gpus=0, packages=TWELVE, cupy=fake_cupy(gpus=0)), ["finds no GPU"]),
    "CuPy newer than the driver": (
        dict(packages=THIRTEEN, cupy=fake_cupy(built_for=13, gpus=TOO_OLD)),
        ["cupy-cuda13x is built for CUDA 13", "supports CUDA 12.4 only",
         "pip uninstall -y cupy-cuda13x, then pip install 'minisegnet[gpu]'", "580 or newer"]),
    "a GPU older than CUDA 13": (
        dict(driver=(13, 0), packages=THIRTEEN, cupy=fake_cupy(built_for=13, capability="70")),
        ["compute capability 7.0, below 7.5", "pip uninstall -y cupy-cuda13x",
         "pip install 'minisegnet[gpu]'"]),
    "another error": (dict(packages=TWELVE, cupy=fake_cupy(gpus=RuntimeError(
        "cudaErrorUnknown: unknown error"))), ["cudaErrorUnknown: unknown error", "nvidia-smi"]),
    "no NVRTC": (dict(packages=TWELVE, cupy=fake_cupy(nvrtc=NO_NVRTC)),
                 ["finds no NVRTC (CuPy failed to load libnvrtc.so.12",
                  "pip install 'cupy-cuda12x[ctk]'"]),
    "no NVRTC, CuPy built here": (dict(packages=("cupy",), cupy=fake_cupy(nvrtc=NO_NVRTC)),
                                  ["finds no NVRTC", "install the CUDA Toolkit 12"]),
    "no cuBLAS": (dict(driver=(13, 1), cupy=fake_cupy(built_for=13, cublas=NO_CUBLAS)),
                  ["finds no cuBLAS", "pip install 'cupy-cuda13x[ctk]'"]),
}


def test_cpu_is_always_there(machine):
    machine(packages=TWELVE, cupy=fake_cupy())
    assert select_device("cpu") is np


def test_a_usable_gpu_is_taken(machine, monkeypatch, capsys):
    monkeypatch.setattr(backend, "_own_stream", None)
    cupy = fake_cupy()
    for driver in ((12, 0), (13, 2)):
        machine(driver=driver, packages=TWELVE, cupy=cupy)
        assert select_device("auto") is cupy and select_device("cuda") is cupy
    _, stream = cupy.cuda.streams  # entered once, and never left
    assert stream is backend._own_stream and stream.non_blocking
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("case", UNUSABLE)
def test_what_is_missing_is_said_in_one_line_with_its_cure(machine, case):
    pretended, words = UNUSABLE[case]
    machine(**pretended)
    assert_refused(lambda: select_device("cuda"), "--device cuda: ", "; or use --device cpu",
                   *words)


@pytest.mark.parametrize("case", UNUSABLE)
def test_auto_falls_back_and_says_so_only_where_there_is_a_gpu(machine, capsys, case):
    pretended, words = UNUSABLE[case]
    machine(**pretended)
    assert select_device("auto") is np
    out, err = capsys.readouterr()
    assert out == ""
    if case in ("no driver", "no GPU", "no GPU, counted"):
        assert err == ""
    else:
        assert err.count("\n") == 1 and err.endswith("computing on the CPU\n")
        assert all(word in err for word in words)


def test_a_python_newer_than_cupys_wheels_is_named(machine, monkeypatch):
    machine()
    monkeypatch.setattr(backend.sys, "version_info", (3, 15, 0, "final", 0))
    assert_refused(lambda: select_device("cuda"), "this Python 3.15", "use Python 3.10 to 3.14",
                   "pip install 'minisegnet[gpu]'")


@pytest.mark.parametrize("error, words", [
    (BROKEN, ["(ImportError: libcudart.so.11.0: cannot open shared object file)",
              "pip uninstall -y cupy-cuda12x, then pip install 'minisegnet[gpu]'"]),
    (ModuleNotFoundError("No module named 'cuda.pathfinder'", name="cuda.pathfinder"),
     ["No module named 'cuda.pathfinder'", "pip uninstall -y cupy-cuda12x"]),
])
def test_a_cupy_that_cannot_be_imported_is_replaced(machine, monkeypatch, error, words):
    machine(packages=TWELVE)
    monkeypatch.delitem(sys.modules, "cupy")
    monkeypatch.setattr(sys, "meta_path", [Unimportable(error), *sys.meta_path])
    assert_refused(lambda: select_device("cuda"), "CuPy cannot be imported", *words)


def test_no_driver_is_found_where_its_library_cannot_be_loaded(monkeypatch):
    monkeypatch.setattr(backend.ctypes, "CDLL", Refusing(OSError("libcuda.so.1: cannot open")))
    assert backend._driver_cuda() is None and not backend._seems_to_have_gpu()


def test_an_unknown_device_is_refused():
    with pytest.raises(UserError, match="'tpu' is not one of auto, cpu, cuda"):
        select_device("tpu")


def test_the_package_needs_numpy_alone():
    code = """if True:
        import sys
        for name in ("torch", "cupy", "matplotlib", "PIL", "tqdm", "threadpoolctl"):
            sys.modules[name] = None  # importing it now fails
        import minisegnet, minisegnet.ops, minisegnet.layers, minisegnet.models
        import minisegnet.losses, minisegnet.optim, minisegnet.metrics, minisegnet.imbalance
        minisegnet.models.build_model("mini", 12)
        """
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
