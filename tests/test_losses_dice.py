import itertools

import numpy as np
import pytest
from loss_cases import (
    assert_gradient_matches_differences,
    from_torch,
    probabilities,
    random_batch,
    relative_error,
    to_torch,
    warn_afresh,
)

from minisegnet.losses import dice_backward, dice_forward

OPTIONS = {
    "default": {},
    "no smooth": {"smooth": 0.0},
    "all classes": {"classes": "all"},
    "weights": {"weight": [0.5, 2.0, 1.0, 7.0, 3.0]},
    "log": {"log": True},
    "smp": {"mode": "smp"},
    "smp with smooth": {"mode": "smp", "smooth": 0.7, "log": True},
    "everything": {"smooth": 0.3, "classes": "all", "weight": [1, 2, 0, 4, 5], "log": True},
}
BOTH = pytest.mark.parametrize("implementation", ["numpy", "cuda_cpu"])


def loss_and_gradient(logits, target, dloss=1.0, **options):
    loss, cache = dice_forward(logits, target, **options)
    return loss, dice_backward(dloss, cache)


def batch_without_class_two(rng, ignore_index=255, **options):
    logits, target = random_batch(rng, num_classes=5, ignore_index=ignore_index, **options)
    target[target == 2] = 3
    return logits, target


def sums_in_torch(torch, z, y, ignore_index):
    """I, S and T per class, for autograd."""
    valid = y != ignore_index
    p = torch.softmax(z, 1).movedim(1, 3)[valid]
    t = torch.nn.functional.one_hot(y[valid], z.shape[1]).to(z.dtype)
    return (p * t).sum(0), p.sum(0), t.sum(0)


def pooled_in_torch(torch, z, y, ignore_index, smooth, classes, weight, log):
    intersection, total, count = sums_in_torch(torch, z, y, ignore_index)
    dice = (2 * intersection + smooth) / (total + count + smooth)
    loss = -dice.clamp_min(1e-7).log() if log else 1 - dice
    weight = torch.ones(len(dice)) if weight is None else torch.tensor(weight)
    if classes == "present":
        weight = weight * (count > 0)
    return (weight * loss).sum() / weight.sum()


def smp_in_torch(torch, z, y, ignore_index, smooth, log, eps=1e-7):
    """segmentation_models.pytorch 0.5: soft_dice_score, then DiceLoss, multiclass from logits."""
    intersection, total, count = sums_in_torch(torch, z, y, ignore_index)
    score = (intersection + smooth) / ((total + count) / 2 + smooth).clamp_min(eps)
    loss = -score.clamp_min(eps).log() if log else 1 - score
    return (loss * (count > 0)).mean()


@BOTH
def test_two_pixels_by_hand(implementation):
    # p = [.8 .2] true 0, p = [.4 .6] true 1, and an ignored one; smooth 1
    logits = np.log([[0.8, 0.2], [0.4, 0.6], [0.9, 0.1]]).reshape(1, 1, 3, 2)
    target = np.array([0, 1, 255]).reshape(1, 1, 3)
    loss, dlogits = loss_and_gradient(logits, target, implementation=implementation)
    dice = np.array([(2 * 0.8 + 1) / (1.2 + 1 + 1), (2 * 0.6 + 1) / (0.8 + 1 + 1)])
    assert loss == pytest.approx(1 - dice.mean(), rel=1e-14)
    # first pixel: dp = dS + [dI_0, 0], and dz_0 = p_0 (1 - p_0) (dp_0 - dp_1)
    dp = np.array([dice[0] / 3.2 - 2 / 3.2, dice[1] / 2.8]) / 2
    assert dlogits[0, 0, 0, 0] == pytest.approx(0.8 * 0.2 * (dp[0] - dp[1]), rel=1e-13)
    assert not dlogits[0, 0, 2].any()


@BOTH
@pytest.mark.parametrize(
    "smooth, classes, weight, log, ignore_index",
    list(itertools.product([0.0, 1.0], ["present", "all"], [None, [0.5, 2.0, 1.0, 7.0, 3.0]],
                           [False, True], [255, -1, 1])),
)
def test_loss_and_dlogits_match_autograd_for_every_set_of_options(
    rng, torch, smooth, classes, weight, log, ignore_index, implementation
):
    logits, target = batch_without_class_two(rng, ignore_index)
    dloss = rng.uniform(0.5, 2.0)
    options = dict(smooth=smooth, classes=classes, weight=weight, log=log,
                   ignore_index=ignore_index)
    loss, dlogits = loss_and_gradient(logits, target, dloss, **options,
                                      implementation=implementation)
    z, y = to_torch(torch, logits, target)
    expected = pooled_in_torch(torch, z, y, **options)
    (expected * dloss).backward()
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    assert relative_error(dlogits, from_torch(z.grad)) < 1e-12


@BOTH
@pytest.mark.parametrize("smooth", [0.0, 1.0])
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("ignore_index", [255, 1])
def test_mode_smp_matches_the_formula_of_segmentation_models_pytorch(
    rng, torch, smooth, log, ignore_index, implementation
):
    logits, target = batch_without_class_two(rng, ignore_index)
    loss, dlogits = loss_and_gradient(logits, target, 1.3, mode="smp", smooth=smooth, log=log,
                                      ignore_index=ignore_index, implementation=implementation)
    z, y = to_torch(torch, logits, target)
    expected = smp_in_torch(torch, z, y, ignore_index, smooth, log)
    (expected * 1.3).backward()
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    assert relative_error(dlogits, from_torch(z.grad)) < 1e-12


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_dlogits_match_central_differences(rng, options):
    logits, target = batch_without_class_two(rng, shape=(1, 3, 4))
    _, dlogits = loss_and_gradient(logits, target, 1.7, **options)
    assert_gradient_matches_differences(
        lambda z: 1.7 * dice_forward(z, target, **options)[0], logits, dlogits, rng
    )


def test_mode_smp_with_few_classes_present_stays_small(rng):
    # 3 of 21 classes present: never above 3/21, however wrong
    target = rng.integers(0, 3, (2, 5, 7))
    logits = np.zeros((2, 5, 7, 21))
    logits[..., 20] = 50.0
    loss, _ = dice_forward(logits, target, mode="smp", smooth=0.0)
    assert loss == pytest.approx(3 / 21, rel=1e-9)
    assert dice_forward(logits, target, smooth=0.0)[0] == pytest.approx(1.0, rel=1e-9)


@BOTH
def test_a_perfect_prediction_has_loss_zero_and_an_absent_class_does_not_spoil_it(
    rng, implementation
):
    target = rng.integers(0, 3, (2, 5, 7))
    logits = 2000.0 * np.eye(4)[target]
    for classes in ("present", "all"):
        for smooth in (0.0, 1.0):
            loss, dlogits = loss_and_gradient(logits, target, classes=classes, smooth=smooth,
                                              implementation=implementation)
            assert loss == 0 and not dlogits.any()


def test_an_absent_class_is_only_pushed_down_if_all_are_averaged(rng):
    logits, target = batch_without_class_two(rng)
    present, _ = dice_forward(logits, target)
    everything, _ = dice_forward(logits, target, classes="all")
    p = probabilities(logits)[target != 255]
    absent = 1 - 1 / (p[:, 2].sum() + 1)
    assert everything == pytest.approx((4 * present + absent) / 5, rel=1e-12)


@BOTH
def test_log_dice_of_a_hopeless_class_is_cut_with_its_gradient(torch, implementation):
    # class 0 is there with p = 1e-11: its dice lies below 1e-7, class 1 alone still learns
    logits = np.array([[0.0, 25.0, 0.0], [1.0, 2.0, 0.0]]).reshape(1, 1, 2, 3)
    target = np.array([0, 1]).reshape(1, 1, 2)
    logits[0, 0, 1, 0] = -30.0
    options = dict(smooth=0.0, classes="present", weight=None, log=True)
    loss, dlogits = loss_and_gradient(logits, target, **options, implementation=implementation)
    z, y = to_torch(torch, logits, target)
    expected = pooled_in_torch(torch, z, y, 255, **options)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    assert relative_error(dlogits, from_torch(z.grad)) < 1e-12


@BOTH
def test_log_dice_of_zero_is_cut(rng, implementation):
    logits, target = batch_without_class_two(rng)
    loss, dlogits = loss_and_gradient(logits, target, log=True, classes="all", smooth=0.0,
                                      weight=[0, 0, 1, 0, 0], implementation=implementation)
    assert loss == pytest.approx(-np.log(1e-7)) and not dlogits.any()


def test_equals_one_image_of_all_pixels(rng):
    logits, target = random_batch(rng)
    loss, dlogits = loss_and_gradient(logits, target)
    other, dother = loss_and_gradient(logits.reshape(1, -1, 1, 4), target.reshape(1, -1, 1))
    assert other == pytest.approx(loss, rel=1e-14)
    assert relative_error(dother.reshape(dlogits.shape), dlogits) < 1e-14


@BOTH
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_huge_logits_stay_finite(rng, dtype, options, implementation):
    logits, target = batch_without_class_two(rng, dtype=dtype, scale=1e4)
    loss, dlogits = loss_and_gradient(logits, target, **options, implementation=implementation)
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
    with pytest.warns(RuntimeWarning, match="ignored"):
        loss, dlogits = loss_and_gradient(logits, target)
    assert loss == 0 and not dlogits.any()
    for options in ({"classes": "all"}, {"mode": "smp"}):
        loss, dlogits = loss_and_gradient(logits, target, **options)
        assert loss == 0 and not dlogits.any()


def test_non_contiguous_inputs_are_read_right_and_left_alone(rng):
    logits, target = random_batch(rng, shape=(4, 10, 7), num_classes=8)
    logits, target = logits[::2, 1::2, ::-1, ::2], np.minimum(target, 3)[::2, 1::2, ::-1]
    before = logits.copy(), target.copy()
    found = loss_and_gradient(logits, target, 0.3, ignore_index=3)
    assert (logits == before[0]).all() and (target == before[1]).all()
    expected = loss_and_gradient(*before, 0.3, ignore_index=3)
    assert found[0] == expected[0] and (found[1] == expected[1]).all()


def test_backward_can_be_asked_twice(rng):
    _, cache = dice_forward(*random_batch(rng))
    first = dice_backward(2.5, cache)
    np.testing.assert_allclose(dice_backward(2.5, cache), first, rtol=0)


def test_unusable_options_are_refused(rng):
    logits, target = random_batch(rng)
    for options, message in (
        ({"classes": "some"}, "'some'"), ({"mode": "mean"}, "'mean'"),
        ({"smooth": -1.0}, "smooth is -1"), ({"mode": "smp", "classes": "all"}, "mode='smp'"),
        ({"mode": "smp", "weight": [1, 1, 1, 1]}, "mode='smp'"),
        ({"weight": [1, 2]}, r"weight has shape \(2,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            dice_forward(logits, target, **options)
    target[0, 0, 0] = 4
    with pytest.raises(ValueError, match="labels 4, neither"):
        dice_forward(logits, target)
