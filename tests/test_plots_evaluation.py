"""Pictures of an evaluation: the right share in the right cell, the right points in a panel."""

import numpy as np
import pytest

from minisegnet import plots
from minisegnet.calibration import Calibration

NAMES = ["ground", "house", "pool"]
# house is the most frequent class, then pool; ground is in no truth, but is predicted
MATRIX = np.array([[0, 0, 0], [10, 80, 10], [1, 0, 3]])


def test_confusion_rows_are_shares_of_the_true_class_most_frequent_first():
    axes = plots.confusion(MATRIX, NAMES).axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["house", "pool", "ground"]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["house", "pool", "ground"]
    shares = np.ma.filled(axes.get_images()[0].get_array(), np.nan) ** 2  # shown by the root
    np.testing.assert_allclose(shares[:2], [[0.8, 0.1, 0.1], [0, 0.75, 0.25]])
    assert np.isnan(shares[2]).all()  # not in the truth: no share of it
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    assert cells == {(0, 0): "80", (1, 0): "10", (2, 0): "10", (1, 1): "75", (2, 1): "25"}
    assert "true" in axes.get_ylabel() and axes.get_xlabel() == "predicted"


@pytest.mark.parametrize("share, shown", [
    (1, "100"), (0.9996, "100.0"), (0.996, "99.6"), (0.25, "25"), (0.012, "1.2")])
def test_shares_in_cells_do_not_round_up_to_all(share, shown):
    rest = 10_000 - round(10_000 * share)
    texts = plots.confusion(np.array([[10_000 - rest, rest], [0, 1]]), "ab").axes[0].texts
    assert texts[0].get_text() == shown


def test_many_classes_have_all_their_names_and_no_numbers():
    names = [f"class number {k}" for k in range(32)]
    axes = plots.confusion(np.diag(range(1, 33)), names).axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == names[::-1]
    assert not axes.texts


def test_reliability_has_a_panel_for_the_top_label_and_each_class_by_frequency():
    calibration = Calibration(3, bins=5)
    probs = np.array([[0.1, 0.9, 0], [0.5, 0.5, 0], [0, 0.9, 0.1], [0, 0.9, 0.1]])
    calibration.update(np.array([1, 1, 1, 2]), probs)
    figure = plots.reliability(calibration, NAMES)
    titles = [axes.get_title().split("\n")[0] for axes in figure.axes]
    assert titles == ["top label", "house", "pool", "ground"]
    top, house, pool, ground = (axes.lines[1].get_xydata() for axes in figure.axes)
    np.testing.assert_allclose(house, [[0.5, 1], [0.9, 2 / 3]])
    np.testing.assert_allclose(pool, [[0.05, 0.25]])
    np.testing.assert_allclose(ground, [[0.1 / 3, 0], [0.5, 0]])
    np.testing.assert_allclose(top, [[0.5, 0], [0.9, 2 / 3]])  # a tie: the lowest class
    assert "not in the truth" in figure.axes[3].get_title()
    assert f"mean p = {3.2 / 3:.3g} f" in figure.axes[1].get_title()
