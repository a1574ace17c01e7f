"""The loss scale of float16: the kernel is its definition, and both are torch's."""

import math

import numpy as np
import pytest
from checks import assert_refused

from minisegnet.cuda import emulated_device
from minisegnet.cuda.emulator import fiber_order
from minisegnet.losses.criterion import Criterion
from minisegnet.training.loss_scale import FIRST_STEPS, START, LossScale, loss_scale_update

INF, NAN = math.inf, math.nan
NORMS = [1.0, 2.0, INF, 0.5, 0.0, 3.0, 4.0, NAN, -INF, 1.0, 1.0, 1.0, 1.0]


def follow(scale, norms):
    """Return the state after each norm, and the sum of the norms."""
    total = emulated_device.zeros((1,), np.float32)
    states = []
    for norm in norms:
        scale.update(emulated_device.asarray(np.array([norm], np.float32)), total)
        states.append(tuple(scale.state_dict().values()))
    return states, total.get().item()


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("order", ["forward", "reverse", "random"])
def test_the_kernel_is_the_definition(order):
    with fiber_order(order):
        states, total = follow(LossScale(emulated_device, start=64.0, growth_interval=3), NORMS)
    state = (64.0, 0, 0)
    for norm, actual in zip(NORMS, states, strict=True):
        state = loss_scale_update(*state, norm, growth_interval=3)
        assert actual == state
    assert total == sum(norm for norm in NORMS if math.isfinite(norm))


def test_a_history_by_hand():
    state, seen = (64.0, 0, 0), []
    for norm in NORMS:
        state = loss_scale_update(*state, norm, growth_interval=3)
        seen.append(state[0])
    # Two good ones are not three; then a half, and doubled by 0.5, 0 and 3; two halves; doubled.
    assert seen == [64, 64, 32, 32, 32, 64, 64, 32, 16, 16, 16, 32, 32]
    assert state == (32.0, 1, 3)


def test_the_numbers_are_torchs(torch):
    scaler = torch.amp.GradScaler("cpu")
    assert START == scaler._init_scale
    assert loss_scale_update(START, 0, 0, INF)[0] == START * scaler.get_backoff_factor()
    grown = loss_scale_update(START, scaler.get_growth_interval() - 1, 0, 1.0)
    assert grown == (START * scaler.get_growth_factor(), 0, 0)
    assert loss_scale_update(START, scaler.get_growth_interval() - 2, 0, 1.0)[0] == START


def test_a_history_is_torchs(torch):
    scale, growth = torch.full((1,), 64.0), torch.zeros(1, dtype=torch.int32)
    state = (64.0, 0, 0)
    for norm in NORMS:
        found = torch.full((1,), float(not math.isfinite(norm)))
        torch._amp_update_scale_(scale, growth, found, 2.0, 0.5, 3)
        state = loss_scale_update(*state, norm, growth_interval=3)
        assert state[:2] == (scale.item(), growth.item())


@pytest.mark.usefixtures("compiler")
def test_the_scale_does_not_grow_to_infinity():
    top = 2.0 ** 127
    states, _ = follow(LossScale(emulated_device, start=top / 2, growth_interval=1), [1.0] * 3)
    assert [state[0] for state in states] == [top, top, top]
    assert loss_scale_update(top, 1999, 0, 1.0) == (top, 0, 0)


def test_a_state_goes_into_the_same_memory():
    scale = LossScale(emulated_device)
    assert scale.state_dict() == {"scale": START, "good_steps": 0, "skipped": 0}
    memory = scale.scale.host, scale.counts.host
    state = {"scale": 2.0 ** -3, "good_steps": 1999, "skipped": 7}
    scale.load_state_dict(state)
    assert scale.state_dict() == state
    assert memory[0].item() == 2.0 ** -3 and memory[1].tolist() == [1999, 7]
    with pytest.raises(KeyError):
        scale.load_state_dict({"scale": 1.0})


def test_a_scale_that_fell_too_low_and_an_epoch_without_a_step_are_refused():
    scale = LossScale(emulated_device, start=1.0)
    scale.check(5)
    scale.scale.fill(0.5)
    assert_refused(lambda: scale.check(5), "0.5 by step 5", "--amp bf16", "--lr")
    scale.check_epoch({"steps": 4, "skipped_steps": 3}, 100)
    # While the scale comes down from its start, short epochs may do nothing.
    scale.check_epoch({"steps": 4, "skipped_steps": 4}, FIRST_STEPS)
    assert_refused(lambda: scale.check_epoch({"steps": 4, "skipped_steps": 4}, FIRST_STEPS + 1),
                   "all steps", "--amp bf16")


def test_numpy_has_no_use_for_a_scale(rng):
    _, cache = Criterion("ce").forward_upsampled(rng.standard_normal((1, 4, 4, 3)),
                                                 np.zeros((1, 8, 8), np.uint8))
    with pytest.raises(ValueError, match="on a GPU"):
        Criterion("ce").backward_upsampled(1.0, cache, loss_scale=np.ones(1))
