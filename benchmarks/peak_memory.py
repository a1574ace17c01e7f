"""Peak memory of one training step or one inference, in a process of its own (Linux).

    python benchmarks/peak_memory.py ours|torch train|inference MODEL N H W K

Prints one number: bytes of the peak above the level at which the libraries are imported and the
model is built, its weights included and nothing else.
"""

import ctypes
import gc
import json
import subprocess
import sys
from pathlib import Path

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_bytes(side, phase, model, batch_size, image_size, num_classes):
    """Measure in a fresh process; None where the system cannot tell."""
    if not CLEAR_REFS.exists():
        return None
    arguments = [side, phase, model, batch_size, *image_size, num_classes]
    result = subprocess.run([sys.executable, __file__, *map(str, arguments)],
                            capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"measuring {side} {phase} {model} failed:\n{result.stderr}")
    return json.loads(result.stdout)


def _resident(field):
    """Return VmRSS (now) or VmHWM (the highest since it was reset), in bytes."""
    for line in STATUS.read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{STATUS} has no {field}")


def _level():
    """Hand freed memory back to the system, restart the peak, return what is resident."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    CLEAR_REFS.write_text("5")  # VmHWM starts again from VmRSS
    return _resident("VmRSS")


def main(side, phase, name, *sizes):
    from workloads import OurWorkload, TorchWorkload

    N, H, W, K = map(int, sizes)
    workload_kind = OurWorkload if side == "ours" else TorchWorkload
    # What a library loads and starts at its first use is no need of the network.
    first = workload_kind("mini", K)
    first.set_batch(2, 32, 32)
    first.train_step()
    first.infer()
    del first
    workload = workload_kind(name, K)
    # Our layers own their gradients from the start, torch makes them in the first backward: they
    # count as memory of the training step on both sides.
    level = _level() - workload.gradient_bytes()
    workload.set_batch(N, H, W)
    for _ in range(3):
        workload.train_step() if phase == "train" else workload.infer()
    print(_resident("VmHWM") - level)


if __name__ == "__main__":
    main(*sys.argv[1:])
