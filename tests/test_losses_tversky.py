import itertools

import numpy as np
import pytest
from loss_cases import (
    assert_gradient_matches_differences,
    oracle_loss_and_gradient,
    random_batch,
    relative_error,
    warn_afresh,
)

from minisegnet.losses import dice_backward, dice_forward, tversky_backward, tversky_forward

OPTIONS = {
    "default": {},
    "no smooth": {"smooth": 0.0},
    "false positives dear": {"alpha": 0.9, "beta": 0.1},
    "all classes": {"classes": "all"},
    "everything": {"alpha": 1.3, "beta": 0.4, "smooth": 0.3, "classes": "all",
                   "weight": [1, 2, 0, 4, 5]},
}
BOTH = pytest.mark.parametrize("implementation", ["numpy", "cuda_cpu"])


def loss_and_gradient(logits, target, dloss=1.0, **options):
    loss, cache = tversky_forward(logits, target, **options)
    return loss, tversky_backward(dloss, cache)


def batch_without_class_two(rng, ignore_index=255, **options):
    logits, target = random_batch(rng, num_classes=5, ignore_index=ignore_index, **options)
    target[target == 2] = 3
    return logits, target


@BOTH
def test_two_pixels_by_hand(implementation):
    # p = [.8 .2] true 0, p = [.4 .6] true 1, and an ignored one; alpha 0.3, beta 0.7, smooth 1
    logits = np.log([[0.8, 0.2], [0.4, 0.6], [0.9, 0.1]]).reshape(1, 1, 3, 2)
    target = np.array([0, 1, 255]).reshape(1, 1, 3)
    loss, dlogits = loss_and_gradient(logits, target, implementation=implementation)
    # class 0: 0.8 found, 0.4 wrongly, 0.2 missed; class 1: 0.6, 0.2, 0.4
    q = np.array([0.8 + 0.3 * 0.4 + 0.7 * 0.2 + 1, 0.6 + 0.3 * 0.2 + 0.7 * 0.4 + 1])
    index = np.array([1.8, 1.6]) / q
    assert loss == pytest.approx(1 - index.mean(), rel=1e-14)
    # first pixel, alpha + beta = 1: dp = [-(1 - 0.3 TI_0) / q_0, 0.3 TI_1 / q_1] / 2
    dp = np.array([-(1 - 0.3 * index[0]) / q[0], 0.3 * index[1] / q[1]]) / 2
    assert dlogits[0, 0, 0, 0] == pytest.approx(0.8 * 0.2 * (dp[0] - dp[1]), rel=1e-13)
    assert not dlogits[0, 0, 2].any()


@pytest.mark.parametrize("smooth", [0.0, 0.7])
@pytest.mark.parametrize("classes", ["present", "all"])
def test_with_both_at_one_half_it_is_dice_with_twice_the_smooth(rng, smooth, classes):
    logits, target = batch_without_class_two(rng)
    options = dict(classes=classes, weight=[0.5, 2.0, 1.0, 7.0, 3.0])
    loss, dlogits = loss_and_gradient(logits, target, 1.3, alpha=0.5, beta=0.5, smooth=smooth,
                                      **options)
    dice, cache = dice_forward(logits, target, smooth=2 * smooth, **options)
    assert loss == pytest.approx(dice, rel=1e-13)
    assert relative_error(dlogits, dice_backward(1.3, cache)) < 1e-13


def test_with_both_at_one_it_is_one_minus_the_iou_of_hard_predictions():
    predicted, target = np.array([0, 0, 0, 1, 1]), np.array([0, 0, 1, 1, 0])
    logits = 2000.0 * np.eye(2)[predicted].reshape(1, 1, 5, 2)
    loss, _ = tversky_forward(logits, target.reshape(1, 1, 5), alpha=1.0, beta=1.0, smooth=0.0)
    assert loss == pytest.approx(1 - (2 / 4 + 1 / 3) / 2, rel=1e-14)


def test_alpha_prices_false_positives_and_beta_false_negatives():
    # class 1 is predicted once too often; its other pixels are right
    logits = 2000.0 * np.eye(2)[[1, 1, 1, 0]].reshape(1, 1, 4, 2)
    target = np.array([1, 1, 0, 0]).reshape(1, 1, 4)
    only_class_one = dict(weight=[0, 1], smooth=0.0)
    assert tversky_forward(logits, target, alpha=0.4, beta=9.0, **only_class_one)[
        0] == pytest.approx(1 - 2 / 2.4)
    # seen from class 0, it is missed once
    assert tversky_forward(logits, target, alpha=9.0, beta=0.4, weight=[1, 0], smooth=0.0)[
        0] == pytest.approx(1 - 1 / 1.4)


@BOTH
@pytest.mark.parametrize(
    "prices, smooth, classes, weight, ignore_index",
    list(itertools.product([(0.3, 0.7), (1.5, 0.0)], [0.0, 1.0], ["present", "all"],
                           [None, [0.5, 2.0, 1.0, 7.0, 3.0]], [255, -1, 1])),
)
def test_loss_and_dlogits_match_autograd_for_every_set_of_options(
    rng, torch, prices, smooth, classes, weight, ignore_index, implementation
):
    logits, target = batch_without_class_two(rng, ignore_index)
    dloss = rng.uniform(0.5, 2.0)
    options = dict(alpha=prices[0], beta=prices[1], smooth=smooth, classes=classes, weight=weight,
                   ignore_index=ignore_index)
    loss, dlogits = loss_and_gradient(logits, target, dloss, **options,
                                      implementation=implementation)
    expected, dexpected = oracle_loss_and_gradient(torch, "tversky", logits, target, dloss,
                                                   **options)
    assert loss == pytest.approx(expected, rel=1e-12)
    assert relative_error(dlogits, dexpected) < 1e-12


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_dlogits_match_central_differences(rng, options):
    logits, target = batch_without_class_two(rng, shape=(1, 3, 4))
    _, dlogits = loss_and_gradient(logits, target, 1.7, **options)
    assert_gradient_matches_differences(
        lambda z: 1.7 * tversky_forward(z, target, **options)[0], logits, dlogits, rng
    )


@BOTH
def test_a_perfect_prediction_has_loss_zero_and_an_absent_class_does_not_spoil_it(
    rng, implementation
):
    target = rng.integers(0, 3, (2, 5, 7))
    logits = 2000.0 * np.eye(4)[target]
    for classes, smooth, alpha in itertools.product(("present", "all"), (0.0, 1.0), (0.0, 0.3)):
        loss, dlogits = loss_and_gradient(logits, target, classes=classes, smooth=smooth,
                                          alpha=alpha, implementation=implementation)
        assert loss == 0 and not dlogits.any()


def test_a_class_that_costs_nothing_has_no_gradient(rng):
    # absent, and false positives free: its index is 1 whatever is predicted
    logits, target = batch_without_class_two(rng)
    loss, dlogits = loss_and_gradient(logits, target, alpha=0.0, smooth=0.0, classes="all",
                                      weight=[0, 0, 1, 0, 0])
    assert loss == 0 and not dlogits.any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_huge_logits_stay_finite(rng, dtype, options):
    logits, target = batch_without_class_two(rng, dtype=dtype, scale=1e4)
    loss, dlogits = loss_and_gradient(logits, target, **options)
    assert np.isfinite(loss) and np.isfinite(dlogits).all()
    assert loss.dtype == dlogits.dtype == dtype


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_float32_is_close_to_float64(rng, options):
    logits, target = batch_without_class_two(rng, shape=(2, 90, 200), dtype=np.float32)
    loss, dlogits = loss_and_gradient(logits, target, **options)
    expected, dexpected = loss_and_gradient(logits.astype(np.float64), target, **options)
    assert loss == pytest.approx(expected, rel=3e-7)
    assert relative_error(dlogits, dexpected) < 2e-6


def test_no_class_present_is_loss_zero_and_said_once(rng, monkeypatch):
    warn_afresh(monkeypatch)
    logits, target = random_batch(rng, ignored=1.0)
    with pytest.warns(RuntimeWarning, match="Tversky loss: every pixel is ignored"):
        loss, dlogits = loss_and_gradient(logits, target)
    assert loss == 0 and not dlogits.any()
    loss, dlogits = loss_and_gradient(logits, target, classes="all")
    assert loss == 0 and not dlogits.any()


def test_unusable_options_are_refused(rng):
    logits, target = random_batch(rng)
    for options, message in (
        ({"classes": "some"}, "'some'"), ({"alpha": -0.1}, "alpha is -0.1 and beta 0.7"),
        ({"beta": np.inf}, "beta inf"), ({"smooth": -1.0}, "smooth is -1"),
        ({"weight": [1, 2]}, r"weight has shape \(2,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            tversky_forward(logits, target, **options)
    target[0, 0, 0] = 4
    with pytest.raises(ValueError, match="labels 4, neither"):
        tversky_forward(logits, target)
