"""Predictions beside the truth."""

import numpy as np

from minisegnet.datasets.palettes import VOID_COLOUR, colourise
from minisegnet.plots.figures import class_legend, figure_of


def predictions(samples, predicted, class_names, palette, ignore_index=255):
    """One row per sample: image, truth, prediction, errors (red; ignored pixels black).

    `samples` have `image` (H, W, 3) uint8 and `mask` (h, w) uint8; `predicted` are (h, w).
    """
    titles = ("image", "truth", "prediction", "errors")
    H, W = samples[0].mask.shape
    figure, axes = figure_of(len(samples), 4, 11, 0.5 + len(samples) * 2.7 * H / W)
    for row, (sample, prediction) in enumerate(zip(samples, predicted)):
        wrong = (prediction != sample.mask) & (sample.mask != ignore_index)
        errors = np.full((*sample.mask.shape, 3), 235, np.uint8)
        errors[wrong] = (200, 30, 30)
        errors[sample.mask == ignore_index] = VOID_COLOUR
        pictures = (sample.image, colourise(sample.mask, palette, ignore_index),
                    colourise(prediction, palette, ignore_index), errors)
        for column, picture in enumerate(pictures):
            axes[row, column].imshow(picture, interpolation="nearest")
            axes[row, column].set_axis_off()
            if row == 0:
                axes[row, column].set_title(titles[column])
    class_legend(figure, class_names, palette)
    return figure
