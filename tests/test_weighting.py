"""Class statistics and weights: counted by hand, and each scheme's defining property."""

from types import SimpleNamespace

import numpy as np
import pytest

from minisegnet.imbalance import SCHEMES, ClassStatistics, class_weights

# Two images of 8 pixels. The first: 5 of class 0, 2 of class 1, 1 ignored.
# The second: 7 of class 0, 1 of class 2. Class 3 is in neither.
MASKS = [
    np.array([[0, 0, 0, 0], [0, 1, 1, 255]], np.uint8),
    np.array([[0, 0, 0, 0], [0, 0, 0, 2]], np.uint8),
]


@pytest.fixture
def statistics():
    return ClassStatistics.from_masks(MASKS, num_classes=4)


def with_pixels(*pixels):
    """Return statistics of one image with these pixel counts."""
    return ClassStatistics(np.array([pixels]))


def test_statistics_counted_by_hand(statistics):
    np.testing.assert_array_equal(statistics.pixels, [12, 2, 1, 0])
    np.testing.assert_array_equal(statistics.image_pixels, [15, 7, 8, 0])
    np.testing.assert_array_equal(statistics.images, [2, 1, 1, 0])
    np.testing.assert_array_equal(statistics.first_image, [0, 0, 1, -1])
    assert statistics.num_images == 2
    np.testing.assert_allclose(statistics.frequency, [12 / 15, 2 / 15, 1 / 15, 0])


def test_pixels_of_each_class_are_kept_for_each_image(statistics):
    np.testing.assert_array_equal(statistics.counts, [[5, 2, 0, 0], [7, 0, 1, 0]])
    assert statistics.counts.dtype == np.int64


def test_statistics_of_no_mask_are_zeros():
    nothing = ClassStatistics.from_masks([], num_classes=3)
    assert nothing.num_images == 0 and nothing.counts.shape == (0, 3)
    assert nothing.first_image.tolist() == [-1] * 3
    assert not (nothing.pixels.any() or nothing.images.any() or nothing.image_pixels.any())


def test_statistics_of_a_generator_of_masks(statistics):
    lazily = ClassStatistics.from_masks((mask.astype(np.int32) for mask in MASKS), 4)
    np.testing.assert_array_equal(lazily.pixels, statistics.pixels)


@pytest.mark.parametrize("scheme, expected", [
    ("none", [1, 1, 1, 1]),
    ("inverse", [15 / 48, 15 / 8, 15 / 4, 0]),
    ("sqrt", [1, np.sqrt(6), np.sqrt(12), 0]),
    ("median", [(2 / 7) / (12 / 15), 1, (2 / 7) / (1 / 8), 0]),  # shares 12/15, 2/7, 1/8
    ("enet", [1 / np.log(1.02 + 0.8), 1 / np.log(1.02 + 2 / 15), 1 / np.log(1.02 + 1 / 15), 0]),
    ("effective", [0.1 / 0.19, 1, 1, 0]),  # 2, 1 and 1 images, beta 0.9
])
def test_weights_worked_by_hand(statistics, scheme, expected):
    weights = class_weights(statistics, scheme, beta=0.9)
    assert weights.dtype == np.float64
    np.testing.assert_allclose(weights, expected, rtol=1e-12)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_rarer_classes_never_weigh_less(rng, scheme):
    # Class k is in 90 - 10 k of 100 images, with about 1000 pixels in each.
    present = np.arange(100)[:, None] < np.arange(90, 0, -10)
    statistics = ClassStatistics(present * rng.integers(900, 1100, (100, 9)))
    assert (np.diff(class_weights(statistics, scheme)) >= 0).all()


@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme != "none"])
def test_an_absent_class_gets_zero_never_the_cap(statistics, scheme):
    assert class_weights(statistics, scheme)[3] == 0
    assert class_weights(statistics, scheme, cap=None)[3] == 0


@pytest.mark.parametrize("scheme", ["none", "inverse", "sqrt", "median", "enet"])
def test_classes_of_equal_share_weigh_the_same(scheme):
    weights = class_weights(with_pixels(7, 7, 7, 7), scheme)
    np.testing.assert_allclose(weights, weights[0])
    if scheme != "enet":
        np.testing.assert_allclose(weights, 1)


def test_inverse_weights_give_every_present_class_the_same_total(statistics):
    totals = class_weights(statistics, "inverse", cap=None) * statistics.pixels
    np.testing.assert_allclose(totals[:3], totals[0])


def test_enet_weights_range_from_1_42_to_50_5():
    weights = class_weights(with_pixels(10**12, 1), "enet")
    assert weights == pytest.approx([1.42, 50.5], rel=2e-3)


def test_published_floor_plan_weights_follow_from_the_formula():
    # 34 classes: 75 % background is worth 0.039 and a 2 % class 1.47 (not 0.5 and 5).
    pixels = np.array([7500, 200] + [72] * 31 + [68])
    weights = class_weights(with_pixels(*pixels), "inverse")
    assert weights[:2] == pytest.approx([0.039, 1.47], abs=5e-3)


def test_sqrt_turns_2445_to_1_into_49_to_1():
    assert class_weights(with_pixels(2445, 1), "sqrt") == pytest.approx([1, 49.4], abs=0.1)


def test_effective_number_is_flat_on_pixel_counts_but_not_on_images():
    counts = np.tile([6000, 4000], (5000, 1))
    counts[50:, 1] = 0
    on_images = ClassStatistics(counts)
    # What would come out if the formula's m were pixels.
    on_pixels = SimpleNamespace(pixels=on_images.pixels, frequency=on_images.frequency,
                                images=on_images.pixels)
    np.testing.assert_allclose(class_weights(on_pixels, "effective"), 1e-4, rtol=1e-6)
    common, rare = class_weights(on_images, "effective")
    assert rare / common > 50


def test_cap_bounds_the_weights_and_none_lifts_it():
    statistics = with_pixels(10**6, 10)
    assert class_weights(statistics, "inverse")[1] == 100
    assert class_weights(statistics, "inverse", cap=7.5)[1] == 7.5
    assert class_weights(statistics, "inverse", cap=None)[1] > 50_000


def test_normalized_weights_sum_to_the_number_of_classes_and_keep_their_ratios(statistics):
    plain = class_weights(statistics, "sqrt")
    weights = class_weights(statistics, "sqrt", normalize="sum")
    assert weights.sum() == pytest.approx(4)
    np.testing.assert_allclose(weights[:3] / weights[0], plain[:3] / plain[0])


@pytest.mark.parametrize("options, words", [
    ({"scheme": "inverted"}, "inverted.*none, inverse"),
    ({"scheme": "inverse", "normalize": "max"}, "normalize"),
    ({"scheme": "effective", "beta": 1.0}, "beta"),
    ({"scheme": "inverse", "cap": 0}, "cap"),
])
def test_senseless_option_is_refused_by_name(statistics, options, words):
    with pytest.raises(ValueError, match=words):
        class_weights(statistics, **options)


def test_masks_without_a_valid_pixel_are_refused():
    nothing = ClassStatistics.from_masks([np.full((2, 2), 255)], num_classes=3)
    with pytest.raises(ValueError, match="no valid pixel in 1 masks"):
        class_weights(nothing, "inverse")


def test_labels_out_of_range_are_refused_with_the_mask_and_the_values():
    masks = [np.zeros((2, 2), int), np.array([[0, 9], [-2, 0]])]
    with pytest.raises(ValueError, match=r"mask 1 holds \[-2, 9\], outside 0..2"):
        ClassStatistics.from_masks(masks, num_classes=3)


def test_masks_of_floats_are_refused():
    with pytest.raises(TypeError, match="mask 0 has dtype float64"):
        ClassStatistics.from_masks([np.zeros((2, 2))], num_classes=3)


def test_statistics_know_the_first_image_of_each_class():
    masks = [np.array([[0, 255]]), np.array([[2, 0]]), np.array([[2, 2]])]
    assert ClassStatistics.from_masks(masks, 4).first_image.tolist() == [0, -1, 1, -1]
