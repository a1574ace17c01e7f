"""Metric faults: a confusion matrix against the pixels that the monitor counted itself."""

import numpy as np

from minisegnet.diagnosis.evidence import number, numbers
from minisegnet.diagnosis.finding import CONTRADICTION, EXACT, Finding, names_of, train_again


def metric_findings(evidence):
    """Yield the metric faults of a run."""
    for record in evidence.validations:
        finding = _of_validation(evidence, record)
        if finding is not None:
            yield finding
            return
    if not evidence.validations:
        yield from _from_the_log(evidence)


def _of_validation(evidence, record):
    matrix, counted = numbers(record, "confusion"), numbers(record, "target_pixels")
    if matrix is None or counted is None or matrix.ndim != 2 or not counted.sum() > 0:
        return None
    epoch, booked = number(record, "epoch"), matrix.sum()
    words = (f"epoch {epoch:.0f}: the validation batches hold {int(counted.sum()):,} pixels with "
             f"a label, the confusion matrix {int(booked):,}")
    if booked == 0:
        return _finding(
            evidence, "empty-confusion-matrix", "the confusion matrix is never updated", words,
            "the matrix is made and read, but nothing is put into it (or it is emptied before it "
            "is read): every IoU is undefined, or 0 where nan became 0")
    rows = matrix.sum(axis=1)
    if rows.shape != counted.shape or booked == counted.sum():
        return None
    # A class that the loss ignores is not in the matrix either: another fault, told elsewhere.
    other = rows != counted
    if (rows[other] == 0).all():
        return None
    times = booked / counted.sum()
    return _finding(
        evidence, "matrix-miscounts", f"the confusion matrix holds {times:.2f} times the pixels",
        f"{words}; they differ for {names_of(evidence, other)}",
        "the matrix keeps what earlier validations put in, or some batches never reach it")


def _from_the_log(evidence):
    """Without --debug: a validation that found a loss and no score at all."""
    for record in evidence.log:
        has_score = np.isfinite(number(record, "pixel_accuracy"))
        if np.isfinite(number(record, "val_loss")) and not has_score and "iou" in record:
            pixels = evidence.val_pixels
            if pixels is not None and pixels.sum() > 0:
                yield _finding(
                    evidence, "empty-confusion-matrix", "validation has a loss and no score",
                    f"epoch {number(record, 'epoch'):.0f}: validation loss "
                    f"{number(record, 'val_loss'):.4g}, pixel accuracy undefined, though the "
                    f"validation masks hold {int(pixels.sum()):,} pixels with a label",
                    "nothing is put into the confusion matrix")
                return


def _finding(evidence, fault, title, words, cause):
    # An independent count of the same weights is cheaper than a training.
    saved = next(iter(evidence.checkpoints), None)
    experiment = (f"python -m minisegnet.evaluate {evidence.folder / saved}" if saved
                  else train_again(evidence, epochs=1))
    is_empty = fault == "empty-confusion-matrix"
    return Finding(fault, "metric", title, words, cause, experiment,
                   CONTRADICTION if is_empty else EXACT)
