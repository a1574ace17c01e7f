"""The warnings of --debug: each comes with its fault, once, and none in a healthy training."""

import numpy as np
import pytest

from minisegnet import datasets, train
from minisegnet.datasets import Batch, FloorPlans
from minisegnet.errors import run_command
from minisegnet.metrics import ConfusionMatrix
from minisegnet.models import build_model
from minisegnet.optim import SGD
from minisegnet.training.alarms import Alarms
from minisegnet.training.monitor import Monitor

NAMES = ("ground", "house", "pool")
LATE = 5000  # steps


@pytest.fixture
def alarms():
    return Alarms(NAMES)


@pytest.fixture
def said(capsys):
    """Return a function that returns the lines said since it was asked last."""
    return lambda: capsys.readouterr().out.splitlines()


def epoch(number=1, **changes):
    return {"epoch": number, "target_pixels": [600, 300, 100], "ignored_pixels": 10, "batches": 4,
            "empty_batches": 0, "parameters": 9, **changes}


def end_epoch(alarms, record=None, updates=((1e-3, 0.01),), layers=None, unexpected=()):
    alarms.epoch(record or epoch(), updates, layers or {"a": 0.1}, list(unexpected))


MATRIX = [[550, 30, 20], [10, 270, 20], [5, 5, 90]]


def validation(number=1, matrix=MATRIX, **changes):
    return {"epoch": number, "loss": 0.5, "confusion": matrix,
            "target_pixels": np.sum(MATRIX, axis=1).tolist(),
            "predicted_pixels": np.sum(MATRIX, axis=0).tolist(), **changes}


def predicting(number, columns):
    """Return the record of a validation where only the classes `columns` are predicted."""
    matrix = np.zeros((3, 3), int)
    matrix[:, columns[0]] = np.sum(MATRIX, axis=1)
    for column in columns[1:]:
        matrix[column, columns[0]] -= 1
        matrix[column, column] += 1
    return validation(number, matrix.tolist(), predicted_pixels=matrix.sum(axis=0).tolist())


FAULTS = {
    "gradient norm 2e+03 at step 7 is above 1000: exploding":
        lambda alarms: alarms.step(7, 2e3, 0.9),
    "gradient norm 1e-08 at step 7 is below 1e-07: vanishing":
        lambda alarms: alarms.step(7, 1e-8, 0.9),
    "the update of step 7 is 60 % as long as the parameters":
        lambda alarms: alarms.update(7, 0.6),
    "2 of 4 batches of epoch 1 have no labelled pixel":
        lambda alarms: end_epoch(alarms, epoch(empty_batches=2)),
    "75 % of the pixels of epoch 1 are ignored":
        lambda alarms: end_epoch(alarms, epoch(ignored_pixels=3000)),
    "all labels of epoch 1 are house":
        lambda alarms: end_epoch(alarms, epoch(target_pixels=[0, 5, 0], ignored_pixels=1)),
    "the gradients of 2 of 3 layers stayed below 1e-07 in epoch 1: vanishing; a, c":
        lambda alarms: end_epoch(alarms, layers={"a": 9e-8, "b": 0.1, "c": 1e-9}),
    "5 of 9 parameter arrays have not moved since the start and are not frozen: a, b, c and 2":
        lambda alarms: end_epoch(alarms, unexpected="abcde"),
    "no update of epoch 1 was longer than 0.002 % of the parameters; raise --lr":
        lambda alarms: end_epoch(alarms, updates=[(1e-6, 1e-5), (1e-6, 2e-5)]),
    "the running statistics of 5 batch norms have never moved, those of 3 of them from mean 0":
        lambda alarms: alarms.batch_norm(5, 3),
    "the confusion matrix of epoch 1 is empty, though 1,000 labelled pixels were compared":
        lambda alarms: alarms.validation(validation(matrix=[[0] * 3] * 3), [(3, 3)], 9),
    "the confusion matrix of epoch 1 holds 2,000 pixels, though 1,000 were compared":
        lambda alarms: alarms.validation(validation(matrix=2 * np.array(MATRIX)), [(3, 3)], 9),
    "the confusion matrix of epoch 1 has 565 pixels that are ground, of 600":
        lambda alarms: alarms.validation(validation(matrix=np.transpose(MATRIX)), [(3, 3)], 9),
    "the confusion matrix of epoch 1 has 550 pixels that are predicted ground, of 565":
        lambda alarms: alarms.validation(
            validation(matrix=[[550, 30, 20], [0, 280, 20], [0, 10, 90]]), [(3, 3)], 9),
    "the loss of the validation of epoch 1 is nan":
        lambda alarms: alarms.validation(validation(loss=float("nan")), [(3, 3)], 9),
}


@pytest.mark.parametrize("message", FAULTS)
def test_a_fault_is_reported_once_and_alone(alarms, said, message):
    for _ in range(3):
        FAULTS[message](alarms)
    line, = said()
    assert line.startswith(f"    debug: {message}")


def test_a_healthy_course_is_silent(alarms, said):
    for number in range(1, 12):
        for step in range(4):
            alarms.step(step, 0.5, 0.9)
            alarms.update(step, 0.02)
        end_epoch(alarms, epoch(number))
        alarms.batch_norm(3, 0)  # such as came trained, and are kept
        alarms.validation(validation(number), [(3, 3), (2, 3)], 100 * number)
    assert said() == []


def test_a_gate_that_is_shut_and_layers_that_are_frozen_are_healthy(alarms, said):
    layers = {f"{k}": 0.1 for k in range(20)}
    end_epoch(alarms, layers={**layers, "3": 9e-8, "7": 1e-9, **{f"{k}": 0.0 for k in (0, 1, 2)}})
    assert said() == []


def test_a_step_without_a_label_has_no_gradient_to_lose(alarms, said):
    alarms.step(0, 0.0, 0.0)
    assert said() == []


@pytest.mark.parametrize("rates, is_said", [((1e-2, 1e-2, 1e-6), False), ((1e-6, 1e-2), False),
                                            ((1e-2, 1e-2), True)])
def test_small_updates_are_reported_only_while_the_rate_is_high(alarms, said, rates, is_said):
    end_epoch(alarms, updates=[(rates[0], 0.01)])
    for number, rate in enumerate(rates[1:], 2):
        end_epoch(alarms, epoch(number), updates=[(rate, 1e-6 if rate < 1e-2 or is_said else .01)])
    assert bool(said()) == is_said


def test_one_class_in_three_validations_in_a_row_is_a_collapse(alarms, said):
    one = [(1, 3), (1, 2), (2, 3)]
    for number, batches in enumerate((one, one, [(3, 3)] * 3, one, one), 1):
        alarms.validation(predicting(number, [0, 1, 2]), batches, LATE)
    assert said() == []
    for number in (6, 7):
        alarms.validation(predicting(number, [1]), one, LATE)
    line, = said()
    assert "2 of 3 batches in the validation of epoch 6 are predicted as one class each" in line
    assert "100 % of the pixels as house" in line


def test_a_minority_of_batches_may_be_poor_in_classes(alarms, said):
    for number in range(1, 5):
        alarms.validation(validation(number), [(1, 3), (3, 3), (3, 3)], LATE)
    assert said() == []


def test_batches_of_one_class_may_be_predicted_as_one(alarms, said):
    for number in range(1, 5):
        alarms.validation(validation(number), [(1, 1), (1, 1), (3, 3)], LATE)
    assert said() == []


def test_few_classes_in_three_validations_in_a_row_are_reported(said):
    alarms = Alarms([f"class {k}" for k in range(12)])
    record = {"loss": 1.0, "confusion": np.eye(12, dtype=int), "target_pixels": [1] * 12,
              "predicted_pixels": [1] * 12}
    for number, found in enumerate((4, 4, 5, 4, 4), 1):  # 5 are enough, whatever is there
        alarms.validation({"epoch": number, **record}, [(found, 12)] * 3, LATE)
    assert said() == []
    alarms.validation({"epoch": 6, **record}, [(4, 12), (4, 12), (6, 6)], LATE)
    line, = said()
    assert "the validation of epoch 6 predicts 4.7 classes per batch, of 10.0" in line


def test_a_class_missed_in_five_validations_in_a_row_is_named(alarms, said):
    for number in range(1, 10):
        found = [0, 1, 2] if number == 5 else [0, 1]  # in the fifth, all are predicted
        alarms.validation(predicting(number, found), [(2, 3), (3, 3)], LATE)
    assert said() == []
    alarms.validation(predicting(10, [0, 1]), [(2, 3)], LATE)
    line, = said()
    assert "5 validations in a row have not predicted a pixel as pool" in line


def test_a_class_that_is_not_there_need_not_be_predicted(alarms, said):
    matrix = [[600, 10, 0], [10, 300, 0], [0, 0, 0]]
    for number in range(1, 8):
        alarms.validation(validation(number, matrix, target_pixels=[610, 310, 0],
                                     predicted_pixels=[610, 310, 0]), [(2, 2)], LATE)
    assert said() == []


def test_the_first_steps_may_predict_what_they_like(alarms, said):
    for number in range(1, 11):
        alarms.validation(predicting(number, [0]), [(1, 3)], 20 * number)
    assert said() == []
    for number in (11, 12, 13):
        alarms.validation(predicting(number, [0]), [(1, 3)], 20 * number)
    line, = said()
    assert "collapse; 100 % of the pixels as ground" in line


# ---------------------------------------------------------------- as the monitor asks for them


@pytest.fixture
def monitor(tmp_path):
    model = build_model("mini", 3)
    return Monitor(tmp_path, model, SGD(model, 0.1), NAMES, 255, 12)


def take_step(monitor, step, norm=0.1, change=1e-4):
    """Let the monitor see a step in which every trained parameter changes by `change`."""
    target = np.arange(32, dtype=np.uint8).reshape(2, 4, 4) % 3
    batch = Batch(np.zeros((2, 4, 4, 3), np.float32), target, ("a", "b"))
    flat = monitor.flat
    flat.grad[...] = norm / np.sqrt(flat.grad.size)
    monitor.gradients(step, 1, [batch], {"train_loss": 1.0}, norm)
    if np.isfinite(norm):
        for block, _ in flat.trained_blocks():
            flat.data[block] += np.float32(change)
        monitor.updated(step, 0.1)


@pytest.mark.parametrize("step, message", [
    ({"norm": 2e3}, "exploding"), ({"norm": 1e-8}, "vanishing"), ({"change": 1.0}, "as long as"),
    ({"norm": np.inf}, None), ({"norm": np.nan}, None), ({}, None)])
def test_steps_are_judged_and_one_that_is_not_finite_is_for_others_to_tell(
        monitor, said, step, message):
    for number in range(3):
        take_step(monitor, number, **step)
    lines = said()
    assert len(lines) == (message is not None) and all(message in line for line in lines)


def test_a_layer_is_faint_only_if_it_is_in_all_sampled_steps(monitor, said):
    for number, norm in enumerate((1e-6, 1e-1, 1e-6)):
        take_step(monitor, number, norm=norm)
    monitor.end_of_epoch(1)
    assert not any("vanishing" in line for line in said())
    for number in range(3):
        take_step(monitor, number, norm=1e-6)  # each layer has a part of it
    monitor.end_of_epoch(2)
    assert any("layers stayed below 1e-07 in epoch 2: vanishing" in line for line in said())


@pytest.mark.parametrize("how", ["no rate", "no backward", None])
def test_what_is_frozen_on_purpose_is_no_fault(monitor, said, how):
    if how == "no backward":
        monitor.model.backbone.frozen = True
    elif how == "no rate":
        monitor.flat.set_lr_scale("backbone", 0.0)
    before = monitor.flat.data.copy()
    for step in range(3):
        take_step(monitor, step)
    for name, part in monitor.flat.slices.items():  # nothing of it has moved
        if name.startswith("backbone."):
            monitor.flat.data[part] = before[part]
    monitor.end_of_epoch(1)
    assert any("have not moved" in line for line in said()) == (how is None)


def test_validations_are_judged_by_the_steps_of_the_run(monitor, said):
    truth = np.arange(32, dtype=np.uint8).reshape(2, 4, 4) % 3
    batch, constant = Batch(None, truth, ("a", "b")), np.zeros_like(truth)
    confusion = ConfusionMatrix(3)
    confusion.update(truth, constant)
    for number in range(1, 7):
        take_step(monitor, 2 if number <= 3 else LATE)
        monitor.observe(batch, constant)
        monitor.end_of_validation(number, 1.0, confusion)
        assert (number == 6) == any("of epoch 6 are predicted as one" in line for line in said())


# ---------------------------------------------------------------- as a user meets them


def train_on_plans(monkeypatch, folder, flags):
    """Train on small floor plans, 12 steps an epoch, with --debug; return the exit code."""
    monkeypatch.setattr(
        datasets, "open_dataset", lambda data, layout, split, **options: FloorPlans(
            split, length=8 if split == "val" else 48, size=(64, 80)))
    return run_command(train.main, [
        "--data", "floorplans", "--batch-size", "4", "--num-workers", "0", "--debug",
        "--output-dir", str(folder / "run"), *flags.split()])


@pytest.mark.parametrize("flags", [
    "--loss combined --epochs 2",
    "--loss ce --epochs 2 --optimizer sgd --lr 0.1 --clip-norm 1",
    *(pytest.param(flags, marks=pytest.mark.slow) for flags in (
        "--loss ce --class-weights none --epochs 6", "--loss focal --epochs 24 --ema 0.9",
        "--loss dice --class-weights none --epochs 24 --accumulate 2",
        "--loss lovasz --class-weights none --epochs 24",
        "--loss ce --epochs 30 --optimizer sgd --lr 0.1 --augment standard"))])
def test_no_healthy_training_gives_a_warning(monkeypatch, tmp_path, capsys, flags):
    assert train_on_plans(monkeypatch, tmp_path, flags) == 0
    said = capsys.readouterr().out
    assert "debug:" not in said and "epoch   2/" in said


def test_a_training_reports_its_faults_once(monkeypatch, tmp_path, capsys):
    assert train_on_plans(monkeypatch, tmp_path,
                          "--loss ce --epochs 3 --optimizer sgd --lr 1e-12") == 0
    still, creep = sorted(line for line in capsys.readouterr().out.splitlines()
                          if "debug:" in line)
    assert "parameter arrays have not moved since the start" in still
    assert "no update of epoch 1 was longer than" in creep
