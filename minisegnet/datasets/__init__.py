"""Labelled pictures: generated floor plans, CamVid, your own folders; and batches of them."""

from pathlib import Path

from minisegnet.datasets import camvid, folder, voc
from minisegnet.datasets.augmentation import (
    PRESETS,
    EnhancedAugment,
    StandardAugment,
    StrongAugment,
    make_augmentation,
)
from minisegnet.datasets.camvid import CamVid
from minisegnet.datasets.class_map import ClassMap, read_class_map
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
    "Batch", "CamVid", "ClassMap", "DataLoader", "EnhancedAugment", "FloorPlans", "Folder",
    "PRESETS", "Resize", "SAMPLERS", "Sample", "StandardAugment", "StrongAugment", "Subset",
    "VOC", "declared_classes", "list_pairs", "make_augmentation", "make_sampler", "open_dataset",
    "read_class_map",
]


def open_dataset(data, layout="auto", split="train", classes=None, **kwargs):
    """Return the data set `data`: "floorplans", or the path of a folder in `layout`.

    `layout` is camvid, voc, folder, or auto (camvid where there are annot folders, voc where
    there are JPEGImages/ and ImageSets/). `split` is train, val, trainval (both) or test.
    `classes` is a `ClassMap`, or the path of one; by default the data say it themselves (see
    `class_map.class_map_for`). `kwargs` go to `FloorPlans`, `CamVid`, `VOC` or `Folder`. Raises
    UserError if there is no such data.
    """
    if str(data) == "floorplans":
        return FloorPlans(split, classes=classes, **kwargs)
    kind = {"camvid": CamVid, "voc": VOC, "folder": Folder}[_layout_of(data, layout)]
    return kind(Path(data), split, classes=classes, **kwargs)


def list_pairs(data, layout="auto", split="train"):
    """Return [(image path, mask path)] of the data in folder `data`; no file is read.

    Arguments as for `open_dataset`. Raises UserError for the generated floor plans, which have no
    files, for data that are not there, and for a picture or mask without its partner.
    """
    if str(data) == "floorplans":
        raise UserError("floorplans are drawn, and have no files; give the folder of a data set")
    return _MODULES[_layout_of(data, layout)].find_pairs(Path(data), split)


def declared_classes(data, layout="auto", classes=None):
    """Return the `ClassMap` that the masks of `data` should follow, None if nothing says so.

    No mask is read. Arguments and errors as for `open_dataset`.
    """
    if str(data) == "floorplans":
        return FloorPlans(classes=classes).class_map
    return _MODULES[_layout_of(data, layout)].declared_classes(Path(data), classes)


_MODULES = {"camvid": camvid, "voc": voc, "folder": folder}


def _layout_of(data, layout):
    """Return camvid, voc or folder, whichever is meant by `layout`; UserError for no folder."""
    layouts = ("camvid", "voc", "folder")
    if layout != "auto" and layout not in layouts:
        raise UserError(f"layout {layout!r} is not one of auto, {', '.join(layouts)}")
    root = Path(data)
    if not root.is_dir():
        raise UserError(
            f"there is no folder {root}; give --data the path of a data set, or floorplans"
        )
    return _look_of(root) if layout == "auto" else layout


def _look_of(root):
    if (root / "trainannot").is_dir():
        return "camvid"
    voc = find_voc(root)
    return "voc" if voc is not None and (voc / "ImageSets").is_dir() else "folder"
