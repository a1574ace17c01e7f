"""What label smoothing makes of class weights: the trap of smoothed, weighted cross-entropy.

Smoothing gives every class a share of every pixel, and weighted cross-entropy prices that share
by the weight of the class it goes to. Where one class weighs enough more than another, the loss of
the other's pixels is least if they are predicted as the heavy class.
"""

import numpy as np


def smoothed_optimum(weights, y, smoothing):
    """Return the probabilities (K,) at which weighted, smoothed cross-entropy is least.

    For pixels of class `y` alone. With a_c = (1 - e) w_y [c = y] + (e / K) w_c, as in torch, the
    loss is -sum_c a_c log p_c, least at p = a / sum a. Raises ValueError if all a are 0.
    """
    weights = np.asarray(weights, float)
    a = smoothing / len(weights) * weights
    a[y] += (1 - smoothing) * weights[y]
    if not a.sum() > 0:
        raise ValueError(f"class {y} and all others weigh 0: every prediction costs the same")
    return a / a.sum()


def flipping_ratio(num_classes, smoothing):
    """Return by what factor a class must outweigh another to be the optimum in its place.

    p_r > p_y where (e / K) w_r > (1 - e + e / K) w_y, that is w_r / w_y > 1 + K (1 - e) / e.
    Infinite without smoothing.
    """
    return 1 + num_classes * (1 - smoothing) / smoothing if smoothing else np.inf


def flipping_smoothing(num_classes, ratio):
    """Return the smoothing from which on a class `ratio` times as heavy wins: K / (K + ratio - 1).

    The inverse of `flipping_ratio`; 1 for equal weights, which smoothing below 1 cannot turn.
    """
    return num_classes / (num_classes + ratio - 1)
