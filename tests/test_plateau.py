"""A rate that falls on a plateau, as torch's, and early stopping; JSON keeps their states."""

import json
import math

import numpy as np
import pytest

from minisegnet.optim import EarlyStopping, ReduceLROnPlateau

LR = 0.05


def torch_rates(torch, scores, **options):
    """Return torch's rate after each of the scores."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **options)
    rates = []
    for score in scores:
        scheduler.step(score)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def scales(plateau, scores):
    found = []
    for score in scores:
        plateau.update(score)
        found.append(plateau.scale)
    return found


def noisy_scores(rng, mode, steps=60):
    """Return scores that get better, then do not, with steps close to the threshold."""
    trend = np.minimum(np.arange(steps) / 20, 1.0) + 0.05 * rng.standard_normal(steps)
    small = np.cumsum(rng.choice([0, 5e-5, 2e-4], steps))
    score = 1 + trend + small
    return score if mode == "max" else 4 - score


OPTIONS = [
    {"patience": 10},
    {"patience": 0, "factor": 0.5},
    {"patience": 2, "factor": 0.7, "cooldown": 3},
    {"patience": 1, "factor": 0.3, "min_lr": 0.003},
    {"patience": 0, "factor": 0.1},  # falls until the change is below eps
    {"patience": 3, "factor": 0.5, "threshold": 0.05, "cooldown": 1, "min_lr": 0.001},
]


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("threshold_mode", ["rel", "abs"])
@pytest.mark.parametrize("options", OPTIONS)
def test_rate_after_every_score_equals_torch(torch, mode, threshold_mode, options):
    falls = 0
    for seed in range(10):
        scores = noisy_scores(np.random.default_rng(seed), mode)
        if seed % 2:
            scores[[0, 13, 14, 40]] = math.nan
        expected = torch_rates(torch, scores, mode=mode, threshold_mode=threshold_mode,
                               eps=1e-8 * LR, **options)
        ours = {key: value for key, value in options.items() if key != "min_lr"}
        plateau = ReduceLROnPlateau(mode, threshold_mode=threshold_mode,
                                    min_scale=options.get("min_lr", 0) / LR, **ours)
        assert [LR * s for s in scales(plateau, scores)] == pytest.approx(expected, rel=1e-12)
        falls += len(set(expected)) - 1
    assert falls >= 10


def test_plateau_worked_by_hand():
    plateau = ReduceLROnPlateau("max", factor=0.5, patience=1, cooldown=2, min_scale=0.2)
    # best 3; two bad: fall; two of cooldown; two bad: fall; two; two bad: fall to the floor
    scores = [3, 2, 2, 1, 1, 2, 2, 0, 0, 1, 1]
    assert scales(plateau, scores) == [1, 1, .5, .5, .5, .5, .25, .25, .25, .25, .2]


def test_nan_is_never_better_and_never_the_best():
    plateau = ReduceLROnPlateau("min", factor=0.5, patience=1)
    assert scales(plateau, [math.nan, 1.0, math.nan, 1.0, 0.5]) == [1, 1, 1, 0.5, 0.5]
    assert plateau.state_dict()["best"] == 0.5


@pytest.mark.parametrize("cut", range(12))
def test_a_plateau_resumed_from_json_goes_on_as_the_unbroken_one(cut):
    def new():
        return ReduceLROnPlateau("max", factor=0.5, patience=1, cooldown=1)

    scores = [3, 2, 2, 1, 4, 2, 2, 0, 0, 1, 1, 0]
    unbroken, first, second = new(), new(), new()
    expected = scales(unbroken, scores)
    found = scales(first, scores[:cut])
    text = json.dumps(first.state_dict(), allow_nan=False)
    second.update(100.0)  # what it knew is gone
    second.load_state_dict(json.loads(text))
    assert found + scales(second, scores[cut:]) == expected


def test_reset_forgets_the_scores_and_keeps_the_scale():
    plateau = ReduceLROnPlateau("min", factor=0.5, patience=1, cooldown=5)
    assert scales(plateau, [1.0, 2.0, 2.0, 0.9, 2.0])[-1] == 0.5
    plateau.reset()
    assert scales(plateau, [50.0, 49.0, 60.0, 60.0]) == [0.5, 0.5, 0.5, 0.25]


def stops(watch, scores):
    return [watch.update(score) for score in scores]


def test_early_stopping_worked_by_hand():
    watch = EarlyStopping("min", patience=2, min_delta=0.5)
    # 9.5 is not better by more than 0.5, 9.25 is; 8.75 is not better than that
    assert stops(watch, [10, 9.5, 9.25, 9, 8.75, 8.75, 8]) == [False] * 4 + [True, True, False]
    assert stops(EarlyStopping("max", patience=1), [1, 2, 2, 3]) == [False, False, True, False]


@pytest.mark.parametrize("mode", ["min", "max"])
def test_early_stopping_waits_for_patience_scores_in_a_row(rng, mode):
    scores = rng.standard_normal(300)
    for patience in (1, 2, 5):
        best_at = np.argmin if mode == "min" else np.argmax
        expected = [i - best_at(scores[:i + 1]) >= patience for i in range(300)]
        assert stops(EarlyStopping(mode, patience), scores) == expected


def test_nan_counts_against_early_stopping():
    assert stops(EarlyStopping("max", 2), [math.nan, 1, math.nan, math.nan]) == [
        False, False, False, True]


@pytest.mark.parametrize("cut", range(6))
def test_early_stopping_resumed_from_json_goes_on_as_the_unbroken_one(cut):
    scores = [5, 4, 6, 3.5, 6, 6]
    first, second = EarlyStopping("min", 2), EarlyStopping("min", 2)
    found = stops(first, scores[:cut])
    second.update(-100)
    second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    assert found + stops(second, scores[cut:]) == [False] * 5 + [True]


def test_early_stopping_after_a_reset_starts_anew():
    watch = EarlyStopping("min", patience=2)
    assert stops(watch, [1, 2]) == [False, False]
    watch.reset()
    assert stops(watch, [50, 60, 49, 60, 60]) == [False, False, False, False, True]


def test_a_state_of_another_kind_is_refused():
    plateau, stopping = ReduceLROnPlateau(), EarlyStopping("min", 2)
    with pytest.raises(ValueError, match="ReduceLROnPlateau state needs.*scale"):
        plateau.load_state_dict(stopping.state_dict())
    with pytest.raises(ValueError, match="EarlyStopping state needs"):
        stopping.load_state_dict(plateau.state_dict())


@pytest.mark.parametrize("make, words", [
    (lambda: ReduceLROnPlateau("least"), "mode"),
    (lambda: ReduceLROnPlateau(factor=1.0), "factor"),
    (lambda: ReduceLROnPlateau(factor=-0.1), "factor"),
    (lambda: ReduceLROnPlateau(threshold_mode="relative"), "threshold_mode"),
    (lambda: EarlyStopping("most", 3), "mode"),
    (lambda: EarlyStopping("min", 0), "patience"),
])
def test_senseless_option_is_refused_by_name(make, words):
    with pytest.raises(ValueError, match=words):
        make()
