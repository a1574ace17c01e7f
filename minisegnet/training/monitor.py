"""What --debug measures while a run trains, into debug.jsonl, and the warnings it gives.

Every step costs a count of the labels and a few numbers; what is dearer (norms by layer, the size
and direction of an update, which needs copies of all parameters) is measured in a dozen steps an
epoch, and in the first ones.
"""

import json
import math

import numpy as np
from tqdm import tqdm

from minisegnet.layers import BatchNorm2d
from minisegnet.training.run_folder import append_json_line, write_text

SAMPLES_PER_EPOCH = 12
FIRST_STEPS = 4  # sampled in any case
VANISHING, EXPLODING = 1e-7, 1e3  # norms of the whole gradient
ENDS = 10  # steps at either end of an epoch whose mean loss is kept
FEWEST_CLASSES = 5  # a validation batch should show so many, or half of those in its truth


class Monitor:
    """Writes records of kind start, step, epoch, validation, failure and end to debug.jsonl.

    The trainer calls it at each of these points. It reads parameters, gradients and batches, and
    changes none: a run with it is bit for bit the run without. "Since the start" is since this
    monitor was made; a resumed run begins anew there.
    """

    def __init__(self, folder, model, optimizer, class_names, ignore_index, steps_per_epoch):
        self.path, self.flat = folder / "debug.jsonl", optimizer.flat
        self.class_names, self.ignore_index = tuple(class_names), ignore_index
        self.every = max(1, steps_per_epoch // SAMPLES_PER_EPOCH)
        self._starts = np.array([part.start for part in self.flat.slices.values()])
        self._group_names, self._group_starts = _groups(self.flat)
        self._batch_norms = [layer for _, layer in model.named_layers()
                             if isinstance(layer, BatchNorm2d)]
        self._initial = None  # parameters and running statistics, taken at the first step
        self._before = np.empty_like(self.flat.data)  # parameters before the step at hand
        self._change = np.empty_like(self.flat.data)  # what the last sampled step did
        self._change_of = None  # that step
        self._any_gradient = np.zeros(self._starts.size, bool)
        self._record = None  # of the step at hand, if it is sampled
        self._warned = set()
        self._begin_epoch()
        self._begin_validation()

    def start(self, record):
        """Keep what was found before the first step."""
        self._write("start", **{key: value for key, value in record.items() if key != "kind"})

    def gradients(self, step, epoch, batches, values, norm):
        """Look at a step after its backward: `values` holds its train_loss.

        `norm` is that of the gradient before clipping; the gradient at hand may be clipped.
        """
        if self._initial is None:
            self._initial = self.flat.data.copy(), self._statistics()
        K, loss = len(self.class_names), values["train_loss"]
        for batch in batches:
            counts = np.bincount(batch.target.reshape(-1), minlength=256)
            self._labels += counts
            valid = batch.target.size - int(counts[self.ignore_index])
            self._batches += 1
            self._empty_batches += valid == 0
        self._losses.append(loss)
        self._norms.append(norm)
        if norm > EXPLODING:
            self._warn("exploding", f"gradient norm {norm:.3g} at step {step}, above "
                                    f"{EXPLODING:g}: exploding; try --clip-norm 1 or a lower --lr")
        elif norm < VANISHING:
            self._warn("vanishing", f"gradient norm {norm:.3g} at step {step}, below "
                                    f"{VANISHING:g}: nothing is learned from it")
        self._record = None
        if self._is_sampled(step) or self._is_sampled(step + 1):
            np.copyto(self._before, self.flat.data)
        if self._is_sampled(step):
            valid = sum(np.count_nonzero(batch.target != self.ignore_index) for batch in batches)
            self._record = {
                "step": step, "epoch": epoch, "loss": loss, "gradient_norm": norm,
                "valid_share": valid / sum(batch.target.size for batch in batches)}
            self._see_input(batches[0].images)
            self._see_gradient(norm)
        foreign = self._labels[K:].sum() - self._labels[self.ignore_index]
        if foreign:
            self._warn("labels", f"labels above {K - 1} that are not {self.ignore_index} reach "
                                 f"the loss: {foreign:,} px")

    def updated(self, step, lr):
        """Look at a step after its update at the rate `lr`."""
        sampled = self._record is not None
        if not sampled and not self._is_sampled(step + 1):
            return
        previous = self._change.copy() if sampled and self._change_of == step - 1 else None
        np.subtract(self.flat.data, self._before, out=self._change)
        self._change_of = step
        if not sampled:
            return
        change = _norm(self._change)
        squares = {name: np.add.reduceat(array * array, self._group_starts, dtype=np.float64)
                   for name, array in (("change", self._change), ("size", self._before))}
        ratios = np.sqrt(squares["change"] / np.maximum(squares["size"], 1e-30))
        moved = np.count_nonzero(self._change)
        record, self._record = self._record, None
        record.update(
            lr=lr, update_ratio=change / max(_norm(self._before), 1e-30),
            update_per_lr=change / math.sqrt(max(moved, 1)) / lr if lr > 0 else None,
            update_cosine=None, layers={
                name: [float(norm), float(ratio)] for name, norm, ratio in
                zip(self._group_names, self._layer_norms, ratios)})
        if previous is not None and change > 0 and previous.any():
            cosine = float(previous @ self._change) / (_norm(previous) * change)
            record["update_cosine"] = cosine
        self._write("step", **record)

    def end_of_epoch(self, epoch):
        """Write what the steps of an epoch had in common."""
        if not self._losses:
            return
        K, counts = len(self.class_names), self._labels
        norms = np.array(self._norms)
        still, no_gradient, norms_still = [], [], 0
        if self._initial is not None:
            parameters, statistics = self._initial
            moved = np.logical_or.reduceat(self.flat.data != parameters, self._starts)
            still = self._names(~moved)
            no_gradient = self._names(~self._any_gradient)
            norms_still = int(sum((now == then).all() for now, then in
                                  zip(self._statistics(), statistics)))
        seen = max(self._pixels_seen, 1)
        mean = self._sums / seen
        self._write(
            "epoch", epoch=epoch, steps=len(self._losses),
            losses={"first": float(np.mean(self._losses[:ENDS])),
                    "last": float(np.mean(self._losses[-ENDS:]))},
            target_pixels=counts[:K], ignored_pixels=int(counts[self.ignore_index]),
            empty_batches=int(self._empty_batches), batches=self._batches,
            gradient_norm={"min": norms.min(), "median": np.median(norms), "max": norms.max()},
            still=still, no_gradient=no_gradient, parameters=self._starts.size,
            batch_norm_still=norms_still, batch_norm_layers=len(self._batch_norms),
            input_mean=mean, input_std=np.sqrt(np.maximum(self._squares / seen - mean**2, 0)))
        if self._empty_batches:
            self._warn("empty", f"{self._empty_batches} of {self._batches} batches of epoch "
                                f"{epoch} have no labelled pixel")
        if len(still) > self._starts.size / 2:
            self._warn("still", f"{len(still)} of {self._starts.size} parameter arrays have not "
                                f"moved since the start")
        if self._batch_norms and norms_still == len(self._batch_norms):
            self._warn("statistics", f"the running statistics of all {norms_still} batch norms "
                                     f"have not moved since the start")
        self._begin_epoch()

    def observe(self, batch, prediction):
        """Look at a batch of the validation and what was predicted for it, both (N, H, W)."""
        K, valid = len(self.class_names), batch.target != self.ignore_index
        truth = np.bincount(batch.target.reshape(-1), minlength=256)
        predicted = np.bincount(prediction[valid], minlength=K)
        self._ignored += int(truth[self.ignore_index])
        truth[self.ignore_index] = 0
        self._truth += truth[:K]
        self._predicted += predicted[:K]
        self._diversity.append([np.count_nonzero(predicted), np.count_nonzero(truth)])

    def end_of_validation(self, epoch, loss, confusion):
        """Write what the validation showed: the metric's `confusion` and the monitor's own count.

        `confusion` is a ConfusionMatrix.
        """
        diversity = np.array(self._diversity or [[0, 0]])
        (least, least_true), (mean, mean_true) = diversity.min(axis=0), diversity.mean(axis=0)
        self._write(
            "validation", epoch=epoch, loss=loss, confusion=confusion.matrix,
            target_pixels=self._truth, ignored_pixels=self._ignored,
            predicted_pixels=self._predicted,
            classes_per_batch={"min": least, "mean": mean},
            truth_classes_per_batch={"min": least_true, "mean": mean_true})
        self._check_confusion(epoch, confusion)
        if diversity.size and (diversity[:, 0] == 1).all() and mean_true > 1:
            self._warn("collapse", f"the validation of epoch {epoch} predicts one class in every "
                                   f"batch, {self.class_names[self._predicted.argmax()]}")
        elif mean < min(FEWEST_CLASSES, mean_true / 2):
            self._warn("diversity", f"the validation of epoch {epoch} predicts {mean:.1f} classes "
                                    f"a batch, and {mean_true:.1f} are there")
        self._begin_validation()

    def _check_confusion(self, epoch, confusion):
        counted, total = int(self._truth.sum()), int(confusion.matrix.sum())
        if total == 0:
            self._warn("empty matrix", f"the confusion matrix of epoch {epoch} is empty, and "
                                       f"{counted:,} px were compared")
        elif total != counted:
            self._warn("matrix", f"the confusion matrix of epoch {epoch} holds {total:,} px, and "
                                 f"{counted:,} were compared")

    def failure(self, step, what, found, message):
        """Note that `what`, the loss or the gradient of `step`, was not finite.

        `found` is what `first_non_finite` says.
        """
        tensor, direction = found or (None, None)
        self._write("failure", step=step, what=what, tensor=tensor, direction=direction,
                    message=message)

    def end(self, epoch, step, finished):
        """Note the end of the run, `finished` or interrupted."""
        self._write("end", epoch=epoch, step=step, finished=finished)

    def restore(self, step):
        """Drop the records of `step` (from 0) and later, which come again, and what was cut off.

        So do the notes of a failure and of the end.
        """
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
                kind = record["kind"]
            except (ValueError, KeyError, TypeError):  # cut off by a kill
                continue
            if kind == "step" and record["step"] >= step:
                break  # with all that followed: an epoch's own record comes after its steps
            if kind not in ("failure", "end"):
                kept.append(line)
        write_text(self.path, "".join(line + "\n" for line in kept))

    def _is_sampled(self, step):
        return step <= FIRST_STEPS or step % self.every == 0

    def _see_input(self, images):
        rows = images.reshape(-1, 3 * images.shape[2])
        sums = rows.sum(axis=0, dtype=np.float64), np.einsum("rw,rw->w", rows, rows,
                                                             dtype=np.float64)
        self._sums += sums[0].reshape(-1, 3).sum(axis=0)
        self._squares += sums[1].reshape(-1, 3).sum(axis=0)
        self._pixels_seen += images.size // 3

    def _see_gradient(self, norm):
        grad = self.flat.grad
        squares = np.add.reduceat(grad * grad, self._group_starts, dtype=np.float64)
        clipped = math.sqrt(float(squares.sum()))
        with np.errstate(invalid="ignore"):
            self._layer_norms = np.sqrt(squares) * (norm / clipped if clipped else 1.0)
        self._any_gradient |= np.logical_or.reduceat(grad != 0, self._starts)

    def _names(self, chosen):
        return [name for name, is_chosen in zip(self.flat.slices, chosen) if is_chosen]

    def _statistics(self):
        return [np.concatenate([layer.buffers["running_mean"], layer.buffers["running_var"]])
                for layer in self._batch_norms]

    def _begin_epoch(self):
        self._labels = np.zeros(256, np.int64)
        self._batches = self._empty_batches = 0
        self._losses, self._norms = [], []
        self._sums, self._squares, self._pixels_seen = np.zeros(3), np.zeros(3), 0

    def _begin_validation(self):
        K = len(self.class_names)
        self._truth, self._predicted = np.zeros(K, np.int64), np.zeros(K, np.int64)
        self._ignored, self._diversity = 0, []

    def _write(self, kind, **record):
        append_json_line(self.path, {"kind": kind, **record})

    def _warn(self, kind, message):
        """Say a message, the first of its kind only."""
        if kind not in self._warned:
            self._warned.add(kind)
            tqdm.write(f"    debug: {message}")


def _groups(flat):
    """Return names and starts, in the flat buffer, of the parts of a model.

    A part is what agrees in the first two words of its dotted names.
    """
    names, starts = [], []
    for name, part in flat.slices.items():
        group = ".".join(name.split(".")[:-1][:2]) or name
        if not names or names[-1] != group:
            names.append(group)
            starts.append(part.start)
    return names, np.array(starts)


def _norm(array):
    return math.sqrt(float(array @ array))
