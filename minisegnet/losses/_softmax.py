"""What every loss on logits shares: checks at the door, and softmax with the classes in front.

Logits arrive as (N, H, W, K). NumPy's maximum and sum over a short last axis are slow (a call
per pixel, so to speak), but over a *leading* axis they are vector operations on long rows. So
the losses work on blocks (K, P) of P pixels with the classes in front, small enough to stay in
the processor's cache; the two transposed copies cost less than one slow sum.
"""

import warnings
from typing import NamedTuple

import numpy as np

from minisegnet.backend import get_array_module
from minisegnet.ops._checks import choose
from minisegnet.parallel import parallel_map, row_blocks

_warned = set()  # messages given already: once per process is enough


class Labels(NamedTuple):
    """A checked target."""

    index: np.ndarray  # (N, H, W) unsigned, 0..K-1, and K where the pixel is ignored
    counts: np.ndarray  # (K,) int64, pixels per class
    valid: int  # number of pixels that are not ignored


def uses_kernels(implementation, logits, *others):
    """Return whether CUDA kernels work on `logits`: ValueError unless one of `others` does."""
    return choose(implementation, logits, **dict.fromkeys(others, False), cuda=True)


def refuse_device(loss, logits):
    """Raise ValueError if logits lie on a device, for a loss that has no kernels."""
    if get_array_module(logits) is not np:
        raise ValueError(f"{loss} sorts all pixels, for which there is no CUDA kernel yet; use "
                         "--device cpu or another loss")


def check_logits(logits):
    """Refuse logits that are not (N, H, W, K) of float32 or float64; 16 bits go on a device."""
    if logits.ndim != 4 or 0 in logits.shape:
        raise ValueError(f"logits have shape {logits.shape}; expected (N, H, W, K), none 0")
    half = str(logits.dtype) in ("float16", "bfloat16") and get_array_module(logits) is not np
    if logits.dtype not in (np.float32, np.float64) and not half:
        raise TypeError(f"logits are {logits.dtype}; expected float32 or float64")


def check_shapes(logits, target):
    """Check logits (N, H, W, K), and that target is (N, H, W)."""
    check_logits(logits)
    if target.shape != logits.shape[:3]:
        raise ValueError(f"target has shape {target.shape}, but the logits {logits.shape}; "
                         f"expected a target {logits.shape[:3]}")


def check_inputs(logits, target, ignore_index):
    """Check logits (N, H, W, K) and target (N, H, W), and return the target's `Labels`."""
    check_shapes(logits, target)
    return check_labels(target, logits.shape[3], ignore_index)


def check_labels(target, num_classes, ignore_index):
    """Return the `Labels` of target (N, H, W).

    Raises TypeError for a target that is not of integers, ValueError for a label that is
    neither a class 0..K-1 nor `ignore_index`.
    """
    if target.dtype.kind not in "iu":
        raise TypeError(f"target is {target.dtype}; expected integer class labels")
    if target.ndim != 3:
        raise ValueError(f"target has shape {target.shape}; expected (N, H, W)")
    ignored = target == ignore_index
    labels = target[~ignored]
    if labels.size and (labels.min() < 0 or labels.max() >= num_classes):
        found = np.unique(labels)
        wrong = [int(value) for value in found[(found < 0) | (found >= num_classes)]]
        shown = ", ".join(map(str, wrong[:8])) + (", ..." if len(wrong) > 8 else "")
        raise ValueError(
            f"target has labels {shown}, neither classes 0..{num_classes - 1} nor ignore_index="
            f"{ignore_index}; map them with a class map, or set num_classes or ignore_index"
        )
    counts = np.bincount(labels, minlength=num_classes)
    index = target.astype(np.min_scalar_type(num_classes), order="C")
    index[ignored] = num_classes
    return Labels(index, counts, labels.size)


def check_class_weights(weight, num_classes, name="weight"):
    """Return per-class weights (K,) float64: ones for None; raises ValueError if unusable."""
    if weight is None:
        return np.ones(num_classes)
    weight = np.asarray(weight, np.float64)
    if weight.shape != (num_classes,):
        raise ValueError(f"{name} has shape {weight.shape}; expected ({num_classes},), a number "
                         "per class")
    if not np.isfinite(weight).all() or weight.min() < 0:
        raise ValueError(f"{name} has negative or non-finite numbers: {weight.tolist()}")
    return weight


def counts_to_divide_by(counts, labels):
    """Return the pixels per class (K,) that a mean is over: those of `labels`, or `counts`.

    `counts` are given where the batch is a part of a larger one, and its loss a term of that
    one's. Raises ValueError for what is no number of pixels, and if the part would have more
    pixels of a class than the whole.
    """
    if counts is None:
        return labels.counts
    counts = np.asarray(counts)
    if counts.shape != labels.counts.shape:
        raise ValueError(f"counts has shape {counts.shape}; expected ({labels.counts.size},), the "
                         "pixels per class of the whole batch")
    if not (np.isfinite(counts) & (np.floor(counts) == counts)).all():
        raise ValueError(f"counts has {counts.tolist()}; expected whole numbers of pixels")
    if (counts < labels.counts).any():
        c = int((counts < labels.counts).argmax())
        raise ValueError(f"counts has {counts[c]} pixels of class {c}, but this part of the batch "
                         f"alone has {labels.counts[c]}; expected those of all parts together")
    return counts


def with_ignored(weight, dtype):
    """Return the look-up table (K+1,) of `dtype`: a weight per class, and 0 for ignored pixels."""
    return np.append(weight, 0.0).astype(dtype)


def warn_once(message):
    """Say `message` as a RuntimeWarning, the first time only."""
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, RuntimeWarning, stacklevel=3)


def map_pixel_blocks(function, *arrays):
    """Return `[function(block of each array), ...]` over cache-sized blocks of pixels, threaded.

    The first array sets the bytes per pixel. Each array is (P, ...) and is cut alike; what the
    function writes into a block lands in the array.
    """
    P = arrays[0].shape[0]
    blocks = row_blocks(P, arrays[0].nbytes // P)
    return parallel_map(lambda rows: function(*(array[rows] for array in arrays)), blocks)


def classes_first(rows):
    """Return a copy (K, P) of logits (P, K), shifted so that the largest of each pixel is 0."""
    z = np.array(rows.T, order="C")  # a copy even of one pixel or one class, unlike contiguous
    z -= z.max(axis=0)
    return z


def target_index(label, num_classes):
    """Return where in a flattened (K, P) block the entries [label[i], i] lie: (P,) int.

    An ignored pixel (label K) points at class K-1: its entry exists, and has weight 0.
    """
    P = label.size
    return np.minimum(label, num_classes - 1).astype(np.intp) * P + np.arange(P)


def exp_and_log_prob(z, index):
    """Turn shifted logits z (K, P), 0 or a little less at the maximum, into exp(z), in place.

    Returns the sums over the classes (P,), so that softmax = exp(z) / sums, and log p (P,) of
    the entries at the flat `index`: taken before exp, it stays finite where p is 0.
    """
    log_prob = z.reshape(-1)[index]
    np.exp(z, out=z)
    sums = z.sum(axis=0)
    log_prob -= np.log(sums)
    np.minimum(log_prob, 0.0, out=log_prob)  # rounding must not make a probability exceed 1
    return sums, log_prob


def accurate_sum(values):
    """Return the sum as a Python float, accumulated in float64 whatever the dtype."""
    return float(values.sum(dtype=np.float64))


def scale_gradient(dloss, gradient):
    """Return dloss * gradient without changing its dtype; for dloss = 1 the gradient itself."""
    return gradient if dloss == 1 else gradient * gradient.dtype.type(dloss)
