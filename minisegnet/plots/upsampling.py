"""Bilinear upsampling in pictures: who is read by whom, and labels that nobody drew."""

import numpy as np

from minisegnet.datasets.palettes import colourise
from minisegnet.plots.figures import COLOURS, MARKERS, class_legend, figure_of, show_pictures


def shares_and_gradients(matrices, received):
    """How each input pixel is read along a line, and what it is sent back on a map.

    `matrices` maps the name of a convention to its interpolation matrix (out_size, in_size), a
    line per column; `received` maps it to the gradient (H, W) of each input pixel where every
    output pixel sends 1.
    """
    figure, axes = figure_of(2, len(matrices), 5.5 * len(matrices), 6.6, height_ratios=(1, 1.15))
    highest = max(gradient.max() for gradient in received.values())
    for (name, matrix), line, picture in zip(matrices.items(), *axes):
        for i, column in enumerate(matrix.T):
            read = np.flatnonzero(column)
            line.plot(read, column[read], color=COLOURS[i % len(COLOURS)],
                      marker=MARKERS[i % len(MARKERS)], markersize=4, linewidth=1.2,
                      label=f"{i}: {column.sum():.3g}")
        line.set(title=name, xlabel="output pixel", ylabel="share of the input pixel",
                 xlim=(-0.5, len(matrix) - 0.5), ylim=(0, 1.38))
        line.legend(title="input pixel: sum of its shares", title_fontsize="small", fontsize=7.5,
                    ncols=4, loc="upper center")
        line.grid(alpha=0.3)
        _numbered(picture, received[name], highest)
    axes[1, 0].set_ylabel("every output pixel sends 1:\nwhat the input pixels receive")
    return figure


def _numbered(axes, values, highest):
    """Draw values (H, W) from 0 to `highest` as a map with a number in every cell."""
    axes.imshow(values, cmap="cividis", vmin=0, vmax=highest, interpolation="nearest")
    for (i, j), value in np.ndenumerate(values):
        axes.text(j, i, f"{value:.3g}", ha="center", va="center", fontsize=9,
                  color="black" if value > 0.55 * highest else "white")
    axes.set(xticks=(), yticks=())


def labels_resized(rows, titles, class_names, palette):
    """Rows of masks (H, W) in their colours, and last in each row where they are wrong.

    Each row is a list of masks and, last, a bool (H, W) array: True is drawn red on grey.
    """
    figure, axes = figure_of(len(rows), len(titles), 3.6 * len(titles), 2.75 * len(rows) + 0.9)
    pictures = []
    for *masks, wrong in rows:
        marked = np.full((*wrong.shape, 3), 235, np.uint8)
        marked[wrong] = (200, 0, 0)
        pictures.append([*(colourise(np.asarray(mask, np.uint8), palette) for mask in masks),
                         marked])
    show_pictures(axes, titles, pictures)
    class_legend(figure, class_names, palette)
    return figure
