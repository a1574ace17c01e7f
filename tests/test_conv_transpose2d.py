"""Transposed convolution: the definition, both matrix-product paths and torch agree."""

import itertools

import numpy as np
import pytest
from checks import assert_agrees, assert_finite_differences_agree, frozen, non_contiguous

from minisegnet.ops import (
    conv2d_backward,
    conv2d_forward,
    conv_transpose2d_backward,
    conv_transpose2d_forward,
)


@pytest.fixture(params=["loops", "numpy"])
def implementation(request):
    return request.param


@pytest.fixture
def oracle(torch):
    from minisegnet.verify import torch_oracle

    return torch_oracle


def draw_inputs(rng, x_shape, kernel, OC, dtype=np.float64):
    KH, KW = kernel
    shapes = (x_shape, (KH, KW, OC, x_shape[3]), (OC,))
    return frozen(*(rng.standard_normal(shape).astype(dtype) for shape in shapes))


def forward_and_gradients(x, weight, bias, upstream_of, implementation, **window):
    out, cache = conv_transpose2d_forward(x, weight, bias, implementation=implementation,
                                          **window)
    dout = upstream_of(out.shape)
    return out, dout, conv_transpose2d_backward(dout, cache, implementation=implementation)


def assert_matches_torch(oracle, rng, inputs, implementation, **window):
    x, weight, bias = inputs
    out, dout, gradients = forward_and_gradients(x, weight, bias, rng.standard_normal,
                                                 implementation, **window)

    def reference(x, weight, bias, **window):
        kernels = weight.permute(3, 2, 0, 1)  # (KH, KW, OC, C) -> (C, OC, KH, KW)
        return oracle.nhwc(oracle.F.conv_transpose2d(oracle.nchw(x), kernels, bias, **window))

    (expected,), expected_gradients = oracle.gradients(
        reference, {"x": x, "weight": weight, "bias": bias}, window, dout)
    assert_agrees(out, expected)
    for gradient, name in zip(gradients, ("x", "weight", "bias")):
        assert_agrees(gradient, expected_gradients[name])


def test_hand_worked_example(implementation):
    x = np.array([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 2, 2, 1)
    weight = np.array([[1.0, 10.0], [100.0, 0.0]]).reshape(2, 2, 1, 1)
    out, cache = conv_transpose2d_forward(x, weight, np.array([5.0]),
                                          implementation=implementation)
    # Each number leaves a copy of the weight, times itself, at its place: at [0, 1] meet
    # 1 * 10 and 2 * 1, at [1, 1] meet 2 * 100, 3 * 10 and 4 * 1; plus the bias.
    np.testing.assert_allclose(out[0, ..., 0], [[6, 17, 25], [108, 239, 45], [305, 405, 5]])

    dout = np.arange(9.0).reshape(1, 3, 3, 1)
    dx, dweight, dbias = conv_transpose2d_backward(dout, cache, implementation=implementation)
    # dx[h, w] = the window of dout at [h, w], weighted: 0*1 + 1*10 + 3*100 = 310, ...
    np.testing.assert_allclose(dx[0, ..., 0], [[310, 421], [643, 754]])
    # dweight[kh, kw] = x times the 2x2 of dout that starts at [kh, kw]
    np.testing.assert_allclose(dweight[..., 0, 0], [[27, 37], [57, 67]])
    np.testing.assert_allclose(dbias, [36])


@pytest.mark.parametrize("kernel", [(1, 1), (2, 2), (3, 3), (2, 3), (4, 4)])
def test_every_window_matches_torch(oracle, rng, kernel, implementation):
    inputs = draw_inputs(rng, (2, 4, 3, 2), kernel, 3)
    for stride, padding in itertools.product((1, 2, 3, 4), (0, 1, 2)):
        if all((size - 1) * stride - 2 * padding + K >= 1 for K, size in zip(kernel, (4, 3))):
            assert_matches_torch(oracle, rng, inputs, implementation, stride=stride,
                                 padding=padding)


@pytest.mark.parametrize("x_shape, kernel, window", [
    ((1, 1, 1, 3), (3, 3), {}),
    ((1, 1, 1, 3), (2, 2), {"stride": 2}),
    ((3, 1, 1, 2), (1, 1), {"stride": 3}),
    ((2, 1, 5, 2), (4, 4), {"padding": 1, "stride": 2}),
    ((1, 2, 3, 20), (3, 3), {"padding": 1, "stride": 2}),  # beyond conv2d's im2col path
], ids=str)
def test_odd_maps_match_torch(oracle, rng, x_shape, kernel, window, implementation):
    assert_matches_torch(oracle, rng, draw_inputs(rng, x_shape, kernel, 16), implementation,
                         **window)


@pytest.mark.parametrize("kernel, window", [((3, 2), {"stride": 2, "padding": 1}),
                                            ((2, 2), {"stride": 2})], ids=str)
def test_gradients_match_finite_differences(rng, implementation, kernel, window):
    inputs = draw_inputs(rng, (2, 3, 2, 2), kernel, 2)
    out, dout, gradients = forward_and_gradients(*inputs, rng.standard_normal, implementation,
                                                 **window)
    assert_finite_differences_agree(lambda *arrays: conv_transpose2d_forward(*arrays, **window)[0],
                                    inputs, gradients, dout)


@pytest.mark.parametrize("kernel, window", [((3, 3), {"stride": 2, "padding": 1}),
                                            ((2, 2), {"stride": 2})], ids=str)
def test_it_is_the_input_gradient_of_the_convolution_with_the_same_weight(
        rng, implementation, kernel, window):
    x, weight, _ = draw_inputs(rng, (2, 4, 3, 2), kernel, 3)
    out, cache = conv_transpose2d_forward(x, weight, implementation=implementation, **window)
    there, convolution = conv2d_forward(rng.standard_normal(out.shape), weight, **window)
    assert there.shape == x.shape
    assert_agrees(out, conv2d_backward(x, convolution)[0])
    dout = rng.standard_normal(out.shape)
    dx, _, dbias = conv_transpose2d_backward(dout, cache, implementation=implementation)
    assert_agrees(dx, conv2d_forward(dout, weight, **window)[0])
    assert dbias is None


@pytest.mark.parametrize("kernel", [(2, 2), (3, 3)])
def test_non_contiguous_inputs_give_the_same_numbers(rng, implementation, kernel):
    inputs = draw_inputs(rng, (2, 4, 3, 3), kernel, 2)
    dout = rng.standard_normal((2, 6 + kernel[0], 4 + kernel[0], 2))
    results = []
    for awkward in (False, True):
        x, weight, bias = map(non_contiguous, inputs) if awkward else inputs
        out, cache = conv_transpose2d_forward(x, weight, bias, stride=2,
                                              implementation=implementation)
        dout_given = non_contiguous(dout) if awkward else dout
        results.append((out, *conv_transpose2d_backward(dout_given, cache,
                                                        implementation=implementation)))
    for plain, awkward in zip(*results):
        assert_agrees(awkward, plain)


@pytest.mark.parametrize("kernel", [(2, 2), (3, 3)])
def test_dtype_is_kept(rng, implementation, kernel):
    x, weight, bias = draw_inputs(rng, (2, 4, 5, 2), kernel, 3, np.float32)
    out, cache = conv_transpose2d_forward(x, weight, bias, stride=2,
                                          implementation=implementation)
    gradients = conv_transpose2d_backward(out, cache, implementation=implementation)
    assert {array.dtype for array in (out, *gradients)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("shapes, window, message", [
    (((4, 4, 2), (3, 3, 1, 2), (1,)), {}, r"\(4, 4, 2\)"),
    (((1, 4, 4, 2), (3, 3, 2, 1), (2,)), {}, "same C"),
    (((1, 4, 4, 2), (3, 3, 5, 2), (2,)), {}, r"bias must be \(OC,\) = \(5,\), not \(2,\)"),
    (((1, 1, 4, 2), (3, 3, 1, 2), (1,)), {"padding": 2}, "padding 2 cuts off all .*less padding"),
    (((1, 4, 4, 2), (3, 3, 1, 2), (1,)), {"stride": 0}, "stride must be a whole number >= 1"),
    (((1, 4, 4, 2), (3, 3, 1, 2), (1,)), {"padding": -1}, "padding must .* -1"),
], ids=str)
def test_bad_shapes_are_refused(shapes, window, message):
    with pytest.raises(ValueError, match=message):
        conv_transpose2d_forward(*map(np.zeros, shapes), **window)


def test_mixed_dtypes_unknown_implementations_and_other_upstreams_are_refused():
    x, weight = np.zeros((1, 3, 3, 2)), np.zeros((2, 2, 1, 2))
    with pytest.raises(TypeError, match="float32 and float64"):
        conv_transpose2d_forward(x.astype(np.float32), weight)
    out, cache = conv_transpose2d_forward(x, weight, stride=2)
    with pytest.raises(ValueError, match=r"\(1, 6, 6, 1\), not \(1, 3, 3, 2\)"):
        conv_transpose2d_backward(x, cache)
    for call in (lambda: conv_transpose2d_forward(x, weight, implementation="fast"),
                 lambda: conv_transpose2d_backward(out, cache, implementation="fast")):
        with pytest.raises(ValueError, match="'fast' is not one of loops, numpy"):
            call()
