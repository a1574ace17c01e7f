"""What a training run minimises: one loss with its options, on plain or on coarse logits."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from minisegnet.losses.combined import combined_backward, combined_forward
from minisegnet.losses.cross_entropy import cross_entropy_backward, cross_entropy_forward
from minisegnet.losses.dice import check_dice_mode, dice_backward, dice_forward
from minisegnet.losses.focal import focal_backward, focal_forward
from minisegnet.losses.logit_adjusted import logit_adjusted_backward, logit_adjusted_forward
from minisegnet.losses.lovasz import lovasz_backward, lovasz_forward
from minisegnet.losses.ohem import ohem_backward, ohem_forward
from minisegnet.losses.softmax_cuda import divided, pixels_per_class
from minisegnet.losses.tversky import tversky_backward, tversky_forward
from minisegnet.losses.upsampled import upsampled_loss_backward, upsampled_loss_forward

__all__ = ["LOSSES", "Criterion", "ShareOfMean", "WholeBatch", "pixels_per_class"]

_FUNCTIONS = {
    "ce": (cross_entropy_forward, cross_entropy_backward),
    "focal": (focal_forward, focal_backward),
    "dice": (dice_forward, dice_backward),
    "combined": (combined_forward, combined_backward),
    "tversky": (tversky_forward, tversky_backward),
    "lovasz": (lovasz_forward, lovasz_backward),
    "ohem": (ohem_forward, ohem_backward),
    "logit_adjusted": (logit_adjusted_forward, logit_adjusted_backward),
}
LOSSES = tuple(_FUNCTIONS)
_SUMS_OVER_PIXELS = ("ce", "focal", "logit_adjusted")


class WholeBatch(NamedTuple):
    """The large batch of which a batch is one part, where gradients are accumulated."""

    counts: np.ndarray  # (K,) valid pixels per class, of all parts; see pixels_per_class
    parts: int  # their number


class ShareOfMean(NamedTuple):
    """The cache of a loss that is divided by the number of parts of the whole batch."""

    cache: object
    parts: int


@dataclass(frozen=True, eq=False)
class Criterion:
    """A loss by name, and its options.

    `name` is "ce", "focal", "dice", "combined", "tversky", "lovasz", "ohem" or "logit_adjusted".
    `weight` (K,) are class weights: the alpha of focal and of the focal part of combined, the
    weights of every other loss. Numbers that belong to another loss are not looked at. Raises
    ValueError for another name; label smoothing with anything but ce; logit_adjusted without a
    prior; dice_mode "smp" with weights in dice, or with a loss that has no dice.

    With `whole`, the losses of the parts of a large batch add up to one loss, and their gradients
    to its gradient: for ce, focal and logit_adjusted exactly to those of the whole batch. Dice,
    tversky, lovasz and ohem are no sums over pixels: each part's loss is divided by the number of
    parts, and what they add up to is the mean of the parts, *not* the loss of the whole batch.
    Combined is exact in focal and a mean in dice, also in what `parts` returns.
    """

    name: str = "ce"
    weight: np.ndarray | None = None  # (K,)
    gamma: float = 2.0
    label_smoothing: float = 0.0
    lambda_focal: float = 1.0
    lambda_dice: float = 1.0
    dice_mode: str = "pooled"  # or "smp"; of dice, and of the dice part of combined
    tversky_alpha: float = 0.3
    tversky_beta: float = 0.7
    ohem_thresh: float = 0.7
    ohem_min_kept: float = 1 / 16  # share of the valid pixels
    tau: float = 1.0
    prior: np.ndarray | None = None  # (K,) shares of the classes among the pixels
    ignore_index: int = 255

    def __post_init__(self):
        if self.name not in _FUNCTIONS:
            raise ValueError(f"loss {self.name!r} is not one of {', '.join(_FUNCTIONS)}")
        if self.label_smoothing and self.name != "ce":
            raise ValueError(f"label smoothing goes with ce, not with {self.name}; set it to 0")
        if self.name == "logit_adjusted" and self.prior is None:
            raise ValueError("logit_adjusted needs a prior, the shares of the classes among the "
                             "training pixels")
        check_dice_mode(self.dice_mode)
        if self.dice_mode == "smp" and self.name not in ("dice", "combined"):
            raise ValueError(f"dice_mode 'smp' goes with dice and combined, not with {self.name}; "
                             "set it to 'pooled'")
        if self.dice_mode == "smp" and self.name == "dice" and self.weight is not None:
            raise ValueError("dice_mode 'smp' has no class weights; leave them away, or set "
                             "dice_mode to 'pooled'")

    def forward(self, logits, target, *, whole=None):
        """Return the loss of logits (N, H, W, K) against target (N, H, W), and a cache.

        `whole` is the `WholeBatch` of which this one is a part.
        """
        loss, cache = _FUNCTIONS[self.name][0](logits, target, **self.options(whole))
        return self._share_of_mean(loss, cache, whole)

    def backward(self, dloss, cache):
        """Return dlogits (N, H, W, K)."""
        if isinstance(cache, ShareOfMean):
            dloss, cache = dloss / cache.parts, cache.cache
        return _FUNCTIONS[self.name][1](dloss, cache)

    def forward_upsampled(self, coarse, target, *, whole=None):
        """Return the loss of coarse logits (N, h, w, K) enlarged to the target, and a cache."""
        loss, cache = upsampled_loss_forward(coarse, target, self.name, **self.options(whole))
        return self._share_of_mean(loss, cache, whole)

    def backward_upsampled(self, dloss, cache, *, loss_scale=None):
        """Return dcoarse (N, h, w, K), on a device times the array `loss_scale` (1,) if given."""
        if isinstance(cache, ShareOfMean):
            dloss, cache = dloss / cache.parts, cache.cache
        return upsampled_loss_backward(dloss, cache, loss_scale=loss_scale)

    def parts(self, cache):
        """Return the named parts of a sum, {"focal": ..., "dice": ...}; {} for a single loss."""
        return dict(cache.parts) if self.name == "combined" else {}

    def options(self, whole=None):
        """Return the keyword arguments of this loss's forward function."""
        options = {"ignore_index": self.ignore_index}
        if self.name in ("focal", "combined"):
            options.update(alpha=self.weight, gamma=self.gamma)
        else:
            options["weight"] = self.weight
        if self.name == "ce":
            options["label_smoothing"] = self.label_smoothing
        elif self.name == "dice":
            options["mode"] = self.dice_mode
        elif self.name == "combined":
            options.update(lambda_focal=self.lambda_focal, lambda_dice=self.lambda_dice,
                           dice_mode=self.dice_mode)
        elif self.name == "tversky":
            options.update(alpha=self.tversky_alpha, beta=self.tversky_beta)
        elif self.name == "ohem":
            options.update(thresh=self.ohem_thresh, min_kept=self.ohem_min_kept)
        elif self.name == "logit_adjusted":
            options.update(prior=self.prior, tau=self.tau)
        if whole is not None:
            if whole.parts < 1:
                raise ValueError(f"whole.parts is {whole.parts}; expected at least 1")
            if self.name in (*_SUMS_OVER_PIXELS, "combined"):
                options["counts"] = whole.counts
            if self.name == "combined":
                options["parts"] = whole.parts
        return options

    def _share_of_mean(self, loss, cache, whole):
        """Divide the loss of a part by the number of parts, unless it is a part of the sum."""
        if whole is None or self.name in (*_SUMS_OVER_PIXELS, "combined"):
            return loss, cache
        return divided(loss, whole.parts), ShareOfMean(cache, whole.parts)
