"""The CamVid street scenes in the layout of the SegNet tutorial."""

from pathlib import Path

from minisegnet.datasets.files import PairedFiles, pair_by_stem, parts_of
from minisegnet.datasets.palettes import CAMVID_PALETTE
from minisegnet.errors import UserError

CLASS_NAMES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian",
    "bicyclist",
)
VOID = 11  # the mask value of what nobody labelled


class CamVid(PairedFiles):
    """CamVid: `root/<split>` holds the images, `root/<split>annot` the masks, ids 0 to 10.

    The void value 11 is read as `ignore_index`. `split` is train, val, trainval (both) or, where
    present, test. Raises UserError if a folder is missing or empty, or a file has no partner.
    """

    def __init__(self, root, split="train", *, ignore_index=255):
        root = Path(root)
        pairs = []
        for part in parts_of(split):
            if not (root / f"{part}annot").is_dir():
                raise UserError(
                    f"{root} has no folder {part}annot; the camvid layout needs {part}/ and "
                    f"{part}annot/ (or use --layout folder)"
                )
            pairs += pair_by_stem(root / part, root / f"{part}annot")
        super().__init__(
            pairs, CLASS_NAMES, CAMVID_PALETTE, ignore_index=ignore_index, void=VOID
        )
