"""Pictures of upsampling: a line per input pixel, numbers in cells, wrong labels in red."""

import numpy as np

from minisegnet.ops.upsample import interpolation_matrix
from minisegnet.plots.upsampling import labels_resized, shares_and_gradients

PALETTE = np.array([[255, 255, 255], [200, 0, 0], [0, 0, 200]], np.uint8)


def test_a_line_holds_the_shares_of_one_input_pixel():
    matrix = interpolation_matrix(3, 6)
    figure = shares_and_gradients({"a": matrix, "b": matrix},
                                  {"a": np.ones((2, 3)), "b": np.full((2, 3), 4.0)})
    assert [axes.get_title() for axes in figure.axes] == ["a", "b", "", ""]
    lines = figure.axes[0].lines
    assert len(lines) == 3
    for i, line in enumerate(lines):
        np.testing.assert_allclose(line.get_ydata(), matrix[line.get_xdata().astype(int), i])
        assert line.get_label() == f"{i}: 2"
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 3


def test_every_cell_of_a_map_has_its_number_on_one_scale():
    figure = shares_and_gradients({"a": np.eye(2), "b": np.eye(2)},
                                  {"a": np.array([[1.0, 2.0]]), "b": np.array([[3.0, 8.04]])})
    left, right = figure.axes[2:]
    assert [text.get_text() for text in left.texts] == ["1", "2"]
    assert [text.get_text() for text in right.texts] == ["3", "8.04"]
    assert left.get_images()[0].get_clim() == right.get_images()[0].get_clim() == (0, 8.04)


def test_wrong_labels_are_red_and_masks_have_their_colours():
    mask = np.array([[0, 1, 2]])
    wrong = np.array([[False, True, False]])
    figure = labels_resized([[mask, wrong], [mask.T, wrong.T]], ["mask", "wrong"],
                            ("a", "b", "c"), PALETTE)
    masks, marks = (axes.get_images()[0].get_array() for axes in figure.axes[:2])
    np.testing.assert_array_equal(masks, PALETTE[mask])
    assert tuple(marks[0, 1]) == (200, 0, 0) and tuple(marks[0, 0]) == tuple(marks[0, 2])
    assert [axes.get_title() for axes in figure.axes] == ["mask", "wrong", "", ""]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "c"]
