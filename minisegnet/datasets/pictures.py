"""Pictures nobody has labelled: finding them, and showing what was predicted in them."""

from pathlib import Path

import numpy as np
from PIL import Image

from minisegnet.datasets import files
from minisegnet.datasets.palettes import VOID_COLOUR, colourise
from minisegnet.errors import UserError


def find_pictures(inputs):
    """Return the paths of the pictures in `inputs`, files or folders (not their subfolders).

    The header of every one is read. Raises UserError if there is no such file or folder, no
    picture in a folder, or a file that is no picture.
    """
    found = []
    for path in map(Path, inputs):
        if not path.exists():
            raise UserError(f"there is no picture or folder {path}; check the path")
        found += files.list_files(path).values() if path.is_dir() else [path]
    for path in found:
        files.open_image(path).close()
    return found


def mask_picture(ids, class_map):
    """Return class ids (H, W) as a Pillow picture of the values that they have in the masks.

    Where these are numbers, the classes' colours are its palette: any viewer shows them, and a
    program reads the numbers. Where they are colours, it is RGB.
    """
    picture = Image.fromarray(class_map.to_values(ids))
    if not class_map.is_rgb:
        colours = np.tile(np.array(VOID_COLOUR, np.uint8), (256, 1))
        colours[list(class_map.values)] = class_map.palette
        picture.putpalette(colours.tobytes())
    return picture


def overlaid(image, mask, palette):
    """Return `image` (H, W, 3) uint8 half covered by the colours of `mask` (H, W), for Pillow."""
    return Image.blend(Image.fromarray(image), Image.fromarray(colourise(mask, palette)), 0.5)
