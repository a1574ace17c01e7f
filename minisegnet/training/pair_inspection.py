"""Pictures and masks as they are read, before training: what is done to labels, and to pairs.

Three questions of a loader and the data set behind it: which label becomes of a value in a mask
file, which labels the transform invents, and whether masks still belong to their pictures. Every
random number comes from generators of its own, so that asking changes no batch of the training.
"""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from minisegnet.datasets.files import read_raw_mask
from minisegnet.datasets.sample import Sample
from minisegnet.datasets.transforms import resize_image
from minisegnet.imbalance import alignment

SAMPLES = 32  # masks whose labels are followed from the file on
PARTNERS = 256  # masks among which a better one is looked for
_MOST_READ = 2**25  # px, of all pictures read at a time
_LEAST_READ = 8  # pictures
_MOST_PIXELS = 192 * 256  # of a picture that is compared with masks
_DRAWS = 32  # of the transform
_HALVES = (67, 83)  # size of the picture that shows what a transform does to a pair: nobody's
_SAME = 0.5  # correlation of picture and mask from which a pair counts as kept
_SEED = 20


class _Look(NamedTuple):
    """What one sample showed."""

    name: str
    image: np.ndarray  # (H, W, 3) uint8, small
    mask: np.ndarray  # (H, W) uint8, alike
    path: Counter  # (value in the file, label) -> pixels; None if not followed, or no file
    before: np.ndarray  # (256,) pixels of each label as read; None if not followed
    after: np.ndarray  # (256,) the same after the transform; None if there is none


def inspect_pairs(loader, pictures=64):
    """Return "label_path", "transform" and "alignment" of a loader, a dictionary of plain numbers.

    Up to `pictures` samples, spread evenly over the data set, are read, fewer of large pictures.

    label_path  {"samples", "pairs": [[value in the file, label, pixels], ...], "declared":
                [[value, label], ...] as the class map has it}; None for a data set without files.
                Values of colour masks are [r, g, b].
    transform   {"samples", "invented", "lost": [[label, pixels], ...]}: labels that a sample has
                only after or only before the loader's transform, the ignore label aside; None
                without a transform
    alignment   {"as_read": `alignment.measure` and, if in doubt, `find_partners` of the samples as
                the data set gives them, "transform": `check_transform`}
    """
    dataset, n = loader.dataset, len(loader.dataset)
    first = dataset[0].mask.shape
    size = _small(first)
    count = min(n, pictures, max(_LEAST_READ, _MOST_READ // (first[0] * first[1])))
    indices = np.unique(np.linspace(0, n - 1, count).astype(int)).tolist()
    every = -(-len(indices) // SAMPLES)
    followed = set(indices[::every])
    with ThreadPoolExecutor(max(1, loader.num_workers)) as pool:
        looks = list(pool.map(lambda i: _look(loader, i, size, i in followed), indices))

        images, masks = _distinct(looks)
        as_read = alignment.measure(images, masks, dataset.ignore_index)
        if alignment.in_doubt(as_read):
            # In a row, since lists that are off by a few are the likeliest fault.
            row = range(min(n, PARTNERS, 4 * count))
            images, masks = _distinct(pool.map(lambda i: _look(loader, i, size, False), row))
            as_read.update(alignment.find_partners(images, masks, dataset.ignore_index,
                                                   every=-(-len(masks) // pictures)))
    return {
        "label_path": _label_path(dataset, looks),
        "transform": None if loader.transform is None else _transformed(dataset, looks),
        "alignment": {"as_read": as_read,
                      "transform": check_transform(loader.transform, dataset.ignore_index)},
    }


def check_transform(transform, ignore_index=255):
    """Return whether `transform` does the same to a picture as to its mask.

    It is given a picture that is black in one half and white in the other, right or below, with a
    mask that says the same in labels 0 and 2. Whatever is cropped, turned or coloured, it must be
    brighter where labels are 2, and there must be no others. Returns {"draws", "kept": share of
    the draws in which it is brighter there, "mirrored", "upside_down": share of the draws, of
    halves side by side and one above the other, in which the contrary is so, "invented": pixels
    of all draws with labels that are neither 0 nor 2 nor ignored}; {"draws": 0} for None.
    """
    agreement, invented = ([], []), 0  # halves side by side, one above the other
    for k in range(_DRAWS if transform is not None else 0):
        mask = np.zeros(_HALVES, np.uint8)
        half = (slice(None), slice(_HALVES[1] // 2, None)) if k % 2 == 0 else \
            slice(_HALVES[0] // 2, None)
        mask[half] = 2
        image = np.repeat(np.where(mask, np.uint8(255), np.uint8(0))[..., None], 3, axis=2)
        out = transform(Sample(image, mask, "halves"), np.random.default_rng([_SEED, k]))
        labels = nearest(out.mask, out.image.shape[:2])
        seen = labels != ignore_index
        invented += int((seen & (labels != 0) & (labels != 2)).sum())
        bright, label = out.image[seen].mean(axis=1), labels[seen].astype(float)
        if label.size and np.ptp(label) and np.ptp(bright):  # both halves are in the crop
            agreement[k % 2].append(float(np.corrcoef(bright, label)[0, 1]))
    draws = len(agreement[0]) + len(agreement[1])
    if not draws:
        return {"draws": 0}
    kept = sum(value > _SAME for values in agreement for value in values)
    mirrored, upside_down = (sum(value < -_SAME for value in values) / max(1, len(values))
                             for values in agreement)
    return {"draws": draws, "kept": kept / draws, "mirrored": mirrored,
            "upside_down": upside_down, "invented": invented}


def nearest(masks, size):
    """Return masks (..., H, W) at `size`, by nearest neighbour.

    Without the functions of the transforms, which are what is asked about.
    """
    if masks.shape[-2:] == tuple(size):
        return masks
    rows, columns = (((np.arange(n) + 0.5) * length / n).astype(int)
                     for n, length in zip(size, masks.shape[-2:]))
    return masks[..., rows[:, None], columns]


def _small(size):
    """Return `size` (H, W), reduced to at most `_MOST_PIXELS`."""
    H, W = size
    scale = min(1.0, (_MOST_PIXELS / (H * W)) ** 0.5)
    return max(1, round(scale * H)), max(1, round(scale * W))


def _look(loader, i, size, follow):
    """Return the `_Look` at sample `i`; its labels are followed if `follow`."""
    sample = loader.dataset[i]
    path = before = after = None
    if follow:
        pairs = getattr(loader.dataset, "pairs", None)
        path = None if pairs is None else _path(pairs[i][1], sample.mask,
                                                loader.dataset.class_map.is_rgb)
        before = np.bincount(sample.mask.reshape(-1), minlength=256)
        if loader.transform is not None:
            out = loader.transform(sample, np.random.default_rng([_SEED, i]))
            after = np.bincount(out.mask.reshape(-1), minlength=256)
    return _Look(sample.name, resize_image(sample.image, size), nearest(sample.mask, size), path,
                 before, after)


def _path(mask_file, labels, colours):
    """Return the pixels of each (value in the file, label in `labels`), a Counter."""
    raw = read_raw_mask(mask_file, colours=colours)
    value = raw.astype(np.int64)
    if raw.ndim == 3:
        value = value @ (1 << 16, 1 << 8, 1)
    code = nearest(value, labels.shape) << 8 | labels  # the data set may resize
    if raw.ndim == 3:
        found, pixels = np.unique(code, return_counts=True)
    else:  # a tenth of the time of sorting
        pixels = np.bincount(code.reshape(-1))
        found = np.flatnonzero(pixels)
        pixels = pixels[found]
    values = (found >> 8).tolist()
    if raw.ndim == 3:
        values = [(value >> 16, value >> 8 & 255, value & 255) for value in values]
    return Counter(dict(zip(zip(values, (found & 255).tolist()), pixels.tolist())))


def _label_path(dataset, looks):
    paths = [look.path for look in looks if look.path is not None]
    if not paths:
        return None
    counts = sum(paths, Counter())
    classes = dataset.class_map
    declared = [*zip(classes.values, range(classes.num_classes)),
                *((value, dataset.ignore_index) for value in classes.excluded)]
    return {"samples": len(paths),
            "pairs": [[_plain(value), label, pixels]
                      for (value, label), pixels in sorted(counts.items())],
            "declared": [[_plain(value), label] for value, label in declared]}


def _plain(value):
    return list(map(int, value)) if isinstance(value, tuple) else int(value)


def _transformed(dataset, looks):
    invented, lost = np.zeros((2, 256), np.int64)
    followed = [look for look in looks if look.after is not None]
    for look in followed:
        invented += np.where(look.before == 0, look.after, 0)
        lost += np.where(look.after == 0, look.before, 0)
    invented[dataset.ignore_index] = lost[dataset.ignore_index] = 0
    return {"samples": len(followed),
            **{key: [[int(label), int(pixels[label])] for label in np.flatnonzero(pixels)]
               for key, pixels in (("invented", invented), ("lost", lost))}}


def _distinct(looks):
    """Return images (N, H, W, 3) and masks (N, H, W) of the samples, none twice."""
    looks = {look.name: look for look in looks}.values()
    return np.stack([look.image for look in looks]), np.stack([look.mask for look in looks])
