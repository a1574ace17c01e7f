"""Cross-entropy on the hard pixels only (online hard example mining), and its gradient.

With p_i the probability of the true class of pixel i, P the number of pixels not ignored, and
n = ceil(min_kept * P):

    kept = { i : p_i < thresh }, or the n pixels with the smallest p_i, if those are more
    L = sum_kept w[y_i] (-log p_i) / sum_kept w[y_i]

The gradient is that of cross-entropy on the kept pixels, as if the others were ignored. The choice
itself has none: L jumps where a pixel enters or leaves.

Source: Shrivastava et al., "Training region-based object detectors with online hard example
mining" (2016); for pixels, with a threshold, as in the HRNet and BiSeNet code.
"""

import math

import numpy as np

from minisegnet.losses._softmax import (
    Labels,
    check_inputs,
    classes_first,
    exp_and_log_prob,
    map_pixel_blocks,
    refuse_device,
    target_index,
)
from minisegnet.losses.cross_entropy import (
    CrossEntropyCache,
    cross_entropy_backward,
    cross_entropy_forward_numpy,
    cross_entropy_terms,
)


def ohem_forward(logits, target, *, thresh=0.7, min_kept=1 / 16, weight=None, ignore_index=255):
    """Return the cross-entropy of the hard pixels of logits (N, H, W, K), and a cache.

    target is (N, H, W). Kept are the pixels whose true class has a probability below `thresh`, and
    at least the share `min_kept` of all valid pixels, the hardest ones; equal ones in the order of
    the pixels. A share, as in BiSeNet (its 1/16 is the default); mmsegmentation and HRNet have a
    number of pixels, often 100000, which in small pictures is every pixel: of a crop of 512 x 1024
    it is the share 0.19. `weight` (K,) makes it a weighted mean over the kept pixels, with the sum
    of their weights as denominator, as in `cross_entropy_forward`; the choice does not look at
    weights. Nothing to learn from: loss 0, gradient 0, and a RuntimeWarning, once. Raises
    ValueError for shapes, options or labels that do not fit, TypeError for dtypes.
    """
    refuse_device("ohem", logits)
    labels = check_inputs(logits, target, ignore_index)
    check_ohem(thresh, min_kept)
    K = logits.shape[3]

    def block(z_rows, label):
        return exp_and_log_prob(classes_first(z_rows), target_index(label, K))[1]

    log_prob = map_pixel_blocks(block, logits.reshape(-1, K), labels.index.reshape(-1))
    kept = keep_hard(labels, np.concatenate(log_prob), thresh, min_kept)
    terms = cross_entropy_terms(kept.counts, weight, 0.0, logits.dtype)
    loss, dlogits = cross_entropy_forward_numpy(logits, kept.index, terms)
    return logits.dtype.type(loss), CrossEntropyCache(dlogits)


def ohem_backward(dloss, cache):
    """Return dlogits (N, H, W, K) for the scalar `dloss`."""
    return cross_entropy_backward(dloss, cache)


def check_ohem(thresh, min_kept):
    """Refuse a threshold or a share outside (0, 1]."""
    if not 0.0 < thresh <= 1.0:
        raise ValueError(f"thresh is {thresh}; expected a probability above 0 and up to 1")
    if not 0.0 < min_kept <= 1.0:
        raise ValueError(f"min_kept is {min_kept}; expected a share of the valid pixels, above 0 "
                         "and up to 1 (not a number of pixels)")


def keep_hard(labels, log_prob, thresh, min_kept):
    """Return the `Labels` in which only the hard pixels are not ignored.

    `log_prob` (N*H*W,) holds log p of the true class; what it holds for ignored pixels is not
    read.
    """
    K = labels.counts.size
    index = labels.index.reshape(-1)
    valid = np.flatnonzero(index < K)
    log_prob = log_prob[valid]  # (P,)
    hard = log_prob < math.log(thresh)
    n = math.ceil(min_kept * valid.size)
    if np.count_nonzero(hard) < n:
        nth = np.partition(log_prob, n - 1)[n - 1]
        hard = log_prob < nth
        equal = np.flatnonzero(log_prob == nth)
        hard[equal[: n - np.count_nonzero(hard)]] = True
    kept = np.full_like(index, K)
    kept[valid[hard]] = index[valid[hard]]
    counts = np.bincount(kept, minlength=K + 1)[:K]
    return Labels(kept.reshape(labels.index.shape), counts, int(counts.sum()))
