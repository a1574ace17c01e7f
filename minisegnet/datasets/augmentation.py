"""Augmentation presets: which changes a training sample goes through, and how far they may go.

A preset is called with (sample, rng, focus=None) and draws all it does from `rng`; what the
changes are stands in `transforms`. With a class `focus`, the crop has a random pixel of that class
in its centre, or as near as the edge of the picture allows, and no later change loses the class.
"""

import numpy as np

from minisegnet.datasets.transforms import (
    Resize,
    check_labels,
    cut_out,
    distort,
    flip,
    flip_vertical,
    jitter_colour,
    resized_crop,
    rotate,
    shade,
)

PRESETS = ("none", "standard", "enhanced", "strong")


class StandardAugment:
    """Mirror, scale by 0.7 to 1.6, crop to `size` (H, W), brighten by 0.75 to 1.25, at random.

    Scale 1 is the whole picture at `size`; a smaller one is padded with the mean colour and
    `ignore_index`. Called with (sample, rng, focus=None).
    """

    crops = True
    scales = (0.7, 1.6)
    brightness = (0.75, 1.25)

    def __init__(self, size, *, ignore_index=255):
        self.size = tuple(size)
        self.ignore_index = ignore_index

    def __call__(self, sample, rng, focus=None):
        out = self._crop(sample, rng, focus)
        if rng.random() < 0.5:
            out = flip(out)
        out = self._change(out, rng, focus)
        check_labels(sample.mask, out.mask, self.ignore_index)
        return out

    def _crop(self, sample, rng, focus):
        H, W = self.size
        scale = rng.uniform(*self.scales)
        scaled = h, w = round(scale * H), round(scale * W)
        # Larger than the window: any position inside. Smaller: anywhere in the window.
        lows, highs = (min(0, h - H), min(0, w - W)), (max(0, h - H), max(0, w - W))
        if focus is None:
            top, left = (int(rng.integers(low, high + 1)) for low, high in zip(lows, highs))
            return resized_crop(sample, scaled, top, left, self.size, self.ignore_index)
        y, x = (int((at + 0.5) * resized / length) for at, resized, length in
                zip(_pixel_of(sample, rng, focus), scaled, sample.mask.shape))
        top, left = (min(max(at - window // 2, low), high) for at, window, low, high in
                     zip((y, x), self.size, lows, highs))
        out = resized_crop(sample, scaled, top, left, self.size, self.ignore_index)
        if out.mask[y - top, x - left] != focus:
            # Scaled down, nearest neighbour may have passed over the pixel for another that
            # falls on the same place; a thin object would be lost like that.
            mask = out.mask.copy()
            mask[y - top, x - left] = focus
            out = out._replace(mask=mask)
        return out

    def _change(self, out, rng, focus):
        return jitter_colour(out, brightness=rng.uniform(*self.brightness))


class EnhancedAugment(StandardAugment):
    """`StandardAugment` with scales 0.5 to 2, and contrast, saturation and hue changed as well."""

    scales = (0.5, 2.0)
    contrast = (0.75, 1.25)
    saturation = (0.6, 1.4)
    hue = (-0.03, 0.03)  # turns; 1/6 makes yellow of red

    def _change(self, out, rng, focus):
        return jitter_colour(
            out, brightness=rng.uniform(*self.brightness), contrast=rng.uniform(*self.contrast),
            saturation=rng.uniform(*self.saturation), hue=rng.uniform(*self.hue))


class StrongAugment(EnhancedAugment):
    """`EnhancedAugment`, and each of these on half of the pictures:

    upside down; turned by up to 45 degrees; distorted, the inner corners of a 4 x 4 grid moving
    by up to a quarter of a cell; a shadow, a polygon of 0.4 to 0.8 times the light; one to three
    boxes cut out, of up to a third of the window each way.
    """

    degrees = (-45, 45)
    cells = 4
    light = (0.4, 0.8)

    def _change(self, out, rng, focus):
        out = super()._change(out, rng, focus)
        if rng.random() < 0.5:
            out = flip_vertical(out)
        if rng.random() < 0.5:
            turned = rotate(out, rng.uniform(*self.degrees), self.ignore_index)
            out = _unless_lost(focus, out, turned)
        if rng.random() < 0.5:
            most = np.array(self.size) / self.cells / 4
            offsets = rng.uniform(-most, most, (self.cells - 1, self.cells - 1, 2))
            out = _unless_lost(focus, out, distort(out, offsets, self.ignore_index))
        if rng.random() < 0.5:
            out = shade(out, _polygon(rng, self.size), rng.uniform(*self.light))
        if rng.random() < 0.5:
            boxes = [_box(rng, self.size) for _ in range(rng.integers(1, 4))]
            out = _unless_lost(focus, out, cut_out(out, boxes, self.ignore_index))
        return out


def _pixel_of(sample, rng, label):
    """Return (y, x) of a random pixel of class `label`; ValueError if there is none."""
    places = np.flatnonzero(sample.mask == label)
    if not places.size:
        raise ValueError(f"sample {sample.name} has no pixel of class {label} to crop around")
    return divmod(int(places[rng.integers(places.size)]), sample.mask.shape[1])


def _unless_lost(focus, before, after):
    """Return `after`, or `before` if the class `focus` no longer occurs in `after`."""
    return before if focus is not None and not (after.mask == focus).any() else after


def _polygon(rng, size):
    """Return four corners (y, x) anywhere in `size` (H, W), in order around their middle."""
    corners = rng.uniform(0, size, (4, 2))
    y, x = (corners - corners.mean(axis=0)).T
    return corners[np.argsort(np.arctan2(y, x))]


def _box(rng, size):
    """Return (top, left, bottom, right) of a box inside `size`: a tenth to a third each way."""
    H, W = size
    height, width = (max(1, round(side * rng.uniform(0.1, 1 / 3))) for side in size)
    top, left = int(rng.integers(0, H - height + 1)), int(rng.integers(0, W - width + 1))
    return top, left, top + height, left + width


def make_augmentation(preset, size, *, ignore_index=255):
    """Return the training transform called `preset`, one of `PRESETS`; none only resizes."""
    kinds = dict(zip(PRESETS, (Resize, StandardAugment, EnhancedAugment, StrongAugment)))
    if preset not in kinds:
        raise ValueError(f"augmentation {preset!r} is not one of {', '.join(PRESETS)}")
    return kinds[preset](size, ignore_index=ignore_index)
