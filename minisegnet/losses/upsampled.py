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

from minisegnet.losses._softmax import (
    check_labels,
    check_logits,
    exp_and_log_prob,
    scale_gradient,
    target_index,
    with_ignored,
)
from minisegnet.losses.combined import check_lambdas
from minisegnet.losses.cross_entropy import cross_entropy_block, cross_entropy_terms
from minisegnet.losses.dice import dice_gradient_block, dice_of_sums, dice_shares, dice_sums
from minisegnet.losses.focal import focal_block, focal_of_log_prob, focal_terms
from minisegnet.ops.upsample import cached_rows, interpolation_matrix, row_bands
from minisegnet.parallel import parallel_map

# exp(-60) is far from underflow in float32. Logits shifted at the coarse pixels to 0 at the
# maximum stay above this value at the maximum everywhere if none of them lies below it.
SAFE_MINIMUM = -60.0

COLUMNS_PER_BAND = 48  # narrow enough to skip most zeros, wide enough for BLAS


class OneSweepCache(NamedTuple):
    """After CE or focal: the gradient came with the loss."""

    dcoarse: np.ndarray  # (N, h, w, K), for dloss = 1


class TwoSweepCache(NamedTuple):
    """After dice or combined: the gradient needs the sums over the batch, and a second sweep."""

    coarse: np.ndarray  # (N, h, w, K)
    labels: np.ndarray  # (N, H, W), K where the pixel is ignored
    dintersection: np.ndarray  # (K,)
    dtotal: np.ndarray  # (K,)
    focal: object  # FocalTerms, or None for dice alone
    lambda_focal: float
    lambda_dice: float
    parts: dict  # {"focal": ..., "dice": ...}, or {"dice": ...}


def upsampled_loss_forward(coarse, target, loss="ce", *, ignore_index=255, **options):
    """Return the loss of coarse logits (N, h, w, K) enlarged to target (N, H, W), and a cache.

    `loss` is "ce", "focal", "dice" or "combined", and `options` are those of its plain
    function; the result equals `upsample_bilinear_forward` followed by that function. Raises
    what they raise.
    """
    check_logits(coarse)
    if target.ndim != 3 or target.shape[0] != coarse.shape[0] or 0 in target.shape:
        raise ValueError(f"target has shape {target.shape}; expected (N, H, W) with "
                         f"N = {coarse.shape[0]}")
    labels = check_labels(target, coarse.shape[3], ignore_index)
    if loss == "ce":
        return _cross_entropy(coarse, labels, **options)
    if loss == "focal":
        return _focal(coarse, labels, **options)
    if loss == "dice":
        return _dice(coarse, labels, **options)
    if loss == "combined":
        return _combined(coarse, labels, **options)
    raise ValueError(f"loss {loss!r} is not one of ce, focal, dice, combined")


def upsampled_loss_backward(dloss, cache):
    """Return dcoarse (N, h, w, K) for the scalar `dloss`."""
    if isinstance(cache, OneSweepCache):
        return scale_gradient(dloss, cache.dcoarse)
    return _second_sweep(float(dloss), cache)


def upsampled_prediction(coarse, size):
    """Return the most likely class (N, *size) of coarse logits (N, h, w, K) enlarged to size.

    uint8 for up to 256 classes. The lowest class wins a tie.
    """
    check_logits(coarse)
    N, _, _, K = coarse.shape
    prediction = np.empty((N, *size), np.min_scalar_type(K - 1))

    def band(z, predicted):
        predicted[...] = z.argmax(axis=0)

    _sweep(coarse, prediction, band, gradient=False)
    return prediction


def _cross_entropy(coarse, labels, *, weight=None, label_smoothing=0.0):
    terms = cross_entropy_terms(labels.counts, weight, label_smoothing, coarse.dtype)
    losses, dcoarse = _sweep(
        coarse, labels.index, lambda z, label: cross_entropy_block(z, label, terms), gradient=True
    )
    return coarse.dtype.type(sum(losses)), OneSweepCache(dcoarse)


def _focal(coarse, labels, *, alpha=None, gamma=2.0):
    terms = focal_terms(labels.counts, alpha, gamma, coarse.dtype)
    losses, dcoarse = _sweep(
        coarse, labels.index, lambda z, label: focal_block(z, label, terms), gradient=True
    )
    return coarse.dtype.type(sum(losses)), OneSweepCache(dcoarse)


def _dice(coarse, labels, *, smooth=1.0, classes="present", weight=None, log=False,
          mode="pooled"):
    shares, smooth = dice_shares(labels.counts, smooth, classes, weight, mode)
    _, (intersection, total) = _sums_of_first_sweep(coarse, labels.index, None)
    dice, dintersection, dtotal = dice_of_sums(intersection, total, labels.counts, shares,
                                               smooth, log)
    dice = coarse.dtype.type(dice)
    return dice, TwoSweepCache(coarse, labels.index, dintersection, dtotal, None, 0.0, 1.0,
                               {"dice": dice})


def _combined(coarse, labels, *, lambda_focal=1.0, lambda_dice=1.0, alpha=None, gamma=2.0,
              smooth=1.0):
    check_lambdas(lambda_focal, lambda_dice)
    terms = focal_terms(labels.counts, alpha, gamma, coarse.dtype)
    shares, smooth = dice_shares(labels.counts, smooth, "present", None, "pooled")
    focal, (intersection, total) = _sums_of_first_sweep(coarse, labels.index, terms)
    dice, dintersection, dtotal = dice_of_sums(intersection, total, labels.counts, shares,
                                               smooth, False)
    as_dtype = coarse.dtype.type
    return as_dtype(lambda_focal * focal + lambda_dice * dice), TwoSweepCache(
        coarse, labels.index, dintersection, dtotal, terms, lambda_focal, lambda_dice,
        {"focal": as_dtype(focal), "dice": as_dtype(dice)},
    )


def _sums_of_first_sweep(coarse, labels, focal):
    """Return the focal loss (0 without `focal` terms), and I and S (2, K) float64."""
    K = coarse.shape[3]

    def band(z, label):
        sums, log_prob = exp_and_log_prob(z, target_index(label, K))
        # S without a pass that divides: sum_i exp(z_ci) / sums_i is a matrix-vector product
        total = z @ ((label < K) / sums)
        loss = focal_of_log_prob(log_prob, label, focal)[0] if focal else 0.0
        return loss, dice_sums(total, log_prob, label)

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
        dice_gradient_block(z, label, index, dintersection, dtotal, factor)

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
