"""Faults of loss and optimizer. The criterion keeps its name, the settings keep theirs."""

from contextlib import contextmanager
from dataclasses import dataclass, replace
from unittest import mock

import numpy as np

from minisegnet.lab.planting import other_criterion, other_optimizer, other_schedule
from minisegnet.layers import BatchNorm2d
from minisegnet.losses.criterion import Criterion
from minisegnet.optim import RMSprop


def unweighted_loss():
    """Class weights are computed, shown, saved, and never reach the loss: the founding fault.

    Planted in the criterion: combined without dice, with gamma 0 and no weights, is unweighted
    cross-entropy.
    """
    return other_criterion(lambda criterion, weights, frequency: _cross_entropy(criterion, None))


def extreme_weights():
    """Inverse frequency as weights without a cap, and applied twice: its square counts.

    Planted in the criterion's weights, scaled to a mean of 1 over the pixels.
    """
    def change(criterion, weights, frequency):
        present = np.where(frequency > 0, frequency, 1)
        inverse = np.where(frequency > 0, 1 / present, 0) ** 2
        return _cross_entropy(criterion, inverse / (inverse @ frequency))

    return other_criterion(change)


def dice_alone():
    """Dice with nothing beside it, from random weights: the focal part is multiplied by 0.

    Planted in the criterion.
    """
    return other_criterion(lambda criterion, weights, frequency:
                           replace(criterion, lambda_focal=0.0))


def _cross_entropy(criterion, weight):
    """Return a combined criterion that is cross-entropy, with class weights of mean 1."""
    return replace(criterion, weight=weight, gamma=0.0, lambda_dice=0.0)


def wrong_ignore_id():
    """The loss is told to ignore 0, the void of another data set: background is never trained.

    Planted in the criterion, which takes void out as well and keeps its `ignore_index`, the one
    that the metric goes by.
    """
    def change(criterion, weights, frequency):
        return _IgnoresFirstClass(**vars(criterion))

    return other_criterion(change)


@dataclass(frozen=True, eq=False)
class _IgnoresFirstClass(Criterion):
    """A criterion that leaves class 0 out as well."""

    def forward(self, logits, target, **options):
        return super().forward(logits, self._without(target), **options)

    def forward_upsampled(self, coarse, target, **options):
        return super().forward_upsampled(coarse, self._without(target), **options)

    def _without(self, target):
        return np.where(target == 0, target.dtype.type(self.ignore_index), target)


# ---------------------------------------------------------------- optimizer


def lr_too_high():
    """A learning rate a hundred times too high, as when it was tuned for SGD, or for a sum.

    Planted in the schedule.
    """
    return other_schedule(100.0)


def lr_too_low():
    """A learning rate a thousand times too low: a slip in the exponent, a warm-up never left.

    Planted in the schedule.
    """
    return other_schedule(1e-3)


def runaway_momentum():
    """RMSprop with momentum 0.999, which multiplies a steady step by a thousand.

    Planted in place of the optimizer asked for, whose learning rate it takes.
    """
    return other_optimizer(lambda optimizer, model: _Runaway(model, optimizer.lr, momentum=0.999))


class _Runaway(RMSprop):
    """RMSprop whose state is saved under AdamW's names."""

    def state_dict(self):
        state = super().state_dict()
        state["exp_avg"] = state.pop("momentum_buffer")
        state["exp_avg_sq"] = state.pop("square_avg")
        return state


def frozen_random_backbone():
    """The backbone is frozen for pretrained weights that were never loaded.

    Planted in the optimizer, as learning-rate scale 0.
    """
    def change(optimizer, model):
        optimizer.set_lr_scale("backbone", 0.0)
        return optimizer

    return other_optimizer(change)


@contextmanager
def frozen_batch_norm():
    """Batch norm in evaluation while training from scratch: it goes by mean 0 and variance 1.

    Planted in `BatchNorm2d`, which never looks at the batch, nor learns from it.
    """
    with mock.patch.object(BatchNorm2d, "uses_batch_statistics", False):
        yield
