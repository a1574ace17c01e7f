"""Labelled pictures: generated floor plans, CamVid, your own folders; and batches of them."""

from pathlib import Path

from minisegnet.datasets.camvid import CamVid
from minisegnet.datasets.floorplans import FloorPlans
from minisegnet.datasets.folder import Folder
from minisegnet.datasets.loader import Batch, DataLoader
from minisegnet.datasets.sample import Sample
from minisegnet.datasets.transforms import Resize, StandardAugment, make_augmentation
from minisegnet.errors import UserError

__all__ = [
    "Batch", "CamVid", "DataLoader", "FloorPlans", "Folder", "Resize", "Sample",
    "StandardAugment", "make_augmentation", "open_dataset",
]


def open_dataset(data, layout="auto", split="train", **kwargs):
    """Return the data set `data`: "floorplans", or the path of a folder in `layout`.

    `layout` is camvid, folder, or auto (camvid where there are annot folders). `kwargs` go to
    `FloorPlans`, `CamVid` or `Folder`. Raises UserError if there is no such data.
    """
    if str(data) == "floorplans":
        return FloorPlans(split, **kwargs)
    if layout not in ("auto", "camvid", "folder"):
        raise UserError(f"layout {layout!r} is not one of auto, camvid, folder")
    root = Path(data)
    if not root.is_dir():
        raise UserError(
            f"there is no folder {root}; give --data the path of a data set, or floorplans"
        )
    if layout == "camvid" or (layout == "auto" and (root / "trainannot").is_dir()):
        return CamVid(root, split, **kwargs)
    return Folder(root, split, **kwargs)
