"""From settings to the parts of a run: weights of the classes, schedule, optimizer, loss."""

import json
from pathlib import Path

import numpy as np

from minisegnet import optim
from minisegnet.errors import UserError
from minisegnet.imbalance.weighting import SCHEMES, class_weights
from minisegnet.losses.criterion import Criterion
from minisegnet.training.flags import LOWER_IS_BETTER

MAX_WEIGHT = 1e6  # of a class, in a file


def build_weights(choice, statistics, class_names):
    """Return class weights (K,) by scheme, or from a JSON file; None for "none"."""
    if choice == "none":
        return None
    if choice in SCHEMES:
        return class_weights(statistics, choice)
    if not choice.endswith(".json"):
        raise UserError(f"--class-weights {choice!r} is not one of {', '.join(SCHEMES)} or a "
                        f".json file")
    try:
        content = json.loads(Path(choice).read_text(encoding="utf-8-sig"))
        values = content["weights"] if isinstance(content, dict) and "weights" in content \
            else content
        if isinstance(values, dict):
            values = [values[name] for name in class_names]
        weights = np.array(values, dtype=np.float64)
    except OSError as error:
        raise UserError(f"cannot read --class-weights {choice} ({error.strerror})") from error
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(f"--class-weights {choice} is not JSON with a list of numbers "
                        f"({error})") from error
    except KeyError as error:
        raise UserError(f"--class-weights {choice} has no weight for class {error}") from error
    K = len(class_names)
    in_range = (weights >= 0) & (weights <= MAX_WEIGHT)  # neither NaN nor infinite
    if weights.shape != (K,) or not in_range.all() or not weights.any():
        raise UserError(f"--class-weights {choice} must hold {K} weights, one per class, >= 0 and "
                        f"<= {MAX_WEIGHT:g}, not all 0")
    return weights


def build_schedule(settings, steps_per_epoch):
    """Return the schedule(step) of the flags; flags count epochs, schedules count steps.

    With --freeze-epochs each of the two stages has a whole schedule, warm-up included.
    """
    frozen = settings.freeze_epochs
    rest = _one_stage(settings, settings.lr, settings.epochs - frozen, steps_per_epoch)
    if not frozen:
        return rest
    first = _one_stage(settings, settings.freeze_lr or settings.lr, frozen, steps_per_epoch)
    return optim.SequentialLR([first, rest], [frozen * steps_per_epoch])


def _one_stage(settings, lr, epochs, steps_per_epoch):
    warmup = round(settings.warmup_epochs * steps_per_epoch)
    # The schedule proper starts where the warm-up ends, and has what is left of the stage.
    total = max(1, epochs * steps_per_epoch - warmup)
    if settings.schedule in ("constant", "plateau"):  # a plateau multiplies it from outside
        schedule = optim.ConstantLR(lr)
    elif settings.schedule == "step":
        schedule = optim.StepLR(lr, max(1, round(settings.step_size * steps_per_epoch)))
    elif settings.schedule == "cosine":
        schedule = optim.CosineAnnealingLR(lr, total, settings.min_lr)
    elif settings.schedule == "restarts":
        period = max(1, round(settings.restart_period * steps_per_epoch))
        schedule = optim.CosineAnnealingWarmRestarts(lr, period, settings.restart_mult,
                                                     settings.min_lr)
    elif settings.schedule == "poly":
        schedule = optim.PolynomialLR(lr, total)
    else:
        schedule = optim.OneCycleLR(lr, total)
    return optim.LinearWarmup(schedule, warmup) if warmup else schedule


def build_optimizer(settings, model):
    """Return the optimizer of the flags."""
    optimizer = _optimizer(settings, model)
    for layer, scale in settings.lr_scale:
        try:
            optimizer.set_lr_scale(layer, scale)
        except ValueError as error:
            raise UserError(f"--lr-scale {layer}={scale:g}: {error}") from error
    return optimizer


def _optimizer(settings, model):
    if settings.optimizer == "adamw":
        return optim.AdamW(model, settings.lr, weight_decay=settings.weight_decay,
                           decay_norm_and_bias=not settings.no_decay_norm_and_bias)
    kind = optim.SGD if settings.optimizer == "sgd" else optim.RMSprop
    return kind(model, settings.lr, momentum=settings.momentum,
                weight_decay=settings.weight_decay)


def activation_dtype(amp, xp):
    """Return the 16-bit dtype that --amp stores activations in on the device of `xp`, or None.

    Raises UserError where it cannot be had.
    """
    if amp == "off":
        return None
    if xp is np:
        raise UserError(f"--amp {amp} needs a GPU, and this computes on the CPU; use --amp off")
    if amp == "fp16":
        return np.dtype(np.float16)
    # Capability 8.0 is Ampere; older GPUs multiply no matrices of bfloat16.
    if hasattr(xp, "cuda") and int(xp.cuda.Device().compute_capability) < 80:
        raise UserError("--amp bf16 needs a GPU of NVIDIA's generation Ampere or newer; use --amp "
                        "fp16")
    try:
        import ml_dtypes  # NumPy has no bfloat16 of its own
    except ModuleNotFoundError:
        raise UserError("--amp bf16 needs the package ml_dtypes: pip install ml_dtypes; or use "
                        "--amp fp16") from None
    return np.dtype(ml_dtypes.bfloat16)


def build_criterion(settings, loss, weights, frequency):
    """Return `loss` with the options of the flags; a focal alpha scales the class weights.

    `frequency` (K,) are the classes' shares of the training pixels.
    """
    alpha = settings.focal_alpha
    if loss in ("focal", "combined") and alpha != 1:
        weights = alpha if weights is None else alpha * weights
    return Criterion(
        loss, weight=weights, gamma=settings.focal_gamma,
        label_smoothing=settings.label_smoothing, lambda_focal=settings.lambda_focal,
        lambda_dice=settings.lambda_dice,
        dice_mode=settings.dice_mode if loss in ("dice", "combined") else "pooled",
        tversky_alpha=settings.tversky_alpha, tversky_beta=settings.tversky_beta,
        ohem_thresh=settings.ohem_thresh, ohem_min_kept=settings.ohem_min_kept,
        tau=settings.logit_tau,
        prior=frequency if loss == "logit_adjusted" else None,
        ignore_index=settings.ignore_index)


def build_watchers(settings):
    """Return (plateau, early stopping) of the flags, None for what is not asked for."""
    mode = "min" if settings.monitor in LOWER_IS_BETTER else "max"
    plateau = early_stopping = None
    if settings.schedule == "plateau":
        plateau = optim.ReduceLROnPlateau(mode, factor=settings.plateau_factor,
                                          patience=settings.plateau_patience)
    if settings.early_stop_patience:
        early_stopping = optim.EarlyStopping(mode, settings.early_stop_patience)
    return plateau, early_stopping
