"""What loading and augmentation cost a training epoch, against the same batches from memory.

    python benchmarks/loading.py --data path/to/CamVid
    python benchmarks/loading.py --data path/to/CamVid --augment strong
    python benchmarks/loading.py --quick        a smoke test on floor plans; means nothing

An epoch of N steps is trained twice in turn: once with the loader's threads at work beside it, and
once from the very same batches, kept in memory. The ratio of the two times, wall clock and
processor, is taken pair by pair, so that both saw the same machine; reported are medians. Below it
stands what one sample costs at each stage, in processor time of a single thread.

Without --data the pictures are looked for in MINISEGNET_CAMVID, or data/CamVid.
"""

import os
import statistics
import sys
import time

import numpy as np
from workloads import OurWorkload

from minisegnet.cli import ArgumentParser, positive_int
from minisegnet.datasets import (
    PRESETS,
    DataLoader,
    FloorPlans,
    make_augmentation,
    open_dataset,
)
from minisegnet.datasets.transforms import normalize
from minisegnet.errors import run_command
from minisegnet.models import MODEL_NAMES
from minisegnet.parallel import num_threads

SAMPLES = 40  # that the stages are timed on
ROUNDS = 5  # of all samples; the fastest counts


def train(workload, batches):
    """Train on `batches`; return the seconds it took, by the wall clock and of the processors."""
    wall, processor = time.perf_counter(), time.process_time()
    for batch in batches:
        workload.images, workload.target = batch.images, batch.target
        workload.train_step()
    return time.perf_counter() - wall, time.process_time() - processor


def compare_epochs(workload, loader, rounds):
    """Return (times with loading, times from memory), lists of (wall, processor) seconds."""
    kept = list(loader.batches())
    train(workload, kept[:3])  # warm-up
    loading, memory = [], []
    for k in range(rounds):
        # Whoever goes second finds another machine: take turns.
        for with_loading in (k % 2 == 0, k % 2 == 1):
            if with_loading:
                loading.append(train(workload, loader.batches()))
            else:
                memory.append(train(workload, kept))
    return loading, memory


def milliseconds_per_sample(dataset, transform, image_shape):
    """Return {stage: processor milliseconds per sample}, one thread, the fastest of the rounds."""
    indices = range(min(SAMPLES, len(dataset)))
    samples = [dataset[i] for i in indices]
    out = np.empty(image_shape, np.float32)
    augmented = [transform(sample, np.random.default_rng(0)) for sample in samples]
    stages = {
        "decode": lambda i: dataset[i],
        "augment": lambda i: transform(samples[i], np.random.default_rng([0, 0, i])),
        "normalize": lambda i: normalize(augmented[i].image, out),
    }
    found = {}
    for stage, work in stages.items():
        times = []
        for _ in range(ROUNDS):
            start = time.process_time()
            for i in indices:
                work(i)
            times.append(time.process_time() - start)
        found[stage] = 1e3 * min(times) / len(indices)
    return found


def report(loading, memory, steps, batch_size, stages):
    """Return what was measured as text."""
    lines = []
    for column, clock in enumerate(("wall clock", "processor")):
        a, b = ([times[column] for times in kind] for kind in (loading, memory))
        ratios = sorted(x / y for x, y in zip(a, b))
        lines.append(
            f"{clock:<12} loading {1e3 * statistics.median(a) / steps:7.1f} ms/step   "
            f"from memory {1e3 * statistics.median(b) / steps:7.1f} ms/step   "
            f"ratio {statistics.median(ratios):.3f}  ({ratios[0]:.3f} - {ratios[-1]:.3f})")
    total = sum(stages.values())
    lines.append("per sample   " + "   ".join(f"{stage} {ms:.2f} ms" for stage, ms in
                                              stages.items())
                 + f"   together {total:.2f} ms, {batch_size * total:.1f} ms a batch")
    return "\n".join(lines)


def main(argv=None):
    parser = ArgumentParser(prog="python benchmarks/loading.py",
                            description="What loading costs an epoch of training.")
    parser.add_argument("--data", default=os.environ.get("MINISEGNET_CAMVID", "data/CamVid"))
    parser.add_argument("--augment", choices=PRESETS, default="enhanced")
    parser.add_argument("--model", choices=MODEL_NAMES, default="deeplab_light")
    parser.add_argument("--image-size", type=positive_int, nargs=2, metavar=("H", "W"),
                        default=(180, 240))
    parser.add_argument("--batch-size", type=positive_int, default=8)
    parser.add_argument("--num-workers", type=positive_int, default=2)
    parser.add_argument("--rounds", type=positive_int, default=5)
    parser.add_argument("--quick", action="store_true", help="tiny: a smoke test")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.image_size, arguments.batch_size, arguments.rounds = (48, 64), 2, 1
    dataset = FloorPlans(length=8) if arguments.quick else open_dataset(arguments.data)
    H, W = arguments.image_size
    transform = make_augmentation(arguments.augment, arguments.image_size)
    loader = DataLoader(dataset, arguments.batch_size, transform=transform, shuffle=True,
                        num_workers=arguments.num_workers, drop_last=True)
    workload = OurWorkload(arguments.model, dataset.num_classes)
    print(f"{arguments.model}, {len(loader)} steps an epoch, batch {arguments.batch_size}, "
          f"{H}x{W}, {arguments.augment} augmentation, {arguments.num_workers} loading and "
          f"{num_threads()} training threads, {os.cpu_count()} cores", flush=True)
    loading, memory = compare_epochs(workload, loader, arguments.rounds)
    stages = milliseconds_per_sample(dataset, transform, (H, W, 3))
    print(report(loading, memory, len(loader), arguments.batch_size, stages))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
