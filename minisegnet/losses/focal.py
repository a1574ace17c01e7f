"""Softmax focal loss and its gradient: cross-entropy that turns away from easy pixels.

With p_t the probability of the true class and P the number of pixels not ignored:

    L = (1/P) sum_i alpha[y_i] (1 - p_t)^gamma (-log p_t)

    dL/dlogits_i = alpha[y_i]/P * [ (1-p_t)^gamma - gamma (1-p_t)^(gamma-1) p_t log p_t ]
                   * (p_i - onehot(y_i))

Source: Lin et al., "Focal Loss for Dense Object Detection" (2017), with softmax for sigmoid.
"""

import math
from typing import NamedTuple

import numpy as np

from minisegnet.losses._softmax import (
    accurate_sum,
    check_class_weights,
    check_inputs,
    check_shapes,
    classes_first,
    counts_to_divide_by,
    exp_and_log_prob,
    map_pixel_blocks,
    scale_gradient,
    target_index,
    uses_kernels,
    warn_once,
    with_ignored,
)
from minisegnet.losses.softmax_cuda import (
    DeviceCache,
    DeviceLoss,
    FullLogits,
    PixelMean,
    loss_backward_cuda,
    loss_forward_cuda,
)


class FocalCache(NamedTuple):
    """What the backward pass needs."""

    dlogits: np.ndarray  # (N, H, W, K), the gradient for dloss = 1


class FocalTerms(NamedTuple):
    """The options of a batch, ready to look up."""

    alpha: np.ndarray  # (K+1,) alpha[y] / P, and 0 for an ignored pixel
    gamma: float


def focal_forward(logits, target, *, alpha=None, gamma=2.0, counts=None, ignore_index=255,
                  implementation=None):
    """Return the focal loss of logits (N, H, W, K) against target (N, H, W), and a cache.

    `alpha` is None, a number per class, or one number, which only rescales the loss. The mean
    is over the pixels, not over their weights: with gamma = 0 and alpha = None this is the
    unweighted cross-entropy, with alpha it is not the weighted one. Where the batch is a part of a
    larger one, `counts` (K,) are the valid pixels per class of that one: the mean is over those,
    and the losses of the parts add up to the loss of the whole. Nothing but ignored pixels: loss
    0, gradient 0, and a RuntimeWarning, once. `implementation` is "numpy", "cuda" or "cuda_cpu",
    as in `cross_entropy_forward`. Raises ValueError for shapes, options or labels that do not
    fit, TypeError for dtypes.
    """
    if uses_kernels(implementation, logits, "numpy"):
        check_shapes(logits, target)
        return loss_forward_cuda(
            FullLogits(logits), target, DeviceLoss(focal_mean(logits.shape[3], alpha, gamma)),
            counts=counts, ignore_index=ignore_index)
    labels = check_inputs(logits, target, ignore_index)
    terms = focal_terms(counts_to_divide_by(counts, labels), alpha, gamma, logits.dtype)
    K = logits.shape[3]
    dlogits = np.empty(logits.shape, logits.dtype)

    def block(z_rows, label, dz_rows):
        z = classes_first(z_rows)  # (K, P)
        loss = focal_block(z, label, terms)
        dz_rows[...] = z.T
        return loss

    losses = map_pixel_blocks(block, logits.reshape(-1, K), labels.index.reshape(-1),
                              dlogits.reshape(-1, K))
    return logits.dtype.type(sum(losses)), FocalCache(dlogits)


def focal_backward(dloss, cache):
    """Return dlogits (N, H, W, K) for the scalar `dloss`."""
    if isinstance(cache, DeviceCache):
        return loss_backward_cuda(dloss, cache)
    return scale_gradient(dloss, cache.dlogits)


def focal_mean(num_classes, alpha=None, gamma=2.0):
    """Return the `PixelMean` of focal loss."""
    return PixelMean(check_focal(num_classes, alpha, gamma), np.ones(num_classes), float(gamma))


def check_focal(num_classes, alpha, gamma):
    """Check the options, and return alpha (K,)."""
    if not 0.0 <= gamma < math.inf:
        raise ValueError(f"gamma is {gamma}; expected a number of at least 0")
    if alpha is not None and np.ndim(alpha) == 0:
        alpha = np.full(num_classes, alpha)
    return check_class_weights(alpha, num_classes, "alpha")


def focal_terms(counts, alpha, gamma, dtype):
    """Return the `FocalTerms` of a batch with `counts` (K,) pixels per class."""
    alpha = check_focal(counts.size, alpha, gamma)
    valid = int(counts.sum())
    if valid == 0:
        warn_once("focal loss: every pixel is ignored: loss 0, gradient 0")
    return FocalTerms(with_ignored(alpha / max(valid, 1), dtype), float(gamma))


def focal_block(z, label, terms):
    """Turn shifted logits z (K, P) into their gradient, in place; returns the block's loss."""
    index = target_index(label, z.shape[0])
    sums, log_prob = exp_and_log_prob(z, index)
    loss, factor = focal_of_log_prob(log_prob, label, terms)
    # dz = factor * (p - onehot)
    z *= factor / sums
    z.reshape(-1)[index] -= factor
    return loss


def focal_of_log_prob(log_prob, label, terms):
    """Return the loss (a float) of pixels with log p_t (P,), and dL/dz = factor * (p - onehot).

    The factor (P,) is written as (1-p_t)^gamma * (1 + gamma * p_t * ratio) with
    ratio = -log(p_t) / (1-p_t), which goes to 1 as p_t -> 1: finite for every gamma >= 0, where
    the textbook form is infinity times zero for gamma < 1.
    """
    miss = -np.expm1(log_prob)  # (P,) 1 - p_t, exact near 0
    modulation = terms.alpha[label] * miss**terms.gamma
    # At miss = 0 the ratio does not matter: modulation is 0, or gamma is.
    ratio = -log_prob / np.where(miss > 0.0, miss, 1.0)
    factor = modulation * (1.0 + terms.gamma * np.exp(log_prob) * ratio)
    return -accurate_sum(modulation * log_prob), factor
