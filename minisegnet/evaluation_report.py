"""What an evaluation found: every number as a dictionary, and the tables that show them."""

import math
from pathlib import Path

import numpy as np

from minisegnet.imbalance.rarity import rare_classes
from minisegnet.metrics import bootstrap_iou, mean_of_defined
from minisegnet.tables import aligned, number_text

FEW_IMAGES = 10  # a class in fewer gets an interval that hardly means anything


def report_of(scores, class_names, training_pixels, resamples):
    """Return every number of an evaluation as a dictionary; lists per class in their order."""
    confusion, calibration = scores.confusion, scores.calibration
    training_pixels = np.asarray(training_pixels)
    rare, rule = rare_classes(training_pixels)
    mean_interval, interval = bootstrap_iou(scores.counts, resamples=resamples)
    per_class = {"iou": confusion.iou, "dice": confusion.dice, "precision": confusion.precision,
                 "recall": confusion.recall}
    _, truth, predicted = confusion.counts
    present = ~confusion.absent

    def group(members):
        return {"classes": [name for name, is_in in zip(class_names, members) if is_in],
                **{f"mean_{key}": mean_of_defined(values[members])
                   for key, values in per_class.items()}}

    def bins(reliability):
        return {"count": reliability.count, "confidence": reliability.confidence,
                "observed": reliability.observed}

    return {
        "images": len(scores.counts), "classes": list(class_names),
        "mean_iou_present": confusion.mean_iou_present,
        "mean_iou_present_interval": mean_interval,
        "mean_iou_all": confusion.mean_iou_all,
        "present_classes": int(present.sum()),
        "absent_classes": [name for name, absent in zip(class_names, ~present) if absent],
        "active_classes": confusion.active_classes(),
        "fw_iou": confusion.fw_iou, "pixel_accuracy": confusion.pixel_accuracy,
        "mean_class_accuracy": confusion.mean_class_accuracy,
        "mean_dice_present": confusion.mean_dice_present,
        "mean_dice_all": confusion.mean_dice_all,
        **per_class, "iou_interval": interval.T, "resamples": resamples,
        "pixels_in_truth": truth, "pixels_predicted": predicted,
        "images_with_class": (scores.counts[:, 1] > 0).sum(axis=0),
        "training_pixels": training_pixels,
        "groups": {"rare_is": rule, "frequent": group(~rare), "rare": group(rare)},
        "confusion": confusion.matrix,
        "calibration": {
            "top_label_ece": calibration.top_label.ece[0],
            "classwise_ece": calibration.classwise_ece, "ece": calibration.classes.ece,
            "mean_probability": calibration.classes.mean_probability,
            "frequency": calibration.classes.frequency,
            "classes": bins(calibration.classes), "top_label": bins(calibration.top_label)},
    }


def _interval(pair):
    return "" if np.isnan(pair).any() else f"[{pair[0]:.3f}, {pair[1]:.3f}]"


def class_table(report):
    """Return the table per class, frequent and rare apart, each with its means."""
    rows = [("class", "IoU", "95 %" if report["resamples"] else "", "Dice", "precision", "recall",
             "px in truth", "px predicted", "of training")]
    names, pixels = report["classes"], report["training_pixels"]
    for kind in ("frequent", "rare"):
        group = report["groups"][kind]
        for name in group["classes"]:
            c = names.index(name)
            rows.append((name, number_text(report["iou"][c]), _interval(report["iou_interval"][c]),
                         *(number_text(report[key][c]) for key in ("dice", "precision", "recall")),
                         f"{report['pixels_in_truth'][c]:,}",
                         f"{report['pixels_predicted'][c]:,}",
                         f"{pixels[c] / pixels.sum():.3%}"))
        if group["classes"]:
            iou, *others = (number_text(group[f"mean_{key}"])
                            for key in ("iou", "dice", "precision", "recall"))
            rows.append((f"= mean of {len(group['classes'])} {kind}", iou, "", *others, *3 * [""]))
    lines = aligned(rows)
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def summary(report):
    """Return the lines below the table: the means, and how far probabilities can be believed."""
    K, absent = len(report["classes"]), report["absent_classes"]
    lines = [f"mean IoU             {report['mean_iou_present']:.4f} "
             f"{_interval(report['mean_iou_present_interval'])} over the "
             f"{report['present_classes']} classes present; {report['mean_iou_all']:.4f} over "
             f"all {K}" + (f" (absent: {', '.join(absent)})" if absent else "")]
    for label, key in (("mean Dice", "mean_dice_present"), ("FWIoU", "fw_iou"),
                       ("pixel accuracy", "pixel_accuracy"),
                       ("mean class accuracy", "mean_class_accuracy")):
        lines.append(f"{label:<21}{report[key]:.4f}")
    few = [f"{name} {images}" for name, images in
           zip(report["classes"], report["images_with_class"]) if 0 < images < FEW_IMAGES]
    if few and report["resamples"]:
        lines.append(f"images with          {', '.join(few)}: too few for their intervals")
    calibration = report["calibration"]
    lines.append(f"rare                 {report['groups']['rare_is']}")
    lines.append(f"calibration error    {calibration['top_label_ece']:.4f} of the top label, "
                 f"{calibration['classwise_ece']:.4f} of a class on average")
    return lines


def excess_line(report, weights):
    """Return how often each class is promised for once that it comes, the worst first."""
    calibration = report["calibration"]
    ratios = {name: p / f for name, p, f in zip(
        report["classes"], calibration["mean_probability"], calibration["frequency"])
        if f > 0 and p > 0}
    worst = sorted(ratios, key=lambda name: -abs(math.log(ratios[name])))
    more = f", {len(worst) - 8} nearer to 1" if len(worst) > 8 else ""
    return ("mean probability / frequency, 1 is right: "
            + ", ".join(f"{name} {ratios[name]:.3g}" for name in worst[:8]) + more
            + (f"; class weights ({weights}) distort probabilities" if weights != "none" else ""))


def checkpoint_table(reports):
    """Return one line per checkpoint, the best mean IoU marked."""
    scores = [report["mean_iou_present"] for report in reports]
    best = int(np.nanargmax(scores))
    rows = [("epoch", "files", "mean IoU", "95 %" if reports[0]["resamples"] else "", "all",
             "frequent", "rare", "Dice", "FWIoU", "accuracy", "active", "ECE", "")]
    for i, report in enumerate(reports):
        rows.append((
            str(report["epoch"]), ", ".join(Path(name).stem for name in report["files"]),
            number_text(scores[i], ".4f"), _interval(report["mean_iou_present_interval"]),
            *(number_text(value, ".4f") for value in (
                report["mean_iou_all"], report["groups"]["frequent"]["mean_iou"],
                report["groups"]["rare"]["mean_iou"], report["mean_dice_present"],
                report["fw_iou"], report["pixel_accuracy"])),
            str(report["active_classes"]),
            number_text(report["calibration"]["top_label_ece"], ".4f"),
            "<- best" if i == best else ""))
    return "\n".join(aligned(rows, left=2))
