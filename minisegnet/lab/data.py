"""A small data set in files, as users bring them: made from floor plans, with a class map.

Mask values are not consecutive, some are excluded, and 255 is void: an outline around every
fixture, and the margin of the sheet.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from minisegnet.datasets import FloorPlans
from minisegnet.datasets.class_map import ClassMap
from minisegnet.datasets.palettes import palette_for

VOID = 255
MARGIN = 2  # px of void along the edges
# What stands in the masks for each class of `FloorPlans`. Rare classes lie between frequent ones,
# as in any list that grew: where masks are interpolated, they appear along every wall.
VALUES = {"background": 0, "toilet": 3, "wall": 7, "window": 8, "stove": 12, "door": 15,
          "bathroom": 16, "living room": 20, "bed": 33, "sink": 34, "kitchen": 40, "bedroom": 47}
EXCLUDED = ("window", "bathroom", "sink")
FIXTURES = ("toilet", "sink", "stove", "bed")
PLANS = {"train": 256, "val": 48}
SIZE = (96, 120)
# So that all classes are learned in 256 steps, and the fixtures only by a loss that asks for them.
DIALS = {"fixture_size": 16, "rare_image_share": 0.2, "background_share": 0.5, "wall": 4}


def write_data(root, seed, *, excluded=EXCLUDED, size=SIZE, **dials):
    """Write a data set in `folder` layout and its class_map.json into the new folder `root`.

    `size` (H, W) and `dials` are those of `FloorPlans`, in place of `DIALS`. Returns `root`.
    """
    root = Path(root)
    to_value = np.array([VALUES[name] for name in FloorPlans.class_names], np.uint8)
    for split, count in PLANS.items():
        plans = FloorPlans(split, length=count, size=size, seed=seed, **{**DIALS, **dials})
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for i in range(count):
            image, mask, name = plans[i]
            Image.fromarray(image).save(root / split / "images" / f"{name}.png")
            values = np.where(outlines(mask), np.uint8(VOID), to_value[mask])
            Image.fromarray(values).save(root / split / "masks" / f"{name}.png")
    kept = [name for name in VALUES if name not in excluded]
    left_out = {value: name for name, value in VALUES.items() if name in excluded}
    ClassMap(kept, [VALUES[name] for name in kept], palette_for(len(kept)),
             {**left_out, VOID: "void"}).write(root / "class_map.json")
    return root


def outlines(mask):
    """Return where a mask (H, W) of `FloorPlans` ids is void: fixture edges, and the margin."""
    is_fixture = np.isin(mask, [FloorPlans.class_names.index(name) for name in FIXTURES])
    void = np.ones(mask.shape, bool)
    void[MARGIN:-MARGIN, MARGIN:-MARGIN] = False
    for near, far in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        edge = (mask[near] != mask[far]) & (is_fixture[near] | is_fixture[far])
        void[near] |= edge
        void[far] |= edge
    return void
