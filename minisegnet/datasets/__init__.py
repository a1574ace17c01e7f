"""Labelled pictures: generated floor plans, CamVid, your own folders; and batches of them."""

from pathlib import Path

from minisegnet.datasets.augmentation import (
    PRESETS,
    EnhancedAugment,
    StandardAugment,
    StrongAugment,
    make_augmentation,
)
from minisegnet.datasets.camvid import CamVid
from minisegnet.datasets.floorplans import FloorPlans
from minisegnet.datasets.folder import Folder
from minisegnet.datasets.loader import Batch, DataLoader
from minisegnet.datasets.sample import Sample
from minisegnet.datasets.samplers import SAMPLERS, make_sampler
from minisegnet.datasets.subset import Subset
from minisegnet.datasets.transforms import Resize
from minisegnet.datasets.voc import VOC, find_voc
from minisegnet.errors import UserError

__all__ = [
    "Batch", "CamVid", "DataLoader", "EnhancedAugment", "FloorPlans", "Folder", "PRESETS",
    "Resize", "SAMPLERS", "Sample", "StandardAugment", "StrongAugment", "Subset", "VOC",
    "make_augmentation", "make_sampler", "open_dataset",
]


def open_dataset(data, layout="auto", split="train", **kwargs):
    """Return the data set `data`: "floorplans", or the path of a folder in `layout`.

    `layout` is camvid, voc, folder, or auto (camvid where there are annot folders, voc where
    there are JPEGImages/ and ImageSets/). `split` is train, val, trainval (both) or test.
    `kwargs` go to `FloorPlans`, `CamVid`, `VOC` or `Folder`. Raises UserError if there is no
    such data.
    """
    if str(data) == "floorplans":
        return FloorPlans(split, **kwargs)
    kinds = {"camvid": CamVid, "voc": VOC, "folder": Folder}
    if layout != "auto" and layout not in kinds:
        raise UserError(f"layout {layout!r} is not one of auto, {', '.join(kinds)}")
    root = Path(data)
    if not root.is_dir():
        raise UserError(
            f"there is no folder {root}; give --data the path of a data set, or floorplans"
        )
    if layout == "auto":
        layout = _look_of(root)
    return kinds[layout](root, split, **kwargs)


def _look_of(root):
    if (root / "trainannot").is_dir():
        return "camvid"
    voc = find_voc(root)
    return "voc" if voc is not None and (voc / "ImageSets").is_dir() else "folder"
