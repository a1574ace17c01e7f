"""One training of the lab, healthy or with a fault in it, and what `diagnose` says of it."""

import shlex
import time
import warnings
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

from minisegnet import datasets, train
from minisegnet.diagnosis import diagnose, read_evidence
from minisegnet.errors import UserError
from minisegnet.lab.data import DIALS, PLANS, SIZE, write_data
from minisegnet.lab.faults import FAULTS
from minisegnet.lab.healthy import HEALTHY
from minisegnet.lab.planting import replaced

# What all trainings share; a healthy one may say otherwise.
FLAGS = "--image-size 64 80 --num-workers 0 --debug"
DATA_SEEDS_APART = 100  # between runs, so that none shares its plans with another seed of the lab


class Job(NamedTuple):
    """A training to do."""

    name: str  # of the fault, or of the healthy run
    is_healthy: bool
    folder: Path  # of the run; its name says nothing
    data: Path  # written where it is missing
    seed: int


class Verdict(NamedTuple):
    """What became of a job."""

    job: Job
    findings: list  # ranked
    iou: list  # of the classes at the last validation, None where undefined; [] without one
    stopped: str  # why the training ended early, or ""
    seconds: float

    @property
    def place(self):
        """The place of the planted fault among the findings, from 1; None if it is not there."""
        names = [finding.fault for finding in self.findings]
        return names.index(self.job.name) + 1 if self.job.name in names else None

    @property
    def is_right(self):
        """Whether the fault is named first or second, or nothing is found in a healthy run."""
        if self.job.is_healthy:
            return not self.findings
        return self.place in (1, 2)


def plan_jobs(folder, seed, faults, healthy):
    """Return the `Job`s of `faults` and, if `healthy`, of all healthy runs, in `folder`.

    All faults meet the same pictures, every healthy run its own.
    """
    folder = Path(folder)
    jobs = [(name, False, folder / "data", seed) for name in faults]
    if healthy:
        jobs += [(run.name, True, folder / f"data_{i:02d}", seed + i * DATA_SEEDS_APART)
                 for i, run in enumerate(HEALTHY, 1)]
    return [Job(name, is_healthy, folder / f"run_{i:02d}", data, of_run)
            for i, (name, is_healthy, data, of_run) in enumerate(jobs, 1)]


def run_job(job):
    """Train and diagnose; return the `Verdict`. What the training prints goes into a file."""
    start = time.perf_counter()
    flags = ["--data", str(job.data), "--seed", str(job.seed), *shlex.split(FLAGS)]
    stopped = ""
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    with open(job.folder.with_suffix(".txt"), "w", encoding="utf-8") as transcript, \
            redirect_stdout(transcript), redirect_stderr(transcript), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a loss warns of a batch with nothing to learn
        try:
            if job.is_healthy:
                _train_healthy(job, flags)
            else:
                with FAULTS[job.name]():
                    train.main([*flags, "--output-dir", str(job.folder)])
        except UserError as error:  # a loss that is not finite, say
            stopped = str(error)
    evidence = read_evidence(job.folder)
    iou = next((record["iou"] for record in reversed(evidence.log) if "iou" in record), [])
    return Verdict(job, diagnose(evidence), iou, stopped, time.perf_counter() - start)


def _train_healthy(job, flags):
    run = next(run for run in HEALTHY if run.name == job.name)
    source = nullcontext()
    if run.generated:
        def plans(data, layout="auto", split="train", **options):
            return datasets.FloorPlans(split, length=PLANS[split], size=SIZE, seed=job.seed,
                                       **{**DIALS, **run.dials}, **options)

        source = replaced(datasets.open_dataset, plans)
        flags = [*flags, "--data", "floorplans"]
    elif not job.data.exists():
        write_data(job.data, job.seed, **run.dials)
    with source:
        if run.pretraining is not None:
            before = job.folder.with_name(f"{job.folder.name}_before")
            train.main([*flags, *shlex.split(run.pretraining), "--output-dir", str(before)])
            flags = [*flags, "--init-from", str(before / "best.npz")]
        train.main([*flags, *shlex.split(run.flags), "--output-dir", str(job.folder)])
