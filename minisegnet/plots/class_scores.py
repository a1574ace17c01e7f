"""IoU, precision and recall per class of several runs: what a change gave, and what it took."""

import numpy as np

from minisegnet.plots.figures import COLOURS, figure_of

_HATCHES = ("", "///", "...", "xxx", "\\\\\\", "ooo", "|||")  # so that no bar needs its colour
_ABOVE_ZERO = 0.03  # where the cross of a score that there is not stands


def class_scores(scores, class_names, pixels, rare):
    """One row of bars per measure, a bar per run for each class, from frequent to rare.

    `scores` maps a run's title to {"IoU": (K,), "precision": (K,), ...}, nan where a score is
    undefined (the precision of a class that is never predicted): a cross stands there, and no bar.
    `pixels` (K,) are pixels per class, whose shares stand below the names; the classes in `rare`
    (K,) bool stand on grey. Raises ValueError for more than seven runs.
    """
    if len(scores) > len(COLOURS):
        raise ValueError(f"{len(scores)} runs; expected at most {len(COLOURS)}")
    order = np.argsort(-np.asarray(pixels), kind="stable")
    measures = list(next(iter(scores.values())))
    figure, rows = figure_of(len(measures), 1, 11, 0.9 + 2.1 * len(measures), sharex=True)
    width = 0.8 / len(scores)
    for axes, measure in zip(rows[:, 0], measures):
        for x, c in enumerate(order):
            if rare[c]:
                axes.axvspan(x - 0.5, x + 0.5, color="0.92", linewidth=0, zorder=0)
        undefined = []
        for i, (title, of_run) in enumerate(scores.items()):
            values = np.asarray(of_run[measure], float)[order]
            x = np.arange(len(order)) + (i - (len(scores) - 1) / 2) * width
            there = ~np.isnan(values)
            axes.bar(x[there], values[there], width, label=title, linewidth=1,
                     facecolor="white" if _HATCHES[i] else COLOURS[i], hatch=_HATCHES[i],
                     edgecolor=COLOURS[i])
            undefined += x[~there].tolist()
        if undefined:
            axes.plot(undefined, [_ABOVE_ZERO] * len(undefined), "x", color="0.2", markersize=5,
                      label="undefined: never predicted")
        axes.set(ylabel=measure, ylim=(0, 1.02), xlim=(-0.5, len(order) - 0.5))
        axes.set_axisbelow(True)
        axes.grid(axis="y", alpha=0.3)
    shares = np.asarray(pixels)[order] / np.sum(pixels)
    rows[-1, 0].set_xticks(range(len(order)), [f"{class_names[c]}\n{100 * share:.2g}%"
                                               for c, share in zip(order, shares)],
                           rotation=30, ha="right")
    labelled = {}
    for axes in rows[:, 0]:
        labelled.update((label, handle) for handle, label in
                        zip(*axes.get_legend_handles_labels()))
    # The cross comes last, wherever it was seen first.
    runs = [label for label in labelled if label in scores]
    labels = runs + [label for label in labelled if label not in scores]
    figure.legend([labelled[label] for label in labels], labels, loc="outside upper center",
                  ncols=min(4, len(labels)))
    return figure
