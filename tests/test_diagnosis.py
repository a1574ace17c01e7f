"""Every fault is named first by what it does to the measurements; a healthy run has none."""

import json

import numpy as np
import pytest
from diagnosis_cases import (
    BACKBONE,
    CONFIG,
    NAMES,
    PIXELS,
    SQRT,
    VOID,
    K,
    alignment,
    confusion,
    epoch,
    healthy,
    label_path,
    log_record,
    probe,
    start,
    steps,
    validation,
    with_outcome,
)

from minisegnet.diagnosis import as_dictionary, diagnose, report_lines
from minisegnet.diagnosis.finding import KINDS
from minisegnet.training.settings import parse_settings

RARE_MISSED = confusion((1.0, 0.95, 0.02, 0.0, 0.0, 0.0))
ONLY_GROUND = np.outer(PIXELS // 4, np.eye(K, dtype=int)[0])


def inverted_squared():
    return probe(1 / PIXELS.astype(float)**2)


def rare_everywhere():
    matrix = np.zeros((K, K), int)
    matrix[:, 5] = PIXELS // 8
    matrix[:, 4] = PIXELS // 4 - PIXELS // 8
    return matrix


def flat_dice():
    """The probe of a dice loss: it weighs classes alike, and its gradient is small."""
    return {**probe(1 / PIXELS), "loss_uniform": 0.8, "gradient_uniform": 4 * 0.2}


def zero_gradient_of_ground():
    weight = SQRT.copy()
    weight[0] = 0
    return probe(weight)


def permuted(order):
    """Every class is found, under the name order[class]."""
    matrix = np.zeros((K, K), int)
    matrix[np.arange(K), order] = PIXELS // 4
    return matrix


def absent_sixth():
    pixels = PIXELS * (np.arange(K) < 5)
    of_train = {"images": 64, "pixels": pixels.tolist(), "images_with": [64] * K}
    pulls = {**probe(SQRT, np.maximum(pixels, 0)), "pull_perfect": [0.003] * 5 + [0.3]}
    return start(train=of_train, probe=pulls)


FAULTS = {
    "unweighted-loss": lambda: with_outcome(RARE_MISSED, start=start(probe=probe(np.ones(K)))),
    "wrong-ignore-id": lambda: healthy(start=start(probe=zero_gradient_of_ground())),
    "ignore-is-a-class": lambda: healthy(start=start(label_path={
        split: label_path({VOID: K - 1, 40: K - 1}) for split in ("train", "val")})),
    "shifted-labels": lambda: healthy(start=start(label_path={
        "train": label_path({0: 1, 3: 2, 7: 3, 8: 4, 12: 5, 20: 0}), "val": label_path()})),
    "excluded-ids-in-class-0": lambda: healthy(start=start(label_path={
        split: label_path({40: 0}) for split in ("train", "val")})),
    "interpolated-masks": lambda: healthy(start=start(transform={
        "train": {"samples": 32, "invented": [[3, 410], [4, 70]], "lost": []}})),
    "shuffled-pairs": lambda: healthy(start=start(
        alignment={**alignment(0.53, prefer=(0.0, 0.0, 0.0), z=0.4),
                   "as_read": {**alignment(0.53, prefer=(0.0, 0.0, 0.0), z=0.4)["as_read"],
                               "partners": 0.9, "compared": 32}})),
    "image-flipped-alone": lambda: healthy(start=start(
        alignment=alignment(0.55, mirrored=0.9, prefer=(0.02, 0.93, 0.0)))),
    "too-few-classes": lambda: healthy(start=start(label_path={
        "train": label_path(extra=[[50, 5, 800]]), "val": label_path(extra=[[50, 5, 200]])})),
    "too-many-classes": lambda: healthy(start=absent_sixth()),
    "extreme-weights": lambda: with_outcome(rare_everywhere(),
                                            start=start(probe=inverted_squared())),
    "lr-too-high": lambda: with_outcome(ONLY_GROUND, steps=steps(
        ratio=(0.9, 0.01), losses=(1.8, 3.0), norms=(2.0, 0.1), per_lr=(1.0, 0.05), cosine=0.99)),
    "lr-too-low": lambda: with_outcome(
        np.outer(PIXELS // 4, np.full(K, 1 / K)).astype(int), [1.80, 1.80, 1.79, 1.79, 1.79, 1.78],
        steps=steps(ratio=2e-5, losses=(1.8, 1.78))),
    "runaway-momentum": lambda: with_outcome(ONLY_GROUND, steps=steps(
        ratio=(0.3, 0.05), per_lr=(10.0, 35.0), cosine=0.998, losses=(1.8, 4.0))),
    "frozen-random-backbone": lambda: healthy(epochs=[epoch(i, still=BACKBONE)
                                                      for i in range(1, 7)]),
    "frozen-batch-norm": lambda: healthy(epochs=[epoch(i, batch_norm_still=34)
                                                 for i in range(1, 7)]),
    "unnormalised-input": lambda: healthy(start=start(input={
        "mean": [120.0, 110.0, 99.0], "std": [60.0, 61.0, 62.0], "min": [0.0] * 3,
        "max": [255.0] * 3, "pictures": 64})),
    "empty-confusion-matrix": lambda: healthy(
        validations=[validation(np.zeros((K, K), int), i, PIXELS // 4) for i in range(1, 7)],
        log=[log_record(i, 1 / i, np.zeros((K, K), int)) for i in range(1, 7)]),
    "other-validation-classes": lambda: healthy(start=start(label_path={
        "train": label_path(), "val": label_path({0: 2, 3: 5, 7: 1, 8: 0, 12: 4, 20: 3})})),
    "dice-alone": lambda: with_outcome(ONLY_GROUND, [0.80, 0.79, 0.78, 0.78, 0.78, 0.78],
                                       start=start(probe=flat_dice())),
    "all-ignored-batches": lambda: healthy(epochs=[epoch(i, empty_batches=4)
                                                   for i in range(1, 7)]),
}
FURTHER = {
    "matrix-miscounts": lambda: healthy(validations=[
        validation(i * confusion(), i, PIXELS // 4) for i in range(1, 7)]),
    "nothing-moves": lambda: healthy(epochs=[epoch(1, still=["a"] * 101)]),
    "moved-masks": lambda: healthy(start=start(alignment={
        **alignment(), "transform": {"draws": 32, "kept": 0.5, "mirrored": 0.0,
                                     "upside_down": 0.0}})),
    "other-classes": lambda: healthy(start=start(label_path={
        "train": label_path({7: 1}), "val": label_path({7: 1})})),
    "collapse": lambda: with_outcome(ONLY_GROUND),
    "not-finite": lambda: healthy(failures=[{"kind": "failure", "step": 17, "what": "loss",
                                             "tensor": "aspp.project", "direction": "forward"}]),
}
ALL = {**FAULTS, **FURTHER}


def test_nothing_is_found_in_a_healthy_run():
    assert diagnose(healthy()) == []
    text = "\n".join(report_lines(healthy()))
    assert text.startswith("nothing wrong found") and "could not" not in text


@pytest.mark.parametrize("fault", ALL)
def test_each_fault_is_named_first(fault):
    findings = diagnose(ALL[fault]())
    assert findings[0].fault == fault, findings
    assert findings[0].kind in KINDS
    assert [f.score for f in findings] == sorted((f.score for f in findings), reverse=True)
    assert any(digit in findings[0].evidence for digit in "0123456789")


@pytest.mark.parametrize("fault", ALL)
def test_each_experiment_is_a_command_that_can_be_given(fault, tmp_path):
    from minisegnet.training.run_folder import to_toml

    configs = [CONFIG, {**CONFIG, "sampler": "class-crops", "augment": "strong"},
               {**CONFIG, "label_smoothing": 0.1}, {**CONFIG, "freeze": "backbone"},
               {**CONFIG, "loss": "dice", "class_weights": "none", "dice_mode": "smp"},
               {**CONFIG, "schedule": "cosine", "min_lr": 0.01}, {**CONFIG, "epochs": 1},
               {**CONFIG, "loss": "combined", "loss_after": ["3:ce"], "warmup_epochs": 2.0}]
    for config in configs:
        (tmp_path / "config.toml").write_text(to_toml(config))
        evidence = ALL[fault]()
        object.__setattr__(evidence, "config", config)
        object.__setattr__(evidence, "folder", tmp_path)
        for finding in diagnose(evidence):
            words = finding.experiment.split()
            assert words[:2] == ["python", "-m"]
            if words[2] == "minisegnet.train":
                parse_settings(words[3:])
            else:
                assert words[2] in ("minisegnet.analyze", "minisegnet.evaluate")


@pytest.mark.parametrize("fault", ALL)
def test_the_report_says_everything_and_fits_a_terminal(fault):
    evidence = ALL[fault]()
    lines = report_lines(evidence)
    text = " ".join(" ".join(lines).split())
    for finding in diagnose(evidence):
        for part in (finding.fault, finding.kind, finding.evidence, finding.cause):
            assert part in text
        assert f"     {finding.experiment}" in lines
    assert all(len(line) < 100 for line in lines if "python -m" not in line)
    assert "nan" not in text.replace("where nan became 0", "").split()
    json.dumps(as_dictionary(evidence))


def test_a_weighted_class_that_is_not_found_is_remarked_upon_and_no_fault():
    found = with_outcome(confusion((0.98, 0.9, 0.85, 0.7, 0.6, 0.0)))
    assert diagnose(found) == []
    said = " ".join(as_dictionary(found)["remarks"])
    assert f"below 1% in every validation: {NAMES[5]}, together 0.5 %" in said
    assert not any("Not found" in remark for remark in as_dictionary(healthy())["remarks"])


def test_a_class_that_only_validation_has_is_remarked_upon_and_no_fault():
    matrix = confusion((0.98, 0.9, 0.85, 0.7, 0.6, 0.0))
    matrix[:, 4] += matrix[:, 5]
    matrix[:, 5] = 0
    evidence = with_outcome(matrix, start=start(train={"pixels": [*PIXELS[:5].tolist(), 0]}))
    assert diagnose(evidence) == []
    text = " ".join(" ".join(report_lines(evidence)).split())
    assert "No training pixel is sink" in text and "training pixel is" not in " ".join(
        report_lines(healthy()))


def test_a_cause_hides_the_symptoms_that_follow_from_it():
    slow = FAULTS["lr-too-high"]()
    assert [f.fault for f in diagnose(slow)] == ["lr-too-high"]  # not collapse as well
    nan = healthy(steps=slow.steps, failures=FURTHER["not-finite"]().failures)
    assert [f.fault for f in diagnose(nan)] == ["lr-too-high"]
    assert "at step 17, first in aspp.project (forward)" in diagnose(nan)[0].evidence


def test_a_contradiction_stands_above_what_statistics_say():
    evidence = with_outcome(RARE_MISSED, start=start(
        probe=probe(np.ones(K)), label_path={"train": label_path({VOID: 5}), "val": None}))
    assert [f.fault for f in diagnose(evidence)] == ["ignore-is-a-class", "unweighted-loss"]


def test_a_fault_is_named_once_with_its_best_evidence():
    both = healthy(start=start(probe=zero_gradient_of_ground(), label_path={
        "train": label_path({0: VOID}), "val": label_path({0: VOID})}))
    assert [f.fault for f in diagnose(both)] == ["wrong-ignore-id"]
    assert "value in the file" in diagnose(both)[0].evidence


@pytest.mark.parametrize("field", ["start", "steps", "epochs", "validations", "log", "counts",
                                   "config", "end"])
def test_a_kind_of_record_that_is_missing_costs_its_checks_and_no_more(field):
    empty = None if field in ("start", "end") else {} if field in ("counts", "config") else []
    for fault, make in {"none": healthy, **ALL}.items():
        evidence = make()
        object.__setattr__(evidence, field, empty)
        found = diagnose(evidence)
        assert not found or found[0].fault == fault or found[0].certainty == "possible", found
        report_lines(evidence)


@pytest.mark.parametrize("key", [key for key in start() if key not in ("kind", "class_names")])
@pytest.mark.parametrize("value", [None, {}])
def test_a_measurement_that_is_null_or_empty_is_passed_over(key, value):
    assert diagnose(healthy(start=start(**{key: value}))) == []


def test_null_numbers_are_passed_over():
    nothing = dict.fromkeys(("loss", "gradient_norm", "lr", "update_ratio", "update_per_lr",
                             "update_cosine", "valid_share"))
    evidence = healthy(steps=[{**step, **nothing} for step in steps()], epochs=[
        {"kind": "epoch", "epoch": 1, "target_pixels": [None] * K, "still": None}])
    assert diagnose(evidence) == []


def test_two_classes_are_enough():
    pixels = np.array([9000, 1000])
    two = {"num_classes": 2, "class_names": ["ground", "pool"],
           "train": {"pixels": [9000, 1000]}, "val": {"pixels": [9000, 1000]},
           "label_path": None, "probe": probe(np.array([1.0, 3.0]), pixels)}
    good = confusion((0.95, 0.8), pixels)
    fine = with_outcome(good, start=start(**two), counts={})
    assert diagnose(fine) == []
    swapped = with_outcome(good[:, ::-1], start=start(**two), counts={})
    assert diagnose(swapped)[0].fault == "shifted-labels"
    blind = with_outcome(np.outer(pixels, [1, 0]), counts={},
                         start=start(**{**two, "probe": probe(np.ones(2), pixels)}))
    assert diagnose(blind)[0].fault in ("unweighted-loss", "collapse")


def test_names_of_classes_may_be_anything():
    names = ["100 %", "{x}", "a\tb", "ü" * 50, "", "None"]
    evidence = with_outcome(RARE_MISSED, start=start(probe=probe(np.ones(K)), class_names=names))
    assert "ü" * 50 in "\n".join(report_lines(evidence)) or len(NAMES) != K
