"""The loop: which step sees which rate, what is kept and when, and how it ends."""

import signal

import numpy as np
import pytest

from minisegnet.datasets import Batch
from minisegnet.losses.criterion import Criterion
from minisegnet.models import build_model
from minisegnet.optim import SGD, ConstantLR, global_norm
from minisegnet.training.checkpoint import read_checkpoint
from minisegnet.training.run_folder import read_log
from minisegnet.training.trainer import Trainer


class Batches:
    """The same batches every epoch; notes which epochs were asked for."""

    def __init__(self, batches):
        self.fixed, self.epochs = batches, []

    def __len__(self):
        return len(self.fixed)

    def batches(self, epoch=0):
        self.epochs.append(epoch)
        yield from self.fixed


@pytest.fixture
def trainer(tmp_path, rng):
    def batch():
        return Batch(rng.standard_normal((2, 16, 16, 3), dtype=np.float32),
                     rng.integers(0, 3, (2, 16, 16), dtype=np.uint8), ("a", "b"))

    def make(**options):
        model = build_model("mini", 3)
        options = {"schedule": ConstantLR(1e-2), "epochs": 2,
                   "train_loader": Batches([batch(), batch()]), **options}
        return Trainer(model=model, optimizer=SGD(model, 1.0), criterion=Criterion("ce"),
                       val_loader=Batches([batch()]), folder=tmp_path, class_names=("a", "b", "c"),
                       **options)

    return make


def scores(trainer, mean_ious):
    """Let validation return these mean IoUs, one after the other."""
    mean_ious = iter(mean_ious)
    trainer._validate = lambda: {
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
    first, second = run.train_step(batch), run.train_step(batch)
    assert first == second


def test_clipping_scales_the_gradient_and_reports_the_norm_before(trainer):
    run = trainer(clip_norm=1e-3)
    loss, parts, norm = run.train_step(run.train_loader.fixed[0])
    assert norm > 1e-2 and parts == {}
    assert global_norm(run.optimizer.flat) == pytest.approx(1e-3, rel=1e-3)
    free = trainer(train_loader=run.train_loader)
    free.train_step(free.train_loader.fixed[0])
    assert global_norm(free.optimizer.flat) == pytest.approx(norm, rel=1e-6)


def test_an_epoch_reports_the_means_over_its_steps(trainer):
    run = trainer(epochs=1)
    steps = iter([(1.0, {"dice": 0.25}, 4.0), (2.0, {"dice": 0.75}, 8.0)])
    run.train_step = lambda batch: next(steps)
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
    assert meta["last"]["step"] == 8 and meta["last"]["best_mean_iou"] == 0.5
    assert not (run.folder / "epoch_0002.npz").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_its_step_with_the_state_saved(trainer, number):
    before = signal.getsignal(number)
    run = trainer()
    step = run.train_step

    def struck(batch):
        signal.raise_signal(number)
        return step(batch)

    run.train_step = struck
    assert not run.fit()
    assert signal.getsignal(number) is before
    assert [path.name for path in run.folder.iterdir()] == ["last.npz"]
    checkpoint = read_checkpoint(run.folder / "last.npz")
    assert (checkpoint.meta["epoch"], checkpoint.meta["step"]) == (0, 1)


def test_a_second_signal_ends_the_run_at_once(trainer):
    before = signal.getsignal(signal.SIGINT)
    run = trainer()

    def struck_twice(batch):
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

    def struck():
        signal.raise_signal(signal.SIGINT)
        return validate()

    run._validate = struck
    assert not run.fit()
    assert run.train_loader.epochs == [1]
    assert read_checkpoint(run.folder / "last.npz").meta["epoch"] == 1
    assert len(read_log(run.folder / "log.jsonl")) == 1
