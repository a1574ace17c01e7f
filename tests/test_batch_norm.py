"""Batch norm: statistics, normalisation and all three gradients, in training and evaluation."""

import numpy as np
import pytest
from checks import assert_agrees, assert_finite_differences_agree, frozen, non_contiguous

from minisegnet.ops import batch_norm_backward, batch_norm_forward

pytestmark = pytest.mark.parametrize(
    "implementation", ["loops", "numpy", "cuda_cpu", "cuda_cpu_naive"])

SHAPES = [(2, 3, 4, 5), (1, 6, 1, 2), (4, 1, 1, 3), (1, 2, 1, 1), (3, 40, 50, 16), (2, 1, 1, 40),
          (3, 7, 9, 33), (1, 19, 23, 12)]


@pytest.fixture
def oracle(torch):
    from minisegnet.verify import torch_oracle

    return torch_oracle


def draw_inputs(rng, shape, dtype=np.float64):
    """x with another mean and scale per channel; weight, bias, running mean and variance."""
    C = shape[-1]
    x = rng.standard_normal(shape) * rng.uniform(0.5, 3, C) + 5 * rng.standard_normal(C)
    arrays = (x, *rng.standard_normal((3, C)), rng.uniform(0.5, 2, C))
    return frozen(*(array.astype(dtype) for array in arrays))


def test_hand_worked_example(implementation):
    x = np.array([1.0, 3.0]).reshape(1, 1, 2, 1)  # mean 2, variance 1, unbiased variance 2
    out, cache, mean, var = batch_norm_forward(
        x, np.array([4.0]), np.array([10.0]), np.zeros(1), np.ones(1), training=True,
        momentum=0.25, eps=0.0, implementation=implementation)
    np.testing.assert_allclose(out.ravel(), [6, 14])
    np.testing.assert_allclose((mean, var), ([0.5], [1.25]))
    # Two values a channel are always normalised to -1 and 1: nothing in x can move them.
    dx, dweight, dbias = batch_norm_backward(np.array([2.0, 7.0]).reshape(x.shape), cache,
                                             implementation=implementation)
    np.testing.assert_allclose(dx.ravel(), [0, 0], atol=1e-14)
    np.testing.assert_allclose((dweight, dbias), ([5], [9]))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_matches_torch(oracle, rng, shape, training, implementation):
    x, weight, bias, mean, var = draw_inputs(rng, shape)
    options = {"training": training, "momentum": 0.03, "eps": 1e-3}
    out, cache, *running = batch_norm_forward(x, weight, bias, mean, var, **options,
                                              implementation=implementation)
    dout = rng.standard_normal(shape)
    gradients = batch_norm_backward(dout, cache, implementation=implementation)
    (expected, *expected_running), expected_gradients = oracle.gradients(
        oracle.batch_norm, {"x": x, "weight": weight, "bias": bias},
        {"running_mean": mean, "running_var": var, **options}, dout)
    assert_agrees(out, expected)
    for actual, wanted in zip(running, expected_running):
        assert_agrees(actual, wanted)
    for actual, name in zip(gradients, ("x", "weight", "bias")):
        assert_agrees(actual, expected_gradients[name], 1e-11)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_gradients_match_finite_differences(rng, training, implementation):
    x, weight, bias, mean, var = draw_inputs(rng, (2, 3, 2, 3))

    def forward(*inputs):
        return batch_norm_forward(*inputs, mean, var, training=training,
                                  implementation=implementation)

    dout = rng.standard_normal(x.shape)
    gradients = batch_norm_backward(dout, forward(x, weight, bias)[1],
                                    implementation=implementation)
    assert_finite_differences_agree(lambda *inputs: forward(*inputs)[0], (x, weight, bias),
                                    gradients, dout)


def test_a_large_mean_costs_no_digits(rng, implementation):
    # In float32, E[x^2] - mean^2 would find a variance of 1 at a mean of 1e4 to be any number.
    x = (rng.standard_normal((2, 30, 40, 3)) + 1e4).astype(np.float32)
    one, zero = np.ones(3, np.float32), np.zeros(3, np.float32)
    out, *_ = batch_norm_forward(x, one, zero, zero, one, training=True,
                                 implementation=implementation)
    exact = x.astype(np.float64)
    exact = (exact - exact.mean((0, 1, 2))) / np.sqrt(exact.var((0, 1, 2)) + 1e-5)
    assert_agrees(out, exact, 2e-3)


def test_a_constant_upstream_gradient_gives_no_input_gradient_in_training(rng, implementation):
    x, weight, bias, mean, var = draw_inputs(rng, (2, 3, 4, 5))
    _, cache, *_ = batch_norm_forward(x, weight, bias, mean, var, training=True,
                                      implementation=implementation)
    dx, *_ = batch_norm_backward(np.full(x.shape, 7.0), cache, implementation=implementation)
    np.testing.assert_allclose(dx, 0, atol=1e-12)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_non_contiguous_inputs_give_the_same_numbers(rng, training, implementation):
    inputs = draw_inputs(rng, (2, 3, 4, 5))
    dout = rng.standard_normal((2, 3, 4, 5))
    results = []
    for given, upstream in ((inputs, dout), (map(non_contiguous, inputs), non_contiguous(dout))):
        out, cache, *running = batch_norm_forward(*given, training=training,
                                                  implementation=implementation)
        results.append((out, *running,
                        *batch_norm_backward(upstream, cache, implementation=implementation)))
    for plain, awkward in zip(*results):
        assert_agrees(awkward, plain)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_gradients_are_added_to_arrays_that_are_given(rng, training, implementation):
    inputs = draw_inputs(rng, (2, 3, 4, 5))
    dout = rng.standard_normal((2, 3, 4, 5))
    _, cache, *_ = batch_norm_forward(*inputs, training=training, implementation=implementation)
    dx, dweight, dbias = batch_norm_backward(dout, cache, implementation=implementation)
    before = rng.standard_normal((2, 5))
    given = before.copy()
    again = batch_norm_backward(dout, cache, dweight=given[0], dbias=given[1],
                                implementation=implementation)
    assert again[1].base is given and again[2].base is given
    for actual, expected in zip(again, (dx, before[0] + dweight, before[1] + dbias)):
        assert_agrees(actual, expected)
    # One without the other.
    given = before.copy()
    _, share, _ = batch_norm_backward(dout, cache, dbias=given[1], implementation=implementation)
    assert_agrees(share, dweight)
    assert_agrees(given, before + [np.zeros(5), dbias])


def test_running_statistics_go_where_they_are_asked_to(rng, implementation):
    x, weight, bias, mean, var = draw_inputs(rng, (2, 3, 4, 5))  # all read-only
    options = {"training": True, "momentum": 0.3, "implementation": implementation}
    out, _, new_mean, new_var = batch_norm_forward(x, weight, bias, mean, var, **options)
    assert abs(new_mean - mean).min() > 1e-3 and abs(new_var - var).min() > 1e-3
    # Into other arrays, then into the running statistics themselves.
    for running in ((mean, var), (mean.copy(), var.copy())):
        into = running if running[0].flags.writeable else (np.empty(5), np.empty(5))
        again, _, *returned = batch_norm_forward(x, weight, bias, *running, **options,
                                                 running_out=into)
        assert returned[0] is into[0] and returned[1] is into[1]
        for actual, expected in zip((again, *into), (out, new_mean, new_var)):
            np.testing.assert_array_equal(actual, expected)


def test_running_statistics_are_left_alone_in_evaluation(rng, implementation):
    x, weight, bias, mean, var = draw_inputs(rng, (2, 3, 4, 5))
    into = np.zeros(5), np.zeros(5)
    _, _, *returned = batch_norm_forward(x, weight, bias, mean, var, training=False,
                                         running_out=into, implementation=implementation)
    assert returned[0] is mean and returned[1] is var
    assert not into[0].any() and not into[1].any()


@pytest.mark.parametrize("into, message", [
    ((np.ones(4), np.ones(5)), r"its mean is float64 \(4,\)"),
    ((np.ones(5), np.ones(5, np.float32)), r"its var is float32 \(5,\)"),
])
def test_arrays_that_cannot_take_the_statistics_are_refused(rng, into, message, implementation):
    with pytest.raises(ValueError, match=message):
        batch_norm_forward(*draw_inputs(rng, (2, 3, 4, 5)), training=True, running_out=into,
                           implementation=implementation)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_dtype_is_kept(rng, training, implementation):
    inputs = draw_inputs(rng, (2, 3, 4, 5), np.float32)
    out, cache, *running = batch_norm_forward(*inputs, training=training,
                                              implementation=implementation)
    gradients = batch_norm_backward(out, cache, implementation=implementation)
    assert {array.dtype for array in (out, *running, *gradients)} == {np.dtype(np.float32)}


def test_one_value_per_channel_is_refused_in_training_only(implementation):
    vectors = np.ones(3), np.zeros(3), np.zeros(3), np.ones(3)
    with pytest.raises(ValueError, match="more than one value per channel.*batch of at least"):
        batch_norm_forward(np.zeros((1, 1, 1, 3)), *vectors, training=True,
                           implementation=implementation)
    batch_norm_forward(np.zeros((1, 1, 1, 3)), *vectors, training=False,
                       implementation=implementation)


def test_shapes_and_dtypes_that_do_not_fit_are_refused(implementation):
    three, two = np.ones(3), np.ones(2)
    x = np.zeros((2, 2, 2, 3))
    for shapes in ((x[0], three, three), (x, two, three), (x, three, two)):
        with pytest.raises(ValueError, match=r"batch_norm takes x \(N, H, W, C\)"):
            batch_norm_forward(*shapes, three, three, training=True,
                               implementation=implementation)
    with pytest.raises(TypeError, match="float64 and float32"):
        batch_norm_forward(x, three.astype(np.float32), three, three, three, training=True,
                           implementation=implementation)
    _, cache, *_ = batch_norm_forward(x, three, three, three, three, training=False,
                                      implementation=implementation)
    with pytest.raises(ValueError, match=r"\(2, 2, 2, 3\), not \(2, 4, 1, 3\)"):
        batch_norm_backward(np.zeros((2, 4, 1, 3)), cache, implementation=implementation)
