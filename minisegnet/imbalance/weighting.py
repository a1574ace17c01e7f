"""Class weights from the statistics of a data set.

Every scheme answers the same question, how much more should a rare class's pixel count, with
another exponent: from "in full" (inverse) by way of "by the root" to "hardly" (effective number).
"""

from dataclasses import dataclass

import numpy as np

SCHEMES = ("none", "inverse", "sqrt", "median", "enet", "effective")


@dataclass(frozen=True)
class ClassStatistics:
    """What a pass over all masks counts; K classes, ignored pixels left out.

    pixels        (K,) pixels of each class
    image_pixels  (K,) valid pixels of the images that contain the class, whatever their class
    images        (K,) images that contain the class
    num_images    how many masks there were
    first_image   (K,) index of the first image that contains the class, -1 if none does
    """

    pixels: np.ndarray
    image_pixels: np.ndarray
    images: np.ndarray
    num_images: int
    first_image: np.ndarray | None = None

    @classmethod
    def from_masks(cls, masks, num_classes, ignore_index=255):
        """Count `masks`, an iterable of integer arrays, read once and one at a time.

        Raises TypeError for a mask that is not of integers and ValueError for labels outside
        0 .. num_classes-1 that are not `ignore_index`.
        """
        pixels, image_pixels, images = np.zeros((3, num_classes), dtype=np.int64)
        num_images = 0
        first_image = np.full(num_classes, -1)
        for mask in masks:
            mask = np.asarray(mask)
            if not np.issubdtype(mask.dtype, np.integer):
                raise TypeError(f"mask {num_images} has dtype {mask.dtype}, need integer labels")
            labels = mask[mask != ignore_index]  # (P,)
            if labels.size and (labels.min() < 0 or labels.max() >= num_classes):
                found = np.unique(labels[(labels < 0) | (labels >= num_classes)])
                raise ValueError(
                    f"mask {num_images} holds {found[:8].tolist()}, outside 0..{num_classes - 1} "
                    f"and not ignore_index {ignore_index}: check num_classes and the label mapping"
                )
            counts = np.bincount(labels.astype(np.intp), minlength=num_classes)  # (K,)
            pixels += counts
            image_pixels += np.where(counts > 0, labels.size, 0)
            images += counts > 0
            first_image[(counts > 0) & (first_image < 0)] = num_images
            num_images += 1
        return cls(pixels, image_pixels, images, num_images, first_image)

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
    alpha, or where the loss is added to another. Raises ValueError for an unknown scheme or
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
