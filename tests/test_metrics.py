"""Metrics: a matrix counted by hand, what always holds, what is refused; intervals over images."""

import math

import numpy as np
import pytest

from minisegnet.metrics import ConfusionMatrix, bootstrap_iou, expected_maximum


def filled(matrix):
    """Return a ConfusionMatrix that has counted `matrix`."""
    matrix = np.asarray(matrix)
    cells = np.repeat(np.arange(matrix.size), matrix.ravel())
    confusion = ConfusionMatrix(len(matrix))
    confusion.update(cells // len(matrix), cells % len(matrix))
    assert (confusion.matrix == matrix).all()
    return confusion


def counts_of(matrices):
    """Return the counts (I, 3, K) of images with these confusion matrices."""
    return np.stack([filled(matrix).counts for matrix in matrices])


def random_matrix(rng, K=6):
    return filled(rng.integers(0, 50, (K, K)) * (rng.random((K, K)) < 0.5))


# Class 0: 6 true, 5 found, 1 taken for class 1. Class 1: 3 true, 2 found, 1 taken for class 0.
# Class 2: 1 true, not found. Class 3: absent.
BY_HAND = [[5, 1, 0, 0], [1, 2, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]


def test_every_metric_of_a_matrix_worked_by_hand():
    confusion = filled(BY_HAND)
    np.testing.assert_allclose(confusion.iou, [5 / 7, 2 / 5, 0, np.nan])
    np.testing.assert_allclose(confusion.dice, [10 / 12, 4 / 7, 0, np.nan])
    np.testing.assert_allclose(confusion.precision, [5 / 6, 2 / 4, np.nan, np.nan])
    np.testing.assert_allclose(confusion.recall, [5 / 6, 2 / 3, 0, np.nan])
    np.testing.assert_array_equal(confusion.absent, [False, False, False, True])
    assert confusion.pixel_accuracy == pytest.approx(7 / 10)
    assert confusion.mean_class_accuracy == pytest.approx((5 / 6 + 2 / 3 + 0) / 3)
    assert confusion.mean_iou_present == pytest.approx((5 / 7 + 2 / 5) / 3)
    assert confusion.mean_iou_all == pytest.approx((5 / 7 + 2 / 5) / 4)
    assert confusion.mean_dice_present == pytest.approx((10 / 12 + 4 / 7) / 3)
    assert confusion.mean_dice_all == pytest.approx((10 / 12 + 4 / 7) / 4)
    assert confusion.fw_iou == pytest.approx(0.6 * 5 / 7 + 0.3 * 2 / 5)
    assert confusion.active_classes() == 2
    assert confusion.active_classes(threshold=0.5) == 1


@pytest.mark.parametrize("target_dtype", [np.uint8, np.int32, np.int64])
@pytest.mark.parametrize("prediction_dtype", [np.uint8, np.int64])
def test_counts_equal_a_loop_over_pixels(rng, target_dtype, prediction_dtype):
    K = 5
    target = rng.integers(0, K, (2, 7, 6)).astype(target_dtype)
    target[rng.random(target.shape) < 0.3] = 255 - 155  # ignore 100, in reach of every dtype
    prediction = rng.integers(0, K, target.shape).astype(prediction_dtype)
    expected = np.zeros((K, K), dtype=np.int64)
    for t, p in zip(target.flat, prediction.flat):
        if t != 100:
            expected[t, p] += 1
    confusion = ConfusionMatrix(K, ignore_index=100)
    confusion.update(target, prediction)
    assert confusion.matrix.dtype == np.int64
    np.testing.assert_array_equal(confusion.matrix, expected)


def test_uint8_labels_of_200_classes_do_not_wrap_around():
    confusion = ConfusionMatrix(200)
    confusion.update(np.array([[199, 3]], np.uint8), np.array([[198, 3]], np.uint8))
    assert confusion.matrix[199, 198] == confusion.matrix[3, 3] == 1
    assert confusion.matrix.sum() == 2


def test_negative_ignore_index_works():
    confusion = ConfusionMatrix(2, ignore_index=-1)
    confusion.update(np.array([0, -1, 1]), np.array([0, 1, 0]))
    np.testing.assert_array_equal(confusion.matrix, [[1, 0], [1, 0]])


def test_metrics_are_pooled_over_batches_and_reset_forgets(rng):
    target, prediction = rng.integers(0, 4, (2, 6, 5, 5))
    whole, parts = ConfusionMatrix(4), ConfusionMatrix(4)
    whole.update(target, prediction)
    for t, p in zip(target, prediction):
        parts.update(t, p)
    np.testing.assert_array_equal(whole.matrix, parts.matrix)
    parts.reset()
    assert not parts.matrix.any()


def test_a_perfect_prediction_scores_one_everywhere(rng):
    target = rng.integers(0, 3, (4, 4))
    confusion = ConfusionMatrix(3)
    confusion.update(target, target)
    assert (confusion.iou == 1).all() and (confusion.dice == 1).all()
    assert confusion.fw_iou == confusion.pixel_accuracy == confusion.mean_iou_all == 1


def test_dice_is_never_below_iou_and_follows_from_it(rng):
    for _ in range(20):
        confusion = random_matrix(rng)
        iou, dice = (values[~confusion.absent] for values in (confusion.iou, confusion.dice))
        assert (dice >= iou).all()
        np.testing.assert_allclose(dice, 2 * iou / (1 + iou), rtol=1e-12)


def test_fw_iou_is_never_above_pixel_accuracy(rng):
    for _ in range(20):
        confusion = random_matrix(rng)
        assert confusion.fw_iou <= confusion.pixel_accuracy


def test_mean_class_accuracy_weighs_rare_classes_as_much_as_common_ones():
    confusion = filled([[90, 0], [10, 0]])
    assert confusion.pixel_accuracy == pytest.approx(0.9)
    assert confusion.mean_class_accuracy == pytest.approx(0.5)


def test_constant_predictor_scores_its_class_frequency():
    K, k, counts = 5, 2, np.array([10, 20, 50, 15, 5])
    target = np.repeat(np.arange(K), counts)
    confusion = ConfusionMatrix(K)
    confusion.update(target, np.full_like(target, k))
    assert confusion.pixel_accuracy == confusion.iou[k] == 0.5
    assert confusion.mean_iou_all == pytest.approx(0.5 / K)
    assert confusion.mean_class_accuracy == pytest.approx(1 / K)
    assert confusion.active_classes() == 1


def test_absent_classes_are_nan_and_only_lower_the_mean_over_all():
    small, large = ConfusionMatrix(2), ConfusionMatrix(4)
    for confusion in (small, large):
        confusion.update(np.array([0, 0, 1]), np.array([0, 1, 1]))
    assert np.isnan(large.iou[2:]).all() and np.isnan(large.dice[2:]).all()
    assert large.mean_iou_present == small.mean_iou_present
    assert large.mean_iou_all == pytest.approx(small.mean_iou_all / 2)


def test_a_class_predicted_but_not_in_the_truth_has_iou_zero():
    confusion = ConfusionMatrix(2)
    confusion.update(np.array([0, 0]), np.array([0, 1]))
    assert confusion.iou[1] == confusion.precision[1] == 0
    assert math.isnan(confusion.recall[1])


@pytest.mark.parametrize("name", [
    "pixel_accuracy", "mean_class_accuracy", "mean_iou_present", "mean_iou_all",
    "mean_dice_present", "mean_dice_all", "fw_iou",
])
def test_an_empty_matrix_has_no_score(name):
    confusion = ConfusionMatrix(3)
    confusion.update(np.full((2, 2), 255), np.zeros((2, 2), int))  # everything ignored
    assert math.isnan(getattr(confusion, name))
    assert confusion.absent.all() and confusion.active_classes() == 0


def test_ignored_pixels_may_be_predicted_as_anything():
    confusion = ConfusionMatrix(2)
    confusion.update(np.array([0, 255]), np.array([0, 255]))
    assert confusion.matrix.sum() == 1


@pytest.mark.parametrize("target, prediction, error, words", [
    ([0, 7, -3], [0, 0, 0], ValueError, r"target holds \[-3, 7\].*outside 0..2"),
    ([0, 1, 2], [0, 3, 0], ValueError, r"prediction holds \[3\]"),
    ([0, 1], [0, 1, 0], ValueError, r"\(2,\).*\(3,\).*shape"),
    ([0, 1], [0.2, 0.8], TypeError, "argmax"),
    ([0.0, 1.0], [0, 1], TypeError, "target must hold integer"),
])
def test_bad_labels_are_refused_with_the_values_found_and_nothing_is_counted(
        target, prediction, error, words):
    confusion = ConfusionMatrix(3)
    with pytest.raises(error, match=words):
        confusion.update(np.array(target), np.array(prediction))
    assert not confusion.matrix.any()


def test_update_leaves_its_inputs_alone(rng):
    target, prediction = rng.integers(0, 3, (2, 4, 4)).astype(np.uint8)
    before = target.copy(), prediction.copy()
    ConfusionMatrix(3).update(target, prediction)
    np.testing.assert_array_equal((target, prediction), before)


def test_every_interval_contains_its_point_and_more_images_make_it_narrower(rng):
    images = [rng.multinomial(500, [0.6, 0.1, 0.1, 0.2], size=1).reshape(2, 2) for _ in range(15)]
    widths = []
    for matrices in (images, 16 * images):
        mean, per_class = bootstrap_iou(counts_of(matrices))
        pooled = filled(sum(matrices))
        assert mean[0] < pooled.mean_iou_present < mean[1]
        iou = pooled.iou
        assert (per_class[0] < iou).all() and (iou < per_class[1]).all()
        widths.append(mean[1] - mean[0])
    assert widths[1] == pytest.approx(widths[0] / 4, rel=0.2)  # 16 times the images: a quarter


def test_the_interval_of_two_images_is_that_of_its_four_draws():
    # The class has IoU 1 in one image and 0 in the other: draws give 1, 0.5, 0.5, 0.
    counts = np.array([[[8], [8], [8]], [[0], [8], [0]]])
    mean, per_class = bootstrap_iou(counts, resamples=4000, level=0.4)
    assert per_class[:, 0].tolist() == [0.5, 0.5]  # the middle 40 %
    assert bootstrap_iou(counts, level=0.9)[1][:, 0].tolist() == [0, 1]
    np.testing.assert_array_equal(mean, per_class[:, 0])


def test_the_same_seed_gives_the_same_interval(rng):
    counts = counts_of(rng.integers(0, 9, (9, 3, 3)))
    one, same, other = (bootstrap_iou(counts, seed=seed)[1] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_there_is_no_interval_of_one_image_nor_of_an_absent_class():
    assert np.isnan(bootstrap_iou(counts_of([BY_HAND]))[0]).all()
    mean, per_class = bootstrap_iou(counts_of([BY_HAND, np.diag([1, 1, 1, 0])]))
    assert np.isnan(per_class[:, 3]).all() and not np.isnan(per_class[:, :3]).any()
    assert not np.isnan(mean).any()


def test_the_best_of_a_hundred_noise_scores_is_two_and_a_half_sigma_up():
    assert expected_maximum(1) == pytest.approx(0, abs=1e-9)
    assert expected_maximum(2) == pytest.approx(1 / math.sqrt(math.pi), rel=1e-5)
    assert expected_maximum(100) == pytest.approx(2.508, abs=1e-3)
