"""Learning-rate schedules: functions of the step, with nothing to save and nothing to resume.

`schedule(step)` returns the learning rate at `step`, counted from 0, in whatever unit the schedule
was built with (optimizer steps or epochs; fractions are fine). Names, arguments and values are
those of `torch.optim.lr_scheduler`, whose objects keep state instead.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple


def _require(condition, message):
    if not condition:
        raise ValueError(message)


def _cosine(start, end, progress):
    """Go from `start` to `end` along half a cosine wave, `progress` from 0 to 1."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class ConstantLR:
    """The same rate for ever."""

    lr: float

    def __call__(self, step):
        return self.lr


@dataclass(frozen=True)
class StepLR:
    """The rate times `gamma` after every `step_size` steps."""

    lr: float
    step_size: int
    gamma: float = 0.1

    def __post_init__(self):
        _require(self.step_size > 0, f"step_size must be above 0, got {self.step_size}")

    def __call__(self, step):
        return self.lr * self.gamma ** (step // self.step_size)


@dataclass(frozen=True)
class CosineAnnealingLR:
    """Half a cosine wave from `lr` down to `eta_min` at step `T_max` (and up again beyond)."""

    lr: float
    T_max: int
    eta_min: float = 0.0

    def __post_init__(self):
        _require(self.T_max > 0, f"T_max must be above 0, got {self.T_max}")

    def __call__(self, step):
        return _cosine(self.lr, self.eta_min, step / self.T_max)


@dataclass(frozen=True)
class CosineAnnealingWarmRestarts:
    """Cosine cycles of length T_0, T_0*T_mult, T_0*T_mult^2 ..., each starting again at `lr`.

    T_0 = 20 and T_mult = 2 restart at steps 20, 60, 140, 300: a run that ends at 150 ends near the
    top of a cycle. Loshchilov and Hutter, "SGDR" (2017), equation 5.
    """

    lr: float
    T_0: int
    T_mult: int = 1
    eta_min: float = 0.0

    def __post_init__(self):
        _require(self.T_0 > 0, f"T_0 must be above 0, got {self.T_0}")
        _require(self.T_mult >= 1, f"T_mult must be at least 1, got {self.T_mult}")

    def cycle(self, step):
        """Return the first step of the cycle that `step` lies in, and the first of the next."""
        start, length = 0, self.T_0
        if self.T_mult == 1:
            start = int(step // length) * length
        while step >= start + length:
            start += length
            length *= self.T_mult
        return start, start + length

    def position(self, step):
        """Return how much of its cycle lies behind `step`, a fraction in [0, 1)."""
        start, end = self.cycle(step)
        return (step - start) / (end - start)

    def __call__(self, step):
        return _cosine(self.lr, self.eta_min, self.position(step))


@dataclass(frozen=True)
class PolynomialLR:
    """`lr * (1 - step/total_iters)^power`, 0 from `total_iters` on; "poly" in segmentation papers.

    Power 0.9 (DeepLab) by default, where torch has 1.0.
    """

    lr: float
    total_iters: int
    power: float = 0.9

    def __post_init__(self):
        _require(self.total_iters > 0, f"total_iters must be above 0, got {self.total_iters}")

    def __call__(self, step):
        return self.lr * (1 - min(step, self.total_iters) / self.total_iters) ** self.power


@dataclass(frozen=True)
class OneCycleLR:
    """Up along a cosine from `max_lr/div_factor`, then down to that over `final_div_factor`.

    The top is at step `pct_start * total_steps - 1`, the end at `total_steps - 1`, where the rate
    then stays. Smith and Topin, "Super-Convergence" (2018). torch's OneCycleLR also cycles the
    momentum unless told `cycle_momentum=False`; this is that schedule with it off.
    """

    max_lr: float
    total_steps: int
    pct_start: float = 0.3
    div_factor: float = 25.0
    final_div_factor: float = 1e4

    def __post_init__(self):
        _require(self.total_steps > 0, f"total_steps must be above 0, got {self.total_steps}")
        _require(0 <= self.pct_start <= 1, f"pct_start must be in [0, 1], got {self.pct_start}")

    def __call__(self, step):
        initial_lr = self.max_lr / self.div_factor
        end = self.total_steps - 1
        top = max(0.0, self.pct_start * self.total_steps - 1)
        if step < top:
            return _cosine(initial_lr, self.max_lr, step / top)
        progress = min(1.0, (step - top) / (end - top)) if end > top else 0.0
        return _cosine(self.max_lr, initial_lr / self.final_div_factor, progress)


@dataclass(frozen=True)
class LinearWarmup:
    """A straight line from `start_factor * schedule(0)` up to `schedule(0)`, then `schedule`.

    `schedule` begins after the warm-up, at its own step 0: give it the steps that remain. The same
    as torch's SequentialLR of LinearLR and `schedule`; torchvision's training scripts start at
    0.01 (LinearLR's own default is 1/3).
    """

    schedule: Callable[[float], float]
    warmup_steps: int
    start_factor: float = 0.01

    def __post_init__(self):
        _require(self.warmup_steps >= 0, f"warmup_steps must be >= 0, got {self.warmup_steps}")
        _require(
            0 < self.start_factor <= 1, f"start_factor must be in (0, 1], got {self.start_factor}"
        )

    def __call__(self, step):
        if step >= self.warmup_steps:
            return self.schedule(step - self.warmup_steps)
        progress = step / self.warmup_steps
        return self.schedule(0) * (self.start_factor + (1 - self.start_factor) * progress)


@dataclass(frozen=True)
class SequentialLR:
    """`schedules` one after another, each from its own step 0; the next begins at its milestone.

    `milestones` are the first steps of all but the first schedule. torch's SequentialLR takes
    schedulers of one base rate; these each bring their own, as two stages of a training need.
    """

    schedules: Sequence[Callable[[float], float]]
    milestones: Sequence[int]

    def __post_init__(self):
        times = [0, *self.milestones]
        _require(len(self.schedules) == len(times) and times == sorted(times),
                 f"SequentialLR takes a milestone >= 0 for each schedule but the first, in order; "
                 f"got {len(self.schedules)} schedules and milestones {list(self.milestones)}")

    def part(self, step):
        """Return the schedule that `step` falls to, and its first step."""
        index = bisect_right(self.milestones, step)
        return self.schedules[index], self.milestones[index - 1] if index else 0

    def __call__(self, step):
        schedule, start = self.part(step)
        return schedule(step - start)


class RestartTop(NamedTuple):
    """The end of a run in the upper half of a cosine cycle."""

    lr: float  # at the last step
    cycle_ends: tuple  # steps of a run that would end with the cycle before, if any, or with this


def near_restart_top(schedule, last_step):
    """Return a `RestartTop` if a run up to `last_step` ends high in a cycle, else None.

    High is above half way from `eta_min` to `lr`, in the first half of the cycle: the run has just
    restarted, or has not come down yet. Looks into LinearWarmup and SequentialLR; `cycle_ends`
    count from the beginning of all.
    """
    start = 0  # of the schedule looked at
    while isinstance(schedule, (LinearWarmup, SequentialLR)):
        if isinstance(schedule, SequentialLR):
            schedule, first = schedule.part(last_step - start)
        else:
            schedule, first = schedule.schedule, schedule.warmup_steps
        start += first
    step = last_step - start
    if not isinstance(schedule, CosineAnnealingWarmRestarts) or step < 0:  # below 0: warming up
        return None
    before, after = schedule.cycle(step)
    is_high = schedule.position(step) < 0.5 and schedule.lr > schedule.eta_min
    if not is_high or step + 1 == after:  # a cycle of one step is over at its top
        return None
    return RestartTop(schedule(step), tuple(start + end for end in (before, after) if end > 0))
