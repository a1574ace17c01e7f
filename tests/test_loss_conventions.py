"""What other projects call the same loss: against torch's pieces, our losses and worked sums."""

import numpy as np
import pytest
from loss_cases import probabilities, random_batch, relative_error

from minisegnet.losses import cross_entropy_forward, dice_forward, focal_forward
from minisegnet.losses.conventions import (
    conventions,
    mmseg1_weighted_cross_entropy,
    mmseg_cross_entropy,
    mmseg_dice,
    mmseg_focal,
    monai_dice,
    monai_focal,
    smp_cross_entropy,
    smp_dice,
    smp_focal,
    unet_dice,
)

WEIGHT = np.array([0.3, 2.0, 1.0, 5.0])


def value(forward, *arguments, **options):
    return float(forward(*arguments, **options)[0])


def classes_second(torch, logits, target):
    return torch.tensor(np.moveaxis(logits, 3, 1)), torch.tensor(target)


def same(found, expected):
    assert relative_error(found, expected) < 1e-12


# ------------------------------------------------------------------------------ cross-entropy


def test_with_half_of_the_pixels_ignored_smp_and_mmseg_give_half_of_torchs_mean(rng):
    logits, target = random_batch(rng, shape=(2, 4, 6), ignored=0)
    target[:, :2] = 255
    ours = value(cross_entropy_forward, logits, target)
    same(smp_cross_entropy(logits, target), ours / 2)
    same(mmseg_cross_entropy(logits, target), ours / 2)
    same(mmseg_cross_entropy(logits, target, avg_non_ignore=True), ours)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_smps_smoothed_sum_is_torchs_over_all_pixels(torch, rng, smoothing):
    logits, target = random_batch(rng)
    z, y = classes_second(torch, logits, target)
    total = torch.nn.functional.cross_entropy(z, y, ignore_index=255, reduction="sum",
                                              label_smoothing=smoothing)
    same(smp_cross_entropy(logits, target, smooth_factor=smoothing), total / target.size)


def test_mmsegs_weighted_sum_is_torchs_but_over_pixels(torch, rng):
    logits, target = random_batch(rng)
    z, y = classes_second(torch, logits, target)
    total = torch.nn.functional.cross_entropy(z, y, torch.tensor(WEIGHT), ignore_index=255,
                                              reduction="sum")
    valid = (target != 255).sum()
    same(mmseg_cross_entropy(logits, target, weight=WEIGHT), total / target.size)
    same(mmseg_cross_entropy(logits, target, weight=WEIGHT, avg_non_ignore=True), total / valid)


def test_mmseg_1_has_torchs_weighted_mean_until_a_label_has_no_weight(rng):
    logits, target = random_batch(rng, ignored=0)
    same(mmseg1_weighted_cross_entropy(logits, target, weight=WEIGHT),
         value(cross_entropy_forward, logits, target, weight=WEIGHT))
    without_0 = value(cross_entropy_forward, logits, target, weight=WEIGHT, ignore_index=0)
    kept, of_all = WEIGHT[target[target > 0]].sum(), WEIGHT[target].sum()
    same(mmseg1_weighted_cross_entropy(logits, target, weight=WEIGHT, ignore_index=0),
         without_0 * kept / of_all)  # the ignored class still counts below
    target[0, 0, 0] = 255
    with pytest.raises(IndexError):
        mmseg1_weighted_cross_entropy(logits, target, weight=WEIGHT)


# -------------------------------------------------------------------------------------- focal


@pytest.mark.parametrize("gamma", [0.0, 1.5])
@pytest.mark.parametrize("alpha", [None, 0.25])
def test_sigmoid_focal_is_built_on_torchs_binary_cross_entropy(torch, rng, gamma, alpha):
    logits, target = random_batch(rng)
    valid = target != 255
    z, y = torch.tensor(logits[valid]), torch.tensor(target[valid])  # (P, K), (P,)
    truth = torch.nn.functional.one_hot(y, 4).double()
    bce = torch.nn.functional.binary_cross_entropy_with_logits(z, truth, reduction="none")
    losses = (1 - torch.exp(-bce)) ** gamma * bce
    if alpha is not None:
        losses = losses * torch.where(truth == 1, alpha, 1 - alpha)
    options = {"gamma": gamma, "alpha": alpha}
    same(smp_focal(logits, target, **options), losses.mean())
    same(smp_focal(logits, target, mean_over_classes=False, **options), 4 * losses.mean())
    same(monai_focal(logits[valid][None, None], target[valid][None, None], use_softmax=False,
                     **options), losses.mean())
    same(monai_focal(logits, target, use_softmax=False, ignore_index=255, **options),
         4 * losses.mean())
    if alpha is not None:
        same(mmseg_focal(logits, target, **options), losses.sum() / logits.size)


def test_mmsegs_alpha_of_a_half_halves(rng):
    logits, target = random_batch(rng, ignored=0)
    same(mmseg_focal(logits, target), smp_focal(logits, target) / 2)


def test_monais_softmax_focal_is_ours_over_the_number_of_classes_or_ours(rng):
    logits, target = random_batch(rng, ignored=0)
    same(monai_focal(logits, target, gamma=1.5),
         value(focal_forward, logits, target, gamma=1.5) / 4)
    target[0] = 255
    same(monai_focal(logits, target, gamma=1.5, ignore_index=255),
         value(focal_forward, logits, target, gamma=1.5))


def test_monais_alpha_of_a_quarter_weighs_the_background_three_times_as_much(rng):
    logits, target = random_batch(rng, ignored=0)
    for label, factor in ((0, 0.75), (1, 0.25), (3, 0.25)):
        target[...] = label
        same(monai_focal(logits, target, alpha=0.25), factor * monai_focal(logits, target))


def test_a_number_added_to_all_logits_changes_the_sigmoids_and_nothing_else(rng):
    logits, target = random_batch(rng)
    options = {"weight": WEIGHT, "gamma": 1.5, "smooth": 0.5}
    changed = {row.project for row, shifted in zip(conventions(logits, target, **options),
                                                   conventions(logits + 1, target, **options))
               if row.value is not None and relative_error(shifted.value, row.value) > 1e-9}
    assert changed == {"smp since 0.6.0", "smp before 0.6.0", "mmseg, alpha 0.5",
                       "MONAI, sigmoids"}


def test_focal_stays_finite_at_extreme_logits():
    logits, target = np.array([[[[1e4, -1e4, 0.0]]]]), np.array([[[1]]])
    same(smp_focal(logits, target, mean_over_classes=False), 2e4 + 0.25 * np.log(2))
    same(monai_focal(logits, target), 2e4 / 3)


# --------------------------------------------------------------------------------------- dice


@pytest.mark.parametrize("smooth", [0.0, 0.7])
def test_smps_dice_is_our_mode_of_that_name(rng, smooth):
    logits, target = random_batch(rng, num_classes=6)
    target[target == 2] = 0  # absent
    same(smp_dice(logits, target, smooth=smooth),
         value(dice_forward, logits, target, smooth=smooth, mode="smp"))


def test_smps_smooth_is_worth_twice_ours(rng):
    logits, target = random_batch(rng)
    assert len(np.unique(target)) == 5  # all present, and 255
    same(smp_dice(logits, target, smooth=0.7), value(dice_forward, logits, target, smooth=1.4))


def test_with_3_of_21_classes_smps_dice_cannot_exceed_a_seventh(rng):
    _, target = random_batch(rng, num_classes=3)
    logits = np.zeros((*target.shape, 21))
    logits[..., 20] = 50  # wrong everywhere
    assert smp_dice(logits, target) == pytest.approx(3 / 21, abs=1e-12)
    assert value(dice_forward, logits, target, smooth=0.0) == pytest.approx(1)


def test_monais_dice_is_a_mean_over_images_and_over_absent_classes_too(rng):
    logits, target = random_batch(rng, num_classes=4)
    target[target == 3] = 255
    per_image = [value(dice_forward, logits[n:n + 1], target[n:n + 1], smooth=0.5, classes="all")
                 for n in range(2)]
    same(monai_dice(logits, target, smooth=0.5), np.mean(per_image))
    present = value(dice_forward, logits[:1], target[:1], smooth=1e-5)
    assert monai_dice(logits[:1], target[:1]) == pytest.approx((3 * present + 1) / 4, abs=1e-5)


def test_mmsegs_dice_pools_the_classes_and_counts_ignored_probabilities():
    p = np.array([[[[0.75, 0.25], [0.5, 0.5], [0.25, 0.75]]]])
    target = np.array([[[0, 1, 255]]])
    # sum pt = 0.75 + 0.5; sum p^2 = 0.625 + 0.5 + 0.625, the ignored pixel's too; sum t^2 = 2
    same(mmseg_dice(np.log(p), target, eps=0.125), 1 - 2 * 1.25 / (1.75 + 2 + 0.25))
    two = np.concatenate([p, p[..., ::-1]]), np.concatenate([target, target])
    alone = [mmseg_dice(np.log(a[None]), b[None]) for a, b in zip(*two)]
    same(mmseg_dice(np.log(two[0]), two[1]), np.mean(alone))
    # An ignored class has no column: class 0 is left, seen at the first pixel and the third.
    same(mmseg_dice(np.log(p), np.array([[[0, 1, 0]]]), ignore_index=1, eps=0.125),
         1 - 2 * 1.0 / (0.5625 + 0.25 + 0.0625 + 2 + 0.25))


def test_the_unets_dice_is_one_minus_the_mean_probability_of_the_truth(rng):
    logits, target = random_batch(rng)
    valid = target != 255
    p_true = probabilities(logits)[valid][np.arange(valid.sum()), target[valid]]
    assert unet_dice(logits, target) == pytest.approx(1 - p_true.mean(), abs=1e-7)
    P = valid.sum()
    same(unet_dice(logits, target, eps=0.5), 1 - (2 * p_true.sum() + 0.5) / (2 * P + 0.5))


# ---------------------------------------------------------------------------------- the table


def test_ignored_logits_move_no_value_but_mmsegs_dice(rng):
    logits, target = random_batch(rng)
    other = np.where((target == 255)[..., None], rng.standard_normal(logits.shape), logits)
    rows = zip(conventions(logits, target, weight=WEIGHT),
               conventions(other, target, weight=WEIGHT))
    moved = [row.project for row, after in rows
             if row.value is not None and relative_error(after.value, row.value) > 1e-12]
    assert moved == ["mmseg 1.x"]


def test_every_loss_begins_with_ours(rng):
    logits, target = random_batch(rng)
    options = {"weight": WEIGHT, "gamma": 1.5, "smooth": 0.3, "label_smoothing": 0.2}
    rows = conventions(logits, target, **options)
    first = {}
    for row in rows:
        first.setdefault(row.loss, row)
    assert all("ours" in row.project for row in first.values())
    for name, expected in (
            ("ce", value(cross_entropy_forward, logits, target, label_smoothing=0.2)),
            ("weighted", value(cross_entropy_forward, logits, target, weight=WEIGHT,
                               label_smoothing=0.2)),
            ("focal", value(focal_forward, logits, target, gamma=1.5)),
            ("dice", value(dice_forward, logits, target, smooth=0.3))):
        assert first[name].value == expected


def test_rows_follow_the_ignored_pixels_and_the_options(rng):
    logits, target = random_batch(rng, ignored=0)
    options = {"weight": WEIGHT, "gamma": 1.5, "smooth": 0.3, "alpha": 0.1}

    def by_project(**changed):
        return {(row.loss, row.project): row.value
                for row in conventions(logits, target, **{**options, **changed})}

    rows = by_project()
    same(rows["weighted", "mmseg 1.x"], rows["weighted", "torch, ours"])
    same(rows["focal", "MONAI, softmax"], rows["focal", "ours"] / 4)
    same(rows["focal", "ours, alpha 0.1"], rows["focal", "ours"] / 10)
    same(rows["focal", "MONAI, alpha 0.1"], monai_focal(logits, target, gamma=1.5, alpha=0.1))
    same(rows["dice", "smp"], smp_dice(logits, target, smooth=0.3))
    same(rows["dice", "MONAI"], monai_dice(logits, target, smooth=0.3))
    same(by_project(label_smoothing=0.1)["ce", "smp SoftCrossEntropy"],
         smp_cross_entropy(logits, target, smooth_factor=0.1))
    assert ("focal", "MONAI, ignore_index") not in rows
    target[0, :2] = 255
    rows = by_project()
    assert rows["weighted", "mmseg 1.x"] is None
    same(rows["focal", "MONAI, softmax"], rows["focal", "ours"] / 4)
    same(rows["focal", "MONAI, ignore_index"], rows["focal", "ours"])
