"""The average of the weights: torch's AveragedModel, a worked example, swapping, saving."""

import numpy as np
import pytest

from minisegnet.layers import BatchNorm2d, Conv2d, Layer
from minisegnet.optim import SGD, ExponentialMovingAverage, FlatParameters, flat


def tiny_model(rng, dtype=np.float32):
    """Return a convolution and a batch norm, with a buffer of integers: 84 random parameters."""
    model = Layer()
    model.conv = Conv2d(2, 4, 3, rng=rng)
    model.norm = BatchNorm2d(4)
    model.astype(dtype)
    model.norm.buffers["count"] = np.zeros(1, np.int64)
    disturb(model, rng)
    return model


def disturb(model, rng):
    """Move every parameter and buffer, as a step does."""
    for array in arrays(model):
        if array.dtype == np.int64:
            array += 3
        else:
            array[...] += rng.standard_normal(array.shape).astype(array.dtype)


def arrays(model):
    return [array for named in (model.named_parameters(), model.named_buffers())
            for _, array in named]


def copies(model):
    return [array.copy() for array in arrays(model)]


def one_number(value):
    layer = Layer()
    layer.add_parameter("weight", np.array([value]))
    return layer


class Halted(Exception):
    pass


def torch_twin(torch, model):
    """Return a torch module with the model's parameters and buffers, not yet filled."""
    module = torch.nn.Module()
    for name, array in model.named_parameters():
        module.register_parameter(name.replace(".", "_"),
                                  torch.nn.Parameter(torch.zeros(array.shape, dtype=torch.double)))
    for name, array in model.named_buffers():
        module.register_buffer(name.replace(".", "_"), torch.zeros(array.shape).to(
            torch.from_numpy(array).dtype))
    return module


def fill(torch, module, model):
    with torch.no_grad():
        for tensor, array in zip([*module.parameters(), *module.buffers()], arrays(model)):
            tensor.copy_(torch.from_numpy(array))


@pytest.mark.parametrize("decay, warm", [(0.15, False), (0.7, False), (0.999, True)])
def test_averages_equal_torchs_averaged_model(torch, rng, monkeypatch, decay, warm):
    """Without `warm` the decay is reached from the first: at 0.15 at once, at 0.7 after 20."""
    monkeypatch.setattr(flat, "BLOCK_SIZE", 10)
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    model = tiny_model(rng, np.float64)
    ema = ExponentialMovingAverage(FlatParameters(model), model, decay)
    module = torch_twin(torch, model)
    theirs = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    ema.update()
    if decay == 0.7:
        ema.num_updates = 20  # where (1 + t) / (10 + t) reaches it
    fill(torch, module, model)
    theirs.update_parameters(module)
    for t in range(1, 13):
        disturb(model, rng)
        fill(torch, module, model)
        if warm:
            theirs.multi_avg_fn = get_ema_multi_avg_fn((1 + t) / (10 + t))
        ema.update()
        theirs.update_parameters(module)
        averages = [*theirs.module.parameters(), *theirs.module.buffers()]
        with ema.applied():
            for array, tensor in zip(arrays(model), averages):
                if array.dtype == np.int64:  # torch averages these and cuts the fraction off
                    assert array == 3 * (t + 1)
                else:
                    np.testing.assert_allclose(array, tensor.detach().numpy(), rtol=1e-12)


def test_average_worked_by_hand():
    model = one_number(1.0)
    ema = ExponentialMovingAverage(SGD(model), model, decay=0.25)
    seen = []
    for value in (1.0, 12.0, 2.0, 0.0):
        model.params["weight"][:] = value
        ema.update()
        seen.append(ema.state_dict()["weight"].item())
    # decays: copied, 2/11, 3/12, and then not 4/13 but the limit of 1/4
    assert seen == pytest.approx([1, 2 / 11 * 1 + 9 / 11 * 12, 10 / 4 + 2 * 3 / 4, 4 / 4])


def applied_values(ema):
    with ema.applied():
        return dict((name, array.copy()) for named in (
            ema.model.named_parameters(), ema.model.named_buffers()) for name, array in named)


def updated_values(ema):
    ema.update()
    return ema.state_dict()


@pytest.mark.parametrize("look", [
    applied_values, updated_values, ExponentialMovingAverage.state_dict])
def test_averages_begin_as_the_weights_of_then_not_of_the_construction(rng, look):
    model = tiny_model(rng)
    ema = ExponentialMovingAverage(SGD(model), model, 0.999)
    disturb(model, rng)  # as weights from a file do
    averages = look(ema)
    for name, array in [*model.named_parameters(), *model.named_buffers()]:
        np.testing.assert_array_equal(averages[name], array)


def test_what_does_not_move_is_its_own_average_bit_for_bit(rng):
    model = tiny_model(rng)
    optimizer = SGD(model, lr=0.3)
    optimizer.set_lr_scale("conv", 0)
    ema = ExponentialMovingAverage(optimizer, model, 0.99)
    for _ in range(50):
        optimizer.flat.grad[:] = rng.standard_normal(84)
        optimizer.step()
        ema.update()
    with_averages = ema.state_dict()
    np.testing.assert_array_equal(with_averages["conv.weight"], model.conv.params["weight"])
    assert (with_averages["norm.bias"] != model.norm.params["bias"]).all()


@pytest.mark.parametrize("halt", [False, True])
def test_applied_shows_the_averages_and_restores_every_bit(rng, halt):
    model = tiny_model(rng)
    ema = ExponentialMovingAverage(SGD(model), model, 0.9)
    for _ in range(3):
        disturb(model, rng)
        ema.update()
    before, identities = copies(model), [id(array) for array in arrays(model)]
    averages = ema.state_dict()
    try:
        with ema.applied() as shown:
            assert shown is model
            for name, array in [*model.named_parameters(), *model.named_buffers()]:
                np.testing.assert_array_equal(array, averages[name])
            assert (model.conv.params["weight"] != before[0]).all()
            disturb(model, rng)  # as a validation in training mode would the running statistics
            if halt:
                raise Halted
    except Halted:
        assert halt
    for array, original in zip(arrays(model), before):
        assert array.tobytes() == original.tobytes()
    assert [id(array) for array in arrays(model)] == identities
    for name, array in ema.state_dict().items():
        np.testing.assert_array_equal(array, averages[name])


def test_averages_keep_float32_and_the_models_shapes(rng):
    model = tiny_model(rng)
    ema = ExponentialMovingAverage(SGD(model), model, 0.9)
    for _ in range(3):
        disturb(model, rng)
        ema.update()
    state = ema.state_dict()
    assert state.pop("num_updates") == 3
    own = dict([*model.named_parameters(), *model.named_buffers()])
    assert {name: (array.dtype, array.shape) for name, array in state.items()} == {
        name: (array.dtype, array.shape) for name, array in own.items()}


def test_a_run_split_by_a_saved_state_equals_the_unbroken_one_bit_for_bit(rng):
    model, other = tiny_model(rng), tiny_model(rng)
    unbroken = ExponentialMovingAverage(SGD(model), model, 0.9)
    resumed = ExponentialMovingAverage(SGD(other), other, 0.9)
    for step in range(8):
        disturb(model, rng)
        unbroken.update()
        if step < 5:
            saved = {name: np.asarray(value) for name, value in unbroken.state_dict().items()}
            continue
        if step == 5:
            resumed.load_state_dict(saved)
        for array, original in zip(arrays(other), arrays(model)):
            array[...] = original
        resumed.update()
    expected = unbroken.state_dict()
    for name, array in resumed.state_dict().items():
        np.testing.assert_array_equal(array, expected[name])


def test_a_saved_state_does_not_change_with_later_updates(rng):
    model = tiny_model(rng)
    ema = ExponentialMovingAverage(SGD(model), model, 0.9)
    ema.update()
    saved = ema.state_dict()
    before = {name: np.copy(value) for name, value in saved.items()}
    disturb(model, rng)
    ema.update()
    for name, value in saved.items():
        np.testing.assert_array_equal(value, before[name])


def test_averages_of_another_model_are_refused_and_change_nothing(rng):
    model = tiny_model(rng)
    ema = ExponentialMovingAverage(SGD(model), model, 0.9)
    ema.update()
    before = ema.state_dict()
    missing = {name: value for name, value in before.items() if name != "norm.bias"}
    for name in missing:
        missing[name] = missing[name] + 1
    with pytest.raises(ValueError, match="another model: norm.bias is in only one"):
        ema.load_state_dict(missing)
    with pytest.raises(ValueError, match=r"'norm.bias' has shape \(5,\).*needs \(4,\)"):
        ema.load_state_dict({**missing, "norm.bias": np.zeros(5)})
    for name, value in ema.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_a_model_that_left_the_buffer_is_refused(rng):
    model = tiny_model(rng)
    ema = ExponentialMovingAverage(SGD(model), model, 0.9)
    SGD(model)
    with pytest.raises(RuntimeError, match="left"):
        ema.update()
    with pytest.raises(RuntimeError, match="left"), ema.applied():
        pass


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_a_senseless_decay_is_refused(rng, decay):
    model = tiny_model(rng)
    with pytest.raises(ValueError, match="decay must lie in"):
        ExponentialMovingAverage(SGD(model), model, decay)
