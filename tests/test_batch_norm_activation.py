"""Batch norm with its activation, and what its CUDA kernels keep to: digits, order, launches."""

import numpy as np
import pytest
from checks import (
    assert_agrees,
    assert_finite_differences_agree,
    assert_float32_accurate,
    frozen,
    non_contiguous,
)
from test_batch_norm import draw_inputs

from minisegnet import ops
from minisegnet.cuda import emulated_device
from minisegnet.cuda.emulator import fiber_order
from minisegnet.cuda.launch import record_launches
from minisegnet.ops import batch_norm as module
from minisegnet.ops import batch_norm_backward, batch_norm_forward

ACTIVATIONS = ["relu", "relu6", "hardswish"]
MODES = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
EVERY = pytest.mark.parametrize("implementation", ["loops", "numpy", "cuda_cpu", "cuda_cpu_naive"])
KERNELS = pytest.mark.parametrize("implementation", ["cuda_cpu", "cuda_cpu_naive"])


@pytest.fixture
def oracle(torch):
    from minisegnet.verify import torch_oracle

    return torch_oracle


def run(inputs, dout, implementation, **options):
    """Return out, the running statistics and the three gradients."""
    out, cache, *running = batch_norm_forward(*inputs, **options, implementation=implementation)
    return [out, *running, *batch_norm_backward(dout, cache, implementation=implementation)]


def run_torch(oracle, inputs, dout, activation=None, **options):
    """The same numbers from torch, in the inputs' dtype."""
    x, weight, bias, mean, var = inputs

    def function(**arrays):
        out, *running = oracle.batch_norm(**arrays)
        return (getattr(oracle, activation)(out) if activation else out, *running)

    outputs, gradients = oracle.gradients(
        function, {"x": x, "weight": weight, "bias": bias},
        {"running_mean": mean, "running_var": var, **options}, dout)
    return [*outputs, *gradients.values()]


# ---------------------------------------------------------------- fused with an activation


@EVERY
@MODES
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (3, 11, 7, 12), (2, 17, 13, 40)], ids=str)
def test_matches_torch(oracle, rng, shape, activation, training, implementation):
    # The weights spread z over all kinks.
    x, weight, bias, mean, var = draw_inputs(rng, shape)
    inputs = frozen(x, 3 * weight, 2 * bias, mean, var)
    dout = rng.standard_normal(shape)
    options = {"training": training, "momentum": 0.03, "eps": 1e-3, "activation": activation}
    for actual, expected in zip(run(inputs, dout, implementation, **options),
                                run_torch(oracle, inputs, dout, **options)):
        assert_agrees(actual, expected, 1e-11 if actual.ndim == 4 else 1e-12)


@EVERY
@MODES
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_match_finite_differences(rng, activation, training, implementation):
    x, weight, bias, mean, var = draw_inputs(rng, (2, 3, 2, 3))

    def forward(*inputs):
        return batch_norm_forward(*inputs, mean, var, training=training, activation=activation,
                                  implementation=implementation)

    dout = rng.standard_normal(x.shape)
    gradients = batch_norm_backward(dout, forward(x, weight, bias)[1],
                                    implementation=implementation)
    assert_finite_differences_agree(lambda *inputs: forward(*inputs)[0], (x, weight, bias),
                                    gradients, dout)


@EVERY
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_kinks_are_where_the_activation_has_them(activation, implementation):
    z = np.array([-4.0, -3.0, -1.5, -0.0, 0.0, 1.0, 3.0, 6.0, 7.0])
    forward, backward = (getattr(ops, f"{activation}_{way}") for way in ("forward", "backward"))
    expected, cache = forward(z)
    one, zero = np.ones(1), np.zeros(1)
    out, norm_cache, *_ = batch_norm_forward(
        z.reshape(1, 3, 3, 1), one, zero, zero, one, training=False, eps=0.0,
        activation=activation, implementation=implementation)
    np.testing.assert_allclose(out.ravel(), expected, rtol=1e-15)
    dout = np.arange(1.0, 10).reshape(1, 3, 3, 1)
    dx, *_ = batch_norm_backward(dout, norm_cache, implementation=implementation)
    np.testing.assert_allclose(dx.ravel(), backward(dout.ravel(), cache), rtol=1e-15)


@EVERY
def test_the_cache_keeps_the_input_and_nothing_else_of_its_size(rng, implementation):
    inputs = draw_inputs(rng, (2, 3, 4, 5))
    _, cache, *_ = batch_norm_forward(*inputs, training=True, activation="hardswish",
                                      implementation=implementation)
    assert [a for a in cache if getattr(a, "ndim", 0) > 1] == [cache.x]
    assert cache.x is inputs[0]


@EVERY
def test_an_unknown_activation_is_refused(rng, implementation):
    with pytest.raises(ValueError, match="no activation 'gelu'; it has None, relu"):
        batch_norm_forward(*draw_inputs(rng, (2, 3, 4, 5)), training=True, activation="gelu",
                           implementation=implementation)


# ---------------------------------------------------------------- with a residual


@EVERY
@MODES
@pytest.mark.parametrize("activation", [None, "hardswish"])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (3, 11, 7, 12), (2, 17, 13, 40)], ids=str)
def test_a_residual_is_added_and_changes_no_gradient(rng, shape, activation, training,
                                                     implementation):
    inputs = draw_inputs(rng, shape)
    residual, dout = frozen(*rng.standard_normal((2, *shape)))
    options = {"training": training, "activation": activation}
    out, *others = run(inputs, dout, implementation, **options)
    for given in (residual, non_contiguous(residual)):
        found, *same = run(inputs, dout, implementation, residual=given, **options)
        assert_agrees(found, out + residual, 1e-14)
        for actual, expected in zip(same, others, strict=True):
            np.testing.assert_array_equal(actual, expected)


@EVERY
def test_a_residual_of_another_shape_or_dtype_is_refused(rng, implementation):
    inputs = draw_inputs(rng, (2, 3, 4, 5))
    for error, residual in ((ValueError, np.zeros((2, 3, 1, 5))),
                            (TypeError, np.zeros((2, 3, 4, 5), np.float32))):
        with pytest.raises(error, match="residual|float32"):
            batch_norm_forward(*inputs, training=True, residual=residual,
                               implementation=implementation)


# ---------------------------------------------------------------- digits, in float32


def awkward_x(rng, kind):
    x = rng.standard_normal((3, 37, 41, 12))
    if kind == "mean 1000 deviations":
        x = 2 * x + 2000
    elif kind == "an outlier first":
        x[0, 0, 0] = 1e4
    elif kind == "an outlier last":
        x[-1, -1, -1] = -1e4
    elif kind == "growing":
        x += np.linspace(0, 1e3, 41 * 12).reshape(41, 12)
    elif kind == "tiny deviations":
        x = 1e-4 * x + 1
    return x


@KERNELS
@MODES
@pytest.mark.parametrize("kind, activation", [
    ("plain", "relu"), ("plain", "hardswish"), ("mean 1000 deviations", None),
    ("an outlier first", "relu"), ("an outlier last", None), ("growing", "hardswish"),
    ("tiny deviations", None)])
def test_float32_is_as_accurate_as_torch(oracle, rng, kind, activation, training, implementation):
    # No activation where digits are lost to the data: beyond a kink or not is all or nothing.
    x = awkward_x(rng, kind).astype(np.float32)
    inputs = frozen(x, *(a.astype(np.float32) for a in (
        rng.uniform(0.5, 2, 12), rng.standard_normal(12), x.mean((0, 1, 2)) + 0.1,
        x.var((0, 1, 2)) * 1.1)))
    dout = rng.standard_normal(x.shape).astype(np.float32)
    options = {"training": training, "eps": 1e-5, "activation": activation}
    exact = run_torch(oracle, [a.astype(np.float64) for a in inputs], dout.astype(np.float64),
                      **options)
    near = run_torch(oracle, inputs, dout, **options)
    for actual, *expected in zip(run(inputs, dout, implementation, **options), exact, near):
        assert_float32_accurate(actual, *expected)


@KERNELS
def test_a_constant_channel_has_variance_0_exactly(rng, implementation):
    # 0.1 added up many times and divided is not 0.1: a variance of rounding errors would show.
    x = np.full((3, 37, 41, 5), 0.1, np.float32)
    x[..., 2] = rng.standard_normal(x.shape[:3])
    one, zero = np.ones(5, np.float32), np.zeros(5, np.float32)
    bias = rng.standard_normal(5).astype(np.float32)
    out, cache, mean, var = batch_norm_forward(x, one, bias, zero, zero, training=True,
                                               momentum=1.0, implementation=implementation)
    still = [0, 1, 3, 4]
    expected = np.broadcast_to(bias[still], (3, 37, 41, 4))
    if implementation == "cuda_cpu":
        np.testing.assert_array_equal(var[still], 0)
        np.testing.assert_array_equal(mean[still], np.float32(0.1))
        np.testing.assert_array_equal(out[..., still], expected)
    np.testing.assert_allclose(out[..., still], expected, atol=1e-4)
    dout = rng.standard_normal(x.shape).astype(np.float32)
    assert all(np.isfinite(g).all() for g in
               batch_norm_backward(dout, cache, implementation=implementation))


@KERNELS
def test_not_a_number_is_not_hidden(rng, implementation):
    x, *others = draw_inputs(rng, (2, 9, 9, 4))
    x = x.copy()
    x[1, 5, 5, 2] = np.nan
    out, _, mean, var = batch_norm_forward(x, *others, training=True, activation="relu6",
                                           implementation=implementation)
    for array in (out[0, 0, 0], mean, var):
        np.testing.assert_array_equal(np.isnan(array), [False, False, True, False])


# ---------------------------------------------------------------- blocks, order, launches


@MODES
@pytest.mark.parametrize("shape", [(8, 1, 1, 960), (2, 1, 1, 33), (1, 67, 61, 3), (1, 1, 263, 1),
                                   (3, 29, 31, 76), (3, 29, 31, 31)], ids=str)
@pytest.mark.parametrize("few", [False, True], ids=["", "few blocks"])
@pytest.mark.parametrize("implementation", ["cuda_cpu"])
def test_any_split_over_blocks_and_threads_gives_the_same(rng, monkeypatch, shape, few, training,
                                                          implementation):
    if few:  # then each thread has many rows, as on large maps
        monkeypatch.setattr(module, "SUM_BLOCKS", 3)
        monkeypatch.setattr(module, "WRITE_BLOCKS", 2)
    inputs, dout = draw_inputs(rng, shape), rng.standard_normal(shape)
    options = {"training": training, "activation": "hardswish"}
    for actual, expected in zip(run(inputs, dout, implementation, **options),
                                run(inputs, dout, "numpy", **options)):
        assert_agrees(actual, expected, 1e-11 if actual.ndim == 4 else 1e-12)


def test_a_split_has_rows_for_every_block_and_channels_for_nearly_every_thread():
    for C in (1, 3, 16, 24, 33, 40, 72, 112, 200, 256, 480, 960):
        for P in (2, 8, 1000, 32768, 500_000):
            plan = module._plan(P, C)
            columns, rows = plan.block
            groups = plan.sum_grid[1]
            assert 225 <= columns * rows <= module.THREADS
            assert columns * plan.vector <= module.CHANNELS
            assert C <= groups * columns * plan.vector <= 1.34 * C
            assert (plan.sum_grid[0] - 1) * rows < P
            assert (plan.write_grid[0] - 1) * plan.chunk < P <= plan.write_grid[0] * plan.chunk
            assert plan.sum_grid[0] * groups <= 264 and plan.chunk <= 8 * rows
    with pytest.raises(ValueError, match="at most 131072 channels, not 131076"):
        module._plan(2, 131076)


@MODES
@pytest.mark.parametrize("implementation", ["cuda_cpu", "cuda_cpu_naive"])
@pytest.mark.parametrize("C", [35, 36], ids=["", "vectors"])
def test_the_order_of_threads_and_blocks_changes_no_bit(rng, C, training, implementation):
    # Nor does what ran before: the blocks that have finished are counted from 0 each time.
    inputs = draw_inputs(rng, (2, 21, 17, C), np.float32)
    dout = rng.standard_normal(inputs[0].shape).astype(np.float32)
    options = {"training": training, "activation": "relu6"}
    expected = run(inputs, dout, implementation, **options)
    for order in ("forward", "reverse", "random"):
        with fiber_order(order):
            for actual, wanted in zip(run(inputs, dout, implementation, **options), expected):
                np.testing.assert_array_equal(actual, wanted)


@MODES
@pytest.mark.parametrize("implementation", ["cuda_cpu"])
def test_on_a_device_it_is_two_launches_each_way_and_waits_for_nothing(rng, training,
                                                                       implementation):
    inputs = draw_inputs(rng, (2, 9, 7, 12))
    dout = rng.standard_normal(inputs[0].shape)
    options = {"training": training, "activation": "hardswish"}
    expected = run(inputs, dout, implementation, **options)
    x, weight, bias, mean, var = map(emulated_device.asarray, inputs)
    upstream = emulated_device.asarray(dout)
    dweight, dbias = emulated_device.zeros(12), emulated_device.zeros(12)
    waited = emulated_device.synchronisations
    with record_launches() as launches:
        out, cache, *running = batch_norm_forward(x, weight, bias, mean, var, **options,
                                                  running_out=(mean, var))
        gradients = batch_norm_backward(upstream, cache, dweight=dweight, dbias=dbias)
    assert emulated_device.synchronisations == waited
    assert [launch.name.partition("<")[0] for launch in launches] == (
        ["batch_norm_statistics_kernel", "batch_norm_forward_kernel",
         "batch_norm_backward_sums_kernel", "batch_norm_backward_input_kernel"] if training
        else ["batch_norm_forward_kernel", "batch_norm_backward_sums_kernel"])
    assert running[0] is mean and running[1] is var
    for actual, wanted in zip((out, *running, *gradients), expected):
        np.testing.assert_array_equal(actual.get(), wanted)


@MODES
@pytest.mark.parametrize("implementation", ["cuda_cpu"])
def test_awkward_arrays_give_the_same_bits(rng, training, implementation):
    inputs = draw_inputs(rng, (2, 5, 7, 12))
    dout = rng.standard_normal(inputs[0].shape)
    options = {"training": training, "activation": "relu"}
    expected = run(inputs, dout, implementation, **options)
    actual = run([*map(non_contiguous, inputs)], non_contiguous(dout), implementation, **options)
    for awkward, plain in zip(actual, expected):
        np.testing.assert_array_equal(awkward, plain)
