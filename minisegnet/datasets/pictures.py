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


def palette_picture(mask, mask_values, palette):
    """Return class ids `mask` (H, W) as a Pillow picture of their `mask_values` (K,).

    The colours (K, 3) are its palette: any viewer shows them, and a program reads the values.
    """
    colours = np.tile(np.array(VOID_COLOUR, np.uint8), (256, 1))
    colours[mask_values] = palette
    picture = Image.fromarray(np.array(mask_values, np.uint8)[mask])
    picture.putpalette(colours.tobytes())
    return picture


def overlaid(image, mask, palette):
    """Return `image` (H, W, 3) uint8 half covered by the colours of `mask` (H, W), for Pillow."""
    return Image.blend(Image.fromarray(image), Image.fromarray(colourise(mask, palette)), 0.5)
