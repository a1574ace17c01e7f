"""What all pictures share: a figure without global state, pictures in rows, a legend, saving."""

import warnings

import numpy as np

from minisegnet.training.checkpoint import write_atomically


def figure_of(rows, columns, width, height, **kwargs):
    """Return a figure of `width` x `height` inches and its (rows, columns) array of axes."""
    # Figure instead of pyplot: no global state, no window, safe in threads.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **kwargs)


def save(figure, path, dpi=110):
    """Write `figure` as a PNG to `path`, whole or not at all."""
    with warnings.catch_warnings():
        # A class name in a script that the font lacks comes out as boxes; no need to say so.
        warnings.filterwarnings("ignore", message="Glyph")
        write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=dpi))


def show_pictures(axes, titles, rows):
    """Show rows of pictures (h, w, 3) uint8 in `axes` (rows, columns), a title on each column."""
    for axes_of_row, pictures in zip(axes, rows):
        for each, picture in zip(axes_of_row, pictures):
            each.imshow(picture, interpolation="nearest")
            each.set_axis_off()
    for each, title in zip(axes[0], titles):
        each.set_title(title)


def class_legend(figure, class_names, palette):
    """Put the names of the classes beside their colours below `figure`."""
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=np.asarray(colour) / 255, edgecolor="0.4", label=name)
               for name, colour in zip(class_names, palette)]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)),
                  fontsize="small")
