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

from minisegnet.losses import lovasz_backward, lovasz_forward
from minisegnet.losses.lovasz import jaccard_extension_loops, jaccard_extension_numpy
from minisegnet.metrics import ConfusionMatrix

IMPLEMENTATIONS = ("loops", "numpy")
EXTENSIONS = (jaccard_extension_loops, jaccard_extension_numpy)
both = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
both_extensions = pytest.mark.parametrize("extension", EXTENSIONS)


def loss_and_gradient(logits, target, dloss=1.0, **options):
    loss, cache = lovasz_forward(logits, target, **options)
    return loss, lovasz_backward(dloss, cache)


def batch_without_class_two(rng, ignore_index=255, **options):
    logits, target = random_batch(rng, num_classes=5, ignore_index=ignore_index, **options)
    target[target == 2] = 3
    return logits, target


@both
def test_three_pixels_by_hand(implementation):
    # p_0 = .8, .4, .3 with truth 0, 1, 0, and an ignored pixel
    p = np.array([0.8, 0.4, 0.3, 0.5])
    logits = np.log(np.stack([p, 1 - p], axis=1)).reshape(1, 1, 4, 2)
    target = np.array([0, 1, 0, 255]).reshape(1, 1, 4)
    loss, dlogits = loss_and_gradient(logits, target, implementation=implementation)
    # errors of both classes: .7 (third pixel), .4 (second), .2 (first); they join in this order
    # class 0, truth {1, 3}: J = 1/2, then 2/3, then 3/3
    # class 1, truth {2}: J = 1/2, then 2/2, then 3/3
    class_0 = 0.7 * 1 / 2 + 0.4 * 1 / 6 + 0.2 * 1 / 3
    class_1 = 0.7 * 1 / 2 + 0.4 * 1 / 2
    assert loss == pytest.approx((class_0 + class_1) / 2, rel=1e-14)
    # dp, half of it for each of two classes; the sign is - where it is the truth
    dp = np.array([[-1 / 3, 0], [1 / 6, -1 / 2], [-1 / 2, 1 / 2]]) / 2
    dz = p[:3] * (1 - p[:3]) * (dp[:, 0] - dp[:, 1])
    np.testing.assert_allclose(dlogits[0, 0, :3], np.stack([dz, -dz], axis=1), rtol=1e-13)
    assert not dlogits[0, 0, 3].any()


@both
def test_of_hard_predictions_it_is_one_minus_the_mean_iou(rng, implementation):
    target = rng.integers(0, 4, (2, 6, 5))
    target[0, 0, :3] = 255
    predicted = rng.integers(0, 4, target.shape)
    logits = 2000.0 * np.eye(4)[predicted]
    confusion = ConfusionMatrix(4)
    confusion.update(target, predicted)
    loss, _ = lovasz_forward(logits, target, implementation=implementation)
    assert loss == pytest.approx(1 - confusion.iou.mean(), rel=1e-13)


@both_extensions
def test_the_steps_add_up_to_one(rng, extension):
    # the last set of mistakes is everything, whose Jaccard loss is 1
    for share in (0.0, 0.3, 1.0):
        errors, truth = rng.random(50), rng.random(50) < share
        loss, gradient = extension(errors, truth)
        assert gradient.sum() == pytest.approx(1.0, rel=1e-14)
        assert loss == pytest.approx(errors @ gradient, rel=1e-14)
        assert gradient.min() >= 0.0


def test_both_extensions_agree_on_ties_and_on_every_number_of_true_pixels(rng):
    for count in range(9):
        truth = rng.permutation(np.arange(8) < count)
        errors = rng.integers(0, 4, 8) / 4
        expected, dexpected = jaccard_extension_loops(errors, truth)
        loss, gradient = jaccard_extension_numpy(errors, truth)
        assert loss == pytest.approx(expected, rel=1e-14)
        np.testing.assert_allclose(gradient, dexpected, rtol=1e-13, atol=1e-15)


def test_small_steps_keep_their_digits():
    # after 10^6 false pixels, differences of J would have lost half their digits
    truth = np.arange(1_000_001) == 1_000_000
    _, gradient = jaccard_extension_numpy(np.linspace(1, 0, truth.size), truth)
    assert gradient[-2] == pytest.approx(1 / (1_000_001 * 1_000_000), rel=1e-14)
    assert gradient[-1] == pytest.approx(1 / 1_000_001, rel=1e-14)


@both
@pytest.mark.parametrize("classes", ["present", "all"])
@pytest.mark.parametrize("weight", [None, [0.5, 2.0, 1.0, 7.0, 3.0]])
@pytest.mark.parametrize("ignore_index", [255, -1, 1])
def test_loss_and_dlogits_match_autograd_for_every_set_of_options(
    rng, torch, implementation, classes, weight, ignore_index
):
    logits, target = batch_without_class_two(rng, ignore_index)
    dloss = rng.uniform(0.5, 2.0)
    options = dict(classes=classes, weight=weight, ignore_index=ignore_index)
    loss, dlogits = loss_and_gradient(logits, target, dloss, implementation=implementation,
                                      **options)
    expected, dexpected = oracle_loss_and_gradient(torch, "lovasz", logits, target, dloss,
                                                   **options)
    assert loss == pytest.approx(expected, rel=1e-12)
    assert relative_error(dlogits, dexpected) < 1e-12


@both
@pytest.mark.parametrize("options", [{}, {"classes": "all"}, {"weight": [0, 1, 2, 3, 4]}])
def test_dlogits_match_central_differences(rng, implementation, options):
    logits, target = batch_without_class_two(rng, shape=(1, 3, 4))
    options = dict(options, implementation=implementation)
    _, dlogits = loss_and_gradient(logits, target, 1.7, **options)
    assert_gradient_matches_differences(
        lambda z: 1.7 * lovasz_forward(z, target, **options)[0], logits, dlogits, rng
    )


def test_an_absent_class_costs_its_largest_probability_if_all_are_averaged(rng):
    logits, target = batch_without_class_two(rng)
    present, _ = lovasz_forward(logits, target)
    everything, _ = lovasz_forward(logits, target, classes="all")
    largest = probabilities(logits)[target != 255][:, 2].max()
    assert everything == pytest.approx((4 * present + largest) / 5, rel=1e-13)


def test_a_perfect_prediction_has_loss_zero(rng):
    target = rng.integers(0, 3, (2, 5, 7))
    logits = 2000.0 * np.eye(4)[target]
    for classes in ("present", "all"):
        loss, dlogits = loss_and_gradient(logits, target, classes=classes)
        assert loss == 0 and not dlogits.any()


def test_pooled_over_the_batch_it_does_not_know_images(rng):
    logits, target = random_batch(rng)
    loss, dlogits = loss_and_gradient(logits, target)
    other, dother = loss_and_gradient(logits.reshape(1, -1, 1, 4), target.reshape(1, -1, 1))
    assert other == loss
    np.testing.assert_array_equal(dother.reshape(dlogits.shape), dlogits)
    one_by_one = [lovasz_forward(z[None], t[None])[0] for z, t in zip(logits, target)]
    assert abs(np.mean(one_by_one) - loss) > 1e-3


def test_the_order_of_the_pixels_does_not_change_the_loss_even_where_errors_tie(rng):
    logits = rng.integers(-1, 2, (1, 6, 7, 4)).astype(np.float64)  # many equal errors
    target = rng.integers(0, 4, (1, 6, 7))
    loss, _ = lovasz_forward(logits, target)
    order = rng.permutation(42)
    shuffled, _ = lovasz_forward(logits.reshape(1, 42, 1, 4)[:, order],
                                 target.reshape(1, 42, 1)[:, order])
    assert shuffled == pytest.approx(loss, rel=1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@both
def test_huge_logits_stay_finite(rng, dtype, implementation):
    logits, target = batch_without_class_two(rng, dtype=dtype, scale=1e4)
    loss, dlogits = loss_and_gradient(logits, target, classes="all",
                                      implementation=implementation)
    assert 0 < loss < 1 and np.isfinite(dlogits).all()
    assert loss.dtype == dlogits.dtype == dtype


def test_float32_is_close_to_float64(rng):
    logits, target = batch_without_class_two(rng, shape=(2, 60, 80), dtype=np.float32)
    loss, dlogits = loss_and_gradient(logits, target)
    expected, dexpected = loss_and_gradient(logits.astype(np.float64), target)
    assert loss.dtype == dlogits.dtype == np.float32
    assert loss == pytest.approx(expected, rel=3e-7)
    assert relative_error(dlogits, dexpected) < 1e-4  # neighbours in the order may change places


@both
def test_no_class_present_is_loss_zero_and_said_once(rng, monkeypatch, implementation):
    warn_afresh(monkeypatch)
    logits, target = random_batch(rng, ignored=1.0)
    with pytest.warns(RuntimeWarning, match="Lovasz loss: every pixel is ignored"):
        loss, dlogits = loss_and_gradient(logits, target, implementation=implementation)
    assert loss == 0 and dlogits.shape == logits.shape and not dlogits.any()
    loss, dlogits = loss_and_gradient(logits, target, classes="all")
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
        ({"classes": "some"}, "'some'"), ({"weight": [1, 2]}, r"weight has shape \(2,\)"),
        ({"implementation": "fast"}, "fast"),
    ):
        with pytest.raises(ValueError, match=message):
            lovasz_forward(logits, target, **options)
    target[0, 0, 0] = 4
    with pytest.raises(ValueError, match="labels 4, neither"):
        lovasz_forward(logits, target)
