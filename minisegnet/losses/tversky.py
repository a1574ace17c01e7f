"""Tversky loss over the whole batch: dice that tells false positives from false negatives.

Over the pixels that are not ignored, with p = softmax(logits) and t the one-hot target, the sums
I_c = sum p_c t_c, S_c = sum p_c and T_c = sum t_c are those of dice. S_c - I_c is what is wrongly
called c, T_c - I_c what of c is missed:

    TI_c = (I_c + s) / Q_c          Q_c = I_c + alpha (S_c - I_c) + beta (T_c - I_c) + s
    L    = sum_c a_c (1 - TI_c)

where the shares a_c say which classes are averaged. Backward, class by class, and from there as
in `_overlap`:

    dI_c = -a_c (1 - (1 - alpha - beta) TI_c) / Q_c          dS_c = a_c alpha TI_c / Q_c

With alpha = beta = 1/2 this is dice with twice the s; with alpha = beta = 1, one minus a soft IoU.

Source: Salehi et al., "Tversky loss function for image segmentation" (2017), with softmax and a
choice of classes.
"""

import math

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


def tversky_forward(logits, target, *, alpha=0.3, beta=0.7, smooth=1.0, classes="present",
                    weight=None, ignore_index=255, implementation=None):
    """Return the Tversky loss of logits (N, H, W, K) against target (N, H, W), and a cache.

    `alpha` is the price of false positives, `beta` of false negatives: with beta > alpha, a rare
    class is rather found too often than missed. `classes` are averaged: those "present" in the
    target, or "all"; `weight` (K,) makes it a weighted mean. No class to average: loss 0,
    gradient 0, and a RuntimeWarning, once. `implementation` is "numpy", "cuda" or "cuda_cpu", as
    in `cross_entropy_forward`. Raises ValueError for shapes, options or labels that do not fit,
    TypeError for dtypes.
    """
    if uses_kernels(implementation, logits, "numpy"):
        check_shapes(logits, target)
        overlap = tversky_overlap(logits.shape[3], alpha, beta, smooth, classes, weight)
        return loss_forward_cuda(FullLogits(logits), target, DeviceLoss(overlap=overlap),
                                 ignore_index=ignore_index)
    labels = check_inputs(logits, target, ignore_index)
    shares = tversky_shares(labels.counts, alpha, beta, smooth, classes, weight)
    return overlap_forward(logits, labels, lambda intersection, total: tversky_of_sums(
        intersection, total, labels.counts, shares, alpha, beta, smooth))


def tversky_backward(dloss, cache):
    """Return dlogits (N, H, W, K) for the scalar `dloss`."""
    if isinstance(cache, DeviceCache):
        return loss_backward_cuda(dloss, cache)
    return overlap_backward(dloss, cache)


def tversky_overlap(num_classes, alpha=0.3, beta=0.7, smooth=1.0, classes="present", weight=None):
    """Return the `Overlap` of Tversky loss."""
    check_tversky(alpha, beta, smooth)
    return Overlap(check_classes(classes, weight, num_classes), alpha, beta, smooth,
                   classes == "all")


def check_tversky(alpha, beta, smooth):
    """Refuse negative prices and a negative smoothing."""
    if not (0.0 <= alpha < math.inf and 0.0 <= beta < math.inf):
        raise ValueError(f"alpha is {alpha} and beta {beta}; expected numbers of at least 0")
    check_smooth(smooth)


def tversky_shares(counts, alpha, beta, smooth, classes, weight):
    """Check the options, and return the shares a_c (K,) of the classes in the mean."""
    check_tversky(alpha, beta, smooth)
    return class_shares(counts, classes, weight, "Tversky")


def tversky_of_sums(intersection, total, counts, shares, alpha, beta, smooth):
    """Return the loss (a float), dL/dI (K,) and dL/dS (K,) from I, S and T (K,), in float64."""
    numerator = intersection + smooth
    denominator = numerator + alpha * (total - intersection) + beta * (counts - intersection)
    empty = denominator == 0.0  # nothing found, nothing that costs, s = 0: TI_c = 1
    denominator = np.where(empty, 1.0, denominator)
    index = np.where(empty, 1.0, numerator / denominator)
    dintersection = -shares * (1.0 - (1.0 - alpha - beta) * index) / denominator
    dtotal = shares * alpha * index / denominator
    return float(shares @ (1.0 - index)), dintersection, dtotal
