"""What --debug costs: training steps with and without its monitor, in turns, in one process.

    python benchmarks/debug_cost.py
    python benchmarks/debug_cost.py --quick      a smoke test; its numbers mean nothing

The epoch is a short one, of 20 steps: every step is sampled then, which is the dearest case. A
pair is a step with the monitor and one without, the end of the epoch counted in. Prints the
median of the pairs' ratios and their middle half; and, as what other programs do to a step is
more than that, the time within the monitor itself per step, as a share of a step without.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from minisegnet import optim
from minisegnet.cli import ArgumentParser
from minisegnet.datasets import Batch
from minisegnet.errors import run_command
from minisegnet.losses.criterion import Criterion
from minisegnet.models import build_model
from minisegnet.training.monitor import Monitor
from minisegnet.training.trainer import Trainer

WORKLOADS = (("mini", (8, 128, 160), 12), ("deeplab_light", (8, 176, 240), 11))
STEPS_PER_EPOCH = 20
EPOCHS = 2
WARM_UPS = 2


class TimedMonitor(Monitor):
    """Adds up the seconds within the calls of a training step."""

    seconds = 0.0

    def _timed(self, method, *arguments):
        began = time.perf_counter()
        method(*arguments)
        self.seconds += time.perf_counter() - began

    def gradients(self, *arguments):
        self._timed(super().gradients, *arguments)

    def updated(self, *arguments):
        self._timed(super().updated, *arguments)

    def end_of_epoch(self, *arguments):
        self._timed(super().end_of_epoch, *arguments)


def draw_batch(shape, num_classes):
    """Return a batch of noise, of `shape` (N, H, W)."""
    rng = np.random.default_rng(0)
    return Batch(rng.standard_normal((*shape, 3)).astype(np.float32),
                 rng.integers(0, num_classes, shape).astype(np.uint8), ("",) * shape[0])


def measure(name, shape, num_classes, epochs, folder):
    """Return ratios of pairs of steps, the monitor's seconds per step and a plain step's."""
    batch, model = draw_batch(shape, num_classes), build_model(name, num_classes)
    optimizer, criterion = optim.AdamW(model, 1e-3), Criterion("combined")
    names = [f"class {k}" for k in range(num_classes)]
    trainer = Trainer(model=model, optimizer=optimizer, schedule=optim.ConstantLR(1e-3),
                      phase=None, folder=folder, class_names=names, epochs=1)
    monitor = TimedMonitor(folder, model, optimizer, names, 255, STEPS_PER_EPOCH)

    def watched(step):
        trainer.debug, trainer.step = monitor, step
        trainer.train_step([batch], criterion)
        if (step + 1) % STEPS_PER_EPOCH == 0:
            monitor.end_of_epoch((step + 1) // STEPS_PER_EPOCH)

    def plain(step):
        trainer.debug = None
        trainer.train_step([batch], criterion)

    def seconds(function, step):
        began = time.perf_counter()
        function(step)
        return time.perf_counter() - began

    for step in range(WARM_UPS):
        watched(step), plain(step)
    monitor.seconds, times = 0.0, []
    for step in range(WARM_UPS, epochs * STEPS_PER_EPOCH):
        # In turns, the one and the other first.
        pair = {function: seconds(function, step)
                for function in ((watched, plain) if step % 2 else (plain, watched))}
        times.append((pair[watched], pair[plain]))
    ratios = [with_it / without for with_it, without in times]
    return ratios, monitor.seconds / len(times), statistics.median(t for _, t in times)


def validation_cost(shape, num_classes, folder):
    """Return seconds per validation batch within the monitor."""
    batch, model = draw_batch(shape, num_classes), build_model("mini", num_classes)
    monitor = Monitor(folder, model, optim.AdamW(model, 1e-3), ["class"] * num_classes, 255,
                      STEPS_PER_EPOCH)
    times = []
    for _ in range(10):
        began = time.perf_counter()
        monitor.observe(batch, batch.target)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main(argv=None):
    parser = ArgumentParser(prog="python benchmarks/debug_cost.py",
                            description="What --debug costs a training step.")
    parser.add_argument("--quick", action="store_true", help="tiny pictures: a smoke test")
    arguments = parser.parse_args(argv)
    epochs = 1 if arguments.quick else EPOCHS
    with tempfile.TemporaryDirectory() as folder:
        for name, shape, num_classes in WORKLOADS:
            if arguments.quick:
                shape = (2, 32, 48)
            ratios, inside, step = measure(name, shape, num_classes, epochs, Path(folder))
            low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
            print(f"{name} {'x'.join(map(str, shape))}: with --debug {middle:.3f} of the time "
                  f"without ({low:.3f} to {high:.3f}); within the monitor {1e3 * inside:.2f} ms "
                  f"of a step of {1e3 * step:.0f} ms, {100 * inside / step:.1f} %; "
                  f"{1e3 * validation_cost(shape, num_classes, Path(folder)):.2f} ms of a "
                  f"validation batch", flush=True)


if __name__ == "__main__":
    sys.exit(run_command(main))
