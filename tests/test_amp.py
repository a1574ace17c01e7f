"""Training in mixed precision: steps, the loss scale at work in them, and the command."""

import json
import sys
from functools import partial
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from checks import assert_agrees, assert_refused

from minisegnet import ops, train
from minisegnet.blocks import conv_norm_activation
from minisegnet.cuda import emulated_device
from minisegnet.datasets.loader import Batch
from minisegnet.errors import run_command
from minisegnet.layers import Conv2d, Layer
from minisegnet.losses.criterion import Criterion
from minisegnet.models import build_model
from minisegnet.optim import SGD, AdamW, RMSprop
from minisegnet.training import loss_scale as loss_scale_module
from minisegnet.training.build import activation_dtype
from minisegnet.training.checkpoint import save_checkpoint
from minisegnet.training.device_step import DeviceStep
from minisegnet.training.loss_scale import LossScale
from minisegnet.training.settings import parse_settings
from minisegnet.training.trainer import Trainer
from minisegnet.verify.gradcheck import relative_error

pytestmark = pytest.mark.usefixtures("compiler")

K = 5
BRAIN = np.dtype(ml_dtypes.bfloat16)


def on_device(array):
    return emulated_device.asarray(array)


@pytest.fixture(autouse=True)
def _quiet():
    """Let the emulated device overflow without a word, as a GPU does."""
    with np.errstate(over="ignore", invalid="ignore"):
        yield


# ---------------------------------------------------------------- steps


class Tiny(Layer):
    """A model that takes little to compute: three convolutions, one of each kind."""

    num_classes = K

    def __init__(self, seed=0):
        super().__init__()
        rng = np.random.default_rng(seed)
        self.stem = conv_norm_activation(3, 8, 3, stride=2, rng=rng)
        self.body = conv_norm_activation(8, 8, 3, rng=rng)
        self.classifier = Conv2d(8, K, 1, rng=rng)

    def forward_coarse(self, images):
        return self.classifier.forward(self.body.forward(self.stem.forward(images)))

    def backward_coarse(self, dcoarse):
        self.stem.backward(self.body.backward(self.classifier.backward(dcoarse)),
                           input_gradient=False)


def draw_batch(rng):
    return Batch(rng.standard_normal((2, 16, 24, 3)).astype(np.float32),
                 rng.integers(0, K, (2, 16, 24)).astype(np.uint8), ())


def make_step(dtype=np.float16, lr=1e-2, replay=True, clip_norm=0.0, kind=AdamW, **scale):
    model = Tiny().to(emulated_device)
    optimizer = kind(model, lr, weight_decay=0.0)
    return DeviceStep(model, optimizer, dtype=dtype, replay=replay, clip_norm=clip_norm,
                      loss_scale=LossScale(emulated_device, **scale) if scale else None)


def weights(step):
    return step.optimizer.flat.data.get()


@pytest.mark.parametrize("dtype", [np.dtype(np.float16), BRAIN], ids=str)
def test_weights_keep_what_16_bits_could_not(rng, dtype):
    step = make_step(dtype, lr=1e-6, start=2.0 ** 10)
    before = weights(step)
    step([draw_batch(rng)], Criterion("ce"))
    moved = weights(step) - before
    assert moved.dtype == np.float32
    # AdamW's first step is lr in each weight, and no step at all where weights are of 16 bits.
    np.testing.assert_allclose(np.abs(moved[before > 0.1]), 1e-6, rtol=0.1)
    assert {str(array.dtype) for array in step.optimizer.state.values()} == {"float32"}


@pytest.mark.parametrize("loss", ["focal", "dice", "logit_adjusted", "combined"])
def test_small_gradients_underflow_without_a_scale_and_do_not_with_one(rng, loss):
    batch, small = draw_batch(rng), 1e-7

    def gradient(dtype, full, **scale):
        model = Tiny().to(emulated_device)
        images, target = on_device(batch.images), on_device(batch.target)
        images = images if dtype == np.float32 else ops.cast(images, dtype)
        coarse = model.forward_coarse(images)
        if full:  # as a UNet's, of the target's size
            target = on_device(np.ascontiguousarray(batch.target[:, ::2, ::2]))
        _, cache = criterion.forward_upsampled(coarse, target)
        given = {name: on_device(np.array([value], np.float32)) for name, value in scale.items()}
        model.backward_coarse(criterion.backward_upsampled(small, cache, **given))
        return np.concatenate([array.get().ravel() for _, array in model.named_gradients()])

    criterion = Criterion(loss, prior=np.full(K, 1 / K))
    for full in (False, True):
        exact = gradient(np.float32, full)
        assert relative_error(gradient(np.float16, full), exact) > 0.5
        scaled = gradient(np.float16, full, loss_scale=2.0 ** 24) / np.float32(2.0 ** 24)
        assert_agrees(scaled, exact, 8 * 2.0 ** -11)
        # bfloat16 has the exponents of float32.
        assert_agrees(gradient(BRAIN, full), exact, 32 * 2.0 ** -8)


@pytest.mark.parametrize("clip_norm", [0.0, 0.1])
@pytest.mark.parametrize("kind, lr", [(AdamW, 1e-3), (SGD, 0.1), (RMSprop, 1e-3)])
def test_a_scale_changes_rounding_alone(rng, kind, lr, clip_norm):
    batches = [[draw_batch(rng)] for _ in range(3)]
    results = []
    # Powers of two: the same numbers but for what underflows.
    for start in (2.0 ** 12, 2.0 ** 16):
        step = make_step(start=start, kind=kind, lr=lr, clip_norm=clip_norm)
        before = weights(step)
        for batch in batches:
            step(batch, Criterion("ce"))
        results.append((weights(step) - before, step.read()))
    assert_agrees(results[0][0], results[1][0], 1e-3)
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-3)
    single = make_step(dtype=None, kind=kind, lr=lr, clip_norm=clip_norm)
    for batch in batches:
        single(batch, Criterion("ce"))
    # Roundings of a gradient near 0 turn the first steps of AdamW and RMSprop.
    assert_agrees(weights(single) - before, results[0][0], 0.02 if kind is SGD else 0.3)
    assert single.read() == pytest.approx(results[0][1], rel=2e-2)


def test_an_overflow_skips_the_step_halves_the_scale_and_recovers(rng):
    step = make_step(start=2.0 ** 28)
    batch, criterion = [draw_batch(rng)], Criterion("ce")
    before, values = weights(step), [2.0 ** 28]
    while True:
        waits = emulated_device.synchronisations
        step(batch, criterion)
        assert emulated_device.synchronisations == waits
        values.append(step.loss_scale.value)
        if values[-1] == values[-2]:
            break
        np.testing.assert_array_equal(weights(step), before)
    skipped = len(values) - 2
    assert 3 <= skipped < 20 and values[-1] == 2.0 ** (28 - skipped)
    assert (weights(step) != before).any()
    sums = step.read()
    assert sums["skipped"] == skipped
    # The sums have the norm of the one step that was done, and every loss.
    assert 0 < sums["gradient_norm"] < 10 and np.isfinite(sums["train_loss"])
    assert step.loss_scale.state_dict() == {"scale": values[-1], "good_steps": 1,
                                            "skipped": skipped}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_replayed_steps_are_those_run_as_written(rng, accumulate):
    batches = [[draw_batch(rng) for _ in range(accumulate)] for _ in range(9)]
    results = []
    for replay in (True, False):
        step = make_step(replay=replay, start=2.0 ** 25, growth_interval=2)
        scales = []
        for batch in batches:
            step(batch, Criterion("combined"))
            scales.append(step.loss_scale.value)
        results.append((weights(step), scales, step.loss_scale.state_dict(), step.read()))
    (one, *rest), (other, *others) = results
    np.testing.assert_array_equal(one, other)
    assert rest == others
    # It fell, and rose again.
    assert min(np.diff(rest[0])) < 0 < max(np.diff(rest[0]))


def test_an_activation_beyond_float16_that_no_loss_shows_is_told(rng):
    step = make_step(start=2.0 ** 10)
    step.model.stem.conv.params["weight"].fill(1e8)
    batch = draw_batch(rng)
    batch.target[:] = 255  # all logits are NaN, and no pixel counts in the loss
    step([batch], Criterion("ce"))
    trainer = Trainer(step.model, *[None] * 5, epochs=1, device_step=step)
    assert_refused(trainer._read_device, "stem.norm.running_mean is not finite", "--amp bf16")


@pytest.mark.parametrize("loss", ["ce", "focal", "dice", "tversky", "combined", "logit_adjusted"])
@pytest.mark.parametrize("dtype, scale", [(np.float32, {}), (np.float16, {"start": 8.0})],
                         ids=["float32", "float16"])
def test_a_step_with_logits_that_are_no_number_is_skipped(rng, dtype, scale, loss):
    step = make_step(None if dtype is np.float32 else dtype, **scale)
    step.model.classifier.params["bias"].fill(np.nan)
    before = weights(step)
    options = {"prior": np.full(K, 1 / K)} if loss == "logit_adjusted" else {}
    step([draw_batch(rng)], Criterion(loss, **options))
    sums = step.read()
    assert np.isnan(sums["train_loss"]) and sums["skipped"] == 1
    np.testing.assert_array_equal(weights(step), before)


def test_the_mean_norm_of_an_epoch_is_that_of_the_steps_done():
    trainer = Trainer(*[None] * 6, epochs=1, device_step=SimpleNamespace(
        loss_scale=LossScale(emulated_device, start=8.0)))
    trainer.totals = {"train_loss": 6.0, "gradient_norm": 3.0, "skipped_steps": 3, "steps": 4}
    assert trainer._means() == {"train_loss": 1.5, "gradient_norm": 3.0, "skipped_steps": 3,
                                "loss_scale": 8.0}
    trainer.device_step = None
    trainer.totals = {"train_loss": 6.0, "gradient_norm": 3.0, "steps": 4}
    assert trainer._means() == {"train_loss": 1.5, "gradient_norm": 0.75}


# ---------------------------------------------------------------- commands

SIZE = ["--image-size", "16", "24", "--batch-size", "4", "--num-workers", "0"]


@pytest.fixture
def gpu(monkeypatch):
    """`--device cuda` gives the emulated device, and no pictures are drawn."""
    monkeypatch.setattr(train, "select_device",
                        lambda device: emulated_device if device == "cuda" else np)
    monkeypatch.setattr(train, "draw_results", lambda *arguments: None)


def run_train(*arguments):
    return run_command(train.main, [*map(str, arguments)])


def records(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_run_in_float16_goes_on_where_it_was(gpu, tiny_folder, tmp_path, monkeypatch, capsys):
    # Too high a scale, so that there is something to go on with.
    monkeypatch.setattr(train, "LossScale", partial(LossScale, start=2.0 ** 23, growth_interval=2))
    base = ["--data", tiny_folder, "--device", "cuda", "--amp", "fp16", "--lr", "1e-3",
            "--schedule", "constant", *SIZE]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run_train(*base, "--output-dir", whole, "--epochs", 2) == 0
    printed = capsys.readouterr().out
    assert "--amp fp16: activations of 16 bits" in printed
    assert run_train(*base, "--output-dir", parts, "--epochs", 1) == 0
    assert run_train("--resume", parts, "--epochs", 2) == 0
    with np.load(whole / "last.npz") as one, np.load(parts / "last.npz") as other:
        for name in one.files:
            if name != "meta":
                np.testing.assert_array_equal(one[name], other[name], err_msg=name)
        states = [json.loads(str(each["meta"]))["progress"]["loss_scale"]
                  for each in (one, other)]
    assert states[0] == states[1] and states[0]["skipped"] > 0
    for ours, theirs in zip(records(whole), records(parts), strict=True):
        for record in (ours, theirs):
            del record["seconds"]
        assert ours == theirs
    first = records(whole)[0]
    assert first["skipped_steps"] > 0 and first["loss_scale"] < 2.0 ** 23
    assert (f"skipped {first['skipped_steps']} steps, loss scale "
            f"{first['loss_scale']:g}") in printed


def test_a_run_in_bfloat16_and_back_in_float32(gpu, tiny_folder, tmp_path, capsys):
    folder = tmp_path / "run"
    assert run_train("--data", tiny_folder, "--output-dir", folder, "--device", "cuda", "--amp",
                     "bf16", "--schedule", "constant", "--epochs", 1, *SIZE) == 0
    assert 'amp = "bf16"' in (folder / "config.toml").read_text()
    assert "loss_scale" not in records(folder)[0] and "skipped" not in capsys.readouterr().out
    with np.load(folder / "best.npz") as saved:
        assert {str(saved[name].dtype) for name in saved.files if name != "meta"} <= {"float32"}
    assert run_train("--resume", folder, "--epochs", 2, "--device", "cpu") == 2
    assert "--amp off" in capsys.readouterr().err
    assert run_train("--resume", folder, "--epochs", 2, "--device", "cpu", "--amp", "off") == 0
    assert [record["epoch"] for record in records(folder)] == [1, 2]


@pytest.mark.parametrize("scale, first_steps, words", [
    ({"start": 2.0 ** 60, "backoff": 2.0 ** -70}, 16, ["the loss scale fell to", "--amp bf16"]),
    ({"start": 2.0 ** 60}, 0, ["all steps of an epoch were skipped, 2 before", "--amp bf16"]),
], ids=["below 1", "all skipped"])
def test_what_float16_cannot_bear_ends_the_run(gpu, tiny_folder, tmp_path, monkeypatch, capsys,
                                               scale, first_steps, words):
    monkeypatch.setattr(train, "LossScale", partial(LossScale, **scale))
    monkeypatch.setattr(loss_scale_module, "FIRST_STEPS", first_steps)
    assert run_train("--data", tiny_folder, "--output-dir", tmp_path / "run", "--device", "cuda",
                     "--amp", "fp16", "--epochs", 1, *SIZE) == 2
    error = capsys.readouterr().err.strip()
    assert all(word in error for word in words) and "\n" not in error


def test_a_loss_beyond_float16_is_told_as_such(gpu, tiny_folder, tmp_path, capsys):
    assert run_train("--data", tiny_folder, "--output-dir", tmp_path / "run", "--device", "cuda",
                     "--amp", "fp16", "--lr", "1e6", "--loss", "ce", "--epochs", 9, *SIZE) == 2
    error = capsys.readouterr().err.strip()
    assert "the loss was not finite" in error and "--amp bf16" in error and "--amp off" in error


def test_dice_tells_of_an_activation_beyond_float16(gpu, tiny_folder, tmp_path, capsys):
    start = tmp_path / "start.npz"
    model = build_model("mini", 3, seed=0)
    # One channel overflows, and its batch norm makes NaN of all logits.
    model.stage2.depthwise.conv.params["weight"][..., 0] = 1e8
    save_checkpoint(start, model, meta={})
    assert run_train("--data", tiny_folder, "--output-dir", tmp_path / "run", "--device", "cuda",
                     "--amp", "fp16", "--init-from", start, "--loss", "dice", *SIZE) == 2
    error = capsys.readouterr().err.strip()
    assert "the loss was not finite" in error and "--amp bf16" in error


@pytest.mark.parametrize("arguments, word", [
    (["--amp", "fp16", "--device", "cpu"], "NumPy computes in float32"),
    (["--amp", "bf16", "--device", "auto"], "needs a GPU, and this computes on the CPU"),
    (["--amp", "bf16", "--device", "cuda", "--debug"], "--debug"),
    (["--amp", "fp16", "--device", "auto", "--loss", "ohem"], "--loss ohem"),
    (["--amp", "fp8", "--device", "cuda"], "fp8"),
], ids=str)
def test_where_there_is_no_mixed_precision_it_is_refused(gpu, tiny_folder, tmp_path, capsys,
                                                         arguments, word):
    assert run_train("--data", tiny_folder, "--output-dir", tmp_path / "run", *SIZE,
                     *arguments) == 2
    assert word in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_what_bfloat16_needs_is_asked_for(monkeypatch):
    class Old:
        """The array module of a GPU of the generation Turing."""

        class cuda:
            class Device:
                compute_capability = "75"

    assert_refused(lambda: activation_dtype("bf16", Old), "Ampere", "--amp fp16")
    assert activation_dtype("fp16", Old) == np.float16
    assert activation_dtype("off", np) is None
    assert parse_settings([]).amp == "off"
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    assert_refused(lambda: activation_dtype("bf16", emulated_device), "pip install ml_dtypes")
