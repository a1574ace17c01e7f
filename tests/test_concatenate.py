"""Concatenation along the channels, and the split that is its backward."""

import numpy as np
import pytest
from checks import assert_finite_differences_agree, frozen, non_contiguous

from minisegnet.cuda import emulated_device, emulator
from minisegnet.ops import concatenate_backward, concatenate_forward

implementations = pytest.mark.parametrize("implementation", ["numpy", "cuda_cpu"])
# As many inputs as one launch takes, fewer and more; all widths multiples of 4, and not.
CHANNELS = [(1, 4, 2), (3,), (8, 4), (256, 12, 4, 48, 64), (5, 1, 33, 2, 1, 1), (4,) * 7,
            (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13)]


@implementations
@pytest.mark.parametrize("channels", CHANNELS, ids=str)
@pytest.mark.parametrize("size", [(2, 3, 4), (1, 1, 1), (1, 13, 17)], ids=str)
def test_channels_are_joined_in_order_and_split_again(rng, channels, size, implementation):
    inputs = [frozen(rng.standard_normal((*size, C))) for C in channels]
    out, cache = concatenate_forward([non_contiguous(x) for x in inputs],
                                     implementation=implementation)
    np.testing.assert_array_equal(out, np.concatenate(inputs, axis=3))
    pieces = concatenate_backward(non_contiguous(out), cache, implementation=implementation)
    for x, piece in zip(inputs, pieces, strict=True):
        np.testing.assert_array_equal(piece, x)


@implementations
def test_gradients_match_finite_differences(rng, implementation):
    inputs = [rng.standard_normal((1, 2, 2, C)) for C in (2, 1)]
    out, cache = concatenate_forward(inputs, implementation=implementation)
    dout = rng.standard_normal(out.shape)
    gradients = concatenate_backward(dout, cache, implementation=implementation)
    assert_finite_differences_agree(lambda *inputs: concatenate_forward(inputs)[0], inputs,
                                    gradients, dout)


@implementations
def test_a_pixel_that_stands_for_all_is_joined_like_a_map(rng, implementation):
    x, pixel = rng.standard_normal((2, 3, 5, 4)), rng.standard_normal((2, 1, 1, 8))
    repeated = np.broadcast_to(pixel, (2, 3, 5, 8))
    out, _ = concatenate_forward([x, repeated], implementation=implementation)
    np.testing.assert_array_equal(out[..., :4], x)
    np.testing.assert_array_equal(out[..., 4:], repeated)


@pytest.mark.parametrize("order", ["forward", "reverse", "random"])
@pytest.mark.parametrize("channels", [(8, 4), (5, 1, 3, 2, 1, 1, 7)], ids=str)
def test_a_device_gives_the_same_bits_and_pieces_without_gaps(rng, compiler, channels, order):
    inputs = [rng.standard_normal((2, 9, 7, C)).astype(np.float32) for C in channels]
    with emulator.fiber_order(order):
        out, cache = concatenate_forward([emulated_device.asarray(x) for x in inputs])
        pieces = concatenate_backward(out, cache)
    np.testing.assert_array_equal(out.get(), np.concatenate(inputs, axis=3))
    for x, piece in zip(inputs, pieces, strict=True):
        assert piece.flags.c_contiguous
        np.testing.assert_array_equal(piece.get(), x)


@implementations
def test_dtype_is_kept(implementation):
    inputs = [np.zeros((1, 2, 2, C), np.float32) for C in (2, 1)]
    out, cache = concatenate_forward(inputs, implementation=implementation)
    pieces = concatenate_backward(out, cache, implementation=implementation)
    assert out.dtype == pieces[0].dtype == np.float32


@implementations
def test_maps_of_other_sizes_and_dtypes_are_refused(implementation):
    with pytest.raises(ValueError, match=r"\(1, 2, 2, 3\), \(1, 2, 3, 3\)"):
        concatenate_forward([np.zeros((1, 2, 2, 3)), np.zeros((1, 2, 3, 3))],
                            implementation=implementation)
    with pytest.raises(TypeError, match="float32.*float64"):
        concatenate_forward([np.zeros((1, 2, 2, 3), np.float32), np.zeros((1, 2, 2, 3))],
                            implementation=implementation)


@implementations
def test_an_upstream_gradient_with_other_channels_is_refused(implementation):
    _, cache = concatenate_forward([np.zeros((1, 2, 2, 3)), np.zeros((1, 2, 2, 1))])
    with pytest.raises(ValueError, match="4 channels.*5"):
        concatenate_backward(np.zeros((1, 2, 2, 5)), cache, implementation=implementation)
