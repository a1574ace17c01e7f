"""What an evaluation found: what classes are taken for, and what probabilities are worth."""

import numpy as np

from minisegnet.metrics import divide
from minisegnet.plots.figures import figure_of

_MOST_WITH_NUMBERS = 16  # classes; beyond it the numbers in the cells would be too small to read


def confusion(matrix, class_names):
    """A confusion matrix (K, K) with rows as shares of the true class, most frequent class first.

    The diagonal is the recall. A class without a true pixel has a grey row.
    """
    matrix = np.asarray(matrix)
    K = len(matrix)
    order = np.argsort(-matrix.sum(axis=1), kind="stable")
    matrix = matrix[np.ix_(order, order)]
    names = [class_names[c] for c in order]
    shares = divide(matrix, np.broadcast_to(matrix.sum(axis=1, keepdims=True), matrix.shape))

    side = min(12, max(5.5, 0.55 * K if K <= _MOST_WITH_NUMBERS else 0.3 * K + 2))
    figure, ((axes,),) = figure_of(1, 1, side + 1, side)
    # Most mistakes are small shares: the root makes them visible, and the bar says what is what.
    image = axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1)
    axes.set_facecolor("0.75")
    size = 10 if K <= 12 else 8.5 if K <= 24 else 7
    axes.set_xticks(range(K), names, rotation=45 if K <= 24 else 90, fontsize=size,
                    ha="right" if K <= 24 else "center", rotation_mode="anchor" if K <= 24
                    else "default")
    axes.set_yticks(range(K), names, fontsize=size)
    axes.set_xticks(np.arange(K + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(K + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="minor", length=0)
    axes.spines[:].set_visible(False)
    if K <= _MOST_WITH_NUMBERS:
        for row, column in np.argwhere(shares > 0.0005):
            axes.text(column, row, _percent(shares[row, column]), ha="center", va="center",
                      fontsize=8, color="white" if shares[row, column] > 0.4 else "black")
    axes.set(xlabel="predicted", ylabel="true, most frequent first",
             title="what each class is taken for" +
             (" (% of its true pixels)" if K <= _MOST_WITH_NUMBERS else ""))
    ticks = np.array([0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1])
    bar = figure.colorbar(image, ax=axes, shrink=0.7, label="share of the true class")
    bar.set_ticks(np.sqrt(ticks), labels=[f"{tick:.0%}" for tick in ticks])
    return figure


def _percent(share):
    whole = 0.0995 <= share < 0.995 or share == 1
    return f"{100 * share:.0f}" if whole else f"{100 * share:.1f}"


def reliability(calibration, class_names):
    """Observed share over predicted probability: the top label, then every class.

    Classes come most frequent first. The area of a point grows with the logarithm of its number
    of pixels.
    """
    order = np.argsort(-calibration.classes.frequency, kind="stable")
    panels = [(f"top label\nECE {calibration.top_label.ece[0]:.4f}", calibration.top_label, 0)]
    panels += [(_class_title(class_names[c], calibration.classes, c), calibration.classes, c)
               for c in order]
    columns = min(len(panels), 5) if len(panels) <= 20 else 6
    rows = -(-len(panels) // columns)
    figure, axes = figure_of(rows, columns, 2.3 * columns + 0.4, 2.6 * rows + 0.9, sharex=True,
                             sharey=True)
    for i, (panel, (title, of, row)) in enumerate(zip(axes.flat, panels)):
        count = of.count[row]
        filled = count > 0
        x, y = of.confidence[row][filled], of.observed[row][filled]
        colour = "C3" if of is calibration.top_label else "C0"
        panel.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--")
        panel.plot(x, y, color=colour, linewidth=1)
        area = 10 + 60 * np.log(count[filled]) / np.log(max(2, count.sum()))
        panel.scatter(x, y, s=area, zorder=3, color=colour, linewidth=0, clip_on=False)
        panel.set(xlim=(0, 1), ylim=(0, 1), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
        panel.set_box_aspect(1)
        panel.set_title(title, fontsize=8.5)
        panel.tick_params(labelbottom=i + columns >= len(panels), labelsize=8.5)
        panel.grid(alpha=0.3)
    for panel in axes.flat[len(panels):]:
        panel.set_axis_off()
    figure.suptitle("what probabilities p are worth: below the diagonal, a class is promised more "
                    "often than it comes\n(f: its share of the pixels)", fontsize=10.5)
    figure.supxlabel("predicted probability, mean of a bin", fontsize=10)
    figure.supylabel("share of the bin's pixels that are the class", fontsize=10)
    return figure


def _class_title(name, classes, c, most=24):
    frequency, mean = classes.frequency[c], classes.mean_probability[c]
    excess = f"mean p = {mean / frequency:.3g} f" if frequency > 0 else "not in the truth"
    name = name if len(name) <= most else name[:most - 1] + "\u2026"
    return f"{name}\nECE {classes.ece[c]:.4f}, {excess}"
