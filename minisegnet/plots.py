"""Every picture: functions that take data and return a matplotlib figure."""

import warnings

import numpy as np

from minisegnet.datasets.palettes import VOID_COLOUR, colourise
from minisegnet.training.checkpoint import write_atomically

# matplotlib's default cycle has ten colours; further classes repeat them in another line style.
_LINE_STYLES = ("-", "--", ":", "-.")


def _figure(rows, columns, width, height, **kwargs):
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


def curves(log, class_names):
    """Losses, mean IoU, active classes and per-class IoU over the epochs of a run's log."""
    figure, ((losses, mean), (active, per_class)) = _figure(2, 2, 11, 7.5)
    epochs = [record["epoch"] for record in log]
    validated = [record for record in log if record.get("mean_iou") is not None]
    val_epochs = [record["epoch"] for record in validated]
    marker = "o" if len(log) < 3 else None  # a line of one point would be invisible

    losses.plot(epochs, [record["train_loss"] for record in log], label="train", marker=marker)
    losses.plot(val_epochs, [record["val_loss"] for record in validated], label="validation",
                marker=marker)
    losses.set(title="loss", xlabel="epoch", ylim=(0, None))
    losses.legend()

    for key, label in (("mean_iou", "mean IoU"), ("pixel_accuracy", "pixel accuracy")):
        mean.plot(val_epochs, [record[key] for record in validated], label=label, marker=marker)
    mean.set(title="validation: accuracy hides what mean IoU shows", xlabel="epoch", ylim=(0, 1))
    mean.legend(loc="lower right")

    K = len(class_names)
    active.step(val_epochs, [record["active_classes"] for record in validated], where="mid",
                marker=marker)
    active.axhline(K, color="0.7", linestyle="--")
    active.set(title=f"active classes (IoU above 0.01) of {K}", xlabel="epoch",
               ylim=(0, K + 0.5))

    for c, name in enumerate(class_names):
        values = [np.nan if record["iou"][c] is None else record["iou"][c]
                  for record in validated]
        per_class.plot(val_epochs, values, label=name, marker=marker,
                       color=f"C{c % 10}", linestyle=_LINE_STYLES[c // 10 % 4])
    per_class.set(title="IoU per class", xlabel="epoch", ylim=(0, 1))
    per_class.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5),
                     ncols=1 + K // 25)
    for axes in (losses, mean, active, per_class):
        axes.grid(alpha=0.3)
    return figure


def predictions(samples, predicted, class_names, palette, ignore_index=255):
    """One row per sample: image, truth, prediction, errors (red; ignored pixels black).

    `samples` have `image` (H, W, 3) uint8 and `mask` (h, w) uint8; `predicted` are (h, w).
    """
    titles = ("image", "truth", "prediction", "errors")
    H, W = samples[0].mask.shape
    figure, axes = _figure(len(samples), 4, 11, 0.5 + len(samples) * 2.7 * H / W)
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
    _class_legend(figure, class_names, palette)
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
    _class_legend(upper, class_names, palette)

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


def _class_legend(figure, class_names, palette):
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=np.asarray(colour) / 255, edgecolor="0.4", label=name)
               for name, colour in zip(class_names, palette)]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)),
                  fontsize="small")
