"""What --debug costs: training steps with and without its monitor, in turns, in one process.

    python benchmarks/debug_cost.py

A round is as many steps as lie between two dear samples of an epoch of 40 steps, so that each
round holds its share of them. Prints the middle of the ratios of the rounds, and their middle half.
"""

import tempfile
import time
from pathlib import Path

import numpy as np

from minisegnet import optim
from minisegnet.datasets import Batch
from minisegnet.losses.criterion import Criterion
from minisegnet.models import build_model
from minisegnet.training.monitor import Monitor
from minisegnet.training.trainer import Trainer

WORKLOADS = (("mini", (8, 128, 160), 12), ("deeplab_light", (8, 176, 240), 11))
STEPS_PER_EPOCH = 40
ROUNDS = 15
FIRST = 100  # a step beyond those that are sampled because they are the first


def measure(name, shape, num_classes, folder):
    """Return the ratios (ROUNDS,) of the time of steps with a monitor to that without."""
    rng = np.random.default_rng(0)
    batch = Batch(rng.standard_normal((*shape, 3)).astype(np.float32),
                  rng.integers(0, num_classes, shape).astype(np.uint8), ("",) * shape[0])
    model = build_model(name, num_classes)
    optimizer = optim.AdamW(model, 1e-3)
    names = [f"class {k}" for k in range(num_classes)]
    trainer = Trainer(model=model, optimizer=optimizer, schedule=lambda step: 1e-3, phase=None,
                      folder=folder, class_names=names, epochs=1)
    monitor = Monitor(folder, model, optimizer, names, 255, STEPS_PER_EPOCH)
    criterion = Criterion("combined")

    def seconds(watched):
        trainer.debug = monitor if watched else None
        trainer.step = start * monitor.every
        began = time.perf_counter()
        for _ in range(monitor.every):
            trainer.train_step([batch], criterion)
        return time.perf_counter() - began

    ratios = []
    start = FIRST
    seconds(True), seconds(False)  # warm
    for turn in range(ROUNDS):
        start += 1
        if turn % 2:
            without = seconds(False)
            ratios.append(seconds(True) / without)
        else:
            ratios.append(seconds(True) / seconds(False))
    return np.array(ratios)


def main():
    with tempfile.TemporaryDirectory() as folder:
        for name, shape, num_classes in WORKLOADS:
            ratios = measure(name, shape, num_classes, Path(folder))
            low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
            print(f"{name} {'x'.join(map(str, shape))}: with --debug {middle:.3f} of the time "
                  f"without ({low:.3f} to {high:.3f})", flush=True)


if __name__ == "__main__":
    main()
