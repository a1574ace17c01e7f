"""Losses on logits, each a forward and a backward function, and the criterion of a training run.

    loss, cache = cross_entropy_forward(logits, target, weight=weight)
    dlogits = cross_entropy_backward(1.0, cache)
"""

from minisegnet.losses.combined import combined_backward, combined_forward
from minisegnet.losses.criterion import Criterion, WholeBatch
from minisegnet.losses.cross_entropy import cross_entropy_backward, cross_entropy_forward
from minisegnet.losses.dice import dice_backward, dice_forward
from minisegnet.losses.focal import focal_backward, focal_forward
from minisegnet.losses.logit_adjusted import logit_adjusted_backward, logit_adjusted_forward
from minisegnet.losses.lovasz import lovasz_backward, lovasz_forward
from minisegnet.losses.ohem import ohem_backward, ohem_forward
from minisegnet.losses.softmax_cuda import pixels_per_class
from minisegnet.losses.tversky import tversky_backward, tversky_forward
from minisegnet.losses.upsampled import (
    upsampled_loss_backward,
    upsampled_loss_forward,
    upsampled_prediction,
)

WITHOUT_KERNELS = ("lovasz", "ohem")  # they sort all pixels, on the host only

__all__ = [
    "WITHOUT_KERNELS",
    "Criterion",
    "WholeBatch",
    "combined_backward",
    "combined_forward",
    "cross_entropy_backward",
    "cross_entropy_forward",
    "dice_backward",
    "dice_forward",
    "focal_backward",
    "focal_forward",
    "logit_adjusted_backward",
    "logit_adjusted_forward",
    "lovasz_backward",
    "lovasz_forward",
    "ohem_backward",
    "ohem_forward",
    "pixels_per_class",
    "tversky_backward",
    "tversky_forward",
    "upsampled_loss_backward",
    "upsampled_loss_forward",
    "upsampled_prediction",
]
