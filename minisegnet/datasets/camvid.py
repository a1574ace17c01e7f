"""The CamVid street scenes in the layout of the SegNet tutorial."""

from pathlib import Path

from minisegnet.datasets.class_map import class_map_for, plain_map
from minisegnet.datasets.files import pair_by_stem, parts_of
from minisegnet.datasets.paired_files import PairedFiles
from minisegnet.datasets.palettes import CAMVID_PALETTE
from minisegnet.errors import UserError

CLASS_NAMES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian",
    "bicyclist",
)
VOID = 11  # the mask value of what nobody labelled


class CamVid(PairedFiles):
    """CamVid: `root/<split>` holds the images, `root/<split>annot` the masks, ids 0 to 10.

    The void value 11 is read as `ignore_index` (default 255). `split` is train, val, trainval
    (both) or, where present, test. Other classes may be given, or declared in the folder, as
    `class_map_for` reads them. Raises UserError if a folder is missing or empty, or a file has no
    partner.
    """

    def __init__(self, root, split="train", *, ignore_index=None, classes=None):
        pairs = find_pairs(root, split)
        super().__init__(pairs, declared_classes(root, classes, ignore_index=ignore_index))


def declared_classes(root, classes=None, *, ignore_index=None):
    """Return the `ClassMap` that the masks of the camvid layout should follow."""
    options = {"ignore_index": ignore_index, "void": VOID}
    return class_map_for(root, classes, **options) or plain_map(
        CLASS_NAMES, palette=CAMVID_PALETTE, **options)


def find_pairs(root, split):
    """Return [(image path, mask path)] of a split in the camvid layout."""
    root = Path(root)
    pairs = []
    for part in parts_of(split):
        if not (root / f"{part}annot").is_dir():
            raise UserError(
                f"{root} has no folder {part}annot; the camvid layout needs {part}/ and "
                f"{part}annot/ (or use --layout folder)"
            )
        pairs += pair_by_stem(root / part, root / f"{part}annot")
    return pairs
