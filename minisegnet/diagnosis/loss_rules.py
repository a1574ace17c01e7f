"""Loss faults: which pixels the loss listens to, and what became of the others.

The probe before the first step asks the loss itself: its gradient at a uniform prediction on the
targets of the first batches, booked by the class of the pixel. No flag is looked at.
"""

import math

import numpy as np

from minisegnet.diagnosis.evidence import number, numbers
from minisegnet.diagnosis.finding import (
    STRONG,
    SYMPTOM,
    Finding,
    names_of,
    train_again,
    with_weights,
)
from minisegnet.imbalance.fingerprint import INFORMATION, information
from minisegnet.tables import percent
from minisegnet.verdict import verdict

# Largest over smallest weight that a pixel's class gives it, below which all weigh the same.
# Unweighted cross-entropy and focal: exactly 1.
EQUAL = 1.1
# Pixels of the largest class over those of a missed one from which it dominates that one.
DOMINATES = 10
# Best recall of all validations below which a class was never found. Rare classes of small runs
# that do weigh them reach 0.25 and more.
MISSED = 0.1
# The same where equal weights and dominance say why: rare classes are seldom missed altogether.
NEGLECTED = 0.3
# Recall of the most frequent class where it is what the loss listens to.
MOSTLY = 0.8
# Share of the classes present that must be missed, since one may just be hard to see.
MANY_MISSED = 0.2
# Weight of a pixel over that of one of the most frequent class from which it is extreme ...
EXTREME = 100
# ... and how often too much of such classes is predicted for it to have done harm.
OVERDONE = 3
# Gradient per loss at the uniform prediction, in units of cross-entropy's, below which a loss is
# one of overlaps alone: dice, tversky and lovasz have 0.1 to 0.3 at 12 classes, focal has above 1.
WEAK_PULL = 0.5
# Last training loss over that a third of the run before, below which it still falls.
FALLING = 0.85
# Accuracy may be this much above that of the most frequent class alone and be no better than it.
NO_BETTER = 0.01


def loss_findings(evidence):
    """Yield the loss faults of a run."""
    weight = pixel_weights(evidence)
    overlap = is_overlap_alone(evidence)
    if weight is not None:
        yield from _unweighted(evidence, weight)
        if not overlap:  # such a loss weighs classes by its nature
            yield from _extreme(evidence, weight)
    if overlap:
        yield from _stalled_overlap(evidence)
    yield from _learned_nothing(evidence)


def pixel_weights(evidence):
    """Return what a pixel of each class weighs in the loss's first gradient, (K,), mean 1.

    nan for classes without a pixel in the probe, or without a gradient; None without a probe.
    """
    pixels = numbers(evidence.start, "probe", "pixels")
    share = numbers(evidence.start, "probe", "share_uniform")
    if pixels is None or share is None or pixels.shape != share.shape or not share.sum() > 0:
        return None
    seen = (pixels > 0) & (share > 0)
    weight = np.full(pixels.shape, np.nan)
    weight[seen] = (share / share.sum())[seen] / (pixels / pixels.sum())[seen]
    return weight


def first_gradient(evidence):
    """Return the L1 norm of a batch's gradient at the uniform prediction, nan if not known."""
    batches = number(evidence.start, "probe", "batches")
    total = number(evidence.start, "probe", "gradient_uniform")
    return total / batches if batches > 0 else total


def is_overlap_alone(evidence):
    """Whether the loss is one of overlaps (dice, tversky, lovasz) and nothing else.

    Such a loss lies between 0 and 1, and at a uniform prediction it pulls weakly: its gradient
    passes through p (1 - p), where cross-entropy's is 1 - p.
    """
    K = evidence.num_classes
    loss = number(evidence.start, "probe", "loss_uniform")
    gradient = first_gradient(evidence)
    if K < 3 or not (0 < loss <= 1 and gradient > 0):
        return False
    of_cross_entropy = 2 * (1 - 1 / K) / math.log(K)
    return gradient / loss < WEAK_PULL * of_cross_entropy


def _missed(evidence, least=MISSED):
    """Return classes (K,) bool in the masks of both sets that never reach a recall, or None."""
    recall, pixels = evidence.recall, evidence.train_pixels
    if recall is None or pixels is None:
        return None
    return (np.nan_to_num(recall, nan=1.0) < least) & (pixels > 0)


def _unweighted(evidence, weight):
    pixels, missed = evidence.train_pixels, _missed(evidence, NEGLECTED)
    if missed is None or np.nanmax(weight) > EQUAL * np.nanmin(weight):
        return
    present = (pixels > 0) & ~np.isnan(evidence.recall)
    largest = int(pixels.argmax())
    missed &= pixels * DOMINATES <= pixels[largest]
    if not missed.any() or missed.sum() < MANY_MISSED * present.sum() \
            or evidence.recall[largest] < MOSTLY:
        return
    frequent = present & ~missed
    yield Finding(
        "unweighted-loss", "loss",
        "every pixel counts the same, and the rare classes are hardly ever found",
        f"a pixel's weight in the first gradient differs by a factor of "
        f"{np.nanmax(weight) / np.nanmin(weight):.2f} between classes, their pixels by "
        f"{pixels.max() / pixels[pixels > 0].min():,.0f}; {missed.sum()} of {present.sum()} "
        f"classes never reach a recall of {percent(NEGLECTED)} ({names_of(evidence, missed)}: "
        f"together {percent(pixels[missed].sum() / pixels.sum())} of the training pixels), while "
        f"{names_of(evidence, frequent)} "
        f"{'do' if frequent.sum() != 1 else 'does'}",
        "the loss has no class weights, or they do not reach it, so that nearly all of the "
        "gradient comes from the frequent classes",
        with_weights(evidence, "sqrt", "--ledger"), STRONG)


def _extreme(evidence, weight):
    pixels, matrix = evidence.train_pixels, evidence.confusion
    if pixels is None or matrix is None or np.isnan(weight).all():
        return
    relative = weight / weight[int(np.where(np.isnan(weight), -1, pixels).argmax())]
    favoured = np.nan_to_num(relative) >= EXTREME
    truth, predicted = matrix.sum(axis=1), matrix.sum(axis=0)
    if not favoured.any() or not truth[favoured].any():
        return
    accuracy, majority = np.trace(matrix) / matrix.sum(), truth.max() / truth.sum()
    overdone = predicted[favoured].sum() / truth[favoured].sum()
    if overdone < OVERDONE or accuracy > majority + NO_BETTER:
        return
    hits = np.diag(matrix)[favoured].sum()
    yield Finding(
        "extreme-weights", "loss", "class weights so large that rare classes are seen everywhere",
        f"in the first gradient a pixel of {names_of(evidence, favoured)} weighs up to "
        f"{np.nanmax(relative):,.0f} times as much as one of "
        f"{evidence.class_names[int(pixels.argmax())]}; in validation these classes are predicted "
        f"{overdone:.1f} times as often as they occur (precision "
        f"{percent(hits / max(1, predicted[favoured].sum()))}, recall "
        f"{percent(hits / truth[favoured].sum())}), and the accuracy {accuracy:.3f} is no better "
        f"than that of the most frequent class alone, {majority:.3f}",
        "inverse-frequency weights on rare classes: a false positive on a frequent class costs "
        "next to nothing",
        with_weights(evidence,
                     "none" if evidence.config.get("class_weights") == "sqrt" else "sqrt"),
        STRONG + 0.05)


def _stalled_overlap(evidence):
    """Dice alone, from a cold start, that never came to its rare classes."""
    losses, missed = evidence.train_losses, _missed(evidence)
    if missed is None or not losses.size or not math.isfinite(losses[-1]):
        return
    present = (evidence.train_pixels > 0) & ~np.isnan(evidence.recall)
    earlier = losses[-1 - max(1, len(losses) // 3)] if len(losses) > 1 else losses[-1]
    if not missed.any() or missed.sum() < MANY_MISSED * present.sum() \
            or losses[-1] < FALLING * earlier:
        return
    K = evidence.num_classes
    yield Finding(
        "dice-alone", "loss", "a loss of overlaps alone (dice, tversky, lovasz) has stalled",
        f"at a uniform prediction the whole gradient is {first_gradient(evidence):.3g}, where "
        f"cross-entropy's is "
        f"{2 * (1 - 1 / K):.3g}; {missed.sum()} of {present.sum()} classes "
        f"({names_of(evidence, missed)}) never reach a recall of {percent(MISSED)}, and as one of "
        f"{present.sum()} equals each keeps the loss {1 / present.sum():.3f} up: it is "
        f"{losses[-1]:.3f} after {len(losses)} epochs",
        "from a cold start such a loss has next to no gradient for a class that is not predicted "
        "yet: it is scaled by p (1 - p); begin with cross-entropy, or add focal",
        train_again(evidence, "--loss", "ce", "--dice-mode", "pooled"), STRONG)


def _learned_nothing(evidence):
    """Symptoms: predictions that do not depend on the picture, a loss that does not fall."""
    matrix = evidence.confusion
    if matrix is not None and np.count_nonzero(matrix.sum(axis=1)) > 1:
        known, predicted = information(matrix), matrix.sum(axis=0) / matrix.sum()
        if known < INFORMATION:
            most = int(predicted.argmax())
            yield Finding(
                "collapse", "loss", "the predictions do not depend on the picture",
                f"they remove {percent(known)} of the uncertainty about the truth; "
                f"{percent(predicted[most])} of them are {evidence.class_names[most]}",
                "nothing that was measured says why; a network that cannot learn a few pictures "
                "by heart has a fault in the data or in the optimizer",
                train_again(evidence, "--overfit-one-batch", epochs=30), SYMPTOM)
            return
    validated = [record for record in evidence.log
                 if record.get("train_loss") is not None and record.get("iou")]
    sentences = verdict(evidence.log) if validated else []
    if sentences and sentences[0].startswith("Not learning"):
        losses = evidence.train_losses
        yield Finding(
            "not-learning", "loss", "the training loss does not fall",
            f"it is {losses[0]:.4g} after the first epoch and {losses[-1]:.4g} after the last of "
            f"{len(losses)}, at a mean IoU of {number(validated[-1], 'mean_iou'):.3f}",
            "nothing that was measured says why; a network that cannot learn a few pictures by "
            "heart has a fault in the data or in the optimizer",
            train_again(evidence, "--overfit-one-batch", epochs=30), SYMPTOM)
