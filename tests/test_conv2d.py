"""Convolution: the definition, both matrix-product paths and torch agree, and so do gradients."""

import itertools

import numpy as np
import pytest
from checks import assert_agrees, assert_finite_differences_agree, frozen, non_contiguous

from minisegnet.ops import conv2d, conv2d_backward, conv2d_forward


@pytest.fixture(params=["loops", "im2col", "taps"])
def implementation(request, monkeypatch):
    """Each way to compute it; which of its two paths "numpy" takes depends on the size only."""
    if request.param == "loops":
        return "loops"
    monkeypatch.setattr(conv2d, "IM2COL_MAX_WEIGHTS", 10**9 if request.param == "im2col" else 0)
    return "numpy"


@pytest.fixture
def oracle(torch):
    from minisegnet.verify import torch_oracle

    return torch_oracle


def draw_inputs(rng, x_shape, kernel, OC, dtype=np.float64):
    KH, KW = kernel
    shapes = (x_shape, (KH, KW, x_shape[3], OC), (OC,))
    return frozen(*(rng.standard_normal(shape).astype(dtype) for shape in shapes))


def forward_and_gradients(x, weight, bias, upstream_of, implementation, **window):
    out, cache = conv2d_forward(x, weight, bias, implementation=implementation, **window)
    dout = upstream_of(out.shape)
    return out, dout, conv2d_backward(dout, cache, implementation=implementation)


def assert_matches_torch(oracle, rng, inputs, implementation, **window):
    x, weight, bias = inputs
    out, dout, gradients = forward_and_gradients(x, weight, bias, rng.standard_normal,
                                                 implementation, **window)
    (expected,), expected_gradients = oracle.gradients(
        oracle.conv2d, {"x": x, "weight": weight, "bias": bias}, window, dout)
    assert_agrees(out, expected)
    for gradient, name in zip(gradients, ("x", "weight", "bias")):
        assert_agrees(gradient, expected_gradients[name])


def test_hand_worked_example(implementation):
    x = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]).reshape(1, 3, 3, 1)
    weight = np.array([[1.0, 0.0], [0.0, -1.0]]).reshape(2, 2, 1, 1)
    out, cache = conv2d_forward(x, weight, np.array([10.0]), implementation=implementation)
    # x[i, j] - x[i + 1, j + 1] = -4 everywhere, plus the bias
    np.testing.assert_allclose(out, np.full((1, 2, 2, 1), 6.0), rtol=1e-15)

    dout = np.array([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 2, 2, 1)
    dx, dweight, dbias = conv2d_backward(dout, cache, implementation=implementation)
    np.testing.assert_allclose(dx[0, ..., 0], [[1, 2, 0], [3, 3, -2], [0, -3, -4]])
    # dweight[kh, kw] = sum of dout * the 2x2 of x that starts at (kh, kw)
    np.testing.assert_allclose(dweight[..., 0, 0], [[37, 47], [67, 77]])
    np.testing.assert_allclose(dbias, [10])


@pytest.mark.parametrize("kernel", [(1, 1), (2, 2), (3, 3), (2, 3), (5, 5)])
def test_every_window_matches_torch(oracle, rng, kernel, implementation):
    inputs = draw_inputs(rng, (2, 6, 5, 2), kernel, 3)
    for stride, padding, dilation in itertools.product((1, 2, 3), (0, 1, 3), (1, 2)):
        if implementation == "loops" and (stride + padding + dilation) % 2:
            continue  # the loops are slow: every second window does
        if all(dilation * (K - 1) < size + 2 * padding for K, size in zip(kernel, (6, 5))):
            assert_matches_torch(oracle, rng, inputs, implementation, stride=stride,
                                 padding=padding, dilation=dilation)


@pytest.mark.parametrize("x_shape, kernel, window", [
    ((1, 1, 1, 3), (3, 3), {"padding": 1}),
    ((3, 1, 1, 2), (1, 1), {}),
    ((2, 1, 1, 2), (1, 1), {"stride": 2}),
    ((2, 7, 1, 2), (3, 3), {"padding": 1, "stride": 2}),
    ((1, 3, 4, 2), (3, 3), {"padding": 12, "dilation": 12}),  # all but the centre sees padding
    ((1, 3, 4, 2), (2, 2), {"padding": 3, "dilation": 7}),
], ids=str)
def test_maps_smaller_than_the_kernel_match_torch(oracle, rng, x_shape, kernel, window,
                                                  implementation):
    assert_matches_torch(oracle, rng, draw_inputs(rng, x_shape, kernel, 4), implementation,
                         **window)


def test_gradients_match_finite_differences(rng, implementation):
    window = {"stride": 2, "padding": 2, "dilation": 2}
    inputs = draw_inputs(rng, (2, 4, 3, 2), (3, 2), 2)
    out, dout, gradients = forward_and_gradients(*inputs, rng.standard_normal, implementation,
                                                 **window)
    assert_finite_differences_agree(lambda *arrays: conv2d_forward(*arrays, **window)[0],
                                    inputs, gradients, dout)


def test_non_contiguous_inputs_give_the_same_numbers(rng, implementation):
    inputs = draw_inputs(rng, (2, 5, 4, 3), (3, 3), 2)
    dout = rng.standard_normal((2, 3, 2, 2))
    window = {"stride": 2, "padding": 1}
    results = []
    for awkward in (False, True):
        x, weight, bias = map(non_contiguous, inputs) if awkward else inputs
        out, cache = conv2d_forward(x, weight, bias, implementation=implementation, **window)
        dout_given = non_contiguous(dout) if awkward else dout
        results.append((out, *conv2d_backward(dout_given, cache, implementation=implementation)))
    for plain, awkward in zip(*results):
        assert_agrees(awkward, plain)


@pytest.mark.parametrize("kernel, stride", [((1, 1), 1), ((1, 1), 2), ((3, 3), 1)])
def test_dtype_is_kept(rng, implementation, kernel, stride):
    x, weight, bias = draw_inputs(rng, (2, 4, 5, 2), kernel, 3, np.float32)
    out, cache = conv2d_forward(x, weight, bias, stride=stride, implementation=implementation)
    gradients = conv2d_backward(out, cache, implementation=implementation)
    assert {array.dtype for array in (out, *gradients)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3)])
def test_input_gradient_can_be_left_out(rng, implementation, kernel):
    x, weight, _ = draw_inputs(rng, (2, 4, 5, 2), kernel, 3)
    out, cache = conv2d_forward(x, weight, padding=1, implementation=implementation)
    dx, dweight, dbias = conv2d_backward(out, cache, input_gradient=False,
                                         implementation=implementation)
    _, expected, _ = conv2d_backward(out, cache, implementation=implementation)
    assert dx is None and dbias is None
    assert_agrees(dweight, expected)


@pytest.mark.parametrize("shapes, window, message", [
    (((4, 4, 2), (3, 3, 2, 1), (1,)), {}, r"\(4, 4, 2\)"),
    (((1, 4, 4, 2), (3, 3, 3, 1), (1,)), {}, "same C"),
    (((1, 4, 4, 2), (3, 3, 2, 5), (4,)), {}, r"bias must be \(OC,\) = \(5,\), not \(4,\)"),
    (((1, 4, 4, 2), (5, 5, 2, 1), (1,)), {}, "kernel of 5 .* input of 4.*more padding"),
    (((1, 4, 4, 2), (3, 3, 2, 1), (1,)), {"dilation": 2}, "dilation 2"),
    (((1, 4, 4, 2), (3, 3, 2, 1), (1,)), {"stride": 0}, "stride must be a whole number >= 1"),
    (((1, 4, 4, 2), (3, 3, 2, 1), (1,)), {"padding": -1}, "padding must .* -1"),
    (((1, 4, 4, 2), (3, 3, 2, 1), (1,)), {"stride": 1.5}, "stride must .* 1.5"),
], ids=str)
def test_bad_shapes_are_refused(shapes, window, message):
    with pytest.raises(ValueError, match=message):
        conv2d_forward(*map(np.zeros, shapes), **window)


def test_mixed_or_integer_dtypes_are_refused():
    x, weight = np.zeros((1, 3, 3, 2), np.float32), np.zeros((3, 3, 2, 1))
    with pytest.raises(TypeError, match="float32 and float64"):
        conv2d_forward(x, weight)
    with pytest.raises(TypeError, match="uint8 and uint8"):
        conv2d_forward(x.astype(np.uint8), weight.astype(np.uint8))


def test_an_upstream_gradient_of_another_shape_is_refused():
    _, cache = conv2d_forward(np.zeros((1, 4, 4, 2)), np.zeros((3, 3, 2, 1)))
    with pytest.raises(ValueError, match=r"\(1, 2, 2, 1\), not \(1, 4, 4, 1\)"):
        conv2d_backward(np.zeros((1, 4, 4, 1)), cache)
