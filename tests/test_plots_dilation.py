"""Pictures of dilated kernels: counts at their places, bars as long as the averages."""

import numpy as np
import pytest

from minisegnet.plots.dilation import taps_on_maps

EDGE = np.outer([2, 3, 3, 2], [2, 3, 3, 3, 2])  # rate 1 on a map of 4x5
CASES = {"a": {1: 5.0, 2: 3.0}, "b": {2: 1.5}}


def test_each_rectangle_of_equal_counts_has_its_number_in_the_middle():
    figure = taps_on_maps({1: EDGE}, CASES)
    panel = figure.axes[0]
    np.testing.assert_array_equal(panel.get_images()[0].get_array(), EDGE)
    found = {text.get_position(): text.get_text() for text in panel.texts}
    assert found[(2, 1.5)] == "9" and found[(0, 0)] == "4" and found[(2, 3)] == "6"
    assert len(found) == 9
    assert panel.get_title() == f"rate 1: {EDGE.mean():.2f} of 9"


def test_bars_are_as_long_as_the_averages_and_a_rate_looks_the_same_in_all_cases():
    [bars] = [axes for axes in taps_on_maps({1: EDGE, 2: EDGE, 3: EDGE}, CASES).axes
              if axes.patches]
    a1, a2, b2 = bars.patches
    assert [bar.get_width() for bar in (a1, a2, b2)] == [5.0, 3.0, 1.5]
    assert a2.get_facecolor() == b2.get_facecolor() != a1.get_facecolor()
    assert a2.get_hatch() == b2.get_hatch() != a1.get_hatch()
    assert [text.get_text() for text in bars.get_yticklabels()] == ["a", "b"]
    assert "rate 2" in bars.texts[1].get_text()


@pytest.mark.parametrize("rates", [1, 2, 3, 4])
def test_any_number_of_rates_has_its_panels(rates):
    figure = taps_on_maps({rate: EDGE for rate in range(1, rates + 1)}, CASES)
    titles = [axes.get_title() for axes in figure.axes]
    assert sum(title.startswith("rate") for title in titles) == rates


def test_a_map_of_one_pixel():
    panel = taps_on_maps({6: np.array([[1]])}, CASES).axes[0]
    assert [text.get_text() for text in panel.texts] == ["1"]
