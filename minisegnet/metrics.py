"""Every metric of a segmentation, from one confusion matrix pooled over the data set.

Averaging per-image scores gives other numbers: an image without a class then says nothing about
it, and a tiny object weighs as much as a large one. Counts are pooled first, divided once.
"""

import math

import numpy as np

from minisegnet.backend import asnumpy


def divide(numerator, denominator):
    """Divide elementwise; nan where the denominator is 0: the question does not arise there."""
    quotient = np.full(np.shape(numerator), np.nan)
    np.divide(numerator, denominator, out=quotient, where=np.asarray(denominator) != 0)
    return quotient


def mean_of_defined(values):
    """Return the mean of the values that are not nan, nan where there are none."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")


class ConfusionMatrix:
    """Counts of (true class, predicted class) pairs over all pixels that are not ignored.

    `matrix` is (K, K) int64: row truth, column prediction. Per-class results are (K,) float64 and
    nan where they are undefined, never 0 and never 1. Everett et al., "The Pascal VOC Challenge: A
    Retrospective" (2015), section 4.3, for IoU; Long et al., "Fully Convolutional Networks for
    Semantic Segmentation" (2015), section 5, for the means.
    """

    def __init__(self, num_classes, ignore_index=255):
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.matrix = np.zeros((num_classes, num_classes), dtype=np.int64)

    def reset(self):
        """Forget all counts."""
        self.matrix.fill(0)

    def update(self, target, prediction):
        """Count the pixels of `target` and `prediction`, integer arrays of one shape.

        Raises TypeError for other dtypes, ValueError for shapes that differ or a valid pixel's
        value outside 0 .. K-1; nothing is counted then.
        """
        target, prediction = asnumpy(target), asnumpy(prediction)
        for name, labels in (("target", target), ("prediction", prediction)):
            if not np.issubdtype(labels.dtype, np.integer):
                raise TypeError(
                    f"{name} must hold integer class indices, got {labels.dtype}"
                    + (": take logits.argmax(axis=-1)" if name == "prediction" else "")
                )
        if target.shape != prediction.shape:
            raise ValueError(
                f"target {target.shape} and prediction {prediction.shape} differ in shape: "
                "resize the prediction to the size of the truth"
            )
        valid = target != self.ignore_index
        target, prediction = target[valid], prediction[valid]  # (P,)
        self._check_range("target", target)
        self._check_range("prediction", prediction)
        # One number per pixel, in the order of the flattened matrix, counted in one pass.
        cell = target.astype(np.intp) * self.num_classes + prediction.astype(np.intp)  # (P,)
        counts = np.bincount(cell, minlength=self.matrix.size)
        self.matrix += counts.reshape(self.matrix.shape)

    def _check_range(self, name, labels):
        if labels.size and (labels.min() < 0 or labels.max() >= self.num_classes):
            found = np.unique(labels[(labels < 0) | (labels >= self.num_classes)])
            raise ValueError(
                f"{name} holds {found[:8].tolist()}, outside 0..{self.num_classes - 1} and not "
                f"ignore_index {self.ignore_index}: check num_classes and the label mapping"
            )

    @property
    def counts(self):
        """The three counts every metric below is made of, (3, K): hits, truth, predicted."""
        return np.stack([self._hits, self._truth, self._predicted])

    @property
    def _hits(self):
        return np.diag(self.matrix)

    @property
    def _truth(self):
        return self.matrix.sum(axis=1)

    @property
    def _predicted(self):
        return self.matrix.sum(axis=0)

    @property
    def absent(self):
        """Classes in neither truth nor prediction, (K,) bool: they have no IoU and no dice."""
        return self._truth + self._predicted == 0

    @property
    def iou(self):
        """Intersection over union per class, `TP / (TP + FP + FN)`; nan where absent."""
        return divide(self._hits, self._truth + self._predicted - self._hits)

    @property
    def dice(self):
        """Dice (F1) per class, `2 TP / (2 TP + FP + FN)`, never below IoU; nan where absent."""
        return divide(2 * self._hits, self._truth + self._predicted)

    @property
    def precision(self):
        """The share of each class's predicted pixels that are right; nan where never predicted."""
        return divide(self._hits, self._predicted)

    @property
    def recall(self):
        """The share of each class's true pixels that are found; nan where not in the truth."""
        return divide(self._hits, self._truth)

    @property
    def pixel_accuracy(self):
        """The share of valid pixels that are right; nan before the first pixel."""
        return float(divide(self._hits.sum(), self.matrix.sum()))

    @property
    def mean_class_accuracy(self):
        """The mean recall over the classes in the truth."""
        return mean_of_defined(self.recall)

    @property
    def mean_iou_present(self):
        """The mean IoU over the classes in truth or prediction."""
        return mean_of_defined(self.iou)

    @property
    def mean_iou_all(self):
        """The sum of the IoUs over K: an absent class adds nothing, yet counts as a class."""
        return self._mean_over_all(self.iou)

    @property
    def mean_dice_present(self):
        """The mean dice over the classes in truth or prediction."""
        return mean_of_defined(self.dice)

    @property
    def mean_dice_all(self):
        """The sum of the dices over K: an absent class adds nothing, yet counts as a class."""
        return self._mean_over_all(self.dice)

    def _mean_over_all(self, values):
        # An empty matrix has no mean: 0 would look like a bad model where there was no data.
        return float(np.nansum(values)) / self.num_classes if self.matrix.any() else float("nan")

    @property
    def fw_iou(self):
        """IoU averaged with the truth's pixel shares as weights, never above pixel accuracy."""
        if not self.matrix.any():
            return float("nan")
        truth = self._truth
        in_truth = truth > 0
        return float((truth[in_truth] * self.iou[in_truth]).sum() / truth.sum())

    def active_classes(self, threshold=0.01):
        """Return how many classes have an IoU above `threshold`: a collapsed model has one."""
        return int(np.count_nonzero(self.iou > threshold))


def bootstrap_iou(counts, *, resamples=1000, level=0.95, seed=0):
    """Return intervals over images, of the mean IoU (2,) and of the IoU per class (2, K).

    `counts` (I, 3, K) are `ConfusionMatrix.counts` of each of I images. Images are drawn anew with
    replacement, pooled and scored, `resamples` times; an interval is from the (1 - level) / 2 to
    the (1 + level) / 2 quantile (Efron and Tibshirani, "An Introduction to the Bootstrap" (1993),
    chapter 13). A draw without a class has no IoU of it, and its mean is over the others. nan
    where there is nothing to draw: one image, or a class in none.

    The interval says what other images of the same kind would change. It knows nothing of another
    training run, and is too narrow where images resemble each other, as frames of a film do.
    """
    counts = np.asarray(counts, np.float64)  # whole numbers below 2^53: sums are exact
    images, _, K = counts.shape
    mean_interval, interval = np.full(2, np.nan), np.full((2, K), np.nan)
    if images < 2 or resamples < 1:
        return mean_interval, interval
    rng = np.random.default_rng(seed)
    iou = np.empty((resamples, K))
    for i in range(resamples):
        times_drawn = np.bincount(rng.integers(images, size=images), minlength=images)
        hits, truth, predicted = np.tensordot(times_drawn, counts, 1)
        iou[i] = divide(hits, truth + predicted - hits)
    mean = divide(np.nansum(iou, axis=1), (~np.isnan(iou)).sum(axis=1))  # (resamples,)
    quantiles = (0.5 - level / 2, 0.5 + level / 2)
    for values, target in ((mean, mean_interval), *zip(iou.T, interval.T)):
        values = values[~np.isnan(values)]
        if values.size:
            target[:] = np.quantile(values, quantiles)
    return mean_interval, interval


def expected_maximum(n):
    """Return the mean of the largest of `n` independent standard normal numbers."""
    x = (np.arange(-9000, 9000) + 0.5) / 1000
    below = np.array([0.5 * math.erfc(-each / math.sqrt(2)) for each in x]) ** n
    # E[max] = integral of P(max > x) over x > 0, less that of P(max < x) over x < 0
    return float(np.sum(np.where(x > 0, 1 - below, -below)) / 1000)
