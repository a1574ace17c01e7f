"""Which classes are rare: one rule, for every score, table and picture that says the word."""

import numpy as np

RARE = 0.01  # of the training pixels: a class below is rare


def rare_classes(training_pixels):
    """Return which classes are rare, (K,) bool, and the rule in words, of pixel counts (K,).

    Rare is below 1 % of the training pixels. Where that sets nothing apart, it is below half an
    even share, 1 / (2 K); where that does not either, no class is rare. A class without a pixel
    is rare.
    """
    training_pixels = np.asarray(training_pixels)
    share = training_pixels / training_pixels.sum()
    for limit in (RARE, 0.5 / len(share)):
        rare = share < limit
        if rare.any() and not rare.all():
            return rare, f"below {100 * limit:.3g} % of the training pixels"
    return np.zeros(len(share), bool), "no class"
