"""A learning rate per part of the model: torch's parameter groups, and what freezing means."""

import math

import numpy as np
import pytest
from test_optim import OPTIMIZERS, set_gradients, tiny_model, values

from minisegnet.layers import Conv2d, Layer
from minisegnet.optim import SGD, clip_grad_norm, flat, global_norm


def two_part_model(rng, dtype=np.float64):
    """Return, in the order of the buffer, a temperature (1 number), body (168) and head (84)."""
    model = Layer()
    model.body = Layer()
    model.body.first, model.body.second = tiny_model(rng), tiny_model(rng)
    model.add_parameter("temperature", np.ones(1))
    model.head = tiny_model(rng)
    model.astype(dtype)
    for array in values(model):
        array[...] = rng.standard_normal(array.shape)
    return model


def torch_copies(torch, model):
    return {name: torch.nn.Parameter(torch.tensor(array))
            for name, array in model.named_parameters()}


def trained(optimizer):
    """Return a bool per parameter: True where a step would reach it."""
    reached = np.zeros(optimizer.flat.data.size, bool)
    for block, _ in optimizer.flat.trained_blocks():
        assert not reached[block].any()
        reached[block] = True
    return reached


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_scaled_and_frozen_parts_equal_torchs_parameter_groups(torch, rng, monkeypatch, name):
    monkeypatch.setattr(flat, "BLOCK_SIZE", 10)
    cls, options = OPTIMIZERS[name]
    model = two_part_model(rng)
    copies = torch_copies(torch, model)
    ours = cls(model, **options)
    ours.set_lr_scale("body", 0.1)
    ours.set_lr_scale("body.second.conv", 0)
    ours.set_lr_scale("temperature", 3)
    groups = {0.1: [], 0: [], 3: [], 1: []}
    for key, p in copies.items():
        scale = (0 if key.startswith("body.second.conv.") else 0.1 if key.startswith("body.")
                 else 3 if key == "temperature" else 1)
        p.requires_grad = scale > 0
        groups[scale].append(p)
    assert [len(group) for group in groups.values()] == [6, 2, 1, 4]
    theirs = getattr(torch.optim, cls.__name__)([{"params": ps} for ps in groups.values()],
                                                **options)
    for step in range(10):
        set_gradients(model, rng, scale=10.0 ** rng.integers(-4, 3))
        for p, (_, grad) in zip(copies.values(), model.named_gradients()):
            p.grad = torch.tensor(grad) if p.requires_grad else None
        ours.lr = options.get("lr", 1e-3) * (1 + step % 3)
        for group, scale in zip(theirs.param_groups, groups):
            group["lr"] = ours.lr * scale
        ours.step()
        theirs.step()
        for p, array in zip(copies.values(), values(model)):
            np.testing.assert_allclose(array, p.detach().numpy(), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_frozen_part_keeps_value_and_state_bit_for_bit(rng, name):
    cls, options = OPTIMIZERS[name]
    model = two_part_model(rng)
    optimizer = cls(model, **options)
    set_gradients(model, rng)
    optimizer.step()
    optimizer.set_lr_scale("body", 0)
    arrays = {"data": optimizer.flat.data, **optimizer.state}
    before = {key: array.copy() for key, array in arrays.items()}
    for _ in range(3):
        set_gradients(model, rng)
        optimizer.step()
    for key, array in arrays.items():
        np.testing.assert_array_equal(array[1:169], before[key][1:169])
        assert (array[169:] != before[key][169:]).all() and array[0] != before[key][0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_scales_of_one_and_other_blocks_change_no_bit(rng, monkeypatch, name):
    cls, options = OPTIMIZERS[name]
    whole, cut = (cls(two_part_model(np.random.default_rng(1), np.float32), **options)
                  for _ in range(2))
    cut.set_lr_scale("body.second", 0.5)
    cut.set_lr_scale("body", 1)
    for _ in range(5):
        whole.flat.grad[:] = cut.flat.grad[:] = rng.standard_normal(whole.flat.grad.size)
        whole.step()
        with monkeypatch.context() as patch:
            patch.setattr(flat, "BLOCK_SIZE", 7)
            cut.step()
    np.testing.assert_array_equal(whole.flat.data, cut.flat.data)


def test_neighbours_of_equal_scale_share_blocks(rng, monkeypatch):
    monkeypatch.setattr(flat, "BLOCK_SIZE", 100)
    optimizer = SGD(two_part_model(rng))
    assert optimizer.flat.names[0] == "temperature"
    whole = [(slice(0, 100), 1.0), (slice(100, 200), 1.0), (slice(200, 253), 1.0)]
    assert optimizer.flat.trained_blocks() == whole
    optimizer.set_lr_scale("body", 0.25)
    assert optimizer.flat.trained_blocks() == [
        (slice(0, 1), 1.0), (slice(1, 101), 0.25), (slice(101, 169), 0.25), (slice(169, 253), 1.0)]
    optimizer.set_lr_scale("temperature", 0)
    optimizer.set_lr_scale("head", 0)
    assert optimizer.flat.trained_blocks() == [(slice(1, 101), 0.25), (slice(101, 169), 0.25)]
    for name in ("head", "temperature", "body"):
        optimizer.set_lr_scale(name, 1)
    assert optimizer.flat.trained_blocks() == whole


def test_a_prefix_is_whole_names_and_the_last_call_counts(rng):
    model = Layer()
    model.conv, model.conv2 = Conv2d(1, 2, 1, rng=rng), Conv2d(1, 2, 1, rng=rng)
    optimizer = SGD(model)
    optimizer.set_lr_scale("conv", 0)
    optimizer.set_lr_scale("conv2", 0)
    optimizer.set_lr_scale("conv2.bias", 2)
    assert optimizer.flat.lr_scales == {
        "conv.weight": 0, "conv.bias": 0, "conv2.weight": 0, "conv2.bias": 2}
    optimizer.set_lr_scale("conv2", 1)
    np.testing.assert_array_equal(trained(optimizer), [False] * 4 + [True] * 4)


@pytest.mark.parametrize("prefix", ["bodies", "bod", "body.", "", "head.conv.weigh"])
def test_an_unknown_prefix_is_refused_with_the_names_at_the_top(rng, prefix):
    optimizer = SGD(two_part_model(rng))
    with pytest.raises(ValueError, match="temperature, body, head") as caught:
        optimizer.set_lr_scale(prefix, 0.5)
    assert repr(prefix) in str(caught.value)
    assert trained(optimizer).all()


@pytest.mark.parametrize("scale", [-0.1, math.nan, math.inf])
def test_a_senseless_scale_is_refused(rng, scale):
    with pytest.raises(ValueError, match="scale is a finite number >= 0"):
        SGD(two_part_model(rng)).set_lr_scale("body", scale)


def test_clipping_does_not_see_what_is_frozen(torch, rng, monkeypatch):
    monkeypatch.setattr(flat, "BLOCK_SIZE", 10)
    model = two_part_model(rng)
    copies = torch_copies(torch, model)
    optimizer = SGD(model)
    optimizer.set_lr_scale("body", 0)
    optimizer.set_lr_scale("head", 0.1)  # a small rate is still a rate
    set_gradients(model, rng, scale=100.0)
    for (key, p), (_, grad) in zip(copies.items(), model.named_gradients()):
        p.grad = None if key.startswith("body.") else torch.tensor(grad)
    body = np.concatenate([g.ravel().copy() for key, g in model.named_gradients()
                           if key.startswith("body.")])
    expected = torch.nn.utils.clip_grad_norm_(copies.values(), 0.5).item()
    assert clip_grad_norm(optimizer, 0.5) == pytest.approx(expected, rel=1e-12)
    for p, (_, grad) in zip(copies.values(), model.named_gradients()):
        if p.grad is not None:
            np.testing.assert_allclose(grad, p.grad.numpy(), rtol=1e-12)
    np.testing.assert_array_equal(optimizer.flat.grad[1:169], body)
    assert global_norm(optimizer.flat) == pytest.approx(0.5, rel=1e-5)


def test_scales_are_not_part_of_the_state(rng):
    first, second = (SGD(two_part_model(rng)) for _ in range(2))
    first.set_lr_scale("body", 0)
    second.load_state_dict(first.state_dict())
    assert trained(second).all() and not trained(first).all()
    first.reset_state()
    assert not trained(first).all()
