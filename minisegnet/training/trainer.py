"""The training loop: epochs of steps, a validation, one plain line, and files that can be kept.

A step is: images -> coarse logits -> loss -> its gradient -> backward -> clip -> update.
"""

import math
import os
import signal
import threading
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from minisegnet.errors import UserError
from minisegnet.imbalance.fingerprint import resembles
from minisegnet.losses.criterion import Criterion, WholeBatch
from minisegnet.optim import clip_grad_norm
from minisegnet.training.checkpoint import load_weights, save_checkpoint
from minisegnet.training.evaluation import evaluate
from minisegnet.training.flags import LOWER_IS_BETTER
from minisegnet.training.loss_scale import check_statistics
from minisegnet.training.nonfinite import first_non_finite
from minisegnet.training.run_folder import append_json_line, json_ready, restore_log

GOOD_IOU = 0.30  # the share of classes above it is reported every epoch
PER_CLASS_EVERY = 5  # epochs between the per-class lines
READ_EVERY = 50  # steps on a GPU between two readings of the loss: each waits for the GPU


class Phase(NamedTuple):
    """What an epoch trains with."""

    criterion: Criterion
    train_loader: object
    val_loader: object
    size: tuple = None  # (H, W) of the pictures
    starts_stage: bool = False  # the optimizer begins anew with this epoch
    is_last: bool = True  # nothing will be switched any more


@dataclass
class Trainer:
    """Everything a run needs; `fit()` runs it.

    `schedule(step)` gives the learning rate of optimizer step `step`, counted from 0;
    `phase(epoch)` makes the model ready for an epoch, counted from 1, and returns its `Phase`.
    `accumulate` batches make one step.
    """

    model: object
    optimizer: object
    schedule: object
    phase: object
    folder: object  # pathlib.Path of the run
    class_names: tuple
    epochs: int
    accumulate: int = 1
    clip_norm: float = 0.0  # 0: no clipping
    min_lr: float = 0.0  # below which a plateau does not bring the rate
    val_every: int = 1
    save_every: int = 0
    monitor: str = "mean_iou"  # the entry of the log's records that best.npz goes by
    ema: object = None  # ExponentialMovingAverage
    plateau: object = None  # ReduceLROnPlateau
    early_stopping: object = None  # EarlyStopping
    meta: dict = None  # what else goes into every checkpoint
    baselines: tuple = ()  # what predictors score that know nothing of the pictures
    debug: object = None  # Monitor of --debug
    ledger: object = None  # LedgerLog of --ledger
    device_step: object = None  # DeviceStep, where the model is on a GPU

    def __post_init__(self):
        self.epoch = 0  # epochs finished
        self.step = 0  # optimizer steps done
        self.position = 0  # batches done of the epoch after `epoch`
        self.totals = {}  # of that epoch: sums over its steps
        self.size = None  # of the pictures, in the epoch at hand or the last one
        self.best = None
        self.record = None  # of the last finished epoch
        self.stopped_early = False
        self.interrupted = False
        self._said_why_not_captured = False
        self._sits_on = None  # the Baseline that the last validation cannot be told from

    def fit(self):
        """Train; return True if the run is complete, False after an interrupt.

        The first Ctrl-C or SIGTERM ends the run after the step at hand, with its state saved to
        last.npz; a second one ends it at once. Raises UserError if the loss is not finite.
        """
        with self._graceful_signals():
            while self.epoch < self.epochs and not self.stopped_early:
                if self.interrupted or not self._run_epoch():
                    return self._ends(finished=False)
        return self._ends(finished=True)

    def _ends(self, finished):
        if self.debug is not None:
            self.debug.end(self.epoch, self.step, finished)
        return finished

    def _run_epoch(self):
        """Train and validate the next epoch; return False if it was left in the middle."""
        epoch, start = self.epoch + 1, time.perf_counter()
        phase = self.phase(epoch)
        self.size = phase.size
        if phase.starts_stage and self.position == 0:
            self._start_stage()
        self._train_epoch(epoch, phase)
        if self.interrupted:
            self._save_last()
            return False
        if self._loss_scale is not None:
            self._loss_scale.check_epoch(self.totals, self.step)
        record = {"epoch": epoch, **self._means(), "lr": self.optimizer.lr,
                  "loss": phase.criterion.name}
        if phase.train_loader.sampler is not None:
            record["sampler"] = phase.train_loader.sampler_report(epoch)
        if self.debug is not None:
            self.debug.end_of_epoch(epoch)
        if epoch % self.val_every == 0 or epoch == self.epochs:
            record.update(self._validate(phase))
        record["seconds"] = round(time.perf_counter() - start, 3)
        self.epoch, self.position, self.totals, self.record = epoch, 0, {}, json_ready(record)
        self._report(record)
        self._keep(record, phase)
        return True

    def _means(self):
        """Return what the epoch's steps say on average, and how the loss scale fared."""
        totals = dict(self.totals)
        steps, skipped = totals.pop("steps"), totals.pop("skipped_steps", 0)
        # The norm of a gradient that overflowed is no number: the sum is that of the others.
        done = {"gradient_norm": max(1, steps - skipped)}
        means = {name: total / done.get(name, steps) for name, total in totals.items()}
        if self._loss_scale is None:
            return means
        return {**means, "skipped_steps": skipped, "loss_scale": self._loss_scale.value}

    @property
    def _loss_scale(self):
        """The LossScale of float16, or None."""
        return getattr(self.device_step, "loss_scale", None)

    def _start_stage(self):
        """Forget what optimizer and plateau know of the stage before."""
        self.optimizer.reset_state()
        if self.plateau is not None:
            self.plateau.reset()
            self.plateau.scale = 1.0

    def train_step(self, batches, criterion):
        """One update from the gradients of `batches`, a list.

        Returns {"train_loss", "train_<part of the loss>" ..., "gradient_norm" before clipping}.
        """
        # An overflow shows in the loss or the norm, and is reported from there.
        with np.errstate(over="ignore", invalid="ignore"):
            return self._train_step(batches, criterion)

    def _set_lr(self):
        lr = self.schedule(self.step)
        if self.plateau is not None:
            lr = max(lr * self.plateau.scale, min(lr, self.min_lr))
        self.optimizer.lr = lr

    def _train_step(self, batches, criterion):
        self._set_lr()
        self.optimizer.zero_grad()
        whole = None
        if len(batches) > 1:
            whole = WholeBatch(self._pixels_per_class(batches), len(batches))
        values = {"train_loss": 0.0}
        for batch in batches:
            coarse = self.model.forward_coarse(batch.images)
            loss, cache = criterion.forward_upsampled(coarse, batch.target, whole=whole)
            values["train_loss"] += float(loss)
            if not math.isfinite(values["train_loss"]):
                self._stop("loss", float(loss), batches, criterion, whole)
            if self.ledger is not None:
                self.ledger.observe(self.step, coarse, batch.target, criterion)
            for name, value in criterion.parts(cache).items():
                values[f"train_{name}"] = values.get(f"train_{name}", 0.0) + float(value)
            self.model.backward_coarse(criterion.backward_upsampled(1.0, cache))
        norm = float(clip_grad_norm(self.optimizer, self.clip_norm or math.inf))
        if self.debug is not None:
            self.debug.gradients(self.step, self.epoch + 1, batches, values, norm)
        if not math.isfinite(norm):
            self._stop("gradient", norm, batches, criterion, whole)
        self.optimizer.step()
        if self.debug is not None:
            self.debug.updated(self.step, self.optimizer.lr)
        if self.ema is not None:
            self.ema.update()
        self.step += 1
        return {**values, "gradient_norm": norm}

    def _enqueue_step(self, batches, criterion):
        """`train_step` on a GPU, without waiting for what it says."""
        self._set_lr()
        self.device_step(batches, criterion)
        self.step += 1
        if self.device_step.steps >= READ_EVERY:
            self._read_device()

    def _read_device(self):
        """Add to `totals` what the steps since the last reading say; UserError if not finite."""
        steps = self.device_step.steps
        if steps == 0:
            return
        sums = self.device_step.read()
        skipped, scale = sums.pop("skipped"), self._loss_scale
        if not math.isfinite(sums["train_loss"]) or skipped and scale is None:
            what = "loss" if not math.isfinite(sums["train_loss"]) else "gradient"
            bf16 = "" if scale is None else "use --amp bf16, since float16 ends at 65504, "
            off = "" if self.device_step.dtype is None else " --amp off"
            raise UserError(f"the {what} was not finite within the {steps} steps before step "
                            f"{self.step}; {bf16}lower --lr, use --clip-norm 1, or another "
                            f"--optimizer; --device cpu --debug{off} names the tensor where it "
                            f"begins")
        if scale is not None:
            if skipped:
                check_statistics(self.model)
            scale.check(self.step)
            sums["skipped_steps"] = skipped
        for name, total in sums.items():
            self.totals[name] = self.totals.get(name, 0) + total

    def _stop(self, what, value, batches, criterion, whole):
        """Raise UserError for a loss or gradient that is not finite, naming where it began."""
        found = first_non_finite(self.model, self.optimizer, batches, criterion, whole=whole)
        where = f", first in {found[0]} ({found[1]})" if found else ""
        message = (f"the {what} is {value} at step {self.step}{where}; lower --lr, use "
                   f"--clip-norm 1, or another --optimizer")
        if self.debug is not None:
            self.debug.failure(self.step, what, found, message)
        raise UserError(message)

    def _pixels_per_class(self, batches):
        """Return the pixels (K,) of each class in the targets; ignored ones lie beyond K."""
        K = self.model.num_classes
        return sum(np.bincount(batch.target.ravel(), minlength=K)[:K] for batch in batches)

    def _train_epoch(self, epoch, phase):
        """Do the steps of the epoch from `position` on, adding what they say to `totals`."""
        self.model.train()
        loader = phase.train_loader
        batches = loader.batches(epoch, start=self.position)
        bar = self._bar(batches, len(loader), f"epoch {epoch}", initial=self.position)
        waiting = []
        for batch in bar:
            waiting.append(batch)
            done = self.position + len(waiting)
            if len(waiting) < self.accumulate and done < len(loader):
                continue
            if self.device_step is not None:
                self._enqueue_step(waiting, phase.criterion)
            else:
                for name, value in self.train_step(waiting, phase.criterion).items():
                    self.totals[name] = self.totals.get(name, 0.0) + value
            self.totals["steps"] = self.totals.get("steps", 0) + 1
            self.position, waiting = done, []
            if self.interrupted:
                batches.close()
                break
        if self.device_step is not None:
            self._read_device()
            self._say_why_not_captured()

    def _say_why_not_captured(self):
        """Say once why steps on a GPU are launched kernel by kernel, if they are."""
        reason = self.device_step.why_not_captured
        if reason and not self._said_why_not_captured:
            self._said_why_not_captured = True
            tqdm.write(f"the training step is no CUDA graph, which costs time: {reason}")

    def _validate(self, phase):
        observer = {} if self.debug is None else {"observe": self.debug.observe}
        with self.ema.applied() if self.ema else nullcontext():
            loss, confusion = evaluate(
                self.model, phase.val_loader, phase.criterion, **observer,
                progress=lambda batches: self._bar(batches, len(phase.val_loader), "validate"))
        if self.debug is not None:
            self.debug.end_of_validation(self.epoch + 1, loss, confusion)
        self._sits_on = resembles(confusion, self.baselines)
        iou = confusion.iou
        return {
            "val_loss": loss,
            "mean_iou": confusion.mean_iou_present,
            "mean_iou_all": confusion.mean_iou_all,
            "active_classes": confusion.active_classes(),
            "share_above_0.30": float((iou > GOOD_IOU).mean()),
            "pixel_accuracy": confusion.pixel_accuracy,
            "fw_iou": confusion.fw_iou,
            "mean_dice": confusion.mean_dice_present,
            "iou": iou,
            "precision": confusion.precision,
            "recall": confusion.recall,
        }

    @staticmethod
    def _bar(batches, total, label, initial=0):
        # disable=None: a bar on a terminal only, never in a log file
        return tqdm(batches, total=total, desc=label, leave=False, disable=None, initial=initial)

    def _report(self, record):
        line = f"epoch {record['epoch']:>3}/{self.epochs}  train {record['train_loss']:.4f}"
        if "val_loss" in record:
            line += (f"  val {record['val_loss']:.4f}  mIoU {record['mean_iou']:.4f}"
                     f"  active {record['active_classes']}/{len(self.class_names)}"
                     f"  >{GOOD_IOU:.2f} {100 * record['share_above_0.30']:.0f}%"
                     f"  acc {record['pixel_accuracy']:.4f}")
        line += f"  lr {record['lr']:.2e}  {record['seconds']:.1f} s"
        if record.get("skipped_steps"):
            line += (f"  skipped {record['skipped_steps']} steps, loss scale "
                     f"{record['loss_scale']:g}")
        tqdm.write(line)
        if "val_loss" in record and self._sits_on is not None:
            tqdm.write(f"    indistinguishable from {self._sits_on.name}, which knows nothing of "
                       f"the pictures (mIoU {self._sits_on.mean_iou:.4f})")
        last = record["epoch"] == self.epochs
        if "iou" in record and (last or record["epoch"] % PER_CLASS_EVERY == 0):
            tqdm.write("    IoU  " + "  ".join(f"{name} {value:.2f}" for name, value in
                                               zip(self.class_names, record["iou"])))

    def _keep(self, record, phase):
        """Write what a finished epoch leaves; last.npz is what a resumed run goes by.

        It holds the epoch's record too, and the log comes after it: a run killed at any moment
        in between finds both again, or neither. Early stopping waits for the last switch of
        stage, loss or size, after which there is something else to see.
        """
        value = record[self.monitor] if "val_loss" in record else None
        is_best = value is not None and self._is_better(value)
        if is_best:
            self.best = value
        if value is not None and self.plateau is not None:
            self.plateau.update(value)
        if value is not None and self.early_stopping is not None and phase.is_last:
            self.stopped_early = self.early_stopping.update(value)
        if is_best:
            self._save_scored("best.npz")
        if self.save_every and self.epoch % self.save_every == 0:
            self._save_scored(f"epoch_{self.epoch:04d}.npz")
        self._save_last()
        append_json_line(self.folder / "log.jsonl", record)
        if self.stopped_early:
            tqdm.write(f"stopped early: no better {self.monitor} for "
                       f"{self.early_stopping.patience} validations")

    def _is_better(self, value):
        if self.best is None:
            return value == value  # not NaN
        return value < self.best if self.monitor in LOWER_IS_BETTER else value > self.best

    def _save_scored(self, name):
        """Save the weights as they were scored: the averages where there are some."""
        with self.ema.applied() if self.ema else nullcontext():
            save_checkpoint(self.folder / name, self.model, meta=self._meta())

    def _save_last(self):
        """Save everything that a resumed run needs."""
        progress = {
            "position": self.position, "totals": self.totals, "record": self.record,
            "stopped_early": self.stopped_early,
            "generators": [rng.bit_generator.state for rng in self._generators()],
            "device_generators": [rng.state for rng in self._device_generators()],
            "loss_scale": self._loss_scale.state_dict() if self._loss_scale else None,
            "plateau": self.plateau.state_dict() if self.plateau else None,
            "early_stopping": self.early_stopping.state_dict() if self.early_stopping else None,
        }
        save_checkpoint(self.folder / "last.npz", self.model, optimizer=self.optimizer,
                        ema=self.ema, meta={**self._meta(), "progress": progress})

    def _meta(self):
        return {**(self.meta or {}), "epoch": self.epoch, "step": self.step,
                "image_size": self.size, "monitor": self.monitor, "best": self.best}

    def _generators(self):
        """Return the random generators that layers draw from (dropout), each once."""
        layers = (layer for _, layer in self.model.named_layers() if hasattr(layer, "rng"))
        return list({id(layer.rng): layer.rng for layer in layers}.values())

    def _device_generators(self):
        layers = (layer for _, layer in self.model.named_layers())
        return [layer.device_rng for layer in layers if getattr(layer, "device_rng", None)]

    def restore(self, checkpoint):
        """Go on where the run of `checkpoint`, its last.npz, stood; mends the log to match.

        Raises UserError if it does not hold such a state.
        """
        meta = checkpoint.meta
        if "progress" not in meta:
            raise UserError(f"{checkpoint.path} holds weights but no run to go on with; start a "
                            f"new one with --init-from {checkpoint.path}")
        progress = meta["progress"]
        load_weights(self.model, checkpoint)
        try:
            self.optimizer.load_state_dict(checkpoint.optimizer)
            for state, saved in ((self.ema, checkpoint.ema), (self.plateau, progress["plateau"]),
                                 (self.early_stopping, progress["early_stopping"])):
                if state is not None:
                    state.load_state_dict(saved)
            for rng, saved in zip(self._generators(), progress["generators"], strict=True):
                rng.bit_generator.state = saved
            # A run that was on the CPU has none, and goes on with numbers of the device's own.
            device_states = progress.get("device_generators", ())
            for rng, saved in zip(self._device_generators(), device_states):
                rng.set_state(saved)
            # Likewise a run that was not in float16.
            if self._loss_scale is not None and progress.get("loss_scale") is not None:
                self._loss_scale.load_state_dict(progress["loss_scale"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{checkpoint.path} does not fit the settings of its run "
                            f"({error}); was config.toml changed?") from error
        self.epoch, self.step, self.best = meta["epoch"], meta["step"], meta["best"]
        self.position, self.totals = progress["position"], progress["totals"]
        self.record, self.stopped_early = progress["record"], progress["stopped_early"]
        restore_log(self.folder / "log.jsonl", self.record)
        for witness in (self.debug, self.ledger):
            if witness is not None:
                witness.restore(self.step)

    @contextmanager
    def _graceful_signals(self):
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may set signal handlers
            return

        def stop(number, frame):
            if self.interrupted:
                raise KeyboardInterrupt
            self.interrupted = True
            # os.write, since a print may have been interrupted in the middle of its work.
            os.write(2, b"\nstopping soon, saving last.npz (once more to stop at once)\n")

        before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
