"""Layers: the contract of forward and backward, the tree of names, and what they hold."""

import numpy as np
import pytest
from checks import assert_agrees, assert_finite_differences_agree, frozen

from minisegnet import layers, ops
from minisegnet.blocks import SqueezeExcite, conv_norm_activation
from minisegnet.layers import BackwardError, Layer, inference_mode
from minisegnet.models import build_model


def conv(rng=None, **options):
    options = {"padding": 1, **options}
    return layers.Conv2d(3, 4, 3, rng=rng or np.random.default_rng(1), **options)


# name -> (a layer for x (2, 6, 5, 3), further arguments of forward)
LAYERS = {
    "Conv2d": (conv, ()),
    "ConvTranspose2d": (lambda: layers.ConvTranspose2d(3, 2, 2, stride=2,
                                                       rng=np.random.default_rng(1)), ()),
    "DepthwiseConv2d": (lambda: layers.DepthwiseConv2d(3, 3, rng=np.random.default_rng(1)), ()),
    "BatchNorm2d": (lambda: layers.BatchNorm2d(3), ()),
    "frozen BatchNorm2d": (lambda: layers.freeze_batch_norm(layers.BatchNorm2d(3)), ()),
    "ReLU": (layers.ReLU, ()),
    "ReLU6": (layers.ReLU6, ()),
    "Hardswish": (layers.Hardswish, ()),
    "Hardsigmoid": (layers.Hardsigmoid, ()),
    "Sigmoid": (layers.Sigmoid, ()),
    "GlobalAveragePool": (layers.GlobalAveragePool, ()),
    "MaxPool2d": (lambda: layers.MaxPool2d(2), ()),
    "Dropout": (lambda: layers.Dropout(0.5, rng=np.random.default_rng(1)), ()),
    "Dropout in evaluation": (lambda: layers.Dropout(0.5, rng=None).eval(), ()),
    "Upsample": (layers.Upsample, ((12, 11),)),
    "SqueezeExcite": (lambda: SqueezeExcite(3, 2, rng=np.random.default_rng(1)), ()),
    "block": (lambda: conv_norm_activation(3, 4, 3, rng=np.random.default_rng(1)), ()),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def make(name):
    build, arguments = LAYERS[name]
    return build().astype(np.float64), arguments


def randomize(layer, rng):
    for _, array in layer.named_parameters():
        array[...] = rng.standard_normal(array.shape)
    return layer


# Forward and backward

@every_layer
def test_a_second_backward_and_one_without_forward_are_refused(rng, name):
    layer, arguments = make(name)
    x = frozen(rng.standard_normal((2, 6, 5, 3)))
    with pytest.raises(BackwardError, match="needs a forward of its own"):
        layer.backward(rng.standard_normal(x.shape))
    out = layer.forward(x, *arguments)
    dout = frozen(rng.standard_normal(out.shape))
    assert layer.backward(dout).shape == x.shape
    with pytest.raises(BackwardError, match="once per backward"):
        layer.backward(dout)


@every_layer
def test_inference_mode_keeps_nothing(rng, name):
    layer, arguments = make(name)
    x = rng.standard_normal((2, 6, 5, 3))
    with inference_mode():
        out = layer.forward(x, *arguments)
    assert all(below._cache is None for _, below in layer.named_layers())
    with pytest.raises(BackwardError, match="outside inference_mode"):
        layer.backward(out)


def test_inference_mode_forgets_an_earlier_forward_and_ends_after_an_error(rng):
    layer, x = layers.ReLU(), rng.standard_normal((1, 2, 2, 1))
    layer.forward(x)
    with pytest.raises(ZeroDivisionError), inference_mode():
        layer.forward(x)
        raise ZeroDivisionError
    with pytest.raises(BackwardError):
        layer.backward(x)
    layer.forward(x)
    layer.backward(x)


def test_inference_mode_nests(rng):
    layer, x = layers.ReLU(), rng.standard_normal((1, 2, 2, 1))
    with inference_mode():
        with inference_mode():
            pass
        layer.forward(x)
    with pytest.raises(BackwardError):
        layer.backward(x)


def test_a_layer_without_forward_says_so():
    with pytest.raises(TypeError, match="Layer defines no forward"):
        Layer().forward(np.zeros(1))
    with pytest.raises(TypeError, match="Layer defines no backward"):
        Layer().backward(np.zeros(1))


@every_layer
def test_gradients_accumulate_in_the_same_arrays_until_zeroed(rng, name):
    layer, arguments = make(name)
    x = rng.standard_normal((2, 6, 5, 3))
    before = [(id(p), id(g)) for (_, p), (_, g) in zip(layer.named_parameters(),
                                                       layer.named_gradients(), strict=True)]

    def run(dout):
        if "Dropout" in name:
            layer.rng = np.random.default_rng(7)
        layer.forward(x, *arguments)
        layer.backward(dout)
        return [gradient.copy() for _, gradient in layer.named_gradients()]

    dout = rng.standard_normal(layer.forward(x, *arguments).shape)
    once = run(dout)
    for actual, expected in zip(run(2 * dout), once):
        assert_agrees(actual, 3 * expected)
    layer.zero_grad()
    assert all(not gradient.any() for _, gradient in layer.named_gradients())
    for actual, expected in zip(run(dout), once):
        assert_agrees(actual, expected)
    layer.eval().train()
    assert before == [(id(p), id(g)) for (_, p), (_, g) in zip(layer.named_parameters(),
                                                               layer.named_gradients())]


def test_layers_are_their_ops(rng):
    x = rng.standard_normal((2, 6, 5, 3))
    layer = randomize(conv(stride=2, dilation=2).astype(np.float64), rng)
    expected, cache = ops.conv2d_forward(x, layer.params["weight"], layer.params["bias"],
                                         stride=2, padding=1, dilation=2)
    assert_agrees(layer.forward(x), expected)
    dout = rng.standard_normal(expected.shape)
    dx, dweight, dbias = ops.conv2d_backward(dout, cache)
    assert_agrees(layer.backward(dout), dx)
    assert_agrees(layer.grads["weight"], dweight)
    assert_agrees(layer.grads["bias"], dbias)


def test_a_transposed_convolution_keeps_the_variance_that_a_relu_halved():
    rng = np.random.default_rng(1)
    layer = layers.ConvTranspose2d(64, 48, 4, stride=2, padding=1, rng=rng)
    x = np.maximum(rng.standard_normal((2, 12, 12, 64)), 0).astype(np.float32)
    out = layer.forward(x)
    assert out.shape == (2, 24, 24, 48) and not layer.params["bias"].any()
    # 64 * 4 products of mean square 1/2 * 2/256 add up to 1 in each, but for the border, where
    # some are missing; 48 channels in 4 phases share a mean: the deviation of the result is 7 %.
    assert abs((out[:, 1:-1, 1:-1] ** 2).mean() - 1) < 0.25


def test_the_first_layer_can_leave_out_its_input_gradient(rng):
    layer = conv().astype(np.float64)
    dout = rng.standard_normal(layer.forward(rng.standard_normal((1, 4, 4, 3))).shape)
    assert layer.backward(dout, input_gradient=False) is None
    assert layer.grads["weight"].any()


# Batch norm and dropout: two modes

def test_batch_norm_moves_its_running_statistics_in_place_in_training_only(rng):
    layer = layers.BatchNorm2d(3, momentum=0.25).astype(np.float64)
    mean, var = layer.buffers["running_mean"], layer.buffers["running_var"]
    x = 2 * rng.standard_normal((2, 3, 4, 3)) + 5
    layer.forward(x)
    assert layer.buffers["running_mean"] is mean and layer.buffers["running_var"] is var
    assert_agrees(mean, 0.25 * x.mean((0, 1, 2)))
    assert_agrees(var, 0.75 + 0.25 * x.var((0, 1, 2), ddof=1))
    before = mean.copy(), var.copy()
    layer.eval()
    assert_agrees(layer.forward(x), (x - mean) / np.sqrt(var + 1e-5))
    np.testing.assert_array_equal((mean, var), before)


def frozen_norm(rng):
    """A norm in training whose frozen statistics are nobody's mean and variance."""
    norm = randomize(layers.BatchNorm2d(3).astype(np.float64), rng)
    norm.buffers["running_mean"][...] = rng.standard_normal(3)
    norm.buffers["running_var"][...] = rng.uniform(0.5, 2, 3)
    return layers.freeze_batch_norm(norm)


def test_frozen_statistics_are_used_and_kept_in_training_and_weight_and_bias_train(rng):
    norm = frozen_norm(rng)
    before = {name: buffer.copy() for name, buffer in norm.buffers.items()}
    x = rng.standard_normal((1, 1, 1, 3))  # one value per channel: no batch statistics to be had
    out = norm.forward(x)
    xhat = (x - before["running_mean"]) / np.sqrt(before["running_var"] + norm.eps)
    assert norm.training
    assert_agrees(out, norm.params["weight"] * xhat + norm.params["bias"])
    for name, buffer in norm.buffers.items():
        np.testing.assert_array_equal(buffer, before[name])
    dout = rng.standard_normal(x.shape)
    norm.backward(dout)
    assert_agrees(norm.grads["weight"], (dout * xhat)[0, 0, 0])
    assert_agrees(norm.grads["bias"], dout[0, 0, 0])


def test_gradients_through_frozen_statistics_match_finite_differences(rng):
    norm = frozen_norm(rng)
    inputs = [rng.standard_normal((2, 3, 2, 3)), norm.params["weight"].copy(),
              norm.params["bias"].copy()]

    def forward(x, weight, bias):
        norm.params["weight"][...], norm.params["bias"][...] = weight, bias
        return norm.forward(x)

    dout = rng.standard_normal(forward(*inputs).shape)
    dx = norm.backward(dout)
    gradients = [dx, norm.grads["weight"], norm.grads["bias"]]
    assert_finite_differences_agree(forward, inputs, gradients, dout)


def test_freezing_reaches_every_norm_below_and_is_undone(rng):
    parent = tree()
    parent.rest.norm = layers.BatchNorm2d(4)
    norms = [parent.norm, parent.rest.norm]
    assert layers.freeze_batch_norm(parent) is parent
    assert all(norm.frozen_statistics and not norm.uses_batch_statistics for norm in norms)
    assert not any(norm.uses_batch_statistics for norm in parent.train().rest.children.values()
                   if isinstance(norm, layers.BatchNorm2d))
    layers.freeze_batch_norm(parent.rest, False)
    assert [norm.uses_batch_statistics for norm in norms] == [False, True]
    assert not parent.rest.eval().norm.uses_batch_statistics


def test_dropout_is_off_in_evaluation_and_at_probability_zero(rng):
    x = rng.standard_normal((2, 3, 4, 5))
    for layer in (layers.Dropout(0.9, rng=rng).eval(), layers.Dropout(0.0, rng=rng)):
        np.testing.assert_array_equal(layer.forward(x), x)
        np.testing.assert_array_equal(layer.backward(2 * x), 2 * x)
    assert (layers.Dropout(0.5, rng=rng).forward(x) == 0).any()


def test_concatenate_splits_what_it_joined(rng):
    layer, a, b = layers.Concatenate(), np.ones((1, 2, 2, 2)), np.zeros((1, 2, 2, 3))
    dout = rng.standard_normal(layer.forward([a, b]).shape)
    da, db = layer.backward(dout)
    np.testing.assert_array_equal(da, dout[..., :2])
    np.testing.assert_array_equal(db, dout[..., 2:])
    with pytest.raises(BackwardError):
        layer.backward(dout)


# A frozen backbone

def backbone_and_head(name="mini"):
    """Return a float64 model without dropout."""
    model = build_model(name, 4, dtype="float64")
    model.aspp.dropout.p = 0
    return model


@pytest.mark.parametrize("name", ["mini", "deeplab_light", "deeplab_baseline"])
def test_a_frozen_backbone_gets_no_gradient_and_the_head_the_same_as_ever(rng, name):
    model = backbone_and_head(name)
    images, dlogits = rng.standard_normal((2, 25, 35, 3)), rng.standard_normal((2, 25, 35, 4))
    model.forward(images)
    model.eval()
    model.forward(images)
    model.backward(dlogits)
    expected = {name: gradient.copy() for name, gradient in model.named_gradients()}
    model.zero_grad()
    model.backbone.frozen = True
    model.forward(images)
    model.backward(dlogits)
    for name, gradient in model.named_gradients():
        if name.startswith("backbone."):
            assert expected[name].any() and not gradient.any(), name
        else:
            np.testing.assert_array_equal(gradient, expected[name], err_msg=name)


def test_a_frozen_backbone_keeps_nothing_and_thaws(rng):
    model = backbone_and_head()
    images = rng.standard_normal((2, 25, 35, 3))
    model.forward(images)  # what this forward kept goes, too
    model.backbone.frozen = True
    dlogits = rng.standard_normal(model.forward(images).shape)
    assert all(layer._cache is None for _, layer in model.backbone.named_layers())
    model.backward(dlogits)
    model.backbone.frozen = False
    model.forward(images)
    model.backward(dlogits)
    assert all(gradient.any() for _, gradient in model.backbone.named_gradients())


def test_a_frozen_backbone_in_training_keeps_its_statistics_only_if_they_are_frozen(rng):
    model = backbone_and_head()
    images = rng.standard_normal((2, 25, 35, 3))
    buffers = dict(model.backbone.named_buffers())

    def changed_by_a_forward():
        before = {name: array.copy() for name, array in buffers.items()}
        model.forward(images)
        return [name for name, array in buffers.items() if (array != before[name]).any()]

    model.backbone.frozen = True
    assert changed_by_a_forward() == list(buffers)
    layers.freeze_batch_norm(model.backbone)
    assert changed_by_a_forward() == []


# The tree

def tree():
    parent = Layer()
    parent.first = conv()
    parent.norm = layers.BatchNorm2d(4)
    parent.rest = Layer()
    parent.rest.last = conv(bias=False)
    return parent


def test_names_are_dotted_and_in_order():
    parent = tree()
    assert [name for name, _ in parent.named_layers()] == ["", "first", "norm", "rest",
                                                           "rest.last"]
    expected = ["first.weight", "first.bias", "norm.weight", "norm.bias", "rest.last.weight"]
    assert [name for name, _ in parent.named_parameters()] == expected
    assert [name for name, _ in parent.named_gradients()] == expected
    assert [name for name, _ in parent.named_buffers()] == ["norm.running_mean",
                                                            "norm.running_var"]
    assert [name for name, _ in parent.first.named_parameters()] == ["weight", "bias"]
    assert parent.num_parameters == 112 + 8 + 108


def test_train_and_eval_reach_every_layer_and_return_the_model():
    parent = tree()
    assert parent.eval() is parent
    assert not any(layer.training for _, layer in parent.named_layers())
    assert parent.train() is parent
    assert all(layer.training for _, layer in parent.named_layers())


def test_astype_converts_parameters_gradients_and_buffers():
    parent = tree()
    before = [array.copy() for _, array in parent.named_parameters()]
    assert parent.astype(np.float64) is parent
    for kind in (parent.named_parameters, parent.named_gradients, parent.named_buffers):
        assert {array.dtype for _, array in kind()} == {np.dtype(np.float64)}
    for (_, array), old in zip(parent.named_parameters(), before):
        np.testing.assert_array_equal(array, old)


# Initialisation

def test_he_initialisation_has_its_variance_and_comes_from_the_generator_alone():
    draw = [layers.Conv2d(16, 64, 5, rng=np.random.default_rng(seed)).params["weight"]
            for seed in (3, 3, 4)]
    np.testing.assert_array_equal(draw[0], draw[1])
    assert (draw[0] != draw[2]).any()
    # 25,600 draws: the standard deviation of their variance is 0.9 %
    assert abs(draw[0].var() / (2 / (25 * 64)) - 1) < 0.045
    assert draw[0].dtype == np.float32 and not conv().params["bias"].any()
