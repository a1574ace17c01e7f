"""Your own pictures: a folder of images and a folder of masks, matched by file name."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from minisegnet.datasets.class_map import checked_ignore_index, class_map_for, plain_map
from minisegnet.datasets.files import list_files, pair_by_stem, parts_of, read_mask, show_values
from minisegnet.datasets.paired_files import PairedFiles, refuse_binary_values
from minisegnet.datasets.sample import labels_in
from minisegnet.errors import UserError

SPLITS = ("train", "val", "test")  # and trainval, which is the first two together


class Folder(PairedFiles):
    """`root/<split>/images` with `root/<split>/masks`, or `root/images` with `root/masks`.

    Without split folders a share `val_share` of the pictures, drawn by `seed`, becomes val and
    the rest train; trainval is train and val together.

    The classes are given, or declared in the folder, as `class_map_for` reads them. If nothing
    declares them, masks are one-channel PNGs of class ids from 0, the largest id in any mask sets
    the number of classes, and `ignore_index` (default 255) is ignored. Raises UserError where
    something does not fit.
    """

    def __init__(self, root, split="train", *, ignore_index=None, val_share=0.2, seed=0,
                 classes=None):
        pairs = find_pairs(root, split, val_share=val_share, seed=seed)
        class_map = declared_classes(root, classes, ignore_index=ignore_index)
        if class_map is None:
            ignore_index = checked_ignore_index(ignore_index)
            class_map = plain_map(_count_classes(Path(root), ignore_index),
                                  ignore_index=ignore_index)
        super().__init__(pairs, class_map)


def declared_classes(root, classes=None, *, ignore_index=None):
    """Return the `ClassMap` that the masks of a folder should follow; None if there is none."""
    return class_map_for(root, classes, ignore_index=ignore_index)


def find_pairs(root, split, *, val_share=0.2, seed=0):
    """Return [(image path, mask path)] of a split in the folder layout."""
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"there is no folder {root}; check the path given to --data")
    if (root / "images").is_dir():
        pairs = pair_by_stem(root / "images", root / "masks")
        return _drawn_split(pairs, split, val_share, seed, root)
    pairs = []
    for part in parts_of(split):
        if not (root / part).is_dir():
            raise UserError(
                f"{root} has neither images/ and masks/ nor {part}/images and "
                f"{part}/masks; arrange it in one of these ways, or give another --layout"
            )
        pairs += pair_by_stem(root / part / "images", root / part / "masks")
    return pairs


def _drawn_split(pairs, split, val_share, seed, root):
    """Return the pairs of a split; the draw depends on the file names and `seed` alone."""
    if split == "trainval":
        return pairs
    count = max(1, round(val_share * len(pairs)))
    if split not in ("train", "val") or count >= len(pairs):
        raise UserError(
            f"{root} has {len(pairs)} images for train and val, and none for {split}; "
            f"make a folder {root / split} with images/ and masks/"
        )
    order = np.random.default_rng(seed).permutation(len(pairs))
    chosen = order[:count] if split == "val" else order[count:]
    return [pairs[i] for i in sorted(chosen)]


def _count_classes(root, ignore_index):
    """Return names for the classes 0 up to the largest id in any mask below `root`."""
    folders = [root / "masks"] + [root / split / "masks" for split in SPLITS]
    paths = [p for f in folders if f.is_dir() for p in list_files(f, (".png",)).values()]
    with ThreadPoolExecutor(2) as pool:
        present = set().union(*pool.map(lambda path: labels_in(read_mask(path)).tolist(), paths))
    refuse_binary_values(present, paths[0])
    present = sorted(present - {ignore_index})
    if not present:
        raise UserError(f"the masks under {root} are all ignore ({ignore_index}); label something")
    count = present[-1] + 1
    if count < 2 or 4 * len(present) < count:
        raise UserError(
            f"the masks under {root} hold the values {show_values(present)}, which do not look "
            "like ids counted from 0; list value and name of each class in classes.txt"
        )
    return [f"class {k}" for k in range(count)]
