"""The fused head, the combined loss and the criterion: all losses, by name."""

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

from minisegnet import losses
from minisegnet.losses import (
    Criterion,
    combined_backward,
    combined_forward,
    dice_forward,
    focal_forward,
    upsampled_loss_backward,
    upsampled_loss_forward,
    upsampled_prediction,
)
from minisegnet.ops.upsample import upsample_bilinear_backward, upsample_bilinear_forward

PLAIN = {
    "ce": (losses.cross_entropy_forward, losses.cross_entropy_backward),
    "focal": (losses.focal_forward, losses.focal_backward),
    "dice": (losses.dice_forward, losses.dice_backward),
    "combined": (combined_forward, combined_backward),
    "tversky": (losses.tversky_forward, losses.tversky_backward),
    "lovasz": (losses.lovasz_forward, losses.lovasz_backward),
    "ohem": (losses.ohem_forward, losses.ohem_backward),
    "logit_adjusted": (losses.logit_adjusted_forward, losses.logit_adjusted_backward),
}
PRIOR = [0.7, 0.1, 0.0, 0.2]
REQUIRED = {"logit_adjusted": {"prior": PRIOR}}  # options without a default
WEIGHT = [0.5, 2.0, 0.0, 7.0]
CASES = [
    ("ce", {}),
    ("ce", {"weight": WEIGHT}),
    ("ce", {"label_smoothing": 0.1}),
    ("ce", {"weight": WEIGHT, "label_smoothing": 0.1}),
    ("focal", {}),
    ("focal", {"alpha": WEIGHT, "gamma": 0.5}),
    ("focal", {"alpha": 0.25, "gamma": 0.0}),
    ("dice", {}),
    ("dice", {"classes": "all", "smooth": 0.0}),
    ("dice", {"weight": WEIGHT, "log": True}),
    ("dice", {"mode": "smp"}),
    ("combined", {}),
    ("combined", {"lambda_focal": 0.3, "lambda_dice": 2.0, "alpha": WEIGHT, "gamma": 1.5,
                  "smooth": 0.1}),
    ("combined", {"lambda_focal": 0.0}),
    ("combined", {"lambda_dice": 0.0}),
    ("combined", {"dice_mode": "smp"}),
    ("tversky", {}),
    ("tversky", {"alpha": 0.9, "beta": 0.2, "smooth": 0.0, "classes": "all", "weight": WEIGHT}),
    ("lovasz", {}),
    ("lovasz", {"classes": "all", "weight": WEIGHT}),
    ("ohem", {}),
    ("ohem", {"thresh": 0.1, "min_kept": 0.6, "weight": WEIGHT}),
    ("logit_adjusted", {}),
    ("logit_adjusted", {"tau": 0.5, "weight": WEIGHT}),
]
ALL_CASES = pytest.mark.parametrize("loss, options", CASES, ids=lambda value: str(value))
NAMES = pytest.mark.parametrize("name", PLAIN)


def coarse_batch(rng, coarse_size=(3, 4), size=(12, 16), **options):
    coarse, _ = random_batch(rng, shape=(2, *coarse_size), **options)
    _, target = random_batch(rng, shape=(2, *size), **options)
    return coarse, target


def fused(coarse, target, loss, dloss, **options):
    options = {**REQUIRED.get(loss, {}), **options}
    value, cache = upsampled_loss_forward(coarse, target, loss, **options)
    return value, upsampled_loss_backward(dloss, cache)


def plain(coarse, target, loss, dloss, **options):
    forward, backward = PLAIN[loss]
    logits, upsample_cache = upsample_bilinear_forward(coarse, target.shape[1:])
    value, cache = forward(logits, target, **{**REQUIRED.get(loss, {}), **options})
    return value, upsample_bilinear_backward(backward(dloss, cache), upsample_cache)


@ALL_CASES
@pytest.mark.parametrize("ignore_index", [255, -1, 1])
@pytest.mark.parametrize("coarse_size, size", [((3, 4), (12, 16)), ((5, 7), (13, 11)),
                                               ((9, 8), (4, 3)), ((1, 1), (5, 3))])
def test_fused_equals_upsample_then_loss(rng, loss, options, ignore_index, coarse_size, size):
    coarse, target = coarse_batch(rng, coarse_size, size, ignore_index=ignore_index)
    dloss = rng.uniform(0.5, 2.0)
    value, dcoarse = fused(coarse, target, loss, dloss, ignore_index=ignore_index, **options)
    expected, dexpected = plain(coarse, target, loss, dloss, ignore_index=ignore_index, **options)
    assert value == pytest.approx(expected, rel=1e-12)
    assert relative_error(dcoarse, dexpected) < 1e-11


@ALL_CASES
def test_fused_in_many_bands_and_float32(rng, loss, options):
    # Wide enough for several bands of rows and of columns, the last ones smaller.
    coarse, target = coarse_batch(rng, (37, 70), (149, 281), dtype=np.float32)
    value, dcoarse = fused(coarse, target, loss, 1.0, **options)
    assert value.dtype == dcoarse.dtype == np.float32
    expected, dexpected = plain(coarse.astype(np.float64), target, loss, 1.0, **options)
    assert value == pytest.approx(expected, rel=1e-6)
    assert relative_error(dcoarse, dexpected) < 3e-6


def test_fused_cross_entropy_matches_torch(rng, torch):
    coarse, target = coarse_batch(rng, (5, 7), (18, 30))
    value, dcoarse = fused(coarse, target, "ce", 1.0, weight=WEIGHT, label_smoothing=0.1)
    z, y = to_torch(torch, coarse, target)
    large = torch.nn.functional.interpolate(z, (18, 30), mode="bilinear", align_corners=False)
    expected = torch.nn.functional.cross_entropy(
        large, y, weight=torch.tensor(WEIGHT, dtype=torch.float64), ignore_index=255,
        label_smoothing=0.1,
    )
    expected.backward()
    assert value == pytest.approx(expected.item(), rel=1e-12)
    assert relative_error(dcoarse, from_torch(z.grad)) < 1e-11


@ALL_CASES
def test_dcoarse_matches_central_differences(rng, loss, options):
    coarse, target = coarse_batch(rng, (2, 2), (5, 6))
    _, dcoarse = fused(coarse, target, loss, 1.7, **options)
    assert_gradient_matches_differences(
        lambda z: 1.7 * fused(z, target, loss, 1.0, **options)[0], coarse, dcoarse, rng
    )


@NAMES
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_neighbours_too_far_apart_for_exp_fall_back_to_a_safe_maximum(rng, name, dtype):
    # +-1e4 in opposite classes of neighbours: between them, every shifted logit underflows exp.
    coarse, target = coarse_batch(rng, scale=1e4, dtype=dtype)
    value, dcoarse = fused(coarse, target, name, 1.0)
    expected, dexpected = plain(coarse.astype(np.float64), target, name, 1.0)
    assert np.isfinite(value) and np.isfinite(dcoarse).all()
    assert value == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(dcoarse, dexpected, atol=1e-3 if dtype == np.float32 else 1e-10)


@NAMES
def test_logits_far_from_zero_do_not_overflow(rng, name):
    coarse, target = coarse_batch(rng, dtype=np.float32)
    value, dcoarse = fused(coarse + np.float32(512.0), target, name, 1.0)
    expected, dexpected = plain(coarse, target, name, 1.0)
    assert value == pytest.approx(expected, rel=1e-4)
    assert relative_error(dcoarse, dexpected) < 1e-3  # 512 costs a float32 logit nine bits


@NAMES
def test_confident_pixels_in_float32_stay_finite(rng, name):
    # log p of -20 - log(exp(-20)) may round above 0, where (1-p)^gamma would not exist
    coarse, target = coarse_batch(rng, (9, 9), (60, 60), dtype=np.float32, scale=12.0)
    options = {"gamma": 0.5} if name in ("focal", "combined") else {}
    value, dcoarse = fused(coarse, target, name, 1.0, **options)
    expected, dexpected = plain(coarse.astype(np.float64), target, name, 1.0, **options)
    assert value == pytest.approx(expected, rel=1e-5)
    assert relative_error(dcoarse, dexpected) < 1e-4


@NAMES
@pytest.mark.parametrize("path", [fused, plain])
def test_logits_of_ignored_pixels_change_neither_loss_nor_gradient(rng, name, path):
    # The right half of the large picture is ignored, and only coarse columns 3 reach it alone.
    coarse, target = coarse_batch(rng, (3, 4), (3, 4) if path is plain else (12, 16))
    target[:, :, target.shape[2] // 2:] = 255
    value, gradient = path(coarse, target, name, 1.3)
    changed = coarse.copy()
    changed[:, :, 3] = 100.0 * rng.standard_normal(changed[:, :, 3].shape)
    other, dother = path(changed, target, name, 1.3)
    assert other == pytest.approx(value, rel=1e-14)
    np.testing.assert_allclose(dother, gradient, rtol=1e-11, atol=1e-16)
    assert not gradient[:, :, 3].any()


@NAMES
def test_a_shift_of_all_logits_of_a_pixel_changes_nothing(rng, name):
    logits, target = random_batch(rng)
    forward, backward = PLAIN[name]
    required = REQUIRED.get(name, {})
    loss, cache = forward(logits, target, **required)
    shifted, shifted_cache = forward(logits + rng.normal(size=(2, 5, 7, 1)), target, **required)
    assert shifted == pytest.approx(loss, rel=1e-12)
    gradient = backward(1.0, cache)
    assert relative_error(backward(1.0, shifted_cache), gradient) < 1e-12
    # which is why the gradient of every pixel sums to zero over the classes
    np.testing.assert_allclose(gradient.sum(axis=3), 0.0, atol=1e-16)


@NAMES
def test_inputs_are_left_alone_and_may_be_views(rng, name):
    coarse, target = coarse_batch(rng, (6, 8), (24, 32), num_classes=4)
    coarse, target = coarse[:, ::2, ::-2], target[:, 1::2, ::-2]
    before = coarse.copy(), target.copy()
    value, dcoarse = fused(coarse, target, name, 0.7)
    assert (coarse == before[0]).all() and (target == before[1]).all()
    expected, dexpected = plain(*before, name, 0.7)
    assert value == pytest.approx(expected, rel=1e-12)
    assert relative_error(dcoarse, dexpected) < 1e-12


@NAMES
@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (1, 1, 1, 5), (1, 2, 3, 1), (2, 1, 1, 1)],
                         ids=str)
def test_one_pixel_or_one_class_is_left_alone(rng, name, shape):
    logits, target = random_batch(rng, shape=shape[:3], num_classes=shape[3], ignored=0.0)
    before = logits.copy()
    required = {"prior": np.ones(shape[3])} if name == "logit_adjusted" else {}
    forward, backward = PLAIN[name]
    value, cache = forward(logits, target, **required)
    backward(1.0, cache)
    upsampled_loss_forward(logits, target, name, **required)
    assert (logits == before).all()
    twice = np.concatenate([before, before], axis=2), np.concatenate([target, target], axis=2)
    assert forward(*twice, **required)[0] == pytest.approx(
        value, rel=1e-12) or name in ("dice", "tversky", "combined")  # smoothing counts pixels


@NAMES
def test_the_same_numbers_with_one_thread_and_with_many(rng, monkeypatch, name):
    from minisegnet import parallel

    coarse, target = coarse_batch(rng, (30, 40), (90, 160), dtype=np.float32)
    results = []
    for threads in (1, 4):
        monkeypatch.setattr(parallel, "num_threads", lambda: threads)
        results.append(fused(coarse, target, name, 1.0))
    assert results[0][0] == results[1][0]
    assert (results[0][1] == results[1][1]).all()


@NAMES
def test_only_ignored_pixels_is_loss_zero(rng, monkeypatch, name):
    warn_afresh(monkeypatch)
    coarse, target = coarse_batch(rng)
    with pytest.warns(RuntimeWarning):
        value, dcoarse = fused(coarse, np.full_like(target, 255), name, 1.0)
    assert value == 0 and not dcoarse.any()


def test_the_combined_loss_is_the_weighted_sum_of_its_parts(rng, torch):
    logits, target = random_batch(rng)
    options = dict(alpha=WEIGHT, gamma=1.5)
    loss, cache = combined_forward(logits, target, lambda_focal=0.3, lambda_dice=2.0, smooth=0.1,
                                   **options)
    focal, focal_cache = focal_forward(logits, target, **options)
    dice, dice_cache = dice_forward(logits, target, smooth=0.1)
    assert cache.parts == {"focal": focal, "dice": dice}
    assert loss == pytest.approx(0.3 * focal + 2.0 * dice, rel=1e-14)
    expected = 0.3 * losses.focal_backward(1.7, focal_cache)
    expected += 2.0 * losses.dice_backward(1.7, dice_cache)
    assert relative_error(combined_backward(1.7, cache), expected) < 1e-13


def test_prediction_is_the_argmax_of_the_enlarged_logits(rng):
    for num_classes, dtype in ((4, np.uint8), (300, np.uint16)):
        coarse, _ = coarse_batch(rng, num_classes=num_classes, ignore_index=-1)
        prediction = upsampled_prediction(coarse, (13, 15))
        logits, _ = upsample_bilinear_forward(coarse, (13, 15))
        assert prediction.dtype == dtype
        assert (prediction == logits.argmax(axis=3)).all()


def test_prediction_of_equal_logits_is_the_lowest_class():
    assert not upsampled_prediction(np.ones((1, 2, 2, 5), np.float32), (6, 6)).any()


@NAMES
def test_criterion_equals_the_functions_on_both_paths(rng, name):
    coarse, target = coarse_batch(rng)
    weight = np.array([0.5, 2.0, 1.0, 7.0])
    criterion = Criterion(name, weight=weight, gamma=1.5, lambda_focal=0.3,
                          label_smoothing=0.1 if name == "ce" else 0.0,
                          dice_mode="smp" if name == "combined" else "pooled",
                          tversky_alpha=0.9, tversky_beta=0.2, ohem_thresh=0.1, ohem_min_kept=0.5,
                          tau=0.5, prior=np.array(PRIOR))
    options = {
        "ce": {"weight": weight, "label_smoothing": 0.1},
        "focal": {"alpha": weight, "gamma": 1.5},
        "dice": {"weight": weight},
        "combined": {"alpha": weight, "gamma": 1.5, "lambda_focal": 0.3, "dice_mode": "smp"},
        "tversky": {"weight": weight, "alpha": 0.9, "beta": 0.2},
        "lovasz": {"weight": weight},
        "ohem": {"weight": weight, "thresh": 0.1, "min_kept": 0.5},
        "logit_adjusted": {"weight": weight, "prior": PRIOR, "tau": 0.5},
    }[name]
    expected, dexpected = plain(coarse, target, name, 1.3, **options)

    value, cache = criterion.forward_upsampled(coarse, target)
    parts = criterion.parts(cache)
    assert value == pytest.approx(expected, rel=1e-12)
    assert relative_error(criterion.backward_upsampled(1.3, cache), dexpected) < 1e-12

    logits, upsample_cache = upsample_bilinear_forward(coarse, target.shape[1:])
    value, cache = criterion.forward(logits, target)
    dcoarse = upsample_bilinear_backward(criterion.backward(1.3, cache), upsample_cache)
    assert value == pytest.approx(expected, rel=1e-12)
    assert relative_error(dcoarse, dexpected) < 1e-12
    assert parts == pytest.approx(criterion.parts(cache), rel=1e-12)
    assert list(parts) == (["focal", "dice"] if name == "combined" else [])


def test_unusable_input_is_refused(rng):
    coarse, target = coarse_batch(rng)
    with pytest.raises(ValueError, match="loss 'mse' is not one of"):
        upsampled_loss_forward(coarse, target, "mse")
    with pytest.raises(ValueError, match="N = 2"):
        upsampled_loss_forward(coarse, target[:1])
    with pytest.raises(ValueError, match="N, h, w, K|N, H, W, K"):
        upsampled_loss_forward(coarse[0], target)
    with pytest.raises(ValueError, match="lambda_dice -1"):
        upsampled_loss_forward(coarse, target, "combined", lambda_dice=-1)
    with pytest.raises(ValueError, match="loss 'mse' is not one of"):
        Criterion("mse")
    for loss, options, message in (
        ("tversky", {"beta": -0.1}, "beta -0.1"), ("ohem", {"thresh": 0.0}, "thresh is 0.0"),
        ("logit_adjusted", {"prior": [1, 1]}, r"prior has shape \(2,\)"),
        ("lovasz", {"classes": "some"}, "'some'"),
    ):
        with pytest.raises(ValueError, match=message):
            upsampled_loss_forward(coarse, target, loss, **options)
    target[0, 0, 0] = 9
    with pytest.raises(ValueError, match="labels 9, neither"):
        upsampled_loss_forward(coarse, target)
