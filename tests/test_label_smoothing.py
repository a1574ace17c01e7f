"""The trap of smoothed, weighted cross-entropy: where it is least, and when the argmax flips."""

import numpy as np
import pytest

from minisegnet.imbalance.label_smoothing import (
    flipping_ratio,
    flipping_smoothing,
    smoothed_optimum,
)
from minisegnet.losses import cross_entropy_backward, cross_entropy_forward


def test_the_example_of_34_classes():
    """75 % background, 32 classes share the rest, one never occurs and has the cap of 100."""
    frequency = np.array([0.75] + 32 * [0.25 / 32])
    weights = np.append(1 / (34 * frequency), 100.0)
    p = smoothed_optimum(weights, 0, 0.1)
    assert p[0] == pytest.approx(0.052, abs=5e-4)
    assert p[33] == pytest.approx(0.43, abs=5e-3) and p.argmax() == 33
    assert p.sum() == pytest.approx(1)
    assert flipping_ratio(34, 0.1) == pytest.approx(307)


def test_the_gradient_of_the_loss_is_zero_at_the_optimum(rng):
    weights = rng.uniform(0.1, 30, 7)
    p = smoothed_optimum(weights, 2, 0.15)
    logits = np.log(p)[None, None, None] + 1.7
    loss, cache = cross_entropy_forward(logits, np.full((1, 1, 1), 2), weight=weights,
                                        label_smoothing=0.15)
    assert abs(cross_entropy_backward(1.0, cache)).max() < 1e-14
    elsewhere = logits + 0.1 * rng.standard_normal(logits.shape)
    assert cross_entropy_forward(elsewhere, np.full((1, 1, 1), 2), weight=weights,
                                 label_smoothing=0.15)[0] > loss


@pytest.mark.parametrize("K, smoothing", [(2, 0.1), (11, 0.1), (34, 0.1), (34, 0.02)])
def test_the_argmax_flips_just_above_the_ratio(K, smoothing):
    ratio = flipping_ratio(K, smoothing)
    weights = np.ones(K)
    for times, answer in ((0.999, 0), (1.001, K - 1)):
        weights[-1] = times * ratio
        assert smoothed_optimum(weights, 0, smoothing).argmax() == answer
    assert flipping_smoothing(K, ratio) == pytest.approx(smoothing)


def test_without_smoothing_nothing_flips():
    assert smoothed_optimum([0.01, 1e6], 0, 0.0).tolist() == [1, 0]
    assert flipping_ratio(11, 0.0) == np.inf
    assert flipping_smoothing(11, 1.0) == 1.0


def test_classes_that_weigh_nothing_have_no_optimum():
    with pytest.raises(ValueError, match="weigh 0"):
        smoothed_optimum([0.0, 0.0], 0, 0.1)
