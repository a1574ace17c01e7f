"""What sets faults apart that look alike, and how far a healthy run may go."""

import numpy as np
import pytest
from diagnosis_cases import (
    BACKBONE,
    NAMES,
    PIXELS,
    VALUES,
    VOID,
    K,
    alignment,
    confusion,
    declared,
    epoch,
    healthy,
    label_path,
    probe,
    start,
    steps,
    validation,
    with_outcome,
)

from minisegnet.diagnosis import diagnose
from minisegnet.tables import listed


def faults(evidence):
    return [finding.fault for finding in diagnose(evidence)]


def paths(train=(), val=(), extra=()):
    return healthy(start=start(label_path={"train": label_path(train, extra),
                                           "val": label_path(val)}))


# ---------------------------------------------------------------- labels


def test_void_alone_as_class_0_is_a_forgotten_ignore_and_an_excluded_id_a_map_from_zeros():
    assert faults(paths({VOID: 0}, {VOID: 0})) == ["ignore-is-a-class"]
    assert faults(paths({VOID: 0, 40: 0}, {VOID: 0, 40: 0})) == ["excluded-ids-in-class-0"]
    assert faults(paths({40: 3}, {40: 3})) == ["ignore-is-a-class"]


@pytest.mark.parametrize("train", [
    {0: 1, 3: 2, 7: 3, 8: 4, 12: 5, 20: 0, VOID: 0, 40: 0},  # 255 + 1 in bytes is 0
    {0: 1, 3: 2, 7: 3, 8: 4, 12: 5, 20: 5},  # cut at the end
    {0: VOID, 3: 0, 7: 1, 8: 2, 12: 3, 20: 4},  # reduce_zero_label
])
def test_a_shift_explains_what_happens_at_the_ends_of_the_list(train):
    assert faults(paths(train)) == ["shifted-labels"]
    assert faults(paths(train, train)) == ["shifted-labels"]  # both wrong alike


def test_long_lists_are_cut_and_counted():
    assert listed(NAMES[:4]) == "ground, wall, room, door"
    assert listed(NAMES) == "ground, wall, room, door and 2 more"
    assert "and 2 more" in diagnose(paths({0: 1, 3: 2, 7: 3, 8: 4, 12: 5, 20: 0}))[0].evidence


def test_one_class_that_moved_is_no_shift():
    assert "shifted-labels" not in faults(paths({7: 3}, {7: 3}))


def test_colours_are_followed_like_ids():
    colours = [[v, v, 9] for v in VALUES]
    pairs = [[colour, label, n] for label, (colour, n) in enumerate(zip(colours, PIXELS.tolist()))]
    table = [[colour, label] for label, colour in enumerate(colours)] + [[[0, 0, 0], VOID]]
    record = {"samples": 9, "declared": table, "pairs": pairs + [[[0, 0, 0], 5, 300]]}
    fine = {**record, "pairs": pairs + [[[0, 0, 0], VOID, 300]]}
    assert faults(healthy(start=start(label_path={"train": fine, "val": fine}))) == []
    assert faults(healthy(start=start(label_path={"train": record, "val": record}))) == [
        "ignore-is-a-class"]


def test_masks_that_are_ignored_in_part_say_nothing_of_their_values():
    extra = [[value, VOID, 3 * n] for value, n in zip(VALUES, PIXELS.tolist())]
    assert faults(paths(extra=extra)) == []


def test_labels_without_any_rule_are_other_masks_and_not_a_wrong_map():
    extra = [[value, label, 400] for value in (0, 3, 7) for label in range(K)]
    assert faults(paths(extra=extra)) == ["shuffled-pairs"]


def test_classes_beyond_the_model_and_values_nobody_declared_are_too_few_classes():
    table = [*declared(), [60, K], [61, K + 1]]
    for got in (K - 1, 0, VOID):
        record = label_path(extra=[[60, got, 500], [61, got, 90]])
        record["declared"] = table
        both = {"train": record, "val": record}
        assert faults(healthy(start=start(label_path=both))) == ["too-few-classes"]


def test_a_class_folded_into_another_is_too_few_and_one_ignored_the_wrong_ignore_id():
    pixels = PIXELS.copy()
    pixels[5] = 0
    of_train = {"images": 64, "pixels": pixels.tolist()}
    both = {split: label_path({20: 4}) for split in ("train", "val")}
    assert faults(healthy(start=start(train=of_train, label_path=both)))[0] == "too-few-classes"
    assert faults(paths({20: VOID}, {20: VOID})) == ["wrong-ignore-id"]


def test_validation_that_declares_other_classes():
    record = label_path()
    record["declared"] = [[value, K - 1 - label] for value, label in declared()[:K]]
    record["pairs"] = [[value, K - 1 - label, 100] for value, label in declared()[:K]]
    both = {"train": label_path(), "val": record}
    assert faults(healthy(start=start(label_path=both))) == ["other-validation-classes"]


@pytest.mark.parametrize("order, first", [
    ((1, 2, 3, 4, 5, 0), "shifted-labels"), ((5, 0, 1, 2, 3, 4), "shifted-labels"),
    ((2, 5, 1, 0, 4, 3), "other-validation-classes"),
    ((0, 4, 1, 5, 2, 3), "other-validation-classes"),  # background is the first in both lists
    ((1, 2, 3, 4, 5, 5), "shifted-labels"),
])
def test_without_files_the_confusion_matrix_tells_other_names(order, first):
    matrix = confusion() @ np.eye(K, dtype=int)[list(order)]  # class c is called order[c]
    evidence = with_outcome(matrix, start=start(label_path=None))
    assert faults(evidence)[0] == first
    assert set(faults(evidence)) <= {"shifted-labels", "other-validation-classes"}


def test_without_files_other_shares_are_another_class_set():
    val = {"images": 16, "pixels": PIXELS[::-1].tolist()}
    evidence = healthy(start=start(label_path=None, val=val), validations=[])
    assert faults(evidence) == ["other-validation-classes"]
    rather = {"images": 16, "pixels": (PIXELS * np.array([1, 1.2, 0.8, 1, 3, 3])).tolist()}
    assert faults(healthy(start=start(label_path=None, val=rather), validations=[])) == []


def test_a_class_missing_from_all_batches_and_one_that_is_merely_rare():
    assert faults(healthy(epochs=[epoch(1, target_pixels=[0, *PIXELS[1:].tolist()])])) == [
        "wrong-ignore-id"]
    assert faults(healthy(epochs=[epoch(1, target_pixels=[*PIXELS[:5].tolist(), 0])])) == []


def test_a_small_weight_is_not_nothing_and_few_pixels_prove_nothing():
    assert faults(healthy(start=start(probe=probe(np.array([1e-5, 1, 1, 1, 1, 1]))))) == []
    few = np.array([72000, 15000, 8000, 3000, 1500, 4])
    assert faults(healthy(start=start(probe=probe(np.array([1, 1, 1, 1, 1, 0]), few)))) == []


@pytest.mark.parametrize("invented, found", [
    ([], False), ([[VOID, 4000]], False), ([[2, 1]], True), ([[2, 30]], True),
    ([[9, 30]], True),  # of no class at all
])
def test_labels_invented_by_a_transform(invented, found):
    evidence = healthy(start=start(transform={
        "train": None, "val": {"samples": 16, "invented": invented, "lost": [[4, 9]]}}))
    assert faults(evidence) == ["interpolated-masks"] * found


def test_labels_invented_where_every_mask_holds_them_already():
    record = alignment()
    record["transform"]["invented"] = 12
    finding, = diagnose(healthy(start=start(alignment=record)))
    assert finding.fault == "interpolated-masks" and "12 pixels" in finding.evidence


def absent(pull, predicted=0.0):
    pixels = [*PIXELS[:5].tolist(), 0]
    matrix = confusion()
    matrix[5] = 0
    matrix[0, 5] = round(predicted * matrix.sum())
    val = {"images": 16, "pixels": [*(PIXELS // 4)[:5].tolist(), 0]}
    pulls = {**probe(), "pull_perfect": [0.005] * 5 + [pull]}
    return with_outcome(matrix, counts={},
                        start=start(train={"pixels": pixels}, val=val, probe=pulls))


def test_an_absent_class_does_no_harm_until_something_asks_for_it():
    assert faults(absent(0.005)) == []  # equal weights, smoothing 0.1
    assert faults(absent(0.3)) == ["too-many-classes"]
    assert faults(absent(0.0, predicted=0.1)) == ["too-many-classes"]


# ---------------------------------------------------------------- losses


@pytest.mark.parametrize("weight, recall, pixels, expected", [
    (1, (1, 0.95, 0.8, 0.0, 0.0, 0.0), PIXELS, ["unweighted-loss"]),
    (1, (1, 0.95, 0.8, 0.5, 0.4, 0.0), PIXELS, []),  # one class may just be hard
    (1, (1, 0.95, 0.8, 0.0, 0.0, 0.0), np.full(K, 9000), []),  # nothing dominates
    (3, (1, 0.95, 0.8, 0.0, 0.0, 0.0), PIXELS, []),  # weighted
    (1, (0.0, 0.0, 0.8, 0.0, 0.9, 0.0), PIXELS, []),  # it is not the frequent ones that are found
])
def test_unweighted_takes_equal_weights_dominance_and_missed_classes(weight, recall, pixels,
                                                                     expected):
    weights = np.array([1, 1, 1, weight, weight, weight])
    evidence = with_outcome(
        confusion(recall, PIXELS // 4), counts={},
        start=start(probe=probe(weights, pixels), train={"pixels": pixels.tolist()},
                    label_path={"train": label_path(), "val": label_path()}))
    assert [f for f in faults(evidence) if f != "other-validation-classes"] == expected


def test_a_class_found_once_is_not_missed():
    runs = [validation(confusion((1, 0.95, 0.0, 0.0, 0.0, 0.0)), i) for i in range(1, 6)]
    ones = start(probe=probe(np.ones(K)))
    assert faults(healthy(start=ones, validations=runs, log=[])) == ["unweighted-loss"]
    assert faults(healthy(start=ones, validations=[validation(epoch=1), *runs], log=[])) == []


def test_large_weights_that_do_no_harm_are_nobodys_business():
    assert faults(healthy(start=start(probe=probe(1 / PIXELS.astype(float)**2)))) == []


def test_a_loss_of_overlaps_that_learns_is_no_fault():
    dice = {**probe(1 / PIXELS), "loss_uniform": 0.8, "gradient_uniform": 0.8}
    assert faults(healthy(start=start(probe=dice))) == []
    missed = confusion((1, 0.95, 0.8, 0.7, 0.0, 0.0))
    for losses, expected in (([0.8, 0.6, 0.45, 0.41, 0.40, 0.40], ["dice-alone"]),
                             ([0.8, 0.7, 0.60, 0.50, 0.43, 0.40], []),  # it still falls
                             ([0.8], ["dice-alone"])):
        evidence = with_outcome(missed, losses, start=start(probe=dice))
        assert faults(evidence) == expected, losses


def test_a_bounded_loss_with_a_full_gradient_is_not_one_of_overlaps():
    missed = confusion((1, 0.95, 0.8, 0.7, 0.0, 0.0))
    for changes in ({"loss_uniform": 0.8, "gradient_uniform": 4 * 1.2},  # focal, scaled down
                    {"loss_uniform": 2.4, "gradient_uniform": 4 * 0.2}):  # not bounded by 1
        evidence = with_outcome(missed, [0.6] * 6,
                                start=start(probe={**probe(1 / PIXELS), **changes}))
        assert "dice-alone" not in faults(evidence)


# ---------------------------------------------------------------- optimizers


@pytest.mark.parametrize("course", [
    # measured on floor plans: AdamW, SGD with momentum 0.9, RMSprop with momentum 0.9
    {"ratio": (0.06, 0.001), "per_lr": (1.0, 0.07), "cosine": (0.7, 0.98), "norms": (1.0, 0.13)},
    {"ratio": 0.02, "per_lr": (0.03, 0.014), "cosine": (0.95, 0.996), "norms": (2.3, 0.4)},
    {"ratio": (0.17, 0.001), "per_lr": (23, 2.8), "cosine": (0.97, 0.995), "norms": (2.3, 0.6)},
    {"ratio": (0.02, 0.02), "per_lr": 0.2, "cosine": 0.2, "norms": (1.0, 30.0)},  # noisy
    {"ratio": 0.01, "per_lr": 0.05, "cosine": 0.9995},  # steady
    {"ratio": 0.01, "per_lr": 20.0, "cosine": 0.9},  # large, and turning
])
def test_updates_of_healthy_runs(course):
    assert faults(healthy(steps=steps(**course))) == []


def test_momentum_piles_up_in_sgd_too():
    course = steps(ratio=(1e-3, 0.2), per_lr=(0.01, 1.5), cosine=0.9985, norms=(2.0, 2.0))
    assert faults(healthy(steps=course)) == ["runaway-momentum"]


def test_a_large_step_at_the_start_is_enough_and_a_loss_above_uniform_makes_it_sure():
    leap = steps(ratio=(0.9, 0.001))
    flung = steps(ratio=(0.9, 0.001), losses=(1.8, 5.0))
    assert faults(healthy(steps=leap)) == faults(healthy(steps=flung)) == ["lr-too-high"]
    assert diagnose(healthy(steps=flung))[0].score > diagnose(healthy(steps=leap))[0].score
    bad_loss = steps(losses=(1.8, 5.0))  # without a large step it is something else
    assert faults(healthy(steps=bad_loss)) == []


def test_small_steps_that_get_somewhere_are_fine_tuning():
    small = steps(ratio=1e-5)
    assert faults(healthy(steps=small)) == []
    standing = [{"epoch": i, "train_loss": 1.8 - 0.001 * i} for i in range(1, 7)]
    assert faults(healthy(steps=small, log=standing)) == ["lr-too-low"]
    tuned = [{"epoch": i, "train_loss": 0.9 - 0.001 * i} for i in range(1, 7)]
    assert faults(healthy(steps=small, log=tuned)) == []  # it began with trained weights
    assert faults(healthy(log=standing)) == []  # it moves, and does not learn: another matter


def test_weights_that_came_trained_may_stay():
    trained = {"layers": 34, "untrained": 14, "parts": {"backbone": [20, 0], "aspp": [14, 14]}}
    frozen = epoch(6, still=BACKBONE, batch_norm_still=20)
    assert faults(healthy(start=start(batch_norm=trained), epochs=[frozen])) == []
    assert faults(healthy(epochs=[frozen])) == ["frozen-random-backbone", "frozen-batch-norm"]
    assert faults(healthy(epochs=[epoch(6, still=BACKBONE[:3])])) == []  # dead units


# ---------------------------------------------------------------- data and score


@pytest.mark.parametrize("least, most, found", [
    (-2.1, 2.6, False), (0.0, 255.0, True), (0.0, 1.0, True), (-128.0, 127.0, True),
    (-1.0, 1.0, False), (0.2, 2.6, False),
])
def test_the_range_of_the_input(least, most, found):
    record = {"mean": [0.5] * 3, "std": [0.3] * 3, "min": [least] * 3, "max": [most] * 3,
              "pictures": 64}
    assert faults(healthy(start=start(input=record))) == ["unnormalised-input"] * found


def test_a_flip_of_some_pictures_and_pictures_that_cannot_tell():
    some = {**alignment(), "transform": {"draws": 32, "kept": 0.6, "mirrored": 0.4,
                                         "upside_down": 0.0}}
    finding, = diagnose(healthy(start=start(alignment=some)))
    assert finding.fault == "image-flipped-alone"
    assert "the transform mirrors 40 % of the pictures without their masks" in finding.evidence
    for blurred in ({"pictures": 2}, alignment(0.53, prefer=(0.0, 0.0, 0.0), z=1.0),
                    {"pictures": 32}):
        assert faults(healthy(start=start(alignment=blurred))) == []


def test_the_words_on_the_fit_are_those_of_the_stage_that_was_measured():
    flipped = alignment(0.55, mirrored=0.87, prefer=(0.02, 0.93, 0.0))
    few = {**flipped, "pictures": 2}
    for record, words in ((flipped, "pictures in training"), (few, "pictures as read")):
        finding, = diagnose(healthy(start=start(alignment=record)))
        assert words in finding.evidence and "93 % mirrored" in finding.evidence


@pytest.mark.parametrize("empty, found", [(0, False), (1, False), (8, True), (60, True)])
def test_batches_without_a_label(empty, found):
    epochs = [epoch(1, empty_batches=empty, batches=60)]
    assert faults(healthy(epochs=epochs)) == ["all-ignored-batches"] * found


def test_batches_without_a_label_show_before_the_first_epoch_ends():
    blank = [{**step, "valid_share": 0.0} for step in steps()[:6]]
    assert faults(healthy(epochs=[], steps=blank)) == ["all-ignored-batches"]
    looked = start(batches={"train": {"empty": 4, "batches": 8}})
    assert faults(healthy(epochs=[], steps=[], start=looked)) == ["all-ignored-batches"]


def test_a_class_that_is_in_no_score_is_ignored_and_not_miscounted():
    matrix = confusion()
    matrix[0] = 0
    evidence = healthy(start=start(probe=probe(np.array([0, 1, 1, 1, 1, 1]))),
                       validations=[validation(matrix, 1, PIXELS // 4)])
    assert faults(evidence) == ["wrong-ignore-id"]
    assert "confusion matrix" in diagnose(evidence)[0].evidence
