"""The gradient ledger: every number of dL/dlogits booked once, under the right class and logit."""

import tracemalloc

import numpy as np
import pytest
from loss_cases import random_batch, relative_error

from minisegnet import parallel
from minisegnet.imbalance.gradient_ledger import Ledger, gradient_ledger
from minisegnet.losses import Criterion
from minisegnet.losses.criterion import LOSSES
from minisegnet.verify.gradcheck import numeric_gradient

WEIGHT = np.array([0.5, 2.0, 1.0, 7.0])
K = len(WEIGHT)
ALL_LOSSES = pytest.mark.parametrize("name", LOSSES)


def criterion_of(name, weight=None, **options):
    prior = np.array([0.7, 0.1, 0.05, 0.15]) if name == "logit_adjusted" else None
    return Criterion(name, weight=weight, prior=prior, **options)


def booked_by_hand(dlogits, target, ignore_index=255):
    """The definition: (2, K, K), the sums of |dz| and of dz."""
    books = np.zeros((2, K, K))
    for pixel in np.ndindex(target.shape):
        for c in range(K):
            if target[pixel] != ignore_index:
                books[0, target[pixel], c] += abs(dlogits[pixel][c])
                books[1, target[pixel], c] += dlogits[pixel][c]
    return books


def unbalanced_batch(rng, **options):
    """A batch in which class 0 is in the majority and class 3 in a few pixels only."""
    logits, target = random_batch(rng, shape=(2, 9, 13), ignored=0.15, **options)
    target[(target == 3) & (rng.random(target.shape) < 0.8)] = 0
    return logits, target


def test_books_of_a_batch_of_two_pixels_worked_by_hand():
    # p = 1/2 each, so that dz = (p - onehot) / 2 = (-1/4, 1/4) for class 0 and the reverse for 1
    logits, target = np.zeros((1, 1, 2, 2)), np.array([[[1, 1]]])
    ledger = gradient_ledger(Criterion("ce"), logits, target)
    np.testing.assert_allclose(ledger.matrix, [[0, 0], [0.5, 0.5]], rtol=1e-15)
    np.testing.assert_allclose(ledger.signed, [[0, 0], [0.5, -0.5]], rtol=1e-15)
    assert ledger.loss == pytest.approx(np.log(2)) and ledger.total == pytest.approx(1)
    np.testing.assert_allclose(ledger.share_by_target, [0, 1])
    np.testing.assert_allclose(ledger.share_by_logit, [0.5, 0.5])


@ALL_LOSSES
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equals_a_loop_over_every_number(rng, monkeypatch, name, weight, dtype):
    monkeypatch.setattr(parallel, "BLOCK_BYTES", 512)  # several blocks, the last one cut off
    logits, target = unbalanced_batch(rng, dtype=dtype)
    criterion = criterion_of(name, weight)
    loss, cache = criterion.forward(logits, target)
    dlogits = criterion.backward(1.0, cache)
    ledger = gradient_ledger(criterion, logits, target)
    matrix, signed = booked_by_hand(dlogits, target)
    assert relative_error(ledger.matrix, matrix) < 1e-13
    assert relative_error(ledger.signed, signed) < 1e-11
    assert ledger.loss == float(loss)
    assert ledger.matrix.dtype == ledger.signed.dtype == np.float64


@ALL_LOSSES
def test_sums_add_up_to_the_l1_norm_of_the_gradient(rng, name):
    logits, target = unbalanced_batch(rng)
    criterion = criterion_of(name, WEIGHT)
    dlogits = criterion.backward(1.0, criterion.forward(logits, target)[1])
    ledger = gradient_ledger(criterion, logits, target)
    total = np.abs(dlogits).sum()
    assert total > 0
    for found in (ledger.total, ledger.by_target.sum(), ledger.by_logit.sum()):
        assert found == pytest.approx(total, rel=1e-13)
    assert ledger.share_by_target.sum() == pytest.approx(1, rel=1e-13)
    assert ledger.share_by_logit.sum() == pytest.approx(1, rel=1e-13)
    # No loss here changes if all logits of a pixel are shifted: what one gains, others lose.
    assert np.abs(ledger.signed.sum(axis=1)).max() < 1e-14


@ALL_LOSSES
def test_equals_the_books_of_finite_differences(rng, name):
    logits, target = random_batch(rng, shape=(1, 3, 4), num_classes=K)
    criterion = criterion_of(name, WEIGHT)
    dlogits = numeric_gradient(lambda z: criterion.forward(z, target)[0], logits, 1.0)
    ledger = gradient_ledger(criterion, logits, target)
    assert relative_error(ledger.matrix, booked_by_hand(dlogits, target)[0]) < 1e-8


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_at_a_uniform_prediction_focal_has_exactly_the_shares_of_ce(rng, gamma, dtype):
    _, target = unbalanced_batch(rng)
    uniform = np.full((*target.shape, K), 0.3, dtype)
    ce = gradient_ledger(Criterion("ce"), uniform, target)
    focal = gradient_ledger(Criterion("focal", gamma=gamma), uniform, target)
    tolerance = 10 * np.finfo(dtype).eps
    pixels = np.bincount(target[target != 255], minlength=K)
    np.testing.assert_allclose(ce.share_by_target, pixels / pixels.sum(), rtol=tolerance)
    np.testing.assert_allclose(focal.share_by_target, ce.share_by_target, rtol=tolerance)
    np.testing.assert_allclose(focal.share_by_logit, ce.share_by_logit, rtol=tolerance)


def test_weights_change_the_shares_and_focal_follows_them(rng):
    _, target = unbalanced_batch(rng)
    uniform = np.zeros((*target.shape, K))
    plain, weighted, focal = (gradient_ledger(criterion, uniform, target).share_by_target
                              for criterion in (Criterion("ce"), Criterion("ce", WEIGHT),
                                                Criterion("focal", WEIGHT)))
    assert weighted[3] > 4 * plain[3] and weighted[0] < plain[0]
    pixels = np.bincount(target[target != 255], minlength=K)
    np.testing.assert_allclose(weighted, WEIGHT * pixels / (WEIGHT @ pixels), rtol=1e-12)
    np.testing.assert_allclose(focal, weighted, rtol=1e-12)


def test_away_from_a_uniform_prediction_focal_leaves_the_shares_of_ce(rng):
    logits, target = unbalanced_batch(rng)
    ce, focal = (gradient_ledger(Criterion(name), logits, target) for name in ("ce", "focal"))
    assert np.abs(focal.share_by_target - ce.share_by_target).max() > 0.01


@ALL_LOSSES
@pytest.mark.parametrize("ignore_index", [200, 3])
def test_ignored_pixels_contribute_nothing(rng, name, ignore_index):
    logits, target = random_batch(rng, shape=(2, 5, 7), num_classes=K, ignored=0.4,
                                  ignore_index=ignore_index)
    criterion = criterion_of(name, ignore_index=ignore_index)
    before = gradient_ledger(criterion, logits, target)
    changed = np.where((target == ignore_index)[..., None],
                       100 * rng.standard_normal(logits.shape), logits)
    after = gradient_ledger(criterion, changed, target)
    np.testing.assert_array_equal(after.matrix, before.matrix)
    if ignore_index < K:
        assert before.by_target[ignore_index] == 0 and before.by_logit[ignore_index] > 0


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the losses say that there is nothing
@ALL_LOSSES
def test_nothing_but_ignored_pixels_gives_shares_of_0(name):
    ledger = gradient_ledger(criterion_of(name), np.zeros((1, 2, 2, K)), np.full((1, 2, 2), 255))
    assert ledger.total == ledger.loss == 0
    assert ledger.share_by_target.tolist() == ledger.share_by_logit.tolist() == [0.0] * K


def test_a_gradient_that_is_not_finite_does_not_pass_for_none():
    books = np.array([[np.nan, 1.0], [1.0, 1.0]])
    assert np.isnan(Ledger(books, books, 0.0).share_by_target).all()


def test_labels_outside_the_classes_are_refused_by_name():
    with pytest.raises(ValueError, match="labels 7"):
        gradient_ledger(Criterion("ce"), np.zeros((1, 1, 1, K)), np.array([[[7]]]))


def test_books_without_further_copies_of_the_gradient(rng):
    logits, target = random_batch(rng, shape=(8, 176, 240), num_classes=11, dtype=np.float32,
                                  target_dtype=np.uint8)
    criterion = Criterion("ce")

    def peak_of(function):
        tracemalloc.start()
        try:
            function()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    with parallel.one_thread():
        loss_alone = peak_of(lambda: criterion.backward(1.0, criterion.forward(logits, target)[1]))
        with_books = peak_of(lambda: gradient_ledger(criterion, logits, target))
    assert with_books < loss_alone + 0.5 * logits.nbytes
