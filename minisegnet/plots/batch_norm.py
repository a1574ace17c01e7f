"""Batch norm in pictures: two formulas for a variance, and what of a gradient gets through."""

import numpy as np

from minisegnet.plots.figures import figure_of

_STYLES = (("#d55e00", "s", "--"), ("#0072b2", "o", "-"), ("#009e73", "D", ":"))


def variance_formulas(ratios, errors, deviations):
    """The error of each formula for the variance, and the deviation of what it normalises.

    `ratios` (M,) are means as multiples of the deviation; `errors` maps the name of a formula to
    its relative errors (M, draws), and `deviations` to the deviations (M, draws) of the normalised
    values, which should be 1: nan where the variance came out negative. A mark is a draw, the line
    the median of all errors.
    """
    figure, ((left, right),) = figure_of(1, 2, 11, 4.6)
    for i, name in enumerate(errors):
        colour, marker, line = _STYLES[i % len(_STYLES)]
        error = np.maximum(np.abs(errors[name]), 1e-10)  # exact ones, too, have a mark
        x = np.broadcast_to(np.asarray(ratios, float)[:, None], error.shape)
        left.plot(ratios, np.median(error, axis=1), line, color=colour, marker=marker, label=name)
        left.scatter(x, error, s=10, color=colour, marker=marker, alpha=0.4)
        finite = np.isfinite(deviations[name])
        right.scatter(x[finite], deviations[name][finite], s=26, color=colour, marker=marker,
                      facecolor=colour if i else "none", label=name)
        if not finite.all():
            right.scatter(x[~finite], np.full((~finite).sum(), 0.02), s=46, color=colour,
                          marker="x", zorder=3, transform=right.get_xaxis_transform(),
                          label="nan: the root of a negative variance")
    left.set(yscale="log", ylabel="relative error", title="the variance")
    right.set(yscale="log", ylabel="their deviation: should be 1", title="the normalised values")
    right.axhline(1, color="0.6", linewidth=1, zorder=0)
    for axes in (left, right):
        axes.set(xscale="log", xlabel="mean / deviation of the channel")
        axes.grid(alpha=0.3)
    left.legend()
    right.set_ylim(0.01, 1000)
    right.legend(loc="upper left", fontsize="small")
    return figure


def gradient_that_passes(values, shares):
    """The share of the upstream gradient that a batch norm lets through, by values per channel.

    `values` (M,) are numbers of values, `shares` (M,) the share of the squared gradient measured;
    the line is (n - 2) / n.
    """
    figure, ((axes,),) = figure_of(1, 1, 7.5, 4)
    n = np.geomspace(2, max(max(values), 4), 200)
    axes.plot(n, (n - 2) / n, color="0.5", label="(n - 2) / n")
    axes.plot(values, shares, "o", color="#0072b2", markersize=7, label="measured")
    for x, share in zip(values, shares):
        axes.annotate(f"{share:.3f}", (x, share), xytext=(7, -12), textcoords="offset points",
                      fontsize=9)
    axes.set(xscale="log", xlabel="values per channel, n", ylabel="share of the squared gradient",
             xlim=(1.7, 1.7 * n[-1]), ylim=(-0.1, 1.05),
             title="what a random gradient keeps on its way back")
    axes.set_xticks(list(values), [str(value) for value in values])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return figure
