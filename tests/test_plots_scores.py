"""The picture of scores over a knob: means on the left, classes on the right."""

import itertools

import numpy as np
import pytest

from minisegnet.plots.scores import scores_over_knob

VALUES = [0, 1, 2]


def test_means_stand_left_and_classes_right_under_their_names():
    means = {"accuracy": [1.0, 0.9, 0.8], "mean IoU": [1.0, 0.6, 0.4]}
    per_class = {"ground": [1.0, 0.9, 0.9], "pool": [1.0, np.nan, 0.1]}
    left, right = scores_over_knob(VALUES, means, per_class, knob="shift").axes
    for axes, curves in ((left, means), (right, per_class)):
        assert axes.get_xlabel() == "shift"
        assert [text.get_text() for text in axes.get_legend().get_texts()] == list(curves)
        for line, scores in zip(axes.get_lines(), curves.values()):
            np.testing.assert_array_equal(line.get_xdata(), VALUES)
            np.testing.assert_array_equal(line.get_ydata(), scores)  # nan leaves a gap


def test_twelve_classes_differ_in_colour_or_line_and_neighbours_in_both():
    per_class = {f"class {c}": [0.5, 0.5, 0.5] for c in range(12)}
    _, right = scores_over_knob(VALUES, {"accuracy": [1, 1, 1]}, per_class, knob="shift").axes
    styles = [(line.get_color(), line.get_linestyle(), line.get_marker())
              for line in right.get_lines()]
    assert len(set(styles)) == 12
    for one, next_one in itertools.pairwise(styles):
        assert all(a != b for a, b in zip(one, next_one))


def test_a_curve_of_another_length_is_refused():
    with pytest.raises(ValueError, match="'accuracy' has 2 points for 3 values"):
        scores_over_knob(VALUES, {"accuracy": [1.0, 0.9]}, {}, knob="shift")
