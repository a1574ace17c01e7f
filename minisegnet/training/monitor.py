"""What --debug measures while a run trains, into debug.jsonl.

Every step costs a count of the labels and a few numbers. What is dearer (norms by layer, the size
and direction of an update, which needs copies of all parameters) is measured in a dozen or two
of an epoch's steps, and in the first ones.
"""

import json
import math

import numpy as np

from minisegnet.training.alarms import Alarms
from minisegnet.training.movement import Movement
from minisegnet.training.run_folder import append_json_line, write_text

SAMPLES_PER_EPOCH = 12
FIRST_STEPS = 4  # sampled in any case
ENDS = 10  # steps at either end of an epoch whose mean loss is kept
PIXEL_STRIDE = 4  # of the input, every fourth row and column is looked at
DIGITS = 4  # significant ones of the many numbers by layer


class Monitor:
    """Writes the records of a run, and prints the warnings of `Alarms`; the trainer calls it.

    It reads parameters, gradients and batches and changes none: a run with it is, bit for bit, the
    run without. "Since the start" is since its first step, so for a resumed run since it was
    resumed; likewise the record of an epoch that was interrupted tells of the steps since then.
    """

    def __init__(self, folder, model, optimizer, class_names, ignore_index, steps_per_epoch):
        self.path, self.model, self.flat = folder / "debug.jsonl", model, optimizer.flat
        self.num_classes, self.ignore_index = len(class_names), ignore_index
        self.steps_per_epoch = steps_per_epoch
        self.every = max(1, steps_per_epoch // SAMPLES_PER_EPOCH)
        self.alarms = Alarms(class_names)
        self._movement = None  # made at the start, when the weights are loaded
        self._record = None  # of the step at hand, if it is sampled
        self._steps_done = 0  # of the run
        self._begin_epoch()
        self._begin_validation()

    def start(self, record):
        """Write what was found before the first step."""
        self._movement = Movement(self.model, self.flat)
        self._write("start", record)

    def gradients(self, step, epoch, batches, values, norm):
        """Look at `step` (from 0) before its update; `values` holds its train_loss.

        `norm` is that of the gradient before clipping; the gradient at hand may be clipped.
        """
        if self._movement is None:
            self._movement = Movement(self.model, self.flat)
        labelled = sum(self._count_targets(batch.target) for batch in batches)
        valid_share = labelled / sum(batch.target.size for batch in batches)
        self._losses.append(values["train_loss"])
        self._norms.append(norm)
        self._record = None
        if not math.isfinite(norm):
            return  # the trainer stops here, and says where it began
        self.alarms.step(step, norm, valid_share)
        if self._is_sampled(step):
            self._record = {"step": step, "epoch": epoch, "loss": values["train_loss"],
                            "gradient_norm": norm, "valid_share": valid_share}
            self._layer_norms = self._movement.gradient_norms(norm)
            self._see_gradients()
            self._see_input(batches[0].images)
        if self._is_sampled(step) or self._is_sampled(step + 1):
            self._movement.before_update()

    def updated(self, step, lr):
        """Look at what the update of `step`, at the rate `lr`, has done."""
        self._steps_done = step + 1
        if self._record is None:
            if self._is_sampled(step + 1):
                self._movement.note_update(step)
            return
        update = self._movement.update(step)
        self.alarms.update(step, update.ratio)
        self._updates.append((lr, update.ratio))
        layers = {name: [_rounded(norm), _rounded(update.ratio_of_layer[name])]
                  for name, norm in self._layer_norms.items()}
        self._write("step", {
            **self._record, "lr": lr, "update_ratio": update.ratio,
            "update_per_lr": update.rms / lr if lr > 0 else None,
            "update_cosine": update.cosine, "layers": layers})
        self._record = None

    def end_of_epoch(self, epoch):
        """Write what the steps of an epoch had in common; nothing if there was none."""
        if not self._losses:
            return
        still = self._movement.still()
        norms_still, untrained = self._movement.batch_norms_still()
        input_mean, input_std = self._input_statistics()
        record = {
            "epoch": epoch, "steps": len(self._losses),
            "losses": {"first": float(np.mean(self._losses[:ENDS])),
                       "last": float(np.mean(self._losses[-ENDS:]))},
            "target_pixels": self._target_pixels.tolist(), "ignored_pixels": self._ignored,
            "empty_batches": self._empty_batches, "batches": self._batches,
            "gradient_norm": {"min": min(self._norms), "median": float(np.median(self._norms)),
                              "max": max(self._norms)},
            "still": still, "parameters": len(self.flat.names),
            "no_gradient": [name for name in self.flat.names
                            if name in (self._no_gradient or ())],
            "batch_norm_still": norms_still, "batch_norm_layers": self._movement.num_batch_norms,
            "input_mean": input_mean, "input_std": input_std}
        self._write("epoch", record)
        self.alarms.epoch(record, self._updates, self._largest,
                          [name for name in still if not self._is_frozen(name)])
        self.alarms.batch_norm(norms_still, untrained)
        self._begin_epoch()

    def observe(self, batch, prediction):
        """Look at a batch of the validation and what was predicted for it, both (N, H, W)."""
        truth, ignored = self._pixels(batch.target)
        labelled = (batch.target != self.ignore_index) & (batch.target < self.num_classes)
        predicted = np.bincount(prediction[labelled], minlength=self.num_classes)
        self._truth += truth
        self._ignored_in_validation += ignored
        self._predicted += predicted
        self._classes.append((np.count_nonzero(predicted), np.count_nonzero(truth)))

    def end_of_validation(self, epoch, loss, confusion):
        """Write what a validation showed: the `ConfusionMatrix`, and the monitor's own count."""
        found, true = zip(*self._classes) if self._classes else ((0,), (0,))
        record = {
            "epoch": epoch, "loss": loss, "confusion": confusion.matrix.tolist(),
            "target_pixels": self._truth.tolist(), "ignored_pixels": self._ignored_in_validation,
            "predicted_pixels": self._predicted.tolist(),
            "classes_per_batch": {"min": min(found), "mean": float(np.mean(found))},
            "truth_classes_per_batch": {"min": min(true), "mean": float(np.mean(true))}}
        self._write("validation", record)
        self.alarms.validation(record, self._classes, self._steps_done)
        self._begin_validation()

    def failure(self, step, what, found, message):
        """Write that `what`, the loss or the gradient of `step`, was not finite.

        `found` is what `first_non_finite` says, `message` what the user is told.
        """
        tensor, direction = found or (None, None)
        self._write("failure", {"step": step, "what": what, "tensor": tensor,
                                "direction": direction, "message": message})

    def end(self, epoch, step, finished):
        """Write that the run has ended, `finished` or interrupted, after `step` steps.

        `epoch` epochs are over, validation included.
        """
        if step == (epoch + 1) * self.steps_per_epoch:  # none is left to tell of when it goes on
            self.end_of_epoch(epoch + 1)
        self._write("end", {"epoch": epoch, "step": step, "finished": finished})

    def restore(self, step):
        """Drop what a run that goes on after `step` steps will write again, and a cut-off line.

        That is the steps from there on, the epochs not finished by then, failure and end; at step
        0 everything.
        """
        if not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        write_text(self.path, "".join(line + "\n" for line in lines if self._stays(line, step)))

    def _stays(self, line, step):
        try:
            record = json.loads(line)
            if record["kind"] == "start":
                return step > 0
            if record["kind"] == "step":
                return record["step"] < step
            if record["kind"] in ("epoch", "validation"):
                return record["epoch"] * self.steps_per_epoch <= step
        except (ValueError, KeyError, TypeError):  # cut off by a kill
            pass
        return False

    def _is_sampled(self, step):
        return step <= FIRST_STEPS or step % self.every == 0

    def _is_frozen(self, name):
        """Whether parameter `name` is kept on purpose."""
        frozen = [layer_name for layer_name, layer in self.model.named_layers() if layer.frozen]
        return self.flat.lr_scales[name] == 0 or any(
            name.startswith(f"{layer_name}.") or not layer_name for layer_name in frozen)

    def _pixels(self, target):
        """Return the pixels of each class (K,) in `target`, and the number of all others."""
        counts = np.bincount(target.reshape(-1), minlength=256)
        counts[self.ignore_index] = 0
        counts = counts[:self.num_classes]
        return counts, target.size - int(counts.sum())

    def _count_targets(self, target):
        """Count the labels of a training batch; return how many there are."""
        counts, ignored = self._pixels(target)
        self._target_pixels += counts
        self._ignored += ignored
        self._batches += 1
        self._empty_batches += ignored == target.size
        return target.size - ignored

    def _see_gradients(self):
        """Keep which parameters no gradient reaches, and the largest norm of each layer."""
        without = self._movement.without_gradient()
        self._no_gradient = without if self._no_gradient is None else self._no_gradient & without
        for name, norm in self._layer_norms.items():
            self._largest[name] = max(norm, self._largest.get(name, 0.0))

    def _see_input(self, images):
        """Add to the number of pixels, and the sums of their channels and of the squares."""
        x = images[:, ::PIXEL_STRIDE, ::PIXEL_STRIDE].reshape(-1, 3).astype(np.float64)
        self._pixels_seen += len(x)
        self._sums += x.sum(axis=0), (x * x).sum(axis=0)

    def _input_statistics(self):
        """Return mean [3] and standard deviation [3] of the input of the sampled steps, if any."""
        if not self._pixels_seen:
            return [None] * 3, [None] * 3
        mean, square = self._sums / self._pixels_seen
        return mean.tolist(), np.sqrt(np.maximum(square - mean * mean, 0)).tolist()

    def _begin_epoch(self):
        self._target_pixels = np.zeros(self.num_classes, np.int64)
        self._ignored = self._batches = self._empty_batches = 0
        self._losses, self._norms, self._updates = [], [], []
        self._largest, self._no_gradient = {}, None  # of the sampled steps
        self._pixels_seen, self._sums = 0, np.zeros((2, 3))

    def _begin_validation(self):
        self._truth, self._predicted = np.zeros((2, self.num_classes), np.int64)
        self._ignored_in_validation, self._classes = 0, []

    def _write(self, kind, record):
        append_json_line(self.path, {"kind": kind, **record})


def _rounded(value):
    return float(f"{value:.{DIGITS}g}")
