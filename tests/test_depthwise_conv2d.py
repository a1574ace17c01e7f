"""Depthwise convolution: the definition, the NumPy paths and torch agree."""

import itertools

import numpy as np
import pytest
from checks import assert_agrees, assert_finite_differences_agree, frozen, non_contiguous

from minisegnet.ops import (
    conv2d_forward,
    depthwise_conv2d_backward,
    depthwise_conv2d_forward,
)

pytestmark = pytest.mark.parametrize("implementation", ["loops", "numpy", "cuda_cpu"])


@pytest.fixture
def oracle(torch):
    from minisegnet.verify import torch_oracle

    return torch_oracle


def draw_inputs(rng, x_shape, kernel, dtype=np.float64):
    return frozen(rng.standard_normal(x_shape).astype(dtype),
                  rng.standard_normal((*kernel, x_shape[3])).astype(dtype))


def assert_matches_torch(oracle, rng, x, weight, implementation, **window):
    out, cache = depthwise_conv2d_forward(x, weight, implementation=implementation, **window)
    dout = rng.standard_normal(out.shape)
    dx, dweight = depthwise_conv2d_backward(dout, cache, implementation=implementation)
    (expected,), gradients = oracle.gradients(
        oracle.depthwise_conv2d, {"x": x, "weight": weight}, window, dout)
    assert_agrees(out, expected)
    assert_agrees(dx, gradients["x"])
    assert_agrees(dweight, gradients["weight"])


def test_hand_worked_example(implementation):
    # Each channel sees its own kernel only: (1, -1) for the first, (0, 2) for the second.
    x = np.array([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]]).reshape(1, 1, 3, 2)
    weight = np.array([[1.0, 0.0], [-1.0, 2.0]]).reshape(1, 2, 2)
    out, cache = depthwise_conv2d_forward(x, weight, implementation=implementation)
    np.testing.assert_allclose(out[0, 0], [[-1, 40], [-2, 80]])
    dout = np.array([[1.0, 1.0], [10.0, 10.0]]).reshape(1, 1, 2, 2)
    dx, dweight = depthwise_conv2d_backward(dout, cache, implementation=implementation)
    np.testing.assert_allclose(dx[0, 0], [[1, 0], [9, 2], [-10, 20]])
    np.testing.assert_allclose(dweight[0], [[21, 210], [42, 420]])


@pytest.mark.parametrize("kernel", [(1, 1), (2, 2), (3, 3), (5, 5), (3, 2)])
def test_every_window_matches_torch(oracle, rng, kernel, implementation):
    x, weight = draw_inputs(rng, (2, 6, 5, 3), kernel)
    for stride, padding, dilation in itertools.product((1, 2, 3), (0, 1, 2, 5), (1, 2, 3)):
        if implementation == "loops" and (stride + padding + dilation) % 2:
            continue  # the loops are slow: every second window does
        if all(dilation * (K - 1) < size + 2 * padding for K, size in zip(kernel, (6, 5))):
            assert_matches_torch(oracle, rng, x, weight, implementation, stride=stride,
                                 padding=padding, dilation=dilation)


@pytest.mark.parametrize("x_shape, window", [
    ((1, 1, 1, 4), {"padding": 1}),
    ((3, 1, 5, 1), {"padding": 1, "stride": 2}),
    ((1, 2, 3, 2), {"padding": 6, "dilation": 6}),  # all but the centre sees padding
], ids=str)
def test_maps_smaller_than_the_kernel_match_torch(oracle, rng, x_shape, window, implementation):
    assert_matches_torch(oracle, rng, *draw_inputs(rng, x_shape, (3, 3)), implementation,
                         **window)


@pytest.mark.parametrize("window", [{"padding": 1}, {"stride": 2, "padding": 2, "dilation": 2}],
                         ids=str)
def test_gradients_match_finite_differences(rng, implementation, window):
    inputs = draw_inputs(rng, (2, 4, 3, 2), (3, 3))
    out, cache = depthwise_conv2d_forward(*inputs, implementation=implementation, **window)
    dout = rng.standard_normal(out.shape)
    gradients = depthwise_conv2d_backward(dout, cache, implementation=implementation)
    assert_finite_differences_agree(lambda *arrays: depthwise_conv2d_forward(*arrays, **window)[0],
                                    inputs, gradients, dout)


def test_it_is_a_dense_convolution_with_a_diagonal_kernel(rng, implementation):
    x, weight = draw_inputs(rng, (1, 5, 4, 3), (3, 3))
    dense = np.zeros((3, 3, 3, 3))
    dense[:, :, range(3), range(3)] = weight
    out, _ = depthwise_conv2d_forward(x, weight, padding=1, implementation=implementation)
    assert_agrees(out, conv2d_forward(x, dense, padding=1)[0])


@pytest.mark.parametrize("stride", [1, 2])
def test_non_contiguous_inputs_give_the_same_numbers(rng, implementation, stride):
    x, weight = draw_inputs(rng, (2, 5, 4, 3), (3, 3))
    window = {"stride": stride, "padding": 1}
    out, cache = depthwise_conv2d_forward(x, weight, implementation=implementation, **window)
    dout = rng.standard_normal(out.shape)
    expected = depthwise_conv2d_backward(dout, cache, implementation=implementation)
    awkward, cache = depthwise_conv2d_forward(non_contiguous(x), non_contiguous(weight),
                                              implementation=implementation, **window)
    assert_agrees(awkward, out)
    for actual, gradient in zip(
            depthwise_conv2d_backward(non_contiguous(dout), cache, implementation=implementation),
            expected):
        assert_agrees(actual, gradient)


@pytest.mark.parametrize("stride", [1, 2])
def test_dtype_is_kept(rng, implementation, stride):
    x, weight = draw_inputs(rng, (2, 4, 5, 2), (3, 3), np.float32)
    out, cache = depthwise_conv2d_forward(x, weight, stride=stride, padding=1,
                                          implementation=implementation)
    gradients = depthwise_conv2d_backward(out, cache, implementation=implementation)
    assert {array.dtype for array in (out, *gradients)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("shapes, window, message", [
    (((4, 4, 2), (3, 3, 2)), {}, r"\(4, 4, 2\)"),
    (((1, 4, 4, 2), (3, 3, 3)), {}, "same C"),
    (((1, 4, 4, 2), (3, 3, 2, 1)), {}, r"weight \(KH, KW, C\)"),
    (((1, 4, 4, 2), (5, 5, 2)), {}, "does not fit"),
    (((1, 4, 4, 2), (3, 3, 2)), {"dilation": 0}, "dilation must"),
], ids=str)
def test_bad_shapes_are_refused(implementation, shapes, window, message):
    with pytest.raises(ValueError, match=message):
        depthwise_conv2d_forward(*map(np.zeros, shapes), implementation=implementation, **window)


def test_mixed_dtypes_are_refused(implementation):
    with pytest.raises(TypeError, match="float64 and float32"):
        depthwise_conv2d_forward(np.zeros((1, 3, 3, 2)), np.zeros((3, 3, 2), np.float32),
                                 implementation=implementation)


def test_an_upstream_gradient_of_another_shape_is_refused(implementation):
    _, cache = depthwise_conv2d_forward(np.zeros((1, 4, 4, 2)), np.zeros((3, 3, 2)),
                                        implementation=implementation)
    with pytest.raises(ValueError, match=r"\(1, 2, 2, 2\), not \(1, 4, 4, 2\)"):
        depthwise_conv2d_backward(np.zeros((1, 4, 4, 2)), cache, implementation=implementation)
