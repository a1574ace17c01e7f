"""What watches a score of the validations: a rate that falls on a plateau, and an end to the run.

Both count validations without a better score, both have a state of plain numbers that JSON can
hold, and to both NaN is never better.
"""

import math


def _worst(mode):
    if mode not in ("min", "max"):
        raise ValueError(f"mode is 'min' or 'max', not {mode!r}")
    return math.inf if mode == "min" else -math.inf


class _Watch:
    """The best score so far, and the counters named in `_counters`; None stands for no score."""

    _counters = ()

    def reset(self):
        """Forget all scores: those to come are of another kind, as after a change of the loss."""
        self.best = _worst(self.mode)
        for name in self._counters:
            setattr(self, name, 0)

    def state_dict(self):
        """Return what a resumed run needs, as numbers and None."""
        best = None if self.best == _worst(self.mode) else self.best
        return {"best": best, **{name: getattr(self, name) for name in self._counters}}

    def load_state_dict(self, state_dict):
        """Continue from `state_dict`; ValueError, and no change, where it is of another kind."""
        expected = set(self.state_dict())
        if set(state_dict) != expected:
            raise ValueError(f"{type(self).__name__} state needs {sorted(expected)}, got "
                             f"{sorted(state_dict)}")
        vars(self).update(state_dict)
        if self.best is None:
            self.best = _worst(self.mode)


class ReduceLROnPlateau(_Watch):
    """A factor on the learning rate that falls when a score has stopped getting better.

    `scale` begins at 1; whoever sets the rate multiplies it by that. After more than `patience`
    validations in a row without a better score it becomes `max(scale * factor, min_scale)`; the
    `cooldown` validations after that do not count. Better is beyond `best` by `threshold`, a share
    of it ("rel") or a difference ("abs"). The semantics are torch's, with torch's names, at a
    rate of 1: `min_scale` is its `min_lr` over the rate, and a fall of at most `eps` is none.
    ValueError for an unknown mode or a factor outside [0, 1).
    """

    _counters = ("num_bad", "cooldown_left")

    def __init__(self, mode="min", *, factor=0.1, patience=10, threshold=1e-4,
                 threshold_mode="rel", cooldown=0, min_scale=0.0, eps=1e-8):
        if not 0 <= factor < 1:
            raise ValueError(f"factor must lie in [0, 1), got {factor}")
        if threshold_mode not in ("rel", "abs"):
            raise ValueError(f"threshold_mode is 'rel' or 'abs', not {threshold_mode!r}")
        self.mode, self.factor, self.patience, self.cooldown = mode, factor, patience, cooldown
        self.threshold, self.threshold_mode = threshold, threshold_mode
        self.min_scale, self.eps = min_scale, eps
        self.scale = 1.0
        self.reset()  # which leaves `scale` as it is, here and later

    def update(self, metric):
        """Take the score of a validation, and lower `scale` if its time has come."""
        metric = float(metric)
        if self._is_better(metric):
            self.best, self.num_bad = metric, 0
        else:
            self.num_bad += 1
        if self.cooldown_left > 0:
            self.cooldown_left -= 1
            self.num_bad = 0
        if self.num_bad > self.patience:
            lower = max(self.scale * self.factor, self.min_scale)
            if self.scale - lower > self.eps:
                self.scale = lower
            self.cooldown_left, self.num_bad = self.cooldown, 0

    def _is_better(self, metric):
        sign = -1 if self.mode == "min" else 1
        if self.threshold_mode == "rel":
            # torch's rule, which wants scores >= 0: a worse one passes for better below 0.
            bound = self.best * (1 + sign * self.threshold)
        else:
            bound = self.best + sign * self.threshold
        return sign * metric > sign * bound

    def state_dict(self):
        """Return what a resumed run needs, as numbers and None."""
        return {"scale": self.scale, **super().state_dict()}


class EarlyStopping(_Watch):
    """Says when a score has not got better for `patience` validations in a row.

    Better is beyond the best so far by more than `min_delta`. Unlike `ReduceLROnPlateau`, which
    waits for one validation more, it stops at the `patience`-th, as in Keras. ValueError for an
    unknown mode or a patience below 1.
    """

    _counters = ("num_bad",)

    def __init__(self, mode, patience, min_delta=0.0):
        if patience < 1:
            raise ValueError(f"patience must be at least 1, got {patience}")
        self.mode, self.patience, self.min_delta = mode, patience, min_delta
        self.reset()

    def update(self, metric):
        """Take the score of a validation; return True if it is time to stop."""
        metric = float(metric)
        sign = -1 if self.mode == "min" else 1
        if sign * metric > sign * self.best + self.min_delta:
            self.best, self.num_bad = metric, 0
        else:
            self.num_bad += 1
        return self.num_bad >= self.patience
