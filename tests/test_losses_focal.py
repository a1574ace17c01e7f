import numpy as np
import pytest
from loss_cases import (
    assert_gradient_matches_differences,
    from_torch,
    probabilities,
    random_batch,
    relative_error,
    to_torch,
    warn_afresh,
)

from minisegnet.losses import (
    cross_entropy_backward,
    cross_entropy_forward,
    focal_backward,
    focal_forward,
)

ALPHAS = {"no alpha": None, "one number": 0.25, "per class": [0.5, 2.0, 0.0, 7.0]}
BOTH = pytest.mark.parametrize("implementation", ["numpy", "cuda_cpu"])


def loss_and_gradient(logits, target, dloss=1.0, **options):
    loss, cache = focal_forward(logits, target, **options)
    return loss, focal_backward(dloss, cache)


def focal_in_torch(torch, z, y, alpha, gamma, ignore_index):
    """The definition, for autograd."""
    valid = y != ignore_index
    log_p = torch.log_softmax(z, 1).movedim(1, 3)[valid]
    y = y[valid]
    log_pt = log_p.gather(1, y[:, None])[:, 0]
    alpha = torch.ones(z.shape[1]) if alpha is None else torch.as_tensor(alpha)
    alpha = alpha.to(z.dtype).expand(z.shape[1])[y]
    return (alpha * (1 - log_pt.exp()) ** gamma * -log_pt).mean()


@BOTH
def test_one_pixel_by_hand(implementation):
    # p = 0.3 for the true class: CE 1.204, focal 0.7^2 * 1.204 = 0.590
    logits = np.log([0.3, 0.7]).reshape(1, 1, 1, 2)
    loss, dlogits = loss_and_gradient(logits, np.zeros((1, 1, 1), np.uint8),
                                      implementation=implementation)
    assert loss == pytest.approx(0.49 * -np.log(0.3), rel=1e-14)
    factor = 0.49 - 2 * 0.7 * 0.3 * np.log(0.3)
    np.testing.assert_allclose(dlogits.ravel(), [-0.7 * factor, 0.7 * factor], rtol=1e-13)


@BOTH
@pytest.mark.parametrize("alpha", ALPHAS.values(), ids=ALPHAS)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("ignore_index", [255, -1, 1])
def test_loss_and_dlogits_match_autograd_for_every_pair_of_options(
    rng, torch, alpha, gamma, ignore_index, implementation
):
    logits, target = random_batch(rng, ignore_index=ignore_index)
    dloss = rng.uniform(0.5, 2.0)
    loss, dlogits = loss_and_gradient(logits, target, dloss, alpha=alpha, gamma=gamma,
                                      ignore_index=ignore_index, implementation=implementation)
    z, y = to_torch(torch, logits, target)
    expected = focal_in_torch(torch, z, y, alpha, gamma, ignore_index)
    (expected * dloss).backward()
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    assert relative_error(dlogits, from_torch(z.grad)) < 1e-12


@pytest.mark.parametrize("gamma", [0.0, 0.5, 3.0])
def test_dlogits_match_central_differences(rng, gamma):
    logits, target = random_batch(rng, shape=(1, 3, 2))
    options = dict(alpha=[0.5, 2.0, 1.0, 7.0], gamma=gamma)
    _, dlogits = loss_and_gradient(logits, target, 1.7, **options)
    assert_gradient_matches_differences(
        lambda z: 1.7 * focal_forward(z, target, **options)[0], logits, dlogits, rng
    )


def test_gamma_zero_without_alpha_is_cross_entropy(rng):
    logits, target = random_batch(rng)
    loss, dlogits = loss_and_gradient(logits, target, gamma=0.0)
    expected, cache = cross_entropy_forward(logits, target)
    assert loss == pytest.approx(expected, rel=1e-14)
    assert relative_error(dlogits, cross_entropy_backward(1.0, cache)) < 1e-14


def test_with_alpha_the_mean_is_over_pixels_not_over_weights(rng):
    logits, target = random_batch(rng)
    weight = np.array([0.5, 2.0, 1.0, 7.0])
    focal, _ = focal_forward(logits, target, alpha=weight, gamma=0.0)
    ce, _ = cross_entropy_forward(logits, target, weight=weight)
    valid = target[target != 255]
    assert focal * valid.size == pytest.approx(ce * weight[valid].sum(), rel=1e-12)


def test_one_number_as_alpha_only_rescales(rng):
    logits, target = random_batch(rng)
    loss, dlogits = loss_and_gradient(logits, target, alpha=0.25)
    plain, dplain = loss_and_gradient(logits, target)
    assert loss == pytest.approx(plain / 4, rel=1e-13)
    assert relative_error(dlogits, dplain / 4) < 1e-13


def test_at_a_uniform_prediction_every_class_pulls_as_in_cross_entropy(rng):
    _, target = random_batch(rng)
    logits = np.zeros((*target.shape, 4))
    _, dfocal = loss_and_gradient(logits, target)
    _, cache = cross_entropy_forward(logits, target)
    share = np.array([np.abs(dfocal[target == c]).sum() for c in range(4)])
    dce = cross_entropy_backward(1.0, cache)
    expected = np.array([np.abs(dce[target == c]).sum() for c in range(4)])
    np.testing.assert_allclose(share / share.sum(), expected / expected.sum(), rtol=1e-12)


@BOTH
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("gamma", [0.0, 1e-3, 0.5, 1.0, 2.0, 20.0])
def test_finite_where_the_true_class_is_certain_or_hopeless(dtype, gamma, implementation):
    logits = np.array([[1e4, -1e4], [40.0, 0.0], [0.0, 1e4], [0.0, 0.0]], dtype)
    logits, target = logits.reshape(1, 2, 2, 2), np.zeros((1, 2, 2), np.uint8)
    loss, dlogits = loss_and_gradient(logits, target, gamma=gamma, implementation=implementation)
    assert np.isfinite(loss) and np.isfinite(dlogits).all()
    np.testing.assert_allclose(loss, (1e4 + 0.5**gamma * np.log(2)) / 4, rtol=1e-6)
    # certain: no pull; hopeless: the full pull of cross-entropy
    assert not dlogits[0, 0, 0].any()
    np.testing.assert_allclose(dlogits[0, 1, 0], [-0.25, 0.25], rtol=1e-6)


@BOTH
def test_the_gradient_of_easy_pixels_keeps_its_digits(implementation):
    # 1 - p_t from 1/2 down to 4e-11, with gamma < 1, where the factor is large times small
    logits = np.zeros((1, 1, 25, 2))
    logits[0, 0, :, 0] = np.arange(25)
    target = np.zeros((1, 1, 25), np.int64)
    _, dlogits = loss_and_gradient(logits, target, gamma=0.5, implementation=implementation)
    p = probabilities(logits)[..., 0]
    miss = 1 / (1 + np.exp(logits[..., 0]))
    factor = miss**0.5 + 0.5 * miss**-0.5 * p * np.log1p(np.exp(-logits[..., 0]))
    np.testing.assert_allclose(dlogits[..., 1], factor * miss / 25, rtol=1e-4)


@BOTH
def test_float32_is_kept_and_close_to_float64(rng, implementation):
    logits, target = random_batch(rng, shape=(2, 90, 100), num_classes=21, dtype=np.float32)
    alpha = rng.uniform(0.1, 50.0, 21)
    loss, dlogits = loss_and_gradient(logits, target, alpha=alpha, implementation=implementation)
    expected, dexpected = loss_and_gradient(logits.astype(np.float64), target, alpha=alpha)
    assert loss.dtype == dlogits.dtype == np.float32
    assert loss == pytest.approx(expected, rel=3e-7)
    assert relative_error(dlogits, dexpected) < 1e-6


def test_non_contiguous_inputs_are_read_right_and_left_alone(rng):
    logits, target = random_batch(rng, shape=(4, 10, 7), num_classes=8)
    logits, target = logits[::2, 1::2, ::-1, ::2], np.minimum(target, 3)[::2, 1::2, ::-1]
    before = logits.copy(), target.copy()
    found = loss_and_gradient(logits, target, 0.3, ignore_index=3)
    assert (logits == before[0]).all() and (target == before[1]).all()
    expected = loss_and_gradient(*before, 0.3, ignore_index=3)
    assert found[0] == expected[0] and (found[1] == expected[1]).all()


def test_only_ignored_pixels_is_loss_zero_and_said_once(rng, monkeypatch):
    warn_afresh(monkeypatch)
    logits, target = random_batch(rng, ignored=1.0)
    with pytest.warns(RuntimeWarning, match="ignored"):
        loss, dlogits = loss_and_gradient(logits, target)
    assert loss == 0 and not dlogits.any()
    assert focal_forward(logits, target)[0] == 0


def test_unusable_options_are_refused(rng):
    logits, target = random_batch(rng)
    for gamma in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="gamma is"):
            focal_forward(logits, target, gamma=gamma)
    with pytest.raises(ValueError, match=r"alpha has shape \(2,\)"):
        focal_forward(logits, target, alpha=[1, 2])
    with pytest.raises(ValueError, match="alpha has negative"):
        focal_forward(logits, target, alpha=-1.0)
    target[0, 0, 0] = 4
    with pytest.raises(ValueError, match="labels 4, neither"):
        focal_forward(logits, target)
