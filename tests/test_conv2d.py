"""Convolution: the definition, both matrix-product paths and torch agree, and so do gradients."""

import itertools

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
from minisegnet.cuda.launch import record_launches
from minisegnet.ops import conv2d, conv2d_backward, conv2d_cuda, conv2d_forward


@pytest.fixture(params=["loops", "im2col", "taps", "cuda_cpu direct", "cuda_cpu gemm"])
def implementation(request, monkeypatch):
    """Each way to compute it; which path "numpy" and "cuda" take depends on the size only."""
    if request.param == "loops":
        return "loops"
    if "cuda_cpu" in request.param:
        choose_path(monkeypatch, request.param)
        return "cuda_cpu"
    monkeypatch.setattr(conv2d, "IM2COL_MAX_WEIGHTS", 10**9 if request.param == "im2col" else 0)
    return "numpy"


def choose_path(monkeypatch, path, chunk_pixels=7):
    """Let the kernels follow the definition, or multiply the columns of a few pixels at a time."""
    monkeypatch.setattr(conv2d_cuda, "DIRECT_MAX_WEIGHTS", 10**9 if "direct" in path else 0)
    monkeypatch.setattr(conv2d_cuda, "CHUNK_BYTES", 0)
    monkeypatch.setattr(conv2d_cuda, "CHUNK_PIXELS", chunk_pixels)


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
    ((2, 2, 2, 2), (1, 1), {"stride": 2, "padding": 1}),  # the shape stays, the pixels do not
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


@pytest.mark.parametrize("kernel", [(1, 1), (3, 2)])
def test_given_gradients_are_added_to(rng, implementation, kernel):
    x, weight, bias = draw_inputs(rng, (2, 4, 5, 2), kernel, 3)
    out, cache = conv2d_forward(x, weight, bias, padding=1, implementation=implementation)
    _, *expected = conv2d_backward(out, cache, implementation=implementation)
    given = [rng.standard_normal(gradient.shape) for gradient in expected]
    before = [gradient.copy() for gradient in given]
    _, dweight, dbias = conv2d_backward(out, cache, dweight=given[0], dbias=given[1],
                                        implementation=implementation)
    assert dweight is given[0] and dbias is given[1]
    for now, first, added in zip(given, before, expected):
        assert_agrees(now, first + added)


# ---------------------------------------------------------------- kernels


def run_on_kernels(inputs, dout, window, on=lambda array: array):
    """Return out and the three gradients, from arrays that `on` puts somewhere."""
    x, weight, bias = map(on, inputs)
    implementation = "cuda_cpu" if isinstance(x, np.ndarray) else None
    out, cache = conv2d_forward(x, weight, bias, implementation=implementation, **window)
    return out, *conv2d_backward(on(dout), cache, implementation=implementation)


# A block, a strip, a vector or a chunk is left unfilled by each.
WIDE = {
    "stem": ((2, 19, 17, 3), (3, 3), 16, {"stride": 2, "padding": 1}),
    "decoder": ((2, 9, 11, 33), (3, 3), 12, {"padding": 1}),
    "pointwise": ((3, 7, 9, 40), (1, 1), 36, {}),
    "downsample": ((3, 9, 8, 12), (1, 1), 130, {"stride": 2}),
    "strided": ((3, 10, 9, 8), (5, 3), 7, {"stride": 3, "padding": 2}),
    "atrous": ((2, 8, 13, 20), (3, 3), 5, {"padding": 9, "dilation": 9}),
}


@pytest.fixture(params=["direct", "gemm"])
def path(request, monkeypatch, compiler):
    choose_path(monkeypatch, request.param, chunk_pixels=50)
    return request.param


def draw_wide(rng, name, dtype=np.float64):
    x_shape, kernel, OC, window = WIDE[name]
    inputs = draw_inputs(rng, x_shape, kernel, OC, dtype)
    shape = conv2d_forward(*inputs, **window)[0].shape
    return inputs, rng.standard_normal(shape).astype(dtype), window


def by_torch(oracle, inputs, dout, window):
    named = dict(zip(("x", "weight", "bias"), inputs))
    (out,), gradients = oracle.gradients(oracle.conv2d, named, window, dout)
    return out, *(gradients[name] for name in named)


@pytest.mark.parametrize("name", WIDE)
def test_kernels_match_torch_over_many_blocks(oracle, rng, path, name):
    inputs, dout, window = draw_wide(rng, name, np.float32)
    in_float64 = [array.astype(np.float64) for array in inputs], dout.astype(np.float64), window
    exact = by_torch(oracle, *in_float64)
    for actual, expected in zip(run_on_kernels(*in_float64), exact):
        assert_agrees(actual, expected)
    for actual, *judges in zip(run_on_kernels(inputs, dout, window), exact,
                               by_torch(oracle, inputs, dout, window)):
        assert_float32_accurate(actual, *judges)


@pytest.mark.parametrize("name", ["stem", "strided", "atrous"])
def test_the_order_of_threads_changes_no_bit(rng, path, name):
    inputs, dout, window = draw_wide(rng, name, np.float32)
    expected = run_on_kernels(inputs, dout, window)
    for order in ("reverse", "random"):
        with emulator.fiber_order(order):
            for actual, one in zip(run_on_kernels(inputs, dout, window), expected):
                np.testing.assert_array_equal(actual, one)


@pytest.mark.parametrize("name", WIDE)
def test_a_device_gives_the_same_bits_and_repeats_them(rng, path, name):
    inputs, dout, window = draw_wide(rng, name, np.float32)
    expected = run_on_kernels(inputs, dout, window)
    with record_launches() as launches:
        results = run_on_kernels(inputs, dout, window, emulated_device.asarray)
    for actual, one in zip(results, expected):
        np.testing.assert_array_equal(actual.get(), one)
    # Again from memory full of NaN: every number is written by some launch.
    for array in results:
        array.host.fill(np.nan)
    for launch in launches:
        launch()
    for actual, one in zip(results, expected):
        np.testing.assert_array_equal(actual.get(), one)


def test_activations_in_16_bits_with_weights_in_32(rng, path):
    for name in WIDE:
        inputs, dout, window = draw_wide(rng, name, np.float32)
        (x, weight, bias), half = inputs, np.float16
        out = conv2d.conv2d_forward_cuda(x.astype(half), weight, bias, *window_of(window))
        dweight, dbias = np.zeros_like(weight), np.zeros_like(bias)
        cache = conv2d.Conv2dCache(x.astype(half), weight, True, *window_of(window))
        dx = conv2d.conv2d_backward_cuda(dout.astype(half), cache, True, dweight, dbias)
        assert out.dtype == dx.dtype == half and dweight.dtype == np.float32
        for actual, one in zip((out, dx, dweight, dbias), run_on_kernels(inputs, dout, window)):
            assert_agrees(actual, one, 2e-3)


def window_of(window):
    return [window.get(name, least) for name, least in
            (("stride", 1), ("padding", 0), ("dilation", 1))]


def launched(x_shape, kernel, OC, window, *, input_gradient=True):
    """The names of what a convolution on a device launches."""
    x, weight = (emulated_device.zeros(shape, np.float32)
                 for shape in (x_shape, (*kernel, x_shape[3], OC)))
    dweight = emulated_device.zeros(weight.shape, np.float32)
    with record_launches() as launches:
        out, cache = conv2d_forward(x, weight, **window)
        conv2d_backward(out, cache, input_gradient=input_gradient, dweight=dweight)
    return [launch.name for launch in launches]


def test_the_path_fits_the_shape(compiler):
    # The first layer of a network: the definition, and no gradient of the picture.
    assert launched((1, 8, 8, 3), (3, 3), 16, {"stride": 2, "padding": 1},
                    input_gradient=False) == [
        "conv2d_forward_kernel<4>", "conv2d_backward_weight_kernel<4>", "conv2d_sum_kernel"]
    # 1x1: matrix products alone; and so is an atrous kernel of which only the centre sees the map.
    assert launched((2, 4, 4, 8), (1, 1), 6, {}) == ["gemm"] * 3
    assert launched((2, 4, 4, 8), (3, 3), 6, {"padding": 4, "dilation": 4}) == ["gemm"] * 3
    # The products of one chunk each, and the kernel turned once.
    im2col = ["conv2d_im2col_kernel<4>", "gemm"]
    assert launched((2, 4, 4, 8), (3, 3), 4, {"padding": 1}) == [
        *im2col * 2, "conv2d_turn_kernel", *im2col]
    assert launched((2, 4, 4, 8), (3, 3), 4, {"padding": 1, "stride": 2}) == [
        *im2col * 2, "gemm", "conv2d_col2im_kernel<4>"]


def test_columns_come_in_chunks_that_fit_the_cache(compiler, monkeypatch):
    monkeypatch.setattr(conv2d_cuda, "CHUNK_PIXELS", 10)
    monkeypatch.setattr(conv2d_cuda, "CHUNK_BYTES", 4 * 9 * 8 * 12)  # of twelve pixels
    names = launched((1, 6, 6, 8), (3, 3), 4, {"padding": 1})
    # 36 pixels: of x forward and backward, then of dout, which has half the channels.
    assert names.count("conv2d_im2col_kernel<4>") == 3 + 3 + 2
    assert [(s.start, s.stop) for s in conv2d_cuda.chunks(25, 1000, least=10)] == [
        (0, 9), (9, 18), (18, 25)]


def test_a_gradient_to_add_to_must_not_have_gaps(compiler):
    x, weight = np.zeros((1, 4, 4, 2)), np.zeros((1, 1, 2, 3))
    out, cache = conv2d_forward(x, weight, implementation="cuda_cpu")
    with pytest.raises(ValueError, match="gaps"):
        conv2d_backward(out, cache, dweight=np.zeros((1, 1, 2, 6))[..., ::2],
                        implementation="cuda_cpu")
