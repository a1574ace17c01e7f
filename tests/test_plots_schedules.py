"""Pictures of schedules: every course under its title, every mean over the right steps."""

import numpy as np
import pytest

from minisegnet.plots.schedules import courses, rates_and_losses


@pytest.mark.parametrize("count", [1, 4, 5])
def test_each_course_has_its_panel_and_the_rest_is_empty(count):
    rates = {f"course {i}": np.linspace(0, i + 1, 9 + i) for i in range(count)}
    figure = courses(rates, unit="epoch", marks=(10,))
    shown = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title() for axes in shown] == list(rates)
    for axes, values in zip(shown, rates.values()):
        np.testing.assert_array_equal(axes.lines[0].get_ydata(), values)
        assert len(axes.lines) == 1 + (len(values) > 10)
    assert sum(axes.get_xlabel() == "epoch" for axes in shown) == min(count, 4)


def test_losses_are_means_over_the_steps_so_far():
    losses = np.array([4.0, 2.0, 3.0, 9.0])
    runs = {"none": (np.ones(4), losses), "long": (np.arange(4), losses[::-1])}
    figure = rates_and_losses({"low": runs, "high": runs}, know_nothing=2.5, average=2)
    rate, loss = figure.axes[0], figure.axes[2]
    np.testing.assert_array_equal(rate.lines[1].get_ydata(), np.arange(4))
    np.testing.assert_allclose(loss.lines[0].get_ydata(), [4, 3, 2.5, 6])
    assert rate.get_title() == "low"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["none", "long"]
