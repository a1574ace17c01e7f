import numpy as np
import pytest
from loss_cases import (
    assert_gradient_matches_differences,
    from_torch,
    random_batch,
    relative_error,
    to_torch,
    warn_afresh,
)

from minisegnet.losses import cross_entropy_backward, cross_entropy_forward

IMPLEMENTATIONS = ("loops", "numpy", "cuda_cpu")
WEIGHTS = {"no weights": None, "weights": [0.5, 2.0, 0.0, 7.0]}


def loss_and_gradient(logits, target, dloss=1.0, **options):
    loss, cache = cross_entropy_forward(logits, target, **options)
    return loss, cross_entropy_backward(dloss, cache)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_two_pixels_by_hand(implementation):
    # softmax([0, ln 3]) = [1/4, 3/4]; weights 1 and 3; one pixel of each class, one ignored
    logits = np.log([[1.0, 3.0], [1.0, 3.0], [5.0, 1.0]]).reshape(1, 1, 3, 2)
    target = np.array([0, 1, 255]).reshape(1, 1, 3)
    loss, dlogits = loss_and_gradient(logits, target, weight=[1.0, 3.0],
                                      implementation=implementation)
    assert loss == pytest.approx((np.log(4) + 3 * np.log(4 / 3)) / 4, rel=1e-14)
    np.testing.assert_allclose(
        dlogits[0, 0], [[-3 / 16, 3 / 16], [3 / 16, -3 / 16], [0, 0]], rtol=1e-14, atol=1e-16
    )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("ignore_index", [255, -1, 1])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
def test_loss_and_dlogits_match_torch_for_every_pair_of_options(
    rng, torch, implementation, weight, ignore_index, label_smoothing
):
    logits, target = random_batch(rng, ignore_index=ignore_index)
    dloss = rng.uniform(0.5, 2.0)
    loss, dlogits = loss_and_gradient(
        logits, target, dloss, weight=weight, ignore_index=ignore_index,
        label_smoothing=label_smoothing, implementation=implementation,
    )
    z, y = to_torch(torch, logits, target)
    w = None if weight is None else torch.tensor(weight, dtype=torch.float64)
    expected = torch.nn.functional.cross_entropy(
        z, y, weight=w, ignore_index=ignore_index, label_smoothing=label_smoothing
    )
    (expected * dloss).backward()
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    assert relative_error(dlogits, from_torch(z.grad)) < 1e-12


@pytest.mark.parametrize("target_dtype, ignore_index",
                         [(np.uint8, 255), (np.int8, -1), (np.int32, -100), (np.uint16, 65535)])
def test_the_dtype_of_the_target_does_not_matter(rng, target_dtype, ignore_index):
    logits, target = random_batch(rng)
    expected = loss_and_gradient(logits, target)
    target[target == 255] = ignore_index
    found = loss_and_gradient(logits, target.astype(target_dtype), ignore_index=ignore_index)
    assert found[0] == expected[0] and (found[1] == expected[1]).all()


def test_more_than_255_classes(rng, torch):
    logits, target = random_batch(rng, num_classes=300, ignore_index=-1)
    loss, dlogits = loss_and_gradient(logits, target, ignore_index=-1)
    z, y = to_torch(torch, logits, target)
    expected = torch.nn.functional.cross_entropy(z, y, ignore_index=-1)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    assert relative_error(dlogits, from_torch(z.grad)) < 1e-12


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_dlogits_match_central_differences(rng, implementation, label_smoothing):
    logits, target = random_batch(rng, shape=(1, 3, 2))
    options = dict(weight=[0.5, 2.0, 1.0, 7.0], label_smoothing=label_smoothing,
                   implementation=implementation)
    _, dlogits = loss_and_gradient(logits, target, 1.7, **options)
    assert_gradient_matches_differences(
        lambda z: 1.7 * cross_entropy_forward(z, target, **options)[0], logits, dlogits, rng
    )


def test_large_batch_in_float32_is_as_good_as_float64(rng):
    # Several blocks of pixels; the mean over them must not drift.
    logits, target = random_batch(rng, shape=(2, 90, 100), num_classes=21, dtype=np.float32)
    weight = rng.uniform(0.1, 50.0, 21)
    options = dict(weight=weight, label_smoothing=0.1)
    loss, dlogits = loss_and_gradient(logits, target, **options)
    expected, expected_gradient = loss_and_gradient(logits.astype(np.float64), target, **options)
    assert loss.dtype == dlogits.dtype == np.float32
    assert loss == pytest.approx(expected, rel=2e-7)
    assert relative_error(dlogits, expected_gradient) < 1e-6


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_huge_logits_stay_finite_and_exact(dtype, label_smoothing):
    logits = np.array([[1e4, -1e4, 0], [1e4, -1e4, 0], [-1e4, -1e4, -1e4]], dtype)
    logits, target = logits.reshape(1, 1, 3, 3), np.array([[[0, 1, 2]]])
    loss, dlogits = loss_and_gradient(logits, target, label_smoothing=label_smoothing)
    e = label_smoothing
    # -log p: (0, 2e4, 1e4) twice, then ln 3 for each
    expected = (1 - e) * (0 + 2e4 + np.log(3)) + e / 3 * (3e4 + 3e4 + 3 * np.log(3))
    assert loss == pytest.approx(expected / 3, rel=1e-6)
    onehot = np.eye(3)
    p = np.array([[1, 0, 0], [1, 0, 0], [1 / 3, 1 / 3, 1 / 3]])
    np.testing.assert_allclose(dlogits[0, 0], (p - (1 - e) * onehot - e / 3) / 3, atol=1e-7)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_scale_of_the_weights_cancels(rng, implementation):
    logits, target = random_batch(rng)
    weight = np.array([0.5, 2.0, 1.0, 7.0])
    for e in (0.0, 0.1):
        options = dict(label_smoothing=e, implementation=implementation)
        loss, dlogits = loss_and_gradient(logits, target, weight=weight, **options)
        other, dother = loss_and_gradient(logits, target, weight=1000 * weight, **options)
        assert other == pytest.approx(loss, rel=1e-13)
        assert relative_error(dother, dlogits) < 1e-13


def test_in_a_batch_of_one_class_its_weight_cancels(rng):
    logits, _ = random_batch(rng)
    target = np.full(logits.shape[:3], 3)
    weighted = loss_and_gradient(logits, target, weight=[1.0, 1.0, 1.0, 1e6])
    plain = loss_and_gradient(logits, target)
    assert weighted[0] == pytest.approx(plain[0], rel=1e-13)
    assert relative_error(weighted[1], plain[1]) < 1e-13


def test_the_mean_is_over_valid_pixels_only(rng):
    logits, target = random_batch(rng, ignored=0.0)
    whole, _ = loss_and_gradient(logits[:, :, :3], target[:, :, :3])
    target[:, :, 3:] = 255
    assert loss_and_gradient(logits, target)[0] == pytest.approx(whole, rel=1e-13)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS[:2])  # kernels do not know it
def test_nothing_to_learn_from_is_loss_zero_and_said_once(rng, monkeypatch, implementation):
    logits, target = random_batch(rng)
    warn_afresh(monkeypatch)
    with pytest.warns(RuntimeWarning, match="nothing to learn from"):
        loss, dlogits = loss_and_gradient(logits, np.full_like(target, 255), label_smoothing=0.1,
                                          implementation=implementation)
    assert loss == 0 and not dlogits.any()
    # every pixel in a class of weight 0; a second warning would be an error here
    loss, dlogits = loss_and_gradient(logits, np.full_like(target, 1), weight=[1, 0, 1, 1],
                                      implementation=implementation)
    assert loss == 0 and not dlogits.any()


def test_non_contiguous_inputs_are_read_right_and_left_alone(rng):
    logits, target = random_batch(rng, shape=(4, 10, 7), num_classes=8)
    logits, target = logits[::2, 1::2, ::-1, ::2], np.minimum(target, 3)[::2, 1::2, ::-1]
    before = logits.copy(), target.copy()
    found = loss_and_gradient(logits, target, 0.3, ignore_index=3)
    assert (logits == before[0]).all() and (target == before[1]).all()
    expected = loss_and_gradient(*before, 0.3, ignore_index=3)
    assert found[0] == expected[0] and (found[1] == expected[1]).all()


def test_backward_can_be_asked_twice(rng):
    _, cache = cross_entropy_forward(*random_batch(rng))
    first = cross_entropy_backward(2.5, cache)
    once = cross_entropy_backward(1.0, cache)
    np.testing.assert_allclose(first, 2.5 * once, rtol=1e-14)


def test_a_scalar_of_numpy_does_not_change_the_dtype(rng):
    _, cache = cross_entropy_forward(*random_batch(rng, dtype=np.float32))
    assert cross_entropy_backward(np.float64(0.5), cache).dtype == np.float32


def test_labels_out_of_range_are_named(rng):
    logits, target = random_batch(rng)
    target[0, 0, :2] = 7, 200
    with pytest.raises(ValueError, match=r"labels 7, 200, neither classes 0\.\.3 nor"):
        cross_entropy_forward(logits, target)
    target[0, 0, :2] = -1, 0
    with pytest.raises(ValueError, match="labels -1, neither"):
        cross_entropy_forward(logits, target)


def test_unusable_input_is_refused(rng):
    logits, target = random_batch(rng)
    with pytest.raises(ValueError, match=r"\(2, 5, 6\).*\(2, 5, 7, 4\)"):
        cross_entropy_forward(logits, target[:, :, 1:])
    with pytest.raises(ValueError, match=r"\(N, H, W, K\)"):
        cross_entropy_forward(logits[0], target[0])
    with pytest.raises(TypeError, match="int64"):
        cross_entropy_forward(logits.astype(np.int64), target)
    with pytest.raises(TypeError, match="float64"):
        cross_entropy_forward(logits, target.astype(np.float64))
    with pytest.raises(ValueError, match=r"weight has shape \(3,\)"):
        cross_entropy_forward(logits, target, weight=[1, 2, 3])
    with pytest.raises(ValueError, match="negative"):
        cross_entropy_forward(logits, target, weight=[1, 2, 3, -1])
    with pytest.raises(ValueError, match="label_smoothing is 1.5"):
        cross_entropy_forward(logits, target, label_smoothing=1.5)
