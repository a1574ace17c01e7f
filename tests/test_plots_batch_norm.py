"""Pictures of batch norm: marks where the numbers are, nan where a root has none."""

import numpy as np
import pytest

from minisegnet.plots.batch_norm import gradient_that_passes, variance_formulas

RATIOS = [1.0, 100.0]


def formulas(nans=True):
    errors = {"one": np.array([[1e-7, 2e-7, 3e-7], [1e-3, 5e-3, 2e-3]]),
              "two": np.zeros((2, 3))}
    deviations = {"one": np.array([[1, 1, 1], [0.5, np.nan if nans else 2, 30]]),
                  "two": np.ones((2, 3))}
    return variance_formulas(RATIOS, errors, deviations).axes


def test_a_line_is_the_median_of_its_draws_and_exact_ones_have_a_mark():
    left, _ = formulas()
    one, two = left.lines
    np.testing.assert_allclose(one.get_ydata(), [2e-7, 2e-3])
    assert (one.get_label(), two.get_label()) == ("one", "two")
    assert (two.get_ydata() > 0).all()  # the axis is a log one
    assert one.get_color() != two.get_color() and one.get_marker() != two.get_marker()
    assert "mean / deviation" in left.get_xlabel()


@pytest.mark.parametrize("nans, crosses", [(True, 1), (False, 0)])
def test_a_negative_variance_is_a_cross_and_no_number(nans, crosses):
    _, right = formulas(nans)
    labels = [marks.get_label() for marks in right.collections]
    assert sum("negative variance" in label for label in labels) == crosses
    numbers = right.collections[0].get_offsets()
    assert len(numbers) == 6 - crosses and np.isfinite(numbers).all()


def test_shares_stand_at_their_number_of_values():
    (axes,) = gradient_that_passes((2, 4, 64), (0.0, 0.5, 0.97)).axes
    law, measured = axes.lines
    np.testing.assert_array_equal(measured.get_xdata(), [2, 4, 64])
    np.testing.assert_array_equal(measured.get_ydata(), [0.0, 0.5, 0.97])
    n = law.get_xdata()
    np.testing.assert_allclose(law.get_ydata(), 1 - 2 / n)
    assert [text.get_text() for text in axes.get_xticklabels()] == ["2", "4", "64"]


def test_a_single_number_of_values_is_enough():
    (axes,) = gradient_that_passes((2,), (0.0,)).axes
    assert axes.get_xlim()[1] > axes.get_xlim()[0]
