"""How far scores can be trusted: what they would be on resampled pictures."""

import numpy as np

from minisegnet.plots.figures import COLOURS, HATCHES, figure_of

_MIDDLE = (0.025, 0.975)


def resampled_scores(scores, label):
    """Histograms of the scores of two runs over resamples, and of their difference.

    `scores` maps the titles of two runs to their scores (R,) on the same R resamples; `label`
    names the score. The middle 95 % of the differences, second minus first, lie between the dashed
    lines.
    """
    (first, second), titles = scores.values(), list(scores)
    figure, ((apart, paired),) = figure_of(1, 2, 10.5, 3.6)
    edges = np.histogram_bin_edges(np.concatenate([first, second]), 40)
    for title, colour, hatch in zip(titles, COLOURS, HATCHES):
        apart.hist(scores[title], edges, label=title, color=colour, alpha=0.55, hatch=hatch,
                   edgecolor="white", linewidth=0.3)
    apart.set(xlabel=label, ylabel="resamples", title="each by itself")
    apart.legend(frameon=False)

    difference = np.asarray(second) - np.asarray(first)
    paired.hist(difference, 40, color="0.55", edgecolor="white", linewidth=0.3)
    for value in np.quantile(difference, _MIDDLE):
        paired.axvline(value, color="black", linestyle="--", linewidth=1)
    paired.axvline(0, color="black", linewidth=1.5)
    side = "right" if difference.mean() < 0 else "left"  # away from the axes' edge
    paired.annotate("no difference", (0, 1), xycoords=("data", "axes fraction"),
                    xytext=(-4 if side == "right" else 4, -4), textcoords="offset points",
                    ha=side, va="top", fontsize="small")
    paired.set(xlabel=f"{label}: {titles[1]} minus {titles[0]}", title="draw by draw")
    return figure
