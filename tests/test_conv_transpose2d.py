"""Transposed convolution: the definition, both matrix-product paths and torch agree."""

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
from minisegnet.ops import (
    conv2d_backward,
    conv2d_cuda,
    conv2d_forward,
    conv_transpose2d,
    conv_transpose2d_backward,
    conv_transpose2d_forward,
)


@pytest.fixture(params=["loops", "numpy", "cuda_cpu"])
def implementation(request, monkeypatch):
    if request.param == "cuda_cpu":
        small_chunks(monkeypatch)
    return request.param


def small_chunks(monkeypatch):
    """Let the kernels work on a few rows or pixels at a time."""
    monkeypatch.setattr(conv2d_cuda, "CHUNK_BYTES", 500)
    monkeypatch.setattr(conv2d_cuda, "CHUNK_PIXELS", 5)


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


def by_torch(oracle, inputs, dout, window):
    """Return out and the three gradients."""
    def reference(x, weight, bias, **window):
        kernels = weight.permute(3, 2, 0, 1)  # (KH, KW, OC, C) -> (C, OC, KH, KW)
        return oracle.nhwc(oracle.F.conv_transpose2d(oracle.nchw(x), kernels, bias, **window))

    named = dict(zip(("x", "weight", "bias"), inputs))
    (out,), gradients = oracle.gradients(reference, named, window, dout)
    return out, *(gradients[name] for name in named)


def assert_matches_torch(oracle, rng, inputs, implementation, **window):
    out, dout, gradients = forward_and_gradients(*inputs, rng.standard_normal, implementation,
                                                 **window)
    for actual, expected in zip((out, *gradients), by_torch(oracle, inputs, dout, window)):
        assert_agrees(actual, expected)


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


@pytest.mark.parametrize("kernel", [(2, 2), (3, 3)])
def test_given_gradients_are_added_to(rng, implementation, kernel):
    x, weight, bias = draw_inputs(rng, (2, 4, 5, 2), kernel, 3)
    out, cache = conv_transpose2d_forward(x, weight, bias, stride=2,
                                          implementation=implementation)
    _, *expected = conv_transpose2d_backward(out, cache, implementation=implementation)
    given = [rng.standard_normal(gradient.shape) for gradient in expected]
    before = [gradient.copy() for gradient in given]
    _, dweight, dbias = conv_transpose2d_backward(out, cache, dweight=given[0], dbias=given[1],
                                                  implementation=implementation)
    assert dweight is given[0] and dbias is given[1]
    for now, first, added in zip(given, before, expected):
        assert_agrees(now, first + added)


# ---------------------------------------------------------------- kernels


def run_on_kernels(inputs, dout, window, on=lambda array: array):
    """Return out and the three gradients, from arrays that `on` puts somewhere."""
    x, weight, bias = map(on, inputs)
    implementation = "cuda_cpu" if isinstance(x, np.ndarray) else None
    out, cache = conv_transpose2d_forward(x, weight, bias, implementation=implementation, **window)
    return out, *conv_transpose2d_backward(on(dout), cache, implementation=implementation)


WIDE = {
    "unet": ((2, 9, 11, 24), (2, 2), 12, {"stride": 2}),
    "odd": ((2, 7, 9, 5), (3, 3), 7, {"stride": 3}),
    "overlapping": ((2, 9, 7, 8), (4, 4), 33, {"stride": 2, "padding": 1}),
    "stride 1": ((2, 9, 7, 6), (3, 3), 8, {"padding": 1}),
    "pointwise": ((2, 9, 7, 6), (1, 1), 9, {}),
}


@pytest.fixture
def wide(rng, compiler, monkeypatch):
    """A function that draws inputs, dout and the window of a name in WIDE."""
    small_chunks(monkeypatch)

    def draw(name):
        x_shape, kernel, OC, window = WIDE[name]
        inputs = draw_inputs(rng, x_shape, kernel, OC, np.float32)
        shape = conv_transpose2d_forward(*inputs, **window)[0].shape
        return inputs, rng.standard_normal(shape).astype(np.float32), window

    return draw


@pytest.mark.parametrize("name", WIDE)
def test_kernels_match_torch_over_many_blocks(oracle, wide, name):
    inputs, dout, window = wide(name)
    in_float64 = [array.astype(np.float64) for array in inputs], dout.astype(np.float64), window
    exact = by_torch(oracle, *in_float64)
    for actual, expected in zip(run_on_kernels(*in_float64), exact):
        assert_agrees(actual, expected)
    for actual, *judges in zip(run_on_kernels(inputs, dout, window), exact,
                               by_torch(oracle, inputs, dout, window)):
        assert_float32_accurate(actual, *judges)


@pytest.mark.parametrize("name", WIDE)
def test_a_device_gives_the_same_bits_in_any_order_and_repeats_them(wide, name):
    inputs, dout, window = wide(name)
    expected = run_on_kernels(inputs, dout, window)
    with record_launches() as launches:
        results = run_on_kernels(inputs, dout, window, emulated_device.asarray)
    for order in ("forward", "reverse", "random"):
        with emulator.fiber_order(order):
            for actual, one in zip(results, expected):
                np.testing.assert_array_equal(actual.get(), one)
                actual.host.fill(np.nan)  # every number is written by some launch
            for launch in launches:
                launch()


def test_activations_in_16_bits_with_weights_in_32(wide):
    for name in WIDE:
        inputs, dout, window = wide(name)
        (x, weight, bias), half = inputs, np.float16
        place = window.get("stride", 1), window.get("padding", 0)
        out = conv_transpose2d.conv_transpose2d_forward_cuda(x.astype(half), weight, bias, *place)
        cache = conv_transpose2d.ConvTranspose2dCache(x.astype(half), weight, True, *place)
        dweight, dbias = np.zeros_like(weight), np.zeros_like(bias)
        dx = conv_transpose2d.conv_transpose2d_backward_cuda(dout.astype(half), cache, dweight,
                                                             dbias)
        assert out.dtype == dx.dtype == half and dweight.dtype == np.float32
        for actual, one in zip((out, dx, dweight, dbias), run_on_kernels(inputs, dout, window)):
            assert_agrees(actual, one, 2e-3)


def test_windows_side_by_side_take_a_product_and_a_kernel(compiler):
    x, weight, bias = (emulated_device.zeros(shape, np.float32)
                       for shape in ((1, 4, 4, 8), (2, 2, 4, 8), (4,)))
    with record_launches() as launches:
        out, cache = conv_transpose2d_forward(x, weight, bias, stride=2)
        conv_transpose2d_backward(out, cache, dweight=weight, dbias=bias)
    assert [launch.name for launch in launches] == [
        "gemm", "conv_transpose2d_forward_kernel<4>",
        "conv2d_backward_bias_kernel", "conv2d_im2col_kernel<4>", "gemm", "gemm"]
