"""Optimizers, clipping and averages on a device: the numbers of NumPy and torch, no waiting.

On the emulated device: its arrays have no arithmetic, so whatever happens to them is a kernel's.
"""

import math

import numpy as np
import pytest
from checks import assert_agrees, assert_float32_accurate
from test_optim import OPTIMIZERS

from minisegnet.backend import asnumpy
from minisegnet.cuda import emulated_device, emulator
from minisegnet.cuda.launch import record_launches
from minisegnet.layers import BatchNorm2d, Conv2d, Layer
from minisegnet.optim import (
    SGD,
    AdamW,
    ExponentialMovingAverage,
    FlatParameters,
    RMSprop,
    clip_grad_norm,
    flat,
    global_norm,
)

pytestmark = pytest.mark.usefixtures("compiler")
SIZE = 2727  # numbers in `model_of`: three blocks of 1024, the last one short, and a ragged end
KERNEL_OF = {AdamW: "adamw_update_kernel", SGD: "sgd_update_kernel",
             RMSprop: "rmsprop_update_kernel"}


def model_of(dtype=np.float64, seed=1):
    """Return a model of two parts, with buffers; its numbers are the same for each dtype."""
    rng = np.random.default_rng(seed)
    model = Layer()
    model.body, model.head = Layer(), Layer()
    model.body.conv, model.body.norm = Conv2d(5, 33, 3, rng=rng), BatchNorm2d(33)
    model.head.conv, model.head.norm = Conv2d(33, 33, 1, rng=rng), BatchNorm2d(10)
    model.add_parameter("temperature", np.ones(1))
    model.astype(np.float64)
    for _, array in [*model.named_parameters(), *model.named_buffers()]:
        array[...] = rng.standard_normal(array.shape).astype(np.float32)
    return model.astype(dtype)


def on_device(model):
    """Move every array of `model` to the emulated device; return it."""
    for _, layer in model.named_layers():
        for arrays in (layer.params, layer.grads, layer.buffers):
            arrays.update({key: emulated_device.asarray(array) for key, array in arrays.items()})
    return model


def put(array, numbers):
    """Write NumPy `numbers` into an array, wherever it is."""
    array.set(np.asarray(numbers, array.dtype)) if hasattr(array, "set") \
        else np.copyto(array, numbers)


def draw(rng, scale=1.0):
    return (scale * rng.standard_normal(SIZE)).astype(np.float32).astype(np.float64)


def pair(name, dtype=np.float64, **more):
    """Return the optimizer `name` of a model on the device, and of its twin in NumPy."""
    cls, options = OPTIMIZERS[name]
    return (cls(on_device(model_of(dtype)), **options, **more),
            cls(model_of(dtype), **options, **more))


def assert_same_state(ours, theirs):
    """Both optimizers hold the same parameters, state and number of steps, to 1e-12."""
    assert_agrees(asnumpy(ours.flat.data), asnumpy(theirs.flat.data))
    mine, other = ours.state_dict(), theirs.state_dict()
    assert mine.keys() == other.keys()
    for key in mine:
        assert_agrees(mine[key], other[key])


# The flat buffer


def test_the_buffer_on_a_device_is_that_of_numpy(rng):
    models = on_device(model_of()), model_of()
    for model in models:
        put(model.head.conv.grads["bias"], np.arange(33))
    device, host = map(FlatParameters, models)
    assert device.data.size == SIZE
    for name in ("data", "grad", "is_norm_or_bias"):
        np.testing.assert_array_equal(asnumpy(getattr(device, name)), getattr(host, name))
    assert (device.names, device.slices) == (host.names, host.slices)
    put(models[0].body.norm.params["weight"], np.full(33, 7.0))
    assert (asnumpy(device.data)[device.slices["body.norm.weight"]] == 7).all()


def test_more_groups_than_a_byte_counts_are_refused_and_change_nothing():
    layer = Layer()
    for i in range(257):
        layer.add_parameter(f"p{i}", np.zeros(1))
    optimizer = SGD(on_device(layer))
    for i in range(255):
        optimizer.set_lr_scale(f"p{i}", i)
    before = asnumpy(optimizer.flat.group)
    assert len(set(before)) == 255  # p1 has the scale 1 of the last two
    optimizer.set_lr_scale("p255", 0.5)
    with pytest.raises(ValueError, match="257 groups.*takes 256"):
        optimizer.set_lr_scale("p1", 0.25)
    assert optimizer.flat.lr_scales["p1"] == 1
    put(optimizer.flat.grad, np.ones(257))
    optimizer.lr = 1.0
    optimizer.step()
    expected = [-float(i) for i in range(255)] + [-0.5, -1.0]
    np.testing.assert_array_equal(asnumpy(optimizer.flat.data), expected)


# Steps


# With two blocks a thread of AdamW has more than four numbers.
@pytest.mark.parametrize("name, max_blocks", [*((name, 1024) for name in OPTIMIZERS),
                                              ("AdamW, all options", 2)])
def test_ten_steps_equal_numpy(rng, monkeypatch, name, max_blocks):
    monkeypatch.setattr(flat, "MAX_BLOCKS", max_blocks)
    device, host = pair(name)
    for step in range(10):
        gradient = draw(rng, 10.0 ** rng.integers(-4, 3))
        for optimizer in (device, host):
            put(optimizer.flat.grad, gradient)
            optimizer.lr = OPTIMIZERS[name][1].get("lr", 1e-3) * (1 + step % 3)
            optimizer.step()
    assert_same_state(device, host)
    assert device.num_steps == 10


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_float32_is_as_near_to_float64_as_torchs(torch, rng, name):
    cls, options = OPTIMIZERS[name]
    device = cls(on_device(model_of(np.float32)), **options)
    exact, single = (torch.nn.Parameter(torch.tensor(asnumpy(device.flat.data)).to(dtype))
                     for dtype in (torch.float64, torch.float32))
    theirs = [getattr(torch.optim, cls.__name__)([p], **options) for p in (exact, single)]
    for _ in range(10):
        gradient = draw(rng)
        put(device.flat.grad, gradient)
        exact.grad, single.grad = torch.tensor(gradient), torch.tensor(gradient).float()
        for optimizer in (device, *theirs):
            optimizer.step()
    assert_float32_accurate(asnumpy(device.flat.data), exact.detach().numpy(),
                            single.detach().numpy())


@pytest.mark.parametrize("name", ["AdamW, all options", "SGD, nesterov", "RMSprop, all options"])
def test_scaled_and_frozen_parts_equal_numpy_and_change_with_the_next_scale(rng, name):
    device, host = pair(name)
    before = asnumpy(device.flat.data)
    phases = [{"body": 0}, {"body": 0.1, "body.norm": 0, "head.conv": 3}, {"body": 1, "head": 0}]
    for scales in phases:
        for prefix, scale in scales.items():
            device.set_lr_scale(prefix, scale)
            host.set_lr_scale(prefix, scale)
        for _ in range(3):
            gradient = draw(rng)
            for optimizer in (device, host):
                put(optimizer.flat.grad, gradient)
                optimizer.step()
        assert_same_state(device, host)
        body = device.flat.slices["body.conv.weight"]
        if scales is phases[0]:
            np.testing.assert_array_equal(asnumpy(device.flat.data)[body], before[body])


@pytest.mark.parametrize("name", ["AdamW", "SGD, momentum", "RMSprop, all options"])
def test_a_frozen_part_keeps_every_bit_whatever_its_gradient(rng, name):
    device, _ = pair(name, np.float32)
    put(device.flat.grad, draw(rng))
    device.step()
    arrays = {"data": device.flat.data, **device.state}
    before = {key: asnumpy(array) for key, array in arrays.items()}
    device.set_lr_scale("body", 0)
    frozen = slice(device.flat.slices["body.conv.weight"].start,
                   device.flat.slices["head.conv.weight"].start)
    gradient = draw(rng)
    gradient[frozen] = np.nan
    put(device.flat.grad, gradient)
    device.step()
    for key, array in arrays.items():
        assert asnumpy(array)[frozen].tobytes() == before[key][frozen].tobytes()
        assert (asnumpy(array)[frozen.stop:] != before[key][frozen.stop:]).all()


def test_adamw_without_decay_of_norms_and_biases_equals_numpy(rng):
    device, host = pair("AdamW, all options", decay_norm_and_bias=False)
    for optimizer in (device, host):
        optimizer.set_lr_scale("head", 0.3)
    for _ in range(3):
        gradient = draw(rng)
        for optimizer in (device, host):
            put(optimizer.flat.grad, gradient)
            optimizer.step()
    assert_same_state(device, host)


@pytest.mark.parametrize("name", ["AdamW, all options", "SGD, nesterov", "RMSprop, all options"])
def test_every_order_of_the_threads_gives_the_same_bits(rng, name):
    gradients = [draw(rng) for _ in range(2)]
    results = []
    for order in emulator.FIBER_ORDERS:
        cls, options = OPTIMIZERS[name]
        model = on_device(model_of(np.float32))
        device = cls(model, **options)
        device.set_lr_scale("body", 0.5)
        ema = ExponentialMovingAverage(device, model, 0.9)
        with emulator.fiber_order(order):
            for gradient in gradients:
                put(device.flat.grad, gradient)
                device.step(clip_grad_norm(device, 1.0))
                ema.update()
        results.append(np.concatenate([asnumpy(device.flat.data), *map(
            np.ravel, [*device.state_dict().values(), *ema.state_dict().values()])]).tobytes())
    assert results[0] == results[1] == results[2]


# Without the host


def test_a_step_is_four_launches_and_waits_for_nothing(rng):
    model = on_device(model_of(np.float32))
    optimizer = AdamW(model)
    ema = ExponentialMovingAverage(optimizer, model)
    put(optimizer.flat.grad, draw(rng))
    before = emulated_device.synchronisations
    for lr in (0.1, 0.2):
        with record_launches() as launches:
            optimizer.lr = lr
        assert [launch.name for launch in launches] == ["fill"]  # not to be repeated
        with record_launches() as launches:
            optimizer.lr = lr
            optimizer.step(clip_grad_norm(optimizer, 1.0))
            ema.update()
        assert [launch.name for launch in launches] == [
            "grad_norm_kernel", "clip_grad_kernel", "adamw_update_kernel", "ema_update_kernel"]
    assert emulated_device.synchronisations == before
    assert optimizer.lr == 0.2


@pytest.mark.parametrize("cls", KERNEL_OF)
def test_recorded_launches_do_the_next_steps_with_other_gradients_rates_and_scales(rng, cls):
    runs = []
    for replay in (False, True):
        model = on_device(model_of())
        optimizer = cls(model, lr=0.1)
        ema = ExponentialMovingAverage(optimizer, model, 0.9)

        def step():
            optimizer.step(clip_grad_norm(optimizer, 50.0))
            ema.update()

        launches, draws = [], np.random.default_rng(3)
        for lr, scale in ((0.1, 1), (0.2, 1), (0.05, 0), (0.05, 0.3)):
            put(optimizer.flat.grad, draw(draws))
            optimizer.lr = lr
            optimizer.set_lr_scale("head", scale)
            if replay and launches:
                for launch in launches:
                    launch()
            else:
                with record_launches() as launches:
                    step()
        assert KERNEL_OF[cls] in [launch.name for launch in launches]
        assert optimizer.num_steps == ema.num_updates == 4
        runs.append({**optimizer.state_dict(), "data": asnumpy(optimizer.flat.data),
                     **ema.state_dict()})
    for key, value in runs[0].items():
        np.testing.assert_array_equal(runs[1][key], value)


# What is not finite


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["AdamW", "SGD, momentum", "RMSprop, all options"])
def test_a_norm_that_is_not_finite_skips_the_step_and_counts_it(rng, name, bad):
    device, host = pair(name)
    gradients = [draw(rng) for _ in range(4)]
    gradients[1][SIZE - 1] = gradients[2][5] = bad
    for gradient in gradients:
        for optimizer in (device, host):
            put(optimizer.flat.grad, gradient)
            norm = clip_grad_norm(optimizer, 1.0)
            if not np.isfinite(gradient).all():
                np.testing.assert_array_equal(asnumpy(optimizer.flat.grad), gradient)
            optimizer.step(norm)
    assert_same_state(device, host)
    assert device.num_steps == host.num_steps == 2
    np.testing.assert_array_equal(asnumpy(device.skipped), [2])
    np.testing.assert_array_equal(host.skipped, [2])
    assert np.isfinite(asnumpy(device.flat.data)).all()


@pytest.mark.parametrize("name", ["AdamW", "SGD, momentum", "RMSprop, all options"])
def test_gradients_of_a_scaled_loss_are_divided_by_its_scale(rng, name):
    device, host = pair(name)
    loss_scale = emulated_device.asarray(np.array([1024.0]))
    for max_norm in (0.5, 1e6):
        gradient = draw(rng)
        put(device.flat.grad, 1024 * gradient)
        put(host.flat.grad, gradient)
        norm = clip_grad_norm(device, max_norm, loss_scale=loss_scale)
        assert_agrees(asnumpy(norm)[0], clip_grad_norm(host, max_norm))
        device.step(norm, loss_scale=loss_scale)
        host.step()
    assert_same_state(device, host)


# The norm


@pytest.mark.parametrize("max_blocks", [1024, 2])
@pytest.mark.parametrize("max_norm", [0.5, 1e4, math.inf])
def test_clipping_equals_numpy_and_waits_for_nothing(rng, monkeypatch, max_norm, max_blocks):
    monkeypatch.setattr(flat, "MAX_BLOCKS", max_blocks)
    gradient = draw(rng, 10.0)
    device, host = FlatParameters(on_device(model_of())), FlatParameters(model_of())
    for buffers in (device, host):
        buffers.set_lr_scale("body.conv", 0)
        put(buffers.grad, gradient)
    before = emulated_device.synchronisations
    norm = clip_grad_norm(device, max_norm)
    assert emulated_device.synchronisations == before
    assert norm.shape == (1,)
    assert_agrees(asnumpy(norm)[0], clip_grad_norm(host, max_norm))
    assert_agrees(asnumpy(device.grad), host.grad)
    frozen = device.slices["body.conv.weight"]
    np.testing.assert_array_equal(asnumpy(device.grad)[frozen], gradient[frozen])
    assert global_norm(device) == pytest.approx(global_norm(host), rel=1e-12)
    assert asnumpy(clip_grad_norm(device, max_norm)) == pytest.approx(min(
        global_norm(host), max_norm), rel=1e-5)  # the counter of the blocks began anew


def test_the_float32_norm_of_many_equal_numbers_keeps_its_digits():
    layer = Layer()
    layer.add_parameter("weight", np.zeros(100_003, np.float32))
    optimizer = SGD(on_device(layer))
    optimizer.flat.grad.fill(np.float32(0.1))
    expected = math.sqrt(100_003) * float(np.float32(0.1))
    assert global_norm(optimizer.flat) == pytest.approx(expected, rel=2e-7)


# Saving


@pytest.mark.parametrize("name", ["AdamW", "SGD, momentum", "RMSprop, all options"])
@pytest.mark.parametrize("to_device", [True, False])
def test_a_run_moves_between_numpy_and_a_device(rng, name, to_device):
    """Five steps on one, five on the other, are ten steps in NumPy."""
    device, host = pair(name)
    first, second = (host, device) if to_device else (device, host)
    _, unbroken = pair(name)
    for step in range(6):
        gradient = draw(rng)
        ours = first if step < 3 else second
        if step == 3:
            put(second.flat.data, asnumpy(first.flat.data))
            second.load_state_dict(first.state_dict())
            assert second.num_steps == 3
        for optimizer in (ours, unbroken):
            put(optimizer.flat.grad, gradient)
            optimizer.step()
    assert_same_state(second, unbroken)


def test_after_a_reset_the_steps_are_those_of_a_new_optimizer(rng):
    old, new = AdamW(on_device(model_of())), AdamW(on_device(model_of(seed=2)))
    put(old.flat.grad, draw(rng))
    old.step()
    old.reset_state()
    put(new.flat.data, asnumpy(old.flat.data))
    gradient = draw(rng)
    for optimizer in (old, new):
        put(optimizer.flat.grad, gradient)
        optimizer.step()
    np.testing.assert_array_equal(asnumpy(old.flat.data), asnumpy(new.flat.data))
    assert old.num_steps == 1
