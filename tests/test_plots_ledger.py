"""Pictures of the ledger: the right share in the right colour, at the right place."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from minisegnet.plots.ledger import ledger_over_steps, ledgers_side_by_side

NAMES = ("ground", "house", "pool", "car")
PALETTE = np.array([[255, 255, 255], [200, 0, 0], [0, 0, 200], [0, 90, 0]], np.uint8)
SHARE = np.array([0.2, 0.795, 0.005])
STATES = {"one": {"ce": SHARE, "dice": np.array([0.3, 0.4, 0.3])},
          "two": {"ce": np.array([0.5, 0.5, 0.0]), "dice": np.array([0.1, 0.2, 0.7])}}


def test_bars_stack_the_shares_beside_those_of_the_pixels_the_rarest_at_the_bottom():
    rare = np.array([False, False, True])
    figure = ledgers_side_by_side(SHARE, STATES, NAMES[:3], PALETTE, rare)
    for panel, of_state in zip(figure.axes[::2], STATES.values()):
        for x, shares in enumerate([SHARE, *of_state.values()]):
            stack = panel.patches[3 * x:3 * x + 3]
            for bar, c in zip(stack, (2, 0, 1)):  # rare to frequent, from the bottom up
                assert bar.get_height() == pytest.approx(shares[c])
                np.testing.assert_allclose(bar.get_facecolor()[:3], PALETTE[c] / 255)
                assert bar.get_x() + bar.get_width() / 2 == pytest.approx(x)
            assert [bar.get_y() for bar in stack] == pytest.approx(
                [0, shares[2], shares[2] + shares[0]])
        labels = [text.get_text() for text in panel.get_xticklabels()]
        assert labels == ["pixels", "ce", "dice"]
    above = [text.get_text() for text in figure.axes[0].texts if "%" in text.get_text()]
    assert above == ["0.50%", "0.50%", "30%"]


def test_marks_show_the_share_per_share_of_the_pixels():
    figure = ledgers_side_by_side(SHARE, STATES, NAMES[:3], PALETTE, np.zeros(3, bool))
    ce, dice = figure.axes[3].collections[:2]  # of the second state
    x, y = dice.get_offsets().T
    np.testing.assert_allclose(x, [0.2 / 0.795, 0.1 / 0.2, 0.7 / 0.005])
    assert np.round(y).tolist() == [0, 1, 2]
    assert len(ce.get_offsets()) == 2  # without a gradient there is no mark on a log axis
    names = [text.get_text() for text in figure.axes[3].get_yticklabels()]
    assert names == ["house 80%", "ground 20%", "pool 0.50%"]


# ---------------------------------------------------------------- over the steps of a run


def record(step, by_target, loss="ce", pixels=(60, 20, 20, 0)):
    return {"step": step, "loss": loss, "value": 1.0, "total": 1.0, "pixels": list(pixels),
            "by_target": by_target, "by_logit": [0.25] * 4}


def class_at(panel, step, height):
    """The class whose area lies at a point of a stack."""
    [area] = [area for area in panel.collections
              if area.get_paths()[0].contains_point((step, height))]
    return PALETTE.tolist().index([round(255 * value) for value in area.get_facecolor()[0][:3]])


def line_of(panel, c):
    """The line of a class, (points, 2)."""
    [line] = [line for line in panel.lines if np.allclose(to_rgb(line.get_color()),
                                                          PALETTE[c] / 255)]
    return line.get_xydata()


def test_the_stack_shows_the_shares_of_each_step_the_rarest_class_at_the_bottom():
    records = [record(0, [0.5, 0.3, 0.2, 0.0]), record(10, [0.1, 0.6, 0.3, 0.0]),
               record(20, [0.2, 0.2, 0.6, 0.0])]
    bar, stack, _, per_pixel, _, by_logit = ledger_over_steps(records, NAMES, PALETTE).axes
    for step, pool, house in ((5, 0.2, 0.5), (15, 0.3, 0.9), (25, 0.6, 0.8)):
        for height, c in ((0.005, 2), (pool - 0.005, 2), (pool + 0.005, 1), (house - 0.005, 1),
                          (house + 0.005, 0), (0.995, 0)):
            assert class_at(stack, step, height) == c
    assert [class_at(bar, 0.5, height) for height in (0.19, 0.21, 0.39, 0.41)] == [2, 1, 1, 0]
    assert [class_at(by_logit, 5, height) for height in (0.1, 0.3, 0.6, 0.9)] == [3, 2, 1, 0]
    np.testing.assert_allclose(line_of(per_pixel, 0), np.array(
        [[5, 0.5 / 0.6], [15, 0.1 / 0.6], [25, 0.2 / 0.6]]))


def test_per_pixel_a_class_is_compared_with_the_batches_that_have_it():
    records = [record(0, [0.9, 0.1, 0, 0], pixels=(90, 10, 0, 0)),
               record(10, [0.5, 0.2, 0.3, 0], pixels=(80, 10, 10, 0))]
    per_pixel = ledger_over_steps(records, NAMES, PALETTE).axes[3]
    np.testing.assert_allclose(line_of(per_pixel, 2), [[15, 3.0]])  # the column from 10 to 20


def test_many_records_are_drawn_as_means_of_groups():
    records = [record(step, [step % 2, 1 - step % 2, 0, 0]) for step in range(120)]
    ground = line_of(ledger_over_steps(records, NAMES, PALETTE).axes[3], 0)
    np.testing.assert_allclose(ground[:, 1], np.full(60, 0.5 / 0.6))


def test_another_loss_is_marked_where_it_begins():
    records = [record(10 * i, [0.5, 0.5, 0, 0], loss="ce" if i < 3 else "dice") for i in range(6)]
    stack = ledger_over_steps(records, NAMES, PALETTE).axes[1]
    [line] = stack.lines
    assert line.get_xdata() == [30, 30] and stack.texts[0].get_text() == "dice"
