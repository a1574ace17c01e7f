"""The losses on a device: which kernels of softmax.cu make up a loss, and on which tables.

Nothing here waits for the device: pixels are counted, sums divided and losses added by kernels, so
the loss is an array (1,) there. A label that is no class cannot be refused without waiting; its
pixel is treated as ignored.

All losses are one family (see softmax.h): a mean over pixels, an overlap, or both. The logits are
`FullLogits`, or the `CoarseLogits` of upsampled_cuda.py: the same three passes, with kernels of
their own. The gradient is made in the backward pass alone, where it is scaled by dloss and by the
loss scale before it is rounded to the type of the activations.
"""

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minisegnet.backend import get_array_module
from minisegnet.cuda.launch import KernelFile, blocks
from minisegnet.losses._softmax import (
    Labels,
    check_class_weights,
    check_labels,
    counts_to_divide_by,
)

KERNELS = KernelFile(Path(__file__).with_name("softmax.cu"))
THREADS = 256  # of a block
# Blocks that leave sums: enough for every multiprocessor, few enough to be added up by one block.
MEAN_BLOCKS, OVERLAP_BLOCKS = 2112, 528
MAX_COUNT = 2 ** 31 - 1  # pixels of a class, counted in int
MAX_CLASSES = 255  # labels are bytes, and one value of theirs is for ignored pixels


class PixelMean(NamedTuple):
    """Cross-entropy or focal loss: sum of w[y] (1-p)^gamma (-log p) over the pixels, divided."""

    weight: np.ndarray  # (K,) w
    counted: np.ndarray  # (K,) what a pixel adds to the denominator
    gamma: float = 0.0
    smooth: np.ndarray | None = None  # (K,) label smoothing: weight of -log p of every class
    shift: np.ndarray | None = None  # (K,) added to the logits


class Overlap(NamedTuple):
    """Tversky loss, and dice as one: alpha = beta = 1/2, and half of dice's smooth."""

    weight: np.ndarray  # (K,) of the classes in the mean
    alpha: float
    beta: float
    smooth: float
    all_classes: bool = False  # or those present
    log: bool = False
    smp: bool = False  # classes that are absent count as loss 0 in the mean


class DeviceLoss(NamedTuple):
    """A loss: one of both, or their weighted sum."""

    pixels: PixelMean | None = None
    overlap: Overlap | None = None
    lambda_pixels: float = 1.0
    lambda_overlap: float = 1.0
    parts: int = 1  # of the batch; an overlap is divided by it


class DeviceCache(NamedTuple):
    """What the backward pass needs; arrays on the device."""

    logits: object  # FullLogits or CoarseLogits, shifted
    target: object  # (N, H, W) uint8
    ignore_index: int
    loss: DeviceLoss
    lse: object  # (N, H, W) log sum exp of the shifted logits
    on_target: object  # (N, H, W) of the pixel loss, or None
    scale: object  # (1,) that the pixel loss's gradient is multiplied by
    dintersection: object  # (K,) dL/dI of the overlap, or None
    dtotal: object  # (K,) dL/dS, or None
    parts: dict  # {"focal": ..., "dice": ...} of a sum


def cross_entropy_mean(num_classes, weight=None, label_smoothing=0.0, shift=None):
    """Return the `PixelMean` of cross-entropy."""
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing is {label_smoothing}; expected 0 to 1")
    weight = check_class_weights(weight, num_classes)
    smooth = label_smoothing / num_classes * weight if label_smoothing else None
    return PixelMean((1.0 - label_smoothing) * weight, weight, 0.0, smooth, shift)


def loss_forward_cuda(logits, target, loss, *, counts=None, ignore_index=255):
    """Return the `DeviceLoss` of logits against target (N, H, W), and a `DeviceCache`.

    `counts` (K,), on the host or int32 on the device, are the pixels per class that a mean over
    pixels is over, if not those of the target. On a device the loss is an array (1,). Raises
    ValueError for shapes that do not fit, TypeError unless the target is of integers, on a device
    uint8.
    """
    xp, K = get_array_module(logits.array), logits.num_classes
    real = real_dtype(logits.array)
    target, ignore_index, counts = _labels(xp, target, K, ignore_index, counts)
    logits = logits._replace(array=_shifted(logits.array))

    pixels, overlap = loss.pixels, loss.overlap
    tables = _tables(xp, real, pixels, "weight", "counted", "smooth", "shift")
    lse = xp.empty(target.shape, real)
    on_target = None if pixels is None else xp.empty(target.shape, real)
    sums = logits.forward(target, ignore_index, lse=lse, on_target=on_target, **tables,
                          gamma=0.0 if pixels is None else pixels.gamma,
                          smooth_total=smooth_total(loss))
    value, scale = xp.empty((1,), real), xp.empty((1,), real)
    KERNELS.launch("pixel_mean_kernel", (1,), (THREADS,), sums=sums, counts=counts,
                   counted=tables["counted"], loss=value, scale=scale,
                   factor=loss.lambda_pixels, count=sums.shape[1], K=K)
    dintersection = dtotal = None
    parts = {}
    if overlap is not None:
        pixel_loss = None if pixels is None else value
        value, part = xp.empty((1,), real), xp.empty((1,), real)
        dintersection, dtotal = xp.empty((K,), real), xp.empty((K,), real)
        sums = logits.overlap(target, ignore_index, lse)
        KERNELS.launch(
            "overlap_mean_kernel", (1,), (32, 32), shared_bytes=3 * K * real.itemsize, sums=sums,
            **_tables(xp, real, overlap, "weight"), pixel_loss=pixel_loss, loss=value,
            overlap=part, dintersection=dintersection, dtotal=dtotal, alpha=overlap.alpha,
            beta=overlap.beta, smooth=overlap.smooth, lambda_pixels=loss.lambda_pixels,
            lambda_overlap=loss.lambda_overlap, share=1.0 / loss.parts, logarithm=overlap.log,
            all_classes=overlap.all_classes, smp=overlap.smp, count=sums.shape[0], K=K)
        if pixels is not None:
            parts = {"focal": element(pixel_loss), "dice": element(part)}
    return element(value), DeviceCache(logits, target, ignore_index, loss, lse, on_target, scale,
                                       dintersection, dtotal, parts)


def _shifted(logits):
    """Return logits (..., K) less the highest of each pixel: softmax is the same.

    Of 16 bits they stay as they are: rounding the difference would lose more.
    """
    if logits.dtype.itemsize == 2:
        return logits
    logits = get_array_module(logits).ascontiguousarray(logits)
    below = get_array_module(logits).empty(logits.shape, logits.dtype)
    K = logits.shape[-1]
    lanes, rows = pixel_group(K)
    P = logits.size // K
    KERNELS.launch("softmax_shift_kernel", (blocks(P, rows),), (lanes, rows), logits=logits,
                   below=below, P=P, K=K)
    return below


def loss_backward_cuda(dloss, cache, loss_scale=None):
    """Return the gradient of the logits for the number `dloss`, times `loss_scale` (1,) if given.

    The scale lies on the device: it may change while the launches that read it are repeated.
    """
    xp, real = get_array_module(cache.logits.array), real_dtype(cache.logits.array)
    tables = _tables(xp, real, cache.loss.pixels, "smooth", "shift")
    return cache.logits.backward(float(dloss), cache, loss_scale=loss_scale, **tables)


def pixels_per_class(target, num_classes, *, ignore_index=255, into=None):
    """Return the pixels (K,) of each class in target (N, H, W), where the target is.

    Labels beyond the classes are left out. On a device int32, and added to the array `into` where
    one is given; `whole.counts` of several batches are made so, without waiting.
    """
    xp = get_array_module(target)
    if xp is np:
        index = target[(target != ignore_index) & (target >= 0) & (target < num_classes)]
        counts = np.bincount(index, minlength=num_classes)
        return counts if into is None else into + counts
    target = xp.ascontiguousarray(_check_device_target(target))
    if into is None:
        into = xp.zeros((num_classes,), np.int32)
    KERNELS.launch("label_counts_kernel", (min(blocks(target.size, 8 * THREADS), 264),),
                   (THREADS,), shared_bytes=4 * num_classes, target=target, counts=into,
                   ignore_index=ignore_index, P=target.size, K=num_classes)
    return into


def divided(loss, parts):
    """Return loss / parts, for a loss that may lie on a device."""
    if get_array_module(loss) is np:
        return type(loss)(loss / parts)
    share = get_array_module(loss).empty((1,), loss.dtype)
    KERNELS.launch("divided_kernel", (1,), (1,), loss=loss, share=share, parts=parts)
    return share


def pixel_group(num_classes):
    """Return (lanes of a pixel, pixels of a block): a lane for three classes, about."""
    lanes = 1
    while lanes < 32 and 3 * lanes < num_classes:
        lanes *= 2
    return lanes, THREADS // lanes


def element(array):
    """Return the number of a NumPy array (1,); an array on a device as it is."""
    return array[0] if get_array_module(array) is np else array


def real_dtype(logits):
    """Return the dtype that is computed in: float64 for float64, else float32."""
    return np.dtype(np.float64 if logits.dtype == np.float64 else np.float32)


def smooth_total(loss):
    """Return the sum of the label smoothing's weights."""
    smooth = getattr(loss.pixels, "smooth", None)
    return 0.0 if smooth is None else float(smooth.sum())


def _labels(xp, target, num_classes, ignore_index, counts):
    """Return the target as uint8 on the device, its ignored value, and counts (K,) or None."""
    if num_classes > MAX_CLASSES:
        raise ValueError(f"the logits have {num_classes} classes; on a GPU, at most {MAX_CLASSES}")
    labels = None
    if get_array_module(target) is np:
        labels = check_labels(target, num_classes, ignore_index)
        target, ignore_index = xp.asarray(labels.index), num_classes
    else:
        target = xp.ascontiguousarray(_check_device_target(target))
    if counts is not None and get_array_module(counts) is np:
        # What a target on a device has of each class is not known here; 0 passes the check.
        known = labels or Labels(None, np.zeros(num_classes, np.int64), 0)
        counts = counts_to_divide_by(counts, known)
        if counts.max() > MAX_COUNT:
            raise ValueError(f"counts has {counts.max()} pixels of a class; on a GPU, at most "
                             f"{MAX_COUNT}")
        counts = xp.asarray(counts.astype(np.int32))
    elif counts is not None and (counts.shape != (num_classes,) or counts.dtype != np.int32):
        raise ValueError(f"counts are {counts.dtype} {counts.shape} on the device; expected int32 "
                         f"({num_classes},), as from pixels_per_class")
    return target, ignore_index, counts


def _check_device_target(target):
    if target.dtype != np.uint8:
        raise TypeError(f"target is {target.dtype}; on a device, expected uint8 class labels")
    return target


def _tables(xp, dtype, terms, *names):
    """Return these fields (K,) of a `PixelMean` or `Overlap` on the device; None stays None."""
    found = {name: getattr(terms, name, None) for name in names}
    return {name: None if values is None
            else _on_device(xp, np.asarray(values, dtype).tobytes(), dtype)
            for name, values in found.items()}


@lru_cache(maxsize=None)  # never freed: a captured step goes on using its address
def _on_device(xp, content, dtype):
    """Return a table on the device: the same one in every step, copied there in the first."""
    return xp.asarray(np.frombuffer(content, dtype))


# ---------------------------------------------------------------- full logits: softmax.cu


class FullLogits(NamedTuple):
    """Logits (N, H, W, K) at full resolution."""

    array: object

    @property
    def num_classes(self):
        return self.array.shape[3]

    def forward(self, target, ignore_index, **arguments):
        """Fill lse and on_target; return the sums (2, blocks) of a mean over pixels."""
        xp, K = get_array_module(self.array), self.num_classes
        lanes, rows = pixel_group(K)
        count = min(blocks(target.size, rows), MEAN_BLOCKS)
        sums = xp.empty((2, count), real_dtype(self.array))
        KERNELS.launch("softmax_forward_kernel", (count,), (lanes, rows), logits=self._logits(),
                       target=target, ignore_index=ignore_index, sums=sums, P=target.size, K=K,
                       **arguments)
        return sums

    def overlap(self, target, ignore_index, lse):
        """Return the sums (blocks, 3, K) of an overlap."""
        xp, K, real = get_array_module(self.array), self.num_classes, real_dtype(self.array)
        rows = THREADS // K
        count = min(blocks(target.size, rows), OVERLAP_BLOCKS)
        sums = xp.empty((count, 3, K), real)
        KERNELS.launch("softmax_overlap_kernel", (count,), (K, rows),
                       shared_bytes=3 * K * rows * real.itemsize, logits=self._logits(),
                       target=target, lse=lse, sums=sums, ignore_index=ignore_index,
                       P=target.size, K=K)
        return sums

    def backward(self, dloss, cache, *, loss_scale, smooth, shift):
        """Return dlogits (N, H, W, K)."""
        logits = self._logits()
        dlogits = get_array_module(logits).empty(logits.shape, logits.dtype)
        lanes, rows = pixel_group(self.num_classes)
        KERNELS.launch(
            "softmax_backward_kernel", (blocks(cache.target.size, rows),), (lanes, rows),
            logits=logits, target=cache.target, smooth=smooth, shift=shift, lse=cache.lse,
            on_target=cache.on_target, scale=cache.scale, dintersection=cache.dintersection,
            dtotal=cache.dtotal, loss_scale=loss_scale, dlogits=dlogits, dloss=dloss,
            smooth_total=smooth_total(cache.loss), ignore_index=cache.ignore_index,
            P=cache.target.size, K=self.num_classes)
        return dlogits

    def _logits(self):
        return get_array_module(self.array).ascontiguousarray(self.array)
