"""The gradient ledger of a run, kept while it trains: where each step's gradient came from."""

import json

import numpy as np

from minisegnet.datasets.palettes import palette_for
from minisegnet.imbalance.gradient_ledger import gradient_ledger
from minisegnet.ops.upsample import upsample_bilinear_forward
from minisegnet.training.run_folder import append_json_line, read_log, write_text

_RECORDS_PER_EPOCH = 8
_LEAST_STEPS = 10  # between records, where epochs are short


def steps_between_records(steps_per_epoch):
    """Return how often to record: eight times an epoch, but not before ten steps have gone by.

    A record takes as long as a tenth to a third of a step, for the logits are enlarged for it.
    """
    return max(_LEAST_STEPS, steps_per_epoch // _RECORDS_PER_EPOCH)


class LedgerLog:
    """Keeps ledger.jsonl in the run's `folder`, and draws ledger.png from it.

    A record holds the step, the loss's name and its value, the L1 norm of its gradient ("total"),
    the batch's valid pixels per class, and the shares of the gradient by target class and by
    logit, (K,) each. Steps divisible by `every` are recorded, so that a resumed run records those
    of an unbroken one; where gradients are accumulated, a step has a record per batch.
    `palette` (K, 3) uint8 are the colours of the classes.
    """

    def __init__(self, folder, class_names, every, palette=None):
        if every < 1:
            raise ValueError(f"every is {every}; expected a number of steps, at least 1")
        self.folder, self.class_names, self.every = folder, tuple(class_names), every
        self.palette = palette_for(len(self.class_names)) if palette is None else palette

    def observe(self, step, coarse, target, criterion):
        """Record a batch of `step` (from 0) if it is one to record; changes none of its arrays.

        `coarse` (N, h, w, K) are the model's logits and `target` (N, H, W) what `criterion` is to
        compare them with. The gradient is that at full size, before it goes back to `coarse`.
        """
        if step % self.every:
            return
        logits, _ = upsample_bilinear_forward(coarse, target.shape[1:])
        ledger = gradient_ledger(criterion, logits, target)
        K = coarse.shape[3]
        valid = target[target != criterion.ignore_index]
        append_json_line(self._log, {
            "step": step, "loss": criterion.name, "value": ledger.loss, "total": ledger.total,
            "pixels": np.bincount(valid.ravel(), minlength=K),
            "by_target": ledger.share_by_target, "by_logit": ledger.share_by_logit})

    def draw(self):
        """Write ledger.png, if there is a record."""
        from minisegnet.plots import save
        from minisegnet.plots.ledger import ledger_over_steps

        records = read_log(self._log) if self._log.exists() else []
        if records:
            save(ledger_over_steps(records, self.class_names, self.palette),
                 self.folder / "ledger.png")

    def restore(self, step):
        """Drop the records of `step` and later, which come again, and a line that was cut off."""
        if self._log.exists():
            lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
            write_text(self._log, "".join(line + "\n" for line in lines
                                          if _is_before(line, step)))

    @property
    def _log(self):
        return self.folder / "ledger.jsonl"


def _is_before(line, step):
    """Whether a line of ledger.jsonl is the record of a step before `step`."""
    try:
        return json.loads(line)["step"] < step
    except (ValueError, KeyError, TypeError):  # no whole record
        return False
