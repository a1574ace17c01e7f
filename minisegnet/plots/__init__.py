"""Every picture: functions that take data and return a matplotlib figure."""

from minisegnet.plots.curves import curves
from minisegnet.plots.figures import save
from minisegnet.plots.predictions import predictions, side_by_side

__all__ = ["curves", "predictions", "save", "side_by_side"]
