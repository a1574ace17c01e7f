"""The gate of squeeze-and-excitation: the definition, NumPy, the kernels and torch agree."""

import numpy as np
import pytest
from checks import (
    assert_agrees,
    assert_finite_differences_agree,
    assert_float32_accurate,
    frozen,
    non_contiguous,
)

from minisegnet import blocks, ops
from minisegnet.cuda import emulated_device, emulator
from minisegnet.cuda.launch import record_launches
from minisegnet.layers import BackwardError, inference_mode
from minisegnet.ops import squeeze_excite_gate_backward, squeeze_excite_gate_forward

NAMES = ("pooled", "weight1", "bias1", "weight2", "bias2")
implementations = pytest.mark.parametrize("implementation", ["loops", "numpy", "cuda_cpu"])
# N, C, S: one of each; odd; fewer threads than outputs; several inputs of an output to a thread;
# the smallest and the largest of MobileNetV3; more than the threads of a block.
SIZES = [(1, 1, 1), (2, 5, 3), (1, 33, 1), (3, 1, 40), (2, 16, 8), (4, 72, 24), (17, 7, 11),
         (2, 576, 144), (1, 960, 240), (1, 1030, 2)]


def draw(rng, N, C, S, dtype=np.float64):
    """Return the five inputs and dgate; most gates lie between 0 and 1, some beyond."""
    inputs = [rng.standard_normal((N, 1, 1, C)), rng.standard_normal((1, 1, C, S)) / C ** 0.5,
              rng.standard_normal(S), 4 * rng.standard_normal((1, 1, S, C)) / S ** 0.5,
              rng.standard_normal(C)]
    return frozen(*(array.astype(dtype) for array in (*inputs, rng.standard_normal((N, 1, 1, C)))))


def results(inputs, dgate, implementation=None, **given):
    """Return the gate and the five gradients."""
    gate, cache = squeeze_excite_gate_forward(*inputs, implementation=implementation)
    return [gate, *squeeze_excite_gate_backward(dgate, cache, implementation=implementation,
                                                **given)]


@pytest.fixture
def torch_results(torch):
    from minisegnet.verify import torch_oracle

    def run(inputs, dgate):
        (gate,), gradients = torch_oracle.gradients(
            torch_oracle.squeeze_excite_gate, dict(zip(NAMES, inputs)), {}, np.array(dgate))
        return [gate, *(gradients[name] for name in NAMES)]

    return run


@implementations
def test_hand_worked_example(implementation):
    pooled = np.array([[1.0, 2], [-1, 0]]).reshape(2, 1, 1, 2)
    weight1 = np.array([[1.0], [3]]).reshape(1, 1, 2, 1)  # 7 and -1; less 1
    weight2 = np.array([[0.5, -1]]).reshape(1, 1, 1, 2)   # of 6: 3 and -6; of 0: 0 and 0
    inputs = pooled, weight1, np.array([-1.0]), weight2, np.array([-0.6, 3.5])
    dgate = np.array([[6.0, 12], [18, 24]]).reshape(2, 1, 1, 2)
    gate, *gradients = results(inputs, dgate, implementation)
    np.testing.assert_allclose(gate[:, 0, 0], [[0.9, 0.5 / 6], [0.4, 1]], rtol=1e-14)
    # The last gate is past its end, and the second image's hidden number is none: 1, 2 and 3 come
    # through the hardsigmoid, and of the first image 1 * 0.5 - 2 * 1 through the relu.
    for gradient, expected in zip(gradients, ([[-1.5, -4.5], [0, 0]], [[-1.5], [-3]], [-1.5],
                                              [[6, 12]], [1 + 3, 2])):
        np.testing.assert_allclose(np.squeeze(gradient), np.squeeze(expected), rtol=1e-14)


@implementations
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_gate_and_all_gradients_match_torch(torch_results, rng, size, implementation):
    if implementation == "loops" and size[1] * size[2] > 2000:
        size = (2, 9, 4)  # the loops are slow
    *inputs, dgate = draw(rng, *size)
    found = results(inputs, dgate, implementation)
    for ours, expected in zip(found, torch_results(inputs, dgate), strict=True):
        assert_agrees(ours, expected)
    assert [array.shape for array in found[1:]] == [array.shape for array in inputs]


@implementations
@pytest.mark.parametrize("size", [(3, 24, 8), (8, 288, 72)], ids=str)
def test_float32_is_kept_and_as_accurate_as_torch(torch_results, rng, size, implementation):
    if implementation == "loops" and size[1] > 100:
        size = (2, 9, 4)  # the loops are slow
    *inputs, dgate = draw(rng, *size, np.float32)
    exact = torch_results([array.astype(np.float64) for array in inputs], dgate.astype(float))
    for arrays in zip(results(inputs, dgate, implementation), exact,
                      torch_results(inputs, dgate), strict=True):
        assert_float32_accurate(*arrays)


@implementations
def test_gradients_match_finite_differences(rng, implementation):
    *inputs, dgate = draw(rng, 2, 5, 3)
    _, *gradients = results(inputs, dgate, implementation)
    assert_finite_differences_agree(lambda *arrays: squeeze_excite_gate_forward(*arrays)[0],
                                    inputs, gradients, dgate)


@implementations
def test_on_the_kinks_slopes_are_those_of_the_activations(rng, implementation):
    values = np.array([-4.0, -3, -1, 0, 2, 3, 4]).reshape(1, 1, 1, -1)
    C = values.size
    one = np.eye(C).reshape(1, 1, C, C)
    dgate = rng.standard_normal(values.shape)
    # Through the hardsigmoid alone: every hidden number is 10, z what it is by its bias.
    _, dpooled, _, dbias1, _, dbias2 = results(
        (values, 0 * one, np.full(C, 10.0), one, values.ravel() - 10), dgate, implementation)
    slope = ops.hardsigmoid_backward(dgate, values).ravel()
    np.testing.assert_allclose(dbias2, slope, rtol=1e-14)
    np.testing.assert_allclose(dbias1, slope, rtol=1e-14)
    # Through the relu: the hidden numbers are `values`, below 3 by the second bias.
    _, dpooled, *_ = results((values, one, np.zeros(C), one, np.full(C, -2.0)), dgate,
                             implementation)
    np.testing.assert_allclose(dpooled, dgate * (values > 0) / 6, rtol=1e-14)


@implementations
def test_gradients_are_added_to_those_given(rng, implementation):
    *inputs, dgate = draw(rng, 3, 10, 4)
    given = {f"d{name}": rng.standard_normal(array.shape)
             for name, array in zip(NAMES[1:], inputs[1:])}
    before = {name: array.copy() for name, array in given.items()}
    _, dpooled, *expected = results(inputs, dgate, implementation)
    _, again, *found = results(inputs, dgate, implementation, **given)
    np.testing.assert_array_equal(again, dpooled)
    for ours, share, (name, array) in zip(found, expected, given.items(), strict=True):
        assert ours is array
        assert_agrees(array, before[name] + share)


@implementations
def test_non_contiguous_inputs_give_the_same_numbers(rng, implementation):
    *inputs, dgate = draw(rng, 3, 6, 4)
    awkward = results([non_contiguous(array) for array in inputs], non_contiguous(dgate),
                      implementation)
    for found, expected in zip(awkward, results(inputs, dgate, implementation), strict=True):
        assert_agrees(found, expected)


@implementations
def test_not_a_number_stays_one(rng, implementation):
    *inputs, dgate = map(np.array, draw(rng, 2, 4, 3))
    inputs[0][0, 0, 0, 1] = np.nan
    gate, *_ = results(inputs, dgate, implementation)
    assert np.isnan(gate[0]).all() and np.isfinite(gate[1]).all()


@pytest.mark.parametrize("size", [(3, 72, 24), (2, 33, 5)], ids=str)
def test_kernels_give_the_same_bits_on_a_device_and_in_every_order_of_threads(rng, compiler,
                                                                              size):
    *inputs, dgate = draw(rng, *size, np.float32)
    expected = results(inputs, dgate, "cuda_cpu")
    on_device = results(list(map(emulated_device.asarray, inputs)),
                        emulated_device.asarray(dgate))
    for found, result in zip(on_device, expected, strict=True):
        np.testing.assert_array_equal(found.get(), result)
    for order in ("reverse", "random"):
        with emulator.fiber_order(order):
            again = results(inputs, dgate, "cuda_cpu")
        for found, result in zip(again, expected, strict=True):
            np.testing.assert_array_equal(found, result)


def test_activations_of_16_bits_are_computed_with_in_float32(rng, compiler):
    *inputs, dgate = draw(rng, 2, 24, 8, np.float32)
    pooled, d = inputs[0].astype(np.float16), dgate.astype(np.float16)
    found = results([pooled, *inputs[1:]], d, "cuda_cpu")
    expected = results([pooled.astype(np.float32), *inputs[1:]], d.astype(np.float32), "cuda_cpu")
    assert [array.dtype for array in found] == [np.float16] * 2 + [np.float32] * 4
    for ours, exact in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, exact.astype(ours.dtype))  # rounded once, at the end


def test_it_takes_one_launch_forward_and_two_backward(rng, compiler):
    *inputs, dgate = draw(rng, 2, 16, 8, np.float32)
    gate, cache = squeeze_excite_gate_forward(*inputs)
    gradients = [np.zeros_like(array) for array in inputs[1:]]
    with record_launches() as launches:
        squeeze_excite_gate_forward(*inputs, implementation="cuda_cpu")
        assert len(launches) == 1
        squeeze_excite_gate_backward(
            dgate, cache, **{f"d{name}": array for name, array in zip(NAMES[1:], gradients)},
            implementation="cuda_cpu")
    assert len(launches) == 3


@implementations
def test_what_does_not_fit_is_refused(implementation):
    inputs = [np.zeros(shape) for shape in ((2, 1, 1, 4), (1, 1, 4, 3), (3,), (1, 1, 3, 4), (4,))]
    chosen = {"implementation": implementation}
    for i, shape in ((0, (2, 4)), (0, (2, 2, 1, 4)), (0, (0, 1, 1, 4)), (1, (4, 3)),
                     (1, (1, 1, 3, 4)), (2, (4,)), (2, ()), (3, (1, 1, 4, 3)), (4, (3,))):
        bad = [*inputs[:i], np.zeros(shape), *inputs[i + 1:]]
        with pytest.raises(ValueError, match=r"takes pooled \(N, 1, 1, C\)"):
            squeeze_excite_gate_forward(*bad, **chosen)
    with pytest.raises(TypeError, match="float64 and float32"):
        squeeze_excite_gate_forward(*inputs[:4], inputs[4].astype(np.float32), **chosen)
    _, cache = squeeze_excite_gate_forward(*inputs, **chosen)
    with pytest.raises(ValueError, match=r"\(2, 1, 1, 4\), not \(1, 1, 1, 4\)"):
        squeeze_excite_gate_backward(np.zeros((1, 1, 1, 4)), cache, **chosen)


def test_more_channels_than_shared_memory_holds_are_refused(compiler):
    C = 6000
    inputs = [np.zeros(shape) for shape in ((1, 1, 1, C), (1, 1, C, 1), (1,), (1, 1, 1, C), (C,))]
    with pytest.raises(ValueError, match="fewer channels than 6000 and 1 squeezed: together"):
        squeeze_excite_gate_forward(*inputs, implementation="cuda_cpu")


# ---------------------------------------------------------------- the layer


def twins(rng):
    """Return the same layer on the host and on the device, with random parameters."""
    layers = [blocks.SqueezeExcite(6, 4, rng=rng).astype(np.float64) for _ in range(2)]
    for (_, array), (_, twin) in zip(*(layer.named_parameters() for layer in layers)):
        array[...] = twin[...] = rng.standard_normal(array.shape)
    return layers[0], layers[1].to(emulated_device)


def test_the_layer_is_the_same_on_a_device_and_adds_to_its_childrens_gradients(rng, compiler):
    host, device = twins(rng)
    for _ in range(2):
        x, dout = rng.standard_normal((2, 2, 5, 7, 6))
        out, on_device = host.forward(x), device.forward(emulated_device.asarray(x))
        assert_agrees(on_device.get(), out)
        assert_agrees(device.backward(emulated_device.asarray(dout)).get(), host.backward(dout))
    for (name, gradient), (_, twin) in zip(host.named_gradients(), device.named_gradients()):
        assert gradient.any(), name
        assert_agrees(twin.get(), gradient)


def test_the_layer_on_a_device_spends_what_it_keeps_and_keeps_nothing_in_inference(rng, compiler):
    _, device = twins(rng)
    x = emulated_device.asarray(rng.standard_normal((1, 3, 4, 6)))
    device.backward(device.forward(x))
    with pytest.raises(BackwardError):
        device.backward(x)
    with inference_mode():
        device.forward(x)
    assert all(layer._cache is None for _, layer in device.named_layers())


def test_the_layer_on_a_device_takes_three_launches_forward_and_four_backward(rng, compiler):
    _, device = twins(rng)
    x = emulated_device.asarray(rng.standard_normal((2, 31, 33, 6)))  # several blocks of an image
    with record_launches() as launches:
        out = device.forward(x)
        assert len(launches) == 3
        device.backward(out)
    assert len(launches) == 3 + 4
