"""The criterion: what it refuses, and losses of parts that add up to one loss."""

import numpy as np
import pytest
from loss_cases import random_batch, relative_error, warn_afresh

from minisegnet.losses import Criterion, WholeBatch

K = 4
WEIGHT = np.array([0.5, 2.0, 1.0, 7.0])
PRIOR = np.array([0.7, 0.1, 0.0, 0.2])
EXACT = {
    "ce": Criterion("ce"),
    "weighted, smoothed ce": Criterion("ce", weight=WEIGHT, label_smoothing=0.1),
    "focal": Criterion("focal"),
    "weighted focal": Criterion("focal", weight=WEIGHT, gamma=0.5),
    "logit_adjusted": Criterion("logit_adjusted", prior=PRIOR),
    "weighted logit_adjusted": Criterion("logit_adjusted", prior=PRIOR, tau=0.5, weight=WEIGHT),
}
MEANS = {
    "dice": Criterion("dice"),
    "dice smp": Criterion("dice", dice_mode="smp"),
    "tversky": Criterion("tversky", weight=WEIGHT),
    "lovasz": Criterion("lovasz"),
    "ohem": Criterion("ohem", weight=WEIGHT, ohem_thresh=0.2),
}
COMBINED = {"combined": Criterion("combined", weight=WEIGHT, lambda_focal=0.3, lambda_dice=2.0)}
ALL = {**EXACT, **MEANS, **COMBINED}
SPLITS = [(2, 2, 2), (1, 5), (3, 1, 2), (1, 1, 1, 1, 1, 1)]
paths = pytest.mark.parametrize("path", ["plain", "fused"])


def every(criteria):
    return pytest.mark.parametrize("criterion", criteria.values(), ids=criteria)


def batch_of_six(rng, path, dtype=np.float64):
    """Return logits and targets of six images, which differ in classes and in ignored pixels."""
    logits, _ = random_batch(rng, shape=(6, 4, 5), dtype=dtype)
    target = rng.integers(0, K, (6, 4, 5) if path == "plain" else (6, 11, 13))
    target[1][target[1] == 2] = 0
    target[2, 1:] = 3
    ignored = np.array([0.8, 0.5, 0.3, 0.0, 0.0, 0.3])  # share of each image
    target[rng.random(target.shape) < ignored[:, None, None]] = 255
    return logits, target


def run(criterion, path, logits, target, whole=None, dloss=1.0):
    """Return loss, gradient and parts."""
    if path == "plain":
        loss, cache = criterion.forward(logits, target, whole=whole)
        return loss, criterion.backward(dloss, cache), criterion.parts(cache)
    loss, cache = criterion.forward_upsampled(logits, target, whole=whole)
    return loss, criterion.backward_upsampled(dloss, cache), criterion.parts(cache)


def whole_of(target, parts):
    return WholeBatch(np.bincount(target[target != 255], minlength=K), parts)


def split(sizes):
    ends = np.cumsum(sizes)
    return [slice(end - size, end) for size, end in zip(sizes, ends)]


def run_in_parts(criterion, path, logits, target, sizes, dloss=1.0):
    """Return the sum of the losses, the gradients one after the other, and the sums of parts()."""
    whole = whole_of(target, len(sizes))
    results = [run(criterion, path, logits[images], target[images], whole, dloss)
               for images in split(sizes)]
    losses, gradients, named = zip(*results)
    return (sum(map(float, losses)), np.concatenate(gradients),
            {name: sum(float(parts[name]) for parts in named) for name in named[0]})


# Accumulation

@paths
@every(EXACT)
@pytest.mark.parametrize("sizes", SPLITS, ids=str)
def test_the_parts_of_a_sum_over_pixels_add_up_to_the_whole_batch(rng, path, criterion, sizes):
    logits, target = batch_of_six(rng, path)
    loss, gradient, _ = run_in_parts(criterion, path, logits, target, sizes, 1.3)
    expected, dexpected, _ = run(criterion, path, logits, target, dloss=1.3)
    assert loss == pytest.approx(expected, rel=1e-12)
    assert relative_error(gradient, dexpected) < 1e-12


@paths
@every(EXACT)
def test_the_mean_of_the_parts_is_not_the_whole_batch_without_it(rng, path, criterion):
    # Why `whole` is there: parts differ in valid pixels and in weights.
    logits, target = batch_of_six(rng, path)
    expected, dexpected, _ = run(criterion, path, logits, target)
    results = [run(criterion, path, logits[images], target[images], dloss=1 / 3)
               for images in split((2, 2, 2))]
    assert abs(np.mean([loss for loss, _, _ in results]) - expected) > 1e-3 * expected
    assert relative_error(np.concatenate([g for _, g, _ in results]), dexpected) > 1e-3


@paths
@every(MEANS)
@pytest.mark.parametrize("sizes", SPLITS, ids=str)
def test_of_the_others_the_parts_add_up_to_their_mean_which_is_not_the_whole(
    rng, path, criterion, sizes
):
    logits, target = batch_of_six(rng, path)
    loss, gradient, _ = run_in_parts(criterion, path, logits, target, sizes, 1.3)
    alone = [run(criterion, path, logits[images], target[images], dloss=1.3)
             for images in split(sizes)]
    assert loss == pytest.approx(np.mean([value for value, _, _ in alone]), rel=1e-12)
    expected = np.concatenate([dlogits for _, dlogits, _ in alone]) / len(sizes)
    assert relative_error(gradient, expected) < 1e-12
    whole, dwhole, _ = run(criterion, path, logits, target, dloss=1.3)
    assert abs(loss - whole) > 1e-4 * whole
    assert relative_error(gradient, dwhole) > 1e-2


@paths
@pytest.mark.parametrize("sizes", SPLITS, ids=str)
def test_combined_is_exact_in_focal_and_a_mean_in_dice(rng, path, sizes):
    logits, target = batch_of_six(rng, path)
    criterion = COMBINED["combined"]
    focal = Criterion("focal", weight=WEIGHT)
    expected_focal, dfocal, _ = run(focal, path, logits, target, dloss=1.3)
    expected_dice, ddice, _ = run_in_parts(Criterion("dice"), path, logits, target, sizes, 1.3)
    loss, gradient, parts = run_in_parts(criterion, path, logits, target, sizes, 1.3)
    assert parts == pytest.approx({"focal": expected_focal, "dice": expected_dice}, rel=1e-12)
    assert loss == pytest.approx(0.3 * expected_focal + 2.0 * expected_dice, rel=1e-12)
    assert relative_error(gradient, 0.3 * dfocal + 2.0 * ddice) < 1e-12


@paths
@every(ALL)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_whole_of_one_part_changes_no_bit_and_no_dtype(rng, path, criterion, dtype):
    logits, target = batch_of_six(rng, path, dtype)
    loss, gradient, parts = run(criterion, path, logits, target, whole_of(target, 1))
    expected = run(criterion, path, logits, target)
    assert loss == expected[0] and (gradient == expected[1]).all() and parts == expected[2]
    several = run(criterion, path, logits, target, whole_of(target, 3))
    for value in (loss, gradient, several[0], several[1], *several[2].values()):
        assert value.dtype == dtype


@paths
@every(EXACT)
def test_a_part_of_ignored_pixels_adds_nothing_and_is_nothing_to_warn_of(
    rng, monkeypatch, path, criterion
):
    warn_afresh(monkeypatch)
    logits, target = batch_of_six(rng, path)
    whole = whole_of(target, 2)
    loss, gradient, _ = run(criterion, path, logits, np.full_like(target, 255), whole)
    assert loss == 0 and not gradient.any()


@paths
def test_a_whole_that_does_not_hold_its_part_is_refused(rng, path):
    logits, target = batch_of_six(rng, path)
    counts, _ = whole_of(target, 2)
    for wrong, message in (
        (WholeBatch(counts[:3], 2), r"counts has shape \(3,\); expected \(4,\)"),
        (WholeBatch(counts - [0, 1, 0, 0], 2), "pixels of class 1, but this part"),
        (WholeBatch(counts, 0), "whole.parts is 0"),
    ):
        for name in ("ce", "focal", "combined", "logit_adjusted"):
            with pytest.raises(ValueError, match=message):
                run(Criterion(name, prior=PRIOR), path, logits, target, wrong)


# What it refuses

@pytest.mark.parametrize("name, options, message", [
    ("mse", {}, "loss 'mse' is not one of ce, focal, dice, combined, tversky, lovasz, ohem"),
    *((name, {"label_smoothing": 0.1, "prior": PRIOR}, f"goes with ce, not with {name}; set it")
      for name in ("focal", "dice", "combined", "tversky", "lovasz", "ohem", "logit_adjusted")),
    ("logit_adjusted", {}, "logit_adjusted needs a prior"),
    ("dice", {"dice_mode": "mean"}, "mode is 'mean'; expected 'pooled' or 'smp'"),
    ("ce", {"dice_mode": "smp"}, "dice_mode 'smp' goes with dice and combined, not with ce"),
    ("dice", {"dice_mode": "smp", "weight": WEIGHT}, "dice_mode 'smp' has no class weights"),
])
def test_what_does_not_go_together_is_refused_in_one_line(name, options, message):
    with pytest.raises(ValueError, match=message) as refused:
        Criterion(name, **options)
    assert "\n" not in str(refused.value)


def test_combined_takes_smp_dice_with_class_weights_in_its_focal_part(rng):
    logits, target = random_batch(rng)
    criterion = Criterion("combined", dice_mode="smp", weight=WEIGHT)
    _, cache = criterion.forward(logits, target)
    dice, _ = Criterion("dice", dice_mode="smp").forward(logits, target)
    focal, _ = Criterion("focal", weight=WEIGHT).forward(logits, target)
    assert criterion.parts(cache) == {"focal": focal, "dice": dice}
