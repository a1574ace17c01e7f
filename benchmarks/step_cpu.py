"""One training step and one inference on the CPU, beside torch: time, memory, kind by kind.

    python benchmarks/step_cpu.py
    python benchmarks/step_cpu.py --model deeplab_light --batch-size 8 --image-size 176 240
    python benchmarks/step_cpu.py --quick        a smoke test; its numbers mean nothing

Ours and torch's run in turn in one process, with the same weights and pictures, so that whatever
else the machine does hurts both. Reported are medians; the ratio is ours over torch's, below 1
where ours is faster. Memory is measured in a fresh process each (see peak_memory.py).

Results go to benchmarks/results/step_cpu.txt and .json.
"""

import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from layer_kinds import layer_kinds
from peak_memory import peak_bytes
from workloads import OurWorkload, TorchWorkload

from minisegnet.cli import ArgumentParser, positive_int
from minisegnet.errors import run_command
from minisegnet.models import MODEL_NAMES
from minisegnet.parallel import num_threads

MIB = 2 ** 20
WARM_UPS = 2
PAUSE = 0.02  # seconds: the threads of the one must have gone to sleep before the other starts
MAX_LOGIT_DIFFERENCE = 1e-4  # relative; a benchmark of two different networks would be worthless


def interleaved(functions, repeats):
    """Run the functions in turn; return for each its times in seconds."""
    times = [[] for _ in functions]
    for round_ in range(WARM_UPS + repeats):
        for function, its_times in zip(functions, times):
            time.sleep(PAUSE)
            start = time.perf_counter()
            function()
            if round_ >= WARM_UPS:
                its_times.append(time.perf_counter() - start)
    return times


def compare(functions, repeats):
    """Time (ours, torch's); return medians, fastest times and the median of the ratios.

    A ratio is taken round by round, so that both saw the same moment; its spread shows how far to
    trust it.
    """
    ours, theirs = interleaved(functions, repeats)
    ratios = [a / b for a, b in zip(ours, theirs)]
    low, high = np.quantile(ratios, [0.25, 0.75])
    return {
        "ours_ms": 1e3 * statistics.median(ours), "torch_ms": 1e3 * statistics.median(theirs),
        "ours_fastest_ms": 1e3 * min(ours), "torch_fastest_ms": 1e3 * min(theirs),
        "ratio": statistics.median(ratios),
        "ratio_quartiles": [low, high],
    }


def measure_models(names, sizes, repeats, channels_last):
    """Return {model: {"train"|"inference": times}}; both must first compute the same logits."""
    N, H, W, K = sizes
    results = {}
    for name in names:
        ours, theirs = OurWorkload(name, K), TorchWorkload(name, K, channels_last=channels_last)
        ours.set_batch(N, H, W)
        theirs.set_batch(N, H, W)
        logits, expected = ours.infer(), theirs.infer()
        difference = np.linalg.norm(logits - expected) / np.linalg.norm(expected)
        if difference > MAX_LOGIT_DIFFERENCE:
            raise RuntimeError(f"{name}: logits differ from torch's by {difference:.1e}")
        results[name] = {
            "train": compare((ours.train_step, theirs.train_step), repeats),
            "inference": compare((ours.infer, theirs.infer), repeats),
        }
    return results


def measure_memory(names, sizes):
    """Return {model: {phase: {"ours_mib", "torch_mib", "ratio"}}}; {} where it cannot be told."""
    N, H, W, K = sizes
    results = {}
    for name in names:
        for phase in ("train", "inference"):
            ours, theirs = (peak_bytes(side, phase, name, N, (H, W), K)
                            for side in ("ours", "torch"))
            if ours is not None:
                results.setdefault(name, {})[phase] = {
                    "ours_mib": ours / MIB, "torch_mib": theirs / MIB, "ratio": ours / theirs}
    return results


def measure_kinds(sizes, repeats, channels_last):
    """Return {kind of layer: times}."""
    return {kind: compare((ours, theirs), repeats)
            for kind, ours, theirs in layer_kinds(*sizes, channels_last=channels_last)}


# ---------------------------------------------------------------- the report


def _times_table(title, results):
    lines = [f"{title:<46}{'ours ms':>10}{'torch ms':>10}{'ratio':>8}   middle half of ratios"]
    for label, row in results.items():
        low, high = row["ratio_quartiles"]
        lines.append(f"{label:<46}{row['ours_ms']:>10.1f}{row['torch_ms']:>10.1f}"
                     f"{row['ratio']:>8.2f}   {low:.2f} - {high:.2f}")
    return lines


def _memory_table(results):
    title = "peak memory above the built model"
    lines = [f"{title:<46}{'ours MiB':>10}{'torch MiB':>10}{'ratio':>8}"]
    for name, phases in results.items():
        for phase, row in phases.items():
            lines.append(f"{name + ', ' + phase:<46}{row['ours_mib']:>10.0f}"
                         f"{row['torch_mib']:>10.0f}{row['ratio']:>8.2f}")
    return lines if results else ["peak memory: needs Linux"]


def _claims(results):
    """The field's claims for the light network against the baseline, measured on both sides."""
    lines = ["light against baseline (claimed: 30-40 % faster, 60 % less memory)"]
    for side in ("ours", "torch"):
        for phase in ("train", "inference"):
            light, baseline = (results["models"][name][phase][f"{side}_ms"]
                               for name in ("deeplab_light", "deeplab_baseline"))
            text = f"  {side:<6}{phase:<11}{_less(light, baseline)} time"
            if results["memory"]:
                light, baseline = (results["memory"][name][phase][f"{side}_mib"]
                                   for name in ("deeplab_light", "deeplab_baseline"))
                text += f", {_less(light, baseline)} peak memory"
            lines.append(text)
    return lines


def _less(light, baseline):
    change = 100 * (light / baseline - 1)
    return f"{abs(change):.0f} % {'less' if change < 0 else 'more'}"


def report(results):
    """Return the results as text."""
    setting = results["setting"]
    by_model = {f"{name}, {phase}": row for name, phases in results["models"].items()
                for phase, row in phases.items()}
    blocks = [
        [f"batch {setting['batch_size']}, images {setting['image_size'][0]} x "
         f"{setting['image_size'][1]}, {setting['num_classes']} classes, {setting['repeats']} "
         f"repeats; {setting['processor']}, {setting['cores']} cores",
         f"numpy {setting['numpy']} ({setting['our_threads']} threads), torch {setting['torch']} "
         f"({setting['torch_threads']} threads, "
         f"{'NHWC' if setting['channels_last'] else 'NCHW'}); load at the start "
         f"{setting['load']:.1f}"
         + (": BUSY, do not trust these numbers" if setting["load"] > 0.5 else "")],
        _times_table("whole network", by_model),
        _memory_table(results["memory"]),
    ]
    if {"deeplab_light", "deeplab_baseline"} <= results["models"].keys():
        blocks.append(_claims(results))
    blocks.append(_times_table("forward and backward of one layer", results["kinds"]))
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def _setting(arguments, sizes):
    N, H, W, K = sizes
    return {
        "batch_size": N, "image_size": [H, W], "num_classes": K, "repeats": arguments.repeats,
        "channels_last": arguments.channels_last, "processor": _processor(),
        "cores": os.cpu_count(), "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0,
        "python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__,
        "our_threads": num_threads(), "torch_threads": torch.get_num_threads(),
    }


def _processor():
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main(argv=None):
    parser = ArgumentParser(prog="python benchmarks/step_cpu.py",
                            description="A training step and an inference, beside torch.")
    parser.add_argument("--model", choices=MODEL_NAMES, action="append", dest="models",
                        help="may be given several times (default: all but the unets)")
    parser.add_argument("--num-classes", type=positive_int, default=21)
    parser.add_argument("--batch-size", type=positive_int, default=8)
    parser.add_argument("--image-size", type=positive_int, nargs=2, metavar=("H", "W"),
                        default=(176, 240))
    parser.add_argument("--repeats", type=positive_int, default=15)
    parser.add_argument("--channels-last", action="store_true", help="torch in NHWC as well")
    parser.add_argument("--quick", action="store_true", help="tiny, writes no files: a smoke test")
    parser.add_argument("--output-dir", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.batch_size, arguments.image_size, arguments.repeats = 2, (48, 64), 2
    sizes = (arguments.batch_size, *arguments.image_size, arguments.num_classes)
    names = arguments.models or [name for name in MODEL_NAMES if not name.startswith("unet")]
    torch.set_num_threads(num_threads())  # as many as ours
    results = {"setting": _setting(arguments, sizes)}
    results["models"] = measure_models(names, sizes, arguments.repeats, arguments.channels_last)
    results["memory"] = measure_memory(names, sizes)
    results["kinds"] = measure_kinds(sizes, arguments.repeats, arguments.channels_last)
    text = report(results)
    print(text, end="")
    if not arguments.quick:
        arguments.output_dir.mkdir(parents=True, exist_ok=True)
        (arguments.output_dir / "step_cpu.txt").write_text(text)
        (arguments.output_dir / "step_cpu.json").write_text(json.dumps(results, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
