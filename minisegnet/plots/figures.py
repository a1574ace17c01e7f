"""What all pictures share: a figure without global state, pictures in rows, a legend, saving."""

import base64
import io
import sys
import warnings
from collections import Counter
from pathlib import Path

import numpy as np

from minisegnet.training.checkpoint import write_atomically

# Okabe and Ito's colours, which colour-blind readers tell apart, without their yellow: it is lost
# on white. A marker, a line style or a hatching besides tells things apart without any colour.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = "osD^vPX"
HATCHES = ("", "///", "...", "xxx")

# One style per loss, the same in every picture.
LOSS_STYLES = {
    name: {"color": color, "linestyle": linestyle, "marker": marker}
    for name, color, linestyle, marker in (
        ("ce", "#0072b2", "-", "o"),
        ("weighted", "#d55e00", "--", "s"),
        ("focal", "#009e73", "-.", "D"),
        ("dice", "#cc79a7", ":", "^"),
        ("combined", "#e69f00", (0, (6, 1, 1, 1, 1, 1)), "v"),
        ("tversky", "#56b4e9", (0, (8, 2)), "P"),
        ("lovasz", "#000000", (0, (2, 1)), "X"),
        ("ohem", "#0072b2", (0, (4, 2, 1, 2)), "*"),
        ("logit_adjusted", "#d55e00", (0, (1, 2)), "p"),
    )}

# For lines of any other kind: seven that differ in colour, line and marker.
STYLES = tuple(LOSS_STYLES.values())[:len(COLOURS)]
SCREEN_DPI = 80


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


def styles_of(titles):
    """Return {title: colour, line style, marker and hatch as a dict} of what stands side by side.

    A loss has its own style, as "focal" or, where that is not there, "focal:sqrt", with a scheme
    of weights; all else has one that is left. Where a colour comes twice, the second has a
    hatching.
    """
    losses = [title.partition(":")[0] for title in titles]
    left = [style for name, style in LOSS_STYLES.items() if name not in losses]
    taken = {(style["color"], style["linestyle"]) for style in LOSS_STYLES.values()}
    left += [{"color": colour, "linestyle": line, "marker": marker}
             for line in (":", "--", "-") for colour, marker in zip(COLOURS, MARKERS)
             if (colour, line) not in taken]
    styles, times = {}, Counter()
    for i, (title, loss) in enumerate(zip(titles, losses)):
        is_the_loss = title == loss or loss not in titles and loss not in losses[:i]
        if loss in LOSS_STYLES and is_the_loss:
            style = LOSS_STYLES[loss]
        elif left:
            style = left.pop(0)
        else:
            style = LOSS_STYLES["ce"]  # after two dozen there is nothing left that differs
        hatch = HATCHES[times[style["color"]] % len(HATCHES)]
        times[style["color"]] += 1
        styles[title] = {**style, "hatch": hatch}
    return styles


def show(figure, name):
    """Show `figure` below a notebook's cell; elsewhere write it to runs/lessons/NAME.png."""
    if "ipykernel" in sys.modules:
        from IPython.display import display

        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=SCREEN_DPI)
        display({"image/png": base64.b64encode(file.getvalue()).decode()}, raw=True,
                metadata={"name": name})
        return
    path = Path("runs", "lessons", f"{name}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    save(figure, path, SCREEN_DPI)
    print(f"picture: {path}")


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
