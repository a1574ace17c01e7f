"""A gate per channel: the definition, NumPy, the kernels and torch agree."""

import numpy as np
import pytest
from checks import (
    assert_agrees,
    assert_finite_differences_agree,
    assert_float32_accurate,
    frozen,
    non_contiguous,
)

from minisegnet.cuda import emulated_device, emulator
from minisegnet.ops import (
    channel_scale_backward,
    channel_scale_backward_gate,
    channel_scale_backward_input,
    channel_scale_forward,
)

implementations = pytest.mark.parametrize("implementation", ["loops", "numpy", "cuda_cpu"])
# One block, several blocks of one image, several groups of channels, C = 1, odd, a multiple of 4.
SHAPES = [(2, 3, 4, 5), (1, 1, 1, 1), (3, 25, 31, 16), (1, 9, 5, 33), (2, 4, 3, 140),
          (2, 61, 67, 1), (70, 5, 5, 72), (1, 41, 60, 33)]


def draw(rng, shape, dtype=np.float64):
    """Return x, gate and dout for maps of a shape."""
    small = (shape[0], 1, 1, shape[3])
    return frozen(*(rng.standard_normal(s).astype(dtype) for s in (shape, small, shape)))


def torch_results(torch, x, gate, dout):
    """Return torch's out, dx and dgate: its broadcasting does the same."""
    tx, tgate = (torch.tensor(array, requires_grad=True) for array in (x, gate))
    out = tx * tgate
    out.backward(torch.tensor(dout))
    return [array.numpy() for array in (out.detach(), tx.grad, tgate.grad)]


def results(x, gate, dout, implementation):
    out, cache = channel_scale_forward(x, gate, implementation=implementation)
    return [out, *channel_scale_backward(dout, cache, implementation=implementation)]


@implementations
def test_hand_worked_example(implementation):
    x = np.array([[1.0, 2], [3, 4]]).reshape(1, 2, 1, 2)
    gate = np.array([10.0, 0]).reshape(1, 1, 1, 2)
    dout = np.array([[1.0, 1], [1, 5]]).reshape(1, 2, 1, 2)
    out, dx, dgate = results(x, gate, dout, implementation)
    np.testing.assert_array_equal(out[0, :, 0], [[10, 0], [30, 0]])
    np.testing.assert_array_equal(dx[0, :, 0], [[10, 0], [10, 0]])
    np.testing.assert_array_equal(dgate[0, 0, 0], [1 + 3, 2 + 20])


@implementations
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_all_gradients_match_torch(torch, rng, shape, implementation):
    if implementation == "loops" and np.prod(shape) > 2000:
        shape = (2, 3, 2, shape[3])  # the loops are slow
    inputs = draw(rng, shape)
    for found, expected in zip(results(*inputs, implementation), torch_results(torch, *inputs)):
        assert_agrees(found, expected)


@implementations
@pytest.mark.parametrize("shape", SHAPES[:5], ids=str)
def test_each_gradient_alone_and_with_that_of_the_mean(torch, rng, shape, implementation):
    if implementation == "loops" and np.prod(shape) > 2000:
        shape = (2, 3, 2, shape[3])
    x, gate, dout = inputs = draw(rng, shape)
    dmean = frozen(rng.standard_normal(gate.shape))
    chosen = {"implementation": implementation}
    _, cache = channel_scale_forward(x, gate, **chosen)
    _, dx, dgate = torch_results(torch, *inputs)
    assert_agrees(channel_scale_backward_gate(dout, cache, **chosen), dgate)
    assert_agrees(channel_scale_backward_input(dout, cache, **chosen), dx)
    tx = torch.tensor(x, requires_grad=True)
    tx.mean(dim=(1, 2), keepdim=True).backward(torch.tensor(dmean))
    assert_agrees(channel_scale_backward_input(dout, cache, dmean=dmean, **chosen),
                  dx + tx.grad.numpy())
    assert_agrees(channel_scale_backward_input(dout, cache, dmean=non_contiguous(dmean), **chosen),
                  dx + tx.grad.numpy())


@implementations
@pytest.mark.parametrize("shape", [(2, 9, 7, 3), (2, 9, 7, 8)], ids=str)
def test_float32_is_kept_and_as_accurate_as_torch(torch, rng, shape, implementation):
    inputs = draw(rng, shape, np.float32)
    exact = torch_results(torch, *(array.astype(np.float64) for array in inputs))
    rough = torch_results(torch, *inputs)
    for arrays in zip(results(*inputs, implementation), exact, rough):
        assert_float32_accurate(*arrays)


@implementations
def test_gradients_match_finite_differences(rng, implementation):
    x, gate, dout = draw(rng, (2, 3, 2, 4))
    _, *gradients = results(x, gate, dout, implementation)
    assert_finite_differences_agree(lambda *arrays: channel_scale_forward(*arrays)[0], [x, gate],
                                    gradients, dout)


@implementations
def test_non_contiguous_inputs_give_the_same_numbers(rng, implementation):
    inputs = draw(rng, (2, 5, 4, 3))
    awkward = results(*map(non_contiguous, inputs), implementation)
    for found, expected in zip(awkward, results(*inputs, implementation)):
        assert_agrees(found, expected)


@pytest.mark.parametrize("shape", [(2, 30, 33, 4), (1, 5, 7, 5)], ids=str)
def test_kernels_give_the_same_bits_on_a_device_and_in_every_order_of_threads(rng, compiler,
                                                                              shape):
    inputs = draw(rng, shape, np.float32)
    expected = results(*inputs, "cuda_cpu")
    for found, result in zip(results(*map(emulated_device.asarray, inputs), None), expected):
        np.testing.assert_array_equal(found.get(), result)
    for order in ("reverse", "random"):
        with emulator.fiber_order(order):
            again = results(*inputs, "cuda_cpu")
        for found, result in zip(again, expected):
            np.testing.assert_array_equal(found, result)


@implementations
def test_what_does_not_fit_is_refused(implementation):
    x, gate = np.zeros((2, 4, 3, 5)), np.zeros((2, 1, 1, 5))
    for bad in ((x, np.zeros((1, 1, 1, 5))), (x, gate[0]), (x[0], gate), (x, x), (x[:, :0], gate)):
        with pytest.raises(ValueError, match=r"gate \(N, 1, 1, C\), not"):
            channel_scale_forward(*bad, implementation=implementation)
    with pytest.raises(TypeError, match="float64 and float32"):
        channel_scale_forward(x, gate.astype(np.float32), implementation=implementation)
    _, cache = channel_scale_forward(x, gate, implementation=implementation)
    for backward in (channel_scale_backward, channel_scale_backward_gate,
                     channel_scale_backward_input):
        with pytest.raises(ValueError, match=r"\(2, 4, 3, 5\), not \(2, 3, 4, 5\)"):
            backward(np.zeros((2, 3, 4, 5)), cache, implementation=implementation)
    with pytest.raises(ValueError, match=r"dmean.*\(2, 1, 1, 5\), not \(2, 5\)"):
        channel_scale_backward_input(x, cache, dmean=gate[:, 0, 0], implementation=implementation)


def test_an_unknown_implementation_is_refused():
    with pytest.raises(ValueError, match="'fast' is not one of loops, numpy, cuda, cuda_cpu"):
        channel_scale_forward(np.zeros((1, 2, 2, 1)), np.zeros((1, 1, 1, 1)),
                              implementation="fast")
