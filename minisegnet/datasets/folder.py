"""Your own pictures: a folder of images and a folder of masks, matched by file name."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from minisegnet.datasets.files import (
    PairedFiles,
    list_files,
    pair_by_stem,
    parts_of,
    read_mask,
    read_text,
    refuse_binary_values,
    refuse_ignore_index,
    show_values,
)
from minisegnet.datasets.palettes import palette_for
from minisegnet.datasets.sample import labels_in
from minisegnet.errors import UserError

SPLITS = ("train", "val", "test")  # and trainval, which is the first two together


class Folder(PairedFiles):
    """`root/<split>/images` with `root/<split>/masks`, or `root/images` with `root/masks`.

    Without split folders a share `val_share` of the pictures, drawn by `seed`, becomes val and
    the rest train; trainval is train and val together. Masks are one-channel PNGs of class ids
    from 0, 255 for ignored pixels.

    `root/classes.txt` names the classes, one a line, in the order of their ids; a line may begin
    with the value that stands for the class in the masks ("255 object"). Without it, the largest
    id in any mask sets the number of classes. Raises UserError where something does not fit.
    """

    def __init__(self, root, split="train", *, ignore_index=255, val_share=0.2, seed=0):
        root = Path(root)
        refuse_ignore_index(ignore_index)
        if not root.is_dir():
            raise UserError(f"there is no folder {root}; check the path given to --data")
        if (root / "images").is_dir():
            pairs = pair_by_stem(root / "images", root / "masks")
            pairs = _drawn_split(pairs, split, val_share, seed, root)
        else:
            pairs = []
            for part in parts_of(split):
                if not (root / part).is_dir():
                    raise UserError(
                        f"{root} has neither images/ and masks/ nor {part}/images and "
                        f"{part}/masks; arrange it in one of these ways, or give another --layout"
                    )
                pairs += pair_by_stem(root / part / "images", root / part / "masks")
        if (root / "classes.txt").is_file():
            names, values = read_classes(root / "classes.txt")
        else:
            names, values = _count_classes(root, ignore_index), None
        palette = palette_for(len(names))
        super().__init__(pairs, names, palette, ignore_index=ignore_index, values=values)


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


def read_classes(path):
    """Return the class names in the file `path` and their mask values (None: 0, 1, 2, ...)."""
    lines = [line.strip() for line in read_text(path).splitlines()]
    lines = [line for line in lines if line]
    if not 2 <= len(lines) <= 255:
        raise UserError(f"{path} names {len(lines)} classes; write 2 to 255, one a line")
    if len(set(lines)) < len(lines):
        raise UserError(f"{path} names a class twice; give each its own name")
    numbered = [re.fullmatch(r"(\d+)\s+(.+)", line) for line in lines]
    if not any(numbered):
        return lines, None
    if not all(numbered):
        raise UserError(f"{path} gives mask values for some classes only; give all or none")
    values = [int(match[1]) for match in numbered]
    if max(values) > 255 or len(set(values)) < len(values):
        raise UserError(f"{path} repeats a mask value or has one above 255; correct it")
    return [match[2] for match in numbered], values


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
