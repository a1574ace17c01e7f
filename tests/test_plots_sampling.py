"""Pictures of what samplers draw: every class in its row, every mark at its number."""

import numpy as np
import pytest

from minisegnet.plots.sampling import met_per_epoch

NAMES = ("house", "ground", "pool")
WINDOWS = {"uniform": np.array([90, 100, 4]), "crops": np.array([70, 100, 30])}
SHARES = {"uniform": np.array([0.2, 0.79, 0.01]), "crops": np.array([0.3, 0.7, 0.0])}


def test_each_class_has_a_row_with_a_mark_for_each_sampler_the_most_frequent_on_top():
    left, right = met_per_epoch(WINDOWS, SHARES, NAMES).axes
    assert [text.get_text() for text in left.get_yticklabels()] == ["ground", "house", "pool"]
    assert left.yaxis_inverted()
    for panel, values in ((left, WINDOWS), (right, SHARES)):
        for line, of_sampler in zip(panel.lines, values.values()):
            rows = np.round(line.get_ydata()).astype(int)
            np.testing.assert_array_equal(
                line.get_xdata(), of_sampler[[1, 0, 2]][rows])  # by share, as the rows are
    assert len(right.lines[1].get_xdata()) == 2  # what is not there has no mark on a log axis


def test_the_legend_names_the_samplers_and_their_marks_differ():
    figure = met_per_epoch(WINDOWS, SHARES, NAMES)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(WINDOWS)
    assert len({line.get_marker() for line in figure.axes[0].lines}) == 2


def test_samplers_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="same samplers"):
        met_per_epoch(WINDOWS, {"uniform": SHARES["uniform"]}, NAMES)
