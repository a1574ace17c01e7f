"""`python -m minisegnet.train`: train a model on floor plans or real pictures.

    python -m minisegnet.train
    python -m minisegnet.train --loss ce --class-weights none
    python -m minisegnet.train --data data/CamVid --model deeplab_light --image-size 180 240 \\
        --augment standard --loss ce --class-weights enet --epochs 40 --lr 2e-3
    python -m minisegnet.train --resume runs/CamVid_ce_001
"""

import sys
from pathlib import Path

import numpy as np

from minisegnet import datasets
from minisegnet.backend import select_device
from minisegnet.datasets.class_map import CLASS_MAP_FILE
from minisegnet.diagnosis import read_evidence, report_lines
from minisegnet.errors import UserError, run_command
from minisegnet.imbalance import ClassStatistics
from minisegnet.imbalance.fingerprint import format_fingerprint, know_nothing
from minisegnet.losses import WITHOUT_KERNELS
from minisegnet.models import build_model
from minisegnet.models.unet import LEAST_SIDE
from minisegnet.optim import ExponentialMovingAverage, near_restart_top
from minisegnet.training import run_folder
from minisegnet.training.build import (
    activation_dtype,
    build_criterion,
    build_optimizer,
    build_schedule,
    build_watchers,
    build_weights,
)
from minisegnet.training.checklist import format_checklist
from minisegnet.training.checkpoint import read_checkpoint
from minisegnet.training.device_step import DeviceStep
from minisegnet.training.inspection import inspect
from minisegnet.training.ledger_log import LedgerLog, steps_between_records
from minisegnet.training.loss_scale import LossScale
from minisegnet.training.memory import estimate_memory, format_estimate, machine_memory
from minisegnet.training.monitor import Monitor
from minisegnet.training.phases import Phases
from minisegnet.training.pictures import draw_augmentation, draw_results, worth_showing
from minisegnet.training.settings import parse_settings, size_in_training, to_config
from minisegnet.training.trainer import Trainer
from minisegnet.training.weight_files import initialize
from minisegnet.verdict import verdict

STEPS_ON_ONE_BATCH = 25  # an epoch with --overfit-one-batch
LEARNED_BY_HEART = 0.9  # mean IoU on that batch
SMALL_BATCH = 4 * 96 * 96  # pixels that fit anywhere: not worth an estimate
CANNOT_FIT = 1.25  # times what is left, since an estimate may be wrong


def main(argv=None):
    settings = parse_settings(argv)
    xp = _select_device(settings)
    # Everything that can be refused is refused before the run folder is made.
    train_set, val_set, statistics, val_statistics = _open_data(settings)
    names = train_set.class_names
    model = build_model(settings.model, train_set.num_classes, seed=settings.seed,
                        batch_norm_momentum=settings.batch_norm_momentum)
    folder = Path(settings.resume) if settings.resume else None
    if folder is None:
        weights = build_weights(settings.class_weights, statistics, names)
    else:
        weights = run_folder.read_class_weights(folder, names, statistics, val_statistics)
    resumable = folder is not None and (folder / "last.npz").exists()
    if settings.init_from is not None and not resumable:
        _initialize(settings, model)
    model.to(xp)
    trainer = _build_trainer(settings, model, train_set, val_set, weights, statistics)
    _print_header(settings, model, train_set, val_set, statistics)
    trainer.baselines = _print_fingerprint(settings, names, weights, statistics, val_statistics)
    _warn(settings, trainer)
    if xp is np:  # the estimate is one of what NumPy needs
        _check_memory(settings, model)
    if settings.dry_run:
        return 0

    config = to_config(settings)
    if folder is None:
        folder = run_folder.new_run_folder(
            settings.output_dir,
            default_name=f"{Path(settings.data).resolve().name}_{settings.loss}")
        run_folder.write_class_weights(folder, settings.class_weights, names, weights, statistics,
                                       val_statistics)
        if settings.classes is not None:
            train_set.class_map.write(folder / CLASS_MAP_FILE)
        # Last, for a folder with a config.toml can be resumed.
        run_folder.write_text(folder / "config.toml", run_folder.to_toml(config))
    trainer.folder = folder
    trainer.meta = _describe_data(settings, config, train_set, statistics)
    if settings.ledger:
        every = steps_between_records(trainer.phase.steps_per_epoch)
        trainer.ledger = LedgerLog(folder, names, every, train_set.palette)
    if settings.debug:
        trainer.debug = Monitor(folder, model, trainer.optimizer, names, settings.ignore_index,
                                trainer.phase.steps_per_epoch)
    if settings.resume:
        _go_on(trainer, resumable)
        # What was changed holds from here on, and for the next time.
        run_folder.write_text(folder / "config.toml", run_folder.to_toml(config))
    print(f"run folder: {folder}", flush=True)
    if settings.augment != "none" and not (folder / "augmentation.png").exists():
        draw_augmentation(folder, trainer, train_set, statistics)
    if settings.debug and trainer.epoch < trainer.epochs:
        _print_checklist(trainer, train_set, val_set, statistics, val_statistics)
    try:
        finished = trainer.fit()
    except UserError:
        if settings.debug:
            _print_diagnosis(folder)
        raise
    draw_results(folder, trainer, val_set, val_statistics)
    if trainer.ledger is not None:
        trainer.ledger.draw()
    if not finished:
        print(f"interrupted; --resume {folder} goes on from there")
        return 130
    sentences = verdict(run_folder.read_log(folder / "log.jsonl"))
    if settings.overfit_one_batch:
        sentences = [_of_one_batch(trainer.record)]
    for sentence in sentences:
        print(sentence)
    if trainer.best is not None:
        print(f"best {settings.monitor.replace('mean_iou', 'mean IoU').replace('_', ' ')} "
              f"{trainer.best:.4f}; see {folder}/curves.png and {folder}/predictions.png")
    if settings.debug:
        _print_diagnosis(folder)
    return 0


def _select_device(settings):
    """Return the array module of --device; "auto" is the CPU for what a GPU cannot do here."""
    obstacles = [f"--{flag} looks at every tensor on the host"
                 for flag in ("debug", "ledger") if getattr(settings, flag)]
    obstacles += [f"--loss {loss} sorts all pixels, for which there are no kernels"
                  for loss in (settings.loss, *(loss for _, loss in settings.loss_after))
                  if loss in WITHOUT_KERNELS]
    if obstacles and settings.amp != "off":
        raise UserError(f"--amp {settings.amp} is for a GPU, and {obstacles[0]}; leave out one of "
                        f"the two")
    if obstacles and settings.device == "auto":
        return np
    xp = select_device(settings.device)
    if obstacles and xp is not np:
        raise UserError(f"{obstacles[0]}; use --device cpu")
    activation_dtype(settings.amp, xp)  # refuses what cannot be had
    return xp


def _print_checklist(trainer, train_set, val_set, statistics, val_statistics):
    """Inspect data, loss and model as the next epoch will have them; print and keep the result."""
    phase = trainer.phase(trainer.epoch + 1)
    record = inspect(train_set, val_set, statistics, val_statistics, phase.train_loader,
                     phase.val_loader, trainer.model, phase.criterion, trainer.class_names)
    trainer.debug.start(record)
    print("before the first step:")
    for line in format_checklist(record):
        print(f"    {line}")
    sys.stdout.flush()


def _print_diagnosis(folder):
    print("diagnosis:")
    print(*report_lines(read_evidence(folder)), sep="\n", flush=True)


def _of_one_batch(record):
    """Return what the score on the only batch says."""
    score = record["mean_iou"] or 0.0
    if score >= LEARNED_BY_HEART:
        return (f"learned by heart: mean IoU {score:.3f} on the batch it was trained on; network, "
                f"loss and optimizer can learn: what is wrong, if anything, is in data, labels or "
                f"generalisation")
    return (f"not learned by heart: mean IoU {score:.3f} on the batch it was trained on, and "
            f"{LEARNED_BY_HEART} is to be expected; look at loss, --lr and --optimizer, or give "
            f"it more --epochs")


def _open_data(settings):
    """Return both data sets and what a pass over their masks counted; sets the image size."""
    classes = settings.classes
    if classes is not None and settings.resume:  # the file may have changed since
        classes = Path(settings.resume) / CLASS_MAP_FILE
    train_set, val_set = (
        datasets.open_dataset(settings.data, settings.layout, split, classes=classes,
                              ignore_index=settings.ignore_index)
        for split in (settings.split, "val"))
    statistics, val_statistics = train_set.check(), val_set.check()
    settings.image_size = size_in_training(settings, train_set[0].mask.shape)
    settings.scale = None  # resolved
    _refuse_sizes(settings)
    if len(train_set) < settings.batch_size:
        raise UserError(f"--batch-size {settings.batch_size} is larger than the training set of "
                        f"{len(train_set)} images")
    if settings.overfit_one_batch:
        indices = worth_showing(statistics, settings.batch_size)
        statistics = val_statistics = ClassStatistics(statistics.counts[indices])
        val_set = datasets.Subset(train_set, indices)
        train_set = datasets.Subset(train_set, indices * settings.accumulate * STEPS_ON_ONE_BATCH)
    return train_set, val_set, statistics, val_statistics


def _refuse_sizes(settings):
    """Raise UserError for a size that the model cannot train at."""
    if not settings.model.startswith("unet"):
        return
    for H, W in (settings.image_size, *(size for _, size in settings.image_size_after)):
        cells = settings.batch_size * (H // LEAST_SIDE) * (W // LEAST_SIDE)
        if min(H, W) < LEAST_SIDE or cells < 2:
            raise UserError(f"{settings.model} cannot train on batches of {settings.batch_size} "
                            f"at {H}x{W}: its deepest batch norm needs two values, one "
                            f"per image and {LEAST_SIDE}x{LEAST_SIDE} pixels; raise "
                            f"--image-size, --scale or --batch-size")


def _build_trainer(settings, model, train_set, val_set, weights, statistics):
    """Return a trainer at the beginning of its run, without its folder."""
    optimizer = build_optimizer(settings, model)
    phases = Phases(settings, model=model, optimizer=optimizer, train_set=train_set,
                    val_set=val_set, weights=weights, statistics=statistics)
    plateau, early_stopping = build_watchers(settings)
    ema = ExponentialMovingAverage(optimizer, model, settings.ema) if settings.ema else None
    device_step = None
    if model.xp is not np:
        loss_scale = LossScale(model.xp) if settings.amp == "fp16" else None
        device_step = DeviceStep(model, optimizer, clip_norm=settings.clip_norm, ema=ema,
                                 dtype=activation_dtype(settings.amp, model.xp),
                                 loss_scale=loss_scale)
    return Trainer(
        model=model, optimizer=optimizer, phase=phases, folder=None,
        schedule=build_schedule(settings, phases.steps_per_epoch),
        class_names=train_set.class_names, epochs=settings.epochs,
        accumulate=settings.accumulate, clip_norm=settings.clip_norm, min_lr=settings.min_lr,
        val_every=settings.val_every, save_every=settings.save_every, monitor=settings.monitor,
        ema=ema, plateau=plateau, early_stopping=early_stopping, device_step=device_step)


def _initialize(settings, model):
    """Load --init-from, and say what was loaded."""
    backbone = getattr(model, "backbone", None)
    before = [array.copy() for _, array in backbone.named_parameters()] if backbone else []
    for line in initialize(model, settings.init_from,
                           allow_partial=settings.allow_partial).report_lines:
        print(line)
    if backbone and settings.freeze and all(
            (old == new).all() for old, (_, new) in zip(before, backbone.named_parameters())):
        print(f"warning: --init-from {settings.init_from} has nothing for the backbone, which "
              f"--freeze keeps as it was drawn at random")


def _go_on(trainer, resumable):
    """Bring `trainer` to where the run in its folder stood; sweep up what a kill left behind."""
    folder, log = trainer.folder, trainer.folder / "log.jsonl"
    for leftover in folder.glob("*.tmp"):
        leftover.unlink()
    if not resumable:  # killed before its first epoch was over
        if log.exists() and log.stat().st_size:
            raise UserError(f"--resume {folder}: its last.npz has gone; restore it, or start a "
                            f"new run with --init-from {folder / 'best.npz'}")
        for witness in (trainer.debug, trainer.ledger):
            if witness is not None:
                witness.restore(0)
        return
    trainer.restore(read_checkpoint(folder / "last.npz"))
    if trainer.stopped_early or trainer.epoch >= trainer.epochs:
        longer = "" if trainer.stopped_early else "; --epochs N makes it longer"
        print(f"this run is complete, after {trainer.epoch} epochs{longer}")
    else:
        print(f"resumed after epoch {trainer.epoch} and {trainer.position} batches of the next")


def _print_header(settings, model, train_set, val_set, statistics):
    names, (H, W) = train_set.class_names, settings.image_size
    share = statistics.pixels.max() / statistics.pixels.sum()
    pictures = f"{len(train_set)} images to train, {len(val_set)} to validate"
    if settings.overfit_one_batch:
        pictures = f"the same {len(val_set)} images to train and to validate, not augmented"
    print(f"{settings.model}: {model.num_parameters:,} parameters, {len(names)} classes; "
          f"{pictures}, at {H}x{W}; "
          f"{names[int(statistics.pixels.argmax())]} is {share:.1%} of the pixels")
    if settings.amp != "off":
        print(f"--amp {settings.amp}: activations of 16 bits in training, all else in float32; it "
              f"pays where matrix products or memory traffic take the time, in large models and "
              f"batches, and a small model such as mini may gain nothing")


def _print_fingerprint(settings, names, weights, statistics, val_statistics):
    """Print what knowing nothing scores in the validation, and costs; return these baselines."""
    baselines = know_nothing(val_statistics.pixels, names)
    criterion = build_criterion(settings, settings.loss, weights, statistics.frequency)
    for line in format_fingerprint(baselines, criterion, val_statistics.pixels):
        print(f"    {line}")
    return baselines


def _warn(settings, trainer):
    """Say what is allowed and seldom meant."""
    if settings.freeze and settings.init_from is None:
        print("warning: --freeze without --init-from keeps a backbone of random weights")
    if settings.loss == "lovasz" and settings.class_weights != "none":
        print(f"warning: --loss lovasz with --class-weights {settings.class_weights}, from random "
              f"weights, may end in predicting the rarest class everywhere; --class-weights none "
              f"does not")
    if settings.split == "trainval":
        print("warning: --split trainval trains on the validation pictures: the validation score "
              "is none")
    steps = trainer.phase.steps_per_epoch
    top = near_restart_top(trainer.schedule, settings.epochs * steps - 1)
    if top:
        ends = " or ".join(str(round(end / steps)) for end in top.cycle_ends if end)
        print(f"warning: the run ends near the top of a restart cycle (lr {top.lr:.2g}); "
              f"--epochs {ends} ends at the bottom of one")


def _check_memory(settings, model):
    """Print the memory of a step if that is all that is asked for; refuse what cannot fit."""
    sizes = [settings.image_size, *(size for _, size in settings.image_size_after)]
    H, W = max(sizes, key=lambda size: size[0] * size[1])
    if not settings.dry_run and settings.batch_size * H * W < SMALL_BATCH:
        return
    losses = {settings.loss, *(loss for _, loss in settings.loss_after)}
    estimate = max((estimate_memory(model, (H, W), settings.batch_size, loss=loss,
                                    optimizer=settings.optimizer, ema=settings.ema > 0,
                                    accumulate=settings.accumulate) for loss in losses),
                   key=lambda estimate: estimate.total)
    available = machine_memory()
    if settings.dry_run:
        print(format_estimate(estimate, available))
    elif available is not None and estimate.total > CANNOT_FIT * available:
        raise UserError(f"a step needs about {estimate.total / 2**20:,.0f} MiB of memory, and "
                        f"{available / 2**20:,.0f} are left; use a smaller --batch-size (with "
                        f"--accumulate to keep the step's size), --image-size or --scale "
                        f"(--dry-run shows the estimate)")


def _describe_data(settings, config, train_set, statistics):
    """Return what every checkpoint tells of its data and its settings."""
    return {"config": config, "original_size": list(train_set[0].mask.shape),
            "classes": {"names": list(train_set.class_names),
                        "palette": np.asarray(train_set.palette).tolist(),
                        "map": train_set.class_map.to_dict(),
                        "ignore_index": settings.ignore_index,
                        "pixels": statistics.pixels.tolist()}}


if __name__ == "__main__":
    sys.exit(run_command(main))
