"""How the pixels of a data set spread over its classes, and what weights make of that."""

import numpy as np

from minisegnet.plots.figures import figure_of
from minisegnet.tables import percent_text, ratio_text

# Okabe and Ito's colours without yellow, and marks, so that no line needs its colour.
_COLOURS = ("#000000", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MARKERS = "_^osDvP"
_MARK_NAMES = ("diamonds", "circles")


def class_distribution(shares, images, class_names, palette):
    """Bars of the classes' shares of the valid pixels on a log axis, most frequent on top.

    `shares` and `images` map the name of a split to (K,): share of its valid pixels, number of its
    images with the class. The bar in the class's colour (`palette`, (K, 3) uint8) is the first
    split's; the others are marks. A class that a split lacks has neither there.
    """
    first, *others = shares
    K = len(class_names)
    order = np.argsort(-np.asarray(shares[first]), kind="stable")
    positive = np.concatenate([np.asarray(each) for each in shares.values()])
    positive = positive[positive > 0]
    low = 10 ** np.floor(np.log10(positive.min() / 2))
    figure, ((axes,),) = figure_of(1, 1, 9, 1.4 + (0.3 if K <= 24 else 0.22) * K)
    # On a log axis the length of a bar says nothing, only its end does: they all start at the
    # axis's end.
    axes.barh(range(K), np.maximum(np.asarray(shares[first])[order], 0), 0.72,
              color=np.asarray(palette)[order] / 255, edgecolor="0.25", linewidth=0.8)
    for split, marker in zip(others, "Do"):
        there = np.asarray(shares[split])[order] > 0
        axes.plot(np.asarray(shares[split])[order][there], np.arange(K)[there], marker,
                  color="white", markeredgecolor="black", markersize=6, label=split)
    axes.set_xscale("log")
    axes.set(xlim=(low, 1), ylim=(K - 0.4, -0.6), xlabel="share of the valid pixels (log axis)")
    axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.6g} %")
    axes.set_yticks(range(K), [class_names[k] for k in order])
    beside = axes.secondary_yaxis("right")
    beside.set_yticks(range(K), [
        f"{percent_text(shares[first][k])} in {images[first][k]} images" if images[first][k]
        else "absent" for k in order])
    beside.tick_params(length=0)
    axes.tick_params(axis="y", length=0)
    axes.set_axisbelow(True)
    axes.grid(axis="x", alpha=0.4)
    marks = "".join(f", {name}: {split}" for split, name in zip(others, _MARK_NAMES))
    axes.set_title(f"how the pixels spread over the classes (bars: {first}{marks})", fontsize=11)
    return figure


def weights_compared(weights, frequency, class_names):
    """Lines of the weights by several schemes on a log axis, from the most frequent class down.

    `weights` maps a scheme to (K,), `frequency` (K,) are shares of the pixels. All are divided by
    the weight of the most frequent class, for it is ratios that a mean over weighted pixels keeps.
    Classes without pixels are left out.
    """
    frequency = np.asarray(frequency)
    order = np.argsort(-frequency, kind="stable")
    order = order[frequency[order] > 0]
    K = len(order)
    figure, ((axes,),) = figure_of(1, 1, min(20, max(8, 2 + 0.5 * K)), 5)
    for i, (scheme, of_classes) in enumerate(weights.items()):
        relative = np.asarray(of_classes)[order] / of_classes[order[0]]
        axes.plot(range(K), relative, marker=_MARKERS[i % len(_MARKERS)], markersize=6,
                  color=_COLOURS[i % len(_COLOURS)],
                  label=f"{scheme}  {ratio_text(relative.max() / relative.min())} : 1")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda weight, _: f"{weight:,.4g}")
    axes.set_xticks(range(K), [f"{class_names[k]}{chr(10) if K <= 24 else '  '}"
                               f"{percent_text(frequency[k])}" for k in order], fontsize=9,
                    rotation=45 if K <= 24 else 90, ha="right" if K <= 24 else "center")
    axes.set(ylabel=f"times the weight of {class_names[order[0]]}",
             title="how much more a pixel counts, by scheme")
    axes.grid(alpha=0.3)
    axes.legend(title="scheme, heaviest : lightest")
    return figure
