"""Pictures and masks in files: reading them, and saying in one line what is wrong with one."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from minisegnet.errors import UserError

# Pillow warns of pictures above 90 million pixels, and refuses them above 180 million.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
_VALUES_SHOWN = 8
_ORIENTATION = 0x0112  # the EXIF tag: how to turn the picture, 1 (as it is) to 8
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def parts_of(split):
    """Return the splits that `split` is made of: trainval is train and val, others themselves."""
    return ("train", "val") if split == "trainval" else (split,)


def list_files(folder, suffixes=IMAGE_SUFFIXES):
    """Return {stem: path} of the pictures in `folder`, sorted; UserError if there is nothing."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; check the path given to --data")
    # Hidden files are no pictures: macOS leaves a "._name.png" beside each it copies.
    paths = sorted(p for p in folder.iterdir()
                   if p.suffix.lower() in suffixes and not p.name.startswith("."))
    if not paths:
        raise UserError(f"folder {folder} holds no {' or '.join(suffixes)} files; fill it")
    found = {}
    for path in paths:
        if path.stem in found:
            raise UserError(f"{found[path.stem]} and {path} share a stem; rename or remove one")
        found[path.stem] = path
    return found


def pair_by_stem(image_folder, mask_folder):
    """Return [(image path, mask path)] sorted by stem; UserError if one lacks its partner."""
    images, masks = list_files(image_folder), list_files(mask_folder)
    for stem, path in images.items():
        if stem not in masks:
            raise UserError(f"image {path} has no mask; add {Path(mask_folder) / stem}.png")
    for stem, path in masks.items():
        if stem not in images:
            raise UserError(f"mask {path} has no image in {image_folder}; add one, or remove it")
    for path in masks.values():
        if path.suffix.lower() != ".png":
            raise UserError(f"mask {path} is a JPEG, which alters labels; save masks as PNG")
    return [(images[stem], masks[stem]) for stem in images]


def read_text(path):
    """Return the text of the UTF-8 file `path`; UserError if it is something else."""
    try:
        return Path(path).read_text("utf-8-sig")  # with or without Notepad's mark in front
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason}); save it as UTF-8") from error


def read_image(path):
    """Return the picture at `path` as (H, W, 3) uint8 RGB, without its transparency.

    A photo that its EXIF tag turns comes out turned, as every viewer shows it. Raises UserError
    if it cannot be decoded, or is a grey one of 16 bits.
    """
    with open_image(path) as picture:
        image = decoded(path, lambda: _as_rgb(picture))
        orientation = orientation_of(picture)
        return np.asarray(image if orientation == 1 else image.transpose(_UPRIGHT[orientation]))


def _as_rgb(picture):
    if "transparency" in picture.info:
        # By way of RGBA, without which Pillow warns of a palette with transparent colours.
        picture = picture.convert("RGBA")
    if picture.mode == "RGB":  # convert would make a copy
        picture.load()
        return picture
    return picture.convert("RGB")


def orientation_of(picture):
    """Return the EXIF orientation, 1 to 8, of a decoded picture; 1 where none can be read."""
    try:
        orientation = picture.getexif().get(_ORIENTATION)
    except Exception:  # a broken tag makes Pillow raise many kinds of error; the pixels are sound
        return 1
    return orientation if orientation in _UPRIGHT else 1


def read_raw_mask(path, *, colours=False):
    """Return the mask at `path` as (H, W) uint8, or (H, W, 3) uint8 where the file is RGB.

    A palette file gives its indices, unless `colours` are asked for: those that are shown, of
    any mask. An alpha channel is left out where it is opaque all over. Raises UserError if the
    file cannot be decoded, is transparent somewhere, or has values above 255.
    """
    with _open(path) as picture:
        decoded(path, picture.load)
        if picture.mode in ("RGBA", "LA", "PA"):
            if picture.getchannel("A").getextrema() != (255, 255):
                raise UserError(
                    f"mask {path} is transparent in places, where no class can be told; save it "
                    "without transparency, upon the colour of its background"
                )
            picture = picture.convert({"LA": "L"}.get(picture.mode, "RGB"))
        if picture.mode not in ("1", "L", "P", "I", "I;16", "RGB"):
            raise UserError(
                f"mask {path} is a {picture.mode} picture; save it as a greyscale, palette or "
                "RGB PNG"
            )
        mask = np.asarray(_as_rgb(picture) if colours and picture.mode in ("1", "L", "P")
                          else picture)
    if mask.dtype not in (np.uint8, np.bool_) and not 0 <= mask.min() <= mask.max() <= 255:
        raise UserError(
            f"mask {path} holds values from {mask.min()} to {mask.max()}; "
            "renumber the classes from 0, at most 255"
        )
    mask = mask.astype(np.uint8, copy=False)
    return np.repeat(mask[..., None], 3, axis=2) if colours and mask.ndim == 2 else mask


def read_mask(path):
    """Return the raw values of the mask at `path` as (H, W) uint8, as `read_raw_mask` does.

    Raises UserError for a mask of colours as well.
    """
    mask = read_raw_mask(path)
    if mask.ndim == 3:
        raise UserError(
            f"mask {path} is an RGB picture; name the colours of the classes in a class map "
            "(class_map.json, see data/README.md), or save it as a greyscale or palette PNG of "
            "class ids"
        )
    return mask


def shows_colours(path):
    """Whether the header of the mask at `path` says RGB; False if it cannot be read."""
    try:
        with Image.open(path) as picture:
            return picture.mode in ("RGB", "RGBA")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False  # reading it tells why


def open_image(path):
    """Return the picture at `path`, opened and not yet decoded; UserError if it is no image."""
    picture = _open(path)
    if picture.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"):
        picture.close()
        raise UserError(f"image {path} has more than 8 bits a channel (mode {picture.mode}), "
                        "which would be cut off; save it with 8")
    return picture


def _open(path):
    try:
        return Image.open(path)
    except FileNotFoundError:
        raise UserError(f"{path} has gone; restore it or remove its partner") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from None


def decoded(path, decode):
    """Return `decode()`, turning what Pillow says of a broken file into one line."""
    try:
        return decode()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path, error):
    reason = str(error).partition("\n")[0]
    return UserError(
        f"{path} cannot be decoded ({reason}); replace or remove it"
    )


def show_values(values):
    """Return a short text for sorted values, ids or colours: a range, or the first few."""
    values = [v if isinstance(v, tuple) else int(v) for v in values]
    if len(values) > 2 and set(map(type, values)) == {int} \
            and values == list(range(values[0], values[-1] + 1)):
        return f"{values[0]} to {values[-1]}"
    more = f", ... ({len(values)} values)" if len(values) > _VALUES_SHOWN else ""
    return ", ".join(map(str, values[:_VALUES_SHOWN])) + more
