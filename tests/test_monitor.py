"""The records of --debug: every number against a recomputation; what is sampled, and restored."""

import json

import numpy as np
import pytest
from checks import frozen

from minisegnet.datasets import Batch
from minisegnet.layers import BatchNorm2d, freeze_batch_norm
from minisegnet.losses.criterion import Criterion
from minisegnet.metrics import ConfusionMatrix
from minisegnet.models import build_model
from minisegnet.optim import SGD, AdamW, ExponentialMovingAverage
from minisegnet.training import trainer as trainer_module
from minisegnet.training.monitor import Monitor
from minisegnet.training.trainer import Phase, Trainer

NAMES = ("ground", "house", "pool")


class Batches:
    """The same batches in every epoch, from a place in it on."""

    sampler = None

    def __init__(self, batches):
        self.fixed = batches

    def __len__(self):
        return len(self.fixed)

    def batches(self, epoch=0, start=0):
        yield from self.fixed[start:]


@pytest.fixture
def batch(rng):
    """Return a function that makes batches of 2 pictures, `ignored` of 16 rows ignored."""
    def make(ignored=1, size=(16, 16)):
        target = rng.integers(0, 3, (2, *size), dtype=np.uint8)
        target[:, :ignored] = 255
        images = rng.standard_normal((2, *size, 3)) * (0.5, 1, 2) + (1, 0, -1)
        return Batch(images.astype(np.float32), target, ("a", "b"))

    return make


@pytest.fixture
def trainer(tmp_path, batch):
    """Return a function that makes a trainer with a monitor, by default of 2 epochs of 4 steps."""
    def make(batches=None, val_batches=None, optimizer=SGD, **options):
        model = build_model("mini", 3)
        loader = Batches(batches or [batch(i) for i in range(4)])
        phase = Phase(Criterion("ce"), loader, Batches(val_batches or [batch(2), batch()]))
        run = Trainer(model=model, optimizer=optimizer(model, 1.0), phase=lambda epoch: phase,
                      folder=tmp_path, class_names=NAMES,
                      **{"schedule": lambda step: 1e-2 / (1 + step), "epochs": 2, **options})
        run.debug = Monitor(tmp_path, model, run.optimizer, NAMES, 255,
                            -(-len(loader) // run.accumulate))
        return run

    return make


def records(run, kind):
    lines = (run.folder / "debug.jsonl").read_text().splitlines()
    return [record for record in (json.loads(line, parse_constant=pytest.fail) for line in lines)
            if record["kind"] == kind]


@pytest.fixture
def steps(monkeypatch):
    """Return a function that lets a trainer note, of each step, what the records are made of."""
    def note(run):
        noted = []
        clip, step, train_step = trainer_module.clip_grad_norm, run.optimizer.step, run.train_step

        def clipping(optimizer, max_norm):
            noted.append({"grad": optimizer.flat.grad.astype(np.float64)})
            return clip(optimizer, max_norm)

        def stepping():
            noted[-1]["before"] = run.optimizer.flat.data.astype(np.float64)
            step()
            noted[-1]["after"] = run.optimizer.flat.data.astype(np.float64)
            noted[-1]["lr"] = run.optimizer.lr

        def noting(batches, criterion):
            values = train_step(batches, criterion)
            noted[-1].update(values, batches=batches)
            return values

        monkeypatch.setattr(trainer_module, "clip_grad_norm", clipping)
        run.optimizer.step, run.train_step = stepping, noting
        return noted

    return note


def by_layer(run, flat_array):
    """Return {layer name: the part of a flat array that belongs to its parameters}."""
    slices, found = run.optimizer.flat.slices, {}
    for name, layer in run.model.named_layers():
        if layer.params:
            found[name] = np.concatenate([flat_array[slices[f"{name}.{key}"]]
                                          for key in layer.params])
    return found


@pytest.mark.parametrize("options", [
    {}, {"clip_norm": 1e-3}, {"accumulate": 2}, {"optimizer": AdamW, "clip_norm": 0.1}])
@pytest.mark.parametrize("frozen", [None, "backbone", "classifier.bias"])
def test_a_step_is_measured_before_clipping_and_around_its_update(trainer, steps, options, frozen):
    run = trainer(**options)
    if frozen:
        run.optimizer.set_lr_scale(frozen, 0.0)
    noted = steps(run)
    run.fit()
    found, last = records(run, "step"), None
    assert [record["step"] for record in found] == list(range(len(noted)))
    for record, true in zip(found, noted):
        change = true["after"] - true["before"]
        assert record["epoch"] == 1 + record["step"] // (len(noted) // 2)
        assert record["loss"] == pytest.approx(true["train_loss"])
        assert record["gradient_norm"] == pytest.approx(true["gradient_norm"])
        assert record["lr"] == true["lr"] == 1e-2 / (1 + record["step"])
        targets = np.concatenate([batch.target for batch in true["batches"]])
        assert record["valid_share"] == pytest.approx((targets != 255).mean())
        norm = np.linalg.norm
        assert record["update_ratio"] == pytest.approx(norm(change) / norm(true["before"]), 1e-4)
        moved = change[change != 0]
        assert record["update_per_lr"] == pytest.approx(
            np.sqrt((moved ** 2).mean()) / true["lr"], 1e-4)
        if last is None:
            assert record["update_cosine"] is None
        else:
            assert record["update_cosine"] == pytest.approx(
                last @ change / norm(last) / norm(change), abs=1e-4)
        grads, changes, sizes = (by_layer(run, array) for array in
                                 (true["grad"], change, true["before"]))
        assert set(record["layers"]) == set(grads)
        for name, (gradient, ratio) in record["layers"].items():
            if frozen != "classifier.bias" or name != "classifier":  # in part frozen
                assert gradient == pytest.approx(norm(grads[name]), 1e-3), name
            assert ratio == pytest.approx(norm(changes[name]) / norm(sizes[name]), 1e-3)
        last = change


@pytest.mark.parametrize("length, expected", [
    (4, [0, 1, 2, 3, 4, 5, 6, 7]),
    (30, [0, 1, 2, 3, 4, *range(6, 60, 2)]),
    (120, [0, 1, 2, 3, 4, *range(10, 240, 10)])])
def test_the_first_steps_are_sampled_and_about_a_dozen_of_an_epoch(tmp_path, batch, length,
                                                                   expected):
    model = build_model("mini", 3)
    optimizer = SGD(model, 0.1)
    monitor = Monitor(tmp_path, model, optimizer, NAMES, 255, length)
    optimizer.flat.grad[...] = 1e-3
    for step in range(2 * length):
        monitor.gradients(step, 1, [batch()], {"train_loss": 1.0}, 0.1)
        optimizer.step()
        monitor.updated(step, 0.1)
    found = [json.loads(line) for line in (tmp_path / "debug.jsonl").read_text().splitlines()]
    assert [record["step"] for record in found] == expected
    # The direction is compared with that of the step before, sampled or not.
    assert [record["step"] for record in found if record["update_cosine"] is None] == [0]
    assert found[-1]["update_cosine"] == pytest.approx(1, abs=1e-4)


@pytest.mark.filterwarnings("ignore:.*every pixel is ignored")
def test_an_epoch_counts_labels_and_batches(trainer, batch):
    batches = [batch(0), batch(3), batch(16), batch(16)]
    run = trainer(batches, epochs=2, accumulate=2)
    run.fit()
    for epoch, record in enumerate(records(run, "epoch"), 1):
        targets = np.concatenate([each.target for each in batches])
        assert (record["epoch"], record["steps"], record["batches"]) == (epoch, 2, 4)
        assert record["target_pixels"] == [int((targets == k).sum()) for k in range(3)]
        assert record["ignored_pixels"] == (targets == 255).sum()
        assert record["empty_batches"] == 2


def test_an_epoch_sums_up_losses_norms_and_input(trainer, batch, steps):
    run = trainer([batch(size=(32, 32)) for _ in range(12)], epochs=2)
    noted = steps(run)
    run.fit()
    for epoch, record in enumerate(records(run, "epoch")):
        of_epoch = noted[12 * epoch:12 * (epoch + 1)]
        losses, norms = ([step[key] for step in of_epoch] for key in
                         ("train_loss", "gradient_norm"))
        assert record["losses"] == {"first": pytest.approx(np.mean(losses[:10])),
                                    "last": pytest.approx(np.mean(losses[-10:]))}
        assert record["gradient_norm"] == {
            "min": pytest.approx(min(norms)), "max": pytest.approx(max(norms)),
            "median": pytest.approx(np.median(norms))}
        np.testing.assert_allclose(record["input_mean"], (1, 0, -1), atol=0.1)
        np.testing.assert_allclose(record["input_std"], (0.5, 1, 2), rtol=0.1)


def test_what_never_moves_is_named(trainer):
    run = trainer(optimizer=AdamW)
    run.optimizer.set_lr_scale("aspp", 0.0)
    run.fit()
    for record in records(run, "epoch"):
        expected = [name for name, _ in run.model.named_parameters() if name.startswith("aspp.")]
        assert record["still"] == expected
        assert record["parameters"] == len(list(run.model.named_parameters()))
        assert record["no_gradient"] == []
        assert record["batch_norm_still"] == 0 and record["batch_norm_layers"] == 29


@pytest.mark.parametrize("part", [None, "backbone"])
def test_batch_norms_without_new_statistics_are_counted(trainer, part):
    run = trainer()
    frozen = getattr(run.model, part) if part else run.model
    freeze_batch_norm(frozen)
    run.fit()
    layers = sum(isinstance(layer, BatchNorm2d) for _, layer in frozen.named_layers())
    assert [record["batch_norm_still"] for record in records(run, "epoch")] == [layers] * 2


@pytest.mark.parametrize("buffer", [None, "running_mean", "running_var"])
def test_only_kept_statistics_of_an_untrained_model_are_a_fault(trainer, capsys, buffer):
    run = trainer()
    freeze_batch_norm(run.model)
    for _, layer in run.model.named_layers():
        if isinstance(layer, BatchNorm2d) and buffer:
            layer.buffers[buffer] += 0.25
    run.fit()
    assert ("as untrained" in capsys.readouterr().out) == (buffer is None)


def test_what_no_gradient_reaches_is_named_though_decay_moves_it(trainer):
    run = trainer(optimizer=AdamW)
    run.model.backbone.frozen = True
    run.fit()
    backbone = [name for name, _ in run.model.named_parameters() if name.startswith("backbone.")]
    for record in records(run, "epoch"):
        assert record["no_gradient"] == backbone
        assert not set(record["still"]) & {name for name in backbone if "conv.weight" in name}


def test_a_step_of_one_epoch_moves_the_batch_norms(trainer, batch):
    run = trainer([batch()], epochs=1)
    run.debug.start({"kind": "start"})
    run.fit()
    assert records(run, "epoch")[0]["batch_norm_still"] == 0


@pytest.mark.filterwarnings("ignore:.*every pixel is ignored")
def test_a_validation_is_counted_apart_from_the_metrics(trainer, batch):
    val = [batch(0), batch(5), batch(16)]
    run, seen = trainer(val_batches=val, epochs=1), []
    observe = run.debug.observe
    run.debug.observe = lambda batch, prediction: (seen.append(prediction.copy()),
                                                   observe(batch, prediction))
    run.fit()
    record, = records(run, "validation")
    pairs = [(each.target[each.target != 255], prediction[each.target != 255])
             for each, prediction in zip(val, seen)]
    true, predicted = (np.concatenate(arrays) for arrays in zip(*pairs))
    confusion = [[int(((true == i) & (predicted == j)).sum()) for j in range(3)]
                 for i in range(3)]
    assert record["confusion"] == confusion
    assert record["target_pixels"] == [sum(row) for row in confusion]
    assert record["predicted_pixels"] == [sum(column) for column in zip(*confusion)]
    assert record["ignored_pixels"] == sum((each.target == 255).sum() for each in val)
    there, found = ([len(np.unique(arrays)) for arrays in side] for side in zip(*pairs))
    assert record["classes_per_batch"] == {"min": min(found), "mean": np.mean(found)}
    assert record["truth_classes_per_batch"] == {"min": min(there), "mean": np.mean(there)}


def test_a_label_that_is_ignored_is_no_class_even_if_it_has_the_number_of_one(tmp_path, batch):
    model = build_model("mini", 3)
    monitor = Monitor(tmp_path, model, SGD(model, 0.1), NAMES, 1, 4)
    seen = batch()
    target = np.resize(np.array([0, 1, 1, 2, 2, 2, 7, 7], np.uint8), seen.target.shape)
    seen = seen._replace(target=target)
    monitor.gradients(0, 1, [seen], {"train_loss": 1.0}, 0.1)
    monitor.updated(0, 0.1)
    monitor.end_of_epoch(1)
    monitor.observe(seen, np.zeros_like(target))
    monitor.end_of_validation(1, 1.0, ConfusionMatrix(3))
    eighth = target.size // 8
    step, *counts = map(json.loads, (tmp_path / "debug.jsonl").read_text().splitlines())
    assert step["valid_share"] == 0.5
    for record in counts:
        assert record["target_pixels"] == [eighth, 0, 3 * eighth]
        assert record["ignored_pixels"] == 4 * eighth
    assert counts[1]["predicted_pixels"] == [4 * eighth, 0, 0]


def test_a_validation_sees_the_averages_that_are_scored(trainer, batch):
    run = trainer([batch()], epochs=3, schedule=lambda step: 1.0)
    run.ema = ExponentialMovingAverage(run.optimizer, run.model, 0.99)
    run.fit()
    for record in records(run, "validation"):
        assert record["predicted_pixels"] == np.sum(record["confusion"], axis=0).tolist()
    # The update is that of the weights, not of their averages.
    assert records(run, "step")[1]["update_per_lr"] > 0


def test_an_epoch_without_a_sampled_step_has_no_input_to_tell_of(tmp_path, batch):
    model = build_model("mini", 3)
    monitor = Monitor(tmp_path, model, SGD(model, 0.1), NAMES, 255, 240)
    monitor.gradients(7, 1, [batch()], {"train_loss": 1.0}, 0.1)
    monitor.updated(7, 0.1)
    monitor.end_of_epoch(1)
    record, = map(json.loads, (tmp_path / "debug.jsonl").read_text().splitlines())
    assert record["input_mean"] == record["input_std"] == [None] * 3
    assert record["no_gradient"] == []


def test_nothing_that_is_watched_is_written_to(tmp_path, batch):
    model = build_model("mini", 3)
    optimizer = SGD(model, 0.1)
    monitor = Monitor(tmp_path, model, optimizer, NAMES, 255, 12)
    arrays = [optimizer.flat.data, optimizer.flat.grad, *(a for _, a in model.named_buffers())]
    for array in arrays:
        array.flags.writeable = False
    seen = Batch(*frozen(*batch()[:2]), ("a", "b"))
    for step in range(3):
        monitor.gradients(step, 1, [seen], {"train_loss": 1.0}, 0.1)
        monitor.updated(step, 0.1)
    monitor.end_of_epoch(1)
    monitor.observe(seen, frozen(np.minimum(seen.target, 2)))
    monitor.end_of_validation(1, 1.0, ConfusionMatrix(3))


@pytest.mark.filterwarnings("ignore:.*encountered in")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_file_is_json_whatever_the_numbers(tmp_path, batch, value):
    model = build_model("mini", 3)
    optimizer = SGD(model, 0.1)
    monitor = Monitor(tmp_path, model, optimizer, NAMES, 255, 12)
    monitor.start({"kind": "start", "floor": value})
    for step in range(3):
        optimizer.flat.grad[step] = 1.0
        monitor.gradients(step, 1, [batch()], {"train_loss": value}, 0.1)
        optimizer.flat.data[step] = value
        monitor.updated(step, 0.1)
    monitor.end_of_epoch(1)
    optimizer.flat.grad[5] = value
    monitor.gradients(3, 2, [batch()], {"train_loss": value}, value)
    monitor.failure(3, "gradient", None, "it is")
    monitor.end_of_validation(1, value, ConfusionMatrix(3))
    lines = (tmp_path / "debug.jsonl").read_text().splitlines()
    found = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert [record["kind"] for record in found] == [
        "start", *["step"] * 3, "epoch", "failure", "validation"]
    assert found[1]["loss"] is None and found[1]["update_ratio"] is None
    assert (found[5]["tensor"], found[5]["direction"]) == (None, None)


# ---------------------------------------------------------------- a run that goes on


def lines_of(*records):
    return "".join(json.dumps({"kind": kind, key: value}) + "\n"
                   for kind, key, value in records)


START, END, FAILURE = ("start", "floor", 0.5), ("end", "step", 3), ("failure", "step", 3)
FIRST = [START, ("step", "step", 0), ("step", "step", 3), ("epoch", "epoch", 1),
         ("validation", "epoch", 1)]


@pytest.mark.parametrize("after, done, stays", [
    # killed in the second epoch, of four steps each; in it; or after it, before it was saved
    ([("step", "step", 4), ("step", "step", 7), ("epoch", "epoch", 2)], 4, []),
    ([("step", "step", 4), ("step", "step", 6), END], 6, [("step", "step", 4)]),
    ([("step", "step", 4), ("epoch", "epoch", 2), ("validation", "epoch", 2)], 7,
     [("step", "step", 4)]),
    # resumed once already
    ([("step", "step", 4), END, START, ("step", "step", 5), FAILURE], 5,
     [("step", "step", 4), START]),
    ([], 4, []), ([FAILURE, END], 4, [])])
def test_a_run_that_goes_on_drops_what_comes_again(tmp_path, after, done, stays):
    path, model = tmp_path / "debug.jsonl", build_model("mini", 3)
    path.write_text(lines_of(*FIRST, *after) + '{"kind": "step", "step": 1')
    Monitor(tmp_path, model, SGD(model, 0.1), NAMES, 255, 4).restore(done)
    assert path.read_text() == lines_of(*FIRST, *stays)


def test_a_run_that_begins_anew_drops_everything_and_one_without_records_is_none(tmp_path):
    path, model = tmp_path / "debug.jsonl", build_model("mini", 3)
    monitor = Monitor(tmp_path, model, SGD(model, 0.1), NAMES, 255, 4)
    monitor.restore(0)
    assert not path.exists()
    path.write_text(lines_of(*FIRST) + "1\n[]\n{}\n\n\ufffd")
    monitor.restore(0)
    assert path.read_text() == ""
