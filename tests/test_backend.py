"""The array backend: NumPy alone is enough, and a missing GPU is one clear line."""

import builtins
import subprocess
import sys
import types

import numpy as np
import pytest

from minisegnet.backend import asnumpy, get_array_module, select_device
from minisegnet.errors import UserError


@pytest.fixture
def no_cupy(monkeypatch):
    """A machine on which CuPy is not installed."""
    real_import = builtins.__import__

    def importing(name, *args, **kwargs):
        if name == "cupy":
            raise ImportError("No module named 'cupy'")
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", importing)


def fake_cupy(monkeypatch, *, available):
    """Put a module named cupy in place, with or without a usable GPU."""
    module = types.ModuleType("cupy")
    module.cuda = types.SimpleNamespace(is_available=lambda: available)
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module


def test_numpy_arrays_belong_to_numpy():
    assert get_array_module() is np
    assert get_array_module(np.zeros(2), np.float32(1)) is np
    x = np.zeros(2)
    assert asnumpy(x) is x


def test_an_array_of_cupy_selects_cupy_and_is_fetched(monkeypatch):
    cupy = fake_cupy(monkeypatch, available=True)
    array_type = type("ndarray", (), {"get": lambda self: np.ones(3)})
    array_type.__module__ = "cupy._core.core"
    assert get_array_module(np.zeros(1), array_type()) is cupy
    np.testing.assert_array_equal(asnumpy(array_type()), np.ones(3))


def test_cpu_is_always_there(no_cupy):
    assert select_device("cpu") is np
    assert select_device("auto") is np


def test_cuda_without_cupy_names_the_cure(no_cupy):
    with pytest.raises(UserError, match=r"CuPy is not installed \(pip install .*--device cpu"):
        select_device("cuda")


def test_cuda_without_a_gpu_says_so_and_auto_falls_back(monkeypatch):
    fake_cupy(monkeypatch, available=False)
    assert select_device("auto") is np
    with pytest.raises(UserError, match="no usable NVIDIA driver or GPU.*--device cpu"):
        select_device("cuda")


def test_a_usable_gpu_is_taken(monkeypatch):
    cupy = fake_cupy(monkeypatch, available=True)
    assert select_device("auto") is cupy and select_device("cuda") is cupy


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
