"""Layers and blocks: the gradients of the input and of every parameter."""

from functools import reduce

import numpy as np

from minisegnet import blocks, layers, ops
from minisegnet.backend import get_array_module
from minisegnet.models.aspp import ASPP
from minisegnet.models.mobilenet_v3 import Block, InvertedResidual
from minisegnet.ops.dropout import philox_uniform
from minisegnet.verify.case import GradientCase


def cases(on_device=False):
    """Return the `GradientCase`s of all layers and blocks; `on_device` those for a device."""
    rng = np.random.default_rng(2)
    x = rng.standard_normal((2, 5, 4, 4))
    window = {"stride": 2, "padding": 2, "dilation": 2}
    return [
        _case(layers.Conv2d(4, 3, 3, rng=rng, **window), x, "conv2d_layer", window),
        _case(layers.ConvTranspose2d(4, 3, 3, stride=2, padding=1, rng=rng), x,
              "conv_transpose2d", {"stride": 2, "padding": 1}),
        _case(layers.DepthwiseConv2d(4, 3, rng=rng, **window), x, "depthwise_conv2d", window),
        _case(layers.BatchNorm2d(4), x, "batch_norm_layer", {"training": True}),
        _case(layers.BatchNorm2d(4).eval(), x, "batch_norm_layer", {"training": False}),
        _case(layers.freeze_batch_norm(layers.BatchNorm2d(4)), x, "batch_norm_layer",
              {"training": False}, note="frozen statistics"),
        _case(layers.ReLU(), x, "relu"),
        _case(layers.ReLU6(), 4 * x, "relu6"),
        _case(layers.Hardswish(), 4 * x, "hardswish"),
        _case(layers.Hardsigmoid(), 4 * x, "hardsigmoid"),
        _case(layers.Sigmoid(), x, "sigmoid"),
        _case(layers.GlobalAveragePool(), x, "global_average_pool"),
        _case(layers.MaxPool2d(3, stride=2, padding=1), x, "max_pool2d",
              {"kernel_size": 3, "stride": 2, "padding": 1}),
        _dropout(x, on_device),
        _upsample(x),
        _concatenate(x),
        *_blocks(x, rng),
    ]


def _blocks(x, rng):
    conv = blocks.conv_norm_activation(4, 3, 3, rng=rng)
    linear = blocks.conv_norm_activation(4, 3, 3, None, rng=rng)
    depthwise = blocks.depthwise_norm_activation(4, 5, layers.Hardswish, stride=2, rng=rng)
    norm = {"rng": rng, "momentum": 0.1}
    residual = Block(3, 6, 4, True, layers.Hardswish, stride=1, dilation=2)
    smaller = Block(5, 6, 3, False, layers.ReLU, stride=2)
    rates = (1, 2)
    return [
        _case(conv, x, "conv_norm_activation"),
        _case(linear, x, "conv_norm_activation", {"activation": None}),
        _case(depthwise, x, "conv_norm_activation", {"activation": "hardswish", "stride": 2}),
        _case(blocks.SeparableConv2d(4, 3, 3, dilation=2, rng=rng), x, "separable_conv2d",
              {"dilation": 2}),
        _case(blocks.SqueezeExcite(4, 2, rng=rng), x, "squeeze_excite"),
        _case(InvertedResidual(4, residual, **norm), x, "inverted_residual",
              {"activation": "hardswish", "stride": 1, "dilation": 2, "residual": True},
              note="residual, squeeze-excite, dilation=2"),
        _case(InvertedResidual(4, smaller, **norm), x, "inverted_residual",
              {"activation": "relu", "stride": 2, "dilation": 1, "residual": False},
              note="stride=2"),
        # The pooled branch normalises one value per image: of two, the norm leaves only the sign.
        _case(ASPP(4, 3, rates, dropout=0.0, **norm), rng.standard_normal((3, 5, 4, 4)), "aspp",
              {"rates": rates}),
    ]


def _case(layer, x, oracle, constants=None, *, forward=None, backward=None, reference="torch",
          note=""):
    """Return the case of `layer`; `constants` are what the oracle must know of its options."""
    layer.astype(np.float64)
    rng = np.random.default_rng(3)
    for _, array in layer.named_parameters():
        # Not the initial values: a batch norm's weight of 1 and bias of 0 would hide mistakes.
        array[...] = rng.standard_normal(array.shape)
    parameters = {name: array.copy() for name, array in layer.named_parameters()}

    def forward_with(x, **arguments):
        if get_array_module(x) is not np:
            layer.astype(x.dtype).to(get_array_module(x))
        for name, array in layer.named_parameters():
            array[...] = arguments[name]  # the constants, options of the oracle, are left over
        return (forward or layer.forward)(x), None

    def backward_all(dout, _):
        layer.zero_grad()
        dx = (backward or layer.backward)(dout)
        return [dx, *(gradient for _, gradient in layer.named_gradients())]

    options = note or ", ".join(f"{key}={value}" for key, value in (constants or {}).items()
                                if not isinstance(value, np.ndarray))
    return GradientCase("layer", type(layer).__name__, {"x": x, **parameters}, constants or {},
                        forward_with, backward_all, oracle, options=options, reference=reference)


def _dropout(x, on_device):
    layer, p = layers.Dropout(0.3, rng=np.random.default_rng(0)), 0.3
    if on_device:
        kept = philox_uniform(7, 0, x.size).reshape(x.shape) >= p
    else:
        kept = np.random.default_rng(7).random(x.shape, dtype="float32") >= p

    def forward(x):
        # The same pixels are dropped at every call.
        if get_array_module(x) is np:
            layer.rng = np.random.default_rng(7)
        else:
            layer.device_rng = ops.DeviceRandom(7, get_array_module(x))
        return layer.forward(x)

    return _case(layer, x, "dropout", {"p": p, "kept": kept}, forward=forward,
                 reference="autograd")


def _upsample(x):
    layer, size = layers.Upsample(), (11, 7)
    return _case(layer, x, "upsample_bilinear", {"size": size},
                 forward=lambda x: layer.forward(x, size))


def _concatenate(x):
    """The same x three times: the backward pass must add up three gradients."""
    layer = layers.Concatenate()
    return _case(layer, x, "concatenate_thrice",
                 forward=lambda x: layer.forward([x, x, x]),
                 backward=lambda dout: reduce(ops.add, layer.backward(dout)))
