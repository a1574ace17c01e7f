"""A data set of picture and mask files: reading the pairs, and checking them all."""

from concurrent.futures import ThreadPoolExecutor

from minisegnet.datasets.files import (
    decoded,
    open_image,
    orientation_of,
    read_image,
    read_mask,
    read_raw_mask,
    shows_colours,
)
from minisegnet.datasets.sample import Sample, labels_in
from minisegnet.errors import UserError
from minisegnet.imbalance.weighting import ClassStatistics


class PairedFiles:
    """A data set of (image, mask) files, whose values `class_map` turns into class ids.

    If the first mask is an RGB picture and the map one of ids, its colours stand for the classes.
    What the map says can be read here too: `class_names`, `palette`, `mask_values`, `void` (the
    value that is ignored; None if there is none) and `ignore_index`.
    """

    def __init__(self, pairs, class_map):
        self.pairs = list(pairs)
        first = self.pairs[0][1]
        if not class_map.is_rgb and shows_colours(first):
            try:
                class_map = class_map.through_colours()
            except UserError as error:
                raise UserError(f"mask {first} is an RGB picture: {error}; declare them in "
                                f"class_map.json (see data/README.md), or save the masks as "
                                f"greyscale or palette PNGs of class ids") from error
        self.class_map = class_map
        self.class_names, self.num_classes = class_map.names, class_map.num_classes
        self.palette, self.ignore_index = class_map.palette, class_map.ignore_index
        self.mask_values, self.void = class_map.values, class_map.void

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        image_path, mask_path = self.pairs[index]
        image = read_image(image_path)
        mask = self._to_ids(self._read_raw(mask_path), mask_path)
        if image.shape[:2] != mask.shape:
            raise _size_error(image_path, image.shape[1::-1], mask_path, mask.shape[::-1])
        return Sample(image, mask, image_path.stem)

    def check(self, num_workers=2):
        """Read every file once, in threads, and return the `ClassStatistics` of the masks.

        `sizes` then holds the (H, W) that occur. Raises UserError at the first file, in order,
        that cannot be used.
        """
        present, self.sizes = set(), set()

        def noted(checked):
            mask, values = checked
            present.update(values)
            self.sizes.add(mask.shape)
            return mask

        with ThreadPoolExecutor(max(1, num_workers)) as pool:
            masks = map(noted, pool.map(self._checked_mask, self.pairs))
            try:
                found = ClassStatistics.from_masks(masks, self.num_classes, self.ignore_index)
            except UserError:
                pool.shutdown(cancel_futures=True)
                raise
        if 255 in self.class_map.excluded:
            refuse_binary_values(present, self.pairs[0][1])
        return found

    def _read_raw(self, path):
        return read_raw_mask(path, colours=True) if self.class_map.is_rgb else read_mask(path)

    def _to_ids(self, raw, path):
        return self.class_map.to_ids(raw, f"mask {path}")

    def _checked_mask(self, pair):
        """Return the mask of a pair and its values in the file, if these are ids.

        Both files are decoded, and their sizes compared.
        """
        image_path, mask_path = pair
        raw = self._read_raw(mask_path)
        mask = self._to_ids(raw, mask_path)
        with open_image(image_path) as picture:
            size = picture.size
            # A JPEG decoded at an eighth of its size still reads every byte, much faster.
            picture.draft(None, (size[0] // 8, size[1] // 8))
            decoded(image_path, picture.load)
            if orientation_of(picture) >= 5:  # 5 to 8 swap width and height
                size = size[::-1]
        if size != mask.shape[::-1]:
            raise _size_error(image_path, size, mask_path, mask.shape[::-1])
        if (mask == self.ignore_index).all():
            raise UserError(f"mask {mask_path} is all ignore ({self.ignore_index}); "
                            "label something in it, or remove it and its image")
        return mask, labels_in(raw).tolist() if raw.ndim == 2 else ()


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
    with open_image(image_path) as picture:
        if picture.size == tuple(mask_size):
            return UserError(message + "the image's EXIF tag turns it, and the mask was drawn on "
                             "the unturned one: turn the mask too, or save the image without EXIF")
    return UserError(message + "export the mask again at the image's size")
