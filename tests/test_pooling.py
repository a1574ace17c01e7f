"""Global average and max pooling against torch, ties, padding and all."""

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
    global_average_pool_backward,
    global_average_pool_forward,
    max_pool2d_backward,
    max_pool2d_forward,
    repeat_pixels_backward,
    repeat_pixels_forward,
)

implementations = pytest.mark.parametrize("implementation", ["loops", "numpy", "cuda_cpu"])
without_loops = pytest.mark.parametrize("implementation", ["numpy", "cuda_cpu"])
# One block, several blocks of one image, several groups of channels, C = 1, odd, a multiple of 4.
SHAPES = [(2, 3, 4, 5), (1, 1, 1, 2), (1, 7, 1, 1), (2, 61, 67, 1), (3, 25, 31, 16), (1, 9, 5, 33),
          (2, 3, 3, 140), (2, 4, 5, 201), (1, 70, 3, 12), (130, 5, 5, 3), (1, 41, 60, 33)]


@pytest.fixture
def oracle(torch):
    from minisegnet.verify import torch_oracle

    return torch_oracle


# Global average pooling

@without_loops
def test_average_of_four_pixels_and_its_gradient(implementation):
    out, cache = global_average_pool_forward(np.array([1.0, 2, 3, 10]).reshape(1, 2, 2, 1),
                                             implementation=implementation)
    assert out.shape == (1, 1, 1, 1) and out.item() == 4
    dx = global_average_pool_backward(np.full((1, 1, 1, 1), 8.0), cache,
                                      implementation=implementation)
    np.testing.assert_array_equal(dx, np.full((1, 2, 2, 1), 2.0))


@without_loops
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_average_matches_torch(oracle, rng, shape, implementation):
    x, dout = rng.standard_normal(shape), rng.standard_normal((shape[0], 1, 1, shape[3]))
    out, cache = global_average_pool_forward(non_contiguous(x), implementation=implementation)
    (expected,), gradients = oracle.gradients(oracle.global_average_pool, {"x": x}, {}, dout)
    assert_agrees(out, expected)
    assert_agrees(global_average_pool_backward(non_contiguous(dout), cache,
                                               implementation=implementation), gradients["x"])


@without_loops
@pytest.mark.parametrize("shape", [(2, 61, 67, 3), (3, 25, 31, 16)], ids=str)
def test_average_in_float32_is_as_accurate_as_torch(torch, rng, shape, implementation):
    x = rng.standard_normal(shape).astype(np.float32) + 10
    out, _ = global_average_pool_forward(x, implementation=implementation)
    rough = torch.tensor(x).mean(dim=(1, 2), keepdim=True).numpy()
    assert_float32_accurate(out, x.astype(float).mean(axis=(1, 2), keepdims=True), rough)


@without_loops
def test_average_gradient_is_an_array_of_its_own(rng, implementation):
    _, cache = global_average_pool_forward(np.zeros((2, 3, 4, 5), np.float32))
    dout = rng.standard_normal((2, 1, 1, 5)).astype(np.float32)
    dx = global_average_pool_backward(dout, cache, implementation=implementation)
    dx += 1  # callers add to it in place: no element may stand for several
    np.testing.assert_allclose(dx, np.broadcast_to(dout / 12 + 1, dx.shape), rtol=1e-6)
    assert dx.dtype == np.float32


@without_loops
@pytest.mark.parametrize("shape", SHAPES[::3], ids=str)
def test_average_gradient_is_added_to_another(rng, shape, implementation):
    dout, other = rng.standard_normal((shape[0], 1, 1, shape[3])), rng.standard_normal(shape)
    expected = other + global_average_pool_backward(dout, shape)
    dx = global_average_pool_backward(dout, shape, add_to=other, implementation=implementation)
    assert dx is other
    np.testing.assert_array_equal(dx, expected)


def test_average_gradient_is_not_added_to_another_shape_or_dtype():
    dout = np.zeros((1, 1, 1, 3))
    with pytest.raises(ValueError, match=r"add_to has shape \(1, 2, 3, 3\)"):
        global_average_pool_backward(dout, (1, 3, 2, 3), add_to=np.zeros((1, 2, 3, 3)))
    with pytest.raises(TypeError, match="float32"):
        global_average_pool_backward(dout, (1, 3, 2, 3), add_to=np.zeros((1, 3, 2, 3), "float32"))


def test_average_refuses_another_rank():
    with pytest.raises(ValueError, match=r"\(2, 3, 4\)"):
        global_average_pool_forward(np.zeros((2, 3, 4)))


def test_average_of_no_pixels_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 0, 4, 3\)"):
        global_average_pool_forward(np.zeros((2, 0, 4, 3)))


# Repeating a pixel

@without_loops
def test_a_pixel_is_repeated_and_its_gradients_add_up(implementation):
    x = np.array([[1.0, 2], [3, 4]]).reshape(2, 1, 1, 2)
    out, cache = repeat_pixels_forward(x, (1, 3), implementation=implementation)
    np.testing.assert_array_equal(out[:, 0, :, 0], [[1, 1, 1], [3, 3, 3]])
    dout = np.arange(12.0).reshape(2, 1, 3, 2)
    dx = repeat_pixels_backward(dout, cache, implementation=implementation)
    np.testing.assert_array_equal(dx[:, 0, 0], [[0 + 2 + 4, 1 + 3 + 5], [6 + 8 + 10, 7 + 9 + 11]])


@without_loops
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_repeating_is_resizing_one_pixel(oracle, rng, shape, implementation):
    N, H, W, C = shape
    x, dout = rng.standard_normal((N, 1, 1, C)), rng.standard_normal(shape)
    out, cache = repeat_pixels_forward(non_contiguous(x), (H, W), implementation=implementation)
    dx = repeat_pixels_backward(non_contiguous(dout), cache, implementation=implementation)
    (expected,), gradients = oracle.gradients(oracle.upsample_bilinear, {"x": x},
                                              {"size": (H, W)}, dout)
    assert_agrees(out, expected)
    assert_agrees(dx, gradients["x"])


@without_loops
def test_repeating_refuses_other_shapes_and_sizes(implementation):
    x = np.zeros((2, 1, 1, 3))
    with pytest.raises(ValueError, match=r"\(2, 1, 2, 3\)"):
        repeat_pixels_forward(np.zeros((2, 1, 2, 3)), (4, 4), implementation=implementation)
    with pytest.raises(ValueError, match=r"\(0, 4\)"):
        repeat_pixels_forward(x, (0, 4), implementation=implementation)
    _, cache = repeat_pixels_forward(x, (4, 5), implementation=implementation)
    with pytest.raises(ValueError, match=r"\(2, 4, 5, 3\), not \(2, 5, 4, 3\)"):
        repeat_pixels_backward(np.zeros((2, 5, 4, 3)), cache, implementation=implementation)


# Pooling and repeating on a device

def every_result(x, dout, small, **chosen):
    """Return what every function here makes of maps x, dout, small (N, 1, 1, C)."""
    mean, cache = global_average_pool_forward(x, **chosen)
    repeated, repeat_cache = repeat_pixels_forward(small, x.shape[1:3], **chosen)
    largest, max_cache = max_pool2d_forward(x, 3, stride=2, padding=1, **chosen)
    return [mean, global_average_pool_backward(small, cache, **chosen),
            global_average_pool_backward(small, cache, add_to=x.copy(), **chosen),
            repeated, repeat_pixels_backward(dout, repeat_cache, **chosen),
            largest, max_cache.winner, max_pool2d_backward(largest, max_cache, **chosen)]


@pytest.mark.parametrize("shape", [(2, 35, 33, 4), (1, 5, 7, 5)], ids=str)
def test_kernels_give_the_same_bits_on_a_device_and_in_every_order_of_threads(rng, compiler,
                                                                              shape):
    x, dout = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    small = rng.standard_normal((shape[0], 1, 1, shape[3])).astype(np.float32)
    expected = every_result(x, dout, small, implementation="cuda_cpu")
    on_device = every_result(*map(emulated_device.asarray, (x, dout, small)))
    for found, result in zip(on_device, expected, strict=True):
        np.testing.assert_array_equal(found.get(), result)
    for order in ("reverse", "random"):
        with emulator.fiber_order(order):
            again = every_result(x, dout, small, implementation="cuda_cpu")
        for found, result in zip(again, expected, strict=True):
            np.testing.assert_array_equal(found, result)


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
@pytest.mark.parametrize("shape", [(2, 7, 6, 3), (1, 2, 2, 1), (1, 9, 8, 8)], ids=str)
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
@pytest.mark.parametrize("values", [[9, np.nan], [np.nan, 9], [np.nan, 9, np.nan, -np.inf]],
                         ids=str)
def test_nan_wins_wherever_it_stands_in_the_window(oracle, rng, values, implementation):
    x = np.array(values).reshape(1, 1, -1, 1).repeat(len(values), axis=1)
    out, cache = max_pool2d_forward(x, len(values), implementation=implementation)
    dout = rng.standard_normal(out.shape)
    (expected,), gradients = oracle.gradients(oracle.max_pool2d, {"x": x},
                                              {"kernel_size": len(values)}, dout)
    np.testing.assert_array_equal(out, expected)
    dx = max_pool2d_backward(dout, cache, implementation=implementation)
    np.testing.assert_array_equal(dx, gradients["x"])


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
    ((1, 182, 182, 1), {"kernel_size": 182}, "kernel_size must .* at most 181, not 182"),
    ((1, 4, 4, 1), {"kernel_size": 2, "stride": 0}, "stride must"),
], ids=str)
def test_maximum_refuses_windows_that_do_not_fit(implementation, shape, window, message):
    with pytest.raises(ValueError, match=message):
        max_pool2d_forward(np.zeros(shape), implementation=implementation, **window)


@pytest.mark.parametrize("implementation", ["numpy", "cuda_cpu"])
def test_the_largest_window_has_numbers_for_all_its_pixels(implementation):
    x = np.zeros((1, 181, 181, 1))
    x[0, -1, -1] = 1
    out, cache = max_pool2d_forward(x, 181, implementation=implementation)
    assert (max_pool2d_backward(out, cache, implementation=implementation) == x).all()


@implementations
def test_maximum_refuses_an_upstream_gradient_of_another_shape(implementation):
    _, cache = max_pool2d_forward(np.zeros((1, 4, 4, 1)), 2, implementation=implementation)
    with pytest.raises(ValueError, match=r"\(1, 2, 2, 1\), not \(1, 4, 4, 1\)"):
        max_pool2d_backward(np.zeros((1, 4, 4, 1)), cache, implementation=implementation)
