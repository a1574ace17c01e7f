"""Whole models and whole trainings on a device, emulated or a GPU: they equal NumPy's."""

import math

import numpy as np
import pytest
from checks import assert_agrees

from minisegnet import datasets
from minisegnet.backend import asnumpy
from minisegnet.cuda import emulated_device
from minisegnet.cuda.launch import record_launches
from minisegnet.datasets.loader import Batch
from minisegnet.layers import Dropout, freeze_batch_norm
from minisegnet.losses.criterion import Criterion
from minisegnet.metrics import ConfusionMatrix
from minisegnet.models import build_model
from minisegnet.optim import AdamW, ExponentialMovingAverage, clip_grad_norm
from minisegnet.training.device_step import DeviceStep
from minisegnet.training.evaluation import evaluate, predict_batch

pytestmark = pytest.mark.usefixtures("compiler")

K = 5


def twins(xp, name, dtype=np.float64, seed=0):
    """Return the same model on the host and on the device, without dropout."""
    models = [build_model(name, K, seed=seed).astype(dtype) for _ in range(2)]
    for model in models:
        for _, layer in model.named_layers():
            if isinstance(layer, Dropout):
                layer.p = 0.0
    return models[0], models[1].to(xp)


def draw_batch(rng, shape, dtype=np.float64):
    target = rng.integers(0, K, shape).astype(np.uint8)
    target[:, :2] = 255
    return Batch(rng.standard_normal((*shape, 3)).astype(dtype), target, ())


@pytest.mark.parametrize("name, shape", [
    ("mini", (2, 19, 25)), ("deeplab_light", (2, 32, 33)), ("deeplab_baseline", (2, 32, 32)),
    ("unet_small", (2, 19, 32))])
def test_every_gradient_of_a_model_is_numpys(xp, rng, name, shape):
    host, device = twins(xp, name)
    images = rng.standard_normal((*shape, 3))
    coarse = host.forward_coarse(images)
    dcoarse = rng.standard_normal(coarse.shape)
    host.backward_coarse(dcoarse)

    waits = emulated_device.synchronisations
    on_device = device.forward_coarse(xp.asarray(images))
    device.backward_coarse(xp.asarray(dcoarse))
    assert emulated_device.synchronisations == waits
    assert_agrees(on_device.get(), coarse, 1e-11)
    whole = math.sqrt(sum((g ** 2).sum() for _, g in host.named_gradients()))
    for (path, expected), (_, gradient) in zip(host.named_gradients(), device.named_gradients()):
        difference = np.linalg.norm(gradient.get() - expected)
        # Some gradients are mathematically zero, hence the second term.
        assert difference <= 1e-9 * max(np.linalg.norm(expected), 1e-6 * whole), path
    for (path, expected), (_, buffer) in zip(host.named_buffers(), device.named_buffers()):
        # Means of what a zero mean went into are zero but for rounding.
        np.testing.assert_allclose(buffer.get(), expected, rtol=1e-10, atol=1e-12, err_msg=path)


@pytest.mark.parametrize("name, most", [("deeplab_light", 407), ("deeplab_baseline", 397),
                                        ("unet_small", 247)])
def test_forward_and_backward_take_no_more_launches_than_ever(xp, rng, name, most):
    # On small maps a launch costs more than what it computes. Dropout would take three more.
    _, device = twins(xp, name, np.float32)
    images = xp.asarray(rng.standard_normal((2, 32, 48, 3)).astype(np.float32))
    with record_launches() as launches:
        dcoarse = device.forward_coarse(images)
        device.backward_coarse(dcoarse)
    assert len(launches) <= most


def test_evaluation_uses_the_running_statistics_as_numpy_does(xp, rng):
    host, device = twins(xp, "mini")
    for model in (host, device):
        for i, (_, buffer) in enumerate(model.named_buffers()):
            drawn = np.random.default_rng(i).uniform(0.5, 1.5, buffer.shape)
            buffer[...] = model.xp.asarray(drawn)
    images = rng.standard_normal((1, 40, 56, 3))
    np.testing.assert_array_equal(predict_batch(device, images, (37, 50)),
                                  predict_batch(host, images, (37, 50)))


def host_step(model, optimizer, batches, criterion, ema):
    """A training step on the host, as simple as can be."""
    from minisegnet.losses.criterion import WholeBatch

    optimizer.zero_grad()
    whole = None
    if len(batches) > 1:
        counts = sum(np.bincount(batch.target[batch.target < K], minlength=K) for batch in batches)
        whole = WholeBatch(counts, len(batches))
    total = 0.0
    for batch in batches:
        loss, cache = criterion.forward_upsampled(model.forward_coarse(batch.images), batch.target,
                                                  whole=whole)
        total += float(loss)
        model.backward_coarse(criterion.backward_upsampled(1.0, cache))
    norm = clip_grad_norm(optimizer, 0.5)
    optimizer.step()
    ema.update()
    return total, norm


@pytest.mark.parametrize("loss, accumulate", [("ce", 1), ("focal", 1), ("combined", 1),
                                              ("dice", 2), ("combined", 2)])
def test_steps_equal_numpys_also_when_they_are_replayed(xp, rng, loss, accumulate):
    host, device = twins(xp, "mini")
    weight = rng.uniform(0.5, 2, K)
    criterion = Criterion(loss, weight=weight)
    sides = []
    for model in (host, device):
        optimizer = AdamW(model, 1e-3, decay_norm_and_bias=False)
        sides.append((optimizer, ExponentialMovingAverage(optimizer, model)))
    (optimizer, ema), (device_optimizer, device_ema) = sides
    step = DeviceStep(device, device_optimizer, clip_norm=0.5, ema=device_ema)
    losses, norms = [], []
    for i in range(5):  # the first as written, the second recorded, the others repeated
        batches = [draw_batch(rng, (2, 16, 24)) for _ in range(accumulate)]
        optimizer.lr = device_optimizer.lr = 1e-3 / (i + 1)
        total, norm = host_step(host, optimizer, batches, criterion, ema)
        losses.append(total)
        norms.append(norm)
        waits = emulated_device.synchronisations
        step(batches, criterion)
        assert emulated_device.synchronisations == waits
    assert step.why_not_captured is None
    sums = step.read()
    assert sums["train_loss"] == pytest.approx(sum(losses), rel=1e-9)
    assert sums["gradient_norm"] == pytest.approx(sum(norms), rel=1e-6)
    assert sums["skipped"] == 0
    assert_agrees(device_optimizer.flat.data.get(), optimizer.flat.data, 1e-7)
    ours, theirs = ema.state_dict(), device_ema.state_dict()
    assert ours.keys() == theirs.keys()
    for name in ours:
        # Averages of running means that are zero but for rounding.
        np.testing.assert_allclose(theirs[name], ours[name], rtol=1e-6, atol=1e-9, err_msg=name)


def test_what_is_frozen_stays_and_thaws(xp, rng):
    host, device = twins(xp, "mini")
    criterion = Criterion("ce")
    optimizer, device_optimizer = AdamW(host, 1e-3), AdamW(device, 1e-3)
    ema = ExponentialMovingAverage(optimizer, host)
    step = DeviceStep(device, device_optimizer, clip_norm=0.5)
    for frozen in (True, True, True, False, False, False):
        for model, each in ((host, optimizer), (device, device_optimizer)):
            model.backbone.frozen = frozen
            freeze_batch_norm(model.backbone, frozen)
            each.set_lr_scale("backbone", 0.0 if frozen else 1.0)
        batch = draw_batch(rng, (2, 32, 32))
        host_step(host, optimizer, [batch], criterion, ema)
        step([batch], criterion)
        assert_agrees(device_optimizer.flat.data.get(), optimizer.flat.data, 1e-7)


def test_graphs_of_earlier_sizes_are_let_go(xp, rng):
    _, device = twins(xp, "mini")
    step, criterion = DeviceStep(device, AdamW(device, 1e-3)), Criterion("ce")
    for i, side in enumerate((32, 40, 48, 32, 32), start=1):
        step([draw_batch(rng, (2, side, 32))], criterion)
        assert len(step._prepared) == min(i, 2)
    assert math.isfinite(step.read()["train_loss"])


def test_a_gradient_that_is_not_finite_changes_nothing_and_is_counted(xp, rng):
    _, device = twins(xp, "mini")
    optimizer = AdamW(device, 1e-3)
    step = DeviceStep(device, optimizer)
    good, bad = (draw_batch(rng, (2, 32, 32)) for _ in range(2))
    bad.images[0, 5, 5, 0] = np.inf
    for batch in (good, good, good):
        step([batch], Criterion("ce"))
    before = optimizer.flat.data.get()
    with np.errstate(all="ignore"):
        step([bad], Criterion("ce"))
    np.testing.assert_array_equal(optimizer.flat.data.get(), before)
    assert step.read()["skipped"] == 1


def test_dropout_draws_anew_in_every_step_and_repeats_after_its_state(xp, rng):
    device = build_model("mini", K, seed=0).to(xp)
    step = DeviceStep(device, AdamW(device, 0.0))
    batch = draw_batch(rng, (2, 32, 48), np.float32)
    criterion = Criterion("ce")
    losses = []
    for _ in range(4):
        step([batch], criterion)
        losses.append(step.read()["train_loss"])
    assert len(set(losses)) == 4


def test_evaluate_counts_what_numpy_counts(xp, rng):
    host, device = twins(xp, "mini", np.float32)
    dataset = datasets.FloorPlans("val", length=4, size=(64, 80), seed=3)
    loader = datasets.DataLoader(dataset, 2, num_workers=0)
    criterion = Criterion("ce", weight=np.linspace(1, 2, dataset.num_classes))
    models = [build_model("mini", dataset.num_classes, seed=0) for _ in range(2)]
    loss, confusion = evaluate(models[0], loader, criterion)
    device_loss, device_confusion = evaluate(models[1].to(xp), loader, criterion)
    assert device_loss == pytest.approx(loss, rel=1e-5)
    assert isinstance(confusion, ConfusionMatrix)
    # A rounding may turn a pixel between two classes that are equally likely.
    assert np.abs(confusion.matrix - device_confusion.matrix).sum() <= 4


def test_a_model_goes_to_the_device_and_back_unchanged(xp):
    model = build_model("mini", K, seed=0)
    before = {name: array.copy() for name, array in
              (*model.named_parameters(), *model.named_buffers())}
    assert model.to(xp).xp is xp
    assert model.to(np).xp is np
    for name, array in (*model.named_parameters(), *model.named_buffers()):
        np.testing.assert_array_equal(asnumpy(array), before[name])
