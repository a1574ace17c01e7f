"""Bars of several scores per class: the right height at the right place, and what is undefined."""

import numpy as np
import pytest

from minisegnet.plots.class_scores import class_scores

NAMES = ("car", "ground", "pool")
PIXELS = np.array([200, 795, 5])
RARE = np.array([False, False, True])
SCORES = {"plain": {"IoU": np.array([0.5, 0.9, 0.0]), "precision": np.array([0.6, 0.95, np.nan])},
          "weighted": {"IoU": np.array([0.4, 0.8, 0.3]), "precision": np.array([0.5, 0.9, 0.4])}}


def bars_of(axes):
    """Return {x of the class: heights of its bars, left to right}."""
    found = {}
    for container in axes.containers:
        for bar in container:
            found.setdefault(round(bar.get_x() + bar.get_width() / 2), []).append(bar.get_height())
    return found


def test_bars_stand_from_frequent_to_rare_run_beside_run():
    figure = class_scores(SCORES, NAMES, PIXELS, RARE)
    iou, precision = figure.axes
    assert bars_of(iou) == {0: [0.9, 0.8], 1: [0.5, 0.4], 2: [0.0, 0.3]}
    assert bars_of(precision) == {0: [0.95, 0.9], 1: [0.6, 0.5], 2: [0.4]}
    assert [axes.get_ylabel() for axes in figure.axes] == ["IoU", "precision"]
    ticks = [text.get_text() for text in precision.get_xticklabels()]
    assert ticks == ["ground\n80%", "car\n20%", "pool\n0.5%"]


def test_what_is_undefined_has_a_cross_and_the_legend_says_so():
    figure = class_scores(SCORES, NAMES, PIXELS, RARE)
    iou, precision = figure.axes
    assert not iou.lines
    [crosses] = precision.lines
    assert crosses.get_xdata() == pytest.approx([2 - 0.2])
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["plain", "weighted", "undefined: never predicted"]


def test_more_runs_than_there_are_colours_are_refused():
    many = {str(i): SCORES["plain"] for i in range(8)}
    with pytest.raises(ValueError, match="8 runs; expected at most 7"):
        class_scores(many, NAMES, PIXELS, RARE)
