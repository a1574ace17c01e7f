"""One pass over all masks of a split: which values they hold, how many pixels, in what pieces.

Nothing is refused on the way: what is odd is counted and described. Only sums are kept, so that
ten thousand masks take no more memory than ten.
"""

from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from minisegnet.datasets import files
from minisegnet.errors import UserError
from minisegnet.imbalance.objects import connected_regions
from minisegnet.parallel import num_threads

CELL = 16  # px, side of a cell at output stride 16: as fine as the deepest features are
MOST_VALUES = 512  # distinct values that are told apart; only broken masks have more
EXAMPLES = 3  # files that are named per oddity
_AHEAD = 4  # looks per thread that may wait to be counted
_PNG = b"\x89PNG\r\n\x1a\n"
_PALETTE = 3  # the colour type in a PNG's header, its byte 25


class MaskFacts(NamedTuple):
    """What one mask holds: its V values, ids or colours (r, g, b), and how much of each."""

    values: list
    pixels: np.ndarray  # (V,)
    objects: np.ndarray  # (V,), connected regions
    small: np.ndarray  # (V,), those with fewer pixels than a cell
    shape: tuple  # (H, W)


class ClassTotals(NamedTuple):
    """Sums of a split for K classes; with all that `class_weights` asks of its statistics."""

    pixels: np.ndarray  # (K,)
    images: np.ndarray  # (K,), those that contain the class
    image_pixels: np.ndarray  # (K,), valid pixels of those images
    objects: np.ndarray  # (K,)
    small: np.ndarray  # (K,)
    squares: np.ndarray  # (K,), sum over the images of the squared pixels of the class
    fullest: np.ndarray  # (K,), the image with most pixels of the class, -1 if none has any

    @property
    def frequency(self):
        """Each class's share of the valid pixels, (K,); ValueError where there are none."""
        if not self.pixels.sum():
            raise ValueError("no valid pixel in any mask: is everything ignored?")
        return self.pixels / self.pixels.sum()


class Scan:
    """The sums over the masks of one split, and what was odd in them.

    `valid` are the values that are classes; None: all but 255. A mask without any of them is odd.
    """

    def __init__(self, valid=None):
        self.valid = None if valid is None else frozenset(valid)
        self.num_masks = 0
        self.shapes = Counter()  # (H, W) -> masks
        self.one_valued = 0  # masks with a single value
        self.oddities = {}  # kind -> [how many, the first few descriptions]
        self.further_pixels = 0  # of values beyond MOST_VALUES
        self.fullest = {}  # value -> the file with most pixels of it
        self._rows = {}  # value -> row of the following
        self._pixels, self._images, self._objects, self._small, self._most, self._fullest = \
            np.zeros((6, MOST_VALUES), np.int64)
        self._squares = np.zeros(MOST_VALUES)
        # Pixels of the column's value in the images that contain the row's.
        self._beside = np.zeros((MOST_VALUES, MOST_VALUES), np.int64)

    def note(self, kind, description):
        """Count an oddity."""
        found = self.oddities.setdefault(kind, [0, []])
        found[0] += 1
        if len(found[1]) < EXAMPLES:
            found[1].append(description)

    def add(self, facts, index, path):
        """Count a mask by its facts: the `index`-th of the split, in the file `path`."""
        self.num_masks += 1
        self.shapes[facts.shape] += 1
        self.one_valued += len(facts.values) == 1
        if not any(self.is_valid(value) for value in facts.values):
            self.note("all ignored", str(path))
        rows = np.array([self._row_of(value) for value in facts.values])
        known = rows < MOST_VALUES
        self.further_pixels += int(facts.pixels[~known].sum())
        rows, pixels = rows[known], facts.pixels[known]
        self._pixels[rows] += pixels
        self._images[rows] += 1
        self._objects[rows] += facts.objects[known]
        self._small[rows] += facts.small[known]
        self._squares[rows] += pixels.astype(float) ** 2
        self._beside[np.ix_(rows, rows)] += pixels
        fuller = pixels > self._most[rows]
        self._most[rows[fuller]] = pixels[fuller]
        self._fullest[rows[fuller]] = index
        self.fullest.update((facts.values[i], str(path)) for i in np.flatnonzero(known)[fuller])

    def _row_of(self, value):
        if len(self._rows) < MOST_VALUES:
            return self._rows.setdefault(value, len(self._rows))
        return self._rows.get(value, MOST_VALUES)

    def is_valid(self, value):
        """Whether a mask value is a class."""
        return value != 255 if self.valid is None else value in self.valid

    @property
    def values(self):
        """The values that occur, sorted: ids, then colours."""
        return sorted(self._rows, key=lambda value: (isinstance(value, tuple), value))

    @property
    def all_pixels(self):
        """Pixels of all masks."""
        return int(self._pixels.sum()) + self.further_pixels

    def totals(self, values):
        """Return the `ClassTotals` of the classes with these mask values, in their order."""
        rows = np.array([self._rows.get(value, -1) for value in values], np.intp)
        there = rows >= 0

        def of(sums, absent=0):
            return np.where(there, sums[rows], absent)

        beside = self._beside[np.ix_(rows[there], rows[there])].sum(axis=1)
        image_pixels = np.zeros(len(rows), np.int64)
        image_pixels[there] = beside
        return ClassTotals(of(self._pixels), of(self._images), image_pixels, of(self._objects),
                           of(self._small), of(self._squares), of(self._fullest, -1))


def facts_of(raw):
    """Return the `MaskFacts` of a mask's raw values, (H, W) ids or (H, W, 3) uint8 colours."""
    is_rgb = raw.ndim == 3
    if is_rgb:
        red, green, blue = raw.astype(np.uint32).transpose(2, 0, 1)
        raw = (red << 16) | (green << 8) | blue
    of_region, sizes = connected_regions(raw)
    values, index = np.unique(of_region, return_inverse=True)
    pixels = np.bincount(index, weights=sizes).astype(np.int64)
    small = np.bincount(index[sizes < CELL * CELL], minlength=len(values))
    values = values.tolist()
    if is_rgb:
        values = [(v >> 16, v >> 8 & 255, v & 255) for v in values]
    return MaskFacts(values, pixels, np.bincount(index), small, raw.shape)


def scan(items, look, valid=None, progress=iter):
    """Return the `Scan` of a split's `items`, looked at in threads.

    `look(item)` returns (`MaskFacts`, or None if there are none to be had; list of (kind,
    description) of what is odd; path). `progress` wraps the iterator of the items.
    """
    found = Scan(valid)
    for index, (facts, oddities, path) in enumerate(_looks(look, progress(items))):
        for kind, description in oddities:
            found.note(kind, description)
        if facts is not None:
            found.add(facts, index, path)
    return found


def _looks(look, items):
    """Yield `look(item)` of each, in order, with few of them in memory at a time."""
    threads = num_threads()
    if threads == 1:
        yield from map(look, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        waiting = deque()
        try:
            for item in items:
                waiting.append(pool.submit(look, item))
                if len(waiting) >= _AHEAD * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def look_at_files(pair, *, colours=False, grey_as_ids=False):
    """Look at a pair of (image path, mask path), of the image only at its header; see `scan`.

    With `colours` all masks are read as RGB pictures. With `grey_as_ids` an RGB picture without
    any colour is taken for one of ids, which it once was.
    """
    image_path, mask_path = pair
    oddities = []
    try:
        raw = files.read_raw_mask(mask_path, colours=colours)
        with open(mask_path, "rb") as file:
            header = file.read(26)
    except UserError as error:
        return None, [("unreadable", str(error))], mask_path
    facts = facts_of(raw)
    if raw.ndim == 3 and not colours:
        grey = all(red == green == blue for red, green, blue in facts.values)
        oddities.append(("grey as rgb" if grey else "rgb", str(mask_path)))
        if grey and grey_as_ids:
            facts = facts._replace(values=[red for red, _, _ in facts.values])
    if header.startswith(_PNG) and header[25] == _PALETTE:
        oddities.append(("palette", str(mask_path)))
    try:
        with files.open_image(image_path) as picture:
            size, turned = picture.size, _upright_size(picture)
    except UserError as error:
        oddities.append(("image unreadable", str(error)))
    else:
        if turned != facts.shape[::-1]:
            kind = "turned by exif" if size == facts.shape[::-1] else "size"
            oddities.append((kind, "image {} is {}x{}, mask {} is {}x{}".format(
                image_path, *turned, mask_path, *facts.shape[::-1])))
    return facts, oddities, mask_path


def _upright_size(picture):
    """Return (width, height) of an opened picture after EXIF has turned it."""
    # Of a PNG without EXIF in front, Pillow would decode everything to look behind it.
    if picture.format == "PNG" and "exif" not in picture.info:
        return picture.size
    return picture.size[::-1] if files.orientation_of(picture) >= 5 else picture.size
