"""Global average and max pooling against torch, ties, padding and all."""

import numpy as np
import pytest
from checks import assert_agrees, assert_finite_differences_agree, frozen, non_contiguous

from minisegnet.ops import (
    global_average_pool_backward,
    global_average_pool_forward,
    max_pool2d_backward,
    max_pool2d_forward,
)

implementations = pytest.mark.parametrize("implementation", ["loops", "numpy"])


@pytest.fixture
def oracle(torch):
    from minisegnet.verify import torch_oracle

    return torch_oracle


# Global average pooling

def test_average_of_four_pixels_and_its_gradient():
    out, cache = global_average_pool_forward(np.array([1.0, 2, 3, 10]).reshape(1, 2, 2, 1))
    assert out.shape == (1, 1, 1, 1) and out.item() == 4
    dx = global_average_pool_backward(np.full((1, 1, 1, 1), 8.0), cache)
    np.testing.assert_array_equal(dx, np.full((1, 2, 2, 1), 2.0))


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 1, 1, 2), (1, 7, 1, 1)], ids=str)
def test_average_matches_torch(oracle, rng, shape):
    x, dout = rng.standard_normal(shape), rng.standard_normal((shape[0], 1, 1, shape[3]))
    out, cache = global_average_pool_forward(non_contiguous(x))
    (expected,), gradients = oracle.gradients(oracle.global_average_pool, {"x": x}, {}, dout)
    assert_agrees(out, expected)
    assert_agrees(global_average_pool_backward(dout, cache), gradients["x"])


def test_average_gradient_is_an_array_of_its_own(rng):
    _, cache = global_average_pool_forward(np.zeros((2, 3, 4, 5), np.float32))
    dout = rng.standard_normal((2, 1, 1, 5)).astype(np.float32)
    dx = global_average_pool_backward(dout, cache)
    dx += 1  # callers add to it in place: no element may stand for several
    np.testing.assert_allclose(dx, np.broadcast_to(dout / 12 + 1, dx.shape), rtol=1e-6)
    assert dx.dtype == np.float32


def test_average_refuses_another_rank():
    with pytest.raises(ValueError, match=r"\(2, 3, 4\)"):
        global_average_pool_forward(np.zeros((2, 3, 4)))


# Max pooling

@implementations
def test_maximum_of_windows_and_its_gradient(implementation):
    x = np.array([[1.0, 5, 2], [4, 3, 9], [7, 8, 6]]).reshape(1, 3, 3, 1)
    out, cache = max_pool2d_forward(x, 2, stride=1, implementation=implementation)
    np.testing.assert_array_equal(out[0, ..., 0], [[5, 9], [8, 9]])
    dout = np.array([[1.0, 2], [3, 4]]).reshape(1, 2, 2, 1)
    dx = max_pool2d_backward(dout, cache, implementation=implementation)
    np.testing.assert_array_equal(dx[0, ..., 0], [[0, 1, 0], [0, 0, 6], [0, 3, 0]])


@implementations
@pytest.mark.parametrize("shape", [(2, 7, 6, 3), (1, 2, 2, 1)], ids=str)
@pytest.mark.parametrize("window", [
    {"kernel_size": 2}, {"kernel_size": 2, "stride": 1, "padding": 1}, {"kernel_size": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1}, {"kernel_size": 5, "stride": 3, "padding": 2},
], ids=str)
@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
def test_maximum_matches_torch(oracle, rng, shape, window, ties, implementation):
    if window["kernel_size"] > shape[1] + 2 * window.get("padding", 0):
        window = {"kernel_size": 2}
    x = rng.integers(-1, 1, shape).astype(float) if ties else rng.standard_normal(shape)
    x = frozen(x)
    out, cache = max_pool2d_forward(non_contiguous(x), implementation=implementation, **window)
    dout = rng.standard_normal(out.shape)
    dx = max_pool2d_backward(non_contiguous(dout), cache, implementation=implementation)
    (expected,), gradients = oracle.gradients(oracle.max_pool2d, {"x": x}, window, dout)
    np.testing.assert_array_equal(out, expected)
    assert_agrees(dx, gradients["x"], 1e-14)


@implementations
def test_maximum_gradient_matches_finite_differences(rng, implementation):
    x, window = rng.standard_normal((2, 5, 4, 2)), {"stride": 2, "padding": 1}
    out, cache = max_pool2d_forward(x, 3, **window, implementation=implementation)
    dout = rng.standard_normal(out.shape)
    dx = max_pool2d_backward(dout, cache, implementation=implementation)
    assert_finite_differences_agree(lambda x: max_pool2d_forward(x, 3, **window)[0], [x], [dx],
                                    dout)


@implementations
@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_infinities_and_nan_are_treated_as_in_torch(oracle, rng, bad, implementation):
    x = rng.standard_normal((1, 4, 4, 1))
    x[0, :2, :2] = bad  # the corner window holds nothing else, and padding
    window = {"kernel_size": 2, "stride": 2, "padding": 1}
    out, cache = max_pool2d_forward(x, implementation=implementation, **window)
    dout = rng.standard_normal(out.shape)
    (expected,), gradients = oracle.gradients(oracle.max_pool2d, {"x": x}, window, dout)
    np.testing.assert_array_equal(out, expected)
    dx = max_pool2d_backward(dout, cache, implementation=implementation)
    np.testing.assert_allclose(dx, gradients["x"], rtol=1e-14)


@implementations
def test_maximum_keeps_float32(rng, implementation):
    x = rng.standard_normal((2, 4, 4, 3)).astype(np.float32)
    out, cache = max_pool2d_forward(x, 2, implementation=implementation)
    dx = max_pool2d_backward(out, cache, implementation=implementation)
    assert out.dtype == dx.dtype == np.float32


@implementations
@pytest.mark.parametrize("shape, window, message", [
    ((4, 4, 1), {"kernel_size": 2}, r"\(4, 4, 1\)"),
    ((1, 4, 4, 1), {"kernel_size": 2, "padding": 2}, "padding 2 for kernel_size 2"),
    ((1, 4, 4, 1), {"kernel_size": 5}, "does not fit"),
    ((1, 4, 4, 1), {"kernel_size": 0}, "kernel_size must"),
    ((1, 4, 4, 1), {"kernel_size": 2, "stride": 0}, "stride must"),
], ids=str)
def test_maximum_refuses_windows_that_do_not_fit(implementation, shape, window, message):
    with pytest.raises(ValueError, match=message):
        max_pool2d_forward(np.zeros(shape), implementation=implementation, **window)


@implementations
def test_maximum_refuses_an_upstream_gradient_of_another_shape(implementation):
    _, cache = max_pool2d_forward(np.zeros((1, 4, 4, 1)), 2, implementation=implementation)
    with pytest.raises(ValueError, match=r"\(1, 2, 2, 1\), not \(1, 4, 4, 1\)"):
        max_pool2d_backward(np.zeros((1, 4, 4, 1)), cache, implementation=implementation)
