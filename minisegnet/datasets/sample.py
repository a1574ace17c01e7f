"""One labelled picture, and what every data set owes the rest of the program."""

from typing import NamedTuple

import numpy as np


class Sample(NamedTuple):
    """A picture with its labels."""

    image: np.ndarray  # (H, W, 3) uint8, RGB
    mask: np.ndarray  # (H, W) uint8, class ids or the ignore label
    name: str


def labels_in(mask):
    """Return the sorted label values that occur in `mask` (H, W) uint8."""
    # Delete from all values those in the mask; what is left is absent. np.unique and bincount
    # say the same in five times the time, and every sample is asked several times.
    absent = bytes(range(256)).translate(None, mask.tobytes())
    return np.delete(np.arange(256), list(absent))
