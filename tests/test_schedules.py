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
    StepLR,
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
])
def test_senseless_option_is_refused_by_name(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_all_rates_are_plain_finite_floats():
    for schedule, _, steps in CASES.values():
        assert all(type(schedule(s)) is float and math.isfinite(schedule(s)) for s in range(steps))
