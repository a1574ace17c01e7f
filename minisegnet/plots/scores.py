"""What a knob does to the scores: the means on the left, each class on the right."""

import numpy as np

from minisegnet.plots.figures import figure_of

# Okabe and Ito's colours without yellow; line and marker differ as well.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000", "#56b4e9", "#e69f00")
_LINE_STYLES = ("-", "--", "-.", ":")
_MARKERS = "osD^vPX*"


def scores_over_knob(values, means, per_class, *, knob):
    """Scores over the values (V,) of a knob, which `knob` names.

    `means` and `per_class` map a label to (V,); nan, a score that there is not, leaves a gap.
    Raises ValueError where one has another length than `values`.
    """
    figure, ((left, right),) = figure_of(1, 2, 12, 4.8)
    for axes, curves, title in ((left, means, "one number for all classes"),
                                (right, per_class, "IoU per class, most frequent first")):
        for i, (label, scores) in enumerate(curves.items()):
            if len(scores) != len(values):
                raise ValueError(f"the curve {label!r} has {len(scores)} points for "
                                 f"{len(values)} values of the knob")
            axes.plot(values, np.asarray(scores, np.float64), label=label, linewidth=2,
                      markersize=5, color=_COLOURS[i % len(_COLOURS)],
                      linestyle=_LINE_STYLES[i % len(_LINE_STYLES)],
                      marker=_MARKERS[i % len(_MARKERS)])
        axes.set(title=title, xlabel=knob, ylim=(-0.02, 1.02))
        axes.grid(alpha=0.3)
    left.legend(loc="lower left")
    right.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    return figure
