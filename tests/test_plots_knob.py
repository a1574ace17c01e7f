"""Lines over the positions of a knob: every number in its panel, every name in its style."""

import numpy as np
import pytest

from minisegnet.plots.knob import Panel, over_a_knob


def panels():
    return [Panel("time", "ms", {"one": [1, 2, 3], "two": [3, 2, 1]}),
            Panel("memory", "MiB", {"two": [10, 100, 1000]}, is_log=True)]


def test_every_panel_holds_its_lines_over_the_positions_of_the_knob():
    figure = over_a_knob("side", (1, 3, 9), panels())
    time, memory = figure.axes
    assert [list(line.get_ydata()) for line in time.lines] == [[1, 2, 3], [3, 2, 1]]
    assert [label.get_text() for label in memory.get_xticklabels()] == ["1", "3", "9"]
    assert (time.get_title(), memory.get_ylabel(), memory.get_xlabel()) == ("time", "MiB", "side")
    assert (time.get_yscale(), memory.get_yscale()) == ("linear", "log")
    assert [text.get_text() for text in memory.get_legend().get_texts()] == ["two"]


def test_a_name_has_one_style_and_no_two_names_share_one():
    time, memory = over_a_knob("side", (1, 3, 9), panels()).axes
    one, two = time.lines
    for style in ("get_color", "get_marker", "get_linestyle"):
        assert getattr(two, style)() == getattr(memory.lines[0], style)()
        assert getattr(one, style)() != getattr(two, style)()


@pytest.mark.parametrize("values, given, words", [
    ((1, 3), panels()[:1], "'one' has 3 numbers for 2"),
    ((1, 3), [], "0 panels"),
    ((1,), [Panel("", "", {str(i): [i] for i in range(21)})], "21 different lines"),
], ids=["too long", "no panel", "too many names"])
def test_what_cannot_be_drawn_is_refused(values, given, words):
    with pytest.raises(ValueError, match=words):
        over_a_knob("side", values, given)


def test_a_knob_with_one_position_and_numpy_numbers_are_fine():
    figure = over_a_knob("C", np.array([8]), [Panel("t", "ms", {"a": np.array([0.5])})])
    assert figure.axes[0].lines[0].get_marker() == "o"  # a line of one point would be invisible


def test_many_lines_are_told_apart_and_their_legend_stands_beside():
    lines = {str(i): [i, i + 1] for i in range(20)}
    axes, = over_a_knob("shift", (0, 1), [Panel("IoU", "IoU", lines)]).axes
    looks = {(line.get_color(), str(line._unscaled_dash_pattern)) for line in axes.lines}
    assert len(looks) == 20
    assert axes.get_legend().get_bbox_to_anchor().x0 > axes.bbox.x0 + 0.9 * axes.bbox.width
