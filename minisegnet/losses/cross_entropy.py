"""Weighted cross-entropy with ignored pixels and label smoothing, and its gradient.

With p = softmax(logits), y the target, w the class weights and e the label smoothing:

    L = [ (1-e) sum_i w[y_i] (-log p_i[y_i]) + (e/K) sum_i sum_c w[c] (-log p_i[c]) ] / D
    D = sum_i w[y_i]                                  (sums over the pixels not ignored)

    a_i = (1-e) w[y_i] onehot(y_i) + (e/K) w
    dL/dlogits_i = ( (sum_c a_i[c]) p_i - a_i ) / D
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
    cross_entropy_mean,
    loss_backward_cuda,
    loss_forward_cuda,
)
from minisegnet.ops._checks import choose


class CrossEntropyCache(NamedTuple):
    """What the backward pass needs."""

    dlogits: np.ndarray  # (N, H, W, K), the gradient for dloss = 1


class CrossEntropyTerms(NamedTuple):
    """The target distribution a_i of every class of pixel, already divided by D."""

    on_target: np.ndarray  # (K+1,) (1-e) w[y] / D, and 0 for an ignored pixel
    total: np.ndarray  # (K+1,) sum of a_i, and 0 for an ignored pixel
    smooth: np.ndarray  # (K,) (e/K) w / D, or None without smoothing


def cross_entropy_forward(logits, target, *, weight=None, counts=None, ignore_index=255,
                          label_smoothing=0.0, implementation=None):
    """Return the mean cross-entropy of logits (N, H, W, K) against target (N, H, W), and a cache.

    Equals torch.nn.functional.cross_entropy with the same arguments: a weighted mean, whose
    denominator is the sum of the weights of the pixels. Where torch divides zero by zero
    (nothing to learn from), the loss is 0 with gradient 0, and a RuntimeWarning says so once.
    Where the batch is a part of a larger one, `counts` (K,) are the valid pixels per class of that
    one: its denominator is taken, and the losses of the parts add up to the loss of the whole.
    `implementation` is "loops" (the definition), "numpy", "cuda" or "cuda_cpu"; None chooses by
    the array. On a device the loss is an array (1,), and labels that are no class are not refused
    but ignored. Raises ValueError for shapes, weights or labels that do not fit, TypeError for
    dtypes.
    """
    if uses_kernels(implementation, logits, "loops", "numpy"):
        check_shapes(logits, target)
        pixels = cross_entropy_mean(logits.shape[3], weight, label_smoothing)
        return loss_forward_cuda(FullLogits(logits), target, DeviceLoss(pixels), counts=counts,
                                 ignore_index=ignore_index)
    labels = check_inputs(logits, target, ignore_index)
    counts = counts_to_divide_by(counts, labels)
    terms = cross_entropy_terms(counts, weight, label_smoothing, logits.dtype)
    forward = choose(implementation, logits, loops=cross_entropy_forward_loops,
                     numpy=cross_entropy_forward_numpy)
    loss, dlogits = forward(logits, labels.index, terms)
    return logits.dtype.type(loss), CrossEntropyCache(dlogits)


def cross_entropy_backward(dloss, cache):
    """Return dlogits (N, H, W, K) for the scalar `dloss`."""
    if isinstance(cache, DeviceCache):
        return loss_backward_cuda(dloss, cache)
    return scale_gradient(dloss, cache.dlogits)


def cross_entropy_terms(counts, weight, label_smoothing, dtype):
    """Return the `CrossEntropyTerms` of a batch with `counts` (K,) pixels per class.

    All zero where the denominator is 0.
    """
    K = counts.size
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing is {label_smoothing}; expected 0 to 1")
    weight = check_class_weights(weight, K)
    denominator = float(counts @ weight)
    if denominator == 0.0:
        warn_once("cross-entropy: every pixel is ignored or of a class with weight 0, so there "
                  "is nothing to learn from: loss 0, gradient 0")
        weight, denominator = np.zeros(K), 1.0
    weight = weight / denominator
    on_target = (1.0 - label_smoothing) * weight
    smooth = label_smoothing / K * weight
    return CrossEntropyTerms(
        with_ignored(on_target, dtype),
        with_ignored(on_target + smooth.sum(), dtype),
        smooth.astype(dtype) if label_smoothing else None,
    )


def cross_entropy_forward_loops(logits, labels, terms):
    """The definition, pixel by pixel; returns the loss and dlogits (N, H, W, K)."""
    N, H, W, K = logits.shape
    dlogits = np.zeros_like(logits)
    loss = 0.0
    for pixel in np.ndindex(N, H, W):
        y = labels[pixel]
        if y == K:  # ignored
            continue
        z = [float(value) for value in logits[pixel]]
        highest = max(z)  # exp of what remains cannot overflow
        log_sum = highest + math.log(sum(math.exp(value - highest) for value in z))
        for c in range(K):
            a = terms.on_target[y] if c == y else 0.0
            if terms.smooth is not None:
                a += terms.smooth[c]
            log_p = z[c] - log_sum
            loss -= a * log_p
            # dL/dz_c = (sum a) p_c - a_c
            dlogits[pixel][c] = terms.total[y] * math.exp(log_p) - a
    return loss, dlogits


def cross_entropy_forward_numpy(logits, labels, terms):
    """One pass over blocks of pixels; returns the loss and dlogits (N, H, W, K)."""
    K = logits.shape[3]
    dlogits = np.empty(logits.shape, logits.dtype)

    def block(z_rows, label, dz_rows):
        z = classes_first(z_rows)  # (K, P)
        loss = cross_entropy_block(z, label, terms)
        dz_rows[...] = z.T
        return loss

    losses = map_pixel_blocks(block, logits.reshape(-1, K), labels.reshape(-1),
                              dlogits.reshape(-1, K))
    return sum(losses), dlogits


def cross_entropy_block(z, label, terms):
    """Turn shifted logits z (K, P) into their gradient, in place; returns the block's loss."""
    K = z.shape[0]
    index = target_index(label, K)
    on_target = terms.on_target[label]  # (P,)
    total = on_target
    if terms.smooth is not None:
        total = terms.total[label]  # (P,)
        smooth_z = terms.smooth @ z  # (P,), before exp overwrites z
    sums, log_prob = exp_and_log_prob(z, index)
    loss = -accurate_sum(on_target * log_prob)
    # dz = (sum of a) * p - a
    z *= total / sums
    z.reshape(-1)[index] -= on_target
    if terms.smooth is not None:
        valid = (label < K).astype(z.dtype)
        loss += accurate_sum(valid * (terms.smooth.sum() * np.log(sums) - smooth_z))
        z -= np.multiply.outer(terms.smooth, valid)
    return loss
