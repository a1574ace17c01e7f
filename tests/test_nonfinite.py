"""The first tensor that is not finite: planted somewhere, found by its name and direction."""

import json

import numpy as np
import pytest

from minisegnet import train
from minisegnet.datasets import Batch
from minisegnet.errors import UserError, run_command
from minisegnet.layers import Concatenate, Conv2d, MaxPool2d, freeze_batch_norm
from minisegnet.losses.criterion import LOSSES, Criterion
from minisegnet.models import build_model
from minisegnet.optim import SGD, ConstantLR
from minisegnet.training.nonfinite import first_non_finite
from minisegnet.training.trainer import Trainer

CE = Criterion("ce")
HUGE = 3e38  # finite in float32; twice that is not
# Of each model: a convolution in the middle of it, and a batch norm.
CONV = {"mini": "stage1.pointwise.conv", "unet_small": "up2.conv.double_conv.0"}
NORM = {"mini": "backbone.features.2.depthwise.norm",
        "unet_small": "down2.maxpool_conv.1.double_conv.4"}


@pytest.fixture
def batch(rng):
    return Batch(rng.standard_normal((2, 32, 32, 3), dtype=np.float32),
                 rng.integers(0, 3, (2, 32, 32), dtype=np.uint8), ("a", "b"))


@pytest.fixture(params=["mini", "unet_small"])
def model(request):
    return build_model(request.param, 3)


def found(model, *batches, criterion=CE, optimizer=None):
    return first_non_finite(model, optimizer or SGD(model, 0.1), batches, criterion)


def layer_of(model, name):
    return dict(model.named_layers())[name]


def returns(monkeypatch, layer, method, change):
    """Let `layer` return `change(result)`; planted in its class, below what the search adds."""
    original = getattr(type(layer), method)

    def planted(self, *args, **options):
        out = original(self, *args, **options)
        return change(out) if self is layer else out

    monkeypatch.setattr(type(layer), method, planted)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_finite_step_has_none(model, batch, loss):
    prior = np.ones(3) / 3 if loss == "logit_adjusted" else None
    optimizer = SGD(model, 0.1)
    optimizer.flat.grad[...] = np.nan  # what the step left
    assert found(model, batch, batch, criterion=Criterion(loss, prior=prior),
                 optimizer=optimizer) is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_parameter_is_found_before_anything_computed_from_it(model, batch, value):
    name = CONV[model.name]
    layer_of(model, name).params["weight"].flat[-1] = value
    assert found(model, batch) == (f"{name}.weight", "optimizer")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_picture_is_found_in_whichever_batch_it_is(model, batch, value):
    bad = batch._replace(images=batch.images.copy())
    bad.images[1, 5, 7, 2] = value
    assert found(model, bad) == found(model, batch, bad) == ("images", "forward")


@pytest.mark.parametrize("buffer", ["running_mean", "running_var"])
def test_running_statistics_are_found_where_they_are_used(model, batch, buffer):
    freeze_batch_norm(model)
    layer_of(model, NORM[model.name]).buffers[buffer][3] = np.nan
    assert found(model, batch) == (f"{NORM[model.name]}.{buffer}", "forward")


def test_a_convolution_that_overflows_is_found_and_not_what_follows(model, batch):
    name = CONV[model.name]
    layer_of(model, name).params["weight"][...] = HUGE
    assert found(model, batch) == (name, "forward")


def test_of_two_the_first_in_the_order_of_the_computation_is_found(model, batch):
    first = {"mini": "backbone.features.0.conv", "unet_small": "inc.double_conv.3"}[model.name]
    for name in (CONV[model.name], first):
        layer_of(model, name).params["weight"][...] = HUGE
    assert found(model, batch) == (first, "forward")


def test_a_residual_sum_is_found_at_the_layer_that_gets_it(batch):
    model = build_model("mini", 3)
    blocks = model.backbone.features.children
    assert blocks["3"].is_residual
    for block in (blocks["2"], blocks["3"]):  # the sum of what both give
        block.project.norm.params["bias"][...] = HUGE
    blocks["3"].expand.conv.params["weight"][...] = 0
    assert found(model, batch) == ("the input of backbone.features.4.expand.conv", "forward")


@pytest.mark.parametrize("number", [float, np.float32])
def test_the_loss_is_found_if_the_logits_are_finite(model, batch, number):
    class Broken(Criterion):
        def forward_upsampled(self, coarse, target, *, whole=None):
            return number(np.nan), super().forward_upsampled(coarse, target, whole=whole)[1]

    assert found(model, batch, criterion=Broken("ce")) == ("the loss", "forward")


def test_the_gradient_of_the_loss_is_found(model, batch):
    class Broken(Criterion):
        def backward_upsampled(self, dloss, cache):
            return super().backward_upsampled(dloss, cache) * np.float32(np.inf)

    assert found(model, batch, criterion=Broken("ce")) == ("the gradient of the loss", "backward")


def test_a_backward_that_returns_inf_is_found(model, batch, monkeypatch):
    name = CONV[model.name]
    returns(monkeypatch, layer_of(model, name), "backward", lambda dx: dx + np.float32(np.inf))
    assert found(model, batch) == (name, "backward")


def test_the_gradient_of_a_parameter_is_found_if_what_is_handed_on_is_finite(
        model, batch, monkeypatch):
    name = CONV[model.name]
    layer = layer_of(model, name)

    def spoil(dx):
        layer.grads["weight"].flat[0] = np.nan
        return dx

    returns(monkeypatch, layer, "backward", spoil)
    assert found(model, batch) == (f"{name}.weight", "backward")


def test_a_sum_of_gradients_is_found_at_the_layer_that_gets_it(batch, monkeypatch):
    model = build_model("unet_small", 3)

    def huge(dx):
        return np.full_like(dx, HUGE)

    assert isinstance(model.up1.concatenate, Concatenate)
    returns(monkeypatch, model.up1.concatenate, "backward", lambda dxs: [huge(dxs[0]), dxs[1]])
    pool = model.down4.maxpool_conv.children["0"]
    assert isinstance(pool, MaxPool2d)
    returns(monkeypatch, pool, "backward", huge)
    assert found(model, batch) == (
        "the gradient into down3.maxpool_conv.1.double_conv.5", "backward")


def test_a_gradient_whose_square_overflows_is_found(model, batch, monkeypatch):
    name = CONV[model.name]
    layer = layer_of(model, name)

    def grow(dx):
        layer.grads["weight"][...] = 1e25
        return dx

    returns(monkeypatch, layer, "backward", grow)
    assert found(model, batch) == (f"{name}.weight", "backward")


def test_gradients_add_up_over_the_batches_of_a_step(model, batch, monkeypatch):
    name = CONV[model.name]
    layer = layer_of(model, name)

    def add(dx):
        layer.grads["weight"][...] += np.float32(HUGE)
        return dx

    returns(monkeypatch, layer, "backward", add)
    assert found(model, batch, batch) == (f"{name}.weight", "backward")


def test_a_frozen_backbone_is_searched_forwards_and_has_no_backward(batch, monkeypatch):
    model = build_model("mini", 3)
    model.backbone.frozen = True
    inner = layer_of(model, "backbone.features.4.project.conv")
    returns(monkeypatch, inner, "backward", lambda dx: dx * np.float32(np.nan))
    assert found(model, batch) is None
    inner.params["weight"][...] = HUGE
    assert found(model, batch) == ("backbone.features.4.project.conv", "forward")
    inner.params["weight"][0] = np.inf
    assert found(model, batch) == ("backbone.features.4.project.conv.weight", "optimizer")


@pytest.mark.parametrize("fault", [None, "not finite", "an error"])
def test_the_guards_are_gone_afterwards(model, batch, monkeypatch, fault):
    before = {name: set(vars(layer)) for name, layer in model.named_layers()}
    layer = layer_of(model, CONV[model.name])
    if fault == "not finite":
        layer.params["weight"][...] = HUGE
    elif fault == "an error":
        monkeypatch.setattr(Conv2d, "backward", None)
    try:
        found(model, batch)
    except TypeError:
        assert fault == "an error"
    assert {name: set(vars(layer)) for name, layer in model.named_layers()} == before


def test_a_method_of_one_layer_alone_is_searched_and_stays(model, batch):
    layer = layer_of(model, CONV[model.name])
    own = layer.forward

    def infinite(x):
        return own(x) + np.float32(np.inf)

    layer.forward = infinite
    assert found(model, batch) == (CONV[model.name], "forward")
    assert vars(layer)["forward"] is infinite and "backward" not in vars(layer)


# ---------------------------------------------------------------- as a user meets it


@pytest.mark.parametrize("bad", [0, 1])
def test_a_step_of_several_batches_names_what_went_wrong_in_any_of_them(
        batch, monkeypatch, tmp_path, bad):
    model = build_model("mini", 3)
    batches = [batch, batch._replace(images=-batch.images)]
    layer, passes = layer_of(model, CONV["mini"]), iter(range(4))

    def spoil(dx):  # also when the step is gone through once more
        return dx + np.float32(np.inf) if next(passes) % 2 == bad else dx

    returns(monkeypatch, layer, "backward", spoil)
    trainer = Trainer(model=model, optimizer=SGD(model, 0.1), schedule=ConstantLR(0.1), phase=None,
                      folder=tmp_path, class_names=("a", "b", "c"), epochs=1)
    with pytest.raises(UserError, match=rf"the gradient is (nan|inf) at step 0, first in "
                                        rf"{CONV['mini']} \(backward\); lower --lr"):
        trainer.train_step(batches, CE)


@pytest.mark.parametrize("debug", [False, True])
def test_the_command_names_it_in_one_line(tiny_folder, tmp_path, capsys, monkeypatch, debug):
    def build_broken(*args, **options):
        model = build_model(*args, **options)
        model.low_project.conv.params["weight"][...] = HUGE
        return model

    monkeypatch.setattr(train, "build_model", build_broken)
    flags = ["--data", str(tiny_folder), "--batch-size", "4", "--num-workers", "0",
             "--output-dir", str(tmp_path / "run"), *(["--debug"] if debug else [])]
    assert run_command(train.main, flags) == 2
    message, = capsys.readouterr().err.splitlines()
    assert "the loss is nan at step 0, first in low_project.conv (forward); lower --lr" in message
    if debug:
        lines = (tmp_path / "run" / "debug.jsonl").read_text().splitlines()
        record, = (r for r in map(json.loads, lines) if r["kind"] == "failure")
        assert (record["step"], record["what"]) == (0, "loss")
        assert (record["tensor"], record["direction"]) == ("low_project.conv", "forward")
        assert record["message"] in message


def test_the_command_names_a_parameter_that_an_update_spoiled(tiny_folder, tmp_path, capsys,
                                                              monkeypatch):
    step = SGD.step

    def spoiling(self):
        step(self)
        self.flat.data[self.flat.slices["classifier.bias"]] = np.inf

    monkeypatch.setattr(SGD, "step", spoiling)
    assert run_command(train.main, [
        "--data", str(tiny_folder), "--batch-size", "4", "--num-workers", "0", "--optimizer",
        "sgd", "--output-dir", str(tmp_path / "run")]) == 2
    message, = capsys.readouterr().err.splitlines()
    assert "at step 1, first in classifier.bias (optimizer); " in message
