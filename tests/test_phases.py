"""Stages, switches of loss and size, and what stays frozen."""

import numpy as np
import pytest
from checks import benchmark_module

from minisegnet import datasets, train
from minisegnet.datasets import FloorPlans
from minisegnet.errors import run_command
from minisegnet.layers import BatchNorm2d
from minisegnet.models import build_model
from minisegnet.training.build import build_optimizer, build_weights
from minisegnet.training.phases import Phases
from minisegnet.training.settings import parse_settings


@pytest.fixture(scope="module")
def plans():
    plans = FloorPlans("train", length=6, size=(64, 64))
    return plans, plans.check()


@pytest.fixture
def phases(plans):
    plans, statistics = plans

    def make(*flags):
        settings = parse_settings([str(flag) for flag in ("--epochs", 9, "--batch-size", 2,
                                                          *flags)])
        settings.image_size = settings.image_size or [32, 40]
        model = build_model(settings.model, plans.num_classes)
        weights = build_weights(settings.class_weights, statistics, plans.class_names)
        return Phases(settings, model=model, optimizer=build_optimizer(settings, model),
                      train_set=plans, val_set=plans, weights=weights, statistics=statistics)

    return make


def test_loss_and_size_change_after_their_epochs(phases, capsys):
    by_epoch = phases("--loss", "ce", "--loss-after", "2:focal", "5:dice", "--image-size", 16, 24,
                      "--image-size-after", "3:32x40")
    seen = [by_epoch(epoch) for epoch in range(1, 8)]
    assert [phase.criterion.name for phase in seen] == ["ce"] * 2 + ["focal"] * 3 + ["dice"] * 2
    sizes = [next(iter(phase.train_loader.batches(1))).images.shape[1:3] for phase in seen]
    assert sizes == [(16, 24)] * 3 + [(32, 40)] * 4
    assert seen[3].val_loader.transform.size == (32, 40)
    assert [phase.size for phase in seen] == sizes
    assert [phase.is_last for phase in seen] == [False] * 5 + [True] * 2
    assert capsys.readouterr().out.splitlines() == [
        "from epoch 3 on: loss focal", "from epoch 4 on: image size 32x40",
        "from epoch 6 on: loss dice"]


def norms(model):
    return {name: layer.frozen_statistics for name, layer in model.named_layers()
            if isinstance(layer, BatchNorm2d)}


def train_one_step(by_epoch, epoch):
    """Do a step in `epoch`; return the top-level names of parameters and statistics it changed."""
    phase, model, optimizer = by_epoch(epoch), by_epoch.model, by_epoch.optimizer
    arrays = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    before = {name: array.copy() for name, array in arrays.items()}
    batch = next(iter(phase.train_loader.batches(epoch)))
    optimizer.zero_grad()
    coarse = model.train().forward_coarse(batch.images)
    _, cache = phase.criterion.forward_upsampled(coarse, batch.target)
    model.backward_coarse(phase.criterion.backward_upsampled(1.0, cache))
    optimizer.lr = 0.01
    optimizer.step()
    changed = {name for name, array in arrays.items() if not np.array_equal(array, before[name])}
    return {(name.split(".")[0], "running" in name) for name in changed}


def test_a_frozen_backbone_keeps_weights_and_statistics_then_trains(phases):
    by_epoch = phases("--freeze", "backbone", "--freeze-epochs", 2)
    assert [by_epoch(epoch).starts_stage for epoch in (1, 2, 3, 4)] == [False, False, True, False]
    for epoch in (1, 2):
        changed = train_one_step(by_epoch, epoch)
        assert ("aspp", False) in changed and ("aspp", True) in changed
        assert "backbone" not in {name for name, _ in changed}
    changed = train_one_step(by_epoch, 3)
    assert ("backbone", False) in changed and ("backbone", True) in changed


def test_a_backbone_may_stay_frozen(phases):
    by_epoch = phases("--freeze", "backbone")
    assert not any(by_epoch(epoch).starts_stage for epoch in range(1, 10))
    assert by_epoch(1).is_last
    assert "backbone" not in {name for name, _ in train_one_step(by_epoch, 9)}


@pytest.mark.parametrize("choice, while_frozen, after", [
    ("no", set(), set()), ("frozen", {"backbone"}, set()),
    ("backbone", {"backbone"}, {"backbone"}),
    ("all", {"backbone", "head"}, {"backbone", "head"})])
def test_which_batch_norms_are_frozen_is_a_choice(phases, choice, while_frozen, after):
    by_epoch = phases("--freeze", "backbone", "--freeze-epochs", 2, "--freeze-batch-norm", choice)
    for epoch, expected in ((1, while_frozen), (3, after)):
        by_epoch(epoch)
        for name, is_frozen in norms(by_epoch.model).items():
            part = "backbone" if name.startswith("backbone.") else "head"
            assert is_frozen == (part in expected), (epoch, name)


def test_frozen_statistics_under_no_still_move(phases):
    by_epoch = phases("--freeze", "backbone", "--freeze-batch-norm", "no")
    assert ("backbone", True) in train_one_step(by_epoch, 1)


def test_the_layers_rates_come_back_when_the_backbone_thaws(phases):
    by_epoch = phases("--freeze", "backbone", "--freeze-epochs", 1, "--optimizer", "sgd",
                      "--momentum", 0, "--weight-decay", 0, "--lr-scale", "backbone=0.25",
                      "aspp=0.5")
    for epoch, expected in ((1, 0.0), (2, 0.25)):
        by_epoch(epoch)
        before = {name: array.copy() for name, array in by_epoch.model.named_parameters()}
        by_epoch.optimizer.lr = 1.0
        by_epoch.optimizer.flat.grad[...] = 1.0
        by_epoch.optimizer.step()
        scales = {"backbone": expected, "aspp": 0.5}
        for name, array in by_epoch.model.named_parameters():
            np.testing.assert_allclose(before[name] - array,
                                       scales.get(name.split(".")[0], 1.0), atol=1e-6)


def test_a_unet_has_phases_too(phases):
    by_epoch = phases("--model", "unet_small", "--freeze-batch-norm", "all")
    by_epoch(1)
    assert all(norms(by_epoch.model).values())


def test_the_samplers_are_the_loaders(phases):
    assert phases("--sampler", "uniform")(1).train_loader.sampler is None
    loader = phases("--sampler", "class-uniform")(1).train_loader
    assert isinstance(loader.sampler, datasets.samplers.ClassUniformSampler)
    assert set(loader.sampler_report(1)) >= {"distinct_images"}


@pytest.fixture
def said_at_the_start(tmp_path, capsys):
    """What a run with these flags says before it trains."""
    benchmark_module("kill_and_resume").make_pictures(tmp_path / "data")

    def say(*flags):
        assert run_command(train.main, ["--data", str(tmp_path / "data"), "--dry-run",
                                        *map(str, flags)]) == 0
        return capsys.readouterr().out

    return say


def test_a_frozen_random_backbone_is_said(said_at_the_start):
    assert "warning: --freeze without --init-from" in said_at_the_start("--freeze", "backbone")


def test_lovasz_with_class_weights_is_warned_of(said_at_the_start):
    assert "warning: --loss lovasz with --class-weights sqrt" in said_at_the_start(
        "--loss", "lovasz")
    assert "warning" not in said_at_the_start("--loss", "lovasz", "--class-weights", "none")


def test_a_score_on_pictures_trained_on_is_said(said_at_the_start):
    text = said_at_the_start("--split", "trainval")
    assert "18 images to train" in text and "the validation score is none" in text


def test_a_backbone_that_was_not_in_the_file_is_said(said_at_the_start, tmp_path):
    model = build_model("mini", 3)
    np.savez(tmp_path / "head.npz", **{"classifier.bias": model.classifier.params["bias"]})
    text = said_at_the_start("--init-from", tmp_path / "head.npz", "--allow-partial", "--freeze",
                             "backbone")
    assert "1 of " in text and "has nothing for the backbone" in text


@pytest.mark.parametrize("epochs, warned", [(60, False), (140, False), (150, True), (70, True)])
def test_an_end_near_the_top_of_a_cycle_is_said(said_at_the_start, epochs, warned):
    text = said_at_the_start("--schedule", "restarts", "--epochs", epochs, "--accumulate", 2,
                             "--batch-size", 4)
    assert ("near the top of a restart cycle" in text) == warned
    if epochs == 150:
        assert "--epochs 140" in text
