"""One training step on a GPU beside torch: correctness first, then time, memory, kernel by kernel.

    python benchmarks/step_gpu.py             all of it, under eight minutes on an H100
    python benchmarks/step_gpu.py --dry-run   tiny, on the CPU's emulator; its numbers mean nothing

A step is forward, loss, backward, clipping and AdamW, on a batch that lies on the device. torch
runs eagerly with TF32, cudnn.benchmark and fused AdamW, in both memory layouts, of which the
faster counts; and compiled, in a process of its own that ends with the time. Sides take turns,
each timed by its device's events while the other has nothing to do; given are medians. "bytes" are
the sizes of all arrays that a launch is given, each once: what it would move at least. A kernel is
timed by repeating it, so small arrays come from the cache. Results go to
benchmarks/results/step_gpu.txt and .json, after every part; what was not run is marked so.

The gradients are checked against torch in float64. In float32 a network of fifty batch norms makes
much of a rounding: with TF32 the gradients of one step are a tenth off, torch's as ours. So there
the measure is torch's own error on the same data.
"""

import argparse
import gc
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from minisegnet.backend import select_device
from minisegnet.cli import ArgumentParser, positive_float, positive_int
from minisegnet.cuda import emulated_device
from minisegnet.errors import UserError, run_command
from minisegnet.verify.gradcheck import relative_error

try:
    import torch
    from gpu_sides import OurSide, TorchSide
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    torch = None  # `main` says so

MODELS = ("deeplab_light", "deeplab_baseline")
MIB = 2 ** 20
ROUNDS, STEPS = 7, 5  # of a measurement, of a round
NOT_RUN = "not run"
# Seconds that must be left to begin with a part; a compilation is ended after its time.
MODEL_SECONDS, COMPILE_SECONDS, LAST_SECONDS = 45, 60, 10
# Agreement of the gradients in float64, relative; in float32, how much worse than torch, which may
# choose not to use TF32 here and there.
FLOAT64_LIMIT, FLOAT32_RATIO = 1e-9, 3.0
CHECK_SIZES = (8, 96, 128, 21)
# Peak rate of the memory in bytes a second, by what the device calls itself.
ROOFLINES = {"H100 80GB HBM3": 3.35e12, "H100 PCIe": 2.0e12, "H200": 4.8e12,
             "A100-SXM4-80GB": 2.04e12, "A100-SXM4-40GB": 1.56e12}


class Clock:
    """Says how much is left of the time for all of it."""

    def __init__(self, minutes):
        self.end = time.monotonic() + 60 * minutes

    @property
    def left(self):
        """Seconds."""
        return self.end - time.monotonic()


# ---------------------------------------------------------------- correctness


def check(xp, device, name, sizes):
    """Return {what: error} of one step's gradients against torch on the same device."""
    exact = TorchSide(device, name, sizes, dtype=torch.float64).gradients()
    return {
        "float64": _error(OurSide(xp, name, sizes).gradients(np.float64), exact),
        "float32": _error(OurSide(xp, name, sizes).gradients(np.float32), exact),
        "float32 of torch": _error(TorchSide(device, name, sizes).gradients(), exact),
    }


def is_right(errors, dry_run):
    """Whether the errors that `check` found are within the limits.

    On the emulator those of float32 are not looked at: so few pixels leave them to chance.
    """
    allowed = max(1e-6, FLOAT32_RATIO * errors["float32 of torch"])
    return errors["float64"] <= FLOAT64_LIMIT and (dry_run or errors["float32"] <= allowed)


def _error(gradients, exact):
    """Return the relative error of all gradients as one vector."""
    return relative_error(*(
        np.concatenate([np.asarray(side[name], np.float64).ravel() for name in sorted(exact)])
        for side in (gradients, exact)))


# ---------------------------------------------------------------- time and memory


def measure(sides, clock, *, rounds=ROUNDS, steps=STEPS):
    """Run the sides in turn; return {name: median ms of a step}."""
    times = defaultdict(list)
    for done in range(rounds):
        if done >= 3 and clock.left < LAST_SECONDS:
            break
        for name, side in sides.items():
            for each in sides.values():  # nobody else has anything to do
                each.wait()

            def several(side=side):
                for _ in range(steps):
                    side.step()

            times[name].append(side.time(several) / steps)
    return {name: statistics.median(found) for name, found in times.items()}


def peak_of(make, warm_up):
    """Return a side after `warm_up` steps, and the peak of its memory in bytes."""
    gc.collect()  # what belonged to the sides before
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
        several = side.repeated(launch, repeats)
        several()
        side.wait()
        row = rows.setdefault(launch.name, {"kernel": launch.name, "launches": 0, "ms": 0.0,
                                            "bytes": 0})
        row["launches"] += 1
        row["ms"] += side.time(several) / repeats
        row["bytes"] += launch.bytes_moved
    return sorted(rows.values(), key=lambda row: -row["ms"])


def compare(xp, device, name, sizes, clock, settings):
    """Return what one model at one batch size takes, on both sides."""
    ms = dict.fromkeys(("ours", "torch contiguous", "torch channels_last",
                        "ours, launch by launch", "torch compiled"), NOT_RUN)
    result = {"model": name, "batch_size": sizes[0], "ms": ms, "peak": {}, "kernels": [],
              "failed": {}}
    makers = {
        "ours": lambda: OurSide(xp, name, sizes),
        "torch contiguous": lambda: TorchSide(device, name, sizes),
        "torch channels_last": lambda: TorchSide(device, name, sizes, channels_last=True),
    }
    sides = {}
    for side, make in makers.items():
        try:
            sides[side], result["peak"][side] = peak_of(make, 4)
        except Exception as error:  # too little memory: the others may have enough
            result["failed"][side] = _one_line(error)
    if "ours" in sides:
        result["why_not_captured"] = sides["ours"].runner.why_not_captured
    amount = {"rounds": settings.rounds, "steps": settings.steps}
    ms.update(measure(sides, clock, **amount))
    sides.clear()
    try:
        eager, _ = peak_of(lambda: OurSide(xp, name, sizes, replay=False), 2)
        ms["ours, launch by launch"] = measure({"": eager}, clock, **amount)[""]
        result["kernels"] = kernel_table(eager, settings.repeats)
    except Exception as error:
        result["failed"]["kernel by kernel"] = _one_line(error)
    return result


def _one_line(error):
    return f"{type(error).__name__}: {error}".splitlines()[0]


def compiled_ms(name, sizes):
    """Return the median ms of a step of torch, compiled; what --compiled prints."""
    side, _ = peak_of(lambda: TorchSide("cuda", name, sizes, channels_last=True, compiled=True), 3)
    return measure({"": side}, Clock(1))[""]


def compile_beside(name, sizes, seconds):
    """Return `compiled_ms`, from a process that has so many seconds, or why there is none."""
    batch_size, *image_size, num_classes = map(str, sizes)
    words = [sys.executable, __file__, "--compiled", "--model", name, "--batch-size", batch_size,
             "--image-size", *image_size, "--num-classes", num_classes]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               start_new_session=True)  # compilers it starts end with it
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"not compiled within {seconds:.0f} s"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode:
        return (err.strip().splitlines() or ["no words"])[-1]
    return float(out.split()[-1])


# ---------------------------------------------------------------- the report


def report(results):
    """Return the results as text."""
    setting = results["setting"]
    lines = [f"{setting['device']}; images {setting['image_size'][0]} x "
             f"{setting['image_size'][1]}, {setting['num_classes']} classes, float32 with TF32; "
             f"torch {setting['torch']}, {setting['library']}"]
    if setting["dry_run"]:
        lines.append("DRY RUN on the emulator: the numbers mean nothing")
    lines += ["", "gradients of one step against torch in float64 on the same device (limits: "
              f"float64 {FLOAT64_LIMIT:.0e}, float32 {FLOAT32_RATIO} x torch's own)"]
    for name, errors in results["correctness"].items():
        lines.append(f"  {name:<18}{_error_words(errors)}")
    for row in results["models"]:
        lines += ["", *(_model_lines(row, setting) if row["ms"] else
                        [f"{row['model']}, batch {row['batch_size']}: {NOT_RUN}, out of time"])]
    return "\n".join(lines) + "\n"


def _error_words(errors):
    return "  ".join(f"{what} {error:.1e}" for what, error in errors.items())


def _model_lines(row, setting):
    ms = row["ms"]
    theirs = [ms[f"torch {layout}"] for layout in ("contiguous", "channels_last")
              if ms[f"torch {layout}"] != NOT_RUN]
    ratio = (f"{ms['ours'] / min(theirs):.2f} x torch's time" if theirs and ms["ours"] != NOT_RUN
             else NOT_RUN)
    yield f"{row['model']}, batch {row['batch_size']}: {ratio}"
    for name, value in ms.items():
        why = f"   ({row['failed'][name]})" if name in row["failed"] else ""
        value = f"{NOT_RUN:>12}" if value == NOT_RUN else f"{value:9.2f} ms"
        yield f"  {name:<26}{value}{why}"
    peaks = [peak for name, peak in row["peak"].items() if name != "ours" and peak]
    ours = row["peak"].get("ours")
    if ours and peaks:
        yield (f"  peak memory {ours / MIB:.0f} MiB, torch {min(peaks) / MIB:.0f} MiB: "
               f"{ours / min(peaks):.2f} x")
    else:
        yield f"  peak memory: {NOT_RUN}"
    if row.get("why_not_captured"):
        yield f"  not a CUDA graph: {row['why_not_captured']}"
    if not row["kernels"]:
        yield f"  kernel by kernel: {NOT_RUN} ({row['failed'].get('kernel by kernel')})"
        return
    launches, moved = (sum(each[what] for each in row["kernels"])
                       for what in ("launches", "bytes"))
    summary = f"  {launches} launches move {moved / 1e9:.2f} GB"
    if ms["ours"] != NOT_RUN:
        rate = moved / ms["ours"] * 1e3
        summary += f": {rate / 1e12:.2f} TB/s"
        if setting["roofline"]:
            summary += f", {rate / setting['roofline']:.0%} of the memory's rate"
    yield summary
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


def write(results, folder):
    """Write what there is so far as text and as JSON; return the text."""
    text = report(results)
    folder.mkdir(parents=True, exist_ok=True)
    stem = "step_gpu_dry_run" if results["setting"]["dry_run"] else "step_gpu"
    (folder / f"{stem}.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / f"{stem}.txt").write_text(text)
    return text


def _parse(argv):
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
    parser.add_argument("--compiled", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--output-dir", type=Path, default=Path(__file__).parent / "results")
    settings = parser.parse_args(argv)
    settings.rounds, settings.steps, settings.repeats = ROUNDS, STEPS, 10
    settings.check_sizes = CHECK_SIZES
    settings.models = settings.models or list(MODELS)
    if settings.dry_run:
        settings.batch_size, settings.image_size, settings.num_classes = [2], [32, 32], 3
        settings.rounds = settings.steps = settings.repeats = 1
        settings.check_sizes = (2, 32, 32, 3)
        settings.models, settings.compile = settings.models[:1], False
    return settings


def main(argv=None):
    settings = _parse(argv)
    if torch is None:
        raise UserError("a step is compared with torch's; for that: pip install "
                        "'minisegnet[torch]'")
    if settings.compiled:  # what `compile_beside` asks for
        print(compiled_ms(settings.models[0], (settings.batch_size[0], *settings.image_size,
                                               settings.num_classes)))
        return 0
    clock = Clock(settings.minutes)
    xp, device = emulated_device, "cpu"
    if not settings.dry_run:
        xp, device = select_device("cuda"), "cuda"
    results = {"setting": _setting(xp, settings), "correctness": {}, "models": []}
    for name in settings.models:
        results["correctness"][name] = check(xp, device, name, settings.check_sizes)
        print(f"{name}: {_error_words(results['correctness'][name])}", flush=True)
    later = [(name, batch_size) for name in settings.models for batch_size in settings.batch_size]
    for name, batch_size in later:
        sizes = (batch_size, *settings.image_size, settings.num_classes)
        if clock.left < MODEL_SECONDS and not settings.dry_run:
            results["models"].append({"model": name, "batch_size": batch_size, "ms": None})
            continue
        results["models"].append(compare(xp, device, name, sizes, clock, settings))
        write(results, settings.output_dir)
        print(f"{name}, batch {batch_size}: measured, {clock.left:.0f} s left", flush=True)
    for row in results["models"]:  # last: it takes a minute or more, or fails
        if settings.compile and row["ms"] and clock.left > COMPILE_SECONDS:
            gc.collect()
            torch.cuda.empty_cache()
            xp.get_default_memory_pool().free_all_blocks()
            sizes = (row["batch_size"], *settings.image_size, settings.num_classes)
            found = compile_beside(row["model"], sizes, clock.left - LAST_SECONDS)
            row["ms" if isinstance(found, float) else "failed"]["torch compiled"] = found
    print(write(results, settings.output_dir), end="")
    wrong = [name for name, errors in results["correctness"].items()
             if not is_right(errors, settings.dry_run)]
    wrong += [row["model"] for row in results["models"] if "ours" in row.get("failed", ())]
    if wrong:
        print(f"WRONG: {', '.join(wrong)} (see above)")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
