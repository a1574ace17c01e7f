"""Memory as cells: the right number in every cell, and what is fetched in vain marked."""

import numpy as np
import pytest

from minisegnet.plots.cells import copied_matrices, thread_addresses


def texts_of(axes):
    return {(round(text.get_position()[1]), round(text.get_position()[0])): text.get_text()
            for text in axes.texts}


def test_copied_cells_carry_the_place_they_came_from_in_its_colour():
    picture = np.arange(6).reshape(2, 3)
    first, second = copied_matrices({"a": picture, "b": picture[:, :2]}, 6).axes
    assert texts_of(first) == {(i, j): str(picture[i, j]) for i, j in np.ndindex(2, 3)}
    assert texts_of(second) == {(i, j): str(picture[i, j]) for i, j in np.ndindex(2, 2)}
    shades = [np.asarray(axes.get_images()[0].get_array()) for axes in (first, second)]
    assert shades[0][1, 1] == shades[1][1, 1] and len(np.unique(shades[0])) == 6
    assert (first.get_title("left"), second.get_title("left")) == ("a", "b")


@pytest.mark.parametrize("array, words", [
    (np.arange(3), "two axes"), (np.zeros((21, 20), int), "at most 400"),
    (np.array([[6]]), "expected 0 to 5"), (np.array([[-1]]), "from -1"),
], ids=["one axis", "too large", "too high", "negative"])
def test_matrices_that_cannot_be_drawn_are_refused(array, words):
    with pytest.raises(ValueError, match=words):
        copied_matrices({"a": array}, 6)


def test_of_scattered_readings_every_sector_is_marked_and_counted():
    near, far = thread_addresses({"near": range(4), "far": np.arange(4) * 4}, 4, 8).axes
    assert "1 sectors" not in near.get_title() and "4 elements of 4 are used" in near.get_title()
    assert "4 sectors are fetched, 4 elements of 16 are used" in far.get_title()
    expected = {(place // 8, place % 8): "-" for place in range(16)}
    expected.update({(4 * i // 8, 4 * i % 8): str(i) for i in range(4)})
    assert texts_of(far) == expected
    assert texts_of(near)[1, 7] == ""  # not fetched


def test_of_a_place_that_is_read_twice_the_title_counts_one():
    axes, = thread_addresses({"same": [5, 5, 5]}, 4, 8).axes
    assert "1 element of 4 is used" in axes.get_title()


@pytest.mark.parametrize("places, sector, words", [
    ([-1, 0], 4, "from -1"), ([400], 4, "expected 0 to 399"), ([0], 5, "whole sectors")],
    ids=["negative", "too far", "split sectors"])
def test_places_that_cannot_be_drawn_are_refused(places, sector, words):
    with pytest.raises(ValueError, match=words):
        thread_addresses({"a": places}, sector, 8)
