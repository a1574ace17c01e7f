"""Weights to torch's layouts and names: the one place that knows NCHW.

Backbone names are those of torchvision's `mobilenet_v3_small().features`.
"""

import numpy as np

from minisegnet.backend import asnumpy
from minisegnet.layers import BatchNorm2d, Conv2d, DepthwiseConv2d
from minisegnet.models.mobilenet_v3 import InvertedResidual

# torchvision's ConvNormActivation is a Sequential: convolution, norm, activation.
_SEQUENTIAL_INDEX = {"conv": "0", "norm": "1"}


def torch_names(model):
    """Return {dotted name of a layer here: the same layer's name in the torch model}."""
    inside_block = {"": ""}  # each layer's torch name, built from its parent's
    for name, layer in model.named_layers():
        if isinstance(layer, InvertedResidual):
            # Inside a block torchvision counts the steps that are there: block.0, block.1, ...
            for i, child in enumerate(layer.children):
                inside_block[f"{name}.{child}"] = f"{inside_block[name]}.block.{i}"
        for child in layer.children:
            full = f"{name}.{child}" if name else child
            if full not in inside_block:
                step = _SEQUENTIAL_INDEX.get(child, child)
                inside_block[full] = f"{inside_block[name]}.{step}" if name else step
    return inside_block


def to_torch_layout(layer, key, array):
    """Return one parameter or buffer in torch's axis order (a view where possible)."""
    if isinstance(layer, Conv2d) and key == "weight":
        return array.transpose(3, 2, 0, 1)  # (KH, KW, C, OC) -> (OC, C, KH, KW)
    if isinstance(layer, DepthwiseConv2d):
        return array.transpose(2, 0, 1)[:, None]  # (KH, KW, C) -> (C, 1, KH, KW)
    return array


def to_torch_state_dict(model):
    """Return {torch name: NumPy array in torch's layout} of all parameters and buffers."""
    names, state = torch_names(model), {}
    for name, layer in model.named_layers():
        for arrays in (layer.params, layer.buffers):
            for key, array in arrays.items():
                torch_array = to_torch_layout(layer, key, asnumpy(array))
                # A copy: training goes on in the model's own arrays.
                state[f"{names[name]}.{key}"] = np.array(torch_array, order="C")
        if isinstance(layer, BatchNorm2d):
            state[f"{names[name]}.num_batches_tracked"] = np.array(0, np.int64)
    return state
