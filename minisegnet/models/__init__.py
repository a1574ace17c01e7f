"""Segmentation models, their backward passes written out."""

from minisegnet.models.build import MODEL_NAMES, build_model
from minisegnet.models.torch_layout import to_torch_state_dict

__all__ = ["MODEL_NAMES", "build_model", "to_torch_state_dict"]
