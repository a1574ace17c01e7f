"""What happens to a sample between the file and the network: resizing, augmentation, scaling.

Images are resized bilinearly, masks by nearest neighbour only: a mask never gains a label, apart
from the ignore label where a crop reaches past the picture. Every transform checks that.
"""

import numpy as np
from PIL import Image

from minisegnet.datasets.sample import labels_in

# ImageNet's mean and standard deviation per channel, of values in 0 to 1.
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)
_MEAN_COLOUR = np.round(255 * MEAN).astype(np.uint8)

SCALES = (0.7, 1.6)
BRIGHTNESS = (0.75, 1.25)


def resize_image(image, size):
    """Return `image` (H, W, 3) uint8 at `size` (height, width), bilinear."""
    return _resized(image, size, Image.Resampling.BILINEAR)


def resize_mask(mask, size):
    """Return `mask` (H, W) uint8 at `size` (height, width), nearest neighbour."""
    return _resized(mask, size, Image.Resampling.NEAREST)


def _resized(array, size, resampling):
    if array.shape[:2] == tuple(size):
        return array
    return np.asarray(Image.fromarray(array).resize((size[1], size[0]), resampling))


def normalize(image):
    """Return `image` (..., 3) uint8 as float32: (value / 255 - MEAN) / STD."""
    out = image * (1 / (255 * STD))
    out -= MEAN / STD
    return out


def denormalize(image):
    """Return a normalised `image` (..., 3) float32 as uint8 again, to look at."""
    return np.clip(255 * (image * STD + MEAN) + 0.5, 0, 255).astype(np.uint8)


def flip(sample):
    """Return `sample` mirrored left to right."""
    return sample._replace(image=sample.image[:, ::-1], mask=sample.mask[:, ::-1])


def crop(sample, top, left, size, ignore_index=255):
    """Return the window `size` (H, W) whose corner lies at (top, left), which may be negative.

    Beyond the sample the image is ImageNet's mean colour and the mask `ignore_index`.
    """
    H, W = size
    image = np.empty((H, W, 3), np.uint8)
    image[:] = _MEAN_COLOUR
    mask = np.full((H, W), ignore_index, np.uint8)
    y0, x0 = max(0, top), max(0, left)
    y1, x1 = min(sample.mask.shape[0], top + H), min(sample.mask.shape[1], left + W)
    window = np.s_[y0 - top:y1 - top, x0 - left:x1 - left]
    image[window] = sample.image[y0:y1, x0:x1]
    mask[window] = sample.mask[y0:y1, x0:x1]
    return sample._replace(image=image, mask=mask)


def brighten(sample, factor):
    """Return `sample` with its image values times `factor`, clipped at 255."""
    table = np.clip(np.arange(256) * factor + 0.5, 0, 255).astype(np.uint8)
    return sample._replace(image=table[sample.image])


def check_labels(before, after, ignore_index=255):
    """Raise ValueError if mask `after` holds a label that `before` lacks, ignore aside."""
    invented = set(labels_in(after).tolist()) - set(labels_in(before).tolist()) - {ignore_index}
    if invented:
        raise ValueError(
            f"a transform invented the labels {sorted(invented)}; "
            "masks may only be resized by nearest neighbour"
        )


class Resize:
    """Resize the image to `size` (H, W), and the mask too unless `resize_mask` is False.

    Called with (sample, rng) like every transform; `rng` is not used.
    """

    def __init__(self, size, *, resize_mask=True, ignore_index=255):
        self.size = tuple(size)
        self.resize_mask = resize_mask
        self.ignore_index = ignore_index

    def __call__(self, sample, rng):
        mask = resize_mask(sample.mask, self.size) if self.resize_mask else sample.mask
        check_labels(sample.mask, mask, self.ignore_index)
        return sample._replace(image=resize_image(sample.image, self.size), mask=mask)


class StandardAugment:
    """Mirror, scale by 0.7 to 1.6, crop to `size` (H, W), brighten by 0.75 to 1.25, at random.

    Scale 1 is the whole picture at `size`; a smaller one is padded with the mean colour and
    `ignore_index`. Called with (sample, rng).
    """

    def __init__(self, size, *, ignore_index=255):
        self.size = tuple(size)
        self.ignore_index = ignore_index

    def __call__(self, sample, rng):
        out = flip(sample) if rng.random() < 0.5 else sample
        scale = rng.uniform(*SCALES)
        H, W = self.size
        h, w = round(scale * H), round(scale * W)
        out = out._replace(
            image=resize_image(np.ascontiguousarray(out.image), (h, w)),
            mask=resize_mask(np.ascontiguousarray(out.mask), (h, w)),
        )
        # Larger than the window: any position inside. Smaller: anywhere in the window.
        top = int(rng.integers(min(0, h - H), max(0, h - H) + 1))
        left = int(rng.integers(min(0, w - W), max(0, w - W) + 1))
        out = crop(out, top, left, self.size, self.ignore_index)
        out = brighten(out, rng.uniform(*BRIGHTNESS))
        check_labels(sample.mask, out.mask, self.ignore_index)
        return out


def make_augmentation(preset, size, *, ignore_index=255):
    """Return the transform for training named `preset`: none (resize only) or standard."""
    if preset == "none":
        return Resize(size, ignore_index=ignore_index)
    if preset == "standard":
        return StandardAugment(size, ignore_index=ignore_index)
    raise ValueError(f"augmentation {preset!r} is not one of none, standard")
