"""Every op and a whole model with activations of 16 bits, beside the same in float32."""

from functools import partial

import ml_dtypes
import numpy as np
import pytest
from checks import assert_agrees

from minisegnet import ops
from minisegnet.backend import asnumpy
from minisegnet.cuda import emulated_device
from minisegnet.cuda.launch import record_launches
from minisegnet.layers import Dropout
from minisegnet.losses.criterion import Criterion
from minisegnet.models import build_model
from minisegnet.verify.gradcheck import relative_error

pytestmark = pytest.mark.usefixtures("compiler")

K = 5
# What rounding to nearest is off at most, relatively, with 11 and with 8 significant bits.
ROUNDING = {np.dtype(np.float16): 2.0 ** -11, np.dtype(ml_dtypes.bfloat16): 2.0 ** -8}
halves = pytest.mark.parametrize("dtype", ROUNDING, ids=str)


def on_device(array):
    return emulated_device.asarray(array)


def to_float32(array):
    return asnumpy(array).astype(np.float32)


# ---------------------------------------------------------------- ops


def batch_norm(x, weight, bias, *, activation):
    running = on_device(np.zeros(len(weight.host), np.float32)), on_device(
        np.ones(len(weight.host), np.float32))
    return ops.batch_norm_forward(x, weight, bias, *running, training=True,
                                  activation=activation)[:2]


def dropout(x):
    return ops.dropout_forward(x, 0.25, ops.DeviceRandom(3, emulated_device))


IMAGE = (2, 9, 11, 8)
# name: forward, backward, the shapes of the activations it takes, and those of its parameters
OPS = {
    "conv2d of a picture": (ops.conv2d_forward, ops.conv2d_backward,
                            [(2, 9, 11, 3)], [(3, 3, 3, 8), (8,)]),
    "conv2d 1x1": (ops.conv2d_forward, ops.conv2d_backward, [IMAGE], [(1, 1, 8, 12), (12,)]),
    "conv2d 3x3": (partial(ops.conv2d_forward, padding=1), ops.conv2d_backward,
                   [IMAGE], [(3, 3, 8, 12), (12,)]),
    "conv2d 3x3 with strides": (partial(ops.conv2d_forward, stride=2, padding=1),
                                ops.conv2d_backward, [IMAGE], [(3, 3, 8, 12), (12,)]),
    "conv_transpose2d": (partial(ops.conv_transpose2d_forward, stride=2),
                         ops.conv_transpose2d_backward, [IMAGE], [(2, 2, 12, 8), (12,)]),
    "conv_transpose2d that overlaps": (
        partial(ops.conv_transpose2d_forward, stride=2, padding=1), ops.conv_transpose2d_backward,
        [IMAGE], [(3, 3, 12, 8), (12,)]),
    "depthwise_conv2d": (partial(ops.depthwise_conv2d_forward, padding=1),
                         ops.depthwise_conv2d_backward, [IMAGE], [(3, 3, 8)]),
    "batch_norm": (partial(batch_norm, activation=None), ops.batch_norm_backward,
                   [IMAGE], [(8,), (8,)]),
    "batch_norm, hardswish": (partial(batch_norm, activation="hardswish"),
                              ops.batch_norm_backward, [IMAGE], [(8,), (8,)]),
    "hardsigmoid": (ops.hardsigmoid_forward, ops.hardsigmoid_backward, [IMAGE], []),
    "global_average_pool": (ops.global_average_pool_forward, ops.global_average_pool_backward,
                            [IMAGE], []),
    "repeat_pixels": (partial(ops.repeat_pixels_forward, size=(5, 7)), ops.repeat_pixels_backward,
                      [(2, 1, 1, 8)], []),
    "max_pool2d": (partial(ops.max_pool2d_forward, kernel_size=2), ops.max_pool2d_backward,
                   [IMAGE], []),
    "channel_scale": (ops.channel_scale_forward, ops.channel_scale_backward,
                      [IMAGE, (2, 1, 1, 8)], []),
    "squeeze_excite_gate": (ops.squeeze_excite_gate_forward, ops.squeeze_excite_gate_backward,
                            [(2, 1, 1, 8)], [(1, 1, 8, 6), (6,), (1, 1, 6, 8), (8,)]),
    "upsample_bilinear": (partial(ops.upsample_bilinear_forward, size=(17, 23)),
                          ops.upsample_bilinear_backward, [IMAGE], []),
    "concatenate": (lambda *inputs: ops.concatenate_forward(inputs), ops.concatenate_backward,
                    [IMAGE, (2, 9, 11, 3)], []),
    "dropout": (dropout, ops.dropout_backward, [IMAGE], []),
    "add": (lambda a, b: (ops.add(a, b), None), None, [IMAGE, IMAGE], []),
    "add_into": (lambda a, b: (ops.add_into(a, b), None), None, [IMAGE, IMAGE], []),
    "copy": (lambda a: (ops.copy(a), None), None, [IMAGE], []),
}


def run_op(name, activations, parameters, draw_dout, dtype):
    """Return what an op makes of activations of `dtype`, and all gradients."""
    forward, backward, _, _ = OPS[name]
    inputs = [on_device(array.astype(dtype)) for array in activations]
    out, cache = forward(*inputs, *map(on_device, parameters))
    results = [out]
    if backward is not None:
        gradients = backward(on_device(draw_dout(out.shape).astype(dtype)), cache)
        results += gradients if isinstance(gradients, (list, tuple)) else [gradients]
    return results


@halves
@pytest.mark.parametrize("name", OPS)
def test_every_op_rounds_what_it_stores_and_nothing_else(rng, name, dtype):
    _, backward, shapes, parameter_shapes = OPS[name]
    # Numbers of 16 bits from the start, the same for both types of activations.
    activations, parameters = ([rng.standard_normal(shape).astype(dtype).astype(np.float32)
                                for shape in group] for group in (shapes, parameter_shapes))

    def draw_dout(shape):
        return np.random.default_rng(1).standard_normal(shape).astype(dtype).astype(np.float32)

    exact = run_op(name, activations, parameters, draw_dout, np.float32)
    results = run_op(name, activations, parameters, draw_dout, dtype)
    for i, (actual, expected) in enumerate(zip(results, exact, strict=True)):
        is_gradient_of_parameter = i > len(activations)
        assert actual.dtype == (np.float32 if is_gradient_of_parameter else dtype)
        # Nothing is rounded twice but by strided convolutions, on the way back through col2im.
        limit = 1e-5 if is_gradient_of_parameter else ROUNDING[dtype]
        assert_agrees(to_float32(actual), expected.get(), limit)


def test_numpy_and_mixtures_are_refused(rng):
    x, weight = rng.standard_normal((2, 6, 6, 8)), rng.standard_normal((1, 1, 8, 4))
    half, single = np.float16, np.float32
    # The kernels take NumPy arrays of 16 bits where they are asked for by name.
    out, _ = ops.conv2d_forward(x.astype(half), weight.astype(single), implementation="cuda_cpu")
    assert out.dtype == half
    for implementation in (None, "numpy", "loops"):
        with pytest.raises(TypeError, match="float16 are for a GPU"):
            ops.conv2d_forward(x.astype(half), weight.astype(single),
                               implementation=implementation)
        with pytest.raises(TypeError, match="float16 are for a GPU"):
            ops.upsample_bilinear_forward(x.astype(half), (9, 9), implementation=implementation)
    for dtypes, words in (((half, np.float64), "float16 and float64"),
                          ((single, half), "float32 and float16"),
                          ((ml_dtypes.bfloat16, half), "bfloat16 and float16"),
                          ((half, half), "a weight is float32")):
        with pytest.raises(TypeError, match=words):
            ops.conv2d_forward(on_device(x.astype(dtypes[0])), on_device(weight.astype(dtypes[1])))
    for op in (ops.add, lambda a, b: ops.concatenate_forward([a, b])):
        with pytest.raises(TypeError):
            op(on_device(x.astype(half)), on_device(x.astype(single)))


@halves
def test_a_cast_rounds_to_nearest(rng, dtype):
    x = (rng.standard_normal(1003) * 2.0 ** rng.integers(-30, 20, 1003)).astype(np.float32)
    x[:3] = np.inf, -np.inf, np.nan
    with np.errstate(over="ignore"):
        expected = x.astype(dtype)
    flat = on_device(x)
    # From any element on, as parameters lie in their buffer.
    for start in range(4):
        actual = ops.cast(flat[start:], dtype)
        np.testing.assert_array_equal(to_float32(actual), expected[start:].astype(np.float32))
    assert ops.cast(actual, dtype) is actual
    np.testing.assert_array_equal(
        ops.cast(x[3:], dtype, implementation="cuda_cpu").view(np.int16),
        expected[3:].view(np.int16))
    for array, to in ((x.astype(np.float64), dtype), (x, np.float64), (expected, np.float32)):
        with pytest.raises(TypeError, match="cast makes 16 bits of float32"):
            ops.cast(on_device(array), to)


def test_a_dense_weight_is_cast_once_for_forward_and_backward(rng):
    x, weight = (on_device(rng.standard_normal(shape).astype(np.float32))
                 for shape in ((2, 4, 4, 8), (1, 1, 8, 12)))
    with record_launches() as launches:
        out, cache = ops.conv2d_forward(ops.cast(x, np.float16), weight)
        ops.conv2d_backward(out, cache)
    # The first is that of x; the fills are of new gradients.
    assert [launch.name for launch in launches if launch.name != "fill"] == [
        "cast_kernel", "cast_kernel", "gemm", "gemm", "gemm"]


# ---------------------------------------------------------------- models


def without_dropout(model):
    for _, layer in model.named_layers():
        if isinstance(layer, Dropout):
            layer.p = 0.0
    return model


def round_every_output(model, dtype):
    """Let each layer of a NumPy model round what it returns, forward and backward, to `dtype`."""
    def rounding(function):
        def call(*arguments, **options):
            result = function(*arguments, **options)
            results = result if isinstance(result, list) else [result]
            results = [array if array is None else array.astype(dtype).astype(np.float32)
                       for array in results]
            return results if isinstance(result, list) else results[0]

        return call

    for _, layer in model.named_layers():
        if not layer.children:
            layer.forward, layer.backward = rounding(layer.forward), rounding(layer.backward)


def logits_and_gradients(model, images, target, scale):
    coarse = model.forward_coarse(images)
    _, cache = Criterion("ce").forward_upsampled(coarse, target)
    if model.xp is np:
        dcoarse = Criterion("ce").backward_upsampled(scale, cache)
    else:
        dcoarse = Criterion("ce").backward_upsampled(
            1.0, cache, loss_scale=on_device(np.array([scale], np.float32)))
        assert dcoarse.dtype == coarse.dtype == images.dtype
    model.backward_coarse(dcoarse)
    assert {str(array.dtype) for _, array in (*model.named_gradients(),
                                              *model.named_buffers())} == {"float32"}
    gradient = [asnumpy(array).ravel() for _, array in model.named_gradients()]
    return to_float32(coarse), np.concatenate(gradient) / np.float32(scale)


@halves
def test_a_model_is_off_by_what_storing_in_16_bits_costs(rng, dtype):
    images = rng.standard_normal((8, 32, 48, 3)).astype(np.float32)
    target = rng.integers(0, K, (8, 32, 48)).astype(np.uint8)
    exact, rounded, device = (without_dropout(build_model("mini", K, seed=0)) for _ in range(3))
    exact = logits_and_gradients(exact, images, target, 1.0)
    # What the type allows: float32 arithmetic, and each layer's output rounded.
    round_every_output(rounded, dtype)
    rounded = logits_and_gradients(rounded, images.astype(dtype).astype(np.float32), target,
                                   2.0 ** 14)
    actual = logits_and_gradients(device.to(emulated_device), ops.cast(on_device(images), dtype),
                                  on_device(target), 2.0 ** 14)
    for one, allowed, expected in zip(actual, rounded, exact):
        error, cost = relative_error(one, expected), relative_error(allowed, expected)
        # Twenty layers and their batch norms magnify a rounding some ten times, also in reverse.
        assert ROUNDING[dtype] < cost < 200 * ROUNDING[dtype]
        assert error <= 1.5 * cost
