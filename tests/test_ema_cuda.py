"""The average of the weights on a device: the numbers of NumPy's, one launch, no waiting."""

import numpy as np
import pytest
from checks import assert_agrees
from test_ema import arrays
from test_optim_cuda import draw, model_of, on_device, put

from minisegnet.backend import asnumpy
from minisegnet.cuda import emulated_device
from minisegnet.layers import Layer
from minisegnet.optim import SGD, ExponentialMovingAverage, FlatParameters, flat

pytestmark = pytest.mark.usefixtures("compiler")


def assert_same_averages(ours, theirs):
    mine, other = ours.state_dict(), theirs.state_dict()
    assert mine.keys() == other.keys()
    for key in mine:
        assert np.shape(mine[key]) == np.shape(other[key])
        assert_agrees(mine[key], other[key])


@pytest.mark.parametrize("decay", [0.0, 0.15, 0.999])
def test_averages_equal_numpys(rng, monkeypatch, decay):
    monkeypatch.setattr(flat, "MAX_BLOCKS", 2)
    models = on_device(model_of()), model_of()
    averages = [ExponentialMovingAverage(FlatParameters(model), model, decay) for model in models]
    for _ in range(6):
        for ours, theirs in zip(arrays(models[0]), arrays(models[1])):
            theirs += rng.standard_normal(theirs.shape)
            put(ours, theirs)
        before = emulated_device.synchronisations
        for average in averages:
            average.update()
        assert emulated_device.synchronisations == before
        assert_same_averages(*averages)
    for average in averages:
        average.num_updates = 5000  # where the decay no longer rises
        average.update()
    assert_same_averages(*averages)


def test_applied_shows_the_averages_and_restores_every_bit(rng):
    model = on_device(model_of(np.float32))
    optimizer = SGD(model, lr=0.1)
    ema = ExponentialMovingAverage(optimizer, model, 0.9)
    for _ in range(3):
        put(optimizer.flat.grad, draw(rng))
        optimizer.step()
        put(model.body.norm.buffers["running_mean"], rng.standard_normal(33))
        ema.update()
    before = [asnumpy(array) for array in arrays(model)]
    averages = ema.state_dict()
    with ema.applied():
        shown = dict([*model.named_parameters(), *model.named_buffers()])
        for name, array in shown.items():
            np.testing.assert_array_equal(asnumpy(array), averages[name])
        assert (asnumpy(shown["body.norm.running_mean"]) != before[-4]).any()
    for array, original in zip(arrays(model), before):
        assert asnumpy(array).tobytes() == original.tobytes()


def test_what_does_not_move_is_its_own_average_bit_for_bit(rng):
    model = on_device(model_of(np.float32))
    optimizer = SGD(model, lr=0.3)
    optimizer.set_lr_scale("body", 0)
    ema = ExponentialMovingAverage(optimizer, model, 0.99)
    for _ in range(10):
        put(optimizer.flat.grad, draw(rng))
        optimizer.step()
        ema.update()
    state = ema.state_dict()
    for name, array in [*model.body.named_parameters(), *model.body.named_buffers()]:
        np.testing.assert_array_equal(state[f"body.{name}"], asnumpy(array))
    assert (state["head.norm.bias"] != asnumpy(model.head.norm.params["bias"])).all()


def test_averages_move_between_numpy_and_a_device(rng):
    models = on_device(model_of()), model_of(seed=2)
    device, host = (ExponentialMovingAverage(SGD(model), model, 0.9) for model in models)
    for _ in range(2):
        device.update()
    host.load_state_dict(device.state_dict())
    assert host.num_updates == 2
    assert_same_averages(host, device)


def test_a_model_without_buffers_is_averaged(rng):
    layer = Layer()
    layer.add_parameter("weight", np.array([2.0]))
    ema = ExponentialMovingAverage(SGD(on_device(layer)), layer, 0.5)
    for value in (1.0, 12.0):
        layer.params["weight"].fill(value)
        ema.update()
    assert ema.state_dict()["weight"] == pytest.approx(2 / 11 * 1 + 9 / 11 * 12)


def test_buffers_that_left_or_are_of_another_dtype_are_refused():
    model = on_device(model_of())
    optimizer = SGD(model)
    ema = ExponentialMovingAverage(optimizer, model, 0.9)
    model.body.norm.buffers["running_var"] = emulated_device.asarray(np.ones(33))
    with pytest.raises(RuntimeError, match="body.norm.running_var.*left"):
        ema.update()
    model.body.norm.buffers["count"] = emulated_device.asarray(np.zeros(1, np.int64))
    with pytest.raises(TypeError, match="body.norm.count.*int64.*float64"):
        ExponentialMovingAverage(optimizer, model, 0.9)
