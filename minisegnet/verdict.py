"""What the course of the losses says: not learning, overfitting, underfitting, or nothing yet.

The two losses are not measured alike. Training loss is the mean over an epoch whose weights still
move, on augmented pictures and with dropout; validation loss is that of the weights at its end,
on plain pictures. So a validation loss a little below is no miracle, and a little above no
alarm: every threshold below leaves room for that.
"""

import math

MIN_VALIDATIONS = 3  # fewer show no course
FLAT = 0.98  # a training loss that never gets below this share of its first value does not fall
BELOW = 0.95  # validation / training loss under which it counts as lower
GAP = 1.5  # validation / training loss from which it counts as much higher
RISEN = 1.05  # validation loss / its lowest from which it counts as risen
FALLING = 0.95  # last loss / loss a third of the run before under which it still falls
HIGH = 0.5  # last / first training loss from which it counts as still high ...
LOW_IOU = 0.5  # ... if the mean IoU is below this as well: a pretrained model starts low


def verdict(log):
    """Return what is to be said of a run's log, as sentences; none of a healthy run.

    `log` holds a dictionary per epoch: epoch, train_loss, and where it was validated val_loss,
    mean_iou and iou [K]. Where the key "loss" names the loss of an epoch, only the epochs since it
    last changed are read, for values of different losses cannot be compared.
    """
    records = _since_the_loss_changed([r for r in log if r.get("train_loss") is not None])
    validated = [r for r in records if r.get("val_loss") is not None]
    if _not_learning(records, validated):
        return [_not_learning_sentence(records, validated)]
    if len(validated) < MIN_VALIDATIONS:
        return [f"{len(validated)} validation{'s' * (len(validated) != 1)}"
                f"{_with_loss(records)}: too few to say how training goes; "
                f"{MIN_VALIDATIONS} show a course."]
    sentences = [_lower_sentence(validated)] if _is_lower(validated) else []
    if _overfits(validated):
        sentences.append(_overfitting_sentence(validated))
    elif _underfits(validated, records):
        sentences.append(_underfitting_sentence(validated))
    return sentences


def _since_the_loss_changed(records):
    start = max((i + 1 for i, (before, after) in enumerate(zip(records, records[1:]))
                 if before.get("loss") != after.get("loss")), default=0)
    return records[start:]


def _with_loss(records):
    return f" with the loss {records[-1]['loss']}" if records and records[-1].get("loss") else ""


def _not_learning(records, validated):
    """Whether training loss has not fallen and the predictions are no better than one class."""
    if len(records) < MIN_VALIDATIONS or not validated:
        return False
    losses = [r["train_loss"] for r in records]
    # One class everywhere has its share of the pixels, at most 1, as IoU, and 0 in all others.
    present = sum(value is not None for value in validated[-1]["iou"])
    return (min(losses) > FLAT * losses[0]
            and (validated[-1]["mean_iou"] or 0) <= 1 / max(1, present))


def _not_learning_sentence(records, validated):
    loss, start = records[-1]["train_loss"], math.log(len(validated[-1]["iou"]))
    level = (f"stays near ln K = {start:.2f}, where all classes are equally likely"
             if abs(loss - start) < 0.1 * start else f"stays at {loss:.3g}")
    return (f"Not learning: training loss {level}, and the mean IoU "
            f"{validated[-1]['mean_iou'] or 0:.3f} is no more than that of one class everywhere. "
            f"Try ten times the --lr, and a tenth; see in predictions.png whether the masks fit "
            f"the pictures.")


def _is_lower(validated):
    """Whether validation loss is lower in the first two validations, or in half of them all.

    In the first alone it nearly always is: the weights of a first epoch move most.
    """
    lower = [r["val_loss"] < BELOW * r["train_loss"] for r in validated]
    return all(lower[:2]) or sum(lower) >= len(lower) / 2


def _lower_sentence(validated):
    lower = [r["epoch"] for r in validated if r["val_loss"] < BELOW * r["train_loss"]]
    where = ("throughout" if len(lower) == len(validated)
             else f"in {len(lower)} of {len(validated)} validations, last in epoch {lower[-1]}")
    return (f"Validation loss is lower than training loss {where}: augmentation, dropout and the "
            f"moving weights of an epoch make training the harder test, which is as it should be. "
            f"Without augmentation, look for pictures that are in both sets.")


def _overfits(validated):
    """Whether validation loss is past its lowest and much higher, while training loss falls."""
    best = _lowest(validated)
    last = validated[-1]
    return (len(validated) - 1 - validated.index(best) >= 2  # not just one bad epoch at the end
            and last["train_loss"] < FALLING * best["train_loss"]
            and last["val_loss"] > GAP * last["train_loss"])


def _overfitting_sentence(validated):
    best, last = _lowest(validated), validated[-1]
    # Two epochs, for the last one alone may be an outlier.
    recent = (last["val_loss"] + validated[-2]["val_loss"]) / 2
    course = "rises" if recent > RISEN * best["val_loss"] else "falls no more"
    return (f"Overfitting: validation loss was lowest in epoch {best['epoch']} "
            f"({best['val_loss']:.3g}) and {course} ({last['val_loss']:.3g} in epoch "
            f"{last['epoch']}), while training loss still fell to {last['train_loss']:.3g}. Use a "
            f"stronger --augment, a larger --weight-decay or more pictures, or end at --epochs "
            f"{best['epoch']}.")


def _lowest(validated):
    return min(validated, key=lambda record: record["val_loss"])


def _underfits(validated, records):
    """Whether both losses still fall, training loss is high and so few classes are right."""
    before, last = validated[-1 - max(1, len(validated) // 3)], validated[-1]
    falling = all(last[key] < FALLING * before[key] for key in ("train_loss", "val_loss"))
    return (falling and last["train_loss"] > HIGH * records[0]["train_loss"]
            and (last["mean_iou"] or 0) < LOW_IOU)


def _underfitting_sentence(validated):
    last = validated[-1]
    return (f"Underfitting: both losses are still high and still falling in epoch {last['epoch']} "
            f"(training {last['train_loss']:.3g}, validation {last['val_loss']:.3g}). Train "
            f"longer (--epochs {2 * last['epoch']}), or raise --lr.")
