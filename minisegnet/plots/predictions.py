"""Predictions beside the truth."""

import numpy as np

from minisegnet.datasets.palettes import VOID_COLOUR, colourise
from minisegnet.plots.figures import class_legend, figure_of, show_pictures


def predictions(samples, predicted, class_names, palette, ignore_index=255):
    """One row per sample: image, truth, prediction, errors (red; ignored pixels black).

    `samples` have `image` (H, W, 3) uint8 and `mask` (h, w) uint8; `predicted` are (h, w).
    """
    H, W = samples[0].mask.shape
    figure, axes = figure_of(len(samples), 4, 11, 0.5 + len(samples) * 2.7 * H / W)
    rows = []
    for sample, prediction in zip(samples, predicted):
        wrong = (prediction != sample.mask) & (sample.mask != ignore_index)
        errors = np.full((*sample.mask.shape, 3), 235, np.uint8)
        errors[wrong] = (200, 30, 30)
        errors[sample.mask == ignore_index] = VOID_COLOUR
        rows.append([sample.image, colourise(sample.mask, palette, ignore_index),
                     colourise(prediction, palette, ignore_index), errors])
    show_pictures(axes, ("image", "truth", "prediction", "errors"), rows)
    class_legend(figure, class_names, palette)
    return figure
