"""Tables for the terminal: columns of one width, a dash for what is no number."""

import math

from minisegnet.tables import aligned, number_text, percent_text, ratio_text, ruled


def test_texts_stand_to_the_left_and_numbers_to_the_right_with_no_blanks_at_the_end():
    rows = [("class", "of", "IoU", ""), ("a", "plan", "0.5", "<- best"), ("bb", "x", "-", "")]
    assert aligned(rows, left=2) == ["class  of    IoU", "a      plan  0.5  <- best",
                                     "bb     x       -"]
    assert aligned(rows)[2] == "bb        x    -"


def test_nan_is_a_dash_and_zero_is_not():
    assert [number_text(value, ".1f") for value in (math.nan, 0, 0.25)] == ["-", "0.0", "0.2"]


def test_a_line_of_dashes_stands_below_the_heading():
    assert ruled([("name", "n"), ("a", "10")]) == ["name   n", "----  --", "a     10"]


def test_ratios_have_three_digits_and_no_exponent():
    assert [ratio_text(value) for value in (1, 1.234, 109.4, 999.4, 2445.1, 123456)] == [
        "1", "1.23", "109", "999", "2,445", "123,456"]


def test_small_shares_keep_two_digits():
    assert [percent_text(share) for share in (0, 1, 0.3296, 0.003, 0.00042, 1.234e-5)] == [
        "0.00%", "100.00%", "32.96%", "0.30%", "0.042%", "0.0012%"]
