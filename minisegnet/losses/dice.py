"""Dice loss over the whole batch, and its gradient: every class counts the same.

Over the pixels that are not ignored, with p = softmax(logits) and t the one-hot target:

    I_c = sum p_c t_c     S_c = sum p_c     T_c = sum t_c
    D_c = (2 I_c + s) / (S_c + T_c + s)
    L   = sum_c a_c (1 - D_c)          or, with log, sum_c a_c (-log D_c)

where the shares a_c say which classes are averaged. Backward, class by class, pixel by pixel:

    dI_c = -a_c 2 / (S_c + T_c + s)     dS_c = a_c (2 I_c + s) / (S_c + T_c + s)^2
    dp_c = dS_c + t_c dI_c              dz = p * (dp - sum_c p_c dp_c)

Source: Milletari et al., "V-Net" (2016), with softmax and a choice of classes.
"""

from typing import NamedTuple

import numpy as np

from minisegnet.losses._softmax import (
    check_class_weights,
    check_inputs,
    classes_first,
    exp_and_log_prob,
    map_pixel_blocks,
    target_index,
    warn_once,
    with_ignored,
)

LOG_FLOOR = 1e-7  # log dice is cut here, as in segmentation_models.pytorch


class DiceCache(NamedTuple):
    """What the backward pass needs."""

    probs: np.ndarray  # (N, H, W, K), 0 where the pixel is ignored
    labels: np.ndarray  # (N, H, W), K where the pixel is ignored
    dintersection: np.ndarray  # (K,) dL/dI_c
    dtotal: np.ndarray  # (K,) dL/dS_c


def dice_forward(logits, target, *, smooth=1.0, classes="present", weight=None, log=False,
                 mode="pooled", ignore_index=255):
    """Return the dice loss of logits (N, H, W, K) against target (N, H, W), and a cache.

    `classes` are averaged: those "present" in the target, or "all"; `weight` (K,) makes it a
    weighted mean; `log` takes -log D_c in place of 1 - D_c. `mode="smp"` is the formula of
    segmentation_models.pytorch 0.5: its smooth is worth twice ours, and absent classes count as
    loss 0 in a mean over all K, so that with few classes present the loss is small. No class to
    average: loss 0, gradient 0, and a RuntimeWarning, once. Raises ValueError for shapes,
    options or labels that do not fit, TypeError for dtypes.
    """
    labels = check_inputs(logits, target, ignore_index)
    K = logits.shape[3]
    shares, smooth = dice_shares(labels.counts, smooth, classes, weight, mode)
    probs = np.empty(logits.shape, logits.dtype)

    def block(z_rows, label, p_rows):
        z = classes_first(z_rows)  # (K, P)
        sums = dice_block(z, label)
        p_rows[...] = z.T
        return sums

    sums = map_pixel_blocks(block, logits.reshape(-1, K), labels.index.reshape(-1),
                            probs.reshape(-1, K))
    intersection, total = sum(sums)  # (K,) each
    loss, dintersection, dtotal = dice_of_sums(intersection, total, labels.counts, shares,
                                               smooth, log)
    return logits.dtype.type(loss), DiceCache(probs, labels.index, dintersection, dtotal)


def dice_backward(dloss, cache):
    """Return dlogits (N, H, W, K) for the scalar `dloss`."""
    probs = cache.probs
    K = probs.shape[3]
    dintersection = with_ignored(float(dloss) * cache.dintersection, probs.dtype)
    dtotal = (float(dloss) * cache.dtotal).astype(probs.dtype)
    dlogits = np.empty(probs.shape, probs.dtype)

    def block(p_rows, label, dz_rows):
        p = np.array(p_rows.T, order="C")  # (K, P), a copy
        dice_gradient_block(p, label, target_index(label, K), dintersection, dtotal)
        dz_rows[...] = p.T

    map_pixel_blocks(block, probs.reshape(-1, K), cache.labels.reshape(-1),
                     dlogits.reshape(-1, K))
    return dlogits


def dice_shares(counts, smooth, classes, weight, mode):
    """Return the shares a_c (K,) of the classes in the mean, and s as in the formula above."""
    if classes not in ("present", "all"):
        raise ValueError(f"classes is {classes!r}; expected 'present' or 'all'")
    if mode not in ("pooled", "smp"):
        raise ValueError(f"mode is {mode!r}; expected 'pooled' or 'smp'")
    if not smooth >= 0.0:
        raise ValueError(f"smooth is {smooth}; expected a number of at least 0")
    if mode == "smp" and (weight is not None or classes != "present"):
        raise ValueError("mode='smp' has neither weights nor a choice of classes; leave weight "
                         "and classes alone, or use mode='pooled'")
    K = counts.size
    present = counts > 0
    weight = check_class_weights(weight, K)
    if classes == "present":
        weight = weight * present
    if not present.any() or weight.sum() == 0.0:
        warn_once("dice loss: every pixel is ignored, or no class with a weight is there: "
                  "loss 0, gradient 0")
        return np.zeros(K), smooth
    if mode == "smp":
        return present / K, 2.0 * smooth
    return weight / weight.sum(), smooth


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


def dice_block(z, label):
    """Turn shifted logits z (K, P) into probabilities, in place: 0 where a pixel is ignored.

    Returns I and S of the block: (2, K) float64.
    """
    K = z.shape[0]
    index = target_index(label, K)
    sums, log_prob = exp_and_log_prob(z, index)
    z *= (label < K) / sums
    return dice_sums(z.sum(axis=1), log_prob, label)


def dice_sums(total, log_prob, label):
    """Return I and S (2, K) float64 of a block, from S (K,) and log p of the target (P,)."""
    K = total.size
    intersection = np.bincount(label, weights=np.exp(log_prob), minlength=K + 1)[:K]
    return np.stack([intersection, total])


def dice_gradient_block(p, label, index, dintersection, dtotal, factor=None):
    """Turn probabilities p (K, P), 0 where ignored, into the gradient of the logits, in place.

    `index` as from `target_index`, `dintersection` (K+1,) and `dtotal` (K,). `factor` (P,) adds
    the gradient factor * (p - onehot) of a loss like focal.
    """
    on_target = dintersection[label] * p.reshape(-1)[index]  # (P,) p_y dI_y
    mean = dtotal @ p + on_target  # (P,) sum_c p_c dp_c
    if factor is not None:
        on_target -= factor
        mean -= factor
    # dz = p * (dS - mean), and p_y dI_y more at the target
    p *= dtotal[:, None] - mean
    p.reshape(-1)[index] += on_target
