"""The verdict: each reading of the two losses has its log, and a healthy run has none."""

import math

import pytest

from minisegnet.verdict import verdict

K = 12


def log_of(train, val, mean_iou=0.4, loss=None):
    """A record per training loss; a validation loss of None is an epoch without validation."""
    log = []
    for epoch, (t, v) in enumerate(zip(train, val), 1):
        record = {"epoch": epoch, "train_loss": t}
        if v is not None:
            record.update(val_loss=v, mean_iou=mean_iou, iou=[mean_iou] * K)
        if loss is not None:
            record["loss"] = loss[epoch - 1]
        log.append(record)
    return log


def decay(start, end, epochs):
    return [start * (end / start) ** (i / (epochs - 1)) for i in range(epochs)]


def scaled(losses, *factors):
    return [loss * factor for loss, factor in zip(losses, factors, strict=True)]


HEALTHY = decay(2.4, 0.2, 8)
OVERFITTED = [1.3, 0.9, 0.7, 0.6, 0.65, 0.72, 0.8, 0.9]


def words_of(log, *beginnings):
    """Assert that the sentences begin in these ways; return them as one text."""
    found = verdict(log)
    assert [sentence.split()[0] for sentence in found] == list(beginnings), found
    assert all("\n" not in s and s.endswith(".") for s in found)
    return " ".join(found)


@pytest.mark.parametrize("log", [
    log_of(HEALTHY, scaled(HEALTHY, *[1.1] * 8)),
    # the default run on floor plans: lower in the first epoch only, then above, then close
    log_of([2.72, 0.78, 0.57, 0.50, 0.38, 0.30, 0.24, 0.20],
           [1.87, 1.18, 0.92, 0.84, 0.37, 0.29, 0.24, 0.24], mean_iou=0.7),
    # one bad epoch at the end, one in between
    log_of(HEALTHY, scaled(HEALTHY, 1.1, 1.1, 1.1, 1.1, 1.1, 1.1, 1.1, 4)),
    log_of(HEALTHY, scaled(HEALTHY, 1.1, 1.1, 1.1, 4, 1.1, 1.1, 1.1, 1.1)),
    # pretrained: starts low, ends well
    log_of(decay(0.3, 0.2, 8), decay(0.31, 0.22, 8), mean_iou=0.7),
    # converged and flat, but far better than one class
    log_of([0.2] * 8, [0.21] * 8, mean_iou=0.7),
    # validated every second epoch
    log_of(HEALTHY, [None if i % 2 == 0 else 1.1 * v for i, v in enumerate(HEALTHY)]),
], ids=["plain", "floor plans", "bad end", "bad middle", "pretrained", "converged", "val_every_2"])
def test_nothing_is_said_of_a_healthy_run(log):
    assert verdict(log) == []


@pytest.mark.parametrize("log, count", [
    ([], "0 validations"), (log_of([2.4], [2.0]), "1 validation:"),
    (log_of([2.4, 2.0], [2.0, 1.9]), "2 validations"),
    (log_of(HEALTHY, [None] * 7 + [0.2]), "1 validation:"),
    (log_of(HEALTHY, [None] * 8), "0 validations"),
    (log_of(HEALTHY[:2] + OVERFITTED[:2], HEALTHY[:2] + OVERFITTED[:2],
            loss=["ce", "ce", "dice", "dice"]), "2 validations with the loss dice")])
def test_a_short_log_says_that_it_is_too_short(log, count):
    assert count in words_of(log, count.split()[0]) and "too few" in verdict(log)[0]


@pytest.mark.parametrize("factors, where", [
    ([0.8] * 8, "throughout"), ([0.8, 0.8, 0.9, 1.1, 1.1, 1.1, 1.1, 1.1], "epoch 3"),
    ([1.1, 0.9, 1.1, 0.9, 1.1, 0.9, 1.1, 0.9], "4 of 8")])
def test_validation_below_training_is_explained_and_not_blamed(factors, where):
    text = words_of(log_of(HEALTHY, scaled(HEALTHY, *factors)), "Validation")
    assert where in text and "augmentation" in text


@pytest.mark.parametrize("factors", [[0.8] + 7 * [1.1], [0.97] * 8, [1.1, 0.8] + 6 * [1.1]])
def test_validation_below_training_once_or_hardly_is_no_news(factors):
    assert verdict(log_of(HEALTHY, scaled(HEALTHY, *factors))) == []


def test_validation_that_rises_while_training_falls_is_overfitting_and_names_the_best_epoch():
    text = words_of(log_of(decay(1.2, 0.1, 8), OVERFITTED), "Overfitting:")
    assert "epoch 4" in text and "rises" in text
    for cure in ("--augment", "--weight-decay", "--epochs 4"):
        assert cure in text


def test_validation_that_stands_still_far_above_training_is_overfitting():
    val = [1.3, 0.9, 0.7, 0.6, 0.61, 0.6, 0.61, 0.62]
    assert "falls no more" in words_of(log_of(decay(1.2, 0.1, 8), val), "Overfitting:")


@pytest.mark.parametrize("train, val", [
    ([1.25, 0.88, 0.7, 0.62, 0.6, 0.58, 0.57, 0.56],
     [1.3, 0.9, 0.7, 0.6, 0.65, 0.7, 0.75, 0.8]),  # risen, but not far above
    ([1.2, 0.8, 0.5, 0.3, 0.3, 0.3, 0.3, 0.3], OVERFITTED),  # training falls no more either
    (decay(1.2, 0.1, 8), [1.3, 1.1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.9]),  # one bad epoch at the end
], ids=["no gap", "training flat", "outlier"])
def test_a_rise_alone_is_no_overfitting(train, val):
    assert verdict(log_of(train, val, mean_iou=0.6)) == []


def test_both_high_and_falling_is_underfitting():
    train = decay(2.4, 1.8, 6)
    text = words_of(log_of(train, scaled(train, *[1.05] * 6), mean_iou=0.12), "Underfitting:")
    assert "--epochs 12" in text and "--lr" in text


@pytest.mark.parametrize("train, val, mean_iou", [
    (decay(2.4, 0.6, 6), decay(2.5, 0.7, 6), 0.12),  # low by now
    (decay(2.4, 1.8, 6), decay(2.5, 1.9, 6), 0.7),  # high, but right
    ([2.4, 1.8, 1.8, 1.8, 1.8, 1.8], [2.4, 1.9, 1.9, 1.9, 1.9, 1.9], 0.12),  # falls no more
], ids=["low", "right", "flat"])
def test_high_or_falling_alone_is_no_underfitting(train, val, mean_iou):
    assert verdict(log_of(train, val, mean_iou)) == []


def test_a_loss_that_stays_at_ln_k_is_not_learning():
    flat = [math.log(K) * (1 - 0.001 * i) for i in range(5)]
    text = words_of(log_of(flat, flat, mean_iou=0.05), "Not")
    assert "ln K = 2.48" in text and "--lr" in text


def test_not_learning_shows_with_one_validation_and_with_another_loss():
    text = words_of(log_of([0.9] * 4, [None] * 3 + [0.9], mean_iou=0.06), "Not")
    assert "ln K" not in text and "0.9" in text
    # It falls, though no class but one is found yet; or a class is found, though it does not fall.
    assert "Not" not in " ".join(verdict(log_of([1, 0.9, 0.8, 0.7], [0.9] * 4, mean_iou=0.06)))
    assert "Not" not in " ".join(verdict(log_of([0.9] * 4, [0.9] * 4, mean_iou=0.1)))


def test_absent_classes_raise_what_one_class_everywhere_scores():
    log = log_of([0.9] * 4, [0.9] * 4, mean_iou=0.3)
    assert verdict(log) == []
    for record in log:
        record["iou"] = [0.9, 0.0, 0.0] + [None] * 9
    words_of(log, "Not")


def test_only_epochs_with_the_last_loss_are_compared():
    train = decay(0.3, 0.1, 5) + decay(0.9, 0.5, 5)
    val = scaled(train, *[0.8] * 5, *[1.1] * 5)
    assert verdict(log_of(train, val, 0.6, loss=["focal"] * 5 + ["ce"] * 5)) == []
    words_of(log_of(train, val, 0.6), "Validation")  # read as one course
    overfitted = log_of([0.25, 0.25] + decay(1.2, 0.1, 8), [0.3, 0.3] + OVERFITTED,
                        loss=["focal"] * 2 + ["ce"] * 8)
    assert "epoch 6" in words_of(overfitted, "Overfitting:")


def test_a_loss_or_score_that_was_not_finite_counts_as_none():
    log = log_of(HEALTHY, scaled(HEALTHY, *[1.1] * 8))
    log[3]["val_loss"] = None
    log[-1].update(mean_iou=None, iou=[None] * K)
    assert verdict(log) == []
