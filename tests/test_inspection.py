"""The inspection before the first step: what is measured, and that nothing of the run changes."""

import json
import random

import numpy as np
import pytest
from inspecting import SIZE, Changed, alarms, inspected, plans, relabelled

from minisegnet.datasets import DataLoader, FloorPlans, Resize, make_augmentation
from minisegnet.imbalance.alignment import judge
from minisegnet.imbalance.fingerprint import loss_floor, loss_of_uniform
from minisegnet.imbalance.weighting import ClassStatistics
from minisegnet.layers import freeze_batch_norm
from minisegnet.losses._softmax import _warned
from minisegnet.losses.criterion import LOSSES, Criterion
from minisegnet.models import build_model
from minisegnet.training import inspection
from minisegnet.training.inspection import inspect, probe_criterion


@pytest.mark.parametrize("augment", ["none", "standard", "enhanced", "strong"])
def test_sound_plans_raise_no_alarm(augment):
    record = inspected(augment=augment)
    assert alarms(record) == []
    assert record["kind"] == "start" and record["num_classes"] == 12
    assert record["label_path"] == {"train": None, "val": None}
    assert record["transform"]["train"]["invented"] == []
    assert judge(record["alignment"]) == judge(record["alignment"]["val"]) == "fits"
    json.dumps(record, allow_nan=False)


def test_marks_to_compare_with_are_of_the_right_data():
    train_set, val_set = plans(), FloorPlans("val", length=12, size=SIZE, background_share=0.5)
    criterion = Criterion(weight=np.linspace(1, 9, 12), label_smoothing=0.1)
    record = inspected(train_set, val_set, criterion=criterion)
    for split, dataset in (("train", train_set), ("val", val_set)):
        statistics = dataset.check()
        assert record[split] == {"images": len(dataset), "pixels": statistics.pixels.tolist(),
                                 "images_with": statistics.images.tolist()}
    always = record["baselines"][0]
    assert always["name"] == "always predicting background"
    assert always["pixel_accuracy"] == pytest.approx(val_set.check().frequency[0])
    assert record["floor"] == loss_floor(criterion, train_set.check().pixels)


# ---------------------------------------------------------------- batches and model


class Spoilt(DataLoader):
    """A loader whose batches go through `spoil`."""

    spoil = None

    def batches(self, epoch=0, start=0):
        for k, batch in enumerate(super().batches(epoch, start), start):
            yield self.spoil(k, batch)


def spoilt(change):
    return type("Loader", (Spoilt,), {"spoil": lambda self, k, batch: change(k, batch)})


def test_input_is_measured_as_the_model_gets_it():
    images = []
    record = inspected(loader=spoilt(lambda k, batch: images.append(batch.images) or batch))
    values = np.concatenate(images).reshape(-1, 3).astype(np.float64)
    for key in ("mean", "std", "min", "max"):
        np.testing.assert_allclose(record["input"][key], getattr(values, key)(axis=0), rtol=1e-5)
    assert record["input"]["pictures"] == 24


@pytest.mark.parametrize("change, told", [
    (lambda x: 255 * (x * 0.23 + 0.45).clip(0, 1), "0 to 255"),
    (lambda x: (x * 0.23 + 0.45).clip(0, 1), "0 to 1"),
    (lambda x: (x - 0.45) / 0.23, "beyond"),
    (lambda x: 0 * x - 1, "constant")])
def test_input_that_is_not_normalised_is_told(change, told):
    record = inspected(loader=spoilt(lambda k, batch: batch._replace(
        images=change(batch.images).astype(np.float32))))
    assert any("training input" in line and told in line for line in alarms(record))
    assert not any("validation input" in line for line in alarms(record))


def test_batches_without_a_label_and_foreign_labels_are_told():
    def change(k, batch):
        target = np.full_like(batch.target, 255) if k % 2 else batch.target.copy()
        target[0, 0, :7] = 77
        return batch._replace(target=target if k % 2 == 0 else np.full_like(target, 255))

    record = inspected(loader=spoilt(change))
    batches = record["batches"]["train"]
    assert (batches["empty"], batches["batches"], batches["pictures"]) == (3, 6, 24)
    assert batches["foreign"] == [[77, 21]]
    assert sum(batches["pixels"]) + batches["ignored"] + 21 == 24 * SIZE[0] * SIZE[1]
    told = "\n".join(alarms(record))
    assert "77 (21 px)" in told and "3 of the first 6 training batches" in told
    assert record["probe"]["batches"] == 2  # of the first four


def test_only_so_many_pictures_are_read_whatever_the_data_set(monkeypatch):
    monkeypatch.setattr(inspection, "PICTURES", 8)
    read = []
    train_set = Changed(plans(length=60), lambda sample: read.append(sample.name) or sample)
    record = inspected(train_set)
    assert record["batches"]["train"]["pictures"] == 8
    assert len(read) < 8 + 60 + 4


class Recounted(Changed):
    """A data set that counts the labels it delivers."""

    def check(self):
        self.dataset.check()
        masks = (self[i].mask for i in range(len(self)))
        return ClassStatistics.from_masks(masks, self.num_classes)


def test_classes_that_training_lacks_are_told():
    one, other = FloorPlans.class_names[10:]
    train_set, val_set = (Recounted(plans(split), relabelled(table)) for split, table in
                          (("train", {10: 0, 11: 0}), ("val", {10: 0})))
    told = "\n".join(alarms(inspected(train_set, val_set)))
    assert f"in validation but never in training: {other}\n" in told
    assert f"without a pixel anywhere: {one}" in told
    lines = alarms(inspected(plans(), train_set))
    assert lines == []  # training may know more than validation asks


def test_batch_norms_are_counted_by_what_they_hold():
    model = build_model("mini", 12, seed=0)
    fresh = inspected(model=model)["batch_norm"]
    assert fresh["untrained"] == fresh["layers"] == 29 and fresh["frozen_untrained"] == 0
    for name, buffer in model.named_buffers():
        if name.startswith("backbone"):
            buffer += 0.1
    record = inspected(model=model)
    assert record["batch_norm"]["parts"]["backbone"] == [18, 0]
    assert record["batch_norm"]["untrained"] == 11 and alarms(record) == []
    freeze_batch_norm(model)
    record = inspected(model=model)
    assert record["batch_norm"]["frozen_untrained"] == 11
    assert any("11 of 29 batch norms are frozen" in line for line in alarms(record))


# ---------------------------------------------------------------- the loss


@pytest.fixture(scope="module")
def target():
    target = np.stack([sample.mask for sample in plans(length=4)])
    target[:, :5] = 255
    return target


def criterion_of(loss, **options):
    if loss == "logit_adjusted":
        options["prior"] = np.full(12, 1 / 12)
    return Criterion(loss, **options)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_is_probed(loss, target):
    weight = np.linspace(1, 3, 12)
    criterion = criterion_of(loss, weight=weight)
    pixels = np.bincount(target[target < 12], minlength=12)
    found = probe_criterion(criterion, [target[:2], target[2:]], 12)
    assert found["batches"] == 2 and sum(found["share_uniform"]) == pytest.approx(1)
    assert found["loss_uniform"] == pytest.approx(loss_of_uniform(criterion, pixels), rel=0.15)
    assert found["loss_perfect"] < 0.01
    assert max(found["pull_perfect"]) < 0.05


def test_the_probe_of_cross_entropy_is_what_the_formula_says(target):
    weight = np.linspace(1, 3, 12)
    found = probe_criterion(Criterion(weight=weight), [target], 12)
    pixels = np.array(found["pixels"])
    assert found["loss_uniform"] == pytest.approx(np.log(12), rel=1e-6)
    assert found["gradient_uniform"] == pytest.approx(2 * 11 / 12, rel=1e-5)
    np.testing.assert_allclose(found["share_uniform"], pixels * weight / (pixels @ weight),
                               rtol=1e-5)


def test_an_absent_class_of_great_weight_pulls_with_label_smoothing_only(target):
    weight = np.ones(14)
    weight[12:] = 100.0
    smooth, plain = (Criterion(weight=weight, label_smoothing=e) for e in (0.1, 0.0))
    found = probe_criterion(smooth, [target], 14)
    # e / K times the weight for each absent class, of 2 (1 - 1 / K) without smoothing, about.
    assert found["pull_perfect"][12] == found["pull_perfect"][13]
    assert found["pull_perfect"][12] > 0.1 > 50 * found["pull_perfect"][0]
    assert found["loss_perfect"] > loss_floor(smooth, np.array(found["pixels"])) > 0.5
    assert max(probe_criterion(plain, [target], 14)["pull_perfect"]) < 1e-3


def test_the_pull_of_absent_classes_is_told():
    train_set, val_set = (Recounted(plans(split), relabelled({})) for split in ("train", "val"))
    for dataset in (train_set, val_set):
        dataset.class_names, dataset.num_classes = (*FloorPlans.class_names, "pool", "tree"), 14
    weight = np.where(np.arange(14) < 12, 1.0, 100.0)
    told = "\n".join(alarms(inspected(train_set, val_set, criterion=Criterion(
        weight=weight, label_smoothing=0.1))))
    assert "towards classes that never occur (pool, tree) with" in told
    assert "without a pixel anywhere: pool, tree" in told


@pytest.mark.parametrize("ignore_index", [0, 5])
def test_classes_that_the_loss_passes_over_are_told(ignore_index):
    record = inspected(criterion=Criterion(ignore_index=ignore_index))
    assert record["ignore_index"] == 255  # that of the data
    assert record["probe"]["pixels"][ignore_index] > 0
    assert record["probe"]["share_uniform"][ignore_index] == 0
    name = FloorPlans.class_names[ignore_index]
    assert f"[!] the loss passes over every pixel of {name}" in \
        [line.replace("  ", " ") for line in alarms(record)]


def test_targets_without_anything_to_learn_warn_nobody(target):
    before = set(_warned)
    blank = np.full_like(target, 255)
    for loss in LOSSES:
        found = probe_criterion(criterion_of(loss, weight=np.zeros(12)), [target, blank], 12)
        assert found["batches"] == 0 and found["loss_uniform"] == 0
        assert found["share_uniform"] == found["pull_perfect"] == [0.0] * 12
    assert _warned == before  # what a run has to say once, it still can


# ---------------------------------------------------------------- neutrality


def test_nothing_of_the_run_changes():
    train_set, model = plans(), build_model("mini", 12, seed=0)
    loader = DataLoader(train_set, 4, transform=make_augmentation("strong", SIZE), shuffle=True,
                        num_workers=2)
    val_loader = DataLoader(plans("val", 8), 4, transform=Resize(SIZE), num_workers=2)
    statistics = train_set.check()

    def state():
        layers = [layer for _, layer in model.named_layers()]
        generators = [layer.rng.bit_generator.state for layer in layers if hasattr(layer, "rng")]
        arrays = [array.copy() for of in (model.named_parameters, model.named_buffers,
                                          model.named_gradients) for _, array in of()]
        batches = [array for epoch in (1, 2) for batch in loader.batches(epoch) for array in
                   batch[:2]]
        flags = [(layer.training, layer.frozen, layer._cache) for layer in layers]
        drawn = random.getstate(), str(np.random.get_state())
        return arrays + batches, (flags, generators, drawn)

    before = state()
    record = inspect(train_set, plans("val", 8), statistics, statistics, loader, val_loader, model,
                     Criterion("combined"), train_set.class_names)
    again = inspect(train_set, plans("val", 8), statistics, statistics, loader, val_loader, model,
                    Criterion("combined"), train_set.class_names)
    assert record == again
    after = state()
    assert before[1] == after[1]
    for old, new in zip(before[0], after[0], strict=True):
        np.testing.assert_array_equal(old, new)


def test_the_first_batches_measured_are_the_first_of_training():
    targets = []
    loader = spoilt(lambda k, batch: targets.append(batch.target) or batch)
    record = inspected(loader=loader)
    first = DataLoader(plans(), 4, transform=make_augmentation("standard", SIZE), shuffle=True,
                       num_workers=0)
    for measured, batch in zip(targets, first.batches(1), strict=True):
        np.testing.assert_array_equal(measured, batch.target)
    counts = sum(np.bincount(target.ravel(), minlength=256) for target in targets)
    assert record["batches"]["train"]["pixels"] == counts[:12].tolist()
