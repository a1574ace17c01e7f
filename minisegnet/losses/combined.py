"""Focal plus dice: pixel by pixel, and class by class.

    L = lambda_focal * focal + lambda_dice * dice
"""

from typing import NamedTuple

from minisegnet.losses._overlap import OverlapCache
from minisegnet.losses._softmax import check_shapes, uses_kernels
from minisegnet.losses.dice import dice_backward, dice_forward, dice_overlap
from minisegnet.losses.focal import FocalCache, focal_backward, focal_forward, focal_mean
from minisegnet.losses.softmax_cuda import (
    DeviceCache,
    DeviceLoss,
    FullLogits,
    loss_backward_cuda,
    loss_forward_cuda,
)


class CombinedCache(NamedTuple):
    """What the backward pass needs, and the two losses before they are weighted."""

    focal: FocalCache
    dice: OverlapCache
    lambda_focal: float
    lambda_dice: float  # divided by the number of parts
    parts: dict  # {"focal": ..., "dice": ...}


def combined_forward(logits, target, *, lambda_focal=1.0, lambda_dice=1.0, alpha=None, gamma=2.0,
                     smooth=1.0, dice_mode="pooled", counts=None, parts=1, ignore_index=255,
                     implementation=None):
    """Return lambda_focal * focal + lambda_dice * dice of logits (N, H, W, K), and a cache.

    `alpha`, `gamma` and `counts` as in `focal_forward`; `smooth`, and `dice_mode` for mode, as in
    `dice_forward`, over the classes present. Where the batch is one of `parts` parts of a larger
    one, dice is divided by their number. `cache.parts` holds the two losses. `implementation` is
    "numpy", "cuda" or "cuda_cpu", as in `cross_entropy_forward`. Raises what the two raise, and
    ValueError for a negative lambda.
    """
    if uses_kernels(implementation, logits, "numpy"):
        check_shapes(logits, target)
        loss = combined_on_device(logits.shape[3], lambda_focal, lambda_dice, alpha, gamma, smooth,
                                  dice_mode, parts)
        return loss_forward_cuda(FullLogits(logits), target, loss, counts=counts,
                                 ignore_index=ignore_index)
    check_lambdas(lambda_focal, lambda_dice)
    focal, focal_cache = focal_forward(logits, target, alpha=alpha, gamma=gamma, counts=counts,
                                       ignore_index=ignore_index)
    dice, dice_cache = dice_forward(logits, target, smooth=smooth, mode=dice_mode,
                                    ignore_index=ignore_index)
    dice = logits.dtype.type(float(dice) / parts)
    loss = logits.dtype.type(lambda_focal * float(focal) + lambda_dice * float(dice))
    return loss, CombinedCache(focal_cache, dice_cache, lambda_focal, lambda_dice / parts,
                               {"focal": focal, "dice": dice})


def combined_backward(dloss, cache):
    """Return dlogits (N, H, W, K) for the scalar `dloss`."""
    if isinstance(cache, DeviceCache):
        return loss_backward_cuda(dloss, cache)
    dlogits = dice_backward(dloss * cache.lambda_dice, cache.dice)
    dlogits += focal_backward(dloss * cache.lambda_focal, cache.focal)
    return dlogits


def combined_on_device(num_classes, lambda_focal=1.0, lambda_dice=1.0, alpha=None, gamma=2.0,
                       smooth=1.0, dice_mode="pooled", parts=1):
    """Return the `DeviceLoss` of focal plus dice."""
    check_lambdas(lambda_focal, lambda_dice)
    return DeviceLoss(focal_mean(num_classes, alpha, gamma),
                      dice_overlap(num_classes, smooth, mode=dice_mode), lambda_focal, lambda_dice,
                      parts)


def check_lambdas(lambda_focal, lambda_dice):
    """Refuse a negative share of either loss."""
    if not (lambda_focal >= 0.0 and lambda_dice >= 0.0):
        raise ValueError(f"lambda_focal is {lambda_focal} and lambda_dice {lambda_dice}; "
                         "expected numbers of at least 0")
