"""Dice loss over the whole batch, and its gradient: every class counts the same.

Over the pixels that are not ignored, with p = softmax(logits) and t the one-hot target:

    I_c = sum p_c t_c     S_c = sum p_c     T_c = sum t_c
    D_c = (2 I_c + s) / (S_c + T_c + s)
    L   = sum_c a_c (1 - D_c)          or, with log, sum_c a_c (-log D_c)

where the shares a_c say which classes are averaged. Backward, class by class, and from there as
in `_overlap`:

    dI_c = -a_c 2 / (S_c + T_c + s)     dS_c = a_c (2 I_c + s) / (S_c + T_c + s)^2

Source: Milletari et al., "V-Net" (2016), with softmax and a choice of classes.
"""

import numpy as np

from minisegnet.losses._overlap import (
    check_classes,
    check_smooth,
    class_shares,
    overlap_backward,
    overlap_forward,
)
from minisegnet.losses._softmax import check_inputs, check_shapes, uses_kernels
from minisegnet.losses.softmax_cuda import (
    DeviceCache,
    DeviceLoss,
    FullLogits,
    Overlap,
    loss_backward_cuda,
    loss_forward_cuda,
)

LOG_FLOOR = 1e-7  # log dice is cut here, as in segmentation_models.pytorch


def dice_forward(logits, target, *, smooth=1.0, classes="present", weight=None, log=False,
                 mode="pooled", ignore_index=255, implementation=None):
    """Return the dice loss of logits (N, H, W, K) against target (N, H, W), and a cache.

    `classes` are averaged: those "present" in the target, or "all"; `weight` (K,) makes it a
    weighted mean; `log` takes -log D_c in place of 1 - D_c. `mode="smp"` is the formula of
    segmentation_models.pytorch 0.5: its smooth is worth twice ours, and absent classes count as
    loss 0 in a mean over all K, so that with few classes present the loss is small. No class to
    average: loss 0, gradient 0, and a RuntimeWarning, once. `implementation` is "numpy", "cuda" or
    "cuda_cpu", as in `cross_entropy_forward`. Raises ValueError for shapes, options or labels that
    do not fit, TypeError for dtypes.
    """
    if uses_kernels(implementation, logits, "numpy"):
        check_shapes(logits, target)
        overlap = dice_overlap(logits.shape[3], smooth, classes, weight, log, mode)
        return loss_forward_cuda(FullLogits(logits), target, DeviceLoss(overlap=overlap),
                                 ignore_index=ignore_index)
    labels = check_inputs(logits, target, ignore_index)
    shares, smooth = dice_shares(labels.counts, smooth, classes, weight, mode)
    return overlap_forward(logits, labels, lambda intersection, total: dice_of_sums(
        intersection, total, labels.counts, shares, smooth, log))


def dice_backward(dloss, cache):
    """Return dlogits (N, H, W, K) for the scalar `dloss`."""
    if isinstance(cache, DeviceCache):
        return loss_backward_cuda(dloss, cache)
    return overlap_backward(dloss, cache)


def dice_overlap(num_classes, smooth=1.0, classes="present", weight=None, log=False,
                 mode="pooled"):
    """Return the `Overlap` of dice."""
    check_dice(smooth, classes, weight, mode)
    weight = check_classes(classes, weight, num_classes)
    is_smp = mode == "smp"
    return Overlap(weight, 0.5, 0.5, smooth if is_smp else 0.5 * smooth, classes == "all", log,
                   is_smp)


def check_dice(smooth, classes, weight, mode):
    """Refuse options that do not go together."""
    check_dice_mode(mode)
    check_smooth(smooth)
    if mode == "smp" and (weight is not None or classes != "present"):
        raise ValueError("mode='smp' has neither weights nor a choice of classes; leave weight "
                         "and classes alone, or use mode='pooled'")


def dice_shares(counts, smooth, classes, weight, mode):
    """Return the shares a_c (K,) of the classes in the mean, and s as in the formula above."""
    check_dice(smooth, classes, weight, mode)
    shares = class_shares(counts, classes, weight, "dice")
    if mode == "smp" and shares.any():
        return (counts > 0) / counts.size, 2.0 * smooth
    return shares, smooth


def check_dice_mode(mode):
    """Refuse an unknown mode."""
    if mode not in ("pooled", "smp"):
        raise ValueError(f"mode is {mode!r}; expected 'pooled' or 'smp'")


def dice_of_sums(intersection, total, counts, shares, smooth, log):
    """Return the loss (a float), dL/dI (K,) and dL/dS (K,) from I, S and T (K,), in float64."""
    numerator = 2.0 * intersection + smooth
    denominator = total + counts + smooth
    empty = denominator == 0.0  # not in the truth, not predicted, s = 0: D_c = 1, no gradient
    numerator = np.where(empty, 1.0, numerator)
    denominator = np.where(empty, 1.0, denominator)
    dice = numerator / denominator
    if log:
        loss = -np.log(np.maximum(dice, LOG_FLOOR))
        shares_of_gradient = shares * (dice > LOG_FLOOR) / np.maximum(dice, LOG_FLOOR)
    else:
        loss = 1.0 - dice
        shares_of_gradient = shares
    shares_of_gradient = np.where(empty, 0.0, shares_of_gradient)
    dintersection = -shares_of_gradient * 2.0 / denominator
    dtotal = shares_of_gradient * numerator / denominator**2
    return float(shares @ loss), dintersection, dtotal
