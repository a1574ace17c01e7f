"""Several runs beside each other: their courses, their classes, their predictions."""

import textwrap
from functools import cache
from itertools import islice

import numpy as np

from minisegnet.datasets.palettes import colourise
from minisegnet.datasets.sample import labels_in
from minisegnet.plots.figures import class_legend, figure_of, show_pictures, styles_of

_BARS_IN_A_ROW = 64  # more are too thin to tell apart
_PANELS_IN_A_ROW = 5
_CHARACTERS = 120  # in a row of the legend


def compared_curves(logs, rare):
    """Mean IoU and IoU of the rare classes of all runs; below, the losses of each by itself.

    `logs` maps a title to the logs of its runs, one per seed; `rare` are class ids, perhaps none.
    A line is the mean over the seeds, the band around it their range. Losses of different kinds
    have no common scale, so each has its own axes: training against validation is what is to be
    read there.
    """
    from matplotlib.figure import Figure

    rows = -(-len(logs) // _PANELS_IN_A_ROW)
    columns = -(-len(logs) // rows)
    heights = (4, 2.6 * rows)
    figure = Figure(figsize=(max(11, 2.4 * columns), sum(heights)), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=heights)
    mean, *of_rare = upper.subplots(1, 2 if len(rare) else 1, squeeze=False)[0]
    styles = styles_of(logs)
    for title, seeds in logs.items():
        style = {**styles[title], "markersize": 4, "label": title}
        del style["hatch"]
        _band(mean, seeds, lambda record: record.get("mean_iou"), **style)
        for axes in of_rare:
            _band(axes, seeds, lambda record: _mean_of(record.get("iou"), rare), **style)
    for axes, of_which in zip((mean, *of_rare), ("", " of the rare classes")):
        # A line at 0 should be seen above the frame, and noise at 0.01 not fill it.
        top = max(0.1, 1.05 * axes.dataLim.ymax)
        axes.set(title=f"mean IoU{of_which}, validation", ylabel="IoU", ylim=(-0.02 * top, top))
    _legend_above(upper, mean)

    panels = lower.subplots(rows, columns, squeeze=False).ravel()
    for i, (title, seeds) in enumerate(logs.items()):
        marker = "o" if max(map(len, seeds)) < 3 else None  # a line of one point is invisible
        for key, label, line in (("train_loss", "train", "--"), ("val_loss", "validation", "-")):
            _band(panels[i], seeds, lambda record, key=key: record.get(key), label=label,
                  color=styles[title]["color"], linestyle=line, marker=marker, markersize=4)
        panels[i].set_title(_wrapped(f"loss: {title}"), fontsize="medium")
        panels[i].set_ylim(0, _top_of_losses(seeds))
        panels[i].legend(fontsize="small", frameon=False, loc="best")
    for axes in panels[len(logs):]:
        axes.set_axis_off()
    for axes in (mean, *of_rare, *panels[:len(logs)]):
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def _top_of_losses(logs):
    """Return where the axis of the losses ends: an outlier of one epoch may leave it."""
    train, val = ([record[key] for log in logs for record in log if record.get(key) is not None]
                  for key in ("train_loss", "val_loss"))
    usual = 2 * max(max(train, default=0), np.median(val) if val else 0)
    return 1.08 * min(max(train + val, default=1), usual) or 1


def _band(axes, logs, value, *, color, **style):
    """Draw the mean of `value(record)` over the logs as a line, and their range as a band.

    Over the epochs that have a value in every log, since a mean of other seeds is another mean.
    """
    courses = [{record["epoch"]: value(record) for record in log} for log in logs]
    epochs = [epoch for epoch in courses[0]
              if all(course.get(epoch) is not None for course in courses)]
    values = np.array([[course[epoch] for epoch in epochs] for course in courses], float)
    axes.plot(epochs, values.mean(0), color=color, **style)
    if len(logs) > 1:
        axes.fill_between(epochs, values.min(0), values.max(0), color=color, alpha=0.18,
                          linewidth=0)


def _mean_of(iou, classes):
    """Return the mean IoU of `classes`, None where none of them has one."""
    values = [iou[c] for c in classes if iou[c] is not None] if iou else []
    return sum(values) / len(values) if values else None


def compared_classes(iou, class_names, pixels, rare):
    """Bars of the IoU per class, a bar per run, from the most frequent class to the rarest.

    `iou` maps a title to an array (S, K), a row per seed, nan where absent: the bar is the mean
    over the seeds, the line on it their range. `pixels` (K,) count the training pixels; the
    classes in `rare` stand on grey.
    """
    order = np.argsort(-np.asarray(pixels), kind="stable")
    per_row = max(4, _BARS_IN_A_ROW // len(iou))
    rows = -(-len(order) // per_row)
    per_row = -(-len(order) // rows)  # rows of the same length
    figure, axes_of = figure_of(rows, 1, 11, 1 + 3.2 * rows)
    width, styles = 0.8 / len(iou), styles_of(iou)
    for row, axes in enumerate(axes_of[:, 0]):
        classes = order[row * per_row:(row + 1) * per_row]
        for x, c in enumerate(classes):
            if c in rare:
                axes.axvspan(x - 0.5, x + 0.5, color="0.92", linewidth=0, zorder=0)
        for i, (title, values) in enumerate(iou.items()):
            colour, hatch = (styles[title][key] for key in ("color", "hatch"))
            values = np.ma.masked_invalid(np.asarray(values, float)[:, classes])  # (S, classes)
            mean = values.mean(0).filled(np.nan)
            x = np.arange(len(classes)) + (i - (len(iou) - 1) / 2) * width
            # The edge shows a bar of height 0, which a class that is absent has not.
            axes.bar(x, mean, width, label=title, facecolor="white" if hatch else colour,
                     edgecolor=colour, linewidth=1, hatch=hatch)
            if len(values) > 1:
                reach = np.array([mean - values.min(0), values.max(0) - mean])
                axes.errorbar(x, mean, np.maximum(reach, 0), fmt="none", ecolor="0.25",
                              elinewidth=1, capsize=min(3, 100 * width / per_row))
        shares = np.asarray(pixels)[classes] / max(1, np.sum(pixels))
        axes.set_xticks(range(len(classes)), [f"{class_names[c]}\n{100 * share:.2g}%" for c, share
                                              in zip(classes, shares)], rotation=30, ha="right")
        axes.set(ylabel="IoU", ylim=(0, 1.02), xlim=(-0.5, per_row - 0.5))
        axes.set_axisbelow(True)
        axes.grid(axis="y", alpha=0.3)
    grey = ", the rare ones on grey" if len(rare) else ""
    _legend_above(figure, axes_of[0, 0], f"IoU per class, from frequent to rare{grey}: share of "
                  f"the training pixels below the name")
    return figure


def _legend_above(figure, axes, title=None):
    handles, labels = axes.get_legend_handles_labels()
    columns = min(6, len(labels))
    while columns > 1 and _width_of(labels, columns) > _CHARACTERS:
        columns -= 1
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, title=title)


def _width_of(labels, columns):
    """Return the width in characters of a legend with its labels in columns, handles included."""
    rows = -(-len(labels) // columns)
    return sum(6 + max(map(len, labels[i:i + rows])) for i in range(0, len(labels), rows))


def pictures_with(dataset, classes, count, apart=1):
    """Return up to `count` samples: for each class in turn the first with it, none twice.

    They lie at least `apart` places from each other, as far as there are such: the frames of a
    video are all alike.
    """
    @cache
    def labels(i):
        return set(labels_in(dataset[i].mask).tolist())

    def free(i):
        return all(abs(i - j) >= apart for j in chosen)

    chosen = []
    while len(chosen) < min(count, len(dataset)):
        before = len(chosen)
        for c in classes:
            chosen += islice((i for i in range(len(dataset)) if free(i) and c in labels(i)), 1)
        if len(chosen) == before and apart > 1:
            apart = 1
        elif len(chosen) == before:  # no more pictures with any of them
            chosen += [i for i in range(len(dataset)) if free(i)]
    return [dataset[i] for i in chosen[:count]]


def grid(samples, predicted, class_names, palette, ignore_index=255):
    """One row per sample: image, truth, and a column of predictions per run.

    `samples` have `image` (H, W, 3) uint8 and `mask` (h, w) uint8; `predicted` maps a run's title
    to its predictions, one (h, w) per sample.
    """
    from matplotlib.figure import Figure

    H, W = samples[0].mask.shape
    columns = 2 + len(predicted)
    width = max(11, 2.2 * columns)
    legend_height = 0.6 + 0.2 * -(-len(class_names) // 6)  # of six columns, in inches
    figure = Figure(figsize=(width, len(samples) * width / columns * H / W + legend_height),
                    layout="constrained")
    _fill_grid(figure, samples, predicted, class_names, palette, ignore_index)
    return figure


def side_by_side(samples, predicted, iou, class_names, palette, ignore_index=255):
    """The `grid` of several runs above the bars of their IoUs.

    `iou` maps the titles of `predicted` to the IoU per class (K,).
    """
    from matplotlib.figure import Figure

    H, W = samples[0].mask.shape
    pictures_height = len(samples) * 11 / (2 + len(predicted)) * H / W + 1
    figure = Figure(figsize=(11, pictures_height + 3), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(pictures_height, 3))
    _fill_grid(upper, samples, predicted, class_names, palette, ignore_index)

    bars = lower.subplots()
    width, styles = 0.8 / len(iou), styles_of(iou)
    for i, (title, values) in enumerate(iou.items()):
        values, hatch = np.asarray(values, float), styles[title]["hatch"]
        bars.bar(np.arange(len(values)) + (i - (len(iou) - 1) / 2) * width, values, width,
                 label=f"{title}: mean {np.nanmean(values):.2f}", hatch=hatch, linewidth=1,
                 facecolor="white" if hatch else styles[title]["color"],
                 edgecolor=styles[title]["color"])
    bars.set_xticks(range(len(class_names)), class_names, rotation=30, ha="right")
    bars.set(ylabel="IoU", ylim=(0, 1), xlim=(-0.6, len(class_names) - 0.4))
    bars.grid(axis="y", alpha=0.3)
    bars.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(iou), frameon=False)
    return figure


def _fill_grid(figure, samples, predicted, class_names, palette, ignore_index):
    axes = figure.subplots(len(samples), 2 + len(predicted), squeeze=False)
    show_pictures(axes, ["image", "truth", *map(_wrapped, predicted)], [
        [sample.image] + [colourise(mask, palette, ignore_index)
                          for mask in (sample.mask, *(masks[row] for masks in predicted.values()))]
        for row, sample in enumerate(samples)])
    class_legend(figure, class_names, palette)


def _wrapped(title):
    return textwrap.fill(title, 26)
