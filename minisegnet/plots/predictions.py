"""Predictions beside the truth, of one run or of several."""

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


def side_by_side(samples, predicted, iou, class_names, palette, ignore_index=255):
    """Several runs on the same samples: image, truth, one column of predictions per run; IoUs.

    `predicted` maps a run's title to its predictions, one (h, w) per sample; `iou` maps the same
    titles to the IoU per class (K,).
    """
    from matplotlib.figure import Figure

    H, W = samples[0].mask.shape
    columns = 2 + len(predicted)
    pictures_height = len(samples) * 11 / columns * H / W + 1
    figure = Figure(figsize=(11, pictures_height + 3), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(pictures_height, 3))
    axes = upper.subplots(len(samples), columns, squeeze=False)
    for row, sample in enumerate(samples):
        pictures = [sample.image] + [
            colourise(mask, palette, ignore_index)
            for mask in (sample.mask, *(masks[row] for masks in predicted.values()))]
        for column, (title, picture) in enumerate(zip(("image", "truth", *predicted), pictures)):
            axes[row, column].imshow(picture, interpolation="nearest")
            axes[row, column].set_axis_off()
            if row == 0:
                axes[row, column].set_title(title)
    class_legend(upper, class_names, palette)

    bars = lower.subplots()
    width = 0.8 / len(iou)
    for i, (title, values) in enumerate(iou.items()):
        values = np.asarray(values, float)
        bars.bar(np.arange(len(values)) + (i - (len(iou) - 1) / 2) * width, values, width,
                 label=f"{title}: mean {np.nanmean(values):.2f}")
    bars.set_xticks(range(len(class_names)), class_names, rotation=30, ha="right")
    bars.set(ylabel="IoU", ylim=(0, 1), xlim=(-0.6, len(class_names) - 0.4))
    bars.grid(axis="y", alpha=0.3)
    bars.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(iou), frameon=False)
    return figure
