"""One training step on a GPU beside torch: correctness first, then time, memory, kernel by kernel.

    python benchmarks/step_gpu.py             all of it, under eight minutes on an H100
    python benchmarks/step_gpu.py --dry-run   tiny, on the CPU's emulator; its numbers mean nothing

A step is forward, loss, backward, clipping and AdamW, on a batch that lies on the device. torch runs
eagerly with TF32, cudnn.benchmark and fused AdamW, in both memory layouts, of which the faster counts,
and compiled, as long as there is time. Sides take turns, each timed by its device's events; given are
medians. "bytes" are the sizes of all arrays that a launch is given, each once: what it would move at
least. Results go to benchmarks/results/step_gpu.txt and .json; what was not run is marked so.
"""

import json
import platform
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from gpu_sides import OurSide, TorchSide

from minisegnet.backend import select_device
from minisegnet.cli import ArgumentParser, positive_float, positive_int
from minisegnet.cuda import emulated_device
from minisegnet.errors import run_command
from minisegnet.verify.gradcheck import relative_error

MODELS = ("deeplab_light", "deeplab_baseline")
MIB = 2 ** 20
ROUNDS, STEPS_PER_ROUND = 7, 5
NOT_RUN = "not run"
# Agreement of gradients, relative; and how much worse than torch's own TF32
# error ours may be.
FLOAT64_LIMIT, TF32_LIMIT, TF32_RATIO = 1e-9, 1.5e-3, 1.5
# Peak rate of the memory in bytes a second, by what the device calls itself.
ROOFLINES = {"H100 80GB HBM3": 3.35e12, "H100 PCIe": 2.0e12, "H200": 4.8e12,
             "A100-SXM4-80GB": 2.04e12, "A100-SXM4-40GB": 1.56e12}


class Clock:
    """Says how much is left of the time for all of it."""

    def __init__(self, minutes):
        self.end = time.monotonic() + 60 * minutes

    def has(self, seconds):
        """Whether there are `seconds` left."""
        return time.monotonic() + seconds < self.end


# ---------------------------------------------------------------- correctness


def check(xp, device, name, sizes):
    """Return {what: error} of one step's gradients against torch on the same device."""
    exact = TorchSide(device, name, sizes, dtype=torch.float64).gradients()
    return {
        "float64": _error(OurSide(xp, name, sizes).gradients(np.float64), exact),
        "float32": _error(OurSide(xp, name, sizes).gradients(np.float32), exact),
        "float32 of torch": _error(TorchSide(device, name, sizes).gradients(), exact),
    }


def _error(gradients, exact):
    """Return the relative error of all gradients as one vector."""
    return relative_error(*(
        np.concatenate([np.asarray(side[name], np.float64).ravel() for name in sorted(exact)])
        for side in (gradients, exact)))


# ---------------------------------------------------------------- time and memory


def measure(sides, rounds):
    """Run the sides in turn; return {name: median ms of a step}."""
    times = defaultdict(list)
    for _ in range(rounds):
        for name, side in sides.items():
            side.wait()

            def several(side=side):
                for _ in range(STEPS_PER_ROUND):
                    side.step()

            times[name].append(side.time(several) / STEPS_PER_ROUND)
    return {name: statistics.median(found) for name, found in times.items()}


def peak_of(make, warm_up):
    """Return a side after `warm_up` steps, and the peak of its memory in bytes."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    side = make()
    for _ in range(warm_up):
        side.step()
    side.wait()
    return side, side.peak_bytes()


def kernel_table(side, repeats):
    """Return [{kernel, launches, ms, bytes}] of one step, the dearest first."""
    rows = {}
    for launch in side.launches():
        launch()
        side.wait()

        def several(launch=launch):
            for _ in range(repeats):
                launch()

        row = rows.setdefault(launch.name, {"kernel": launch.name, "launches": 0, "ms": 0.0,
                                            "bytes": 0})
        row["launches"] += 1
        row["ms"] += side.time(several) / repeats
        row["bytes"] += launch.bytes_moved
    return sorted(rows.values(), key=lambda row: -row["ms"])


def compare(xp, device, name, sizes, clock, settings):
    """Return what one model at one batch size takes, on both sides."""
    result = {"model": name, "batch_size": sizes[0]}
    ours, result["our_peak"] = peak_of(lambda: OurSide(xp, name, sizes), 4)
    result["why_not_captured"] = ours.runner.why_not_captured
    sides = {"ours": ours}
    for layout in ("contiguous", "channels_last"):
        side, result[f"torch_peak {layout}"] = peak_of(
            lambda layout=layout: TorchSide(device, name, sizes,
                                            channels_last=layout == "channels_last"), 4)
        sides[f"torch {layout}"] = side
    if settings.compile and clock.has(settings.compile_seconds):
        sides["torch compiled"], _ = peak_of(
            lambda: TorchSide(device, name, sizes, channels_last=True, compiled=True), 3)
    result["ms"] = measure(sides, settings.rounds)
    result["ms"].setdefault("torch compiled", NOT_RUN)
    eager = OurSide(xp, name, sizes, replay=False)
    for _ in range(2):
        eager.step()
    result["ms"]["ours, launch by launch"] = measure({"eager": eager}, settings.rounds)["eager"]
    result["kernels"] = kernel_table(eager, settings.repeats)
    result["launches"] = sum(row["launches"] for row in result["kernels"])
    result["bytes"] = sum(row["bytes"] for row in result["kernels"])
    return result


# ---------------------------------------------------------------- the report


def report(results):
    """Return the results as text."""
    setting = results["setting"]
    lines = [f"{setting['device']}; images {setting['image_size'][0]} x "
             f"{setting['image_size'][1]}, {setting['num_classes']} classes, float32 with TF32; "
             f"torch {setting['torch']}, {setting['library']}"]
    if setting["dry_run"]:
        lines.append("DRY RUN on the emulator: the numbers mean nothing")
    lines += ["", "gradients of one step against torch in float64 on the same device "
              f"(limits: float64 {FLOAT64_LIMIT:.0e}, float32 {TF32_LIMIT:.1e} and "
              f"{TF32_RATIO} x torch's own)"]
    for name, errors in results["correctness"].items():
        lines.append(f"  {name:<18}" + "  ".join(f"{what} {error:.1e}"
                                                 for what, error in errors.items()))
    for row in results["models"]:
        lines += ["", *_model_lines(row, setting)]
    return "\n".join(lines) + "\n"


def _model_lines(row, setting):
    ms = row["ms"]
    torch_ms = min(ms["torch contiguous"], ms["torch channels_last"])
    yield f"{row['model']}, batch {row['batch_size']}: {ms['ours'] / torch_ms:.2f} x torch's time"
    for name, value in ms.items():
        yield f"  {name:<26}" + (f"{value:9.2f} ms" if value != NOT_RUN else f"{NOT_RUN:>12}")
    peaks = [row["torch_peak contiguous"], row["torch_peak channels_last"]]
    if row["our_peak"] and all(peaks):
        yield (f"  peak memory {row['our_peak'] / MIB:.0f} MiB, torch {min(peaks) / MIB:.0f} MiB: "
               f"{row['our_peak'] / min(peaks):.2f} x")
    else:
        yield f"  peak memory: {NOT_RUN}"
    rate = row["bytes"] / ms["ours"] * 1e3
    share = f", {rate / setting['roofline']:.0%} of the memory's rate" if setting["roofline"] else ""
    yield (f"  {row['launches']} launches move {row['bytes'] / 1e9:.2f} GB: "
           f"{rate / 1e12:.2f} TB/s{share}")
    if row["why_not_captured"]:
        yield f"  not a CUDA graph: {row['why_not_captured']}"
    yield f"  {'kernel':<52}{'launches':>9}{'ms':>9}{'GB':>8}{'TB/s':>7}"
    for each in row["kernels"]:
        yield (f"  {each['kernel']:<52}{each['launches']:>9}{each['ms']:>9.3f}"
               f"{each['bytes'] / 1e9:>8.3f}{each['bytes'] / each['ms'] / 1e9:>7.2f}")


def _setting(xp, settings):
    dry = xp is emulated_device
    name = platform.processor() or "CPU" if dry else torch.cuda.get_device_name()
    roofline = next((rate for key, rate in ROOFLINES.items() if key in name), None)
    return {"device": name, "dry_run": dry, "image_size": settings.image_size,
            "num_classes": settings.num_classes, "roofline": roofline,
            "library": "emulated" if dry else f"cupy {xp.__version__}",
            "torch": torch.__version__, "python": platform.python_version()}


def main(argv=None):
    parser = ArgumentParser(prog="python benchmarks/step_gpu.py",
                            description="A training step on a GPU, beside torch.")
    parser.add_argument("--model", choices=MODELS, action="append", dest="models")
    parser.add_argument("--batch-size", type=positive_int, nargs="+", default=[8, 16])
    parser.add_argument("--image-size", type=positive_int, nargs=2, default=[512, 512])
    parser.add_argument("--num-classes", type=positive_int, default=21)
    parser.add_argument("--minutes", type=positive_float, default=7.5,
                        help="what does not fit any more is marked as not run")
    parser.add_argument("--no-compile", action="store_false", dest="compile")
    parser.add_argument("--dry-run", action="store_true",
                        help="tiny, on the emulator: a test of this program")
    parser.add_argument("--output-dir", type=Path, default=Path(__file__).parent / "results")
    settings = parser.parse_args(argv)
    settings.rounds, settings.repeats, settings.compile_seconds = ROUNDS, 10, 150
    clock = Clock(settings.minutes)
    xp, device, small = emulated_device, "cpu", (2, 32, 32, 3)
    if settings.dry_run:
        settings.batch_size, settings.image_size, settings.num_classes = [2], [32, 32], 3
        settings.rounds = settings.repeats = 1
        settings.models, settings.compile = settings.models or ["deeplab_light"], False
    else:
        xp, device, small = select_device("cuda"), "cuda", (2, 96, 128, 21)
    results = {"setting": _setting(xp, settings), "models": [], "correctness": {}}
    models = settings.models or MODELS
    for name in models:
        results["correctness"][name] = check(xp, device, name, small)
        print(name, results["correctness"][name], flush=True)
    for name in models:
        for batch_size in settings.batch_size:
            if not clock.has(30):
                print(f"{name}, batch {batch_size}: {NOT_RUN}, out of time", flush=True)
                continue
            sizes = (batch_size, *settings.image_size, settings.num_classes)
            results["models"].append(compare(xp, device, name, sizes, clock, settings))
            print(*_model_lines(results["models"][-1], results["setting"]), sep="\n", flush=True)
    settings.output_dir.mkdir(parents=True, exist_ok=True)
    stem = "step_gpu_dry_run" if settings.dry_run else "step_gpu"
    (settings.output_dir / f"{stem}.json").write_text(json.dumps(results, indent=1) + "\n")
    (settings.output_dir / f"{stem}.txt").write_text(report(results))
    wrong = [name for name, errors in results["correctness"].items()
             if not _is_right(errors)]
    if wrong:
        print(f"WRONG: {', '.join(wrong)} (see the limits above)")
    return 1 if wrong else 0


def _is_right(errors):
    allowed = min(TF32_LIMIT, max(1e-6, TF32_RATIO * errors["float32 of torch"]))
    return errors["float64"] <= FLOAT64_LIMIT and errors["float32"] <= allowed


if __name__ == "__main__":
    sys.exit(run_command(main))
