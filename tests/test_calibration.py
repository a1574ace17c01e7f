"""Calibration: numbers worked by hand, honest probabilities, bins whatever the batches."""

import math

import numpy as np
import pytest
from checks import frozen

from minisegnet.calibration import Calibration


def calibration_of(target, probs, **options):
    calibration = Calibration(np.shape(probs)[-1], **options)
    calibration.update(np.asarray(target), np.asarray(probs))
    return calibration


def test_every_number_of_four_pixels_worked_by_hand():
    # Two bins. Class 0 has 0.9 0.8 | 0.3 0.2, and is the truth of the first and the third pixel.
    calibration = calibration_of([0, 1, 0, 1], [[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.2, 0.8]],
                                 bins=2)
    classes, top = calibration.classes, calibration.top_label
    np.testing.assert_array_equal(classes.count, [[2, 2], [2, 2]])
    np.testing.assert_allclose(classes.confidence, [[0.25, 0.85], [0.15, 0.75]])
    np.testing.assert_allclose(classes.observed, [[0.5, 0.5], [0.5, 0.5]])
    np.testing.assert_allclose(classes.ece, [(0.25 + 0.35) / 2, (0.35 + 0.25) / 2])
    np.testing.assert_allclose(classes.mean_probability, [0.55, 0.45])
    np.testing.assert_allclose(classes.frequency, [0.5, 0.5])
    assert calibration.classwise_ece == pytest.approx(0.3)
    # The top label: 0.9 right, 0.8 wrong, 0.7 wrong, 0.8 right.
    np.testing.assert_array_equal(top.count, [[0, 4]])
    assert top.confidence[0, 1] == pytest.approx(0.8) and math.isnan(top.confidence[0, 0])
    assert top.ece[0] == pytest.approx(0.3)


def drawn(rng, probs):
    """Return labels drawn with the probabilities (P, K)."""
    return (rng.random((len(probs), 1)) > probs.cumsum(axis=1)[:, :-1]).sum(axis=1)


def test_labels_drawn_with_the_probabilities_are_calibrated_and_sharpened_ones_are_not(rng):
    probs = rng.dirichlet([1.0, 0.5, 0.1], 200_000)
    target = drawn(rng, probs)
    honest = calibration_of(target, probs)
    assert honest.classes.ece.max() < 0.005 and honest.top_label.ece[0] < 0.005
    np.testing.assert_allclose(honest.classes.mean_probability, honest.classes.frequency,
                               atol=0.003)
    sharp = probs ** 3 / (probs ** 3).sum(axis=1, keepdims=True)
    overconfident = calibration_of(target, sharp)
    assert overconfident.top_label.ece[0] > 0.1
    last = overconfident.top_label
    assert last.confidence[0, -2] > last.observed[0, -2] + 0.1


def test_a_class_promised_k_times_too_often_has_k_times_its_frequency_as_mean(rng):
    # One pixel in 50 is of class 1; a model that knows nothing but was weighted 5:1 says 5/54.
    target = (np.arange(1000) % 50 == 0).astype(int)
    p = 5 / 54
    calibration = calibration_of(target, np.tile([1 - p, p], (1000, 1)))
    classes = calibration.classes
    assert classes.mean_probability[1] / classes.frequency[1] == pytest.approx(50 * p)
    np.testing.assert_allclose(classes.ece, p - 0.02)


def test_batches_threads_and_dtypes_do_not_matter(rng):
    probs = rng.dirichlet(np.ones(4), (3, 70, 90)).astype(np.float32)
    target = rng.integers(0, 4, (3, 70, 90)).astype(np.uint8)
    target[rng.random(target.shape) < 0.2] = 255
    whole, parts = calibration_of(target, probs), Calibration(4)
    for t, p in zip(target, probs):
        parts.update(t.astype(np.int64), p.astype(np.float64))
    for one, other in ((whole.classes, parts.classes), (whole.top_label, parts.top_label)):
        np.testing.assert_array_equal(one.hits, other.hits)
        assert abs(one.count - other.count).sum() <= 4  # on the edge of a bin, by the dtype
        np.testing.assert_allclose(one.total.sum(), other.total.sum(), rtol=1e-6)
    assert whole.classes.count.sum() == 4 * (target != 255).sum()


def test_ignored_pixels_count_nowhere_and_inputs_stay_as_they_are(rng):
    probs, target = frozen(rng.dirichlet(np.ones(3), (5, 6)), rng.integers(0, 3, (5, 6)))
    ignored = target.copy()
    ignored[:3] = 255
    with_ignored, without = calibration_of(ignored, probs), calibration_of(target[3:], probs[3:])
    np.testing.assert_array_equal(with_ignored.classes.count, without.classes.count)
    np.testing.assert_array_equal(with_ignored.classes.hits, without.classes.hits)
    np.testing.assert_array_equal(with_ignored.top_label.hits, without.top_label.hits)


def test_certain_and_impossible_are_in_the_outer_bins():
    calibration = calibration_of([0], [[1.0, 0.0]], bins=4)
    np.testing.assert_array_equal(calibration.classes.count, [[0, 0, 0, 1], [1, 0, 0, 0]])
    assert calibration.classes.ece.tolist() == [0, 0]


def test_before_the_first_pixel_there_is_no_number():
    calibration = Calibration(3)
    assert np.isnan(calibration.classes.ece).all() and np.isnan(calibration.top_label.ece).all()
    assert math.isnan(calibration.classwise_ece)
    calibration.update(np.full((2, 2), 255), np.full((2, 2, 3), 1 / 3))
    assert np.isnan(calibration.classes.mean_probability).all()


@pytest.mark.parametrize("target, probs, words", [
    ([0, 1], [[0.5, 0.5]], r"do not fit"), ([0], [[0.2, 0.3, 0.5]], "do not fit"),
    ([2], [[0.5, 0.5]], "labels from 2 to 2"), ([-1], [[0.5, 0.5]], "labels from -1"),
    ([0], [[2.0, -1.0]], "softmax"), ([0], [[np.nan, 1.0]], "softmax")])
def test_what_is_no_probability_of_a_label_is_refused(target, probs, words):
    with pytest.raises(ValueError, match=words):
        Calibration(2).update(np.array(target), np.array(probs))
