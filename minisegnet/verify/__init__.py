"""Every gradient and every number, checked: `python -m minisegnet.verify`."""

from minisegnet.verify.exercises import check

__all__ = ["check"]
