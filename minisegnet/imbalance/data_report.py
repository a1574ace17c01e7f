"""What `analyze` found out about a data set: as a dictionary for report.json, and as text."""

import textwrap

import numpy as np

from minisegnet.imbalance.label_smoothing import (
    flipping_ratio,
    flipping_smoothing,
    smoothed_optimum,
)
from minisegnet.imbalance.mask_scan import CELL
from minisegnet.imbalance.objects import CONNECTIVITY
from minisegnet.imbalance.suspicions import SMOOTHING, value_text, values_of
from minisegnet.imbalance.weighting import SCHEMES, class_weights
from minisegnet.tables import number_text, percent_text, ratio_text, ruled

FORMULAS = {
    "none": "1",
    "inverse": "1 / (K f)",
    "sqrt": "sqrt(n_max / n)",
    "median": "median(f') / f'",
    "enet": "1 / ln(1.02 + f)",
    "effective": "(1-b) / (1-b^m), b=0.9999",
}
_MEANINGS = ("f: share of the valid pixels of train, f': within the images that have the class; "
             "n: pixels; m: images with the class. No weight is above 100, and that of an absent "
             "class is 0.")
EVEN = 3.0  # times: classes no further apart need no weights
STEEP = 100.0  # times: weights that far apart make a few pixels the whole gradient
_WIDTH = 98  # of a line
_MOST_ROWS, _MOST_WEIGHTS = 40, 20  # rows of a table


def build_report(scans, classes, suspicions):
    """Return what was found as a dictionary of numbers and texts (NaN where there is none).

    `scans` maps splits to their `Scan`, `classes` is the `ClassMap` of what occurs, or None.
    """
    valid = classes.values if classes else ()
    names = dict(zip(valid, classes.names)) if classes else {}
    excluded = classes.excluded if classes else {}
    values = values_of(scans)
    report = {
        "splits": {split: {
            "masks": scan.num_masks,
            "sizes": [[*shape, count] for shape, count in scan.shapes.most_common()],
            "pixels": scan.all_pixels,
            "ignored": 1 - scan.totals(valid).pixels.sum() / scan.all_pixels
            if valid and scan.all_pixels else np.nan,
            "masks_of_one_value": scan.one_valued,
            "oddities": {kind: count for kind, (count, _) in scan.oddities.items()},
        } for split, scan in scans.items()},
        "cell": CELL, "connectivity": CONNECTIVITY,
        "values": [{
            "value": value, "class": names.get(value), "excluded": excluded.get(value),
            **{split: _of_value(scan, value, valid) for split, scan in scans.items()},
        } for value in values],
        "suspicions": [suspicion._asdict() for suspicion in suspicions],
    }
    if classes:
        report |= _of_weights(scans["train"].totals(valid), classes.names)
    return report


def _of_value(scan, value, valid):
    """Return the sums of one value of one split, and what follows from them."""
    totals = scan.totals([value])
    pixels, images, objects, small = (int(each[0]) for each in (
        totals.pixels, totals.images, totals.objects, totals.small))
    share = pixels / max(1, scan.totals(valid).pixels.sum()) if value in valid else np.nan
    mean = pixels / objects if objects else np.nan
    of_all = pixels / scan.all_pixels if scan.all_pixels else np.nan  # no mask could be read
    return {"pixels": pixels, "share_of_all": of_all, "share_of_valid": share,
            "images": images, "objects": objects, "mean_object_pixels": mean,
            "mean_object_cells": mean / CELL ** 2,
            "objects_below_a_cell": small / objects if objects else np.nan}


def _of_weights(totals, names):
    """Return the imbalance, and weights by all schemes with what smoothing makes of them."""
    n = totals.pixels
    there = np.flatnonzero(n)
    most, least = there[np.argmax(n[there])], there[::-1][np.argmin(n[there[::-1]])]
    ratio = n[most] / n[least]
    schemes = {}
    for scheme in SCHEMES:
        weights = class_weights(totals, scheme)
        light, heavy = there[np.argmin(weights[there])], there[np.argmax(weights[there])]
        if weights[light] == weights[heavy]:
            light, heavy = most, least
        spread = weights[heavy] / weights[light]
        p = smoothed_optimum(weights, light, SMOOTHING)
        schemes[scheme] = {
            "formula": FORMULAS[scheme], "weights": dict(zip(names, weights.tolist())),
            "max_over_min": spread, "lightest": names[light], "heaviest": names[heavy],
            "smoothed_p_lightest": p[light], "smoothed_p_heaviest": p[heavy],
            "flips": spread > flipping_ratio(len(names), SMOOTHING),
            "flips_from_smoothing": flipping_smoothing(len(names), spread)}
    return {"imbalance_ratio": ratio, "most_frequent": names[most], "rarest": names[least],
            "label_smoothing": SMOOTHING, "flipping_ratio": flipping_ratio(len(names), SMOOTHING),
            "schemes": schemes, "recommended": _recommended(ratio, schemes)}


def _recommended(ratio, schemes):
    """Return the scheme to begin with, and why."""
    spread = schemes["sqrt"]["max_over_min"]
    before, after = ratio_text(ratio), ratio_text(spread)
    if ratio <= EVEN:
        return {"scheme": "none",
                "why": f"no class has more than {before} times the pixels of another"}
    if spread < STEEP:
        return {"scheme": "sqrt", "why": (
            f"it makes {after} : 1 of {before} : 1, so that rare classes count without a few of "
            f"their pixels becoming the whole gradient")}
    return {"scheme": "enet", "why": (
        f"even the root of {before} : 1 is above {STEEP:g} : 1, and enet stays within "
        f"{ratio_text(schemes['enet']['max_over_min'])} : 1")}


# ---------------------------------------------------------------- as text


def format_report(report):
    """Return the lines of a `build_report`."""
    lines = [_heading(report["splits"]), "", *_value_table(report), ""]
    lines += _wrapped(_summary(report))
    if "schemes" in report:
        lines += ["", *_weight_table(report), "", *_scheme_table(report["schemes"])]
        lines += _wrapped(_MEANINGS)
        lines += _wrapped(
            f"Best p: with label smoothing e = {report['label_smoothing']:g}, what costs least to "
            f"predict where the lightest class is. A class that weighs more than "
            f"{ratio_text(report['flipping_ratio'])} times as much, 1 + K (1 - e) / e, is then "
            f"the better answer: it flips.")
    lines.append("")
    for suspicion in report["suspicions"]:
        lines += _wrapped(suspicion["what"], "[!] " if suspicion["serious"] else "[i] ")
        if suspicion["cure"]:
            lines += _wrapped(f"cure: {suspicion['cure']}", "    ")
    if not report["suspicions"]:
        lines.append("nothing suspicious")
    if "recommended" in report:
        lines += ["", *_wrapped("recommended: {scheme}: {why}".format(**report["recommended"]))]
    return lines


def _wrapped(text, mark=""):
    """Return `text` in lines, `mark` in front; paths stay whole."""
    return textwrap.wrap(text, _WIDTH, initial_indent=mark, subsequent_indent=" " * len(mark),
                         break_long_words=False, break_on_hyphens=False)


def _heading(splits):
    purposes = {"train": "to train", "val": "to validate"}
    sizes = sorted({(H, W) for split in splits.values() for H, W, _ in split["sizes"]})
    size = "x".join(map(str, sizes[0])) if len(sizes) == 1 else \
        f"{len(sizes)} sizes, {'x'.join(map(str, sizes[0]))} to {'x'.join(map(str, sizes[-1]))}"
    return ", ".join(f"{split['masks']} masks {purposes[name]}" for name, split in
                     splits.items()) + f", {size}"


def _value_table(report):
    def key(each):
        return each["class"] is None, -each["train"]["pixels"]

    rows = [["value", "class", "pixels", "share", "images", "objects", "mean px", "cells",
             "< cell"] + ["val share"] * ("val" in report["splits"])]
    for each in _abridged(sorted(report["values"], key=key), _MOST_ROWS):
        if each is None:
            rows.append(["..."] + [""] * (len(rows[0]) - 1))
            continue
        train = each["train"]
        rows.append([
            value_text(each["value"]),
            _short(each["class"] or f"({each['excluded'] or 'no class'})"),
            f"{train['pixels']:,}", _share(train["share_of_valid"]), f"{train['images']:,}",
            f"{train['objects']:,}", number_text(train["mean_object_pixels"], ",.0f"),
            number_text(train["mean_object_cells"], ",.1f"),
            number_text(train["objects_below_a_cell"], ".0%")])
        if "val" in each:
            rows[-1].append(_share(each["val"]["share_of_valid"]))
    return ruled(rows, left=2)


def _share(share):
    return "-" if np.isnan(share) else percent_text(share)


def _short(name, most=24):
    return name if len(name) <= most else name[:most - 3] + "..."


def _abridged(items, most):
    """Return the first and last of many items, None between them."""
    return items if len(items) <= most else [*items[:most // 2], None, *items[-most // 2:]]


def _summary(report):
    text = ""
    if "schemes" in report:
        ignored = ", ".join(f"{percent_text(each['ignored'])} of {split}" for split, each in
                            report["splits"].items() if each["ignored"] > 0)
        text = "Imbalance: {} : 1, {} to {}. Ignored: {}. ".format(
            ratio_text(report["imbalance_ratio"]), report["most_frequent"], report["rarest"],
            f"{ignored}; shares are of the rest" if ignored else "nothing")
    return text + (f"Objects: regions connected over sides{' and corners' * (CONNECTIVITY == 8)}. "
                   f"Cells: {CELL}x{CELL} px, one place at output stride {CELL}.")


def _weight_table(report):
    schemes = report["schemes"]
    frequent_first = sorted((each for each in report["values"] if each["class"]),
                            key=lambda each: -each["train"]["pixels"])
    rows = [["class", *schemes]]
    for each in _abridged(frequent_first, _MOST_WEIGHTS):
        if each is None:
            rows.append(["..."] + [""] * len(schemes))
            continue
        weights = (scheme["weights"][each["class"]] for scheme in schemes.values())
        rows.append([_short(each["class"]), *(f"{weight:.3g}" for weight in weights)])
    return ruled(rows)


def _scheme_table(schemes):
    rows = [["scheme", "formula", f"best p, e = {SMOOTHING:g}", "max : min", "flips from e"]]
    for scheme, of in schemes.items():
        best = ", ".join(f"{_short(of[key], 14)} {of[f'smoothed_p_{key}']:.2f}"
                         for key in ("lightest", "heaviest"))
        flips = f"{of['flips_from_smoothing']:.2f}" if of["max_over_min"] > 1 else "never"
        rows.append([scheme, of["formula"], best, ratio_text(of["max_over_min"]),
                     flips + (" (flips)" if of["flips"] else "")])
    return ruled(rows, left=3)
