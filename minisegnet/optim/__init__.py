"""Optimizers, learning-rate schedules and gradient clipping."""

from minisegnet.optim.adamw import AdamW
from minisegnet.optim.clipping import clip_grad_norm, global_norm
from minisegnet.optim.flat import FlatParameters
from minisegnet.optim.rmsprop import RMSprop
from minisegnet.optim.schedules import (
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    LinearWarmup,
    OneCycleLR,
    PolynomialLR,
    StepLR,
)
from minisegnet.optim.sgd import SGD

__all__ = [
    "AdamW",
    "ConstantLR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "FlatParameters",
    "LinearWarmup",
    "OneCycleLR",
    "PolynomialLR",
    "RMSprop",
    "SGD",
    "StepLR",
    "clip_grad_norm",
    "global_norm",
]
