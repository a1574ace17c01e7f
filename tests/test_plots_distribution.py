"""The pictures of an imbalance: which class has which bar, and which weight."""

import io

import numpy as np

from minisegnet.plots.distribution import class_distribution, weights_compared

NAMES = ("rare", "sky", "absent", "road")
SHARES = {"train": np.array([0.001, 0.299, 0.0, 0.7]), "val": np.array([0.1, 0.2, 0.3, 0.4])}
IMAGES = {"train": np.array([3, 90, 0, 100]), "val": np.array([1, 1, 1, 1])}
PALETTE = np.array([[10, 0, 0], [0, 20, 0], [0, 0, 30], [40, 40, 0]], np.uint8)


def labels(ticks):
    return [tick.get_text() for tick in ticks]


def test_bars_stand_in_the_order_of_the_shares_and_in_the_classes_colours():
    figure = class_distribution(SHARES, IMAGES, NAMES, PALETTE)
    axes, = figure.axes
    assert axes.get_xscale() == "log" and axes.yaxis_inverted()
    assert labels(axes.get_yticklabels()) == ["road", "sky", "rare", "absent"]
    assert [bar.get_width() for bar in axes.patches] == [0.7, 0.299, 0.001, 0]
    colours = [np.rint(255 * np.array(bar.get_facecolor()[:3])).tolist() for bar in axes.patches]
    assert colours == PALETTE[[3, 1, 0, 2]].tolist()
    marks, = axes.lines
    assert marks.get_xdata().tolist() == [0.4, 0.2, 0.1, 0.3]
    assert axes.get_xlim()[0] < 0.001
    beside, = axes.child_axes
    assert labels(beside.get_yticklabels()) == [
        "70.00% in 100 images", "29.90% in 90 images", "0.10% in 3 images", "absent"]


def test_weights_are_relative_to_the_most_frequent_class():
    weights = {"none": [1, 1, 1, 1], "steep": [200.0, 8.0, 0.0, 2.0]}
    axes, = weights_compared(weights, SHARES["train"], NAMES).axes
    assert axes.get_yscale() == "log"
    assert [line.get_ydata().tolist() for line in axes.lines] == [[1, 1, 1], [1, 4, 100]]
    assert [label.split()[0] for label in labels(axes.get_xticklabels())] == [
        "road", "sky", "rare"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "none  1 : 1", "steep  100 : 1"]


def test_many_classes_and_one_split_can_be_drawn(rng):
    K = 70
    shares = rng.dirichlet(np.full(K, 0.2))
    names = [f"class {k}" for k in range(K)]
    palette = rng.integers(0, 256, (K, 3)).astype(np.uint8)
    for figure in (class_distribution({"train": shares}, {"train": np.ones(K, int)}, names,
                                      palette),
                   weights_compared({"inverse": 1 / shares}, shares, names)):
        figure.savefig(io.BytesIO(), dpi=40)
