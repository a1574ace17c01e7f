"""The training loop: epochs of steps, a validation, one plain line, and files that can be kept.

A step is: images -> coarse logits -> loss -> its gradient -> backward -> clip -> update.
"""

import math
import os
import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from minisegnet.errors import UserError
from minisegnet.optim import clip_grad_norm
from minisegnet.training.checkpoint import save_checkpoint
from minisegnet.training.evaluation import evaluate
from minisegnet.training.run_folder import append_json_line

GOOD_IOU = 0.30  # the share of classes above it is reported every epoch
PER_CLASS_EVERY = 5  # epochs between the per-class lines


@dataclass
class Trainer:
    """Everything a run needs; `fit()` runs it.

    `schedule(step)` gives the learning rate of optimizer step `step`, counted from 0.
    """

    model: object
    optimizer: object
    schedule: object
    criterion: object
    train_loader: object
    val_loader: object
    folder: object  # pathlib.Path of the run
    class_names: tuple
    epochs: int
    clip_norm: float = 0.0  # 0: no clipping
    val_every: int = 1
    save_every: int = 0
    meta: dict = None  # what else goes into every checkpoint

    def __post_init__(self):
        self.step = 0
        self.best = -1.0
        self.interrupted = False

    def fit(self):
        """Train; return True if all epochs were run, False after an interrupt.

        The first Ctrl-C or SIGTERM ends the run after the step at hand, with its state saved to
        last.npz; a second one ends it at once. Raises UserError if the loss is not finite.
        """
        with self._graceful_signals():
            for epoch in range(1, self.epochs + 1):
                start = time.perf_counter()
                train_loss, parts, gradient_norm = self._train_epoch(epoch)
                if self.interrupted:
                    self._save("last.npz", epoch - 1)
                    return False
                record = {"epoch": epoch, "train_loss": train_loss, **parts,
                          "gradient_norm": gradient_norm, "lr": self.optimizer.lr}
                if epoch % self.val_every == 0 or epoch == self.epochs:
                    record.update(self._validate())
                record["seconds"] = round(time.perf_counter() - start, 3)
                self._report(record)
                self._keep(record)
                if self.interrupted and epoch < self.epochs:
                    return False
        return True

    def train_step(self, batch):
        """One update; returns (loss, parts of the loss, gradient norm before clipping)."""
        # An overflow shows in the loss or the norm, and is reported from there.
        with np.errstate(over="ignore", invalid="ignore"):
            return self._train_step(batch)

    def _train_step(self, batch):
        self.optimizer.lr = self.schedule(self.step)
        self.optimizer.zero_grad()
        coarse = self.model.forward_coarse(batch.images)
        loss, cache = self.criterion.forward_upsampled(coarse, batch.target)
        loss = float(loss)
        if not math.isfinite(loss):
            raise UserError(f"the loss is {loss} at step {self.step}; lower --lr, use --clip-norm "
                            f"1, or another --optimizer")
        parts = self.criterion.parts(cache)
        self.model.backward_coarse(self.criterion.backward_upsampled(1.0, cache))
        norm = float(clip_grad_norm(self.optimizer, self.clip_norm or math.inf))
        if not math.isfinite(norm):
            raise UserError(f"the gradient is not finite at step {self.step}; lower --lr, or use "
                            f"another --optimizer")
        self.optimizer.step()
        self.step += 1
        return loss, parts, norm

    def _train_epoch(self, epoch):
        self.model.train()
        total_loss, totals, total_norm, steps = 0.0, {}, 0.0, 0
        batches = self.train_loader.batches(epoch)
        for batch in self._bar(batches, len(self.train_loader), f"epoch {epoch}"):
            loss, parts, norm = self.train_step(batch)
            total_loss, total_norm, steps = total_loss + loss, total_norm + norm, steps + 1
            for name, value in parts.items():
                totals[f"train_{name}"] = totals.get(f"train_{name}", 0.0) + float(value)
            if self.interrupted:
                batches.close()
                break
        return (total_loss / steps, {name: value / steps for name, value in totals.items()},
                total_norm / steps)

    def _validate(self):
        loss, confusion = evaluate(
            self.model, self.val_loader, self.criterion,
            progress=lambda batches: self._bar(batches, len(self.val_loader), "validate"))
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
    def _bar(batches, total, label):
        # disable=None: a bar on a terminal only, never in a log file
        return tqdm(batches, total=total, desc=label, leave=False, disable=None)

    def _report(self, record):
        line = f"epoch {record['epoch']:>3}/{self.epochs}  train {record['train_loss']:.4f}"
        if "val_loss" in record:
            line += (f"  val {record['val_loss']:.4f}  mIoU {record['mean_iou']:.4f}"
                     f"  active {record['active_classes']}/{len(self.class_names)}"
                     f"  >{GOOD_IOU:.2f} {100 * record['share_above_0.30']:.0f}%"
                     f"  acc {record['pixel_accuracy']:.4f}")
        tqdm.write(line + f"  lr {record['lr']:.2e}  {record['seconds']:.1f} s")
        last = record["epoch"] == self.epochs
        if "iou" in record and (last or record["epoch"] % PER_CLASS_EVERY == 0):
            tqdm.write("    IoU  " + "  ".join(f"{name} {value:.2f}" for name, value in
                                               zip(self.class_names, record["iou"])))

    def _keep(self, record):
        if record.get("mean_iou", -1.0) > self.best:
            self.best = record["mean_iou"]
            self._save("best.npz", record["epoch"])
        self._save("last.npz", record["epoch"])
        if self.save_every and record["epoch"] % self.save_every == 0:
            self._save(f"epoch_{record['epoch']:04d}.npz", record["epoch"])
        append_json_line(self.folder / "log.jsonl", record)

    def _save(self, name, epoch):
        save_checkpoint(self.folder / name, self.model, optimizer=self.optimizer,
                        meta={**(self.meta or {}), "epoch": epoch, "step": self.step,
                              "best_mean_iou": self.best, "class_names": list(self.class_names)})

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
