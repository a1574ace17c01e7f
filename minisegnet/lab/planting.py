"""How a fault gets into a training that knows nothing of it: functions replaced from outside."""

import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple
from unittest import mock

from minisegnet import datasets
from minisegnet.losses.criterion import Criterion
from minisegnet.training.build import build_criterion, build_optimizer, build_schedule
from minisegnet.training.phases import Phases


@contextmanager
def replaced(original, replacement):
    """Within it, every module of the package that imported `original` calls `replacement`."""
    places = [(module, name) for path, module in sorted(sys.modules.items())
              if path.partition(".")[0] == "minisegnet"
              and not path.startswith("minisegnet.lab")
              for name, value in vars(module).items() if value is original]
    for module, name in places:
        setattr(module, name, replacement)
    try:
        yield
    finally:
        for module, name in places:
            setattr(module, name, original)


def other_criterion(change):
    """Train with `change(criterion, weights, frequency)` in place of the criterion asked for.

    `weights` and `frequency` (K,) are those of the run, weights None where there are none.
    """
    def build(settings, loss, weights, frequency):
        return change(build_criterion(settings, loss, weights, frequency), weights, frequency)

    return replaced(build_criterion, build)


def other_optimizer(change):
    """Train with `change(optimizer, model)` in place of the optimizer asked for."""
    def build(settings, model):
        return change(build_optimizer(settings, model), model)

    return replaced(build_optimizer, build)


def other_schedule(factor):
    """Train with `factor` times the learning rate asked for."""
    def build(settings, steps_per_epoch):
        schedule = build_schedule(settings, steps_per_epoch)
        return lambda step: factor * schedule(step)

    return replaced(build_schedule, build)


def other_dataset(change):
    """Train with `change(dataset, split)` in place of every data set that is opened."""
    open_dataset = datasets.open_dataset

    def open_other(data, layout="auto", split="train", **options):
        return change(open_dataset(data, layout, split, **options), split)

    return replaced(open_dataset, open_other)


def other_train_loader(change):
    """Train with `change(loader)` in place of the loader of training batches."""
    train_loader = Phases.train_loader
    return mock.patch.object(Phases, "train_loader",
                             lambda phases, size: change(train_loader(phases, size)))


class _Both(NamedTuple):
    """What the loss that is trained keeps, and what the loss that was asked for keeps."""

    real: object
    asked: object


@dataclass(frozen=True, eq=False)
class Posing(Criterion):
    """A criterion that computes `real`, and calls itself and its parts what was asked for."""

    real: Criterion = None

    def forward(self, logits, target, *, whole=None):
        asked = super().forward(logits, target, whole=whole)[1]
        loss, cache = self.real.forward(logits, target, whole=whole)
        return loss, _Both(cache, asked)

    def backward(self, dloss, cache):
        return self.real.backward(dloss, cache.real)

    def forward_upsampled(self, coarse, target, *, whole=None):
        asked = super().forward_upsampled(coarse, target, whole=whole)[1]
        loss, cache = self.real.forward_upsampled(coarse, target, whole=whole)
        return loss, _Both(cache, asked)

    def backward_upsampled(self, dloss, cache):
        return self.real.backward_upsampled(dloss, cache.real)

    def parts(self, cache):
        return super().parts(cache.asked)
