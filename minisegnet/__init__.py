"""MiniSegNet: semantic segmentation from scratch, every backward pass written by hand."""

__version__ = "0.5.0"
