"""What talks to CuPy, run against a CuPy without a GPU that is as strict as CuPy."""

import gc
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import fake_cuda
import fake_cupy
import numpy as np
import pytest
from checks import assert_agrees
from small_kernels import kernel_file

from minisegnet import train
from minisegnet.backend import select_device
from minisegnet.cuda import emulated_device
from minisegnet.cuda import gemm as gemm_module
from minisegnet.cuda import host_arrays
from minisegnet.cuda import replay as replay_module
from minisegnet.cuda.emulator import KernelError
from minisegnet.cuda.gemm import gemm
from minisegnet.cuda.host_arrays import host_arrays_on
from minisegnet.cuda.launch import record_launches
from minisegnet.cuda.replay import Replay
from minisegnet.cuda.upload import Uploader
from minisegnet.datasets.loader import Batch
from minisegnet.errors import run_command
from minisegnet.losses import Criterion
from minisegnet.models import build_model
from minisegnet.ops import conv2d_forward, depthwise_conv2d_backward, depthwise_conv2d_forward
from minisegnet.optim import AdamW, ExponentialMovingAverage
from minisegnet.training.device_step import DeviceStep

pytestmark = pytest.mark.usefixtures("compiler")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    if shutil.which("gcc") is None:
        pytest.skip("no gcc to compile the stand-in for cuBLAS")
    return fake_cupy.compile_cublas(tmp_path_factory.mktemp("cublas"))


@pytest.fixture(params=["late", "early"])
def schedule(request):
    """When streams beside the current one do their work."""
    return request.param


@pytest.fixture
def xp(monkeypatch, library, request):
    """CuPy, as `--device cuda` finds it."""
    early = "schedule" in request.fixturenames and request.getfixturevalue("schedule") == "early"
    fake_cupy.install(monkeypatch, library, early=early)
    yield select_device("cuda")
    gemm_module._cublas.cache_clear()


@pytest.fixture
def stream(xp):
    return xp.cuda.get_current_stream()


# ---------------------------------------------------------------- CuPy, as it is


def test_arrays_do_not_become_numpys_by_themselves(xp):
    x = xp.zeros((2, 3), np.float32)
    for convert in (np.asarray, lambda x: np.zeros((2, 3)) + x, lambda x: np.copyto(
            np.zeros((2, 3)), x)):
        with pytest.raises(TypeError):
            convert(x)
    with pytest.raises(TypeError, match="expected cupy"):
        xp.ascontiguousarray(np.zeros(3))
    with pytest.raises(ValueError, match="non-scalar"):
        x[...] = np.zeros((2, 3), np.float32)


def test_an_array_of_the_host_keeps_its_order(xp):
    host = np.arange(6.0).reshape(2, 3)
    array = xp.asarray(np.asfortranarray(host))
    assert not array.flags.c_contiguous and array.flags.f_contiguous
    np.testing.assert_array_equal(array.get(), host)
    np.testing.assert_array_equal(xp.ascontiguousarray(array).get(), host)


CODE = """
__global__ void scale_kernel(const REAL* x, REAL* out, REAL factor, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = x[i] * factor;
}
__global__ void first_kernel(const REAL* x, REAL* out) { out[0] = x == nullptr ? 7 : x[0]; }
"""


@pytest.fixture
def kernels(tmp_path):
    return kernel_file(tmp_path, CODE)


def test_a_kernel_knows_no_strides_and_no_python_floats(xp, kernels):
    x, out = xp.asarray(np.arange(6, dtype=np.float32).reshape(2, 3)), xp.zeros(2, np.float32)
    launch = kernels._gpu_module("float32", "float32").get_function("scale_kernel")
    launch((1,), (2,), (x[:, 1], out, np.float32(2), np.int32(2)))
    assert list(out.get()) == [2, 4]  # neighbours in memory, from where the view begins
    launch((1,), (2,), (x, out, 2.0, np.int32(2)))
    assert list(out.get()) == [0, 0]  # half of a double
    with pytest.raises(TypeError, match="tuple"):
        launch([1], (2,), (x, out, np.float32(2), np.int32(2)))
    with pytest.raises(TypeError, match="kernel parameter"):
        launch((1,), (2,), (np.zeros(6, np.float32), out, np.float32(2), np.int32(2)))


def test_what_was_used_is_forgotten_at_the_end_of_the_next_with_block(xp, stream):
    other = xp.cuda.Stream(non_blocking=True)
    other.use()
    xp.zeros((3, 3), np.float32)[:, 1].get()
    assert xp.cuda.get_current_stream() == stream != other  # ours was entered


@pytest.mark.parametrize("forbidden, message", [
    (lambda xp, x: x.get(), "D2H transfers are disallowed"),
    (lambda xp, x: xp.asarray(np.zeros(3)), "H2D transfers are disallowed"),
    (lambda xp, x: x.set(np.zeros(3)), "H2D transfers are disallowed"),
    (lambda xp, x: xp.cuda.get_current_stream().synchronize(), "StreamCaptureUnsupported"),
    (lambda xp, x: xp.cuda.get_current_stream().wait_event(
        xp.cuda.Stream(non_blocking=True).record()), "StreamCaptureIsolation"),
])
def test_what_would_wait_is_forbidden_in_a_capture(xp, stream, forbidden, message):
    x = xp.zeros(3)
    stream.begin_capture()
    with pytest.raises(RuntimeError, match=message):
        forbidden(xp, x)
    with pytest.raises(RuntimeError) if "Stream" in message else np.errstate():
        stream.end_capture()
    assert not stream.is_capturing()


# ---------------------------------------------------------------- launches


def test_launches_pass_what_kernels_expect(xp, kernels):
    x = xp.asarray(np.arange(8, dtype=np.float64).reshape(2, 4))
    out = xp.zeros((4,))
    kernels.launch("scale_kernel", [1], [4], x=x[1], out=out, factor=0.5, n=4)
    assert list(out.get()) == [2, 2.5, 3, 3.5]
    kernels.launch("first_kernel", (1,), (1,), x=None, out=out)
    assert out.get()[0] == 7
    with pytest.raises(ValueError, match="gaps"):
        kernels.launch("first_kernel", (1,), (1,), x=x[:, 1], out=out)
    with pytest.raises(TypeError, match="arrays of cupy and numpy"):
        kernels.launch("first_kernel", (1,), (1,), x=np.zeros(3), out=out)
    with record_launches() as launches:
        kernels.launch("scale_kernel", (1,), (4,), x=x[0], out=out, factor=2.0, n=4)
    x.fill(1)
    launches[0]()
    assert list(out.get()) == [2] * 4


def test_a_kernel_is_asked_for_once(xp, kernels, monkeypatch):
    module = kernels._gpu_module("float32", "float32")
    asked = []
    function = module.get_function
    monkeypatch.setattr(module, "get_function", lambda name: asked.append(name) or function(name))
    out = xp.zeros(1, np.float32)
    for _ in range(3):
        kernels.launch("first_kernel", (1,), (1,), x=None, out=out)
    assert asked == ["first_kernel"]


def test_an_op_gives_the_emulators_bits(xp, rng):
    x = rng.standard_normal((2, 9, 7, 4)).astype(np.float32)
    weight = rng.standard_normal((3, 3, 4)).astype(np.float32)
    out, cache = depthwise_conv2d_forward(xp.asarray(x), xp.asarray(weight), padding=1)
    expected, host_cache = depthwise_conv2d_forward(x, weight, padding=1,
                                                    implementation="cuda_cpu")
    np.testing.assert_array_equal(out.get(), expected)
    for actual, gradient in zip(depthwise_conv2d_backward(out, cache), depthwise_conv2d_backward(
            expected, host_cache, implementation="cuda_cpu")):
        np.testing.assert_array_equal(actual.get(), gradient)


def test_products_are_queued_in_their_turn(xp, rng):
    a, b = rng.standard_normal((3, 4)), rng.standard_normal((4, 5))
    on_gpu = [xp.asarray(a), xp.asarray(b), xp.zeros((3, 5))]
    gemm(*on_gpu)
    on_gpu[0].fill(0)  # afterwards
    assert_agrees(on_gpu[2].get(), a @ b)


# ---------------------------------------------------------------- arrays of the host


def test_a_gpu_can_stand_in_for_the_emulator(xp, rng, kernels):
    x, weight = rng.standard_normal((2, 9, 7, 8)), rng.standard_normal((3, 3, 8, 4))
    expected, _ = conv2d_forward(x, weight, padding=1, implementation="cuda_cpu")
    with host_arrays_on(xp):
        actual, _ = conv2d_forward(x, weight, padding=1, implementation="cuda_cpu")
        out = np.zeros(3)
        kernels.launch("scale_kernel", (1,), (4,), x=x.ravel(), out=out, factor=2.0, n=3)
        with pytest.raises(ValueError, match="launches no grid"):
            kernels.launch("scale_kernel", (0,), (4,), x=x.ravel(), out=out, factor=2.0, n=3)
    assert isinstance(actual, np.ndarray)
    assert_agrees(actual, expected, 1e-14)
    np.testing.assert_array_equal(out, 2 * x.ravel()[:3])
    assert fake_cuda.gpu.pool.total_bytes() > 0 and len(kernels.modules) == 1


@pytest.mark.parametrize("at, is_found", [(0, False), (4, True), (-1, True), (259, True)])
def test_a_write_beside_an_array_or_to_what_is_const_is_found(xp, stream, at, is_found):
    def kernel(grid, block, arguments, shared_mem):
        x, out, number = arguments
        assert number.tobytes() == b"abcd" and out.data.ptr % 32 == 8
        memory = out.data.mem.view(0, (600,), np.uint8)
        place = out.data.ptr - out.data.mem.ptr + at
        stream.enqueue(lambda: memory.__setitem__(place, 7))

    compiled = SimpleNamespace(get_function=lambda name: kernel)
    arguments = [("x", b"1234", False, 8, b"\xff"), ("out", b"5678", True, 8, b"\xff"), b"abcd"]
    module = host_arrays.Module(xp, compiled)
    if is_found:
        with pytest.raises(KernelError, match="k_kernel: memory access out of bounds.* out"):
            module.run("k_kernel", (1,), (1,), arguments)
    else:
        assert module.run("k_kernel", (1,), (1,), arguments) == [b"\x07678"]


# ---------------------------------------------------------------- uploads


def test_batches_arrive_in_their_turn(xp, stream, schedule, rng):
    uploader = Uploader(xp, [np.zeros((2, 3)), np.zeros(5, np.uint8)])
    seen = []
    batches = [[rng.standard_normal((2, 3)), rng.integers(0, 9, 5).astype(np.uint8)]
               for _ in range(7)]
    for i, batch in enumerate(batches):
        copies = [array.copy() for array in batch]
        uploader.upload(copies)
        assert uploader._stream._queued == 3 * (i + 1)  # two copies, beside the computing
        for copy in copies:
            copy.fill(0)  # is the caller's again
        seen.append([array.copy() for array in uploader.arrays])
        assert xp.cuda.get_current_stream() == stream
    for expected, arrived in zip(batches, seen):
        for host, array in zip(expected, arrived):
            np.testing.assert_array_equal(array.get(), host)


# ---------------------------------------------------------------- replay


class Counter:
    """A function to repeat: x += 1 by way of memory of its own, and y = 3."""

    def __init__(self, xp, kernels):
        self.xp, self.kernels = xp, kernels
        self.x, self.one = xp.zeros((4,)), xp.asarray(np.ones(4))
        self.calls = 0

    def __call__(self):
        self.calls += 1
        total = self.xp.empty((4,))
        total[...] = self.x
        self.kernels.launch("add_kernel", (1,), (4,), x=total, y=self.one)
        self.x[...] = total


ADD = "__global__ void add_kernel(REAL* x, const REAL* y) { x[threadIdx.x] += y[threadIdx.x]; }"


@pytest.fixture
def counter(xp, tmp_path):
    return Counter(xp, kernel_file(tmp_path, ADD))


def test_from_the_second_time_on_a_graph_does_the_work(xp, counter):
    replay = Replay(xp, counter)
    for i in range(1, 6):
        replay()
        x = xp.zeros((4,))  # memory of others: the graph's is its own
        x.fill(9)
        assert list(counter.x.get()) == [i] * 4
    assert counter.calls == 2 and replay.reason is None
    assert fake_cuda.gpu.log == [] and replay.bytes_held > 0


def test_what_a_graph_worked_in_is_given_back(xp, counter):
    replay = Replay(xp, counter)
    for _ in range(3):
        replay()
    del replay
    gc.collect()
    assert fake_cuda.gpu.leaked_bytes == 0
    assert list(counter.x.get()) == [3] * 4


def test_a_graph_may_go_while_another_is_captured(xp, stream, counter):
    old = [Replay(xp, counter)]
    for _ in range(2):
        old[0]()

    def function():
        if stream.is_capturing():
            old.clear()
        counter()

    replay = Replay(xp, function)
    for _ in range(3):
        replay()
    assert replay.reason is None and not old
    assert list(counter.x.get()) == [5] * 4
    del replay
    gc.collect()
    assert replay_module._spent == []


@pytest.mark.parametrize("what, reason", [
    (lambda xp: xp.zeros(1).get(), "RuntimeError: the current stream is capturing, so D2H"),
    (lambda xp: xp.cuda.get_current_stream().synchronize(),
     "CUDARuntimeError: cudaErrorStreamCaptureUnsupported"),
    (lambda xp: xp.asarray(np.zeros(1)), "RuntimeError: the current stream is capturing, so H2D"),
])
def test_what_cannot_be_captured_is_launched_again_and_again(xp, counter, what, reason):
    def function():
        what(xp)
        counter()

    replay = Replay(xp, function)
    for i in range(1, 5):
        replay()
        assert list(counter.x.get()) == [i] * 4
    assert replay.reason.startswith(reason)
    assert not xp.cuda.get_current_stream().is_capturing()


def test_on_the_default_stream_nothing_is_captured(xp, stream, counter):
    stream.synchronize()  # it does not wait for ours
    with xp.cuda.Stream.null:
        replay = Replay(xp, counter)
        for _ in range(3):
            replay()
        assert list(counter.x.get()) == [3] * 4
    assert "default (legacy) stream" in replay.reason


def test_an_error_of_the_function_is_raised_as_it_is(xp, counter):
    def function():
        counter()
        raise ZeroDivisionError("as ever")

    replay = Replay(xp, function)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError, match="as ever"):
            replay()


# ---------------------------------------------------------------- training


K = 5


def train_on(place):
    """Train for four steps of two batches; return the step, and what is to be compared."""
    rng = np.random.default_rng(3)
    criterion = Criterion("combined", weight=rng.uniform(0.5, 2, K))
    model = build_model("mini", K, seed=0).astype(np.float64).to(place)
    optimizer = AdamW(model, 1e-3)
    ema = ExponentialMovingAverage(optimizer, model)
    step = DeviceStep(model, optimizer, clip_norm=0.5, ema=ema)
    for i in range(4):
        optimizer.lr = 1e-3 / (i + 1)
        step([draw_batch(rng), draw_batch(rng)], criterion)
    return step, step.read(), optimizer.flat.data.get(), ema.state_dict()


def draw_batch(rng):
    target = rng.integers(0, K, (2, 32, 32)).astype(np.uint8)
    target[:, :2] = 255
    return Batch(rng.standard_normal((2, 32, 32, 3)), target, ())


@pytest.fixture(scope="module")
def trained():
    return train_on(emulated_device)


def test_captured_steps_equal_those_of_the_emulated_device(xp, schedule, trained):
    _, expected_sums, expected_parameters, expected_averages = trained
    step, sums, parameters, averages = train_on(xp)
    assert step.why_not_captured is None and fake_cuda.gpu.log == []
    assert sums == pytest.approx(expected_sums, rel=1e-9)
    assert_agrees(parameters, expected_parameters, 1e-9)
    for name in averages:
        np.testing.assert_allclose(averages[name], expected_averages[name], rtol=1e-6, atol=1e-9)


def test_the_train_command_with_device_cuda(xp, tiny_folder, tmp_path, capsys):
    stream = xp.cuda.get_current_stream()
    assert run_command(train.main, [
        "--data", str(tiny_folder), "--output-dir", str(tmp_path / "run"), "--epochs", "2",
        "--device", "cuda", "--image-size", "32", "48", "--batch-size", "4", "--num-workers",
        "0"]) == 0
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in log] == [1, 2]
    assert all(np.isfinite(record["train_loss"]) for record in log)
    assert xp.cuda.get_current_stream() == stream
    assert capsys.readouterr().err == "" and fake_cuda.gpu.log == []


# ---------------------------------------------------------------- pytest -m gpu


def run_pytest(tmp_path, *arguments, **environment):
    """Run a file of the tests with `-m gpu` in a process that sees no GPU."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "gpu", "-rs", "-p", "no:cacheprovider", *arguments,
         "tests/test_elementwise.py"],
        capture_output=True, text=True, cwd=Path(__file__).parents[1],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": f"{tmp_path}:tests",
             "MINISEGNET_REQUIRE_GPU": "0", **environment})


def test_without_a_gpu_all_its_tests_are_skipped_for_one_reason(tmp_path):
    done = run_pytest(tmp_path)
    assert done.returncode == 0, done.stdout
    (summary,) = (line for line in done.stdout.splitlines() if line.startswith("no test of a GPU"))
    reasons = {line.partition(": ")[2] for line in done.stdout.splitlines()
               if line.startswith("SKIPPED")}
    assert reasons == {summary.removeprefix("no test of a GPU was run: ")}
    assert " passed" not in done.stdout
    done = run_pytest(tmp_path, MINISEGNET_REQUIRE_GPU="1")
    assert done.returncode == 4 and "--device cuda" in done.stderr


PLUGIN = """
import pathlib
import pytest
import fake_cupy
from minisegnet.cuda import emulated_device

folder = pathlib.Path(__file__).parent
fake_cupy.install(pytest.MonkeyPatch(), fake_cupy.compile_cublas(folder))


def pytest_sessionfinish():
    (folder / "launched").write_text(str(fake_cupy.launched))
"""


def test_with_a_gpu_the_tests_of_kernels_run_there(tmp_path, library):
    (tmp_path / "with_gpu.py").write_text(PLUGIN)
    done = run_pytest(tmp_path, "-p", "with_gpu")
    assert done.returncode == 0, done.stdout
    assert "kernels were run by a GPU that is none, CuPy 14.2.0" in done.stdout
    assert "SKIPPED" not in done.stdout
    assert int((tmp_path / "launched").read_text()) > 10
