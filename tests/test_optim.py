"""Optimizers over the flat buffer: torch's numbers, hand-worked steps, and what is refused."""

import math

import numpy as np
import pytest

from minisegnet.layers import BatchNorm2d, Conv2d, Layer
from minisegnet.optim import SGD, AdamW, FlatParameters, RMSprop, clip_grad_norm, flat, global_norm
from minisegnet.optim.adamw import adamw_update_inplace, adamw_update_plain


def tiny_model(rng, dtype=np.float64):
    """Return a convolution with bias and a batch norm, 84 random parameters."""
    model = Layer()
    model.conv = Conv2d(2, 4, 3, rng=rng)
    model.norm = BatchNorm2d(4)
    model.astype(dtype)
    for array in values(model):
        array[...] = rng.standard_normal(array.shape)
    return model


def layer_of(**parameters):
    """Return a layer that holds these parameters and does nothing."""
    layer = Layer()
    for name, array in parameters.items():
        layer.add_parameter(name, array)
    return layer


def values(model):
    return [array for _, array in model.named_parameters()]


def set_gradients(model, rng, scale=1.0):
    """Fill every gradient of `model` with random numbers; return them, flat."""
    drawn = []
    for _, array in model.named_gradients():
        array[...] = scale * rng.standard_normal(array.shape)
        drawn.append(array.ravel().copy())
    return np.concatenate(drawn)


# The flat buffer

def test_layers_see_the_buffer_and_the_buffer_sees_the_layers(rng):
    model = tiny_model(rng)
    before = [array.copy() for array in values(model)]
    buffers = FlatParameters(model)
    assert buffers.names == ["conv.weight", "conv.bias", "norm.weight", "norm.bias"]
    for array, original in zip(values(model), before):
        np.testing.assert_array_equal(array, original)
    buffers.data[buffers.slices["norm.bias"]] = 7
    assert (model.norm.params["bias"] == 7).all()
    model.conv.grads["weight"] += 3
    assert (buffers.grad[buffers.slices["conv.weight"]] == 3).all()


def test_gradients_already_there_are_kept(rng):
    model = tiny_model(rng)
    expected = set_gradients(model, rng)
    np.testing.assert_array_equal(FlatParameters(model).grad, expected)


def test_only_kernels_are_neither_norm_nor_bias(rng):
    buffers = FlatParameters(tiny_model(rng))
    marked = {name: set(buffers.is_norm_or_bias[part]) for name, part in buffers.slices.items()}
    assert marked == {
        "conv.weight": {False}, "conv.bias": {True}, "norm.weight": {True}, "norm.bias": {True}}


def test_mixed_dtypes_and_models_without_parameters_are_refused():
    with pytest.raises(TypeError, match="float32.*float64"):
        FlatParameters(layer_of(a=np.ones(2, np.float32), b=np.ones(2)))
    with pytest.raises(ValueError, match="no parameters"):
        FlatParameters(Layer())


@pytest.mark.parametrize("leave", ["another optimizer", "replaced array"])
def test_step_refuses_a_parameter_that_left_the_buffer(rng, leave):
    model = tiny_model(rng)
    optimizer = AdamW(model)
    if leave == "another optimizer":
        SGD(model)
    else:
        model.conv.params["weight"] = np.zeros((3, 3, 2, 4))
    with pytest.raises(RuntimeError, match="conv.weight.*left"):
        optimizer.step()


# Against torch

OPTIMIZERS = {
    "AdamW": (AdamW, {}),
    "AdamW, all options": (
        AdamW, {"lr": 0.03, "betas": (0.8, 0.99), "eps": 1e-3, "weight_decay": 0.2}),
    "AdamW, no decay": (AdamW, {"lr": 0.03, "weight_decay": 0.0}),
    "SGD": (SGD, {"lr": 0.1}),
    "SGD, decay": (SGD, {"lr": 0.1, "weight_decay": 0.05}),
    "SGD, momentum": (SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05}),
    "SGD, nesterov": (
        SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05, "nesterov": True}),
    "RMSprop": (RMSprop, {}),
    "RMSprop, all options": (
        RMSprop, {"lr": 0.02, "alpha": 0.8, "eps": 1e-2, "weight_decay": 0.1, "momentum": 0.7}),
}


def assert_same_trajectory(torch, rng, model, ours, theirs, parameters, steps=12):
    """Give both optimizers the same gradients and rates; compare all parameters at each step."""
    for step in range(steps):
        set_gradients(model, rng, scale=10.0 ** rng.integers(-4, 3))
        for p, (_, grad) in zip(parameters, model.named_gradients()):
            p.grad = torch.tensor(grad)
        ours.lr = theirs.param_groups[0]["lr"] * (0.9 if step % 2 else 1.1)
        for group in theirs.param_groups:
            group["lr"] = ours.lr
        ours.step()
        theirs.step()
        for p, array in zip(parameters, values(model)):
            np.testing.assert_allclose(array, p.detach().numpy(), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_twelve_steps_of_changing_rate_equal_torch(torch, rng, monkeypatch, name):
    monkeypatch.setattr(flat, "BLOCK_SIZE", 10)  # several blocks, the last one short
    cls, options = OPTIMIZERS[name]
    model = tiny_model(rng)
    parameters = [torch.nn.Parameter(torch.tensor(array)) for array in values(model)]
    theirs = getattr(torch.optim, cls.__name__)(parameters, **options)
    assert_same_trajectory(torch, rng, model, cls(model, **options), theirs, parameters)


def test_adamw_without_decay_of_norms_and_biases_equals_torchs_parameter_groups(torch, rng):
    model = tiny_model(rng)
    parameters = [torch.nn.Parameter(torch.tensor(array)) for array in values(model)]
    theirs = torch.optim.AdamW([
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.3},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ])
    ours = AdamW(model, weight_decay=0.3, decay_norm_and_bias=False)
    assert_same_trajectory(torch, rng, model, ours, theirs, parameters)


@pytest.mark.parametrize("max_norm", [0.5, 1e4])
def test_clipping_equals_torch(torch, rng, max_norm):
    model = tiny_model(rng)
    optimizer = SGD(model)
    set_gradients(model, rng)
    parameters = [torch.nn.Parameter(torch.tensor(array)) for array in values(model)]
    for p, (_, grad) in zip(parameters, model.named_gradients()):
        p.grad = torch.tensor(grad)
    expected = torch.nn.utils.clip_grad_norm_(parameters, max_norm).item()
    assert clip_grad_norm(optimizer, max_norm) == pytest.approx(expected, rel=1e-12)
    for p, (_, grad) in zip(parameters, model.named_gradients()):
        np.testing.assert_allclose(grad, p.grad.numpy(), rtol=1e-12)


# By hand

def update_plain(p, g, m, v, **options):
    p[...], m[...], v[...] = adamw_update_plain(p, g, m, v, **options)


@pytest.fixture(params=["plain", "inplace"])
def adamw_update(request):
    return {"plain": update_plain, "inplace": adamw_update_inplace}[request.param]


def test_adamw_update_worked_by_hand(adamw_update):
    p, g, m, v = (np.array([x]) for x in (2.0, 3.0, 0.5, 4.0))
    adamw_update(p, g, m, v, t=2, lr=0.1, betas=(0.9, 0.8), eps=0.5, weight_decay=0.5)
    assert m == pytest.approx(0.9 * 0.5 + 0.1 * 3)  # 0.75
    assert v == pytest.approx(0.8 * 4 + 0.2 * 9)  # 5.0
    m_hat, v_hat = 0.75 / (1 - 0.81), 5.0 / (1 - 0.64)
    assert p == pytest.approx(2 * 0.95 - 0.1 * m_hat / (math.sqrt(v_hat) + 0.5))


def test_adamw_updates_equal_torch(torch, rng, adamw_update):
    p, m, v = rng.standard_normal(50), np.zeros(50), np.zeros(50)
    parameter = torch.nn.Parameter(torch.tensor(p))
    theirs = torch.optim.AdamW([parameter], lr=0.02, weight_decay=0.1)
    for t in range(1, 13):
        g = rng.standard_normal(50)
        parameter.grad = torch.tensor(g)
        theirs.step()
        adamw_update(p, g, m, v, t=t, lr=0.02, weight_decay=0.1)
        np.testing.assert_allclose(p, parameter.detach().numpy(), rtol=1e-12, atol=1e-14)


def test_the_plain_adamw_update_changes_none_of_its_inputs(rng):
    arrays = [np.abs(rng.standard_normal(5)) for _ in range(4)]
    before = [array.copy() for array in arrays]
    adamw_update_plain(*arrays, t=1, lr=0.1)
    np.testing.assert_array_equal(arrays, before)


def one_number(value):
    return layer_of(weight=np.array([[value]]))


def stepped(optimizer, *gradients):
    """Return the single parameter after each of the steps with these gradients."""
    path = []
    for g in gradients:
        optimizer.flat.grad[:] = g
        optimizer.step()
        path.append(optimizer.flat.data.item())
    return path


def test_the_first_adamw_step_has_length_lr_whatever_the_gradient():
    for g in (1e-3, 1.0, -1e5):
        path = stepped(AdamW(one_number(1.0), lr=0.1, eps=0.0, weight_decay=0.0), g)
        assert path == pytest.approx([1 - math.copysign(0.1, g)])


def test_sgd_with_momentum_worked_by_hand():
    optimizer = SGD(one_number(1.0), lr=0.1, momentum=0.5)
    # buffers 1, 0.5 * 1 + 2 = 2.5, 0.5 * 2.5 = 1.25
    assert stepped(optimizer, 1.0, 2.0, 0.0) == pytest.approx([0.9, 0.65, 0.525])


def test_rmsprop_worked_by_hand():
    optimizer = RMSprop(one_number(1.0), lr=0.1, alpha=0.75, eps=0.0)
    # mean square 0.25 * 4 = 1, then 0.75 * 1 + 0.25 * 9 = 3
    assert stepped(optimizer, 2.0, 3.0) == pytest.approx([0.8, 0.8 - 0.3 / math.sqrt(3)])


def test_rmsprop_with_momentum_0_999_amplifies_a_steady_step_a_thousandfold():
    optimizer = RMSprop(one_number(0.0), lr=1.0, momentum=0.999)
    path = stepped(optimizer, *[1.0] * 8000)
    assert path[-2] - path[-1] == pytest.approx(1000, rel=0.01)


# Life with an optimizer


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_a_step_with_a_norm_that_is_not_finite_is_skipped_and_counted(rng, norm):
    optimizer = AdamW(tiny_model(rng))
    optimizer.flat.grad[:] = 1
    optimizer.step(2.0)
    arrays = [optimizer.flat.data, *optimizer.state.values()]
    before = [array.copy() for array in arrays]
    optimizer.step(norm)
    np.testing.assert_array_equal(arrays, before)
    assert optimizer.num_steps == 1 and optimizer.skipped == 1


def test_a_loss_scale_is_refused_where_nothing_divides_by_it(rng):
    optimizer = SGD(tiny_model(rng))
    with pytest.raises(ValueError, match="loss scale"):
        optimizer.step(loss_scale=np.ones(1))
    with pytest.raises(ValueError, match="loss scale"):
        clip_grad_norm(optimizer, 1.0, loss_scale=np.ones(1))


def test_zero_grad_clears_every_gradient(rng):
    model = tiny_model(rng)
    optimizer = AdamW(model)
    set_gradients(model, rng)
    optimizer.zero_grad()
    assert not any(gradient.any() for _, gradient in model.named_gradients())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_float32_stays_float32_and_follows_the_float64_path(rng, name):
    cls, options = OPTIMIZERS[name]
    single, double = (cls(tiny_model(np.random.default_rng(1), dtype), **options)
                      for dtype in (np.float32, np.float64))
    for _ in range(10):
        double.flat.grad[:] = rng.standard_normal(double.flat.grad.size)
        single.flat.grad[:] = double.flat.grad
        single.step()
        double.step()
    assert single.flat.data.dtype == np.float32
    assert all(array.dtype == np.float32 for array in single.state.values())
    np.testing.assert_allclose(single.flat.data, double.flat.data, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_split_by_a_saved_state_equals_the_unbroken_one_bit_for_bit(rng, name):
    cls, options = OPTIMIZERS[name]
    gradients = rng.standard_normal((8, 84))
    unbroken, first = (cls(tiny_model(np.random.default_rng(1)), **options) for _ in range(2))
    for g in gradients:
        unbroken.flat.grad[:] = g
        unbroken.step()
    for g in gradients[:5]:
        first.flat.grad[:] = g
        first.step()
    second = cls(tiny_model(rng), **options)
    second.flat.data[:] = first.flat.data
    second.load_state_dict(first.state_dict())
    for g in gradients[5:]:
        second.flat.grad[:] = g
        second.step()
    np.testing.assert_array_equal(second.flat.data, unbroken.flat.data)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_after_a_reset_the_steps_are_those_of_a_new_optimizer_bit_for_bit(rng, name):
    cls, options = OPTIMIZERS[name]
    old = cls(tiny_model(rng), **options)
    for _ in range(3):
        old.flat.grad[:] = rng.standard_normal(84)
        old.step()
    new = cls(tiny_model(rng), **options)
    new.flat.data[:] = old.flat.data
    old.reset_state()
    assert old.num_steps == 0
    for _ in range(4):
        old.flat.grad[:] = new.flat.grad[:] = rng.standard_normal(84)
        old.step()
        new.step()
        np.testing.assert_array_equal(old.flat.data, new.flat.data)


def test_a_saved_state_does_not_change_with_later_steps(rng):
    optimizer = AdamW(tiny_model(rng))
    saved = optimizer.state_dict()
    optimizer.flat.grad[:] = 1
    optimizer.step()
    assert not saved["exp_avg"].any() and saved["num_steps"] == 0


def test_a_state_of_another_optimizer_or_model_is_refused(rng):
    optimizer = AdamW(tiny_model(rng))
    with pytest.raises(ValueError, match="AdamW state needs.*exp_avg.*momentum_buffer"):
        optimizer.load_state_dict(SGD(tiny_model(rng), momentum=0.9).state_dict())
    with pytest.raises(ValueError, match=r"exp_avg.*\(1,\).*\(84,\).*another model"):
        optimizer.load_state_dict(AdamW(one_number(1.0)).state_dict())


def test_clipping_keeps_the_direction_and_bounds_the_length(rng):
    optimizer = SGD(tiny_model(rng))
    g = optimizer.flat.grad
    g[:] = rng.standard_normal(g.size)
    before = g.copy()
    norm = clip_grad_norm(optimizer, max_norm=0.1)
    assert norm == pytest.approx(np.linalg.norm(before))
    assert global_norm(optimizer.flat) == pytest.approx(0.1, rel=1e-5)
    np.testing.assert_allclose(g / np.linalg.norm(g), before / norm)
    assert clip_grad_norm(optimizer.flat, max_norm=1.0) == pytest.approx(0.1, rel=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_clipping_reports_a_norm_that_is_not_finite_and_touches_nothing(rng, bad):
    optimizer = SGD(tiny_model(rng))
    optimizer.flat.grad[:] = 5
    optimizer.flat.grad[3] = bad
    assert not math.isfinite(clip_grad_norm(optimizer, 1.0))
    assert optimizer.flat.grad[0] == 5


@pytest.mark.parametrize("cls, options, words", [
    (AdamW, {"lr": -1e-3}, "lr must be.*-0.001"),
    (AdamW, {"lr": math.nan}, "lr must be.*nan"),
    (AdamW, {"betas": (0.9, 1.0)}, "betas"),
    (AdamW, {"weight_decay": -0.1}, "weight_decay"),
    (SGD, {"momentum": 1.0}, "momentum"),
    (SGD, {"nesterov": True}, "nesterov"),
    (RMSprop, {"alpha": 1.0}, "alpha"),
    (RMSprop, {"eps": -1.0}, "eps"),
])
def test_senseless_option_is_refused_by_name(rng, cls, options, words):
    with pytest.raises(ValueError, match=words):
        cls(tiny_model(rng), **options)


@pytest.mark.parametrize("max_norm", [0, -1.0, math.nan])
def test_clipping_to_nothing_is_refused(rng, max_norm):
    with pytest.raises(ValueError, match="max_norm must be above 0"):
        clip_grad_norm(SGD(tiny_model(rng)), max_norm)
