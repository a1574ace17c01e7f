"""Activations: torch's values and slopes, also exactly at the kinks and far outside."""

from functools import partial

import numpy as np
import pytest
from checks import assert_agrees, assert_finite_differences_agree, frozen, non_contiguous

from minisegnet import ops
from minisegnet.backend import asnumpy
from minisegnet.cuda import emulated_device
from minisegnet.cuda.emulator import fiber_order
from minisegnet.cuda.launch import record_launches

NAMES = ["relu", "relu6", "hardsigmoid", "hardswish", "sigmoid"]
KINKS = np.array([-4.0, -3.0, -1.5, -0.0, 0.0, 1.0, 3.0, 6.0, 7.0])


@pytest.fixture
def oracle(torch):
    from minisegnet.verify import torch_oracle

    return torch_oracle


@pytest.fixture(params=["numpy", "cuda_cpu"])
def implementation(request):
    return request.param


def functions(name, implementation):
    return [partial(getattr(ops, f"{name}_{way}"), implementation=implementation)
            for way in ("forward", "backward")]


@pytest.mark.parametrize("name, x, out, slope", [
    ("relu", [-1, 0, 2], [0, 0, 2], [0, 0, 1]),
    ("relu6", [-1, 0, 2, 6, 8], [0, 0, 2, 6, 6], [0, 0, 1, 0, 0]),
    ("hardsigmoid", [-4, -3, 0, 3, 4], [0, 0, 1 / 2, 1, 1], [0, 0, 1 / 6, 0, 0]),
    ("hardswish", [-4, -3, 0, 1, 3, 4], [0, 0, 0, 2 / 3, 3, 4], [0, 0, 1 / 2, 5 / 6, 1, 1]),
    ("sigmoid", [0, np.log(3)], [1 / 2, 3 / 4], [1 / 4, 3 / 16]),
])
def test_hand_worked_values_and_slopes(name, x, out, slope, implementation):
    forward, backward = functions(name, implementation)
    actual, cache = forward(np.array(x, np.float64))
    np.testing.assert_allclose(actual, out, rtol=1e-15)
    np.testing.assert_allclose(backward(np.full(len(x), 10.0), cache), 10 * np.array(slope),
                               rtol=1e-15)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("x", [KINKS, None], ids=["kinks", "random"])
def test_matches_torch(oracle, rng, name, x, implementation):
    x = frozen(4 * rng.standard_normal((3, 70, 60, 8)) if x is None else x)
    dout = rng.standard_normal(x.shape)
    forward, backward = functions(name, implementation)
    out, cache = forward(x)
    (expected,), gradients = oracle.gradients(getattr(oracle, name), {"x": x}, {}, dout)
    np.testing.assert_allclose(out, expected, rtol=1e-14, atol=1e-300)
    # Near -1.5, where hardswish is flat, torch's slope x/3 + 1/2 cancels; the kernel's does not.
    np.testing.assert_allclose(backward(dout, cache), gradients["x"], rtol=1e-13,
                               atol=1e-15 if name == "hardswish" else 1e-300)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_matches_finite_differences(rng, name, implementation):
    forward, backward = functions(name, implementation)
    x, dout = 4 * rng.standard_normal((2, 3, 4, 5)), rng.standard_normal((2, 3, 4, 5))
    dx = backward(dout, forward(x)[1])
    assert_finite_differences_agree(lambda x: forward(x)[0], [x], [dx], dout)


@pytest.mark.parametrize("name", NAMES)
def test_non_contiguous_input_and_float32(rng, name, implementation):
    forward, backward = functions(name, implementation)
    x, dout = rng.standard_normal((2, 2, 3, 4, 5)).astype(np.float32)
    out, cache = forward(x)
    awkward, awkward_cache = forward(non_contiguous(x))
    np.testing.assert_array_equal(awkward, out)
    dx = backward(dout, cache)
    np.testing.assert_array_equal(backward(non_contiguous(dout), awkward_cache), dx)
    assert out.dtype == dx.dtype == np.float32


def test_sigmoid_neither_overflows_nor_loses_its_small_end(implementation):
    forward, backward = functions("sigmoid", implementation)
    x = np.array([-1e4, -700.0, -40.0, 40.0, 1e4])
    out, cache = forward(x)
    np.testing.assert_allclose(out, [0, np.exp(-700), np.exp(-40), 1, 1], rtol=1e-14)
    assert np.isfinite(backward(np.ones(5), cache)).all()


@pytest.mark.parametrize("name", NAMES)
def test_not_a_number_is_not_hidden(name, implementation):
    out, _ = functions(name, implementation)[0](np.array([np.nan, 1.0]))
    assert np.isnan(out[0])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [0, 1, 4, 1023, 1028, 5000])
def test_every_size_on_a_device_gives_the_numbers_of_numpy(rng, name, size, implementation):
    x, dout = (rng.standard_normal((2, size)) * 4).astype(np.float32)
    forward, backward = functions(name, "numpy")
    expected, cache = forward(x)
    expected_dx = backward(dout, cache)
    on_device = emulated_device.asarray if implementation == "cuda_cpu" else np.asarray
    forward, backward = functions(name, None)
    for order in ("forward", "reverse", "random"):
        with fiber_order(order), record_launches() as launches:
            out, cache = forward(on_device(x))
            dx = backward(on_device(dout), cache)
        assert len(launches) == (2 if implementation == "cuda_cpu" else 0)
        np.testing.assert_allclose(asnumpy(out), expected, rtol=3e-7, atol=1e-12)
        np.testing.assert_allclose(asnumpy(dx), expected_dx, rtol=3e-7, atol=5e-7)


@pytest.mark.parametrize("name", NAMES)
def test_an_upstream_gradient_of_another_shape_is_refused(name, implementation):
    forward, backward = functions(name, implementation)
    _, cache = forward(np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"\(3, 2\)"):
        backward(np.zeros((3, 2)), cache)


@pytest.mark.parametrize("name", NAMES)
def test_integers_are_refused(name, implementation):
    with pytest.raises(TypeError, match="int64"):
        functions(name, implementation)[0](np.array([1, 2]))


def test_relative_agreement_is_what_is_tested(rng):
    # The harness itself: a gradient wrong by a millionth must be seen.
    x = rng.standard_normal(100)
    with pytest.raises(AssertionError, match="relative error"):
        assert_agrees(x * (1 + 1e-6), x)
