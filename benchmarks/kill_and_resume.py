"""Kill a run with SIGKILL at random moments and resume it: does it end as if nothing had been?

    python benchmarks/kill_and_resume.py --kills 50

One run is left alone. Others, of the same flags, are killed: half of them while a file is being
written, half at any moment; they are resumed, perhaps killed again, and in the end compared with
the first, bit for bit: weights, statistics, optimizer, averages, random generators, best
checkpoint and log (its seconds aside). After each kill every checkpoint must be readable.
Children are forked, so that the time of a kill falls on training and not on imports.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from minisegnet import train
from minisegnet.errors import run_command
from minisegnet.training.checkpoint import read_checkpoint
from minisegnet.training.run_folder import read_log

# As much state as a run can have: averages, accumulation, dropout, a sampler, phases.
FLAGS = ("--epochs", 4, "--batch-size", 2, "--accumulate", 2, "--augment", "strong", "--sampler",
         "class-crops", "--ema", 0.9, "--loss", "ce", "--loss-after", "1:combined",
         "--image-size-after", "2:40x56", "--freeze", "backbone", "--freeze-epochs", 1,
         "--schedule", "plateau", "--plateau-patience", 0, "--early-stop-patience", 9,
         "--save-every", 1, "--num-workers", 1)


def make_pictures(root):
    """Write a data set of 14 training and 4 validation pictures."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 14), ("val", 4)):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for i in range(count):
            mask = np.zeros((32, 48), np.uint8)
            mask[4:20, 4 + i:20 + i] = 1
            mask[22:30, 30:42] = 2
            image = (mask[..., None] * 60 + rng.integers(0, 60, (32, 48, 3))).astype(np.uint8)
            Image.fromarray(image).save(root / split / "images" / f"{i}.png")
            Image.fromarray(mask).save(root / split / "masks" / f"{i}.png")


def start(*flags):
    """Train in a forked child; return its process id."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 70
        try:
            code = run_command(train.main, [str(flag) for flag in flags])
        finally:
            os._exit(code)
    return child


def finish(child):
    """Wait for the child to end by itself; raises RuntimeError unless its exit code is 0."""
    _, status = os.waitpid(child, 0)
    if status:
        raise RuntimeError(f"a run ended with status {status}")


def kill(child, folder, moment, during_save):
    """Kill the child `moment` seconds after its folder is there, or at a save after that.

    Returns False if it was over before.
    """
    deadline = None
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            if status:
                raise RuntimeError(f"a run ended with status {status}")
            return False
        now = time.perf_counter()
        if deadline is None and (folder / "config.toml").exists():
            deadline = now + moment
        if deadline is not None and now >= deadline:
            if not during_save or any(folder.glob("*.npz.tmp")):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return True
        time.sleep(0.0002)


def state(folder):
    """Return {name: value} of all that must be equal in the end."""
    found = {}
    for path in sorted(folder.glob("*.npz")):
        checkpoint, name = read_checkpoint(path), path.stem
        for kind in ("parameters", "buffers", "optimizer", "ema"):
            for key, array in getattr(checkpoint, kind).items():
                found[f"{name}/{kind}/{key}"] = array.tobytes()
        progress = checkpoint.meta.get("progress") or {}
        (progress.get("record") or {}).pop("seconds", None)
        found[f"{name}/meta"] = checkpoint.meta
    for record in read_log(folder / "log.jsonl"):
        del record["seconds"]
        found[f"log/{record['epoch']}"] = record
    return found


def main():
    """Run the whole experiment; exit code 1 if anything differed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    os.environ["MINISEGNET_NUM_THREADS"] = "1"  # a fork takes along one thread only
    chance = random.Random(arguments.seed)
    kills = runs = during_saves = same = 0
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        make_pictures(root / "data")
        flags = ("--data", root / "data", *FLAGS)
        begin = time.perf_counter()
        finish(start(*flags, "--output-dir", root / "unbroken"))
        seconds = time.perf_counter() - begin
        expected = state(root / "unbroken")
        while kills < arguments.kills:
            folder, runs = root / f"killed{runs}", runs + 1
            child = start(*flags, "--output-dir", folder)
            while kills < arguments.kills:
                during_save = chance.random() < 0.5
                if not kill(child, folder, chance.uniform(0, 0.8 * seconds), during_save):
                    child = None
                    break
                kills, during_saves = kills + 1, during_saves + during_save
                for checkpoint in folder.glob("*.npz"):
                    read_checkpoint(checkpoint)
                child = start("--resume", folder)
                if chance.random() < 0.5:
                    break
            if child is not None:
                finish(child)
            same += state(folder) == expected
    print(f"{kills} kills ({during_saves} during a save) in {runs} runs of {seconds:.1f} s: "
          f"{same} of {runs} runs ended like the unbroken one, no checkpoint was unreadable")
    return 0 if same == runs else 1


if __name__ == "__main__":
    sys.exit(main())
