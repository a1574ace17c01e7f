"""Logit-adjusted cross-entropy: the imbalance goes into the logits, not into the weights.

With pi the share of each class among all pixels, cross-entropy on shifted logits:

    L = cross_entropy(logits + tau log(pi), target)        dL/dlogits = that of cross-entropy

In training the prior takes over what is due to a class being frequent, and the network learns the
rest. Predictions take the plain logits, in which rare classes therefore stand higher; for
tau = 1, their argmax aims at the mean accuracy of the classes instead of that of the pixels.

Source: Menon et al., "Long-tail learning via logit adjustment" (2021), equation 10.
"""

import math

import numpy as np

from minisegnet.losses._softmax import (
    check_class_weights,
    check_logits,
    check_shapes,
    uses_kernels,
)
from minisegnet.losses.cross_entropy import cross_entropy_backward, cross_entropy_forward
from minisegnet.losses.softmax_cuda import (
    DeviceLoss,
    FullLogits,
    cross_entropy_mean,
    loss_forward_cuda,
)


def logit_adjusted_forward(logits, target, *, prior, tau=1.0, weight=None, counts=None,
                           ignore_index=255, implementation=None):
    """Return the logit-adjusted cross-entropy of logits (N, H, W, K), and a cache.

    target is (N, H, W); `prior` (K,) holds the shares of the classes among the pixels, or pixel
    counts: its scale cancels. A class with prior 0 is treated as the most frequent one: log(0)
    has no place in a logit, and a class that was never seen must not be raised above the others
    in predictions. `weight` and `counts` as in `cross_entropy_forward`; class weights correct the
    same imbalance once more. `implementation` is "numpy", "cuda" or "cuda_cpu", as there. Raises
    ValueError for shapes, options or labels that do not fit, TypeError for dtypes.
    """
    if uses_kernels(implementation, logits, "numpy"):
        check_shapes(logits, target)
        pixels = logit_adjusted_mean(logits.shape[3], prior, tau, weight)
        return loss_forward_cuda(FullLogits(logits), target, DeviceLoss(pixels), counts=counts,
                                 ignore_index=ignore_index)
    check_logits(logits)
    shifted = logits + logit_shift(prior, tau, logits.shape[3], logits.dtype)
    return cross_entropy_forward(shifted, target, weight=weight, counts=counts,
                                 ignore_index=ignore_index)


def logit_adjusted_backward(dloss, cache):
    """Return dlogits (N, H, W, K) for the scalar `dloss`."""
    return cross_entropy_backward(dloss, cache)


def logit_adjusted_mean(num_classes, prior, tau=1.0, weight=None):
    """Return the `PixelMean` of logit-adjusted cross-entropy."""
    return cross_entropy_mean(num_classes, weight,
                              shift=logit_shift(prior, tau, num_classes, np.float64))


def logit_shift(prior, tau, num_classes, dtype):
    """Return tau log(prior) (K,) of `dtype`, moved so that the most frequent class has 0."""
    if not 0.0 <= tau < math.inf:
        raise ValueError(f"tau is {tau}; expected a number of at least 0")
    if prior is None or not np.any(prior):
        raise ValueError("prior is missing, or 0 for every class; expected the shares of the "
                         "classes among the pixels")
    prior = check_class_weights(prior, num_classes, "prior")
    log_prior = np.log(np.where(prior > 0.0, prior, prior.max()))
    return (tau * (log_prior - log_prior.max())).astype(dtype)
