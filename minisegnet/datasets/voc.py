"""Data in the layout of Pascal VOC: one folder of images, one of masks, and lists of names.

Source: Everingham et al., "The Pascal visual object classes challenge" (2015).
"""

from pathlib import Path

from minisegnet.datasets.class_map import class_map_for, plain_map
from minisegnet.datasets.files import list_files, parts_of, read_text
from minisegnet.datasets.paired_files import PairedFiles
from minisegnet.errors import UserError

CLASS_NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)
VOID = 255  # the mask value of outlines and of what is too hard to label


class VOC(PairedFiles):
    """`root/JPEGImages`, `root/SegmentationClass` and `root/ImageSets/Segmentation/<split>.txt`.

    A list names its pictures by stem, one a line; masks are PNGs of class ids, 255 for ignored
    pixels. Without a trainval.txt, trainval is train.txt followed by val.txt. The 21 classes are
    VOC's, unless others are given, or declared beside JPEGImages, as `class_map_for` reads them.
    `root` may also be the folder above: VOCdevkit, or the one in which an archive was unpacked.

    Raises UserError for a list that is missing, empty or names a stem twice, a stem without
    image or mask, and what `PairedFiles` refuses.
    """

    def __init__(self, root, split="train", *, ignore_index=None, classes=None):
        pairs = find_pairs(root, split)
        super().__init__(pairs, declared_classes(root, classes, ignore_index=ignore_index))


def declared_classes(root, classes=None, *, ignore_index=None):
    """Return the `ClassMap` that the masks of the voc layout should follow."""
    options = {"ignore_index": ignore_index, "void": VOID}
    return class_map_for(find_voc(root) or root, classes, **options) or plain_map(
        CLASS_NAMES, **options)


def find_pairs(root, split):
    """Return [(image path, mask path)] of a split in the voc layout, in the order of its list."""
    root = find_voc(root) or Path(root)
    stems = _listed(root / "ImageSets" / "Segmentation", split)
    images = list_files(root / "JPEGImages")
    masks = list_files(root / "SegmentationClass", (".png",))
    for stem, listed_in in stems.items():
        if stem not in images:
            raise UserError(f"{listed_in} lists {stem!r}, but there is no "
                            f"{root / 'JPEGImages' / stem}.jpg; add it, or correct the list")
        if stem not in masks:
            cure = "add it, or take the line out"
            if split == "test":
                cure = "VOC does not publish the masks of its test set: score on val"
            raise UserError(f"{listed_in} lists {stem!r}, but there is no mask "
                            f"{root / 'SegmentationClass' / stem}.png; {cure}")
    return [(images[stem], masks[stem]) for stem in stems]


def find_voc(root):
    """Return the folder with JPEGImages/: `root`, or the one VOC* in it or in its VOCdevkit/.

    None if there is none; UserError if there are several.
    """
    root = Path(root)
    if (root / "JPEGImages").is_dir():
        return root
    found = [images.parent for pattern in ("VOC*/JPEGImages", "VOCdevkit/VOC*/JPEGImages")
             for images in sorted(root.glob(pattern))]
    if len(found) > 1:
        raise UserError(f"{root} holds {' and '.join(map(str, found))}; give --data one of them")
    return found[0] if found else None


def _listed(folder, split):
    """Return {stem: path of the list that names it}, in the order of the list or lists."""
    parts = (split,) if (folder / f"{split}.txt").is_file() else parts_of(split)
    stems = {}
    for path in (folder / f"{part}.txt" for part in parts):
        if not path.is_file():
            raise UserError(f"there is no list {path}; the voc layout needs one stem a line there "
                            "(or use another --layout)")
        lines = [line.strip() for line in read_text(path).splitlines()]
        lines = [line for line in lines if line]
        if not lines:
            raise UserError(f"{path} lists no picture; write one stem a line")
        for stem in lines:
            if stem in stems:
                also = "twice" if stems[stem] == path else f"and so does {stems[stem]}"
                raise UserError(f"{path} lists {stem!r} {also}; take one of the lines out")
            stems[stem] = path
    return stems
