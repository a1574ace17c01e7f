"""Class maps: which value of the mask files is which class, and which are left out on purpose.

A mask file may hold ids with gaps, ids that nobody named, or colours. A network has classes
0 .. K-1 and no others: a `ClassMap` leads from one to the other and back. `read_class_map` reads
one from a file, `ClassMap.write` writes one.
"""

import json
import operator
import os
from contextlib import suppress
from pathlib import Path

import numpy as np

from minisegnet.datasets import class_map_files
from minisegnet.datasets.files import show_values
from minisegnet.datasets.palettes import palette_for
from minisegnet.datasets.sample import labels_in
from minisegnet.errors import UserError

CLASS_MAP_FILE = "class_map.json"  # in the folder of a data set
_TWO_COLOURS = "a value that is a colour has another colour besides; leave that one out"


class ClassMap:
    """K classes, each with its name, its value in the masks and its colour. Not to be changed.

    `values` (K,) are ids from 0 to 255 (default 0 .. K-1), or, where the masks are RGB pictures,
    colours (r, g, b). `palette` (K, 3) are the colours of the classes; by default, for ids,
    `palette_for(K)`. `excluded` maps values of the masks to the reason why they are no class: they
    become `ignore_index` (default 255). `excluded_colours` maps such ids to their colours, by
    which RGB masks of the same classes can be read.

    Raises UserError for what contradicts itself.
    """

    def __init__(self, names, values=None, palette=None, excluded=None,
                 ignore_index=None, excluded_colours=None):
        self.names = tuple(names)
        K = self.num_classes = len(self.names)
        self.values = tuple(map(_as_value, range(K) if values is None else values))
        self.excluded = {_as_value(v): str(why) for v, why in (excluded or {}).items()}
        self.ignore_index = checked_ignore_index(ignore_index)
        self._check()
        self.is_rgb = isinstance(self.values[0], tuple)
        if self.is_rgb and palette is None:
            palette = self.values
        self.has_colours = palette is not None  # of its own, not only for our pictures
        self.palette = np.array(
            [_as_colour(c) for c in palette] if self.has_colours else palette_for(K), np.uint8)
        if self.palette.shape != (K, 3):
            raise UserError(f"{len(self.palette)} colours for {K} classes; give one to each")
        if self.is_rgb and self.palette.tolist() != [list(value) for value in self.values]:
            raise UserError(_TWO_COLOURS)
        self.palette.setflags(write=False)
        self.excluded_colours = {
            _as_value(v): _as_colour(c) for v, c in (excluded_colours or {}).items()}
        if self.is_rgb:
            if any(value != colour for value, colour in self.excluded_colours.items()):
                raise UserError(_TWO_COLOURS)
            self.excluded_colours = {}
        self._build_tables()

    def _check(self):
        """Raise UserError for names, values and ignore index that do not go together."""
        K = self.num_classes
        if not 1 <= K <= 255:
            raise UserError(f"there are {K} classes; 1 to 255 can be told apart in a mask")
        for name in self.names:
            if not isinstance(name, str) or not name.strip() or not name.isprintable():
                raise UserError(f"{name!r} is no name for a class; write a word in one line")
        _refuse_twice(self.names, "the name {!r}", "give each class its own")
        if len(self.values) != K:
            raise UserError(f"{len(self.values)} values for {K} classes; give one to each")
        _refuse_twice(self.values, "the value {}", "one value is one class")
        for value in self.values:
            if value in self.excluded:
                raise UserError(f"the value {value} is both the class "
                                f"{self.names[self.values.index(value)]!r} and excluded; take one "
                                f"of them out")
        if len({isinstance(value, tuple) for value in (*self.values, *self.excluded)}) > 1:
            raise UserError("some values are ids and some are colours; masks hold one or the "
                            "other, so give all values alike")
        i = self.ignore_index
        if i < K:
            raise UserError(f"--ignore-index {i} is a class ({self.names[i]}); use "
                            + (f"{K} to 255" if K < 255 else "255"))

    def _build_tables(self):
        """Build what `to_ids` and `to_values` look up."""
        ids = [*range(self.num_classes), *[self.ignore_index] * len(self.excluded)]
        codes = np.array([*self.values, *self.excluded], np.uint32)  # (K + E,) or (K + E, 3)
        if self.is_rgb:
            codes = codes @ np.array([1 << 16, 1 << 8, 1], np.uint32)
        # Mask value -> class id + 1, where 0 means undeclared. For colours it has 16 million
        # entries; of those zeros, memory holds only the pages that are looked into.
        self._ids = np.zeros(1 << 24 if self.is_rgb else 256, np.uint16)
        self._ids[codes] = np.array(ids) + 1

        void = self.void
        known = [*range(self.num_classes), *([] if void is None else [self.ignore_index])]
        self._is_id = np.zeros(256, bool)
        self._is_id[known] = True
        self._values = np.zeros((256, 3) if self.is_rgb else 256, np.uint8)
        self._values[known] = [*self.values, *([] if void is None else [void])]

    @property
    def void(self):
        """The excluded value that stands for ignored pixels in a mask; None if there is none."""
        for value in (self.ignore_index, (0, 0, 0), *self.excluded):
            if value in self.excluded:
                return value
        return None

    def to_ids(self, raw, where="the mask"):
        """Return the class ids (H, W) uint8 of a mask: (H, W) uint8, or (H, W, 3) of colours.

        Excluded values become `ignore_index`. Raises UserError, with `where` in it, for a value
        that is neither a class nor excluded, and for colours in place of ids or ids of colours.
        """
        raw = np.asarray(raw)
        if raw.dtype != np.uint8 or raw.shape[2:] != ((3,) if self.is_rgb else ()):
            wanted = "(H, W, 3) of colours" if self.is_rgb else "(H, W) of ids"
            raise UserError(f"{where} is {raw.shape} {raw.dtype}, and its class map is for "
                            f"{wanted}, uint8; use another class map")
        if self.is_rgb:
            ids = self._ids.take(_packed(raw))  # (H, W) uint16, still one too large
            if not ids.all():
                raise self._undeclared_colours(raw[ids == 0], raw, where)
            ids -= 1
            return ids.astype(np.uint8)
        found = labels_in(raw)
        foreign = found[self._ids[found] == 0]
        if foreign.size:
            raise self._undeclared_ids(foreign, where)
        return (self._ids - 1).astype(np.uint8).take(raw)

    def to_values(self, ids):
        """Return class ids (H, W) as the mask that means them: (H, W) or (H, W, 3), uint8.

        `ignore_index` becomes `void`. Raises ValueError for what is no class, and for ignored
        pixels where the map excludes no value.
        """
        ids = np.asarray(ids)
        if not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"class ids of dtype {ids.dtype}, need integers")
        outside = ids[(ids < 0) | (ids > 255)]
        foreign = outside if outside.size else np.flatnonzero(
            (np.bincount(ids.reshape(-1), minlength=256) > 0) & ~self._is_id)
        if foreign.size:
            ignored = "no value" if self.void is None else self.ignore_index
            raise ValueError(f"{show_values(np.unique(foreign))} is no class id of this map, "
                             f"which has 0 to {self.num_classes - 1}, and {ignored} for ignored "
                             f"pixels")
        return self._values.take(ids, axis=0)

    def through_colours(self):
        """Return the same classes for RGB masks: their values are the colours here.

        Raises UserError where colours are missing, or one means two things.
        """
        if self.is_rgb:
            return self
        if not self.has_colours:
            raise UserError("the classes have no colours by which an RGB mask could be read")
        _refuse_twice(map(tuple, self.palette.tolist()), "the colour {}",
                      "RGB masks need one for each class")
        return ClassMap(self.names, self.palette.tolist(), ignore_index=self.ignore_index,
                        excluded={self.excluded_colours[value]: why for value, why
                                  in self.excluded.items() if value in self.excluded_colours})

    def _undeclared_ids(self, foreign, where):
        ignored = ""
        if self.excluded:
            ignored = f", and {show_values(sorted(self.excluded))} for ignored"
        return UserError(
            f"{where} holds the values {show_values(foreign)}, outside the {self.num_classes} "
            f"classes ({show_values(sorted(self.values))}{ignored}); correct the mask, list all "
            f"classes in classes.txt, or exclude values in {CLASS_MAP_FILE}")

    def _undeclared_colours(self, foreign, raw, where):
        """`foreign` (P, 3) are those of the pixels `raw` that have no class."""
        if (raw == raw[..., :1]).all() and len(np.unique(raw)) > 1:
            cure = "it looks like a mask of ids, and the class map has colours: give it ids"
        else:
            cure = (f"declare them in {CLASS_MAP_FILE} as classes or excluded (if they are "
                    f"mixtures of other colours: save or resize masks without smoothing)")
        found = [(c >> 16, c >> 8 & 255, c & 255) for c in np.unique(_packed(foreign)).tolist()]
        return UserError(f"{where} holds the colours {show_values(found)}, outside the "
                         f"{self.num_classes} classes and {len(self.excluded)} excluded ones; "
                         f"{cure}")

    def __eq__(self, other):
        return self.to_dict() == other.to_dict() if isinstance(other, ClassMap) else NotImplemented

    def __repr__(self):
        return (f"<ClassMap of {self.num_classes} classes, {len(self.excluded)} values "
                f"excluded, {'colours' if self.is_rgb else 'ids'}>")

    def to_dict(self):
        """Return the map as lists, texts and numbers, the content of a class_map.json."""
        classes = [{"value": _plain(value), "name": name}
                   for value, name in zip(self.values, self.names)]
        if self.has_colours and not self.is_rgb:
            for record, colour in zip(classes, self.palette.tolist()):
                record["colour"] = colour
        excluded = [{"value": _plain(value), "why": why} for value, why in self.excluded.items()]
        for record, value in zip(excluded, self.excluded):
            if value in self.excluded_colours:
                record["colour"] = list(self.excluded_colours[value])
        return {"classes": classes, "excluded": excluded, "ignore_index": self.ignore_index}

    @classmethod
    def from_dict(cls, content, *, ignore_index=None):
        """Return the map that `to_dict` has described.

        Raises UserError for anything else, and if it has another ignore index than that given.
        """
        fields = class_map_files.fields_of(content)
        own = fields.pop("ignore_index", None)
        if None not in (own, ignore_index) and own != ignore_index:
            raise UserError(f"its ignore_index is {own} and that of the run {ignore_index}; use "
                            f"--ignore-index {own}, or take the line out")
        return cls(**fields, ignore_index=own if ignore_index is None else ignore_index)

    def write(self, path):
        """Write the map to `path`: as class_map.json, or as a table in a .py file.

        The table has no place for the reasons (they become comments) and the ignore index.
        """
        path = Path(path)
        if path.suffix.lower() not in (".json", ".py"):
            raise UserError(f"{path} is no name for a class map; let it end in .json or .py")
        text = class_map_files.json_text(self.to_dict()) if path.suffix.lower() == ".json" \
            else class_map_files.table_text(self.to_dict())
        temporary = path.with_name(path.name + ".tmp")
        try:
            temporary.write_text(text, "utf-8")
            os.replace(temporary, path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            raise UserError(f"cannot write {path} ({error.strerror}); make room, or write to "
                            f"another folder") from error


def read_class_map(path, *, ignore_index=None, void=None):
    """Return the `ClassMap` in a file: a class_map.json, a table in a .py file, a classes.txt.

    The ids of excluded pixels are `ignore_index` (default: as class_map.json says, else 255).
    A classes.txt excludes one value, `void` (default: the ignore index), unless it is a class.
    Raises UserError, with `path` in it, for what makes no sense.
    """
    path = Path(path)
    read = {".json": class_map_files.read_json, ".py": class_map_files.read_table,
            ".txt": class_map_files.read_names}.get(path.suffix.lower())
    if read is None:
        raise UserError(f"{path} is no class map; give a {CLASS_MAP_FILE}, a .py table or a .txt "
                        f"file")
    try:
        content = read(path)
    except OSError as error:
        raise UserError(f"cannot read the class map {path} ({error.strerror}); check the "
                        f"path") from error
    try:
        if path.suffix.lower() == ".txt":
            found = plain_map(*content, ignore_index=ignore_index, void=void)
        else:
            found = ClassMap.from_dict(content, ignore_index=ignore_index)
        if found.num_classes < 2:
            raise UserError("there is 1 class; a choice needs 2 or more")
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return found


def class_map_for(root, classes=None, *, ignore_index=None, void=None):
    """Return the `ClassMap` of the data in folder `root`; None if nothing declares one.

    `classes` is a ClassMap or the path of one; by default it is root's class_map.json or, where
    there is none, classes.txt (a `root` of None has neither). Arguments as in `read_class_map`.
    """
    if isinstance(classes, ClassMap):
        if ignore_index not in (None, classes.ignore_index):
            raise UserError(f"the class map ignores {classes.ignore_index}, and ignore_index is "
                            f"{ignore_index}; give both the same")
        return classes
    if classes is None and root is not None:
        classes = next((path for path in (Path(root) / CLASS_MAP_FILE, Path(root) / "classes.txt")
                        if path.is_file()), None)
    return None if classes is None else read_class_map(classes, ignore_index=ignore_index,
                                                       void=void)


def plain_map(names, values=None, palette=None, *, ignore_index=None, void=None):
    """Return the map of classes of ids and one value that is ignored, unless it is a class.

    That is `void` (default: the ignore index).
    """
    ignore_index = checked_ignore_index(ignore_index)
    void = ignore_index if void is None else void
    is_class = void in (range(len(names)) if values is None else values)
    return ClassMap(names, values, palette, {} if is_class else {void: "void"}, ignore_index)


def checked_ignore_index(ignore_index):
    """Return `ignore_index`, or 255 for None; UserError if no mask can hold it."""
    index = 255 if ignore_index is None else _as_byte(ignore_index)
    if index is None:
        raise UserError(f"ignore index {ignore_index} cannot occur in an 8-bit mask; choose 0 to "
                        f"255 (a mask saved with -1 holds 255)")
    return index


def _refuse_twice(items, what, cure):
    """Raise UserError if one of `items` occurs twice; `what` has a place for it."""
    seen = set()
    for item in items:
        if item in seen:
            raise UserError(f"{what.format(item)} occurs twice; {cure}")
        seen.add(item)


def _as_value(value):
    """Return a value of a mask as an int or a colour."""
    if isinstance(value, (list, tuple, np.ndarray)):
        return _as_colour(value)
    number = _as_byte(value)
    if number is None:
        raise UserError(f"{value!r} is no value of a mask; write an id from 0 to 255 or a colour "
                        f"[r, g, b]")
    return number


def _as_colour(colour):
    """Return [r, g, b] as three ints in a tuple."""
    channels = [_as_byte(c) for c in colour] if hasattr(colour, "__len__") else []
    if len(channels) != 3 or None in channels:
        raise UserError(f"{json.dumps(_plain(colour), default=str)} is no colour; write [r, g, b] "
                        f"with numbers from 0 to 255")
    return tuple(channels)


def _as_byte(value):
    """Return an integer from 0 to 255, of Python or NumPy, as an int; None for all else."""
    try:
        number = None if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        return None
    return number if number is not None and 0 <= number <= 255 else None


def _plain(value):
    return list(value) if isinstance(value, (tuple, np.ndarray)) else value


def _packed(colours):
    """Return colours (..., 3) uint8 as 65536 r + 256 g + b, (...) uint32."""
    packed = colours[..., 0].astype(np.uint32)
    for channel in (1, 2):
        packed <<= 8
        packed |= colours[..., channel]
    return packed
