"""The fingerprint: what blind predictors score, who is told from them, and the marks of a loss."""

import math

import numpy as np
import pytest

from minisegnet.imbalance.fingerprint import (
    format_fingerprint,
    information,
    know_nothing,
    loss_floor,
    loss_of_uniform,
    resembles,
    stall_value,
)
from minisegnet.losses import Criterion
from minisegnet.metrics import ConfusionMatrix

NAMES = ("background", "wall", "door", "window", "absent")
PIXELS = np.array([7200, 1500, 900, 400, 0])
K = len(NAMES)
WEIGHT = np.array([0.2, 1.0, 3.0, 7.0, 2.0])
SCORES = {"pixel_accuracy": "pixel_accuracy", "mean_iou": "mean_iou_present",
          "fw_iou": "fw_iou", "mean_dice": "mean_dice_present"}


def confusion_of(matrix):
    confusion = ConfusionMatrix(len(matrix))
    confusion.matrix += np.asarray(matrix, np.int64)
    return confusion


def blind(predicted, pixels=PIXELS, scale=10_000):
    """The ConfusionMatrix of who predicts these shares, whatever the truth; exact counts."""
    return confusion_of(np.rint(scale * np.outer(pixels, predicted)))


def baseline_of(confusion):
    _, truth, _ = confusion.counts
    return resembles(confusion, know_nothing(truth, NAMES))


# What they score

@pytest.mark.parametrize("number, predicted", list(enumerate(
    [np.eye(K)[0], np.full(K, 1 / K), PIXELS / PIXELS.sum()])))
def test_scores_are_those_of_the_confusion_matrix_of_such_a_predictor(number, predicted):
    baseline, confusion = know_nothing(PIXELS, NAMES)[number], blind(predicted)
    for ours, theirs in SCORES.items():
        assert getattr(baseline, ours) == pytest.approx(getattr(confusion, theirs), rel=1e-12)
    np.testing.assert_allclose(baseline.iou, confusion.iou, rtol=1e-12)  # nan where it has nan


def test_scores_are_those_of_predictions_drawn_at_random(rng):
    pixels = 30 * PIXELS
    target = np.repeat(np.arange(K), pixels)
    drawn = [np.zeros_like(target), rng.integers(0, K, target.size), rng.permutation(target)]
    for baseline, prediction in zip(know_nothing(pixels, NAMES), drawn):
        confusion = ConfusionMatrix(K)
        confusion.update(target, prediction)
        for ours, theirs in SCORES.items():
            assert getattr(baseline, ours) == pytest.approx(getattr(confusion, theirs), abs=2e-3)
        np.testing.assert_allclose(baseline.iou, confusion.iou, atol=3e-3)


def test_formulas_by_hand():
    always, uniform, by_share = know_nothing(PIXELS, NAMES)
    f = PIXELS / PIXELS.sum()
    assert always.name == "always predicting background"
    assert uniform.name == "uniform random guessing"
    assert by_share.name == "random guessing by class share"
    np.testing.assert_allclose(always.iou, [0.72, 0, 0, 0, np.nan])
    assert always.mean_iou == pytest.approx(0.72 / 4)  # four classes in truth or prediction
    np.testing.assert_allclose(uniform.iou, f / (1 + (K - 1) * f))
    assert uniform.pixel_accuracy == pytest.approx(1 / K)
    np.testing.assert_allclose(by_share.iou[:4], (f / (2 - f))[:4])
    assert by_share.pixel_accuracy == pytest.approx((f**2).sum())


def test_without_pixels_there_is_no_baseline():
    assert know_nothing(np.zeros(3, int), NAMES[:3]) == ()


# Who sits on them

@pytest.mark.parametrize("predicted, name", [
    (np.eye(K)[0], "always predicting background"),
    (np.eye(K)[3], "always predicting window"),
    (np.eye(K)[4], "always predicting absent"),
    ([0.97, 0.02, 0, 0, 0.01], "always predicting background"),
    (np.full(K, 1 / K), "uniform random guessing"),
    (PIXELS / PIXELS.sum(), "random guessing by class share"),
    ([0.5, 0, 0, 0.5, 0], "blind guessing (background 50%, window 50%)"),
])
def test_a_blind_model_is_named(predicted, name):
    found = baseline_of(blind(predicted))
    assert found.name == name
    assert found.mean_iou == pytest.approx(blind(found.predicted).mean_iou_present)


def test_a_few_stray_pixels_do_not_hide_a_collapse(rng):
    target = np.repeat(np.arange(K), 10 * PIXELS)
    prediction = np.where(rng.random(target.size) < 0.01, rng.integers(0, K, target.size), 0)
    confusion = ConfusionMatrix(K)
    confusion.update(target, prediction)
    assert baseline_of(confusion).name == "always predicting background"


def test_what_is_too_little_to_see_is_blind_all_the_same():
    matrix = blind([0.97, 0.03, 0, 0, 0]).matrix
    matrix[1] = 10_000 * 1500 * np.array([0.96, 0.04, 0, 0, 0])  # of walls, one more in a hundred
    assert 1e-4 < information(matrix) < 1e-3
    assert baseline_of(confusion_of(matrix)).name == "always predicting background"


def test_chance_in_a_small_set_is_not_taken_for_knowledge(rng):
    many = 0
    for _ in range(50):
        target, prediction = rng.integers(0, K, (2, 400))
        confusion = ConfusionMatrix(K)
        confusion.update(target, prediction)
        many += information(confusion.matrix) < 0.01
    assert many >= 45  # without the correction for chance, none: (K-1)^2 / (2 N) / ln K = 0.012


@pytest.mark.parametrize("change", [
    # weak: a fifth of the walls is found, a few doors called wall
    {(1, 0): 1200, (1, 1): 300, (2, 0): 800, (2, 1): 100},
    # one rare class found, nothing else: little information, but an IoU
    {(3, 0): 390, (3, 3): 10},
    # everything seen, one label too high: no IoU, all the information
    {(0, 0): 0, (0, 1): 7200, (1, 0): 0, (1, 2): 1500, (2, 0): 0, (2, 3): 900},
], ids=["weak", "one rare class", "shifted labels"])
def test_a_model_that_sees_something_is_left_in_peace(change):
    matrix = blind(np.eye(K)[0], scale=1).matrix
    for cell, count in change.items():
        matrix[cell] = count
    assert (matrix.sum(axis=1) == PIXELS).all()
    assert baseline_of(confusion_of(matrix)) is None


def test_there_is_no_verdict_without_counts_baselines_or_a_second_class():
    assert resembles(ConfusionMatrix(K), know_nothing(PIXELS, NAMES)) is None
    assert resembles(blind(np.eye(K)[0]), ()) is None
    assert baseline_of(confusion_of(np.diag([9, 0, 0, 0, 0]))) is None


def test_information_is_none_for_equal_rows_and_all_for_any_renaming(rng):
    assert information(np.outer(PIXELS, [3, 1, 0, 2, 9])) == pytest.approx(0, abs=1e-12)
    matrix = np.diag(PIXELS * 10**6)
    assert information(matrix) == pytest.approx(1, abs=1e-6)
    assert information(matrix[:, rng.permutation(K)]) == pytest.approx(1, abs=1e-6)
    assert math.isnan(information(np.diag([5, 0])))


# The marks of a loss

PRIOR = np.array([0.7, 0.1, 0.1, 0.1, 0.0])
SMOOTHED = {
    "smoothed": Criterion("ce", label_smoothing=0.1),
    "weighted and smoothed": Criterion("ce", weight=WEIGHT, label_smoothing=0.1),
    "a weight of 0": Criterion("ce", weight=[1, 2, 0, 1, 0], label_smoothing=0.3),
}
OTHERS = {
    "ce": Criterion("ce"), "weighted ce": Criterion("ce", weight=WEIGHT),
    "focal": Criterion("focal"), "weighted focal": Criterion("focal", weight=WEIGHT, gamma=0.5),
    "dice": Criterion("dice"), "weighted dice": Criterion("dice", weight=WEIGHT),
    "smp dice": Criterion("dice", dice_mode="smp"),
    "combined": Criterion("combined", weight=WEIGHT, lambda_focal=0.3, lambda_dice=2.0),
    "smp combined": Criterion("combined", dice_mode="smp"),
    "tversky": Criterion("tversky", weight=WEIGHT), "lovasz": Criterion("lovasz"),
    "weighted lovasz": Criterion("lovasz", weight=WEIGHT),
    "ohem": Criterion("ohem", weight=WEIGHT, ohem_thresh=0.2),
    "logit_adjusted": Criterion("logit_adjusted", prior=PRIOR, weight=WEIGHT, tau=1.5),
}


def every(criteria):
    return pytest.mark.parametrize("criterion", criteria.values(), ids=criteria)


SMALL = np.array([40, 9, 7, 4, 0])  # pixels per class
TARGET = np.repeat(np.arange(K), SMALL).reshape(1, 6, 10)


@every(SMOOTHED)
def test_the_floor_is_what_numeric_minimisation_reaches(criterion):
    logits = np.zeros((1, 6, 10, K))
    velocity = np.zeros_like(logits)
    for _ in range(4000):
        loss, cache = criterion.forward(logits, TARGET)
        velocity = 0.9 * velocity + criterion.backward(1.0, cache)
        logits -= 10 * velocity
    floor = loss_floor(criterion, SMALL)
    assert 0.05 < floor <= loss + 1e-12
    # A weight of 0 asks for a probability of 0, which logits reach at infinity only.
    attained = criterion.weight is None or min(criterion.weight) > 0
    assert loss == pytest.approx(floor, rel=1e-5 if attained else 1e-3)


@every({**SMOOTHED, **OTHERS})
def test_no_prediction_is_below_the_floor(criterion, rng):
    floor = loss_floor(criterion, SMALL)
    for scale in (0.1, 1, 3, 10):
        logits = scale * rng.standard_normal((*TARGET.shape, K))
        logits += scale * np.eye(K)[TARGET]
        assert criterion.forward(logits, TARGET)[0] >= floor - 1e-12


@every(OTHERS)
def test_without_smoothing_the_floor_of_0_is_approached(criterion):
    assert loss_floor(criterion, SMALL) == 0
    losses = [criterion.forward(scale * np.eye(K)[TARGET], TARGET)[0] for scale in (5, 10, 40)]
    assert losses[0] > losses[1] > losses[2] >= 0 and losses[2] < 1e-9


@every({**SMOOTHED, **OTHERS})
def test_the_loss_of_a_uniform_prediction_is_that_of_logits_of_zero(criterion):
    expected = criterion.forward(np.zeros((*TARGET.shape, K)), TARGET)[0]
    assert loss_of_uniform(criterion, SMALL) == pytest.approx(expected, rel=1e-12)


def test_lovasz_of_two_classes_at_a_half():
    target = np.repeat([0, 1], [7, 3]).reshape(1, 2, 5)
    criterion = Criterion("lovasz")
    expected = criterion.forward(np.zeros((1, 2, 5, 2)), target)[0]
    assert loss_of_uniform(criterion, np.array([7, 3])) == pytest.approx(expected, rel=1e-12)


@every({name: OTHERS[name] for name in
        ("dice", "weighted dice", "smp dice", "tversky", "lovasz", "weighted lovasz")})
def test_the_loss_stalls_where_always_the_majority_is_predicted(criterion):
    logits = np.zeros((*TARGET.shape, K))
    logits[..., 0] = 50
    expected = criterion.forward(logits, TARGET)[0]
    assert stall_value(criterion, SMALL) == pytest.approx(expected, rel=1e-9)


def test_of_combined_it_is_dice_that_stalls_and_cross_entropy_does_not():
    for mode in ("pooled", "smp"):
        combined, dice = (Criterion(name, dice_mode=mode) for name in ("combined", "dice"))
        assert stall_value(combined, SMALL) == stall_value(dice, SMALL)
    assert stall_value(Criterion("ce"), SMALL) is None
    assert stall_value(Criterion("dice"), 0 * SMALL) is None


def test_dice_stalls_near_one_less_a_kth_the_more_the_more_one_class_dominates():
    stalls = [stall_value(Criterion("dice"), np.array([10**8, *[n] * 11]))
              for n in (10**7, 10**6, 10**5)]
    assert stalls[0] > stalls[1] > stalls[2] > 1 - 1 / 12
    assert stalls[2] == pytest.approx(1 - 1 / 12, abs=1e-3)
    # segmentation_models.pytorch counts the 18 absent of 21 classes as right
    few = np.zeros(21, int)
    few[:3] = 10**8, 10**4, 10**4
    assert stall_value(Criterion("dice", dice_mode="smp"), few) == pytest.approx(2 / 21, abs=1e-4)


def test_nothing_to_learn_from_costs_nothing():
    assert loss_floor(SMOOTHED["smoothed"], 0 * SMALL) == 0
    assert loss_of_uniform(OTHERS["dice"], 0 * SMALL) == 0


# What is printed

def test_the_table_names_the_majority_and_how_many_classes_are_in_each_mean():
    lines = format_fingerprint(know_nothing(PIXELS, NAMES), SMOOTHED["smoothed"], PIXELS)
    assert lines[2].split()[-5:] == ["0.7200", "0.1800", "0.5184", "0.2093", "4"]
    assert lines[2].startswith("always predicting background")
    assert [line.split()[-1] for line in lines[3:5]] == ["5", "4"]
    assert "1.609 where all 5 classes are equally likely (ln 5)" in lines[5]
    assert f"above {loss_floor(SMOOTHED['smoothed'], PIXELS):.4g}" in lines[5]
    assert len(lines) == 6 and max(map(len, lines)) <= 120


def test_the_table_says_where_dice_stalls():
    for name, part in (("dice", "dice"), ("combined", "its dice")):
        criterion = Criterion(name)
        *_, floor, stall = format_fingerprint(know_nothing(PIXELS, NAMES), criterion, PIXELS)
        assert "can fall to 0" in floor
        assert stall.startswith(f"{part} stalls at {stall_value(criterion, PIXELS):.4g}")
        assert "1 of the 4 present" in stall


def test_without_pixels_the_table_says_so():
    assert format_fingerprint((), Criterion("ce"), np.zeros(3)) == [
        "no valid pixel to validate on: there is no score"]
