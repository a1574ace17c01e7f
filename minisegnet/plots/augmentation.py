"""What augmentation makes of a picture and its labels."""

import numpy as np

from minisegnet.datasets.palettes import VOID_COLOUR, colourise
from minisegnet.plots.figures import class_legend, figure_of

_SHARE_OF_LABELS = 0.5  # of the overlay's colour


def augmentations(rows, class_names, palette, ignore_index=255):
    """One row per title: a sample, then what became of it, under a see-through layer of labels.

    `rows` maps each row's title to its samples, the original first, which have `image`
    (H, W, 3) uint8 and `mask` (H, W) uint8. Ignored pixels are black. All rows are equally long.
    """
    columns = max(map(len, rows.values()))
    first = next(iter(rows.values()))[0]
    H, W = first.mask.shape
    figure, axes = figure_of(len(rows), columns, 11, 0.8 + len(rows) * 11 / columns * H / W)
    for row, (title, samples) in enumerate(rows.items()):
        for column, sample in enumerate(samples):
            axes[row, column].imshow(overlay(sample, palette, ignore_index),
                                     interpolation="nearest")
            axes[row, column].set(xticks=[], yticks=[])
        axes[row, 0].set_ylabel(title)
    axes[0, 0].set_title("original")
    class_legend(figure, class_names, palette)
    return figure


def overlay(sample, palette, ignore_index=255):
    """Return the image (H, W, 3) uint8 with its labels' colours laid over it; ignored is black."""
    colours = colourise(sample.mask, palette, ignore_index)
    mixed = (1 - _SHARE_OF_LABELS) * sample.image + _SHARE_OF_LABELS * colours
    mixed[sample.mask == ignore_index] = VOID_COLOUR
    return mixed.astype(np.uint8)
