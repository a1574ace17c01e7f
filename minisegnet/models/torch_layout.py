"""Weights to and from torch's layouts and names: the one place that knows NCHW.

Backbone names are those of torchvision's `mobilenet_v3_small().features`; a UNet's are those of
the repository Pytorch-UNet.
"""

from typing import NamedTuple

import numpy as np

from minisegnet.backend import asnumpy, get_array_module
from minisegnet.blocks import ConvNormActivation
from minisegnet.layers import BatchNorm2d, Conv2d, ConvTranspose2d, DepthwiseConv2d, Layer
from minisegnet.models.mobilenet_v3 import InvertedResidual

# torchvision's ConvNormActivation is a Sequential: convolution, norm, activation.
_SEQUENTIAL_INDEX = {"conv": "0", "norm": "1", "activation": "2"}

# Of each batch norm, a counter that torch uses only where its momentum is None: written as 0 to
# make a state complete, and passed over in one that is read.
COUNTER = "num_batches_tracked"


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
                step = child
                if isinstance(layer, ConvNormActivation):
                    step = _SEQUENTIAL_INDEX[child]
                inside_block[full] = f"{inside_block[name]}.{step}" if name else step
    return inside_block


def to_torch_layout(layer, key, array):
    """Return one parameter or buffer in torch's axis order (a view where possible)."""
    if isinstance(layer, (Conv2d, ConvTranspose2d)) and key == "weight":
        # (KH, KW, C, OC) -> (OC, C, KH, KW); of a transposed one (KH, KW, OC, C) -> (C, OC, ...)
        return array.transpose(3, 2, 0, 1)
    if isinstance(layer, DepthwiseConv2d):
        return array.transpose(2, 0, 1)[:, None]  # (KH, KW, C) -> (C, 1, KH, KW)
    return array


def from_torch_layout(layer, key, array):
    """Return one parameter or buffer of torch in our axis order: undoes `to_torch_layout`."""
    if isinstance(layer, (Conv2d, ConvTranspose2d)) and key == "weight":
        return array.transpose(2, 3, 1, 0)
    if isinstance(layer, DepthwiseConv2d):
        return array[:, 0].transpose(1, 2, 0)
    return array


class TorchArray(NamedTuple):
    """A parameter or buffer of a model: where it lives here, and its shape in torch's layout."""

    layer: Layer
    key: str
    array: np.ndarray
    shape: tuple

    def load(self, torch_array):
        """Write `torch_array`, a NumPy array in torch's layout, into the array."""
        xp = get_array_module(self.array)
        self.array[...] = xp.asarray(from_torch_layout(self.layer, self.key, torch_array))


def torch_arrays(model):
    """Return {torch name: TorchArray} of all parameters and buffers."""
    names, found = torch_names(model), {}
    for name, layer in model.named_layers():
        for arrays in (layer.params, layer.buffers):
            for key, array in arrays.items():
                found[f"{names[name]}.{key}"] = TorchArray(
                    layer, key, array, to_torch_layout(layer, key, array).shape)
    return found


def to_torch_state_dict(model):
    """Return {torch name: NumPy array in torch's layout} of all parameters and buffers."""
    state = {}
    for name, (layer, key, array, _) in torch_arrays(model).items():
        # A copy: training goes on in the model's own arrays.
        state[name] = np.array(to_torch_layout(layer, key, asnumpy(array)), order="C")
        if isinstance(layer, BatchNorm2d) and key == "running_var":
            state[name.removesuffix(key) + COUNTER] = np.array(0, np.int64)
    return state
