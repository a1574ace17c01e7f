"""Blocks: the same numbers as the ops they are made of, and as torch differentiates them."""

import numpy as np
import pytest
from checks import assert_agrees, assert_finite_differences_agree, frozen

from minisegnet import blocks, layers

X_SHAPE = (2, 7, 6, 4)


@pytest.fixture
def oracle(torch):
    from minisegnet.verify import torch_oracle

    return torch_oracle


def make(block, rng):
    """Return the block in float64 with random parameters, also where they start at 0 and 1."""
    block.astype(np.float64)
    for _, array in block.named_parameters():
        array[...] = rng.standard_normal(array.shape)
    return block


def build(name, rng):
    return {
        "dense": lambda: blocks.conv_norm_activation(4, 3, 3, rng=rng),
        "strided, no activation": lambda: blocks.conv_norm_activation(4, 3, 3, None, stride=2,
                                                                      dilation=2, rng=rng),
        "depthwise": lambda: blocks.depthwise_norm_activation(4, 5, layers.Hardswish, stride=2,
                                                              rng=rng),
        "separable": lambda: blocks.SeparableConv2d(4, 5, 3, dilation=2, rng=rng),
        "squeeze-excite": lambda: blocks.SqueezeExcite(4, 2, rng=rng),
    }[name]()


NAMES = ["dense", "strided, no activation", "depthwise", "separable", "squeeze-excite"]


@pytest.mark.parametrize("name", NAMES)
def test_every_gradient_matches_finite_differences(rng, name):
    block, x = make(build(name, rng), rng), rng.standard_normal((2, 4, 3, 4))
    dout = rng.standard_normal(block.forward(x).shape)
    dx = block.backward(dout)
    parameters = [array for _, array in block.named_parameters()]
    gradients = [gradient.copy() for _, gradient in block.named_gradients()]

    def forward(x, *values):
        for array, value in zip(parameters, values):
            array[...] = value
        return block.forward(x)

    inputs = [x, *(array.copy() for array in parameters)]
    assert_finite_differences_agree(forward, inputs, [dx, *gradients], dout, 1e-7)


@pytest.mark.parametrize("name, oracle_name, constants", [
    ("dense", "conv_norm_activation", {"activation": "relu"}),
    ("strided, no activation", "conv_norm_activation",
     {"activation": None, "stride": 2, "dilation": 2}),
    ("depthwise", "conv_norm_activation", {"activation": "hardswish", "stride": 2}),
    ("separable", "separable_conv2d", {"dilation": 2}),
    ("squeeze-excite", "squeeze_excite", {}),
])
def test_matches_torch(oracle, rng, name, oracle_name, constants):
    block = make(build(name, rng), rng)
    x = frozen(rng.standard_normal(X_SHAPE))
    inputs = {"x": x, **dict(block.named_parameters())}
    out = block.forward(x)
    dout = rng.standard_normal(out.shape)
    dx = block.backward(dout)
    (expected,), gradients = oracle.gradients(getattr(oracle, oracle_name), inputs, constants,
                                              dout)
    assert_agrees(out, expected, 1e-11)
    assert_agrees(dx, gradients["x"], 1e-10)
    for parameter, gradient in block.named_gradients():
        assert_agrees(gradient, gradients[parameter], 1e-10)


@pytest.mark.parametrize("kernel, dilation", [(1, 1), (3, 1), (5, 1), (3, 6)])
def test_stride_one_keeps_the_size(rng, kernel, dilation):
    for make_block in (lambda **o: blocks.conv_norm_activation(4, 4, kernel, **o),
                       lambda **o: blocks.depthwise_norm_activation(4, kernel, **o)):
        block = make_block(dilation=dilation, rng=rng)
        assert block.forward(np.ones(X_SHAPE, np.float32)).shape == X_SHAPE


def test_squeeze_excite_only_scales_channels(rng):
    block, x = make(build("squeeze-excite", rng), rng), rng.uniform(1, 2, X_SHAPE)
    gate = block.forward(x) / x
    np.testing.assert_allclose(gate, np.broadcast_to(gate[:, :1, :1], x.shape), rtol=1e-12)
    assert (gate >= 0).all() and (gate <= 1).all()


def test_a_separable_convolution_of_160_to_128_has_21920_weights(rng):
    block = blocks.SeparableConv2d(160, 128, 3, rng=rng)
    weights = [array.size for name, array in block.named_parameters() if "conv" in name]
    assert weights == [9 * 160, 160 * 128] and sum(weights) == 21_920


def test_options_reach_the_norm(rng):
    block = blocks.conv_norm_activation(2, 3, 1, rng=rng, momentum=0.03, eps=1e-3)
    assert (block.norm.momentum, block.norm.eps) == (0.03, 1e-3)
    separable = blocks.SeparableConv2d(2, 3, 3, rng=rng, momentum=0.03)
    assert separable.depthwise.norm.momentum == separable.pointwise.norm.momentum == 0.03
