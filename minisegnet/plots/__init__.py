"""Every picture: functions that take data and return a matplotlib figure."""

from minisegnet.plots.comparison import (
    compared_classes,
    compared_curves,
    grid,
    pictures_with,
    side_by_side,
)
from minisegnet.plots.curves import curves
from minisegnet.plots.evaluation import confusion, reliability
from minisegnet.plots.figures import save, show
from minisegnet.plots.predictions import predictions

__all__ = [
    "compared_classes", "compared_curves", "confusion", "curves", "grid", "pictures_with",
    "predictions", "reliability", "save", "show", "side_by_side",
]
