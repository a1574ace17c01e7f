"""Is a batch of 8 in four parts of 2 the same as the batch of 8 in one? Whole-model gradients.

    python benchmarks/accumulation.py

For every loss the relative difference norm(g_parts - g_whole) / norm(g_whole), in float64, of
`mini` on floor plans, before its first step: a sum over pixels is split without a difference, dice
is not, and neither are the statistics of batch norm in training, those of 2 plans instead of 8
(the image pooling has 2 numbers per channel there). The last column leaves `WholeBatch` out and
takes the mean of the parts, as is often done.
"""

import sys

import numpy as np

from minisegnet.cli import ArgumentParser
from minisegnet.datasets import FloorPlans
from minisegnet.datasets.transforms import normalize
from minisegnet.errors import run_command
from minisegnet.imbalance.weighting import class_weights
from minisegnet.losses import Criterion, WholeBatch
from minisegnet.models import build_model

BATCH, PARTS, WARM_UP = 8, 4, 20


def gradient(model, criterion, images, target, parts, *, with_whole=True):
    """Return the gradient of all parameters, one after the other, accumulated over `parts`."""
    K = model.num_classes
    whole = WholeBatch(np.bincount(target[target < K], minlength=K), parts) if with_whole else None
    model.zero_grad()
    for some_images, some_target in zip(np.split(images, parts), np.split(target, parts)):
        coarse = model.forward_coarse(some_images)
        _, cache = criterion.forward_upsampled(coarse, some_target, whole=whole)
        dloss = 1.0 if with_whole else 1.0 / parts
        model.backward_coarse(criterion.backward_upsampled(dloss, cache))
    return np.concatenate([array.ravel() for _, array in model.named_gradients()])


def difference(model, criterion, images, target, **options):
    """Return the relative difference that the parts make."""
    in_one = gradient(model, criterion, images, target, 1)
    in_parts = gradient(model, criterion, images, target, PARTS, **options)
    return np.linalg.norm(in_parts - in_one) / np.linalg.norm(in_one)


def main(argv=None):
    ArgumentParser(description=__doc__.splitlines()[0]).parse_args(argv)
    plans = FloorPlans("train", length=BATCH)
    images = np.stack([normalize(plan.image) for plan in plans]).astype(np.float64)
    target = np.stack([plan.mask for plan in plans])
    target[:3, :, 80:] = 255  # ignored pixels, more in some parts than in others
    weight = class_weights(FloorPlans("train").check(), "sqrt")

    model = build_model("mini", plans.num_classes, dtype="float64")
    model.aspp.dropout.p = 0  # two drawings of dropout would be two networks
    for _ in range(WARM_UP):
        model.forward_coarse(images)  # for running statistics as after a while of training

    print(f"{BATCH} plans in {PARTS} parts against one, batch norm with")
    print(f"{'loss':<16} {'running statistics':>18} {'batch statistics':>18} "
          f"{'running, no whole':>18}")
    for name, weights in (("ce", None), ("ce", weight), ("focal", None), ("focal", weight),
                          ("dice", None), ("combined", None)):
        criterion = Criterion(name, weight=weights)
        batch = criterion, images, target
        row = (difference(model.eval(), *batch), difference(model.train(), *batch),
               difference(model.eval(), *batch, with_whole=False))
        label = name if weights is None else f"{name}, weighted"
        print(f"{label:<16} " + " ".join(f"{value:>18.1e}" for value in row), flush=True)


if __name__ == "__main__":
    sys.exit(run_command(main))
