import numpy as np
import pytest
from loss_cases import (
    assert_gradient_matches_differences,
    oracle_loss_and_gradient,
    probabilities,
    random_batch,
    relative_error,
    warn_afresh,
)

from minisegnet.losses import (
    cross_entropy_backward,
    cross_entropy_forward,
    ohem_backward,
    ohem_forward,
)

WEIGHT = [0.5, 2.0, 1.0, 7.0]
OPTIONS = {
    "default": {},
    "the share decides": {"thresh": 0.05, "min_kept": 0.6},
    "the threshold decides": {"thresh": 0.4, "min_kept": 0.01},
    "weights": {"weight": WEIGHT},
}


def loss_and_gradient(logits, target, dloss=1.0, **options):
    loss, cache = ohem_forward(logits, target, **options)
    return loss, ohem_backward(dloss, cache)


def cross_entropy_and_gradient(logits, target, dloss=1.0, **options):
    loss, cache = cross_entropy_forward(logits, target, **options)
    return loss, cross_entropy_backward(dloss, cache)


def two_class_pixels(p):
    """Return logits and target of pixels whose true class has the probabilities p."""
    p = np.asarray(p)
    return np.log(np.stack([p, 1 - p], -1)).reshape(1, 1, -1, 2), np.zeros((1, 1, p.size), int)


def kept_pixels(dlogits):
    return dlogits.any(axis=3).ravel().nonzero()[0].tolist()


def test_four_pixels_by_hand():
    logits, target = two_class_pixels([0.9, 0.6, 0.8, 0.3])
    loss, dlogits = loss_and_gradient(logits, target)
    assert loss == pytest.approx(-(np.log(0.6) + np.log(0.3)) / 2, rel=1e-14)
    np.testing.assert_allclose(dlogits[0, 0, :, 0], [0, -0.4 / 2, 0, -0.7 / 2], rtol=1e-13)
    # at least 3 of 4
    loss, dlogits = loss_and_gradient(logits, target, min_kept=0.7)
    assert loss == pytest.approx(-(np.log(0.6) + np.log(0.3) + np.log(0.8)) / 3, rel=1e-14)
    assert kept_pixels(dlogits) == [1, 2, 3]


def test_the_threshold_itself_is_not_hard():
    logits, target = two_class_pixels([0.5, 0.5 - 1e-9, 0.1])
    assert kept_pixels(loss_and_gradient(logits, target, thresh=0.5)[1]) == [1, 2]


def test_at_least_the_share_of_the_valid_pixels_is_kept_rounded_up():
    logits, target = two_class_pixels(np.linspace(0.99, 0.9, 20))
    target[..., ::2] = 255
    for min_kept, number in ((1e-9, 1), (0.1, 1), (0.11, 2), (0.5, 5), (1.0, 10)):
        kept = kept_pixels(loss_and_gradient(logits, target, min_kept=min_kept)[1])
        assert kept == list(range(1, 20, 2))[-number:]


def test_of_equal_pixels_the_first_are_kept():
    logits, target = two_class_pixels([0.9, 0.8, 0.9, 0.9, 0.9])
    assert kept_pixels(loss_and_gradient(logits, target, min_kept=0.6)[1]) == [0, 1, 2]


@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("thresh, min_kept", [(0.5, 0.01), (0.05, 0.5)])
def test_it_is_the_cross_entropy_with_the_easy_pixels_ignored(rng, weight, thresh, min_kept):
    logits, target = random_batch(rng)
    loss, dlogits = loss_and_gradient(logits, target, 1.3, thresh=thresh, min_kept=min_kept,
                                      weight=weight)
    p = np.take_along_axis(probabilities(logits), (target % 255)[..., None], axis=3)[..., 0]
    limit = thresh if min_kept < 0.5 else np.median(p[target != 255]) + 1e-9
    easy = np.where(p < limit, target, 255)
    expected, dexpected = cross_entropy_and_gradient(logits, easy, 1.3, weight=weight)
    assert 0 < (easy != 255).sum() < (target != 255).sum()
    assert loss == pytest.approx(expected, rel=1e-14)
    assert relative_error(dlogits, dexpected) < 1e-14


def test_keeping_everything_is_cross_entropy(rng):
    logits, target = random_batch(rng)
    for options in ({"thresh": 1.0}, {"min_kept": 1.0}):
        loss, dlogits = loss_and_gradient(logits, target, weight=WEIGHT, **options)
        expected, dexpected = cross_entropy_and_gradient(logits, target, weight=WEIGHT)
        assert loss == expected and (dlogits == dexpected).all()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("ignore_index", [255, -1, 1])
def test_loss_and_dlogits_match_torch_on_the_hardest_pixels(rng, torch, options, ignore_index):
    logits, target = random_batch(rng, ignore_index=ignore_index)
    dloss = rng.uniform(0.5, 2.0)
    loss, dlogits = loss_and_gradient(logits, target, dloss, ignore_index=ignore_index, **options)
    expected, dexpected = oracle_loss_and_gradient(torch, "ohem", logits, target, dloss,
                                                   ignore_index=ignore_index, **options)
    assert loss == pytest.approx(expected, rel=1e-12)
    assert relative_error(dlogits, dexpected) < 1e-12


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_dlogits_match_central_differences(rng, options):
    logits, target = random_batch(rng, shape=(1, 3, 4))
    _, dlogits = loss_and_gradient(logits, target, 1.7, **options)
    assert_gradient_matches_differences(
        lambda z: 1.7 * ohem_forward(z, target, **options)[0], logits, dlogits, rng
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_huge_logits_stay_finite(rng, dtype, options):
    logits, target = random_batch(rng, dtype=dtype, scale=1e4)
    loss, dlogits = loss_and_gradient(logits, target, **options)
    assert np.isfinite(loss) and np.isfinite(dlogits).all()
    assert loss.dtype == dlogits.dtype == dtype


def test_a_batch_learned_by_heart_has_loss_zero(rng):
    _, target = random_batch(rng, ignored=0.0)
    loss, dlogits = loss_and_gradient(1e4 * np.eye(4)[target], target)
    assert loss == 0 and not dlogits.any()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_float32_is_close_to_float64_over_several_blocks(rng, options):
    logits, target = random_batch(rng, shape=(2, 150, 200), dtype=np.float32)
    loss, dlogits = loss_and_gradient(logits, target, **options)
    expected, dexpected = loss_and_gradient(logits.astype(np.float64), target, **options)
    assert loss == pytest.approx(expected, rel=3e-7)
    assert relative_error(dlogits, dexpected) < 2e-6


def test_nothing_to_learn_from_is_loss_zero_and_said_once(rng, monkeypatch):
    warn_afresh(monkeypatch)
    logits, target = random_batch(rng)
    with pytest.warns(RuntimeWarning, match="nothing to learn from"):
        loss, dlogits = loss_and_gradient(logits, np.full_like(target, 255))
    assert loss == 0 and not dlogits.any()
    loss, dlogits = loss_and_gradient(logits, np.full_like(target, 1), weight=[1, 0, 1, 1])
    assert loss == 0 and not dlogits.any()


def test_non_contiguous_inputs_are_read_right_and_left_alone(rng):
    logits, target = random_batch(rng, shape=(4, 10, 7), num_classes=8)
    logits, target = logits[::2, 1::2, ::-1, ::2], np.minimum(target, 3)[::2, 1::2, ::-1]
    before = logits.copy(), target.copy()
    found = loss_and_gradient(logits, target, 0.3, ignore_index=3)
    assert (logits == before[0]).all() and (target == before[1]).all()
    expected = loss_and_gradient(*before, 0.3, ignore_index=3)
    assert found[0] == expected[0] and (found[1] == expected[1]).all()


def test_unusable_options_are_refused(rng):
    logits, target = random_batch(rng)
    for options, message in (
        ({"thresh": 0.0}, "thresh is 0.0"), ({"thresh": 1.1}, "thresh is 1.1"),
        ({"min_kept": 0}, "min_kept is 0"),
        ({"min_kept": 100000}, "min_kept is 100000.*not a number of pixels"),
        ({"weight": [1, 2]}, r"weight has shape \(2,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            ohem_forward(logits, target, **options)
    target[0, 0, 0] = 4
    with pytest.raises(ValueError, match="labels 4, neither"):
        ohem_forward(logits, target)
