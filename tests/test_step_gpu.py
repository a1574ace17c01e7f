"""benchmarks/step_gpu.py: what it measures, on what is there without a GPU."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import fake_cuda
import fake_cupy
import numpy as np
import pytest
from checks import benchmark_module

from minisegnet.backend import select_device
from minisegnet.cuda import gemm
from minisegnet.errors import run_command
from minisegnet.models import build_model

FOLDER = Path(__file__).parents[1] / "benchmarks"
SIZES = (2, 32, 32, 3)


@pytest.fixture
def step_gpu(torch, monkeypatch):
    """The benchmark, with the smallest model in place of the light one."""
    monkeypatch.syspath_prepend(str(FOLDER))
    module = benchmark_module("step_gpu")
    sides = sys.modules["gpu_sides"]
    monkeypatch.setattr(sides, "build_model", lambda name, K, seed: build_model("mini", K,
                                                                                seed=seed))
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield module
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = False


def test_a_dry_run_goes_through_all_of_it(step_gpu, compiler, tmp_path, capsys):
    before = sorted((FOLDER / "results").iterdir())
    assert run_command(step_gpu.main, ["--dry-run", "--output-dir", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "step_gpu_dry_run.json").read_text())
    (row,) = results["models"]
    ms = row["ms"]
    assert ms.pop("torch compiled") == "not run" and min(ms.values()) > 0
    assert list(ms) == ["ours", "torch contiguous", "torch channels_last",
                        "ours, launch by launch"]
    assert results["correctness"]["deeplab_light"]["float64"] < 1e-9
    kernels = {each["kernel"]: each for each in row["kernels"]}
    assert kernels["adamw_update_kernel"]["launches"] == 1 < kernels["gemm"]["launches"]
    text = (tmp_path / "step_gpu_dry_run.txt").read_text()
    assert text in capsys.readouterr().out
    for words in ("the numbers mean nothing", "torch compiled                 not run",
                  "peak memory: not run", "adamw_update_kernel"):
        assert words in text
    assert sorted((FOLDER / "results").iterdir()) == before


def test_our_side_on_cupy_is_timed_and_repeated_as_graphs(step_gpu, compiler, monkeypatch,
                                                          tmp_path):
    fake_cupy.install(monkeypatch, fake_cupy.compile_cublas(tmp_path))
    xp = select_device("cuda")
    side = sys.modules["gpu_sides"].OurSide(xp, "deeplab_light", SIZES)
    for _ in range(3):
        side.step()
    assert side.time(side.step) > 0
    assert side.runner.why_not_captured is None and side.peak_bytes() > 1e6
    eager = sys.modules["gpu_sides"].OurSide(xp, "deeplab_light", SIZES, replay=False)
    eager.step()
    launches = eager.launches()
    monkeypatch.setattr(eager, "launches", lambda: launches[:3])
    rows = step_gpu.kernel_table(eager, 2)
    assert sum(row["launches"] for row in rows) == 3 and min(row["ms"] for row in rows) > 0
    assert fake_cuda.gpu.log == []
    gemm._cublas.cache_clear()


class Side:
    """A side that notes what it does in `log`."""

    def __init__(self, name, log, error=None):
        self.name, self.log = name, log
        self.runner = SimpleNamespace(why_not_captured=None)
        if error is not None:
            raise error

    def step(self):
        self.log.append(f"{self.name} steps")

    def wait(self):
        self.log.append(f"{self.name} waits")

    def time(self, function):
        function()
        return 12.0

    def peak_bytes(self):
        return 2 ** 30

    def launches(self):
        return []


def test_nobody_has_anything_to_do_while_the_other_is_timed(step_gpu):
    log = []
    sides = {name: Side(name, log) for name in "ab"}
    assert step_gpu.measure(sides, step_gpu.Clock(1), rounds=2, steps=2) == {"a": 6, "b": 6}
    waits = ["a waits", "b waits"]
    assert log == 2 * (waits + 2 * ["a steps"] + waits + 2 * ["b steps"])


@pytest.fixture
def stubbed(step_gpu, monkeypatch, tmp_path):
    """A function that runs the benchmark as on a GPU, its sides stubs; returns (status, rows)."""
    errors, log = {}, []
    xp = SimpleNamespace(__version__="14.2.0", get_default_memory_pool=lambda: SimpleNamespace(
        free_all_blocks=lambda: None))
    monkeypatch.setattr(step_gpu, "select_device", lambda device: xp)
    monkeypatch.setattr(step_gpu, "check", lambda *args: {
        "float64": 1e-12, "float32": 0.1, "float32 of torch": 0.09})
    monkeypatch.setattr(step_gpu, "OurSide", lambda xp, name, sizes, replay=True: Side(
        "ours", log, errors.get("ours")))
    monkeypatch.setattr(step_gpu, "TorchSide", lambda device, name, sizes, channels_last=False: (
        Side("torch", log, errors.get(f"torch {channels_last}"))))
    monkeypatch.setattr(step_gpu.torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(step_gpu, "compile_beside", lambda name, sizes, seconds: 7.0)

    def run(*argv, **failing):
        errors.update(failing)
        status = step_gpu.main(["--output-dir", str(tmp_path), *argv])
        return status, json.loads((tmp_path / "step_gpu.json").read_text())["models"]

    return run


def test_without_time_the_rest_is_not_run(stubbed, capsys):
    status, rows = stubbed("--minutes", "0.1")
    assert status == 0 and [row["ms"] for row in rows] == [None] * 4
    assert capsys.readouterr().out.count("not run, out of time") == 4


def test_with_time_all_is_run_and_the_compiler_last(stubbed, capsys):
    status, rows = stubbed("--batch-size", "4")
    assert status == 0 and [row["ms"]["torch compiled"] for row in rows] == [7.0, 7.0]
    out = capsys.readouterr().out
    assert out.count("1.00 x torch's time") == 2 and "peak memory 1024 MiB, torch 1024" in out
    assert "kernel by kernel: not run" in out  # the stub has no launches


@pytest.mark.parametrize("failing, status, words", [
    ({"torch True": MemoryError("2 GB are missing")}, 0, "(MemoryError: 2 GB are missing)"),
    ({"ours": MemoryError("2 GB are missing")}, 1, "WRONG: deeplab_light, deeplab_baseline"),
])
def test_a_side_that_fails_is_named_and_the_others_go_on(stubbed, capsys, failing, status, words):
    found, rows = stubbed("--batch-size", "4", **failing)
    assert found == status and words in capsys.readouterr().out
    assert rows[0]["ms"]["torch contiguous"] == 12 / 5


@pytest.mark.parametrize("float64, float32, is_right", [
    (1e-12, 0.29, True), (1e-12, 0.31, False), (1e-8, 0.1, False), (float("nan"), 0.1, False)])
def test_gradients_are_right_within_limits(step_gpu, float64, float32, is_right):
    errors = {"float64": float64, "float32": float32, "float32 of torch": 0.1}
    assert step_gpu.is_right(errors, dry_run=False) == is_right


@pytest.mark.parametrize("code, seconds, found", [
    ("print('words'); print(3.5)", 30, 3.5),
    ("raise RuntimeError('no compiler')", 30, "RuntimeError: no compiler"),
    ("import time; time.sleep(60)", 0.5, "not compiled within 0 s"),
])
def test_compiling_has_its_time_and_no_more(step_gpu, monkeypatch, tmp_path, code, seconds,
                                            found):
    (tmp_path / "script.py").write_text(code)
    monkeypatch.setattr(step_gpu, "__file__", str(tmp_path / "script.py"))
    start = time.monotonic()
    assert step_gpu.compile_beside("deeplab_light", SIZES, seconds) == found
    assert time.monotonic() - start < 10


def test_what_is_compiled_beside_has_the_model_and_sizes_asked_for(step_gpu, monkeypatch):
    def start(words, **_):
        asked.extend(words[2:])
        return SimpleNamespace(returncode=0, poll=lambda: 0,
                               communicate=lambda timeout: ("1.5", ""))

    asked, seen = [], []
    monkeypatch.setattr(step_gpu.subprocess, "Popen", start)
    assert step_gpu.compile_beside("deeplab_light", SIZES, 1) == 1.5
    monkeypatch.setattr(step_gpu, "compiled_ms", lambda *given: seen.append(given))
    assert step_gpu.main(asked) == 0
    assert seen == [("deeplab_light", SIZES)]


def test_without_torch_one_line_says_what_to_install(tmp_path):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('none', name='torch')")
    done = subprocess.run([sys.executable, FOLDER / "step_gpu.py", "--dry-run"],
                          capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "pip install 'minisegnet[torch]'" in done.stderr


def test_gradients_of_our_side_have_torchs_names(step_gpu, compiler):
    sides = sys.modules["gpu_sides"]
    ours = sides.OurSide(step_gpu.emulated_device, "deeplab_light", SIZES).gradients(np.float64)
    theirs = sides.TorchSide("cpu", "deeplab_light", SIZES).gradients()
    assert {name: array.shape for name, array in ours.items()} == {
        name: array.shape for name, array in theirs.items()}
