"""Which class a step's gradient comes from: the L1 norm of dL/dlogits, booked class by class.

With dz = dL/dlogits (N, H, W, K) of one batch and y the target, every number of dz that belongs
to a valid pixel is booked once, in the row of its pixel's class and the column of its logit:

    matrix[r, c] = sum over pixels i with y_i = r of |dz_i[c]|
    signed[r, c] = sum over pixels i with y_i = r of  dz_i[c]

The sums of the rows say which pixels the network is told most by, those of the columns which
logits are moved. At a uniform prediction dz_i = factor * (1/K - onehot), so that each pixel weighs
in by its factor alone. Focal's factor depends on the probability of the true class, which is 1/K
everywhere: its shares are those of cross-entropy, whatever gamma is. Class weights change them.
"""

from typing import NamedTuple

import numpy as np

from minisegnet.losses._softmax import check_labels, map_pixel_blocks


class Ledger(NamedTuple):
    """The books of one batch. All numbers are float64."""

    matrix: np.ndarray  # (K, K) sums of |dL/dz|: row the pixel's target class, column the logit
    signed: np.ndarray  # (K, K) sums of dL/dz, booked alike
    loss: float

    @property
    def total(self):
        """The L1 norm of dL/dlogits."""
        return float(self.matrix.sum())

    @property
    def by_target(self):
        """What comes from the pixels of each class, (K,)."""
        return self.matrix.sum(axis=1)

    @property
    def by_logit(self):
        """What goes to the logit of each class, (K,)."""
        return self.matrix.sum(axis=0)

    @property
    def share_by_target(self):
        """`by_target` as shares of the total, (K,); 0 where there is no gradient at all."""
        return _shares(self.by_target)

    @property
    def share_by_logit(self):
        """`by_logit` as shares of the total, (K,); 0 where there is no gradient at all."""
        return _shares(self.by_logit)


def gradient_ledger(criterion, logits, target):
    """Return the `Ledger` of logits (N, H, W, K) against target (N, H, W) under `criterion`.

    Pixels that are ignored have no part in it. The gradient is that of the batch as it is, booked
    in blocks: what is needed beyond the loss's own forward and backward is small. Raises what the
    criterion raises for shapes, dtypes or labels that do not fit.
    """
    loss, cache = criterion.forward(logits, target)
    dlogits = criterion.backward(1.0, cache)  # (N, H, W, K)
    K = dlogits.shape[3]
    labels = check_labels(target, K, criterion.ignore_index)

    def book(dz, label):  # (P, K), (P,)
        account = (label.astype(np.intp)[:, None] * K + np.arange(K)).reshape(-1)
        signed = np.bincount(account, dz.reshape(-1), (K + 1) * K)  # adds up in float64
        matrix = np.bincount(account, np.abs(dz).reshape(-1), (K + 1) * K)
        return np.stack([matrix, signed]).reshape(2, K + 1, K)  # the last row: ignored pixels

    matrix, signed = sum(map_pixel_blocks(book, dlogits.reshape(-1, K),
                                          labels.index.reshape(-1)))[:, :K]
    return Ledger(matrix, signed, float(loss))


def _shares(amounts):
    total = amounts.sum()
    return amounts / total if total != 0 else np.zeros_like(amounts)
