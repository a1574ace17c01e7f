"""Class weights from the statistics of a data set.

Every scheme answers the same question, how much more should a rare class's pixel count, with
another exponent: from "in full" (inverse) by way of "by the root" to "hardly" (effective number).
"""

from dataclasses import dataclass

import numpy as np

SCHEMES = ("none", "inverse", "sqrt", "median", "enet", "effective")


@dataclass(frozen=True)
class ClassStatistics:
    """What a pass over all masks counts; the K columns are the classes, ignored pixels left out.

    Everything else follows from `counts`: in the masks' order, pixels of each class in each.
    """

    counts: np.ndarray  # (num_images, K) int64

    @classmethod
    def from_masks(cls, masks, num_classes, ignore_index=255):
        """Count `masks`, an iterable of integer arrays, read once and one at a time.

        Raises TypeError for a mask that is not of integers and ValueError for labels outside
        0 .. num_classes-1 that are not `ignore_index`.
        """
        rows = []
        for mask in masks:
            mask = np.asarray(mask)
            if not np.issubdtype(mask.dtype, np.integer):
                raise TypeError(f"mask {len(rows)} has dtype {mask.dtype}, need integer labels")
            labels = mask[mask != ignore_index]  # (P,)
            if labels.size and (labels.min() < 0 or labels.max() >= num_classes):
                found = np.unique(labels[(labels < 0) | (labels >= num_classes)])
                raise ValueError(
                    f"mask {len(rows)} holds {found[:8].tolist()}, outside 0..{num_classes - 1} "
                    f"and not ignore_index {ignore_index}: check num_classes and the label mapping"
                )
            rows.append(np.bincount(labels.astype(np.intp), minlength=num_classes))
        return cls(np.array(rows, np.int64).reshape(-1, num_classes))

    @property
    def num_images(self):
        """How many masks there were."""
        return len(self.counts)

    @property
    def pixels(self):
        """Pixels of each class, (K,)."""
        return self.counts.sum(axis=0)

    @property
    def images(self):
        """Images that contain the class, (K,)."""
        return (self.counts > 0).sum(axis=0)

    @property
    def image_pixels(self):
        """Valid pixels of the images that contain the class, whatever their class, (K,)."""
        return self.counts.sum(axis=1) @ (self.counts > 0)

    @property
    def first_image(self):
        """Index of the first image that contains the class, (K,), -1 if none does."""
        index = np.where(self.counts > 0, np.arange(self.num_images)[:, None], self.num_images)
        first = index.min(axis=0, initial=self.num_images)
        return np.where(first < self.num_images, first, -1)

    @property
    def frequency(self):
        """Each class's share of the valid pixels, (K,); ValueError where there are none."""
        total = self.pixels.sum()
        if total == 0:
            raise ValueError(f"no valid pixel in {self.num_images} masks: is everything ignored?")
        return self.pixels / total


def class_weights(statistics, scheme, *, cap=100.0, normalize=None, beta=0.9999):
    """Return one weight per class, (K,) float64, by the `scheme`'s formula.

    With f the share of the valid pixels, n the pixels and m the images that contain the class:

    none       1
    inverse    1 / (K f)
    sqrt       sqrt(n_max / n)
    median     median(f') / f', f' the share within the images that contain the class
               (Eigen and Fergus 2015, section 6.3)
    enet       1 / ln(1.02 + f), from 1.42 to 50.5 (Paszke et al. 2016, section 5)
    effective  (1 - beta) / (1 - beta^m) (Cui et al. 2019, equation 3); on images, since on pixel
               counts in the millions every class has the same effective number

    No weight exceeds `cap` (None: no cap). A class without a pixel gets 0, never the cap (but 1
    under "none"). `normalize="sum"` then scales the weights to sum to K. That changes nothing in
    a cross-entropy divided by the sum of its pixels' weights; it does where weights are focal's
    alpha, or where the pixels' losses are summed. Raises ValueError for an unknown scheme or
    option, or statistics without a valid pixel.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"weight scheme {scheme!r} is not one of {', '.join(SCHEMES)}")
    if normalize not in (None, "sum"):
        raise ValueError(f'normalize must be None or "sum", got {normalize!r}')
    if not 0 <= beta < 1:
        raise ValueError(f"beta must lie in [0, 1), got {beta}")
    if cap is not None and not cap > 0:
        raise ValueError(f"cap must be above 0 or None, got {cap}")
    K = len(statistics.pixels)
    if scheme == "none":
        return np.ones(K)

    present = statistics.frequency > 0  # (K,) bool
    f = statistics.frequency[present]  # the present classes only, so that nothing divides by 0
    n = statistics.pixels[present]
    if scheme == "inverse":
        w = 1 / (K * f)
    elif scheme == "sqrt":
        w = np.sqrt(n.max() / n)
    elif scheme == "median":
        share = n / statistics.image_pixels[present]
        w = np.median(share) / share
    elif scheme == "enet":
        w = 1 / np.log(1.02 + f)
    else:
        w = (1 - beta) / (1 - beta ** statistics.images[present].astype(float))

    weights = np.zeros(K)
    weights[present] = w if cap is None else np.minimum(w, cap)
    if normalize == "sum":
        weights *= K / weights.sum()
    return weights
