"""What the losses on overlaps share: a class against its truth, pooled over the whole batch.

Over the pixels that are not ignored, with p = softmax(logits) and t the one-hot target:

    I_c = sum p_c t_c     S_c = sum p_c     T_c = sum t_c

Dice and Tversky are functions of these sums. Each says what dL/dI_c and dL/dS_c are, and from
there the way back to the logits is the same, pixel by pixel:

    dp_c = dS_c + t_c dI_c              dz = p * (dp - sum_c p_c dp_c)
"""

from typing import NamedTuple

import numpy as np

from minisegnet.losses._softmax import (
    check_class_weights,
    classes_first,
    exp_and_log_prob,
    map_pixel_blocks,
    target_index,
    warn_once,
    with_ignored,
)


class OverlapCache(NamedTuple):
    """What the backward pass needs."""

    probs: np.ndarray  # (N, H, W, K), 0 where the pixel is ignored
    labels: np.ndarray  # (N, H, W), K where the pixel is ignored
    dintersection: np.ndarray  # (K,) dL/dI_c
    dtotal: np.ndarray  # (K,) dL/dS_c


def class_shares(counts, classes, weight, name):
    """Return the share (K,) of each class in the mean of loss `name`: they sum to 1, or are all 0.

    `classes` are those "present" in a batch with `counts` (K,) pixels per class, or "all";
    `weight` (K,) or None makes it a weighted mean. All 0, said once, where every pixel is ignored
    or no class of the mean has a weight. Raises ValueError for other classes or weights.
    """
    weight = check_classes(classes, weight, counts.size)
    present = counts > 0
    if classes == "present":
        weight = weight * present
    if not present.any() or weight.sum() == 0.0:
        warn_once(f"{name} loss: every pixel is ignored, or no class with a weight is there: "
                  "loss 0, gradient 0")
        return np.zeros(counts.size)
    return weight / weight.sum()


def check_classes(classes, weight, num_classes):
    """Check the choice of classes, and return their weights (K,)."""
    if classes not in ("present", "all"):
        raise ValueError(f"classes is {classes!r}; expected 'present' or 'all'")
    return check_class_weights(weight, num_classes)


def check_smooth(smooth):
    """Refuse a negative smoothing."""
    if not smooth >= 0.0:
        raise ValueError(f"smooth is {smooth}; expected a number of at least 0")


def overlap_forward(logits, labels, loss_of_sums):
    """Return the loss of logits (N, H, W, K) against `Labels`, and an `OverlapCache`.

    `loss_of_sums(I, S)`, from two (K,), returns the loss (a float), dL/dI and dL/dS (K,).
    """
    K = logits.shape[3]
    probs = np.empty(logits.shape, logits.dtype)

    def block(z_rows, label, p_rows):
        z = classes_first(z_rows)  # (K, P)
        sums = overlap_block(z, label)
        p_rows[...] = z.T
        return sums

    sums = map_pixel_blocks(block, logits.reshape(-1, K), labels.index.reshape(-1),
                            probs.reshape(-1, K))
    intersection, total = sum(sums)  # (K,) each
    loss, dintersection, dtotal = loss_of_sums(intersection, total)
    return logits.dtype.type(loss), OverlapCache(probs, labels.index, dintersection, dtotal)


def overlap_backward(dloss, cache):
    """Return dlogits (N, H, W, K) for the scalar `dloss`."""
    probs = cache.probs
    K = probs.shape[3]
    dintersection = with_ignored(float(dloss) * cache.dintersection, probs.dtype)
    dtotal = (float(dloss) * cache.dtotal).astype(probs.dtype)
    dlogits = np.empty(probs.shape, probs.dtype)

    def block(p_rows, label, dz_rows):
        p = np.array(p_rows.T, order="C")  # (K, P), a copy
        overlap_gradient_block(p, label, target_index(label, K), dintersection, dtotal)
        dz_rows[...] = p.T

    map_pixel_blocks(block, probs.reshape(-1, K), cache.labels.reshape(-1),
                     dlogits.reshape(-1, K))
    return dlogits


def overlap_block(z, label):
    """Turn shifted logits z (K, P) into probabilities, in place: 0 where a pixel is ignored.

    Returns I and S of the block: (2, K) float64.
    """
    K = z.shape[0]
    index = target_index(label, K)
    sums, log_prob = exp_and_log_prob(z, index)
    z *= (label < K) / sums
    return overlap_sums(z.sum(axis=1), log_prob, label)


def overlap_sums(total, log_prob, label):
    """Return I and S (2, K) float64 of a block, from S (K,) and log p of the target (P,)."""
    K = total.size
    intersection = np.bincount(label, weights=np.exp(log_prob), minlength=K + 1)[:K]
    return np.stack([intersection, total])


def overlap_gradient_block(p, label, index, dintersection, dtotal, factor=None):
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
