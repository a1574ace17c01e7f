"""The curves of the losses are the losses, each in a style of its own."""

import io
from itertools import combinations

import numpy as np
import pytest

from minisegnet.losses.criterion import LOSSES
from minisegnet.plots.figures import LOSS_STYLES
from minisegnet.plots.loss_functions import (
    GAMMAS,
    MOST_GAMMAS,
    focal_of_one_pixel,
    loss_against_probability,
)


def loss_of_logit(z, gamma):
    """Focal loss of a pixel whose true class has logit z, and the other class 0."""
    p = 1 / (1 + np.exp(-z))
    return -(1 - p) ** gamma * np.log(p)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_one_pixel_has_the_focal_loss_and_its_slope(gamma):
    z = np.linspace(-4, 4, 9)
    loss, gradient = focal_of_one_pixel(1 / (1 + np.exp(-z)), gamma)
    np.testing.assert_allclose(loss, loss_of_logit(z, gamma), rtol=1e-12)
    slope = (loss_of_logit(z + 1e-5, gamma) - loss_of_logit(z - 1e-5, gamma)) / 2e-5
    np.testing.assert_allclose(gradient, -slope, rtol=1e-6)


def test_figures_of_the_field_notes():
    """A loss of 2.5 is p = 0.082, whose focal loss is 2.106; at p = 0.3, 1.204 and 0.590."""
    (focal, _), (ce, _) = (focal_of_one_pixel([np.exp(-2.5), 0.3], gamma) for gamma in (2, 0))
    np.testing.assert_allclose(ce, [2.5, 1.204], atol=5e-4)
    np.testing.assert_allclose(focal, [2.106, 0.590], atol=5e-4)


def test_both_panels_have_a_curve_per_gamma():
    values, gradients = loss_against_probability((0, 3)).axes
    for axes, which in ((values, 0), (gradients, 1)):
        for line, gamma in zip(axes.lines, (0, 3), strict=True):
            p, y = line.get_data()
            assert p[0] < 0.01 and p[-1] > 0.99
            np.testing.assert_allclose(y, focal_of_one_pixel(p, gamma)[which])
    assert [text.get_text() for text in values.get_legend().get_texts()] == [
        "γ = 0 (cross-entropy)", "γ = 3"]
    assert gradients.get_yscale() == "log"


@pytest.mark.parametrize("gammas", [GAMMAS, range(1, MOST_GAMMAS + 1), (2, 0),
                                    (3, 0, 4, 2, 5, 6, 7, 8)])
def test_no_two_curves_share_a_colour_or_a_line(gammas):
    values, gradients = loss_against_probability(gammas).axes
    for first, second in combinations(values.lines, 2):
        assert first.get_color() != second.get_color()
        # Dashes as they are drawn: what get_linestyle returns is "--" for all of them.
        assert first._unscaled_dash_pattern != second._unscaled_dash_pattern
    assert [line.get_color() for line in values.lines] == [
        line.get_color() for line in gradients.lines]


def test_cross_entropy_and_focal_have_their_style_of_every_picture():
    values, _ = loss_against_probability((2, 0)).axes
    for line, name in zip(values.lines, ("focal", "ce")):
        assert line.get_color() == LOSS_STYLES[name]["color"]
        assert line.get_linestyle() == LOSS_STYLES[name]["linestyle"]


def test_pixels_are_marked_where_they_are_and_those_that_meet_once():
    figure = loss_against_probability((0,), {"easy": 0.9, "hard": 0.25, "easy, too": 0.9})
    for axes in figure.axes:
        curve, *marks = axes.lines
        assert [line.get_xdata()[0] for line in marks] == [0.9, 0.25]
        assert [text.get_text() for text in axes.texts] == ["easy, easy, too", "hard"]
    figure.savefig(io.BytesIO(), dpi=40)


@pytest.mark.parametrize("gammas", [(1, 1), range(MOST_GAMMAS + 1), (-1,)])
def test_gammas_that_cannot_be_drawn_are_refused(gammas):
    with pytest.raises(ValueError, match="gamma"):
        loss_against_probability(gammas)


def test_every_loss_has_a_style_of_its_own():
    assert set(LOSS_STYLES) == {*LOSSES, "weighted"}
    for style in LOSS_STYLES.values():
        assert set(style) == {"color", "linestyle", "marker"}
    for first, second in combinations(LOSS_STYLES.values(), 2):
        assert first["marker"] != second["marker"]
        assert first["linestyle"] != second["linestyle"]
    usual = [LOSS_STYLES[name]["color"] for name in ("ce", "weighted", "focal", "dice",
                                                     "combined", "tversky", "lovasz")]
    assert len(set(usual)) == len(usual)
