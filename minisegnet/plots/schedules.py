"""Courses of the learning rate, and what a training makes of them."""

import numpy as np

from minisegnet.plots.figures import figure_of
from minisegnet.plots.optimizers import STYLES


def courses(rates, unit="step", marks=()):
    """One small panel for each course of the learning rate.

    `rates` maps each title to (T,), the rate at every step; `unit` is what is counted. At `marks`,
    steps, each panel that reaches so far has a dashed line.
    """
    columns = min(4, len(rates))
    rows = -(-len(rates) // columns)
    figure, axes = figure_of(rows, columns, 12, 0.4 + 2.3 * rows)
    for panel, (title, of_steps) in zip(axes.flat, rates.items()):
        panel.plot(of_steps, color=STYLES[0]["color"])
        for mark in marks:
            if mark < len(of_steps):
                panel.axvline(mark, color="0.5", linestyle="--", linewidth=1)
        panel.set(title=title, ylim=(0, None))
        panel.grid(alpha=0.3)
    for panel in axes.flat[len(rates):]:
        panel.set_axis_off()
    for panel in axes[:, 0]:
        panel.set_ylabel("learning rate")
    for column in range(columns):
        lowest = max(row for row in range(rows) if row * columns + column < len(rates))
        axes[lowest, column].set_xlabel(unit)
    return figure


def rates_and_losses(groups, know_nothing=None, average=8):
    """Above the learning rate, below the loss, over the steps of short trainings.

    `groups` maps the title of each column to {label: (rates (T,), losses (T,))}, the same labels
    in all, at most five. The losses are means over `average` steps up to each. `know_nothing` is
    the loss of equal probabilities, a dotted line.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, axes = figure_of(2, len(groups), 12, 6.2, sharex="col", height_ratios=(1, 1.7))
    for below in axes[1, 1:]:
        below.sharey(axes[1, 0])
    for (above, below), (title, runs) in zip(axes.T, groups.items()):
        for style, (label, (rates, losses)) in zip(STYLES, runs.items()):
            above.plot(rates, label=label, **style)
            below.plot(*_averaged(np.asarray(losses), average), **style)
        if know_nothing is not None:
            below.axhline(know_nothing, color="0.4", linestyle=":", linewidth=1)
            below.annotate("all classes equally likely", (0.98, know_nothing), (0, 3),
                           xycoords=("axes fraction", "data"), textcoords="offset points",
                           ha="right", fontsize="small")
        above.set(title=title, ylim=(0, None))
        below.set(xlabel="step", yscale="log")
        below.yaxis.set_major_formatter("{x:g}")
        below.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        below.yaxis.set_minor_formatter(NullFormatter())
        for panel in (above, below):
            panel.grid(alpha=0.3)
    axes[0, 0].set_ylabel("learning rate")
    axes[1, 0].set_ylabel(f"loss, mean of {average} steps")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), handlelength=4)
    return figure


def _averaged(losses, average):
    """Return the steps, and the mean of the `average` losses up to each (fewer at first)."""
    steps = np.arange(len(losses))
    sums = np.concatenate([[0.0], losses.cumsum()])
    first = np.maximum(0, steps + 1 - average)
    return steps, (sums[steps + 1] - sums[first]) / (steps + 1 - first)
