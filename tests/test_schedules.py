"""Learning-rate schedules: torch's sequences, and the facts that people get wrong about them."""

import math
import warnings

import pytest

from minisegnet.optim import (
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    LinearWarmup,
    OneCycleLR,
    PolynomialLR,
    SequentialLR,
    StepLR,
    near_restart_top,
)

LR = 0.05


def torch_sequence(torch, make, steps):
    """Return the rates that torch's scheduler sets at steps 0 .. steps-1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    with warnings.catch_warnings():
        # SequentialLR calls step(epoch), which torch itself deprecates.
        warnings.simplefilter("ignore", UserWarning)
        scheduler = make(torch.optim.lr_scheduler, optimizer)
        rates = []
        for _ in range(steps):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if len(rates) < steps:
                scheduler.step()
    return rates


CASES = {
    "constant": (ConstantLR(LR), lambda s, o: s.ConstantLR(o, factor=1.0), 5),
    "step": (StepLR(LR, 7, 0.3), lambda s, o: s.StepLR(o, 7, 0.3), 30),
    "cosine": (
        CosineAnnealingLR(LR, 20, 1e-3), lambda s, o: s.CosineAnnealingLR(o, 20, 1e-3), 50),
    "restarts": (
        CosineAnnealingWarmRestarts(LR, 20, 2, 1e-6),
        lambda s, o: s.CosineAnnealingWarmRestarts(o, 20, 2, 1e-6), 310),
    "restarts, equal": (
        CosineAnnealingWarmRestarts(LR, 7), lambda s, o: s.CosineAnnealingWarmRestarts(o, 7), 30),
    "poly": (
        PolynomialLR(LR, 25), lambda s, o: s.PolynomialLR(o, 25, power=0.9), 30),
    "one-cycle": (
        OneCycleLR(LR, 40), lambda s, o: s.OneCycleLR(o, LR, 40, cycle_momentum=False), 40),
    "one-cycle, all options": (
        OneCycleLR(LR, 33, 0.45, 10.0, 100.0),
        lambda s, o: s.OneCycleLR(o, LR, 33, pct_start=0.45, div_factor=10.0,
                                  final_div_factor=100.0, cycle_momentum=False), 33),
    "warm-up, cosine": (
        LinearWarmup(CosineAnnealingLR(LR, 20), 5, 0.01),
        lambda s, o: s.SequentialLR(
            o, [s.LinearLR(o, 0.01, total_iters=5), s.CosineAnnealingLR(o, 20)], [5]), 25),
    "warm-up, restarts": (
        LinearWarmup(CosineAnnealingWarmRestarts(LR, 6, 2), 4, 1 / 3),
        lambda s, o: s.SequentialLR(
            o, [s.LinearLR(o, total_iters=4), s.CosineAnnealingWarmRestarts(o, 6, 2)], [4]), 30),
    "two stages": (
        SequentialLR([ConstantLR(LR / 10), CosineAnnealingLR(LR, 20)], [7]),
        lambda s, o: s.SequentialLR(
            o, [s.ConstantLR(o, 0.1, total_iters=99), s.CosineAnnealingLR(o, 20)], [7]), 27),
    "three stages": (
        SequentialLR([StepLR(LR, 2, 0.5), CosineAnnealingWarmRestarts(LR, 6), StepLR(LR, 1, 0.7)],
                     [5, 19]),
        lambda s, o: s.SequentialLR(
            o, [s.StepLR(o, 2, 0.5), s.CosineAnnealingWarmRestarts(o, 6), s.StepLR(o, 1, 0.7)],
            [5, 19]), 25),
}


@pytest.mark.parametrize("name", CASES)
def test_schedule_gives_torchs_sequence(torch, name):
    schedule, make, steps = CASES[name]
    expected = torch_sequence(torch, make, steps)
    assert [schedule(step) for step in range(steps)] == pytest.approx(expected, rel=1e-10)


def test_warm_restarts_are_at_20_60_140_300_and_epoch_150_is_near_the_top():
    schedule = CosineAnnealingWarmRestarts(5e-5, T_0=20, T_mult=2, eta_min=1e-6)
    tops = [step for step in range(320) if schedule(step) == 5e-5]
    assert tops == [0, 20, 60, 140, 300]
    assert schedule(150) == pytest.approx(4.96e-5, abs=1e-7)


def test_position_is_the_fraction_of_the_cycle_that_is_over():
    schedule = CosineAnnealingWarmRestarts(1.0, T_0=20, T_mult=2)
    steps = [0, 5, 19, 20, 30, 59.5, 60, 150]
    assert [schedule.position(step) for step in steps] == [
        0, 0.25, 0.95, 0, 0.25, 39.5 / 40, 0, 1 / 16]
    equal = CosineAnnealingWarmRestarts(1.0, T_0=7)
    assert [equal.position(step) for step in (0, 6, 7, 73)] == [0, 6 / 7, 0, 3 / 7]


def ends_high(schedule, steps):
    """Return the lengths of run, of those up to `steps`, that end near the top of a cycle."""
    return [n for n in range(1, steps + 1) if near_restart_top(schedule, n - 1)]


def test_a_run_of_150_ends_high_and_60_or_140_steps_would_end_low():
    schedule = CosineAnnealingWarmRestarts(5e-5, T_0=20, T_mult=2, eta_min=1e-6)
    assert near_restart_top(schedule, 149) == (schedule(149), (140, 300))
    assert near_restart_top(schedule, 0) == (5e-5, (20,))  # there is no cycle before the first
    assert near_restart_top(schedule, 20) == (5e-5, (20, 60))
    assert near_restart_top(schedule, 79) == (schedule(79), (60, 140))
    # steps 0 to 9 of the first cycle; 10, in the middle, is not above half way
    assert ends_high(schedule, 150) == [
        *range(1, 11), *range(21, 41), *range(61, 101), *range(141, 151)]


def test_the_end_of_a_run_is_found_behind_warm_up_and_stages():
    restarts = CosineAnnealingWarmRestarts(1.0, T_0=20, T_mult=2)
    warm = LinearWarmup(restarts, 5)
    assert ends_high(warm, 60) == [*range(6, 16), *range(26, 46)]
    assert near_restart_top(warm, 30) == (warm(30), (25, 65))
    staged = SequentialLR([ConstantLR(0.1), warm], [100])
    assert ends_high(staged, 160) == [*range(106, 116), *range(126, 146)]
    assert near_restart_top(staged, 107) == (staged(107), (125,))
    assert near_restart_top(staged, 130) == (staged(130), (125, 165))
    assert near_restart_top(LinearWarmup(staged, 10), 140) == (staged(130), (135, 175))
    first = SequentialLR([restarts, ConstantLR(0.1)], [30])
    assert ends_high(first, 50) == [*range(1, 11), *range(21, 31)]
    assert ends_high(LinearWarmup(first, 10), 60) == [*range(11, 21), *range(31, 41)]


@pytest.mark.parametrize("schedule", [
    ConstantLR(LR), CosineAnnealingLR(LR, 100), CosineAnnealingWarmRestarts(LR, 20, eta_min=LR),
    CosineAnnealingWarmRestarts(LR, 1)])
def test_without_a_way_down_no_end_is_high(schedule):
    assert ends_high(schedule, 50) == []


def test_each_stage_starts_at_its_own_step_0_with_its_own_rate():
    schedule = SequentialLR([StepLR(1.0, 2), LinearWarmup(StepLR(8.0, 2), 2, 0.5)], [3])
    assert [schedule(step) for step in range(9)] == pytest.approx(
        [1, 1, 0.1, 4, 6, 8, 8, 0.8, 0.8])
    assert SequentialLR([ConstantLR(LR)], [])(50) == LR


def test_cosine_is_halfway_at_half_time_and_takes_fractions_of_an_epoch():
    schedule = CosineAnnealingLR(1.0, T_max=3)
    assert schedule(1.5) == pytest.approx(0.5)
    assert schedule(1.0) > schedule(1.25) > schedule(1.5)


def test_poly_and_one_cycle_stay_at_their_end():
    assert PolynomialLR(1.0, 10)(11) == PolynomialLR(1.0, 10)(10) == 0
    one_cycle = OneCycleLR(1.0, 10)
    assert one_cycle(9) == one_cycle(10) == pytest.approx(1 / 25 / 1e4)
    assert max(one_cycle(step) for step in range(10)) == pytest.approx(one_cycle(2)) == 1.0


@pytest.mark.parametrize("total_steps", [1, 2, 3])
def test_a_very_short_one_cycle_is_finite(total_steps):
    schedule = OneCycleLR(1.0, total_steps)
    assert all(0 < schedule(step) <= 1 for step in range(total_steps + 1))


def test_warm_up_of_no_steps_is_the_schedule_itself():
    schedule = LinearWarmup(StepLR(1.0, 2), warmup_steps=0)
    assert [schedule(step) for step in range(4)] == [1.0, 1.0, 0.1, 0.1]


def test_warm_up_climbs_in_equal_steps_and_ends_at_the_schedules_start():
    schedule = LinearWarmup(ConstantLR(1.0), warmup_steps=4, start_factor=0.2)
    assert [schedule(step) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


@pytest.mark.parametrize("make, words", [
    (lambda: StepLR(LR, 0), "step_size"),
    (lambda: CosineAnnealingLR(LR, 0), "T_max"),
    (lambda: CosineAnnealingWarmRestarts(LR, 0), "T_0"),
    (lambda: CosineAnnealingWarmRestarts(LR, 5, 0), "T_mult"),
    (lambda: PolynomialLR(LR, 0), "total_iters"),
    (lambda: OneCycleLR(LR, 0), "total_steps"),
    (lambda: OneCycleLR(LR, 10, pct_start=1.5), "pct_start"),
    (lambda: LinearWarmup(ConstantLR(LR), -1), "warmup_steps"),
    (lambda: LinearWarmup(ConstantLR(LR), 3, 0.0), "start_factor"),
    (lambda: SequentialLR([ConstantLR(LR)], [5]), "1 schedules and milestones.*5"),
    (lambda: SequentialLR([ConstantLR(LR)] * 3, [5, 2]), "milestones.*5, 2"),
    (lambda: SequentialLR([ConstantLR(LR)] * 2, [-1]), "milestones.*-1"),
    (lambda: SequentialLR([], []), "0 schedules"),
])
def test_senseless_option_is_refused_by_name(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_all_rates_are_plain_finite_floats():
    for schedule, _, steps in CASES.values():
        assert all(type(schedule(s)) is float and math.isfinite(schedule(s)) for s in range(steps))
