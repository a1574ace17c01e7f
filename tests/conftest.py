"""Shared fixtures: a seeded generator, torch as an oracle, and the real pictures if present.

`pytest -m gpu` runs on a GPU what otherwise the emulator runs: see `gpu_run.py`.
"""

import os
from pathlib import Path

import gpu_run
import numpy as np
import pytest
from PIL import Image

from minisegnet.cuda import emulated_device, emulator

SUMMARY = "summary"  # a test's property of this name is a line for the end of the run


def pytest_configure(config):
    gpu_run.begin(config.option.markexpr)
    if gpu_run.xp is not None:  # CuPy and torch may warn of what NumPy has grown out of
        config.addinivalue_line("filterwarnings", "default")


@pytest.hookimpl(tryfirst=True)  # before what is not marked is left out
def pytest_collection_modifyitems(items):
    for item in items:
        if gpu_run.concerns(item):
            item.add_marker("gpu")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    gpu_run.skip_without(item)


def pytest_terminal_summary(terminalreporter):
    gpu_run.report(terminalreporter)
    for report in terminalreporter.getreports("passed"):
        for name, line in report.user_properties:
            if name == SUMMARY:
                terminalreporter.write_line(line)


@pytest.fixture(autouse=True)
def _on_gpu(request):
    """In a run with `-m gpu` the GPU stands in for the emulator."""
    with gpu_run.on_gpu(request.node):
        yield


@pytest.fixture(params=["emulated", pytest.param("cupy", marks=pytest.mark.gpu)])
def xp(request):
    """The array module of a device: the emulated one, and with `-m gpu` a GPU."""
    return emulated_device if request.param == "emulated" else gpu_run.xp


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def torch():
    """PyTorch, as an oracle. Missing: skip, or fail where MINISEGNET_REQUIRE_TORCH=1."""
    if os.environ.get("MINISEGNET_REQUIRE_TORCH") == "1":
        import torch
        return torch
    return pytest.importorskip("torch", reason="PyTorch, the oracle, is not installed")


@pytest.fixture(autouse=True)
def _needs_compiler(request):
    """Skip what runs CUDA kernels on the CPU where there is no g++ to compile them."""
    call = getattr(request.node, "callspec", None)
    if call is not None and "cuda_cpu" in str(call.params.get("implementation", "")):
        require_compiler()


def require_compiler():
    """Skip without g++, or fail where MINISEGNET_REQUIRE_GXX=1."""
    is_needed = gpu_run.xp is None and os.environ.get("MINISEGNET_REQUIRE_GXX") != "1"
    if is_needed and not emulator.is_available():
        pytest.skip("no g++ to compile CUDA kernels for the CPU")


@pytest.fixture(scope="session")
def compiler():
    """For tests that compile CUDA kernels for the CPU."""
    require_compiler()


@pytest.fixture(scope="session")
def camvid_root():
    """The folder with CamVid's train/ and val/; skip where the pictures are absent."""
    root = Path(os.environ.get("MINISEGNET_CAMVID", "data/CamVid"))
    if not (root / "train").is_dir():
        pytest.skip(f"no CamVid pictures in {root} (set MINISEGNET_CAMVID)")
    return root


@pytest.fixture
def tiny_folder(tmp_path, rng):
    """Eight training and four validation pictures, 32x48 with three classes."""
    for split, count in (("train", 8), ("val", 4)):
        for kind in ("images", "masks"):
            (tmp_path / "data" / split / kind).mkdir(parents=True)
        for i in range(count):
            mask = np.zeros((32, 48), np.uint8)
            mask[8:24, 8:24] = 1
            mask[12:20, 28:40] = 2
            mask[:2] = 255
            image = (mask[..., None] * 60 + rng.integers(0, 60, (32, 48, 3))).astype(np.uint8)
            folder = tmp_path / "data" / split
            Image.fromarray(image).save(folder / "images" / f"{i}.png")
            Image.fromarray(mask).save(folder / "masks" / f"{i}.png")
    (tmp_path / "data" / "classes.txt").write_text("ground\nhouse\npool\n")
    return tmp_path / "data"
