"""Pictures: colours that stand for the right class, errors that mark the right pixels."""

import numpy as np
import pytest
from PIL import Image

from minisegnet import plots
from minisegnet.datasets import Sample
from minisegnet.plots.figures import LOSS_STYLES, styles_of

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


def test_compared_curves_are_the_mean_of_the_seeds_in_their_range():
    runs = {"a": [[record(1), record(2, mean_iou=0.2, val_loss=0.9)],
                  [record(1), record(2, mean_iou=0.6, val_loss=0.5)]],
            "b": [[record(1), {"epoch": 2, "train_loss": 0.5}, record(3)]]}
    figure = plots.compared_curves(runs, [0, 2])
    mean, of_rare, loss_a, loss_b = figure.axes
    for axes, a, b in ((mean, [0.3, 0.4], [0.3, 0.3]), (of_rare, [0.9, 0.9], [0.9, 0.9])):
        np.testing.assert_allclose(axes.lines[0].get_ydata(), a)
        np.testing.assert_allclose(axes.lines[1].get_ydata(), b)
        assert list(axes.lines[1].get_xdata()) == [1, 3]  # validated every second epoch
        (band,) = axes.collections  # of a only: b has one seed
        assert axes.lines[0].get_color() != axes.lines[1].get_color()
        assert axes.lines[0].get_marker() != axes.lines[1].get_marker()
    low, high = mean.collections[0].get_datalim(mean.transData).intervaly
    assert (low, high) == pytest.approx((0.2, 0.6))
    train, val = loss_a.lines
    assert (train.get_label(), val.get_label()) == ("train", "validation")
    np.testing.assert_allclose(train.get_ydata(), [1, 0.5])
    np.testing.assert_allclose(val.get_ydata(), [1.2, 0.7])
    assert list(loss_b.lines[0].get_xdata()) == [1, 2, 3]
    assert list(loss_b.lines[1].get_xdata()) == [1, 3]


def test_compared_curves_leave_out_epochs_that_only_some_seeds_have():
    logs = [record(1), record(2)], [record(1), record(2, mean_iou=0.5), record(3)]
    for seeds in (logs, logs[::-1]):
        lines = plots.compared_curves({"a": seeds}, [0]).axes[0].lines
        assert list(lines[0].get_xdata()) == [1, 2]


def test_an_outlier_does_not_flatten_the_losses_but_a_run_above_training_is_seen():
    outlier = [record(1, val_loss=100.0), *(record(e, val_loss=1.0) for e in range(2, 6))]
    above = [record(e, val_loss=10.0) for e in range(1, 6)]
    figure = plots.compared_curves({"a": [outlier], "b": [above]}, [0])
    assert 1 < figure.axes[2].get_ylim()[1] < 5
    assert 10 < figure.axes[3].get_ylim()[1] < 15


def test_compared_classes_go_from_frequent_to_rare_with_the_range_over_seeds():
    iou = {"a": np.array([[0.2, 0.9, np.nan], [0.4, 0.9, np.nan]]),
           "b": np.array([[0.3, 0.8, 0.0]])}
    figure = plots.compared_classes(iou, NAMES, [90, 900, 10], rare=[0])
    (axes,) = figure.axes
    labels = [label.get_text().split("\n") for label in axes.get_xticklabels()]
    assert labels == [["house", "90%"], ["ground", "9%"], ["pool", "1%"]]
    bars = {bars.get_label(): bars for bars in axes.containers if bars.get_label() in iou}
    np.testing.assert_allclose([bar.get_height() for bar in bars["a"]], [0.9, 0.3, np.nan])
    np.testing.assert_allclose([bar.get_height() for bar in bars["b"]], [0.8, 0.3, 0.0])
    assert bars["b"][2].get_linewidth() > 0  # a line where the IoU is 0
    (lines,) = axes.collections  # the error bars of a: b has one seed
    np.testing.assert_allclose([segment[:, 1] for segment in lines.get_segments()[:2]],
                               [[0.9, 0.9], [0.2, 0.4]])
    grey = [patch.get_x() for patch in axes.patches if patch.get_width() == 1]
    assert grey == [0.5]  # behind the ground alone


def test_where_no_class_is_rare_no_picture_speaks_of_them():
    axes = plots.compared_curves({"a": [[record(1)], [record(1)]]}, []).axes
    assert [each.get_title() for each in axes] == ["mean IoU, validation", "loss: a"]
    figure = plots.compared_classes({"a": np.full((1, 3), 0.5)}, NAMES, [4, 3, 3], [])
    assert "grey" not in figure.legends[0].get_title().get_text()
    assert not [patch for patch in figure.axes[0].patches if patch.get_width() == 1]


def test_many_runs_of_many_classes_are_drawn_in_rows_and_told_apart():
    iou = {f"a run of a rather long name {i}": np.full((1, 30), 0.5) for i in range(9)}
    names = [f"class {c}" for c in range(30)]
    figure = plots.compared_classes(iou, names, np.arange(30), rare=range(10))
    shown = [label.get_text().split("\n")[0] for axes in figure.axes
             for label in axes.get_xticklabels()]
    assert shown == names[::-1] and len(figure.axes) > 2
    looks = {(bars[0].get_facecolor(), bars[0].get_edgecolor(), bars[0].get_hatch())
             for bars in figure.axes[0].containers}
    assert len(looks) == 9
    figure = plots.compared_curves({title: [[record(1)]] for title in iou}, [0])
    # Of every pattern of dashes matplotlib says "--".
    looks = {(line.get_color(), line.get_linestyle(), line.get_marker())
             for line in figure.axes[0].lines}
    assert len(looks) == 9
    assert [axes.get_title() for axes in figure.axes if axes.axison][-1].endswith("name 8")


def test_grid_shows_each_run_in_its_column_and_keeps_ignored_pixels_black():
    mask = np.array([[0, 1, 255]], np.uint8)
    sample = Sample(np.full((2, 6, 3), 9, np.uint8), mask, "a")
    predicted = {"a": [mask * 0 + 1, mask * 0], "b": [mask * 0 + 2, mask]}
    axes = plots.grid([sample, sample], predicted, NAMES, PALETTE).axes
    assert [each.get_title() for each in axes] == ["image", "truth", "a", "b", *[""] * 4]
    image, truth, a, b, _, _, a2, b2 = (
        np.asarray(each.get_images()[0].get_array()) for each in axes)
    np.testing.assert_array_equal(image, sample.image)
    for picture in (truth, b2):
        np.testing.assert_array_equal(picture[0], [*PALETTE[:2], (0, 0, 0)])
    assert (a == PALETTE[1]).all() and (b == PALETTE[2]).all() and (a2 == PALETTE[0]).all()


def pictures(*labels):
    return [Sample(np.zeros((2, 3, 3), np.uint8), np.array([[*each, 0, 0, 0][:3]], np.uint8),
                   str(i)) for i, each in enumerate(labels)]


@pytest.mark.parametrize("options, expected", [
    ({}, "0"), ({"classes": [2]}, "3"), ({"classes": [2, 1]}, "31"),
    ({"classes": [2, 1], "count": 4}, "3145"),  # each in turn, none twice
    ({"classes": [2, 1], "count": 9}, "3145602"),  # then any
    ({"classes": [2], "count": 3, "apart": 2}, "354"),  # apart as long as there are such
    ({"classes": [9], "count": 1}, "0")])
def test_pictures_with_rare_classes_are_found(options, expected):
    dataset = pictures([0], [1], [0], [1, 2], [2], [1, 2], [1])
    options = {"classes": [], "count": len(options.get("classes", [0])), **options}
    found = plots.pictures_with(dataset, **options)
    assert "".join(sample.name for sample in found) == expected


def test_a_loss_looks_the_same_beside_whatever_it_stands():
    alone = styles_of(["focal"])["focal"]
    for titles in (["ce", "focal"], ["tversky", "focal:sqrt", "my run"], ["focal:enet", "focal"]):
        styles = styles_of(titles)
        of_focal = styles["focal" if "focal" in titles else "focal:sqrt"]
        assert of_focal == alone == {**LOSS_STYLES["focal"], "hatch": ""}
        assert len({(each["color"], each["linestyle"]) for each in styles.values()}) == len(titles)


def test_what_shares_a_colour_differs_in_line_marker_and_hatching():
    one, other = styles_of(["ce", "ohem"]).values()
    assert one["color"] == other["color"]
    assert all(one[key] != other[key] for key in ("linestyle", "marker", "hatch"))


def test_many_runs_are_styled_and_none_has_the_style_of_a_loss_that_is_there():
    titles = ["dice", *(f"run {i}" for i in range(20))]
    styles = styles_of(titles)
    assert len({(each["color"], each["linestyle"]) for each in styles.values()}) == 21
    assert len(styles_of([f"run {i}" for i in range(60)])) == 60
