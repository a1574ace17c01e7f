"""Optimizers, averages of the weights, learning-rate schedules and gradient clipping."""

from minisegnet.optim.adamw import AdamW
from minisegnet.optim.clipping import clip_grad_norm, global_norm
from minisegnet.optim.ema import ExponentialMovingAverage
from minisegnet.optim.flat import FlatParameters
from minisegnet.optim.plateau import EarlyStopping, ReduceLROnPlateau
from minisegnet.optim.rmsprop import RMSprop
from minisegnet.optim.schedules import (
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    LinearWarmup,
    OneCycleLR,
    PolynomialLR,
    SequentialLR,
    StepLR,
    near_restart_top,
)
from minisegnet.optim.sgd import SGD

__all__ = [
    "AdamW",
    "ConstantLR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "EarlyStopping",
    "ExponentialMovingAverage",
    "FlatParameters",
    "LinearWarmup",
    "OneCycleLR",
    "PolynomialLR",
    "RMSprop",
    "ReduceLROnPlateau",
    "SGD",
    "SequentialLR",
    "StepLR",
    "clip_grad_norm",
    "global_norm",
    "near_restart_top",
]
