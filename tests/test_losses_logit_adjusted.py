import numpy as np
import pytest
from loss_cases import (
    assert_gradient_matches_differences,
    oracle_loss_and_gradient,
    random_batch,
    relative_error,
    warn_afresh,
)

from minisegnet.losses import (
    cross_entropy_backward,
    cross_entropy_forward,
    logit_adjusted_backward,
    logit_adjusted_forward,
)

PRIOR = [0.7, 0.1, 0.05, 0.15]
WEIGHT = [0.5, 2.0, 1.0, 7.0]
BOTH = pytest.mark.parametrize("implementation", ["numpy", "cuda_cpu"])


def loss_and_gradient(logits, target, dloss=1.0, *, prior=PRIOR, **options):
    loss, cache = logit_adjusted_forward(logits, target, prior=prior, **options)
    return loss, logit_adjusted_backward(dloss, cache)


@BOTH
def test_a_network_that_knows_nothing_predicts_the_prior(implementation):
    # logits 0, prior 0.9 and 0.1: p = 0.9 and 0.1 for every pixel
    target = np.array([0, 1, 255]).reshape(1, 1, 3)
    loss, dlogits = loss_and_gradient(np.zeros((1, 1, 3, 2)), target, prior=[0.9, 0.1],
                                      implementation=implementation)
    assert loss == pytest.approx(-(np.log(0.9) + np.log(0.1)) / 2, rel=1e-14)
    np.testing.assert_allclose(dlogits[0, 0], [[-0.05, 0.05], [0.45, -0.45], [0, 0]], rtol=1e-13,
                               atol=1e-16)


def test_where_the_prior_is_true_no_class_is_pushed_up_or_down_as_a_whole():
    # plain cross-entropy would pull the bias of the frequent class up from here
    target = np.repeat(np.arange(4), [14, 2, 1, 3]).reshape(1, 4, 5)
    _, dlogits = loss_and_gradient(np.zeros((1, 4, 5, 4)), target)
    np.testing.assert_allclose(dlogits.sum(axis=(0, 1, 2)), 0.0, atol=1e-16)
    assert np.abs(dlogits).min() > 0


def test_tau_zero_and_a_uniform_prior_are_cross_entropy(rng):
    logits, target = random_batch(rng)
    expected, cache = cross_entropy_forward(logits, target, weight=WEIGHT)
    for options in ({"tau": 0.0}, {"prior": [0.25] * 4}):
        loss, dlogits = loss_and_gradient(logits, target, weight=WEIGHT, **options)
        assert loss == expected and (dlogits == cross_entropy_backward(1.0, cache)).all()


def test_pixel_counts_do_for_a_prior(rng):
    logits, target = random_batch(rng)
    loss, dlogits = loss_and_gradient(logits, target)
    other, dother = loss_and_gradient(logits, target, prior=1e9 * np.array(PRIOR))
    assert other == pytest.approx(loss, rel=1e-14)
    assert relative_error(dother, dlogits) < 1e-14


def test_a_class_that_was_never_seen_is_treated_as_the_most_frequent_one(rng):
    logits, target = random_batch(rng)
    found = loss_and_gradient(logits, target, prior=[0.7, 0.0, 0.1, 0.2])
    expected = loss_and_gradient(logits, target, prior=[0.7, 0.7, 0.1, 0.2])
    assert found[0] == expected[0] and (found[1] == expected[1]).all()
    assert (target == 1).any() and np.isfinite(found[0])


@BOTH
@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("tau", [0.5, 1.0])
@pytest.mark.parametrize("prior", [PRIOR, [0.0, 5.0, 3.0, 0.0]])
@pytest.mark.parametrize("ignore_index", [255, -1, 1])
def test_loss_and_dlogits_match_autograd_for_every_set_of_options(
    rng, torch, weight, tau, prior, ignore_index, implementation
):
    logits, target = random_batch(rng, ignore_index=ignore_index)
    dloss = rng.uniform(0.5, 2.0)
    options = dict(prior=prior, tau=tau, weight=weight, ignore_index=ignore_index)
    loss, dlogits = loss_and_gradient(logits, target, dloss, **options,
                                      implementation=implementation)
    expected, dexpected = oracle_loss_and_gradient(torch, "logit_adjusted", logits, target, dloss,
                                                   **options)
    assert loss == pytest.approx(expected, rel=1e-12)
    assert relative_error(dlogits, dexpected) < 1e-12


def test_dlogits_match_central_differences(rng):
    logits, target = random_batch(rng, shape=(1, 3, 4))
    options = dict(tau=1.5, weight=WEIGHT)
    _, dlogits = loss_and_gradient(logits, target, 1.7, **options)
    assert_gradient_matches_differences(
        lambda z: 1.7 * loss_and_gradient(z, target, **options)[0], logits, dlogits, rng
    )


@BOTH
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("prior", [PRIOR, [1.0, 1e-300, 0.0, 0.0]])
def test_huge_logits_and_tiny_priors_stay_finite_and_keep_the_dtype(
    rng, dtype, prior, implementation
):
    logits, target = random_batch(rng, dtype=dtype, scale=1e4)
    loss, dlogits = loss_and_gradient(logits, target, prior=prior, implementation=implementation)
    assert np.isfinite(loss) and np.isfinite(dlogits).all()
    assert loss.dtype == dlogits.dtype == dtype


def test_nothing_to_learn_from_is_loss_zero_and_said_once(rng, monkeypatch):
    warn_afresh(monkeypatch)
    logits, target = random_batch(rng, ignored=1.0)
    with pytest.warns(RuntimeWarning, match="nothing to learn from"):
        loss, dlogits = loss_and_gradient(logits, target)
    assert loss == 0 and not dlogits.any()
    assert loss_and_gradient(logits, target)[0] == 0


def test_inputs_are_left_alone(rng):
    logits, target = random_batch(rng)
    before = logits.copy(), target.copy()
    loss_and_gradient(logits, target)
    assert (logits == before[0]).all() and (target == before[1]).all()


def test_unusable_options_are_refused(rng):
    logits, target = random_batch(rng)
    for options, message in (
        ({"prior": None}, "prior is missing, or 0 for every class"),
        ({"prior": [0, 0, 0, 0]}, "0 for every class"),
        ({"prior": [1, 2]}, r"prior has shape \(2,\)"),
        ({"prior": [1, 2, -1, 1]}, "prior has negative"), ({"tau": -1.0}, "tau is -1"),
        ({"weight": [1, 2]}, r"weight has shape \(2,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            loss_and_gradient(logits, target, **options)
    with pytest.raises(TypeError, match="logits are int64"):
        loss_and_gradient(logits.astype(np.int64), target)
    target[0, 0, 0] = 4
    with pytest.raises(ValueError, match="labels 4, neither"):
        loss_and_gradient(logits, target)
