"""The loop: which step sees which rate, what is kept and when, and how it ends."""

import signal

import numpy as np
import pytest

from minisegnet.datasets import Batch
from minisegnet.losses.criterion import Criterion
from minisegnet.models import build_model
from minisegnet.optim import (
    SGD,
    ConstantLR,
    EarlyStopping,
    ExponentialMovingAverage,
    ReduceLROnPlateau,
    global_norm,
)
from minisegnet.training.checkpoint import read_checkpoint
from minisegnet.training.run_folder import read_log
from minisegnet.training.trainer import Phase, Trainer

CE = Criterion("ce")


class Batches:
    """The same batches every epoch; notes which epochs were asked for."""

    sampler = None

    def __init__(self, batches):
        self.fixed, self.epochs = batches, []

    def __len__(self):
        return len(self.fixed)

    def batches(self, epoch=0, start=0):
        self.epochs.append(epoch)
        yield from self.fixed[start:]


@pytest.fixture
def trainer(tmp_path, rng):
    def batch():
        return Batch(rng.standard_normal((2, 16, 16, 3), dtype=np.float32),
                     rng.integers(0, 3, (2, 16, 16), dtype=np.uint8), ("a", "b"))

    def make(**options):
        model = build_model("mini", 3)
        loader = options.pop("train_loader", Batches([batch(), batch()]))
        phase = Phase(Criterion("ce"), loader, Batches([batch()]))
        run = Trainer(model=model, optimizer=SGD(model, 1.0), phase=lambda epoch: phase,
                      folder=tmp_path, class_names=("a", "b", "c"),
                      **{"schedule": ConstantLR(1e-2), "epochs": 2, **options})
        run.train_loader, run.val_loader = phase.train_loader, phase.val_loader
        return run

    return make


def scores(trainer, mean_ious):
    """Let validation return these mean IoUs, one after the other."""
    mean_ious = iter(mean_ious)
    trainer._validate = lambda phase: {
        "val_loss": 1.0, "mean_iou": next(mean_ious), "active_classes": 1,
        "share_above_0.30": 0.0, "pixel_accuracy": 0.5, "iou": np.zeros(3)}


def test_the_schedule_is_asked_for_every_step_from_0(trainer):
    asked = []

    def schedule(step):
        asked.append(step)
        return 10.0 ** -(step + 2)

    run = trainer(schedule=schedule)
    assert run.fit()
    assert asked == [0, 1, 2, 3]
    assert [r["lr"] for r in read_log(run.folder / "log.jsonl")] == [1e-3, 1e-5]
    assert run.train_loader.epochs == [1, 2]  # the epoch decides order and augmentation


def test_the_gradient_of_a_step_is_its_own(trainer):
    run = trainer(schedule=ConstantLR(0.0))
    run.model.aspp.dropout.p = 0.0
    (batch, _), run.model.training = run.train_loader.fixed, True
    first, second = (run.train_step([batch], CE) for _ in range(2))
    assert first == second


def test_clipping_scales_the_gradient_and_reports_the_norm_before(trainer):
    run = trainer(clip_norm=1e-3)
    values = run.train_step(run.train_loader.fixed[:1], CE)
    norm = values.pop("gradient_norm")
    assert norm > 1e-2 and set(values) == {"train_loss"}
    assert global_norm(run.optimizer.flat) == pytest.approx(1e-3, rel=1e-3)
    free = trainer(train_loader=run.train_loader)
    free.train_step(free.train_loader.fixed[:1], CE)
    assert global_norm(free.optimizer.flat) == pytest.approx(norm, rel=1e-6)


def test_an_epoch_reports_the_means_over_its_steps(trainer):
    run = trainer(epochs=1)
    steps = iter([{"train_loss": 1.0, "train_dice": 0.25, "gradient_norm": 4.0},
                  {"train_loss": 2.0, "train_dice": 0.75, "gradient_norm": 8.0}])
    run.train_step = lambda batches, criterion: next(steps)
    run.fit()
    record, = read_log(run.folder / "log.jsonl")
    assert (record["train_loss"], record["train_dice"], record["gradient_norm"]) == (1.5, 0.5, 6.0)


def test_training_steps_use_batch_statistics_and_validation_the_running_ones(trainer):
    run, seen = trainer(), []
    forward = run.model.forward_coarse

    def noting(images):
        seen.append(run.model.training)
        return forward(images)

    run.model.forward_coarse = noting
    run.model.eval()
    run.fit()
    assert seen == [True, True, False, True, True, False]


def test_validation_comes_every_few_epochs_and_at_the_end(trainer):
    run = trainer(epochs=5, val_every=2)
    run.fit()
    log = read_log(run.folder / "log.jsonl")
    assert [r["epoch"] for r in log] == [1, 2, 3, 4, 5]
    assert [r["epoch"] for r in log if "mean_iou" in r] == [2, 4, 5]


def test_a_record_holds_what_the_confusion_matrix_says(trainer):
    run = trainer(epochs=1)
    target = run.val_loader.fixed[0].target  # (2, 16, 16): 2 pixels of class 0, 18 of class 1
    target[...] = 255
    target[0, 0, :2], target[1, 0:2, :9] = 0, 1
    bias = run.model.classifier.params["bias"]
    bias[...] = (50.0, 0.0, 0.0)
    run.fit()
    record, = read_log(run.folder / "log.jsonl")
    assert record["iou"] == [0.1, 0.0, None]
    assert record["mean_iou"] == pytest.approx(0.05)
    assert record["mean_iou_all"] == pytest.approx(0.1 / 3)
    assert record["active_classes"] == 1 and record["share_above_0.30"] == 0.0
    assert record["pixel_accuracy"] == pytest.approx(0.1) and record["recall"][:2] == [1.0, 0.0]


def test_the_best_checkpoint_is_the_first_best_and_the_last_is_the_last(trainer):
    run = trainer(epochs=4, save_every=3)
    scores(run, [0.2, 0.5, 0.5, 0.1])
    run.fit()
    meta = {name: read_checkpoint(run.folder / f"{name}.npz").meta
            for name in ("best", "last", "epoch_0003")}
    assert {name: m["epoch"] for name, m in meta.items()} == {
        "best": 2, "last": 4, "epoch_0003": 3}
    assert meta["last"]["step"] == 8 and meta["last"]["best"] == 0.5
    assert not (run.folder / "epoch_0002.npz").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_its_step_with_the_state_saved(trainer, number):
    before = signal.getsignal(number)
    run = trainer()
    step = run.train_step

    def struck(*arguments):
        signal.raise_signal(number)
        return step(*arguments)

    run.train_step = struck
    assert not run.fit()
    assert signal.getsignal(number) is before
    assert [path.name for path in run.folder.iterdir()] == ["last.npz"]
    checkpoint = read_checkpoint(run.folder / "last.npz")
    assert (checkpoint.meta["epoch"], checkpoint.meta["step"]) == (0, 1)


def test_a_second_signal_ends_the_run_at_once(trainer):
    before = signal.getsignal(signal.SIGINT)
    run = trainer()

    def struck_twice(*arguments):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("still running")

    run.train_step = struck_twice
    with pytest.raises(KeyboardInterrupt):
        run.fit()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_during_validation_ends_the_run_after_it(trainer):
    run = trainer(epochs=3)
    validate = run._validate

    def struck(phase):
        signal.raise_signal(signal.SIGINT)
        return validate(phase)

    run._validate = struck
    assert not run.fit()
    assert run.train_loader.epochs == [1]
    assert read_checkpoint(run.folder / "last.npz").meta["epoch"] == 1
    assert len(read_log(run.folder / "log.jsonl")) == 1


def three_batches(rng):
    """Two full batches and one whose pictures are mostly ignored."""
    batches = []
    for ignored in (0, 4, 14):
        target = rng.integers(0, 3, (2, 16, 16), dtype=np.uint8)
        target[:, :ignored] = 255
        batches.append(Batch(rng.standard_normal((2, 16, 16, 3)), target, ("a", "b")))
    return batches


@pytest.mark.parametrize("name", ["ce", "focal"])
def test_accumulation_equals_the_large_batch(trainer, rng, name):
    batches = three_batches(rng)
    large = Batch(*(np.concatenate(arrays) for arrays in zip(*(b[:2] for b in batches))), ())
    criterion = Criterion(name, weight=np.array([1.0, 5.0, 0.3]))
    gradients, losses = [], []
    for parts in (batches, [large]):
        run = trainer(schedule=ConstantLR(0.0))
        model = build_model("mini", 3, dtype="float64").eval()
        run.model, run.optimizer = model, SGD(model, 0.0)
        losses.append(run.train_step(parts, criterion)["train_loss"])
        gradients.append(run.optimizer.flat.grad.copy())
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-12)
    assert np.linalg.norm(gradients[0] - gradients[1]) <= 1e-12 * np.linalg.norm(gradients[1])


def test_an_epoch_makes_a_step_of_every_n_batches_and_one_of_the_rest(trainer, rng):
    batches = [Batch(b.images.astype(np.float32), b.target, b.names)
               for _ in range(2) for b in three_batches(rng)][:5]
    run, seen = trainer(accumulate=2, train_loader=Batches(batches), epochs=1), []
    step = run.train_step
    run.train_step = lambda parts, criterion: (seen.append(len(parts)), step(parts, criterion))[1]
    run.fit()
    assert seen == [2, 2, 1] and run.step == 3


def test_averages_are_scored_and_kept(trainer):
    run = trainer(epochs=1)
    run.ema = ExponentialMovingAverage(run.optimizer, run.model, 0.9)
    scored, forward = [], run.model.forward_coarse

    def noting(images):
        if not run.model.training:
            scored.append(run.model.classifier.params["weight"].copy())
        return forward(images)

    run.model.forward_coarse = noting
    run.fit()
    best, last = (read_checkpoint(run.folder / f"{name}.npz") for name in ("best", "last"))
    np.testing.assert_array_equal(best.parameters["classifier.weight"], scored[0])
    trained = run.model.classifier.params["weight"]
    np.testing.assert_array_equal(last.parameters["classifier.weight"], trained)
    assert not np.array_equal(trained, scored[0]) and last.ema


def test_a_plateau_multiplies_the_schedule_and_is_told_of_validations_only(trainer):
    run = trainer(epochs=4, val_every=2, schedule=ConstantLR(0.5))
    run.plateau = ReduceLROnPlateau("max", patience=0, factor=0.1)
    scores(run, [0.3, 0.2])
    run.fit()
    rates = [record["lr"] for record in read_log(run.folder / "log.jsonl")]
    assert rates == [0.5, 0.5, 0.5, 0.5] and run.plateau.scale == 0.1
    run.train_step(run.train_loader.fixed[:1], CE)
    assert run.optimizer.lr == pytest.approx(0.05)


def test_a_run_stops_early_and_says_so(trainer, capsys):
    run = trainer(epochs=9)
    run.early_stopping = EarlyStopping("max", 2)
    scores(run, [0.1, 0.3, 0.2, 0.3])
    assert run.fit() and run.epoch == 4
    assert "stopped early: no better mean_iou for 2 validations" in capsys.readouterr().out


def test_the_best_goes_by_the_monitor(trainer):
    run = trainer(epochs=3, monitor="val_loss")
    losses = iter([2.0, 1.0, 3.0])
    run._validate = lambda phase: {
        "val_loss": next(losses), "mean_iou": 0.5, "active_classes": 1, "share_above_0.30": 0.0,
        "pixel_accuracy": 0.5, "iou": np.zeros(3)}
    run.fit()
    meta = read_checkpoint(run.folder / "best.npz").meta
    assert (meta["epoch"], meta["monitor"], meta["best"]) == (2, "val_loss", 1.0)


def test_a_new_stage_begins_with_a_new_optimizer(trainer):
    run, resets = trainer(epochs=3), []
    phase = run.phase(1)
    run.phase = lambda epoch: phase._replace(starts_stage=epoch == 2, is_last=epoch >= 2)
    run.optimizer.reset_state = lambda: resets.append(run.epoch)
    run.plateau, run.early_stopping = ReduceLROnPlateau("max", patience=0), EarlyStopping("max", 2)
    scores(run, [0.9, 0.2, 0.1])
    run.fit()
    # What was best in the first stage is no measure for the second.
    assert resets == [1] and run.plateau.best == 0.2
    assert (run.early_stopping.best, run.early_stopping.num_bad) == (0.2, 1)


def test_early_stopping_waits_for_the_last_switch(trainer):
    run = trainer(epochs=9)
    phase = run.phase(1)
    run.phase = lambda epoch: phase._replace(is_last=epoch > 4)
    run.early_stopping = EarlyStopping("max", 1)
    scores(run, [0.5, 0.4, 0.3, 0.2, 0.1, 0.1])
    assert run.fit() and run.epoch == 6


def test_only_validated_epochs_count_whatever_the_monitor(trainer):
    run = trainer(epochs=7, val_every=3, monitor="train_loss")
    seen = []
    run.early_stopping = EarlyStopping("min", 9)
    run.early_stopping.update = lambda value: seen.append(value) and False
    run.fit()
    log = read_log(run.folder / "log.jsonl")
    assert seen == [log[epoch - 1]["train_loss"] for epoch in (3, 6, 7)]


def test_a_plateau_stops_at_the_least_rate_and_leaves_a_warm_up_below_it(trainer):
    run = trainer(min_lr=1e-3, schedule=lambda step: (1e-4, 1e-2)[step > 0])
    run.plateau = ReduceLROnPlateau("max", factor=0.01)
    run.plateau.scale = 0.01
    rates = []
    for _ in range(2):
        run.train_step(run.train_loader.fixed[:1], CE)
        rates.append(run.optimizer.lr)
    assert rates == [1e-4, 1e-3]
