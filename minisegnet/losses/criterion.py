"""What a training run minimises: one loss with its options, on plain or on coarse logits."""

from dataclasses import dataclass

import numpy as np

from minisegnet.losses.combined import combined_backward, combined_forward
from minisegnet.losses.cross_entropy import cross_entropy_backward, cross_entropy_forward
from minisegnet.losses.dice import dice_backward, dice_forward
from minisegnet.losses.focal import focal_backward, focal_forward
from minisegnet.losses.upsampled import upsampled_loss_backward, upsampled_loss_forward

_FUNCTIONS = {
    "ce": (cross_entropy_forward, cross_entropy_backward),
    "focal": (focal_forward, focal_backward),
    "dice": (dice_forward, dice_backward),
    "combined": (combined_forward, combined_backward),
}


@dataclass(frozen=True, eq=False)
class Criterion:
    """A loss by name, "ce", "focal", "dice" or "combined", and its options.

    `weight` (K,) are class weights: the weights of ce and dice, the alpha of focal and of the
    focal part of combined. Raises ValueError for another name, and for label smoothing with
    anything but ce.
    """

    name: str = "ce"
    weight: np.ndarray | None = None  # (K,)
    gamma: float = 2.0
    label_smoothing: float = 0.0
    lambda_focal: float = 1.0
    lambda_dice: float = 1.0
    ignore_index: int = 255

    def __post_init__(self):
        if self.name not in _FUNCTIONS:
            raise ValueError(f"loss {self.name!r} is not one of {', '.join(_FUNCTIONS)}")
        if self.label_smoothing and self.name != "ce":
            raise ValueError(f"label smoothing goes with ce, not with {self.name}; set it to 0")

    def forward(self, logits, target):
        """Return the loss of logits (N, H, W, K) against target (N, H, W), and a cache."""
        return _FUNCTIONS[self.name][0](logits, target, **self.options())

    def backward(self, dloss, cache):
        """Return dlogits (N, H, W, K)."""
        return _FUNCTIONS[self.name][1](dloss, cache)

    def forward_upsampled(self, coarse, target):
        """Return the loss of coarse logits (N, h, w, K) enlarged to the target, and a cache."""
        return upsampled_loss_forward(coarse, target, self.name, **self.options())

    def backward_upsampled(self, dloss, cache):
        """Return dcoarse (N, h, w, K)."""
        return upsampled_loss_backward(dloss, cache)

    def parts(self, cache):
        """Return the named parts of a sum, {"focal": ..., "dice": ...}; {} for a single loss."""
        return dict(cache.parts) if self.name == "combined" else {}

    def options(self):
        """Return the keyword arguments of this loss's forward function."""
        options = {"ignore_index": self.ignore_index}
        if self.name in ("ce", "dice"):
            options["weight"] = self.weight
        if self.name == "ce":
            options["label_smoothing"] = self.label_smoothing
        if self.name in ("focal", "combined"):
            options.update(alpha=self.weight, gamma=self.gamma)
        if self.name == "combined":
            options.update(lambda_focal=self.lambda_focal, lambda_dice=self.lambda_dice)
        return options
