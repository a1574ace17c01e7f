"""What guides on imbalance claim, and what the numbers say: each claim computed, none quoted.

The letters are those of five guides: A on floor plans (34 classes), B on UNet for aerial pictures,
C on a data set of 61 classes, D on a light network, E on a mean IoU that does not move.
"""

import math

import numpy as np
import pytest

from minisegnet.blocks import SeparableConv2d
from minisegnet.datasets.class_map import ClassMap
from minisegnet.errors import UserError
from minisegnet.imbalance import ClassStatistics, class_weights
from minisegnet.imbalance.consistency import audit
from minisegnet.imbalance.fingerprint import know_nothing, loss_floor, resembles
from minisegnet.imbalance.gradient_ledger import gradient_ledger
from minisegnet.imbalance.published import read_published
from minisegnet.layers import Conv2d
from minisegnet.losses import Criterion, cross_entropy_forward, focal_backward, focal_forward
from minisegnet.metrics import ConfusionMatrix, expected_maximum
from minisegnet.models import build_model
from minisegnet.optim import AdamW, CosineAnnealingWarmRestarts, near_restart_top
from minisegnet.training.checkpoint import Checkpoint, load_weights


def confusion_of(num_classes, cells):
    """The ConfusionMatrix with {(truth, prediction): pixels}."""
    confusion = ConfusionMatrix(num_classes)
    for cell, pixels in cells.items():
        confusion.matrix[cell] = pixels
    return confusion


def statistics_of(pixels):
    return ClassStatistics(np.asarray(pixels, np.int64)[None])


def names(K):
    return [f"class {c}" for c in range(K)]


def logits_of(p):
    """One pixel of two classes whose first has probability p."""
    return np.array([math.log(p / (1 - p)), 0.0]).reshape(1, 1, 1, 2)


FIRST = np.zeros((1, 1, 1), np.uint8)  # its target


def imbalanced_batch(rng, K=4):
    """A target (2, 12, 10) with shares of about 80, 12, 6 and 2 %, and random logits."""
    target = rng.choice(K, (2, 12, 10), p=[0.8, 0.12, 0.06, 0.02])
    return rng.standard_normal((2, 12, 10, K)), target


# A: the floor-plan fixer

# 1000 pixels with accuracy 0.424 and IoU 0.727 of background, the rest wrong: all of its errors
# missed background, or all of them taken for background.
MISSED = {(0, 0): 424, (0, 1): 159, (1, 2): 417}
TAKEN = {(0, 0): 424, (1, 0): 159, (1, 2): 417}


@pytest.mark.parametrize("cells, in_truth", [(MISSED, 0.583), (TAKEN, 0.424)])
def test_a_it_predicts_only_background_is_not_what_its_figures_say(cells, in_truth):
    confusion = confusion_of(34, cells)
    assert confusion.pixel_accuracy == pytest.approx(0.424)
    assert confusion.iou[0] == pytest.approx(0.727, abs=5e-4)
    assert confusion.mean_iou_all == pytest.approx(0.021, abs=5e-4)
    assert confusion.active_classes() == 1
    _, truth, predicted = confusion.counts
    assert truth[0] / 1000 == pytest.approx(in_truth)  # 42 to 58 %, the two extremes
    assert 1 - confusion.matrix[:, 0].sum() / 1000 >= 0.417  # called something else, all wrongly
    assert np.diag(confusion.matrix)[1:].sum() == 0
    assert resembles(confusion, know_nothing(truth, names(34))) is None
    # Who does predict only background has accuracy = IoU.
    constant = confusion_of(34, {(0, 0): 424, (1, 0): 576})
    assert constant.pixel_accuracy == constant.iou[0] == 0.424
    assert resembles(constant, know_nothing(constant.counts[1], names(34))).iou[0] == 0.424


def test_a_the_audit_derives_the_same_from_the_published_figures():
    verdict = audit(read_published({"classes": 34, "accuracy": "0.424", "mean_iou": "0.021",
                                    "iou": ["0=0.727", "rest=0"], "claim": "constant=0"}))
    assert verdict.contradictions == [] and len(verdict.against_claim) == 2
    assert "between 0.424 and 0.583 of the truth" in verdict.follows[0]
    assert "At least 0.417 of the pixels" in verdict.follows[1]


def test_a_weights_of_one_half_and_five_are_0_039_and_1_47_by_the_formula():
    pixels = np.array([7500, 200] + [72] * 31 + [68])
    assert pixels.sum() == 10_000 and pixels.size == 34
    weights = class_weights(statistics_of(pixels), "inverse")
    assert weights[:2] == pytest.approx([0.039, 1.47], abs=5e-3)


def test_a_to_normalise_weights_to_sum_k_changes_nothing_in_a_weighted_mean(rng):
    logits, target = imbalanced_batch(rng)
    statistics = ClassStatistics.from_masks(target, 4)
    plain, normalised = (Criterion("ce", weight=class_weights(statistics, "inverse", normalize=n))
                         for n in (None, "sum"))
    assert not np.allclose(plain.weight, normalised.weight)
    (loss, cache), (same, same_cache) = (c.forward(logits, target) for c in (plain, normalised))
    assert loss == pytest.approx(same, rel=1e-13)
    np.testing.assert_allclose(plain.backward(1.0, cache), normalised.backward(1.0, same_cache),
                               rtol=1e-12, atol=1e-18)
    # It does where the weights are focal's alpha.
    focal, other = (Criterion("focal", weight=c.weight).forward(logits, target)[0]
                    for c in (plain, normalised))
    assert focal / other == pytest.approx(plain.weight[0] / normalised.weight[0])


def test_a_a_loss_of_one_half_is_below_the_floor_of_its_own_settings():
    pixels = np.array([75_000, 4_000, 3_000] + [18_000 / 31] * 31)
    weights = class_weights(statistics_of(np.rint(100 * pixels)), "inverse")
    unweighted = loss_floor(Criterion("ce", label_smoothing=0.1), pixels)
    weighted = loss_floor(Criterion("ce", label_smoothing=0.1, weight=weights), pixels)
    assert unweighted == pytest.approx(0.658, abs=5e-4)
    assert weighted == pytest.approx(2.0, abs=0.05)
    # The best of all predictions, once more by the loss itself: p_y = 1 - e + e/K, else e/K.
    p = np.full(34, 0.1 / 34)
    p[0] += 0.9
    best, _ = cross_entropy_forward(np.log(p).reshape(1, 1, 1, 34), FIRST, label_smoothing=0.1)
    assert best == pytest.approx(unweighted) and best > 0.5


def test_a_150_epochs_of_restarts_end_near_the_top_and_60_or_140_at_the_bottom():
    schedule = CosineAnnealingWarmRestarts(5e-5, T_0=20, T_mult=2, eta_min=1e-6)
    assert [e for e in range(1, 301) if schedule(e) == 5e-5] == [20, 60, 140, 300]
    assert schedule(149) == pytest.approx(4.96e-5, abs=1e-7)
    assert near_restart_top(schedule, 149).cycle_ends == (140, 300)
    for epochs in (60, 140):
        assert schedule(epochs - 1) < 1.1e-6 and near_restart_top(schedule, epochs - 1) is None


# B: the UNet user's guide

def test_b_mean_iou_72_73_with_mean_dice_39_80_is_impossible(rng):
    [sentence] = audit(read_published(
        {"mean_iou": "72.73%", "mean_dice": "39.80%"})).contradictions
    assert "between 72.7 % and 84.2 %" in sentence
    # Both ends are reached: by classes that are perfect or lost, and by classes all alike.
    for ious, mean_dice in ((np.r_[np.ones(8), np.zeros(3)], 0.727), (np.full(11, 8 / 11), 0.842)):
        confusion = ConfusionMatrix(12)  # the last is there to be confused with
        np.fill_diagonal(confusion.matrix, np.rint(1e6 * np.append(ious, 0)))
        confusion.matrix[:, 11] = np.rint(1e6 * np.append(1 - ious, 0))
        np.testing.assert_allclose(confusion.iou[:11], ious, atol=1e-6)
        assert confusion.iou[:11].mean() == pytest.approx(0.7273, abs=1e-4)
        assert confusion.dice[:11].mean() == pytest.approx(mean_dice, abs=5e-4)


def test_b_a_mapping_that_starts_from_zeros_makes_every_excluded_id_class_0():
    mask = np.arange(26, dtype=np.uint8).reshape(2, 13)  # 26 ids, of which 14 are classes
    valid = list(range(1, 15))
    from_zeros = np.zeros(256, np.uint8)
    from_zeros[valid] = np.arange(14)
    assert np.bincount(from_zeros[mask].ravel())[0] == 1 + 12
    class_map = ClassMap(names(14), valid, excluded={v: "no name" for v in (0, *range(15, 26))})
    ids = class_map.to_ids(mask)
    assert np.bincount(ids[ids != 255]).tolist() == [1] * 14
    assert (ids == 255).sum() == 12


def test_b_the_best_of_100_epochs_on_the_test_set_is_2_5_sigma_too_good(rng):
    assert expected_maximum(100) == pytest.approx(2.5, abs=0.02)
    assert rng.standard_normal((20_000, 100)).max(axis=1).mean() == pytest.approx(2.5, abs=0.02)


def test_b_weight_decay_of_1e_8_at_lr_5e_5_changes_no_float32_parameter(rng):
    after = {}
    for weight_decay in (0.0, 1e-8, 1e-2):
        model = build_model("mini", 3)
        optimizer = AdamW(model, lr=5e-5, weight_decay=weight_decay)
        random = np.random.default_rng(0)
        for _ in range(5):
            optimizer.flat.grad[...] = random.standard_normal(optimizer.flat.grad.size)
            optimizer.step()
        after[weight_decay] = optimizer.flat.data.copy()
    assert after[0.0].dtype == np.float32
    assert (after[1e-8] == after[0.0]).all()
    assert (after[1e-2] != after[0.0]).any()


# C: the data-first fix

def test_c_30_percent_by_pure_statistics_is_7_75():
    # The printed inverse weight of the class with one sample, N / (61 x 1), tells N.
    pixels = np.array([2445, 1] + [1] * 59)
    pixels[2:] = np.diff(np.linspace(0, 31541 - 2446, 60).astype(int))
    assert (pixels.sum(), pixels.size) == (31541, 61)
    assert class_weights(statistics_of(pixels), "inverse", cap=None)[1] == pytest.approx(
        517.066, abs=1e-3)
    majority, *_ = know_nothing(pixels, names(61))
    assert majority.pixel_accuracy == pytest.approx(0.0775, abs=5e-5)


def test_c_printed_root_weights_hide_a_division():
    ours = class_weights(statistics_of([2445, 1]), "sqrt")
    printed = np.array([0.226, 11.167])
    assert ours == pytest.approx([1, 49.4], abs=0.05)
    assert printed[1] / printed[0] == pytest.approx(49.4, abs=0.05)  # the ratio is right
    np.testing.assert_allclose(ours / printed, 4.43, atol=0.01)  # what both were divided by


# D: the light network

def test_d_a_separable_convolution_of_160_to_128_has_21_920_parameters(rng):
    def kernels(layer):
        return sum(array.size for _, array in layer.named_parameters() if array.ndim > 1)

    separable = kernels(SeparableConv2d(160, 128, 3, rng=rng))
    dense = kernels(Conv2d(160, 128, 3, bias=False, rng=rng))
    assert (separable, dense) == (21_920, 184_320)
    assert dense / separable == pytest.approx(8.4, abs=0.01)  # 20,928 and 8.8 are not


def test_d_both_networks_have_the_published_size():
    baseline, light = (build_model(name, 21) for name in ("deeplab_baseline", "deeplab_light"))
    between = sum(array.size for name, array in light.named_parameters()
                  if ".depthwise.norm." in name and name.startswith("stage"))
    published = light.num_parameters - between  # ours has norms there, as DeepLabV3+
    assert (baseline.num_parameters, published, between) == (6_831_509, 2_516_853, 640)
    assert baseline.num_parameters * 4 / 2**20 == pytest.approx(26.06, abs=5e-3)
    assert published * 4 / 2**20 == pytest.approx(9.60, abs=5e-3)


def test_d_a_loss_of_2_5_makes_focal_2_106_not_1_225():
    p = math.exp(-2.5)
    assert p == pytest.approx(0.082, abs=5e-4)
    ce, focal = (float(f(logits_of(p), FIRST)[0]) for f in (cross_entropy_forward, focal_forward))
    assert ce == pytest.approx(2.5)
    assert focal == pytest.approx(2.106, abs=5e-4)


def test_d_at_p_0_3_cross_entropy_is_1_204_and_focal_0_590():
    ce, focal = (float(f(logits_of(0.3), FIRST)[0])
                 for f in (cross_entropy_forward, focal_forward))
    assert (ce, focal) == pytest.approx((1.204, 0.590), abs=5e-4)


def test_d_focal_does_not_handle_imbalance_like_weights_at_a_uniform_prediction(rng):
    _, target = imbalanced_batch(rng)
    statistics = ClassStatistics.from_masks(target, 4)
    weights = class_weights(statistics, "inverse")
    plain, focal, weighted = (
        gradient_ledger(criterion, np.zeros((*target.shape, 4)), target).share_by_target
        for criterion in (Criterion("ce"), Criterion("focal"), Criterion("ce", weight=weights)))
    np.testing.assert_allclose(focal, plain, rtol=1e-12)
    np.testing.assert_allclose(plain, statistics.frequency, rtol=1e-12)
    np.testing.assert_allclose(weighted, 1 / 4, rtol=1e-12)  # each class alike


def test_d_dice_does_not_order_models_as_iou_does():
    # Errors of 22 pixels; hits of 22 and 22, or of 198 and 3: IoUs (.5, .5) and (.9, .12).
    even = confusion_of(2, {(0, 0): 22, (0, 1): 11, (1, 0): 11, (1, 1): 22})
    uneven = confusion_of(2, {(0, 0): 198, (0, 1): 11, (1, 0): 11, (1, 1): 3})
    np.testing.assert_allclose(even.iou, [0.5, 0.5])
    np.testing.assert_allclose(uneven.iou, [0.9, 0.12])
    assert uneven.mean_iou_present > even.mean_iou_present
    assert uneven.mean_dice_present < even.mean_dice_present


def test_d_the_checkpoint_of_6_83_m_is_refused_by_the_model_of_2_52_m_by_name_and_shape():
    baseline, light = (build_model(name, 21) for name in ("deeplab_baseline", "deeplab_light"))
    before = dict(light.named_parameters())["classifier.weight"].copy()
    checkpoint = Checkpoint("old.npz", dict(baseline.named_parameters()),
                            dict(baseline.named_buffers()), {}, {},
                            {"model": "deeplab_baseline", "num_classes": 21})
    with pytest.raises(UserError, match=r"deeplab_baseline with 21 classes, which does not fit "
                                        r"deeplab_light.*: [\w.]+ is \([\d, ]+\) there and "
                                        r"\([\d, ]+\) here \(\d+ misfits in all\)"):
        load_weights(light, checkpoint)
    np.testing.assert_array_equal(dict(light.named_parameters())["classifier.weight"], before)


def test_d_a_scalar_alpha_of_one_quarter_only_rescales_focal_but_not_against_dice(rng):
    logits, target = imbalanced_batch(rng)
    (loss, cache), (quarter, quarter_cache) = (
        focal_forward(logits, target, alpha=alpha) for alpha in (None, 0.25))
    assert quarter == pytest.approx(loss / 4)
    np.testing.assert_allclose(focal_backward(1.0, quarter_cache),
                               focal_backward(1.0, cache) / 4, rtol=1e-12)
    parts = [criterion.parts(criterion.forward(logits, target)[1]) for criterion in
             (Criterion("combined"), Criterion("combined", weight=np.full(4, 0.25)))]
    assert parts[1]["dice"] == parts[0]["dice"]
    assert parts[1]["focal"] == pytest.approx(parts[0]["focal"] / 4)


# E: the flat mean IoU

def test_e_predicting_class_0_scores_1_02_percent_and_2_7_is_the_mean_class_accuracy():
    # Of all pixels 32.6 % are of class 0 and 13.6 % are ignored; 37 classes.
    target = np.repeat(np.r_[0, -1, 1 + np.arange(5380) % 36], [3260, 1360] + [1] * 5380)
    confusion = ConfusionMatrix(37, ignore_index=-1)
    confusion.update(target, np.zeros_like(target))
    assert target.size == 10_000
    assert confusion.pixel_accuracy == pytest.approx(0.377, abs=5e-4)  # of the valid pixels
    assert confusion.mean_iou_all == pytest.approx(0.0102, abs=5e-5)
    assert confusion.mean_class_accuracy == pytest.approx(1 / 37)
    assert f"{confusion.mean_class_accuracy:.1%}" == "2.7%"
    sits_on = resembles(confusion, know_nothing(confusion.counts[1], names(37)))
    assert sits_on.name == "always predicting class 0"
    assert sits_on.mean_iou == pytest.approx(confusion.mean_iou_all)
    [sentence] = audit(read_published({
        "classes": 37, "mean_iou": "2.7%", "share_of_all": ["0=32.6%"], "ignored": "13.6%",
        "claim": "constant=0"})).against_claim
    assert "must be 1.02 %" in sentence and "mean class accuracy" in sentence


def test_e_nan_to_0_lowers_the_mean_for_absent_classes_and_hides_an_empty_matrix():
    confusion = confusion_of(4, {(0, 0): 8, (0, 1): 1, (1, 1): 1})  # classes 2 and 3 are nowhere
    with_zeros = np.nan_to_num(confusion.iou).mean()
    assert with_zeros == pytest.approx(confusion.mean_iou_present * 2 / 4)
    empty = ConfusionMatrix(4)
    assert np.nan_to_num(empty.iou).mean() == 0  # like a model that gets everything wrong
    assert math.isnan(empty.mean_iou_present) and math.isnan(empty.mean_iou_all)
