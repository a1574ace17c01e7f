"""Lovasz-softmax: the IoU itself, made continuous, and its gradient.

For one class c call M a set of pixels that are wrong about c, and Y those that truly are c. The
Jaccard loss of these mistakes is 1 - IoU:

    J(M) = |M| / |Y or M|

Soft predictions make mistakes by degrees: with p = softmax(logits), e_i = |[y_i = c] - p_i[c]|.
Take the pixels in the order of falling e, the worst first, and charge each for what it adds to
the Jaccard loss of those before it; pooled over all pixels of the batch that are not ignored:

    L_c = sum_k e_(k) g_k        g_k = J({(1)..(k)}) - J({(1)..(k-1)})        L = sum_c a_c L_c

where the shares a_c say which classes are averaged. With every e_i 0 or 1 this is 1 - IoU exactly.
While the order stays, L_c is linear in e, so that its gradient is g; a change of order is a kink:

    dp_i[c] = a_c g_i, or -a_c g_i where y_i = c        dz = p * (dp - sum_c p_c dp_c)

Source: Berman et al., "The Lovasz-Softmax loss" (2018).
"""

from typing import NamedTuple

import numpy as np

from minisegnet.losses._overlap import class_shares
from minisegnet.losses._softmax import (
    check_inputs,
    classes_first,
    exp_and_log_prob,
    refuse_device,
    scale_gradient,
    target_index,
)
from minisegnet.ops._checks import choose
from minisegnet.parallel import parallel_map


class LovaszCache(NamedTuple):
    """What the backward pass needs."""

    dlogits: np.ndarray  # (N, H, W, K), the gradient for dloss = 1


def lovasz_forward(logits, target, *, classes="present", weight=None, ignore_index=255,
                   implementation=None):
    """Return the Lovasz-softmax loss of logits (N, H, W, K) against target, and a cache.

    target is (N, H, W). `classes` are averaged: those "present" in the target, or "all", where an
    absent class costs its largest probability; `weight` (K,) makes it a weighted mean. Equal
    errors are taken in the order of the pixels: the loss does not depend on it, the gradient does.
    Every class sorts every pixel, hence a loss much dearer than the others. No class to average:
    loss 0, gradient 0, and a RuntimeWarning, once. `implementation` is "loops" (the definition)
    or "numpy". Raises ValueError for shapes, options or labels that do not fit, TypeError for
    dtypes.
    """
    refuse_device("lovasz", logits)
    labels = check_inputs(logits, target, ignore_index)
    K = logits.shape[3]
    shares = class_shares(labels.counts, classes, weight, "Lovasz")
    extension = choose(implementation, logits, loops=jaccard_extension_loops,
                       numpy=jaccard_extension_numpy)
    valid = labels.index < K
    label = labels.index[valid]  # (P,), P valid pixels
    p = classes_first(logits[valid])  # (K, P)
    sums, _ = exp_and_log_prob(p, target_index(label, K))
    p /= sums
    dp = np.zeros_like(p)

    def one_class(c):
        if shares[c] == 0.0:
            return 0.0
        truth = label == c
        loss, derrors = extension(np.where(truth, 1.0 - p[c], p[c]), truth)
        dp[c] = shares[c] * np.where(truth, -derrors, derrors)
        return shares[c] * loss

    loss = sum(parallel_map(one_class, range(K)))
    # dz = p * (dp - sum_c p_c dp_c), and 0 where a pixel is ignored
    dp -= (p * dp).sum(axis=0)
    dp *= p
    dlogits = np.zeros(logits.shape, logits.dtype)
    dlogits[valid] = dp.T
    return logits.dtype.type(loss), LovaszCache(dlogits)


def lovasz_backward(dloss, cache):
    """Return dlogits (N, H, W, K) for the scalar `dloss`."""
    return scale_gradient(dloss, cache.dlogits)


def jaccard_extension_loops(errors, truth):
    """The definition for one class: errors (P,) and truth (P,) bool give L_c and its gradient.

    The pixels join the mistakes one by one, the worst first.
    """
    mistakes, union = 0, int(truth.sum())
    loss, jaccard = 0.0, 0.0
    gradient = np.zeros(errors.size)
    for i in sorted(range(errors.size), key=lambda i: -errors[i]):
        mistakes += 1
        if not truth[i]:
            union += 1
        gradient[i] = mistakes / union - jaccard
        jaccard = mistakes / union
        loss += float(errors[i]) * gradient[i]
    return loss, gradient


def jaccard_extension_numpy(errors, truth):
    """The same with one sort, and each difference g_k in closed form, without cancellation.

    With I true pixels not yet among the mistakes and a union U, both after pixel k:
    a missed one leaves the union as it is, J grows by 1 / U; a false one enlarges it by one,
    J = 1 - I/U grows by I / (U - 1) - I / U = I / (U (U - 1)).
    """
    order = np.argsort(-errors, kind="stable")
    missed = truth[order]
    count = int(missed.sum())
    gradient = np.zeros(errors.size)
    if count == 0:
        gradient[order[:1]] = 1.0  # the first mistake alone makes J = 1
    else:
        left = count - np.cumsum(missed)  # (P,) I
        union = count + np.cumsum(~missed)  # (P,) U
        gradient[order] = np.where(missed, 1.0, left / np.maximum(union - 1, 1)) / union
    return float(errors @ gradient), gradient
