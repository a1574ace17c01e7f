"""Concatenation along the channels, and the split that is its backward."""

import numpy as np
import pytest
from checks import assert_finite_differences_agree, frozen, non_contiguous

from minisegnet.ops import concatenate_backward, concatenate_forward


def test_channels_are_joined_in_order_and_split_again(rng):
    inputs = frozen(*(rng.standard_normal((2, 3, 4, C)) for C in (1, 4, 2)))
    out, cache = concatenate_forward([non_contiguous(x) for x in inputs])
    np.testing.assert_array_equal(out, np.concatenate(inputs, axis=3))
    for x, piece in zip(inputs, concatenate_backward(out, cache), strict=True):
        np.testing.assert_array_equal(piece, x)


def test_gradients_match_finite_differences(rng):
    inputs = [rng.standard_normal((1, 2, 2, C)) for C in (2, 1)]
    out, cache = concatenate_forward(inputs)
    dout = rng.standard_normal(out.shape)
    assert_finite_differences_agree(lambda *inputs: concatenate_forward(inputs)[0], inputs,
                                    concatenate_backward(dout, cache), dout)


def test_dtype_is_kept():
    inputs = [np.zeros((1, 2, 2, C), np.float32) for C in (2, 1)]
    out, cache = concatenate_forward(inputs)
    assert out.dtype == concatenate_backward(out, cache)[0].dtype == np.float32


def test_maps_of_other_sizes_and_dtypes_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 2, 2, 3\), \(1, 2, 3, 3\)"):
        concatenate_forward([np.zeros((1, 2, 2, 3)), np.zeros((1, 2, 3, 3))])
    with pytest.raises(TypeError, match="float32.*float64"):
        concatenate_forward([np.zeros((1, 2, 2, 3), np.float32), np.zeros((1, 2, 2, 3))])


def test_an_upstream_gradient_with_other_channels_is_refused():
    _, cache = concatenate_forward([np.zeros((1, 2, 2, 3)), np.zeros((1, 2, 2, 1))])
    with pytest.raises(ValueError, match="4 channels.*5"):
        concatenate_backward(np.zeros((1, 2, 2, 5)), cache)
