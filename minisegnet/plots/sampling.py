"""What samplers put into an epoch, class by class."""

import numpy as np

from minisegnet.plots.figures import figure_of

# Okabe and Ito's colours without yellow, and marks, so that no mark needs its colour.
_MARKS = (("o", "#000000"), ("s", "#d55e00"), ("D", "#0072b2"), ("^", "#009e73"), ("v", "#cc79a7"))


def met_per_epoch(windows, shares, class_names):
    """Marks on log axes: how many windows of an epoch show each class, and its share of pixels.

    `windows` and `shares` map each sampler, at most five, to (K,); the most frequent class of the
    first sampler stands on top. A class that an epoch lacks has no mark there. ValueError unless
    both have the same samplers.
    """
    if list(windows) != list(shares) or len(windows) > len(_MARKS):
        raise ValueError(f"windows and shares need the same samplers, at most {len(_MARKS)}; got "
                         f"{list(windows)} and {list(shares)}")
    K = len(class_names)
    order = np.argsort(-np.asarray(next(iter(shares.values()))), kind="stable")
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, ((left, right),) = figure_of(1, 2, 12, 1.6 + 0.34 * K, sharey=True)
    for panel, of_samplers in ((left, windows), (right, shares)):
        # Marks beside each other, so that none hides another.
        offsets = np.linspace(-0.27, 0.27, len(of_samplers)) if len(of_samplers) > 1 else [0.0]
        for (marker, color), offset, (name, values) in zip(_MARKS, offsets, of_samplers.items()):
            values = np.asarray(values, float)[order]
            panel.plot(values[values > 0], np.arange(K)[values > 0] + offset, marker, color=color,
                       markersize=5, label=name)
        panel.hlines(np.arange(K - 1) + 0.5, 0, 1, transform=panel.get_yaxis_transform(),
                     color="0.9", linewidth=0.8)
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.grid(axis="x", alpha=0.3)
        panel.tick_params(axis="y", length=0)
    left.set_yticks(range(K), [class_names[k] for k in order])
    left.set(ylim=(K - 0.4, -0.6), xlabel="windows of an epoch that show the class (log axis)")
    left.xaxis.set_major_formatter("{x:,g}")
    right.set(xlabel="share of the pixels of an epoch (log axis)")
    right.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.6g} %")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure
