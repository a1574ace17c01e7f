"""The picture of the error over the step: every curve at its place, told apart without colour."""

import numpy as np
import pytest

from minisegnet.plots.gradient_check import error_over_step

STEPS = np.array([1e-1, 1e-3, 1e-5])


def test_every_curve_is_drawn_at_its_points_on_log_axes():
    errors = {"one-sided": [1e-1, 1e-3, 1e-5], "two-sided": [1e-2, 1e-6, 1e-10]}
    [axes] = error_over_step(STEPS, errors, marked={"ours": 1e-5}).axes
    assert axes.get_xscale() == axes.get_yscale() == "log"
    one, two, mark = axes.get_lines()
    np.testing.assert_allclose(one.get_xdata(), STEPS)
    np.testing.assert_allclose(two.get_ydata(), errors["two-sided"])
    assert list(mark.get_xdata()) == [1e-5, 1e-5]
    assert one.get_linestyle() != two.get_linestyle() and one.get_marker() != two.get_marker()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(errors)
    assert "ours" in [text.get_text() for text in axes.texts]


def test_what_has_no_place_on_a_log_axis_is_left_out():
    [axes] = error_over_step(STEPS, {"a": [0.0, 1e-3, np.inf]}).axes
    np.testing.assert_allclose(axes.get_lines()[0].get_xdata(), [1e-3])


@pytest.mark.parametrize("errors, words", [
    ({"a": [1.0, 2.0]}, "'a' has shape"),
    ({str(i): [1.0, 1.0, 1.0] for i in range(8)}, "8 curves"),
])
def test_odd_input_is_refused(errors, words):
    with pytest.raises(ValueError, match=words):
        error_over_step(STEPS, errors)
