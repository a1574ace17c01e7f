"""Windows: they cover everything, blend without a seam, and need bounded memory."""

import tracemalloc

import numpy as np
import pytest
from checks import assert_agrees, frozen

from minisegnet.ops import upsample_bilinear_forward
from minisegnet.training.sliding_window import (
    blend_weights,
    enlarged_rows,
    grid_windows,
    predict_windows,
    scaled_size,
    window_origins,
)


def colours_to_probs(images):
    """A position-independent predictor: each pixel's colour alone decides, (N, h, w, 3) -> 5."""
    mix = np.random.default_rng(5).standard_normal((3, 5)).astype(np.float32)
    z = np.exp(images / np.float32(64) @ mix)
    return z / z.sum(axis=3, keepdims=True)


def by_windows(predict, image, window, **options):
    return np.stack(list(predict_windows(predict, image, window, **options)))


@pytest.mark.parametrize("length", [1, 7, 8, 9, 12, 40, 41])
@pytest.mark.parametrize("stride", [1, 3, 4, 8])
def test_windows_cover_a_line_and_stay_inside_it(length, stride):
    origins = window_origins(length, 8, stride)
    covered = np.zeros(length, int)
    for origin in origins:
        covered[origin:origin + 8] += 1
    assert covered.min() >= 1
    assert origins == sorted(set(origins)) and origins[0] == 0
    assert origins[-1] == max(0, length - 8)
    assert all(b - a <= stride for a, b in zip(origins, origins[1:]))


def test_a_line_that_fits_has_one_window():
    assert window_origins(8, 8, 4) == window_origins(3, 8, 4) == [0]
    assert window_origins(9, 8, 4) == [0, 1]
    assert window_origins(20, 8, 4) == [0, 4, 8, 12]


@pytest.mark.parametrize("size", [(8, 8), (7, 10), (1, 5), (1, 1)])
def test_blend_weights_are_positive_symmetric_and_fall_to_the_border(size):
    weights = blend_weights(size)
    assert weights.shape == size and weights.dtype == np.float32 and weights.min() > 0
    np.testing.assert_allclose(weights, weights[::-1, ::-1], rtol=1e-4)
    for n, profile in zip(size, (weights.max(axis=1), weights.max(axis=0))):
        assert (np.diff(profile[:(n + 1) // 2]) > 0).all()


def test_weights_of_windows_half_a_window_apart_add_up_to_one():
    total = np.zeros((40, 24))
    for top in window_origins(40, 16, 8):
        for left in window_origins(24, 8, 4):
            total[top:top + 16, left:left + 8] += blend_weights((16, 8))
    np.testing.assert_allclose(total[8:-8, 4:-4], 1, rtol=1e-6)


@pytest.mark.parametrize("size", [(8, 12), (9, 13), (23, 31), (8, 50), (61, 12)])
@pytest.mark.parametrize("overlap", [0, 0.3, 0.5, 0.9])
def test_a_constant_prediction_stays_what_it_is(rng, size, overlap):
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    out = by_windows(lambda windows: np.full((*windows.shape[:3], 2), 0.25, np.float32), image,
                     (8, 12), overlap=overlap)
    np.testing.assert_allclose(out, 0.25, rtol=1e-6)
    assert out.shape == (*size, 2)


@pytest.mark.parametrize("size", [(8, 12), (9, 13), (24, 31), (8, 50), (61, 12)])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_a_predictor_that_ignores_position_gives_the_same_by_windows_as_whole(rng, size,
                                                                              batch_size):
    image = frozen(rng.integers(0, 256, (*size, 3), np.uint8))
    out = by_windows(colours_to_probs, image, (8, 12), batch_size=batch_size)
    whole = colours_to_probs(image[None])[0]
    assert_agrees(out, whole, 1e-6)
    np.testing.assert_array_equal(out.argmax(axis=2), whole.argmax(axis=2))


@pytest.mark.parametrize("size", [(10, 14), (30, 46), (14, 14), (10, 54)])
def test_windows_meet_on_the_grid_of_a_coarse_network(rng, size):
    """Every fourth pixel, as a network of stride 4 sees it; 10 x 14 px are 3 x 4 cells."""
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    out = by_windows(lambda windows: colours_to_probs(windows)[:, ::4, ::4], image, (10, 14),
                     cell=4)
    assert_agrees(out, colours_to_probs(image[None])[0, ::4, ::4], 1e-6)


def test_neighbours_are_averaged_by_their_weights():
    """One row, two windows: what the first says fades where the second begins."""
    calls = []

    def numbered(windows):
        calls.append(len(windows))
        first = sum(calls[:-1])
        values = np.arange(first, first + len(windows), dtype=np.float32)
        return np.broadcast_to(values[:, None, None, None], (*windows.shape[:3], 1))

    out = by_windows(numbered, np.zeros((1, 12, 3), np.uint8), (1, 8), batch_size=1)
    weight = blend_weights((1, 8))[0]
    share = weight[:4] / (weight[:4] + weight[4:])  # of the second window
    np.testing.assert_allclose(out[0, :, 0], [0] * 4 + share.tolist() + [1] * 4, rtol=1e-6)
    assert (np.diff(out[0, 4:8, 0]) > 0).all() and calls == [1, 1]


@pytest.mark.parametrize("size", [(1, 200), (1, 1), (300, 1), (97, 33), (640, 480), (641, 479)])
@pytest.mark.parametrize("window, cell", [((90, 122), 4), ((33, 47), 1), ((16, 16), 16)])
def test_scaled_size_is_a_window_or_whole_cells_more(size, window, cell):
    scale = (0.5, 0.7)
    scaled = scaled_size(size, window, scale, cell)
    for got, length, w, factor in zip(scaled, size, window, scale):
        assert got >= w and (got - w) % cell == 0
        assert got == w or abs(got - length * factor) <= cell / 2
    tops, lefts = grid_windows(scaled, window, cell=cell)
    assert (len(tops) * len(lefts) == 1) == (scaled == tuple(window))


@pytest.mark.parametrize("size, options", [
    ((7, 12), {}), ((8, 11), {}), ((9, 12), {"cell": 4}), ((8, 12), {"overlap": 1}),
    ((8, 12), {"overlap": -0.1}),
])
def test_what_windows_cannot_cover_is_refused(size, options):
    with pytest.raises(ValueError, match="scaled_size|overlap"):
        next(predict_windows(colours_to_probs, np.zeros((*size, 3), np.uint8), (8, 12),
                             **options))


@pytest.mark.parametrize("size", [(30, 40), (31, 7), (1, 1), (1, 50), (90, 1), (4, 3), (12, 17)])
@pytest.mark.parametrize("grid", [(1, 1), (1, 6), (5, 1), (8, 10), (12, 17)])
def test_enlarged_rows_equal_the_plain_enlargement(rng, grid, size):
    coarse = rng.standard_normal((1, *grid, 3))
    expected, _ = upsample_bilinear_forward(coarse, size)
    for y, row in enumerate(enlarged_rows(frozen(coarse[0]), grid[0], size)):
        assert_agrees(row, expected[0, y].T, 1e-12)
        row[...] = np.nan  # each is its own: what is done to one does not show in the next
    assert y == size[0] - 1


def test_enlarged_rows_follow_the_dtype(rng):
    coarse = rng.standard_normal((4, 5, 2)).astype(np.float32)
    assert next(enlarged_rows(coarse, 4, (9, 9))).dtype == np.float32


def test_memory_depends_on_a_row_of_windows_and_not_on_the_picture():
    """21 classes, 600 x 400 px by windows of 24 x 32: the probabilities would take 20 MB."""
    K, window, batch = 21, (24, 32), 4
    peaks = []
    for height in (300, 600):
        image = np.zeros((height, 400, 3), np.uint8)

        def predict(windows):
            return np.full((*windows.shape[:3], K), 1 / K, np.float32)

        tracemalloc.start()
        for row in enlarged_rows(predict_windows(predict, image, window, batch_size=batch),
                                 height, (height, 400)):
            assert row.shape == (K, 400)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    block = window[0] * 400 * (K + 1) * 4
    windows = batch * window[0] * window[1] * (K + 3) * 4
    rows = 8 * 400 * K * 4
    assert peaks[1] < block + 2 * windows + rows
    assert peaks[1] < 1.05 * peaks[0]
