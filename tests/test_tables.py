"""Tables for the terminal: columns of one width, a dash for what is no number."""

import math

from minisegnet.tables import aligned, number_text, ruled


def test_texts_stand_to_the_left_and_numbers_to_the_right_with_no_blanks_at_the_end():
    rows = [("class", "of", "IoU", ""), ("a", "plan", "0.5", "<- best"), ("bb", "x", "-", "")]
    assert aligned(rows, left=2) == ["class  of    IoU", "a      plan  0.5  <- best",
                                     "bb     x       -"]
    assert aligned(rows)[2] == "bb        x    -"


def test_nan_is_a_dash_and_zero_is_not():
    assert [number_text(value, ".1f") for value in (math.nan, 0, 0.25)] == ["-", "0.0", "0.2"]


def test_a_line_of_dashes_stands_below_the_heading():
    assert ruled([("name", "n"), ("a", "10")]) == ["name   n", "----  --", "a     10"]
