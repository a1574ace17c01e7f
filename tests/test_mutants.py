"""Can the gradient check fail at all? Wrong backward passes, planted, must all be rejected.

A check that accepts everything looks exactly like a check of correct code. So here the code is
broken on purpose, each time in a way that people break it.
"""

import numpy as np
import pytest

from minisegnet import losses, ops
from minisegnet.verify.case import FINITE_DIFFERENCE_LIMIT
from minisegnet.verify.gradcheck import numeric_gradient, numeric_slope, relative_error


def right(gradients, dout, cache):
    return gradients


# Functions under test: (inputs, forward(*inputs) -> (out, cache), backward(dout, cache) -> tuple)

def conv2d(rng):
    inputs = [rng.standard_normal(shape) for shape in ((2, 5, 4, 2), (3, 3, 2, 3), (3,))]
    return inputs, lambda *a: ops.conv2d_forward(*a, padding=1), ops.conv2d_backward


def strided_depthwise(rng):
    inputs = [rng.standard_normal((2, 5, 4, 3)), rng.standard_normal((3, 3, 3))]
    return (inputs, lambda *a: ops.depthwise_conv2d_forward(*a, stride=2, padding=1),
            ops.depthwise_conv2d_backward)


def batch_norm(rng):
    inputs = [rng.standard_normal((2, 3, 4, 2)), rng.standard_normal(2), rng.standard_normal(2)]

    def forward(*inputs):
        return ops.batch_norm_forward(*inputs, np.zeros(2), np.ones(2), training=True)[:2]

    return inputs, forward, ops.batch_norm_backward


def hardswish(rng):
    return ([4 * rng.standard_normal((3, 5))], ops.hardswish_forward,
            lambda dout, cache: (ops.hardswish_backward(dout, cache),))


def average_pool(rng):
    return ([rng.standard_normal((2, 3, 4, 2))], ops.global_average_pool_forward,
            lambda dout, cache: (ops.global_average_pool_backward(dout, cache),))


def upsample(rng):
    return ([rng.standard_normal((1, 3, 4, 2))],
            lambda x: ops.upsample_bilinear_forward(x, (6, 8)),
            lambda dout, cache: (ops.upsample_bilinear_backward(dout, cache),))


def fan_out(rng):
    """x goes two ways, through a relu and a sigmoid, which meet in a concatenation."""
    def forward(x):
        (a, a_cache), (b, b_cache) = ops.relu_forward(x), ops.sigmoid_forward(x)
        return ops.concatenate_forward([a, b])[0], (a_cache, b_cache)

    def backward(dout, caches):
        da, db = ops.concatenate_backward(dout, (2, 2))
        return (ops.relu_backward(da, caches[0]) + ops.sigmoid_backward(db, caches[1]),)

    return [rng.standard_normal((2, 3, 3, 2))], forward, backward


def cross_entropy(rng):
    target = rng.integers(0, 3, (2, 3, 2))
    target[0, 0] = 255
    return ([rng.standard_normal((2, 3, 2, 3))],
            lambda logits: losses.cross_entropy_forward(logits, target),
            lambda dloss, cache: (losses.cross_entropy_backward(dloss, cache),))


def softmax(rng):
    def forward(z):
        p = np.exp(z - z.max(axis=-1, keepdims=True))
        p /= p.sum(axis=-1, keepdims=True)
        return p, p

    def backward(dout, p):
        return (p * (dout - (dout * p).sum(axis=-1, keepdims=True)),)

    return [rng.standard_normal((4, 3))], forward, backward


def without_xhat_term(gradients, dout, cache):
    """Batch norm's x acts through mean and variance; here the way through the variance is lost."""
    dx = cache.weight * cache.inv_std * (dout - dout.mean(axis=(0, 1, 2)))
    return dx, *gradients[1:]


def as_if_frozen(gradients, dout, cache):
    return cache.weight * cache.inv_std * dout, *gradients[1:]


ROW_ABOVE = ((0, 0), (1, 0), (0, 0), (0, 0))

MUTANTS = {
    "dx is zero": (conv2d, lambda g, dout, cache: (0 * g[0], g[1], g[2])),
    "dx has the wrong sign": (conv2d, lambda g, dout, cache: (-g[0], g[1], g[2])),
    "dweight with rows and columns swapped": (
        conv2d, lambda g, dout, cache: (g[0], g[1].swapaxes(0, 1), g[2])),
    "dweight flipped, convolution for correlation": (
        conv2d, lambda g, dout, cache: (g[0], g[1][::-1, ::-1], g[2])),
    "dbias is a mean instead of a sum": (
        conv2d, lambda g, dout, cache: (g[0], g[1], dout.mean(axis=(0, 1, 2)))),
    "only the first image of the batch": (
        conv2d, lambda g, dout, cache: (np.concatenate([g[0][:1], 0 * g[0][1:]]), g[1], g[2])),
    "one border row forgotten": (
        strided_depthwise, lambda g, dout, cache: (np.pad(g[0][:, 1:], ROW_ABOVE), g[1])),
    "channels of dweight rolled by one": (
        strided_depthwise, lambda g, dout, cache: (g[0], np.roll(g[1], 1, axis=2))),
    "batch norm without the way through the variance": (batch_norm, without_xhat_term),
    "batch norm as if its statistics were constants": (batch_norm, as_if_frozen),
    "hardswish with a slope of 1 everywhere above -3": (
        hardswish, lambda g, dout, x: (dout * (x > -3),)),
    "forgotten 1/N in a mean over pixels": (average_pool, lambda g, dout, cache: (12 * g[0],)),
    "upsampling undone by nearest neighbours": (
        upsample, lambda g, dout, cache: (4 * dout[:, ::2, ::2],)),
    "missing fan-out sum": (
        fan_out, lambda g, dout, caches: (ops.relu_backward(dout[..., :2], caches[0]),)),
    "loss divided by all pixels, ignored ones too": (
        cross_entropy, lambda g, dloss, cache: (g[0] * 10 / 12,)),
    "loss gradient that forgets its upstream": (
        cross_entropy, lambda g, dloss, cache: (g[0] / dloss,)),
    "softmax differentiated class by class": (
        softmax, lambda g, dout, p: (dout * p * (1 - p),)),
    "softmax without its factor p": (
        softmax, lambda g, dout, p: (dout - (dout * p).sum(axis=-1, keepdims=True),)),
}


def worst_errors(rng, make, mutate):
    """Return the largest relative error over the inputs, and that of one random direction."""
    inputs, forward, backward = make(rng)
    out, cache = forward(*inputs)
    upstream = rng.standard_normal(np.shape(out))
    gradients = mutate(backward(upstream, cache), upstream, cache)
    errors = []
    for i, gradient in enumerate(gradients):
        numeric = numeric_gradient(
            lambda x: forward(*inputs[:i], x, *inputs[i + 1:])[0], inputs[i], upstream)
        errors.append(relative_error(gradient, numeric))
    directions = [rng.standard_normal(x.shape) for x in inputs]
    slope = numeric_slope(lambda *x: forward(*x)[0], inputs, directions, upstream)
    ours = sum(np.sum(g * d) for g, d in zip(gradients, directions))
    return max(errors), relative_error(ours, slope)


@pytest.mark.parametrize("make", sorted({make for make, _ in MUTANTS.values()},
                                        key=lambda make: make.__name__))
def test_right_backward_is_accepted(rng, make):
    assert max(worst_errors(rng, make, right)) < FINITE_DIFFERENCE_LIMIT


@pytest.mark.parametrize("name", MUTANTS)
def test_wrong_backward_is_rejected_by_a_wide_margin(rng, name):
    assert min(worst_errors(rng, *MUTANTS[name])) > 1000 * FINITE_DIFFERENCE_LIMIT


# Why the upstream gradient must be random

# Each of these is wrong, and each returns what it should for an upstream gradient of ones: the
# outputs of a softmax sum to 1 and those of a batch norm to N*H*W*bias, whatever the input, so
# that the true gradient is 0, and all that these mistakes get wrong is multiplied by it.
INVISIBLE_TO_ONES = {
    "batch norm, dx is zero": (
        batch_norm, lambda g, dout, cache: (0 * g[0], *g[1:])),
    "batch norm, the way through the variance lost": (batch_norm, without_xhat_term),
    "batch norm, 1/std forgotten": (
        batch_norm, lambda g, dout, cache: (g[0] / cache.inv_std, *g[1:])),
    "softmax, dz is zero": (softmax, lambda g, dout, p: (0 * g[0],)),
    "softmax, its factor p lost": (
        softmax, lambda g, dout, p: (dout - (dout * p).sum(axis=-1, keepdims=True),)),
}


@pytest.mark.parametrize("name", INVISIBLE_TO_ONES)
def test_ones_upstream_does_not_see_a_wrong_backward_and_random_does(rng, name):
    make, mutate = INVISIBLE_TO_ONES[name]
    inputs, forward, backward = make(rng)
    out, cache = forward(*inputs)

    def accepted(upstream):
        dx = mutate(backward(upstream, cache), upstream, cache)[0]
        numeric = numeric_gradient(lambda x: forward(x, *inputs[1:])[0], inputs[0], upstream)
        return np.allclose(dx, numeric, rtol=1e-6, atol=1e-8)

    assert accepted(np.ones(out.shape))
    assert not accepted(rng.standard_normal(out.shape))


# Why the error must be relative

def test_an_absolute_tolerance_accepts_a_zero_gradient_where_gradients_are_small(rng):
    # The loss is a mean over many pixels, so each logit's gradient is tiny.
    target = rng.integers(0, 3, (1, 400, 400))
    logits = rng.standard_normal((1, 400, 400, 3))
    _, cache = losses.cross_entropy_forward(logits, target)
    dlogits = losses.cross_entropy_backward(1.0, cache)
    assert np.allclose(0 * dlogits, dlogits, atol=1e-5)
    assert relative_error(0 * dlogits, dlogits) == 1


# The parts of the harness

def test_numeric_gradient_of_known_functions(rng):
    x, upstream = rng.standard_normal((2, 3, 4))
    cube = numeric_gradient(lambda x: x ** 3, x, upstream)
    assert relative_error(cube, 3 * x ** 2 * upstream) < 1e-9
    total = numeric_gradient(lambda x: x.sum(), x, 2.5)
    assert relative_error(total, np.full(x.shape, 2.5)) < 1e-9


def test_numeric_slope_is_the_sum_of_gradient_times_direction(rng):
    x, dx, y, dy, upstream = rng.standard_normal((5, 3, 4))
    slope = numeric_slope(lambda x, y: x * y, [x, y], [dx, dy], upstream)
    assert slope == pytest.approx(np.sum(upstream * (y * dx + x * dy)), rel=1e-8)


def test_the_harness_leaves_its_inputs_alone_and_wants_float64(rng):
    x = rng.standard_normal(5)
    before = x.copy()
    numeric_gradient(np.sin, x, np.ones(5))
    numeric_slope(np.sin, [x], [np.ones(5)], np.ones(5))
    np.testing.assert_array_equal(x, before)
    with pytest.raises(TypeError, match="float64, got float32"):
        numeric_gradient(np.sin, x.astype(np.float32), np.ones(5))


@pytest.mark.parametrize("actual, expected, error", [
    ([3.0, 4.0], [3.0, 4.0], 0.0),
    ([3.0, 4.5], [3.0, 4.0], 0.1),
    ([0.0, 0.0], [0.0, 0.0], 0.0),
    ([0.0, 1e-30], [0.0, 0.0], np.inf),
    ([1.0], [1.0, 1.0], np.inf),
    ([np.nan, 1.0], [np.nan, 1.0], 0.0),
    ([np.nan, 1.0], [0.0, 1.0], np.inf),
    ([0.0, 1.0], [np.nan, 1.0], np.inf),
    ([np.inf, 1.0], [np.inf, 1.0], np.inf),
])
def test_relative_error_by_hand(actual, expected, error):
    assert relative_error(actual, expected) == pytest.approx(error)
