"""Does a probability mean what it says? Of the pixels given 0.3 for sink, 30 % should be sink.

Counted in bins of probability, batch by batch, so that no probability has to be kept. Sources:
Guo et al., "On Calibration of Modern Neural Networks" (2017), for the top label; Kull et al.,
"Beyond temperature scaling" (2019), section 2, and Nixon et al., "Measuring Calibration in Deep
Learning" (2019), for every class. Few of a rare class's pixels have a probability worth the name,
so its error is small whatever the model does: look at the diagram, and at the mean probability
beside the frequency.
"""

import numpy as np

from minisegnet.metrics import divide
from minisegnet.parallel import parallel_map, row_blocks

BINS = 15  # as in Guo et al.


class Reliability:
    """Rows of bins of equal width over the probabilities 0 to 1; 1.0 is in the last.

    `count`, `total` and `hits` are (rows, bins): the pixels whose probability lies in the bin, the
    sum of these probabilities, and how many of the pixels are what the probability is about.
    """

    def __init__(self, rows, bins=BINS):
        self.count = np.zeros((rows, bins), np.int64)
        self.total = np.zeros((rows, bins))
        self.hits = np.zeros((rows, bins), np.int64)

    @property
    def confidence(self):
        """The mean probability in each bin, (rows, bins); nan in an empty one."""
        return divide(self.total, self.count)

    @property
    def observed(self):
        """The share of each bin's pixels that are hits, (rows, bins); nan in an empty one."""
        return divide(self.hits, self.count)

    @property
    def mean_probability(self):
        """The mean probability over all pixels, (rows,); nan before the first."""
        return divide(self.total.sum(axis=1), self.count.sum(axis=1))

    @property
    def frequency(self):
        """The share of hits among all pixels, (rows,); nan before the first."""
        return divide(self.hits.sum(axis=1), self.count.sum(axis=1))

    @property
    def ece(self):
        """The expected calibration error, (rows,): the mean over the pixels of
        |confidence - observed| of their bins; nan before the first pixel."""
        # count * |confidence - observed| is |total - hits|
        return divide(np.abs(self.total - self.hits).sum(axis=1), self.count.sum(axis=1))


class Calibration:
    """Reliability of the probability of every class, and of the most likely one.

    `classes` has a row per class: its probability against whether the pixel is of that class.
    `top_label` has one row: the largest probability of a pixel against whether it is right.
    """

    def __init__(self, num_classes, ignore_index=255, bins=BINS):
        self.num_classes, self.ignore_index, self.bins = num_classes, ignore_index, bins
        self.classes = Reliability(num_classes, bins)
        self.top_label = Reliability(1, bins)

    @property
    def classwise_ece(self):
        """The mean over all classes of their expected calibration errors."""
        return float(self.classes.ece.mean())

    def update(self, target, probs):
        """Count probabilities (..., K) of the pixels of `target` (...) that are not ignored.

        Raises ValueError for other shapes, labels outside 0 .. K-1, or what is no probability.
        """
        K = self.num_classes
        if probs.shape != (*target.shape, K):
            raise ValueError(f"probs {probs.shape} do not fit target {target.shape}; expected "
                             f"{(*target.shape, K)}")
        labels, rows = target.reshape(-1), probs.reshape(-1, K)  # (P,), (P, K)
        blocks = row_blocks(len(rows), rows.itemsize * K)
        counted = parallel_map(lambda block: self._count(labels[block], rows[block]), blocks)
        for classes, top_label in counted:
            for reliability, (count, total, hits) in ((self.classes, classes),
                                                      (self.top_label, top_label)):
                reliability.count += count.reshape(reliability.count.shape)
                reliability.total += total.reshape(reliability.total.shape)
                reliability.hits += hits.reshape(reliability.hits.shape)

    def _count(self, label, rows):
        """Return (count, total, hits), flat, of the classes and of the top label of a block."""
        K, B = self.num_classes, self.bins
        valid = label != self.ignore_index
        label = label[valid].astype(np.intp)  # (P,)
        p = np.ascontiguousarray(rows[valid].T)  # (K, P)
        if label.size and not (0 <= label.min() and label.max() < K):
            raise ValueError(f"target holds labels from {label.min()} to {label.max()}, outside "
                             f"0..{K - 1} and not ignore_index {self.ignore_index}")
        if p.size and not (0 <= p.min() and p.max() < 1.001):  # false for nan as well
            raise ValueError(f"probs lie between {p.min()} and {p.max()}: take softmax of logits")
        pixel = np.arange(label.size)
        bin_of = np.minimum((p * B).astype(np.intp), B - 1)
        top = p.argmax(axis=0)
        top_p, top_bin = p[top, pixel], bin_of[top, pixel]
        top_label = (np.bincount(top_bin, minlength=B),
                     np.bincount(top_bin, weights=top_p, minlength=B),
                     np.bincount(top_bin[top == label], minlength=B))
        bin_of += B * np.arange(K)[:, None]  # a row of bins per class
        classes = (np.bincount(bin_of.reshape(-1), minlength=K * B),
                   np.bincount(bin_of.reshape(-1), weights=p.reshape(-1), minlength=K * B),
                   np.bincount(bin_of[label, pixel], minlength=K * B))
        return classes, top_label
