"""What looking through all masks costs, against a bare loop that only decodes and counts them.

    python benchmarks/analyze.py --data path/to/CamVid
    python benchmarks/analyze.py --quick        a smoke test on floor plans; means nothing

The bare loop is one thread that decodes every training mask with Pillow and counts its values with
np.bincount. Scan and loop take turns; their ratio is taken pair by pair, so that both saw the same
machine, and reported are medians, by the wall clock and in processor time. The scan does all that
`python -m minisegnet.analyze` finds out of the masks: values, connected regions, the size of every
image from its header. What the whole command takes, in a process of its own, with both splits,
imports and pictures, stands below; and the memory of a scan of N and of 4 N masks, each in a
process of its own.

Without --data the pictures are looked for in MINISEGNET_CAMVID, or data/CamVid.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from minisegnet import datasets
from minisegnet.cli import ArgumentParser, positive_int
from minisegnet.errors import run_command
from minisegnet.imbalance.mask_scan import look_at_files, scan
from minisegnet.parallel import num_threads


def bare_loop(pairs):
    """Count the values of all masks, in one thread, and nothing else."""
    counts = np.zeros(256, np.int64)
    for _, mask_path in pairs:
        counts += np.bincount(np.asarray(Image.open(mask_path)).ravel(), minlength=256)
    return counts


def clocked(function, *arguments):
    """Return the seconds that a call takes, by the wall clock and of the processors."""
    wall, processor = time.perf_counter(), time.process_time()
    function(*arguments)
    return time.perf_counter() - wall, time.process_time() - processor


def compare(pairs, rounds):
    """Return (times of the scan, times of the loop), lists of (wall, processor) seconds."""
    ours, bare = [], []
    bare_loop(pairs)  # the files are in memory from here on
    scan(pairs, look_at_files)
    for k in range(rounds):
        for scanning in (k % 2 == 0, k % 2 == 1):  # whoever goes second finds another machine
            if scanning:
                ours.append(clocked(scan, pairs, look_at_files))
            else:
                bare.append(clocked(bare_loop, pairs))
    return ours, bare


def whole_command(data):
    """Return the seconds that the command takes, its start included."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "minisegnet.analyze", "--data", str(data),
                   "--output-dir", str(Path(folder) / "analysis")]
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start


def peak_kib(data, count):
    """Return by how many KiB a scan of `count` masks raises the peak, in a process of its own."""
    command = [sys.executable, __file__, "--data", str(data), "--peak-of", str(count)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_peak(pairs, count):
    """Scan `count` masks, the same ones over and over, and print what it added to the peak."""
    scan(pairs[:8], look_at_files)  # what is loaded at first use
    before = _peak()
    scan((pairs[i % len(pairs)] for i in range(count)), look_at_files)
    print(_peak() - before)


def _peak():
    """Return the highest resident memory of this process so far, in KiB."""
    # Not getrusage's: that remembers the process which started this one.
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines()
                if line.startswith("VmHWM"))


def write_plans(root, count=12):
    """Write floor plans as files in the folder layout."""
    for split in ("train", "val"):
        plans = datasets.FloorPlans(split, length=count)
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for image, mask, name in (plans[i] for i in range(count)):
            Image.fromarray(image).save(root / split / "images" / f"{name}.png")
            Image.fromarray(mask).save(root / split / "masks" / f"{name}.png")


def report(data, rounds, peak_of):
    """Measure and print."""
    pairs = datasets.list_pairs(data)
    print(f"{len(pairs)} masks to train, {num_threads()} threads, {os.cpu_count()} cores",
          flush=True)
    ours, bare = compare(pairs, rounds)
    for column, clock in enumerate(("wall clock", "processor")):
        a, b = ([times[column] for times in kind] for kind in (ours, bare))
        ratios = sorted(x / y for x, y in zip(a, b))
        print(f"{clock:<12} scan {statistics.median(a):.3f} s   bare loop "
              f"{statistics.median(b):.3f} s   ratio {statistics.median(ratios):.2f}  "
              f"({ratios[0]:.2f} - {ratios[-1]:.2f})", flush=True)
    seconds = sorted(whole_command(data) for _ in range(min(3, rounds)))
    print(f"whole command, train and val, with imports and pictures: "
          f"{statistics.median(seconds):.2f} s  ({seconds[0]:.2f} - {seconds[-1]:.2f})",
          flush=True)
    if not Path("/proc/self/status").exists():
        return  # the system cannot tell
    few, many = peak_kib(data, peak_of), peak_kib(data, 4 * peak_of)
    print(f"memory added by a scan of {peak_of} masks: {few} KiB, of {4 * peak_of}: {many} KiB, "
          f"{1024 * (many - few) / (3 * peak_of):.0f} bytes per mask more")


def main(argv=None):
    parser = ArgumentParser(prog="python benchmarks/analyze.py",
                            description="What looking through all masks costs.")
    parser.add_argument("--data", default=os.environ.get("MINISEGNET_CAMVID", "data/CamVid"))
    parser.add_argument("--rounds", type=positive_int, default=9)
    parser.add_argument("--quick", action="store_true", help="tiny: a smoke test")
    parser.add_argument("--peak-of", type=positive_int, metavar="MASKS",
                        help="only scan so many, and print the KiB that this adds to the peak")
    arguments = parser.parse_args(argv)
    if arguments.peak_of:
        print_peak(datasets.list_pairs(arguments.data), arguments.peak_of)
    elif arguments.quick:
        with tempfile.TemporaryDirectory() as folder:
            write_plans(Path(folder))
            report(folder, rounds=1, peak_of=20)
    else:
        report(arguments.data, arguments.rounds, peak_of=1000)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
