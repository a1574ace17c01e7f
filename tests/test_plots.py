"""Pictures: colours that stand for the right class, errors that mark the right pixels."""

import numpy as np
import pytest
from PIL import Image

from minisegnet import plots
from minisegnet.datasets import Sample

PALETTE = np.array([[255, 255, 255], [200, 0, 0], [0, 0, 200]], np.uint8)
NAMES = ("ground", "house", "pool")


def record(epoch, **changes):
    return {"epoch": epoch, "train_loss": 1.0 / epoch, "val_loss": 1.2 / epoch, "mean_iou": 0.3,
            "pixel_accuracy": 0.8, "active_classes": 2, "iou": [0.9, 0.1, None], **changes}


def test_errors_mark_wrong_pixels_only_and_never_ignored_ones():
    mask = np.array([[0, 1, 255]], np.uint8)
    sample = Sample(np.zeros((1, 3, 3), np.uint8), mask, "a")
    figure = plots.predictions([sample], [np.array([[0, 2, 2]], np.uint8)], NAMES, PALETTE)
    errors = np.asarray(figure.axes[3].get_images()[0].get_array())
    right, wrong, ignored = errors[0]
    assert tuple(ignored) == (0, 0, 0)
    assert wrong[0] > wrong[1] and wrong[0] > wrong[2]
    assert len(set(right.tolist())) == 1


@pytest.mark.parametrize("log", [
    [record(1)], [record(e) for e in range(1, 9)],
    [record(1), {"epoch": 2, "train_loss": 0.5}, record(3)]], ids=["one", "eight", "val_every_2"])
def test_curves_hold_every_validated_epoch(log):
    figure = plots.curves(log, NAMES)
    losses, mean, active, per_class = figure.axes[:4]
    validated = [r["epoch"] for r in log if "mean_iou" in r]
    assert list(losses.lines[0].get_xdata()) == [r["epoch"] for r in log]
    assert list(mean.lines[0].get_xdata()) == validated
    assert len(per_class.lines) == 3
    assert np.isnan(per_class.lines[2].get_ydata()).all()  # absent is a gap, not 0


def test_saved_picture_is_a_png(tmp_path):
    plots.save(plots.curves([record(1), record(2)], NAMES), tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.format == "PNG" and min(image.size) > 300
    assert [p.name for p in tmp_path.iterdir()] == ["curves.png"]


def test_side_by_side_shows_each_run_in_its_column_and_its_bars():
    sample = Sample(np.zeros((2, 3, 3), np.uint8), np.zeros((2, 3), np.uint8), "a")
    predicted = {"a": [np.full((2, 3), 1, np.uint8)], "b": [np.full((2, 3), 2, np.uint8)]}
    iou = {"a": [0.5, 0.25, None], "b": [0.75, 0.5, 0.25]}
    figure = plots.side_by_side([sample], predicted, iou, NAMES, PALETTE)
    pictures, bars = figure.axes[:-1], figure.axes[-1]
    assert [axes.get_title() for axes in pictures] == ["image", "truth", "a", "b"]
    for axes, c in zip(pictures[1:], (0, 1, 2)):
        assert tuple(axes.get_images()[0].get_array()[0, 0]) == tuple(PALETTE[c])
    heights = [bar.get_height() for bar in bars.patches]
    np.testing.assert_array_equal(heights, [0.5, 0.25, np.nan, 0.75, 0.5, 0.25])
