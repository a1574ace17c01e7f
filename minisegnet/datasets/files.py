"""Pictures and masks in files: reading them, and saying in one line what is wrong with one."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from minisegnet.datasets.sample import Sample, labels_in
from minisegnet.errors import UserError
from minisegnet.imbalance.weighting import ClassStatistics

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
        image = _decoded(path, lambda: _as_rgb(picture))
        orientation = _orientation(picture)
        return np.asarray(image if orientation == 1 else image.transpose(_UPRIGHT[orientation]))


def _as_rgb(picture):
    if "transparency" in picture.info:
        # By way of RGBA, without which Pillow warns of a palette with transparent colours.
        picture = picture.convert("RGBA")
    if picture.mode == "RGB":  # convert would make a copy
        picture.load()
        return picture
    return picture.convert("RGB")


def _orientation(picture):
    """Return the EXIF orientation, 1 to 8, of a decoded picture; 1 where none can be read."""
    try:
        orientation = picture.getexif().get(_ORIENTATION)
    except Exception:  # a broken tag makes Pillow raise many kinds of error; the pixels are sound
        return 1
    return orientation if orientation in _UPRIGHT else 1


def read_mask(path):
    """Return the raw values of the mask at `path` as (H, W) uint8; palette files give indices.

    Raises UserError if it cannot be decoded, has several channels, or values above 255.
    """
    with _open(path) as picture:
        _decoded(path, picture.load)
        if picture.mode not in ("1", "L", "P", "I", "I;16"):
            raise UserError(
                f"mask {path} is a {picture.mode} picture; a mask has one channel of class ids: "
                "save it as a greyscale or palette PNG"
            )
        mask = np.asarray(picture)
    if mask.dtype not in (np.uint8, np.bool_) and not 0 <= mask.min() <= mask.max() <= 255:
        raise UserError(
            f"mask {path} holds values from {mask.min()} to {mask.max()}; "
            "renumber the classes from 0, at most 255"
        )
    return mask.astype(np.uint8, copy=False)


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


def _decoded(path, decode):
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


class PairedFiles:
    """A data set of (image, mask) files.

    `values` lists the mask value of each class in order (default 0, 1, 2, ...); the value `void`
    (default `ignore_index`) is ignored, and comes out as `ignore_index`. They stay readable as
    `mask_values`, a tuple, and `void`, None if that value is a class.
    """

    def __init__(self, pairs, class_names, palette, *, ignore_index=255, values=None, void=None):
        refuse_ignore_index(ignore_index)
        self.pairs = list(pairs)
        self.class_names = tuple(class_names)
        self.palette = palette
        self.ignore_index = ignore_index
        self.mask_values = tuple(values or range(self.num_classes))
        void = ignore_index if void is None else void
        self.void = None if void in self.mask_values else void
        self._to_id = np.full(256, -1, np.int16)  # mask value -> class id, -1: not allowed
        self._to_id[void] = ignore_index
        self._to_id[list(self.mask_values)] = range(self.num_classes)

    @property
    def num_classes(self):
        return len(self.class_names)

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        image_path, mask_path = self.pairs[index]
        image, mask = read_image(image_path), self._read_labels(mask_path)
        if image.shape[:2] != mask.shape:
            raise _size_error(image_path, image.shape[1::-1], mask_path, mask.shape[::-1])
        return Sample(image, mask, image_path.stem)

    def check(self, num_workers=2):
        """Read every file once, in threads, and return the `ClassStatistics` of the masks.

        `sizes` then holds the (H, W) that occur. Raises UserError at the first file, in order,
        that cannot be used.
        """
        present, self.sizes = set(), set()

        def noted(mask):
            present.update(labels_in(mask).tolist())
            self.sizes.add(mask.shape)
            return mask

        with ThreadPoolExecutor(max(1, num_workers)) as pool:
            masks = map(noted, pool.map(self._checked_mask, self.pairs))
            try:
                found = ClassStatistics.from_masks(masks, self.num_classes, self.ignore_index)
            except UserError:
                pool.shutdown(cancel_futures=True)
                raise
        refuse_binary_values(present, self.pairs[0][1])
        return found

    def _read_labels(self, path):
        """Return the mask at `path` as class ids (H, W) uint8; UserError names foreign values."""
        raw = read_mask(path)
        found = labels_in(raw)
        foreign = found[self._to_id[found] < 0]
        if foreign.size:
            ignored = "" if self.void is None else f", and {self.void} for ignored"
            raise UserError(
                f"mask {path} holds the values {show_values(foreign)}, outside the "
                f"{self.num_classes} classes ({show_values(sorted(self.mask_values))}{ignored}); "
                "correct the mask, or list all classes in classes.txt"
            )
        return self._to_id.astype(np.uint8).take(raw)

    def _checked_mask(self, pair):
        """Return the mask of a pair after decoding both files and comparing their sizes."""
        image_path, mask_path = pair
        mask = self._read_labels(mask_path)
        with open_image(image_path) as picture:
            size = picture.size
            # A JPEG decoded at an eighth of its size still reads every byte, much faster.
            picture.draft(None, (size[0] // 8, size[1] // 8))
            _decoded(image_path, picture.load)
            if _orientation(picture) >= 5:  # 5 to 8 swap width and height
                size = size[::-1]
        if size != mask.shape[::-1]:
            raise _size_error(image_path, size, mask_path, mask.shape[::-1])
        if (mask == self.ignore_index).all():
            raise UserError(f"mask {mask_path} is all ignore ({self.ignore_index}); "
                            "label something in it, or remove it and its image")
        return mask


def refuse_ignore_index(ignore_index):
    """Raise UserError if no mask can hold `ignore_index`."""
    if not 0 <= ignore_index <= 255:
        raise UserError(
            f"ignore index {ignore_index} cannot occur in an 8-bit mask; "
            "choose 0 to 255 (a mask saved with -1 holds 255)"
        )


def refuse_binary_values(present, mask_path):
    """Raise UserError if the values of all masks together are 0 and 255, or 255 alone.

    Such masks mean background and object; read as ids they are background and ignored pixels.
    """
    if 255 in present and present <= {0, 255}:
        raise UserError(
            f"the masks ({mask_path} and all others) hold only 0 and 255, and 255 means ignored; "
            "map 255 to class 1: write a classes.txt with the lines '0 background' and "
            "'255 object' into the folder given to --data"
        )


def _size_error(image_path, image_size, mask_path, mask_size):
    sizes = [f"{w}x{h}" for w, h in (image_size, mask_size)]
    message = f"image {image_path} is {sizes[0]} but its mask {mask_path} is {sizes[1]} (WxH); "
    with _open(image_path) as picture:
        if picture.size == tuple(mask_size):
            return UserError(message + "the image's EXIF tag turns it, and the mask was drawn on "
                             "the unturned one: turn the mask too, or save the image without EXIF")
    return UserError(message + "export the mask again at the image's size")


def show_values(values):
    """Return a short text for sorted label values: a range, or the first few."""
    values = [int(v) for v in values]
    if len(values) > 2 and values == list(range(values[0], values[-1] + 1)):
        return f"{values[0]} to {values[-1]}"
    more = f", ... ({len(values)} values)" if len(values) > _VALUES_SHOWN else ""
    return ", ".join(map(str, values[:_VALUES_SHOWN])) + more
