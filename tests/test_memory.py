"""The estimate of a training step's memory: near what steps take, and harmless to make."""

import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from minisegnet.losses.criterion import Criterion
from minisegnet.models import build_model
from minisegnet.optim import SGD, AdamW, ExponentialMovingAverage, RMSprop
from minisegnet.training import memory
from minisegnet.training.memory import MIB, estimate_memory, format_estimate, machine_memory

K = 5
GIB = 2 ** 30


@pytest.fixture
def model():
    return build_model("mini", K)


def peak_of_step(model, size, batch_size, loss):
    """Return the peak of what NumPy allocates in forward, loss and backward, in bytes."""
    rng = np.random.default_rng(1)
    images = rng.standard_normal((batch_size, *size, 3), dtype=np.float32)
    target = rng.integers(0, K, (batch_size, *size), np.uint8)
    criterion = Criterion(loss)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    loss, cache = criterion.forward_upsampled(model.forward_coarse(images), target)
    model.backward_coarse(criterion.backward_upsampled(1.0, cache))
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    return peak


# ---------------------------------------------------------------- the estimate


@pytest.mark.parametrize("name, size, batch_size, loss", [
    ("mini", (128, 160), 2, "ce"), ("mini", (64, 48), 12, "combined"),
    ("mini", (150, 150), 3, "lovasz"), ("deeplab_light", (96, 128), 2, "ce")])
def test_the_estimate_is_within_a_quarter_of_a_real_step(name, size, batch_size, loss):
    model = build_model(name, K)
    estimate = estimate_memory(model, size, batch_size, loss=loss)
    peak = peak_of_step(model, size, batch_size, loss)
    assert 1 / 1.25 < (estimate.kept + estimate.temporary) / peak < 1.25


PROCESS = """if True:
    import ctypes, gc, re, sys
    from pathlib import Path
    from minisegnet.datasets import DataLoader, FloorPlans
    from minisegnet.losses.criterion import Criterion
    from minisegnet.models import build_model
    from minisegnet.optim import AdamW

    def resident(key):
        status = Path("/proc/self/status").read_text()
        return 1024 * int(re.search(key + r":\\s+(\\d+)", status)[1])

    def train(name, loss, data, batch_size):
        model, criterion = build_model(name, 12), Criterion(loss)
        optimizer = AdamW(model, 1e-3)
        for batch in DataLoader(data, batch_size).batches():
            optimizer.zero_grad()
            coarse = model.forward_coarse(batch.images)
            loss, cache = criterion.forward_upsampled(coarse, batch.target)
            model.backward_coarse(criterion.backward_upsampled(1.0, cache))
            optimizer.step()

    name, loss, H, W, batch_size = sys.argv[1:]
    data = FloorPlans(length=3 * int(batch_size), size=(int(H), int(W)))
    data.check()  # draws all plans, which stay
    train("mini", loss, FloorPlans(length=4, size=(64, 64)), 2)  # what a first use brings along
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again
    before = resident("VmRSS")
    train(name, loss, data, int(batch_size))
    print(resident("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name, size, batch_size, loss", [
    ("mini", (128, 160), 8, "combined"), ("mini", (128, 160), 8, "lovasz"),
    ("deeplab_light", (176, 240), 8, "ce"), ("deeplab_baseline", (176, 240), 4, "ce"),
    ("unet_small", (176, 240), 2, "ce")])
def test_a_process_that_trains_grows_by_the_estimate(name, size, batch_size, loss):
    words = [name, loss, *size, batch_size]
    grown = int(subprocess.run([sys.executable, "-c", PROCESS, *map(str, words)], check=True,
                               capture_output=True, text=True).stdout)
    estimate = estimate_memory(build_model(name, 12), size, batch_size, loss=loss)
    assert 1 / 1.25 < estimate.total / grown < 1.25


def test_an_absurd_size_is_estimated_without_being_made(model):
    tracemalloc.start()
    estimate = estimate_memory(model, (8192, 8192), 64)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert estimate.total > 2 ** 40 and peak < 30 * MIB


def test_what_grows_with_the_pixels_of_the_batch_and_what_does_not(model):
    small, large = estimate_memory(model, (100, 60), 2), estimate_memory(model, (200, 60), 6)
    assert large.weights == small.weights
    for part in ("kept", "temporary", "batches"):
        assert getattr(large, part) == pytest.approx(6 * getattr(small, part), rel=0.02)
    assert small.total == small.weights + small.kept + small.temporary + small.batches


def test_lovasz_counts_the_logits_at_full_size(model):
    ce, lovasz = (estimate_memory(model, (64, 64), 8, loss=loss) for loss in ("ce", "lovasz"))
    logits = 8 * 64 * 64 * K * 4
    assert lovasz.temporary > ce.temporary + 2 * logits
    assert lovasz.kept == pytest.approx(ce.kept, rel=0.02)


@pytest.mark.parametrize("name, kind, options", [
    ("adamw", AdamW, {}), ("rmsprop", RMSprop, {"momentum": 0.9}),
    ("sgd", SGD, {"momentum": 0.9})])
def test_weights_are_parameters_gradients_and_the_optimizers_state(model, name, kind, options):
    optimizer = kind(model, 1e-3, **options)
    state = sum(array.nbytes for array in optimizer.state.values())
    expected = optimizer.flat.data.nbytes + optimizer.flat.grad.nbytes + state
    estimate = estimate_memory(model, (64, 64), 2, optimizer=name)
    assert estimate.weights == expected

    average = ExponentialMovingAverage(optimizer, model).state_dict()
    average.pop("num_updates")
    averaged = estimate_memory(model, (64, 64), 2, optimizer=name, ema=True)
    assert averaged.weights == expected + sum(array.nbytes for array in average.values())


def test_batches_are_those_in_use_and_those_loaded_ahead(model):
    one, four = (estimate_memory(model, (50, 40), 6, accumulate=n) for n in (1, 4))
    batch = 6 * 50 * 40 * (3 * 4 + 1)
    assert one.batches == 3 * batch and four.batches == 6 * batch


def test_the_model_is_left_as_it_was(model):
    optimizer = AdamW(model, 1e-3)
    model.eval()
    dropout = next(layer for _, layer in model.named_layers() if hasattr(layer, "rng"))
    arrays = [array for named in (model.named_parameters, model.named_gradients,
                                  model.named_buffers) for _, array in named()]
    before = [array.copy() for array in arrays]
    drawn = dropout.rng.bit_generator.state
    estimate_memory(model, (64, 64), 2)
    for array, copy in zip(arrays, before):
        np.testing.assert_array_equal(array, copy)
    optimizer.flat.check_bound()
    assert dropout.rng.bit_generator.state == drawn
    assert not model.training
    assert all(layer._cache is None for _, layer in model.named_layers())


def test_a_trace_that_runs_already_goes_on(model):
    alone = estimate_memory(model, (64, 64), 2)
    assert not tracemalloc.is_tracing()
    tracemalloc.start()
    try:
        np.ones(10 ** 8, np.uint8)  # the peak so far is none of the step's
        assert estimate_memory(model, (64, 64), 2).total == pytest.approx(alone.total, rel=0.01)
        assert tracemalloc.is_tracing()
    finally:
        tracemalloc.stop()


# ---------------------------------------------------------------- what the machine has


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


MEMINFO = {"proc/meminfo": "MemTotal:  16777216 kB\nMemFree: 1 kB\nMemAvailable:  8388608 kB\n"}


def test_available_memory_is_the_kernels_word(tmp_path):
    write(tmp_path, MEMINFO)
    assert machine_memory(tmp_path) == 8 * GIB


@pytest.mark.parametrize("limited", ["", "batch/", "batch/job_7/"])
def test_a_limit_of_a_control_group_or_one_above_holds(tmp_path, limited):
    write(tmp_path, {**MEMINFO, "proc/self/cgroup": "0::/batch/job_7\n"})
    for group in ("", "batch/", "batch/job_7/"):
        folder = f"sys/fs/cgroup/{group}"
        limit = 4 * GIB if group == limited else "max"
        write(tmp_path, {f"{folder}memory.max": f"{limit}\n",
                         f"{folder}memory.current": f"{3 * GIB}\n",
                         f"{folder}memory.stat": f"anon 5\ninactive_file {GIB}\n"})
    assert machine_memory(tmp_path) == 2 * GIB  # files in the cache give way


def test_a_container_of_the_older_kind_has_its_limit_at_the_top(tmp_path):
    write(tmp_path, {
        **MEMINFO,
        "proc/self/cgroup": "5:cpu,cpuacct:/docker/4f\n4:memory:/docker/4f\n0::/docker/4f\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": str(3 * GIB),
        "sys/fs/cgroup/memory/memory.usage_in_bytes": str(GIB),
        "sys/fs/cgroup/memory/memory.stat": f"inactive_file 7\ntotal_inactive_file {GIB // 2}\n"})
    assert machine_memory(tmp_path) == 2.5 * GIB


def test_a_full_group_has_nothing_left(tmp_path):
    write(tmp_path, {**MEMINFO, "proc/self/cgroup": "0::/\n",
                     "sys/fs/cgroup/memory.max": "1000", "sys/fs/cgroup/memory.current": "1200"})
    assert machine_memory(tmp_path) == 0


def test_elsewhere_it_is_the_physical_memory_or_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}.get,
                        raising=False)
    assert machine_memory(tmp_path) == 4096000
    monkeypatch.delattr(os, "sysconf")
    assert machine_memory(tmp_path) is None


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel")
def test_this_machine_has_some_memory_left():
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < machine_memory() <= physical


# ---------------------------------------------------------------- in words


def of(batch_size, weights=100):
    """Return an estimate of so many MiB for weights and 50 for each image."""
    return memory.MemoryEstimate(weights * MIB, 40 * batch_size * MIB, 8 * batch_size * MIB,
                                 2 * batch_size * MIB, batch_size)


def test_the_parts_and_the_sum_are_shown():
    lines = format_estimate(of(8), 1000 * MIB).splitlines()
    assert "about 500 MiB" in lines[0]
    assert [line.split()[-2] for line in lines[1:-1]] == ["100", "320", "64", "16"]
    assert lines[-1].strip() == "1,000 MiB are left: fits"


@pytest.mark.parametrize("left, verdict", [
    (625, "fits"), (620, "fits barely"), (500, "fits barely"), (499, "does not fit")])
def test_an_estimate_near_the_limit_is_not_called_safe(left, verdict):
    said = format_estimate(of(8), left * MIB).splitlines()[-1].partition(": ")[2]
    assert said.partition(";")[0] == verdict


@pytest.mark.parametrize("left", [260, 300, 499])
def test_the_batch_size_that_is_proposed_fits_and_the_next_does_not(left):
    words = format_estimate(of(8), left * MIB).replace(";", "").split()
    proposed = int(words[words.index("--batch-size") + 1])
    parts = int(words[words.index("--accumulate") + 1])
    assert of(proposed).total <= 0.8 * left * MIB < of(proposed + 1).total
    assert proposed * parts >= 8 > proposed * (parts - 1)


def test_where_no_batch_fits_the_pictures_must_shrink():
    said = format_estimate(of(8), 200 * MIB)
    assert "does not fit" in said and "--batch-size" not in said
    assert "--image-size" in said and "--scale" in said and "--model" in said
    assert "does not fit" in format_estimate(of(8), 0)


def test_an_unknown_machine_gets_no_verdict():
    said = format_estimate(of(8), None)
    assert "fit" not in said and "not known" in said
