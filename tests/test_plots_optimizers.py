"""Pictures of optimizers: what is drawn is what was walked."""

import numpy as np
import pytest

from minisegnet.plots.optimizers import walks

STEPS = {"short": np.full(20, 1.0), "long": np.arange(1.0, 21.0)}
PATHS = {"short": np.linspace([1, 2], [0.5, 1], 21), "long": np.linspace([1, 2], [-3, -6], 21)}
CURVATURE = np.array([[1.0, 0.5], [0.5, 4.0]])


def test_steps_paths_and_distances_are_drawn_under_the_label_they_came_with():
    figure = walks(STEPS, PATHS, CURVATURE, shown=10)
    slope, bowl, distance = figure.axes
    for i, label in enumerate(STEPS):
        line = slope.lines[i]
        assert line.get_label() == label
        np.testing.assert_array_equal(line.get_ydata(), STEPS[label])
        assert line.get_xdata()[0] == 1  # a log axis has no 0
        np.testing.assert_array_equal(bowl.lines[i].get_xydata(), PATHS[label][:11])
        np.testing.assert_allclose(distance.lines[i].get_ydata(),
                                   np.hypot(*PATHS[label].T))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(STEPS)


def test_no_two_lines_differ_by_colour_alone():
    slope = walks(STEPS, PATHS, CURVATURE).axes[0]
    assert len({line.get_linestyle() for line in slope.lines}) == 2


def test_labels_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="same labels"):
        walks(STEPS, {"short": PATHS["short"]}, CURVATURE)
