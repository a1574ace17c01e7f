"""What looks wrong in a data set before anything is trained: what, where, and the cure.

Every check goes by what a `Scan` counted. A suspicion that is not `serious` is no fault, but worth
knowing.
"""

from typing import NamedTuple

import numpy as np

from minisegnet.datasets.files import show_values
from minisegnet.imbalance.label_smoothing import flipping_ratio, smoothed_optimum
from minisegnet.imbalance.occurring import speaks_of
from minisegnet.imbalance.weighting import class_weights
from minisegnet.tables import percent_text

SHARES_DIFFER = 2.0  # times: shares in two splits that are closer are alike
STANDARD_ERRORS = 3.0  # the logarithm of their ratio must lie so many from 0
SLIVER = 4.0  # px: what is smaller on average is no object
MANY = 20  # objects, for their average to say something
TOO_MANY_VALUES = 64  # in masks whose classes nobody declared
SMOOTHING, CAP = 0.1, 100.0  # as recipes have them, for the trap of classes that never occur
_SHOWN = 6  # names or colours in a sentence

# What can be odd about one file: the sentence, the cure, and whether it is serious.
_OF_FILES = {
    "unreadable": ("masks that cannot be read", "", True),
    "image unreadable": ("images that cannot be read", "", True),
    "size": ("masks of another size than their image", "export them again at the image's size",
             True),
    "turned by exif": ("masks that fit their image only before EXIF turns it",
                       "turn the masks too, or save the images without EXIF", True),
    "grey as rgb": ("RGB masks whose three channels are equal",
                    "save one of the channels: it holds the ids", True),
    "all ignored": ("masks of ignored pixels only",
                    "label something in them, or remove them and their images", True),
    "palette": ("palette PNGs, whose ids are the indices and not the colours",
                "nothing here; other programs must not convert them to RGB or grey", False),
}


class Suspicion(NamedTuple):
    """Something odd: a short name, what and where, and what to do about it ("" if `what` says)."""

    kind: str
    what: str
    cure: str
    serious: bool = True


def find_suspicions(scans, declared, classes, no_val=None):
    """Return the `Suspicion`s of a data set, serious ones first.

    `scans` maps train and, where there is one, val to its `Scan`; `declared` is the `ClassMap`
    that the masks should follow and `classes` that of what occurs, None where there is none;
    `no_val` says why there is no val.
    """
    values = values_of(scans)
    if declared is not None and not speaks_of(declared, values):
        declared = None
    found = [*_of_files(scans), *_of_values(scans, values, declared), *_slivers(scans, values)]
    if not any(scan.is_valid(value) for scan in scans.values() for value in values) \
            or declared is None and values == [0, 255]:
        found = [each for each in found if each.kind != "all ignored"]  # all of it is misread
    if declared is not None:
        found += _of_declared(scans, values, declared)
    if no_val is not None:
        found.append(Suspicion("no validation", f"no masks to validate on: {no_val}", ""))
    elif classes is not None:
        found += _of_splits(scans, classes)
    return sorted(found, key=lambda suspicion: not suspicion.serious)


def values_of(scans):
    """Return the values in any of the splits, sorted: ids, then colours."""
    values = set().union(*(scan.values for scan in scans.values()))
    return sorted(values, key=lambda value: (isinstance(value, tuple), value))


def value_text(value):
    """Return an id as it is, and a colour as #rrggbb."""
    return "#{:02x}{:02x}{:02x}".format(*value) if isinstance(value, tuple) else str(value)


def _shown(items):
    """Return ids, colours or names as text, the first few where they are many."""
    if not any(isinstance(each, (tuple, str)) for each in items):
        return show_values(items)
    more = f", ... ({len(items)})" if len(items) > _SHOWN else ""
    return ", ".join(each if isinstance(each, str) else value_text(each)
                     for each in items[:_SHOWN]) + more


def _masks(scans):
    return sum(scan.num_masks for scan in scans.values())


def _where(scans, values):
    """Return the share of all pixels that `values` have and a file with many, as text."""
    pixels = sum(int(scan.totals(values).pixels.sum()) for scan in scans.values())
    share = pixels / sum(scan.all_pixels for scan in scans.values())
    file = next(scan.fullest[value] for scan in scans.values() for value in values
                if value in scan.fullest)
    return f"{percent_text(share)} of all pixels, as in {file}"


# ---------------------------------------------------------------- files and values


def _of_files(scans):
    """Yield what is odd about files, as the scan noted it."""
    masks = _masks(scans) + sum(scan.oddities.get("unreadable", [0])[0] for scan in scans.values())
    for kind, (sentence, cure, serious) in _OF_FILES.items():
        found = [scan.oddities[kind] for scan in scans.values() if kind in scan.oddities]
        if found:
            count = sum(count for count, _ in found)
            which = "all of them" if count == masks else f"{count} of {masks}"
            first = f"; the first: {found[0][1][0]}" if serious else ""
            yield Suspicion(kind, f"{sentence}: {which}{first}", cure, serious)


def _of_values(scans, values, declared):
    """Yield what the values say by themselves."""
    masks = _masks(scans)
    rgb = sum(scan.oddities.get("rgb", [0])[0] for scan in scans.values())
    if rgb and not (declared and declared.is_rgb):
        colours = [value for value in values if isinstance(value, tuple)]
        yield Suspicion("rgb", f"RGB masks: {'all of them' if rgb == masks else rgb}, in the "
                        f"colours {_shown(colours)}",
                        "give each colour its name in a class map, for --classes")
    further = any(scan.further_pixels for scan in scans.values())
    if further or not declared and len(values) > TOO_MANY_VALUES:
        yield Suspicion("many values", f"{'more than ' * further}{len(values)} different values "
                        f"in the masks, more than there can be classes",
                        "masks drawn with smooth edges, saved as JPEG or resized with "
                        "interpolation look like that: export them anew")
    if values == [0, 255] and not declared:
        yield Suspicion("0 and 255", "masks of 0 and 255 alone, black and white pictures, where "
                        "255 would be read as ignored",
                        "class_map.json makes 255 a class: use it as --classes")
    elif 255 in values and not declared:
        yield Suspicion("255", f"id 255, read as ignored: {_where(scans, [255])}",
                        "if it is an object, give it a name in a class map, for --classes", False)
    single = sum(scan.one_valued for scan in scans.values())
    if len(values) == 1:
        yield Suspicion("one value", f"one id only: every pixel of every mask is "
                        f"{value_text(values[0])}", "export the masks anew: these teach nothing")
    elif 2 * single > masks:
        yield Suspicion("one value", f"masks of one id only: {single} of {masks}",
                        "--sampler class-uniform or repeat-factor draws the others more often",
                        False)


def _slivers(scans, values):
    """Yield that several values occur as specks only, which is what interpolation leaves."""
    totals = [scan.totals(values) for scan in scans.values()]
    objects, pixels = (sum(getattr(of, name) for of in totals) for name in ("objects", "pixels"))
    specks = [value for value, n, size in zip(values, objects, pixels)
              if n >= MANY and size < SLIVER * n]
    if len(specks) > 1:
        yield Suspicion("slivers", f"values that occur as specks only, of less than {SLIVER:g} px "
                        f"on average: {_shown(specks)} ({_where(scans, specks)})",
                        "masks resized with interpolation look like that: resize them by nearest "
                        "neighbour")


# ---------------------------------------------------------------- what is declared


def _of_declared(scans, values, declared):
    """Yield what does not fit between the values and the classes that are declared."""
    undefined = [value for value in values
                 if value not in declared.values and value not in declared.excluded]
    if undefined:
        yield Suspicion("undefined", f"values that no class is defined for: {_shown(undefined)} "
                        f"({_where(scans, undefined)})",
                        "correct the masks or define them; class_map.json ignores them")
    unnamed = [value for value in values if declared.excluded.get(value) == "unnamed"]
    if unnamed:
        yield Suspicion("unnamed", f"values with an empty name: {_shown(unnamed)} "
                        f"({_where(scans, unnamed)})", "a name makes them classes", False)
    absent = [k for k, value in enumerate(declared.values) if value not in values]
    if absent:
        yield Suspicion("absent", f"classes that are defined and never occur: "
                        f"{_shown([declared.names[k] for k in absent])}",
                        f"class_map.json leaves them out{_trap(scans['train'], declared, absent)}",
                        False)


def _trap(train, declared, absent):
    """Return what smoothing makes of inverse weights with the cap for absent classes, or ""."""
    totals = train.totals(declared.values)
    if not totals.pixels.any():
        return ""
    weights = class_weights(totals, "inverse", cap=CAP)
    weights[absent] = CAP
    y, r, K = int(totals.pixels.argmax()), absent[0], len(weights)
    if CAP <= weights[y] * flipping_ratio(K, SMOOTHING):
        return ""
    p = smoothed_optimum(weights, y, SMOOTHING)
    return (f"; recipes that weigh them {CAP:g} with label smoothing {SMOOTHING:g} make "
            f"{declared.names[r]} (p {p[r]:.2f}) a better answer than {declared.names[y]} "
            f"(p {p[y]:.2f}) where {declared.names[y]} is")


# ---------------------------------------------------------------- train against validation


def _of_splits(scans, classes):
    """Yield in what the classes of train and val differ, beyond chance."""
    train, val = (scans[split].totals(classes.values) for split in ("train", "val"))
    for kind, there, lacking, cure in (
            ("only in val", val, train, "move pictures with them to train: nobody can learn them"),
            ("only in train", train, val, "move pictures with them to val: how well they are "
             "learned, no score can say")):
        names = [classes.names[k] for k in np.flatnonzero(there.pixels * (lacking.pixels == 0))]
        if names:
            yield Suspicion(kind, f"classes {kind}: {_shown(names)}", cure)
    both = np.flatnonzero((train.pixels > 0) & (val.pixels > 0))
    if not both.size:
        return
    # A class comes by the picture: its relative variance is that of a sum over as many pictures
    # as would hold it if all of them held equally much, (sum of pixels)^2 / (sum of squares).
    ratio = np.log(val.frequency[both] / train.frequency[both])
    error = np.sqrt(sum(of.squares[both] / of.pixels[both].astype(float) ** 2
                        for of in (train, val)))
    odd = (abs(ratio) >= np.log(SHARES_DIFFER)) & (abs(ratio) >= STANDARD_ERRORS * error)
    if odd.any():
        most_first = both[odd][np.argsort(-abs(ratio[odd]), kind="stable")]
        yield Suspicion("splits differ", "shares that differ between train and val, beyond "
                        "chance: " + _shown([
                            f"{classes.names[k]} {percent_text(train.frequency[k])} and "
                            f"{percent_text(val.frequency[k])}" for k in most_first]),
                        "mix the scenes of train and val anew, or read scores of these classes "
                        "with care: they were learned on other pictures than they are scored on")
