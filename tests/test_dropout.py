"""Dropout: what is kept is scaled, what is dropped gets no gradient."""

import numpy as np
import pytest
from checks import frozen, non_contiguous

from minisegnet.ops import dropout_backward, dropout_forward


def test_elements_are_zero_or_scaled_and_gradients_follow_the_same_mask(rng):
    x, dout = frozen(rng.standard_normal((4, 30, 30, 8)), rng.standard_normal((4, 30, 30, 8)))
    out, mask = dropout_forward(x, 0.3, np.random.default_rng(5))
    kept = out != 0
    np.testing.assert_allclose(out[kept], x[kept] / 0.7, rtol=1e-14)
    np.testing.assert_allclose(dropout_backward(dout, mask), kept * dout / 0.7, rtol=1e-14)
    # 28,800 draws: five standard deviations are 0.0135
    assert abs(kept.mean() - 0.7) < 0.0135


def test_the_same_generator_drops_the_same_elements():
    x = np.ones((2, 3, 4, 5))
    first, _ = dropout_forward(x, 0.5, np.random.default_rng(1))
    again, _ = dropout_forward(non_contiguous(x), 0.5, np.random.default_rng(1))
    other, _ = dropout_forward(x, 0.5, np.random.default_rng(2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_probability_zero_changes_nothing(rng):
    x = rng.standard_normal((2, 3, 4, 5))
    np.testing.assert_array_equal(dropout_forward(x, 0.0, rng)[0], x)


def test_dtype_is_kept(rng):
    out, mask = dropout_forward(np.ones((2, 3, 4, 5), np.float32), 0.5, rng)
    assert out.dtype == mask.dtype == dropout_backward(out, mask).dtype == np.float32


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, float("nan")])
def test_a_probability_outside_its_range_is_refused(rng, p):
    with pytest.raises(ValueError, match="dropout probability"):
        dropout_forward(np.ones((1, 1, 1, 1)), p, rng)


def test_an_upstream_gradient_of_another_shape_is_refused(rng):
    _, mask = dropout_forward(np.ones((2, 3, 4, 5)), 0.5, rng)
    with pytest.raises(ValueError):
        dropout_backward(np.ones((2, 4, 3, 5)), mask)
