"""Does the cure work? Default training against unweighted cross-entropy, on the floor plans.

    python benchmarks/imbalance.py               about half an hour on two cores
    python benchmarks/imbalance.py --seeds 0     a third of that

Same network, batches, schedule and budget; cross-entropy gets the best of three learning rates,
and once three times the budget. Two runs go side by side, with one thread each. The figures are
of the last epoch, on plans that training has not seen.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from minisegnet import train
from minisegnet.datasets import FloorPlans
from minisegnet.training.run_folder import read_log

PLAIN = ("--loss", "ce", "--class-weights", "none")
RATES = (1 / 3, 1, 3)  # of the default learning rate
RESULTS = Path(__file__).parent / "results" / "imbalance.json"


def run(folder, flags):
    """Train with `flags` into `folder`; return the last epoch's record."""
    command = [sys.executable, "-m", "minisegnet.train", "--output-dir", str(folder),
               "--num-workers", "1", "--val-every", "1000", *map(str, flags)]
    done = subprocess.run(command, env={**os.environ, "MINISEGNET_NUM_THREADS": "1"},
                          capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return read_log(folder / "log.jsonl")[-1]


def rarest_four():
    """Ids of the four classes with the fewest pixels."""
    return np.argsort(FloorPlans("train").check().pixels)[:4]


def summary(record, rare):
    """The three figures that tell a collapse from a cure."""
    iou = np.array([np.nan if v is None else v for v in record["iou"]])
    return {"mean_iou": record["mean_iou"], "active": record["active_classes"],
            "rare_iou": float(np.nanmean(iou[rare])), "accuracy": record["pixel_accuracy"],
            "iou": record["iou"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    defaults = train.parse_settings([])
    rare = rarest_four()
    print("rarest four:", ", ".join(FloorPlans.class_names[c] for c in rare), flush=True)

    jobs = {}  # name -> flags
    for seed in arguments.seeds:
        jobs[f"default seed {seed}"] = ["--seed", seed]
        for rate in RATES:
            jobs[f"ce lr x{rate:.2g} seed {seed}"] = [
                "--seed", seed, *PLAIN, "--lr", rate * defaults.lr]
    for rate in RATES[1:]:
        jobs[f"ce lr x{rate:.2g} seed {arguments.seeds[0]}, 3x budget"] = [
            "--seed", arguments.seeds[0], *PLAIN, "--lr", rate * defaults.lr,
            "--epochs", 3 * defaults.epochs]

    results = {}
    print(f"{'run':<34} {'mean IoU':>8} {'active':>7} {'rare IoU':>9} {'accuracy':>9}")
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        runs = {name: pool.submit(run, Path(folder) / str(i), flags)
                for i, (name, flags) in enumerate(jobs.items())}
        for name, future in runs.items():
            results[name] = r = summary(future.result(), rare)
            print(f"{name:<34} {r['mean_iou']:8.3f} {r['active']:4d}/12 {r['rare_iou']:9.3f} "
                  f"{r['accuracy']:9.3f}", flush=True)

    def mean(prefix, key, without="budget"):
        return float(np.mean([r[key] for name, r in results.items()
                              if name.startswith(prefix) and without not in name]))

    rates = [f"ce lr x{rate:.2g} " for rate in RATES]
    best = max(rates, key=lambda prefix: mean(prefix, "mean_iou"))
    print(f"\nmean over seeds {arguments.seeds}:")
    for label, prefix in (("default", "default"), (f"best plain CE ({best.strip()})", best)):
        print(f"  {label:<28} mean IoU {mean(prefix, 'mean_iou'):.3f}  active "
              f"{mean(prefix, 'active'):.1f}  rarest four {mean(prefix, 'rare_iou'):.3f}")
    print(f"  rarest four, plain CE / default: "
          f"{mean(best, 'rare_iou') / mean('default', 'rare_iou'):.2f}")
    arguments.output.parent.mkdir(exist_ok=True)
    arguments.output.write_text(json.dumps(
        {"rarest": [FloorPlans.class_names[c] for c in rare], "best_rate": best.strip(),
         "runs": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
