"""On a GPU alone: what no emulator can tell."""

import numpy as np
import pytest

from minisegnet.cuda import compile_gate
from minisegnet.cuda.upload import Uploader
from minisegnet.datasets.loader import Batch
from minisegnet.losses import Criterion
from minisegnet.models import build_model
from minisegnet.optim import AdamW
from minisegnet.training.device_step import DeviceStep
from minisegnet.verify.__main__ import main as verify

pytestmark = pytest.mark.gpu
KERNEL_FILES = compile_gate.find_kernel_files()


@pytest.fixture
def xp():
    import gpu_run

    return gpu_run.xp


@pytest.mark.parametrize("pair", compile_gate.PAIRS, ids="-".join)
@pytest.mark.parametrize("file", KERNEL_FILES, ids=lambda file: file.path.stem)
def test_every_kernel_is_compiled_and_loaded(xp, file, pair):
    if pair not in compile_gate.pairs_of(file):
        pytest.skip("stores nothing in 16 bits")
    module = file._gpu_module(*pair)
    for name in file.names:
        module.get_function(name)


def draw_batch(rng, N, H, W):
    images = rng.standard_normal((N, H, W, 3)).astype(np.float32)
    return Batch(images, rng.integers(0, 5, (N, H, W)).astype(np.uint8), ())


@pytest.mark.parametrize("name", ["deeplab_light", "deeplab_baseline", "unet_small"])
def test_a_graph_does_bit_for_bit_what_launches_do(xp, rng, name):
    batches = [draw_batch(rng, 2, 64, 96) for _ in range(4)]
    results = []
    for replay in (True, False):
        model = build_model(name, 5, seed=0).to(xp)
        optimizer = AdamW(model, 1e-3)
        step = DeviceStep(model, optimizer, clip_norm=1.0, replay=replay)
        criterion = Criterion("combined")
        for batch in batches:
            step([batch], criterion)
        assert step.why_not_captured is None
        results.append((step.read(), optimizer.flat.data.get()))
    (sums, parameters), (expected_sums, expected) = results
    assert sums == expected_sums
    np.testing.assert_array_equal(parameters, expected)


def test_large_batches_arrive_whole_while_the_gpu_computes(xp, rng):
    shape = (4, 256, 256, 3)
    uploader = Uploader(xp, [np.zeros(shape, np.float32)])
    host, seen = np.empty(shape, np.float32), []
    for i in range(20):
        host.fill(i)
        uploader.upload([host])
        seen.append(uploader.arrays[0].copy())
        for _ in range(20):
            seen[-1][...] = seen[-1].copy()
    for i, array in enumerate(seen):
        assert (array.get() == i).all()


def test_reading_an_array_with_gaps_leaves_our_stream_the_current_one(xp):
    stream = xp.cuda.get_current_stream()
    assert stream != xp.cuda.Stream.null
    xp.zeros((3, 3), np.float32)[:, 1].get()
    assert xp.cuda.get_current_stream() == stream


def test_verify_finds_nothing(capsys):
    status = verify(["--device", "cuda"])
    assert status == 0, capsys.readouterr().out
