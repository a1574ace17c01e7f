"""What a training step needs of the memory, estimated before the first one; and what there is.

Nearly all of it grows with the pixels of the batch: what the forward keeps for the backward, and
the loss. So a forward and its loss are run on a small batch, their allocations counted, and the
count is scaled up: no formula has to know the layers, and nothing large is made.
"""

import copy
import math
import os
import tracemalloc
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minisegnet.losses.criterion import Criterion
from minisegnet.parallel import one_thread

TRIAL = (4, 96, 96)  # N, H, W: more than the threads' workspaces, less than a second for mini
# What the trial does not see: temporaries of the backward, and gaps between the arrays. With this
# factor the estimate was 0.91 to 1.10 of what processes that train grew by, in 17 runs: all five
# models, six losses, 64x64 to 512x512, 26 to 714 MiB (tests/test_memory.py repeats some).
UNSEEN = 1.15
STATE_ARRAYS = {"adamw": 2, "rmsprop": 2, "sgd": 1}  # at most; as large as the parameters
AHEAD = 2  # batches that the loader makes while one is in use
SURE = 0.8  # an estimate below this share of what there is fits, even if it is wrong by a fifth
MIB = 2 ** 20


class MemoryEstimate(NamedTuple):
    """The peak of a training step, in bytes; without the program itself and its data set."""

    weights: int  # parameters, gradients, state of the optimizer, averaged weights
    kept: int  # activations that wait for the backward
    temporary: int  # the loss, and what lives shortly
    batches: int  # images and targets, in use and ahead
    batch_size: int

    @property
    def total(self):
        """All of it, in bytes."""
        return self.weights + self.kept + self.temporary + self.batches


def estimate_memory(model, image_size, batch_size, *, loss="ce", optimizer="adamw", ema=False,
                    accumulate=1):
    """Return the `MemoryEstimate` of training `model` on batches of `image_size` (H, W).

    `loss` and `optimizer` are names; `ema` adds averaged weights, and `accumulate` batches are
    held for a step. The model is not changed: the trial runs on a copy.
    """
    pixels = batch_size * image_size[0] * image_size[1]
    kept, peak = _trial(model, loss)
    scale = pixels / math.prod(TRIAL)
    parameters = sum(array.nbytes for _, array in model.named_parameters())
    weights = (2 + STATE_ARRAYS[optimizer]) * parameters
    if ema:
        weights += parameters + sum(array.nbytes for _, array in model.named_buffers())
    # float32 images and a byte of target
    batches = (accumulate + AHEAD) * pixels * (3 * 4 + 1)
    return MemoryEstimate(weights, int(scale * kept), int(scale * (UNSEEN * peak - kept)),
                          batches, batch_size)


def _trial(model, loss):
    """Return (bytes that a forward keeps, peak bytes of forward and loss) for a `TRIAL` batch."""
    # A forward in training moves running statistics and draws for dropout.
    model = copy.deepcopy(model).train()
    K = model.num_classes
    dtype = next(model.named_parameters())[1].dtype
    criterion = Criterion(loss, prior=np.full(K, 1 / K))
    rng = np.random.default_rng(0)
    images = rng.standard_normal((*TRIAL, 3)).astype(dtype)
    target = rng.integers(0, K, TRIAL, np.uint8)  # every class occurs: the dearest case

    was_tracing = tracemalloc.is_tracing()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        # One thread: whose temporaries meet at the peak would be chance with several.
        with one_thread(), np.errstate(over="ignore", invalid="ignore"):
            coarse = model.forward_coarse(images)
            after, _ = tracemalloc.get_traced_memory()
            _, cache = criterion.forward_upsampled(coarse, target)
            criterion.backward_upsampled(1.0, cache)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        if not was_tracing:
            tracemalloc.stop()
    return after - before, peak - before


def machine_memory(root="/"):
    """Return how many bytes can still be had, or None where no one says.

    On Linux what the kernel calls available, or less where a control group (a container, a batch
    job) sets a limit; elsewhere all of the physical memory. `root` holds /proc and /sys.
    """
    root = Path(root)
    found = []
    for line in _lines(root / "proc/meminfo"):
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            found.append(1024 * int(value.split()[0]))
    if found:
        return max(0, min([*found, *_left_in_cgroups(root)]))
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf
        return None


def _left_in_cgroups(root):
    """Yield the bytes left in each memory control group of this process that has a limit."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            top, names = "", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top, names = "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes",
                                    "total_inactive_file")
        else:
            continue
        # A limit of any group above holds as well. In a container the path is often that of the
        # host, which is not there, and the container's own limit stands at the top.
        path = Path(path.lstrip("/"))
        for folder in (root / "sys/fs/cgroup" / top / level for level in (path, *path.parents)):
            limit, used, cache = names
            limit, used = _lines(folder / limit), _lines(folder / used)
            if limit and used and limit[0] != "max":
                stat = dict(line.split() for line in _lines(folder / "memory.stat"))
                # Cached files count as used, and go when room is needed.
                yield int(limit[0]) - int(used[0]) + int(stat.get(cache, 0))


def _lines(path):
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def format_estimate(estimate, available):
    """Return the estimate and a verdict as lines of text; `available` is in bytes, or None."""
    parts = (("weights, gradients, optimizer", estimate.weights),
             ("kept for the backward", estimate.kept),
             ("loss and temporaries", estimate.temporary),
             ("batches in use and ahead", estimate.batches))
    lines = [f"memory of a training step: about {estimate.total / MIB:,.0f} MiB"]
    lines += [f"    {name:<30}{size / MIB:>10,.0f} MiB" for name, size in parts]
    return "\n".join([*lines, _verdict(estimate, available)])


def _verdict(estimate, available):
    if available is None:
        return "    what this machine has left is not known"
    left = f"    {available / MIB:,.0f} MiB are left: "
    if estimate.total <= SURE * available:
        return left + "fits"
    if estimate.total <= available:
        return left + "fits barely; a smaller --batch-size would be safe"
    per_image = (estimate.total - estimate.weights) / estimate.batch_size
    images = int((SURE * available - estimate.weights) / per_image)
    if images >= 2:
        parts = -(-estimate.batch_size // images)
        return (left + f"does not fit; --batch-size {images} does (with --accumulate {parts} for "
                "a step of about the same size), or a smaller --image-size or --scale")
    return left + "does not fit; use a smaller --image-size or --scale, or a smaller --model"
