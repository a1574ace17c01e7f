"""Optimizer faults: how far each step moves the weights, which way, and which it never moves."""

import numpy as np

from minisegnet.diagnosis.evidence import find, number, numbers
from minisegnet.diagnosis.finding import (
    CONTRADICTION,
    EXACT,
    LIKELY,
    STRONG,
    SYMPTOM,
    WAITS,
    Finding,
    train_again,
)
from minisegnet.tables import listed

# Change of the weights in one step over their size. Trained well, the largest of a run is 0.003 to
# 0.2, the latter without warm-up; above this a step undoes what the steps before it did.
LEAPS = 0.4
# A loss that is so many times that of the uniform prediction is not learning but flung about.
ABOVE_UNIFORM = 1.2
# How far all steps of a run together can have moved the weights, relative to their size: below
# this hardly, whatever their direction. Trained well, it is 0.7 to 4 in 60 steps.
SHORT_PATH = 0.05
# Last loss over the first from which it has hardly fallen.
HARDLY_FALLEN = 0.9
# First loss over that of the uniform prediction below which a run began with trained weights.
BEGAN_TRAINED = 0.75
# Cosine between consecutive updates from which they point the same way for 200 steps. A momentum
# of 0.9 shows 0.9 to 0.993, one of 0.999 above 0.998.
SAME_WAY = 0.995
# Size of an update over the learning rate, once the first steps are over: of optimizers that
# divide the gradient by its size 0.05 to 4 with a momentum of 0.9, 15 to 30 with 0.999.
MANY_TIMES = 8
# The same over the gradient's norm, relative to the first step: what momentum has piled up where
# the gradient is not divided by its size. A momentum of 0.9 comes to 10.
PILED_UP = 40
# Arrays of one part of the network that must stay the same for it to be frozen.
STILL_ARRAYS = 5
# Sampled steps that a statement on their course takes.
FEW_STEPS = 4
# A relative change at which the weights move well, to propose a learning rate by.
GOOD_RATIO = 0.01


def optimizer_findings(evidence):
    """Yield the optimizer faults of a run."""
    momentum = list(_runaway(evidence))
    yield from momentum
    if not momentum:  # whose updates are too large as well
        yield from _too_high(evidence)
    yield from _too_low(evidence)
    frozen = list(_still(evidence))
    yield from frozen
    yield from _batch_norm_still(evidence, frozen)
    yield from _not_finite(evidence)


def _runaway(evidence):
    """Momentum that never forgets: one direction, ever further."""
    steps = [step for step in evidence.steps if np.isfinite(number(step, "update_cosine"))]
    late = steps[len(steps) // 2:]
    if len(late) < FEW_STEPS / 2 or len(steps) < FEW_STEPS:
        return
    cosine = np.median([number(step, "update_cosine") for step in late])
    per_lr = np.median([number(step, "update_per_lr") for step in late])
    first = evidence.steps[0]
    per_gradient = [number(step, "update_per_lr") / number(step, "gradient_norm")
                    for step in (first, *late) if number(step, "gradient_norm") > 0]
    growth = np.median(per_gradient[1:]) / per_gradient[0] \
        if len(per_gradient) > 1 and per_gradient[0] > 0 else 0.0
    if not cosine >= SAME_WAY or not (per_lr >= MANY_TIMES or growth >= PILED_UP):
        return
    size = (f"an update is {per_lr:.3g} times the learning rate per weight, where about 1 is usual"
            if per_lr >= MANY_TIMES else
            f"an update is {growth:.3g} times as large against its gradient as the first one")
    yield Finding(
        "runaway-momentum", "optimizer", "momentum carries the weights on, whatever the gradient",
        f"in the second half of the run consecutive updates have a cosine of {cosine:.4f} "
        f"(median), so that each lasts for {1 / max(1 - cosine, 1e-3):,.0f} steps or more, and "
        f"{size}; {_loss_in_words(evidence)}",
        "a momentum near 1 adds up the updates of many hundred steps; with RMSprop's large first "
        "steps 0.999 is a known way to NaN", train_again(evidence, "--optimizer", "adamw"),
        STRONG + 0.1)


def _too_high(evidence):
    ratio = evidence.of_steps("update_ratio")
    if not ratio.size:
        return
    losses, uniform = evidence.of_steps("loss"), number(evidence.start, "probe", "loss_uniform")
    later = losses[max(1, len(losses) // 8):]
    reference = np.nanmax([uniform, losses[0]]) if losses.size else np.nan
    flung = later.size > 0 and later.max() > ABOVE_UNIFORM * reference
    failed = bool(evidence.failures)
    if ratio.max() < LEAPS:
        return
    score = EXACT - 0.05 if flung or failed else LIKELY + 0.1
    yield Finding(
        "lr-too-high", "optimizer", "steps so large that they undo each other",
        f"one step changed the weights by up to {_relative(ratio.max())} (median "
        f"{_relative(np.median(ratio))}), where 0.1 to 10 % is usual; {_loss_in_words(evidence)}",
        "the learning rate is too high, by a factor of ten or more",
        train_again(evidence, *_better_rate(evidence)), score)


def _too_low(evidence):
    path, losses = _path(evidence), _course(evidence)
    if path is None or path >= SHORT_PATH or len(losses) < 2:
        return
    uniform = number(evidence.start, "probe", "loss_uniform")
    if losses[-1] <= HARDLY_FALLEN * losses[0] or losses[0] < BEGAN_TRAINED * uniform:
        return
    ratio = evidence.of_steps("update_ratio")
    yield Finding(
        "lr-too-low", "optimizer", "steps so small that the weights stay where they began",
        f"one step changed the weights by {100 * np.median(ratio):.2g} % of their size (median), "
        f"and all {evidence.steps_done} steps together by at most {100 * path:.2g} %, even if all "
        f"went the same way; the loss went from {losses[0]:.4g} to {losses[-1]:.4g}",
        "the learning rate is too low, by a factor of ten or more",
        train_again(evidence, *_better_rate(evidence)), EXACT - 0.05)


def _path(evidence):
    """Return how far all steps together can have moved the weights, None if it is not known."""
    ratio = evidence.of_steps("update_ratio")
    return float(ratio.mean() * evidence.steps_done) if ratio.size >= FEW_STEPS else None


def _course(evidence):
    """Return the training loss of the epochs, or of the sampled steps if there is but one."""
    losses = evidence.train_losses[np.isfinite(evidence.train_losses)]
    return losses if len(losses) > 1 else evidence.of_steps("loss")


def _better_rate(evidence):
    """Return flags for a learning rate: the measured one, scaled to a good relative change."""
    rate, ratio = evidence.of_steps("lr"), evidence.of_steps("update_ratio")
    top = ratio.max() if ratio.size else 0
    if not rate.size or not top > 0:
        return "--lr", "1e-3"
    better = max(rate.max() * min(GOOD_RATIO / top, 1e4), 1e-8)
    flags = "--lr", f"{float(f'{better:.0e}'):g}"
    return flags if evidence.config.get("min_lr", 0) < better / 2 else (*flags, "--min-lr", 0)


def _relative(ratio):
    """Return a change of the weights, relative to their size, in words."""
    return f"{100 * ratio:.3g} % of their size" if ratio < 10 else f"{ratio:.2g} times their size"


def _loss_in_words(evidence):
    losses, uniform = evidence.of_steps("loss"), number(evidence.start, "probe", "loss_uniform")
    if not losses.size:
        return "there is no loss to go by"
    words = f"the loss began at {losses[0]:.3g}, was {losses.max():.3g} at its worst and " \
            f"{losses[-1]:.3g} in the end"
    words += f" (uniform prediction: {uniform:.3g})" if np.isfinite(uniform) else ""
    return words + (f"; {_failure_in_words(evidence)}" if evidence.failures else "")


def _failure_in_words(evidence):
    record = evidence.failures[-1]
    tensor, direction = find(record, "tensor"), find(record, "direction")
    where = f", first in {tensor} ({direction})" if tensor else ""
    return (f"the {find(record, 'what') or 'loss'} became NaN or infinite at step "
            f"{number(record, 'step'):.0f}{where}")


# ---------------------------------------------------------------- what never moves


def _still(evidence):
    """Parameter arrays that are bit for bit what they were at the start."""
    if not evidence.epochs:
        return
    record = evidence.epochs[-1]
    names, total = find(record, "still") or [], number(record, "parameters")
    if not names:
        return
    if len(names) == total:
        yield Finding(
            "nothing-moves", "optimizer", "no weight has moved since the start",
            f"all {total:.0f} arrays are bit for bit the same after epoch "
            f"{number(record, 'epoch'):.0f}",
            "the optimizer holds other arrays than the model uses, its rate is 0, or no gradient "
            "reaches it", train_again(evidence, "--overfit-one-batch", epochs=3),
            CONTRADICTION)
        return
    trees = {}
    for name in names:
        trees.setdefault(str(name).partition(".")[0], []).append(name)
    tree = max(trees, key=lambda key: len(trees[key]))
    part = numbers(evidence.start, "batch_norm", "parts", tree)
    layers, untrained = part if part is not None else (
        number(evidence.start, "batch_norm", key) for key in ("layers", "untrained"))
    if len(trees[tree]) < STILL_ARRAYS or not untrained > 0:
        return  # weights that came trained may be kept
    config, thaw = evidence.config, []
    if config.get("freeze") and not any(config.get(key) for key in WAITS):
        thaw = ["--freeze-epochs", 1, "--epochs", max(2, config.get("epochs", 2))]
    yield Finding(
        "frozen-random-backbone", "optimizer", f"{tree} is frozen as it was drawn at random",
        f"{len(names)} of {total:.0f} parameter arrays are bit for bit those of the start after "
        f"epoch {number(record, 'epoch'):.0f}, {len(trees[tree])} of them in {tree}; at the start "
        f"{untrained:.0f} of its {layers:.0f} batch norms had mean 0 and variance 1, as never "
        f"trained",
        "frozen layers are meant to be pretrained: no weights were loaded into them, or they were "
        "loaded into another copy", train_again(evidence, *thaw, epochs=None if thaw else 1),
        EXACT + 0.05)


def _batch_norm_still(evidence, frozen):
    """Batch norms whose running statistics are those of an untrained network to the end."""
    if not evidence.epochs:
        return
    record = evidence.epochs[-1]
    still, layers = (number(record, key) for key in ("batch_norm_still", "batch_norm_layers"))
    untrained = number(evidence.start, "batch_norm", "untrained")
    if not still + untrained > layers:
        return  # those that stay may be those that came trained
    yield Finding(
        "frozen-batch-norm", "optimizer",
        "batch norms keep the statistics of an untrained network",
        f"after epoch {number(record, 'epoch'):.0f} the running mean and variance of "
        f"{still:.0f} of {layers:.0f} batch norms have not moved; at the start {untrained:.0f} "
        f"held mean 0 and variance 1, as never trained",
        "batch norms are in evaluation mode while training (or their momentum is 0): without "
        "pretrained statistics they normalise nothing",
        train_again(evidence, "--freeze-batch-norm", "no"),
        LIKELY if frozen else EXACT)


def _not_finite(evidence):
    if not evidence.failures:
        return
    norms = evidence.of_steps("gradient_norm")
    course = f"; gradient norms before: {listed([f'{norm:.3g}' for norm in norms[-4:]])}" \
        if norms.size else ""
    yield Finding(
        "not-finite", "optimizer",
        f"the {find(evidence.failures[-1], 'what') or 'loss'} became NaN or infinite",
        f"{_failure_in_words(evidence)}{course}",
        "what follows from a number that is not finite is none either, so the first tensor "
        "counts: in forward, weights or input grew too large; in backward, a gradient; in the "
        "optimizer, its rate or its momentum",
        train_again(evidence, "--clip-norm", 1, "--optimizer", "adamw"), SYMPTOM + 0.1)
