"""Bilinear upsampling and a loss in one: the logits of full resolution never exist.

A segmentation network ends in coarse logits (N, h, w, K), enlarged four times or more, and a
loss on every pixel. Written one after the other, the large logits, their softmax and their
gradient travel through memory several times. Here each image is worked off in bands of rows
small enough for the processor's cache: enlarge a band, turn it into its gradient, and bring
that back to the coarse pixels at once.

Three ideas keep it short:
- the columns are enlarged once per image, while there are still few rows; a band then is one
  small matrix product with its rows of the interpolation matrix (see ops/upsample.py);
- classes stay in front, (K, rows, W), so that sums over them are vector operations;
- softmax does not change if all logits of a pixel are shifted. Shift the *coarse* logits to a
  maximum of 0: the enlarged ones, weighted means of four neighbours, then lie at 0 or a little
  below, and need no search for a maximum, unless neighbours differ by more than exp can bear.
"""

from typing import NamedTuple

import numpy as np

from minisegnet.losses._overlap import overlap_gradient_block, overlap_sums
from minisegnet.losses._softmax import (
    check_labels,
    check_logits,
    counts_to_divide_by,
    exp_and_log_prob,
    refuse_device,
    scale_gradient,
    target_index,
    uses_kernels,
    with_ignored,
)
from minisegnet.losses.combined import check_lambdas, combined_on_device
from minisegnet.losses.cross_entropy import cross_entropy_block, cross_entropy_terms
from minisegnet.losses.dice import dice_of_sums, dice_overlap, dice_shares
from minisegnet.losses.focal import focal_block, focal_mean, focal_of_log_prob, focal_terms
from minisegnet.losses.logit_adjusted import logit_adjusted_mean, logit_shift
from minisegnet.losses.lovasz import lovasz_backward, lovasz_forward
from minisegnet.losses.ohem import check_ohem, keep_hard
from minisegnet.losses.softmax_cuda import (
    DeviceCache,
    DeviceLoss,
    cross_entropy_mean,
    loss_backward_cuda,
)
from minisegnet.losses.tversky import tversky_of_sums, tversky_overlap, tversky_shares
from minisegnet.losses.upsampled_cuda import (
    upsampled_loss_forward_cuda,
    upsampled_prediction_cuda,
)
from minisegnet.ops._checks import choose
from minisegnet.ops.upsample import (
    UpsampleBilinearCache,
    cached_rows,
    interpolation_matrix,
    row_bands,
    upsample_bilinear_backward,
    upsample_bilinear_forward,
)
from minisegnet.parallel import parallel_map

# exp(-60) is far from underflow in float32. Logits shifted at the coarse pixels to 0 at the
# maximum stay above this value at the maximum everywhere if none of them lies below it.
SAFE_MINIMUM = -60.0

COLUMNS_PER_BAND = 48  # narrow enough to skip most zeros, wide enough for BLAS


class OneSweepCache(NamedTuple):
    """After a sum over pixels, one of the cross-entropies or focal: the gradient is there."""

    dcoarse: np.ndarray  # (N, h, w, K), for dloss = 1


class TwoSweepCache(NamedTuple):
    """After an overlap: the gradient needs the sums over the batch, and a second sweep."""

    coarse: np.ndarray  # (N, h, w, K)
    labels: np.ndarray  # (N, H, W), K where the pixel is ignored
    dintersection: np.ndarray  # (K,)
    dtotal: np.ndarray  # (K,)
    focal: object  # FocalTerms, or None for an overlap alone
    lambda_focal: float
    lambda_dice: float  # divided by the number of parts
    parts: dict  # {"focal": ..., "dice": ...}, or {} for an overlap alone


class PlainCache(NamedTuple):
    """After Lovasz: its gradient at full resolution, and the way back."""

    loss: object  # LovaszCache
    upsample: UpsampleBilinearCache


def upsampled_loss_forward(coarse, target, loss="ce", *, ignore_index=255, implementation=None,
                           **options):
    """Return the loss of coarse logits (N, h, w, K) enlarged to target (N, H, W), and a cache.

    `loss` is one of the names of `_LOSSES` and `options` are those of its plain function; the
    result equals `upsample_bilinear_forward` followed by that function. "lovasz" sorts all pixels
    of the batch, class by class, and so is just that: there, and only there, logits of full
    resolution exist. `implementation` is "numpy", "cuda" or "cuda_cpu", as in
    `cross_entropy_forward`; lovasz and ohem have no kernels. Raises what the plain functions do.
    """
    if loss not in _LOSSES:
        raise ValueError(f"loss {loss!r} is not one of {', '.join(_LOSSES)}")
    check_logits(coarse)
    if target.ndim != 3 or target.shape[0] != coarse.shape[0] or 0 in target.shape:
        raise ValueError(f"target has shape {target.shape}; expected (N, H, W) with "
                         f"N = {coarse.shape[0]}")
    if loss in ("lovasz", "ohem"):
        refuse_device(loss, coarse)
        choose(implementation, coarse, numpy=None)
    elif uses_kernels(implementation, coarse, "numpy"):
        counts = options.pop("counts", None) if loss in _WITH_COUNTS else None
        return upsampled_loss_forward_cuda(
            coarse, target, ON_DEVICE[loss](coarse.shape[3], **options),
            counts=counts, ignore_index=ignore_index)
    if loss == "lovasz":
        return _lovasz(coarse, target, ignore_index=ignore_index, **options)
    return _LOSSES[loss](coarse, check_labels(target, coarse.shape[3], ignore_index), **options)


def upsampled_loss_backward(dloss, cache, *, loss_scale=None):
    """Return dcoarse (N, h, w, K) for the scalar `dloss`.

    On a device it may be multiplied by `loss_scale`, an array (1,) there of the type computed in.
    """
    if isinstance(cache, DeviceCache):
        return loss_backward_cuda(dloss, cache, loss_scale)
    if loss_scale is not None:
        raise ValueError("a loss scale is for logits on a GPU")
    if isinstance(cache, OneSweepCache):
        return scale_gradient(dloss, cache.dcoarse)
    if isinstance(cache, PlainCache):
        return upsample_bilinear_backward(lovasz_backward(dloss, cache.loss), cache.upsample)
    return _second_sweep(float(dloss), cache)


def upsampled_prediction(coarse, size, *, implementation=None):
    """Return the most likely class (N, *size) of coarse logits (N, h, w, K) enlarged to size.

    uint8 for up to 256 classes, which is all that there may be on a device. The lowest class wins
    a tie. `implementation` is "numpy", "cuda" or "cuda_cpu". Raises ValueError for a size that is
    none.
    """
    check_logits(coarse)
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size is {size}; expected (height, width), both at least 1")
    if uses_kernels(implementation, coarse, "numpy"):
        return upsampled_prediction_cuda(coarse, size)
    N, _, _, K = coarse.shape
    prediction = np.empty((N, *size), np.min_scalar_type(K - 1))

    def band(z, predicted):
        predicted[...] = z.argmax(axis=0)

    _sweep(coarse, prediction, band, gradient=False)
    return prediction


def _cross_entropy(coarse, labels, *, weight=None, counts=None, label_smoothing=0.0):
    counts = counts_to_divide_by(counts, labels)
    terms = cross_entropy_terms(counts, weight, label_smoothing, coarse.dtype)
    losses, dcoarse = _sweep(
        coarse, labels.index, lambda z, label: cross_entropy_block(z, label, terms), gradient=True
    )
    return coarse.dtype.type(sum(losses)), OneSweepCache(dcoarse)


def _logit_adjusted(coarse, labels, *, prior, tau=1.0, weight=None, counts=None):
    # The shares of the neighbours in an enlarged logit sum to 1: shift them, and it is shifted.
    shifted = coarse + logit_shift(prior, tau, coarse.shape[3], coarse.dtype)
    return _cross_entropy(shifted, labels, weight=weight, counts=counts)


def _ohem(coarse, labels, *, thresh=0.7, min_kept=1 / 16, weight=None):
    check_ohem(thresh, min_kept)
    K = coarse.shape[3]

    def band(z, label):
        return exp_and_log_prob(z, target_index(label, K))[1]

    log_prob, _ = _sweep(coarse, labels.index, band, gradient=False)
    kept = keep_hard(labels, np.concatenate(log_prob), thresh, min_kept)
    return _cross_entropy(coarse, kept, weight=weight)


def _focal(coarse, labels, *, alpha=None, gamma=2.0, counts=None):
    terms = focal_terms(counts_to_divide_by(counts, labels), alpha, gamma, coarse.dtype)
    losses, dcoarse = _sweep(
        coarse, labels.index, lambda z, label: focal_block(z, label, terms), gradient=True
    )
    return coarse.dtype.type(sum(losses)), OneSweepCache(dcoarse)


def _dice(coarse, labels, *, smooth=1.0, classes="present", weight=None, log=False,
          mode="pooled"):
    shares, smooth = dice_shares(labels.counts, smooth, classes, weight, mode)
    return _overlap(coarse, labels, lambda intersection, total: dice_of_sums(
        intersection, total, labels.counts, shares, smooth, log))


def _tversky(coarse, labels, *, alpha=0.3, beta=0.7, smooth=1.0, classes="present", weight=None):
    shares = tversky_shares(labels.counts, alpha, beta, smooth, classes, weight)
    return _overlap(coarse, labels, lambda intersection, total: tversky_of_sums(
        intersection, total, labels.counts, shares, alpha, beta, smooth))


def _overlap(coarse, labels, loss_of_sums):
    _, (intersection, total) = _sums_of_first_sweep(coarse, labels.index, None)
    loss, dintersection, dtotal = loss_of_sums(intersection, total)
    return coarse.dtype.type(loss), TwoSweepCache(
        coarse, labels.index, dintersection, dtotal, None, 0.0, 1.0, {})


def _combined(coarse, labels, *, lambda_focal=1.0, lambda_dice=1.0, alpha=None, gamma=2.0,
              smooth=1.0, dice_mode="pooled", counts=None, parts=1):
    check_lambdas(lambda_focal, lambda_dice)
    terms = focal_terms(counts_to_divide_by(counts, labels), alpha, gamma, coarse.dtype)
    shares, smooth = dice_shares(labels.counts, smooth, "present", None, dice_mode)
    focal, (intersection, total) = _sums_of_first_sweep(coarse, labels.index, terms)
    dice, dintersection, dtotal = dice_of_sums(intersection, total, labels.counts, shares,
                                               smooth, False)
    dice /= parts
    as_dtype = coarse.dtype.type
    return as_dtype(lambda_focal * focal + lambda_dice * dice), TwoSweepCache(
        coarse, labels.index, dintersection, dtotal, terms, lambda_focal, lambda_dice / parts,
        {"focal": as_dtype(focal), "dice": as_dtype(dice)},
    )


def _lovasz(coarse, target, **options):
    logits, upsample_cache = upsample_bilinear_forward(coarse, target.shape[1:])
    loss, cache = lovasz_forward(logits, target, **options)
    return loss, PlainCache(cache, upsample_cache)


_LOSSES = {
    "ce": _cross_entropy,
    "focal": _focal,
    "dice": _dice,
    "combined": _combined,
    "tversky": _tversky,
    "lovasz": _lovasz,
    "ohem": _ohem,
    "logit_adjusted": _logit_adjusted,
}


_WITH_COUNTS = ("ce", "focal", "combined", "logit_adjusted")
ON_DEVICE = {
    "ce": lambda K, **options: DeviceLoss(cross_entropy_mean(K, **options)),
    "focal": lambda K, **options: DeviceLoss(focal_mean(K, **options)),
    "dice": lambda K, **options: DeviceLoss(overlap=dice_overlap(K, **options)),
    "combined": combined_on_device,
    "tversky": lambda K, **options: DeviceLoss(overlap=tversky_overlap(K, **options)),
    "logit_adjusted": lambda K, **options: DeviceLoss(logit_adjusted_mean(K, **options)),
}


def _sums_of_first_sweep(coarse, labels, focal):
    """Return the focal loss (0 without `focal` terms), and I and S (2, K) float64."""
    K = coarse.shape[3]

    def band(z, label):
        sums, log_prob = exp_and_log_prob(z, target_index(label, K))
        # S without a pass that divides: sum_i exp(z_ci) / sums_i is a matrix-vector product
        total = z @ ((label < K) / sums)
        loss = focal_of_log_prob(log_prob, label, focal)[0] if focal else 0.0
        return loss, overlap_sums(total, log_prob, label)

    results, _ = _sweep(coarse, labels, band, gradient=False)
    return sum(loss for loss, _ in results), sum(sums for _, sums in results)


def _second_sweep(dloss, cache):
    dtype = cache.coarse.dtype
    K = cache.coarse.shape[3]
    dintersection = with_ignored(dloss * cache.lambda_dice * cache.dintersection, dtype)
    dtotal = (dloss * cache.lambda_dice * cache.dtotal).astype(dtype)
    dfocal = dtype.type(dloss * cache.lambda_focal)

    def band(z, label):
        index = target_index(label, K)
        sums, log_prob = exp_and_log_prob(z, index)
        z *= (label < K) / sums
        factor = None
        if cache.focal is not None:
            factor = dfocal * focal_of_log_prob(log_prob, label, cache.focal)[1]
        overlap_gradient_block(z, label, index, dintersection, dtotal, factor)

    _, dcoarse = _sweep(cache.coarse, cache.labels, band, gradient=True)
    return dcoarse


def _sweep(coarse, pixels, band_function, *, gradient):
    """Call `band_function(z, band of pixels)` for bands of rows of every image, threaded by image.

    `pixels` (N, H, W) sets the size: labels to read, or an array to fill. z (K, P) are the
    enlarged, shifted logits of the band and (P,) its pixels. With `gradient` the function
    leaves in z the gradient. Returns the list of its results, in order, and dcoarse
    (N, h, w, K), or None without `gradient`.
    """
    N, h, w, K = coarse.shape
    H, W = pixels.shape[1:]
    column_bands = row_bands(interpolation_matrix(w, W, coarse.dtype), COLUMNS_PER_BAND)
    bands = row_bands(interpolation_matrix(h, H, coarse.dtype),
                      cached_rows(K * W * coarse.itemsize))
    dcoarse = np.empty(coarse.shape, coarse.dtype) if gradient else None

    def image(n):
        small = np.array(coarse[n].transpose(2, 0, 1), order="C")  # (K, h, w), a copy
        small -= small.max(axis=0)
        steep = small.min() < SAFE_MINIMUM
        wide = np.empty((K, h, W), coarse.dtype)
        for columns, sources, block in column_bands:
            wide[:, :, columns] = small[:, :, sources] @ block.T
        dwide = np.zeros_like(wide) if gradient else None
        workspace = np.empty(K * bands[0][2].shape[0] * W, coarse.dtype)
        results = []
        for rows, sources, block in bands:
            R = block.shape[0]
            z = workspace[: K * R * W].reshape(K, R, W)
            np.matmul(block, wide[:, sources], out=z)
            if steep:
                z -= z.max(axis=0)
            results.append(band_function(z.reshape(K, R * W), pixels[n, rows].reshape(-1)))
            if gradient:
                dwide[:, sources] += block.T @ z  # the transpose of the band's enlargement
        if gradient:
            dsmall = np.zeros_like(small)
            for columns, sources, block in column_bands:
                dsmall[:, :, sources] += dwide[:, :, columns] @ block
            dcoarse[n] = dsmall.transpose(1, 2, 0)
        return results

    per_image = parallel_map(image, range(N))
    return [result for results in per_image for result in results], dcoarse
