"""All trainings of the lab, some at a time, and the table of what was planted and found."""

import multiprocessing
import os
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from minisegnet.lab.data import write_data
from minisegnet.lab.faults import FAULTS
from minisegnet.lab.runs import plan_jobs, run_job

COLUMNS = (("planted", 28), ("found first", 32), ("found second", 32), ("place", 5), ("mIoU", 5),
           ("seconds", 7))


def run_all(folder, seed, faults=tuple(FAULTS), healthy=True, *, workers=2):
    """Run a training per fault and, if `healthy`, the healthy ones; return their `Verdict`s.

    The table is printed line by line. Data, runs and transcripts go to `folder`. Each of the
    `workers` has one thread.
    """
    start = time.perf_counter()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if faults:
        write_data(folder / "data", seed)
    print(_line([name for name, _ in COLUMNS]))
    print(_line(["-" * width for _, width in COLUMNS]), flush=True)
    os.environ["MINISEGNET_NUM_THREADS"] = "1"  # which the workers inherit
    # Not forked: a process begins with a program that nothing was planted into.
    context = multiprocessing.get_context("spawn")
    verdicts = []
    with ProcessPoolExecutor(workers, context, initializer=_end_with_parent) as pool:
        for verdict in pool.map(run_job, plan_jobs(folder, seed, faults, healthy)):
            for line in lines_of(verdict):
                print(line, flush=True)
            verdicts.append(verdict)
    for line in summary(verdicts):
        print(line)
    print(f"{time.perf_counter() - start:.0f} s with {workers} "
          f"worker{'s' * (workers > 1)}")
    return verdicts


def _end_with_parent():
    """Let this worker end when the lab is killed: otherwise it would wait for work for ever."""
    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def lines_of(verdict):
    """Return the line of the table for a verdict, and why the training stopped early, if so."""
    job = verdict.job
    found = [f"{finding.fault} ({finding.score:.2f})" for finding in verdict.findings[:2]]
    found += ["nothing wrong found"] * (not found) + [""] * 2
    place = "" if job.is_healthy else "-" if verdict.place is None else str(verdict.place)
    scores = [score for score in verdict.iou if score is not None]
    mean = f"{sum(scores) / len(scores):.3f}" if scores else "-"
    cells = (f"healthy: {job.name}" if job.is_healthy else job.name, *found[:2], place, mean,
             f"{verdict.seconds:.1f}")
    return [_line(cells), *([f"    stopped: {verdict.stopped}"] if verdict.stopped else [])]


def _line(cells):
    return "  ".join(f"{cell:<{width}}" for cell, (_, width) in zip(cells, COLUMNS)).rstrip()


def summary(verdicts):
    """Return what the verdicts come to, as lines."""
    planted = [verdict for verdict in verdicts if not verdict.job.is_healthy]
    healthy = [verdict for verdict in verdicts if verdict.job.is_healthy]
    lines = []
    if planted:
        named = sum(verdict.is_right for verdict in planted)
        first = sum(verdict.place == 1 for verdict in planted)
        lines.append(f"{named} of {len(planted)} faults named first or second, {first} of them "
                     f"first")
    if healthy:
        alarms = sum(not verdict.is_right for verdict in healthy)
        lines.append(f"{alarms} false alarm{'s' * (alarms != 1)} in {len(healthy)} healthy "
                     f"training{'s' * (len(healthy) > 1)}")
    return lines
