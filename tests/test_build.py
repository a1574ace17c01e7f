"""From flags to the parts of a run."""

import numpy as np
import pytest

from minisegnet import optim
from minisegnet.errors import UserError
from minisegnet.models import build_model
from minisegnet.training import build
from minisegnet.training.settings import parse_settings

SHARES = (0.75, 0.25)


def settings(*flags):
    return parse_settings([str(flag) for flag in flags])


@pytest.mark.parametrize("content", ["[1, 2, 4]", '{"weights": [1, 2, 4]}',
                                     '{"pool": 4, "ground": 1, "house": 2}'])
def test_weights_come_from_a_file(tmp_path, content):
    (tmp_path / "w.json").write_text(content)
    weights = build.build_weights(str(tmp_path / "w.json"), None, ("ground", "house", "pool"))
    np.testing.assert_array_equal(weights, [1, 2, 4])


@pytest.mark.parametrize("flags, expected", [
    (["--schedule", "constant"], optim.ConstantLR(0.5)),
    (["--schedule", "step", "--step-size", 3], optim.StepLR(0.5, 30)),
    (["--schedule", "cosine", "--min-lr", 0.1], optim.CosineAnnealingLR(0.5, 80, 0.1)),
    (["--schedule", "restarts", "--restart-period", 1.5, "--restart-mult", 3, "--min-lr", 0.1],
     optim.CosineAnnealingWarmRestarts(0.5, 15, 3, 0.1)),
    (["--schedule", "poly"], optim.PolynomialLR(0.5, 80)),
    (["--schedule", "onecycle"], optim.OneCycleLR(0.5, 80)),
])
def test_schedules_count_epochs_in_flags_and_steps_inside(flags, expected):
    flags = ["--lr", 0.5, "--epochs", 8, *flags]
    schedule = build.build_schedule(settings(*flags), 10)
    warm = build.build_schedule(settings(*flags[:2], "--epochs", 9, *flags[4:],
                                         "--warmup-epochs", 1), 10)
    for step in range(80):
        assert schedule(step) == expected(step)
        assert warm(step + 10) == expected(step)  # the schedule proper follows the warm-up
    assert warm(0) < expected(0)


def test_a_warm_up_may_fill_the_run():
    schedule = build.build_schedule(settings("--epochs", 1, "--warmup-epochs", 1), 10)
    assert all(np.isfinite(schedule(step)) for step in range(12))


def test_the_optimizer_gets_its_flags():
    model = build_model("mini", 3)
    adamw = build.build_optimizer(settings("--weight-decay", 0.5, "--no-decay-norm-and-bias"),
                                  model)
    assert adamw.weight_decay == 0.5
    np.testing.assert_array_equal(adamw.decayed, ~adamw.flat.is_norm_or_bias)
    assert build.build_optimizer(settings(), model).decayed is None
    for name, kind in (("sgd", optim.SGD), ("rmsprop", optim.RMSprop)):
        optimizer = build.build_optimizer(
            settings("--optimizer", name, "--momentum", 0.25, "--weight-decay", 0.5), model)
        assert type(optimizer) is kind
        assert (optimizer.momentum, optimizer.weight_decay) == (0.25, 0.5)


def test_the_loss_gets_its_flags():
    weights = np.array([1.0, 3.0])
    loss = build.build_criterion(
        settings("--focal-gamma", 3, "--focal-alpha", 0.5,
                 "--lambda-focal", 4, "--lambda-dice", 5, "--ignore-index", 254), "combined",
        weights, SHARES)
    np.testing.assert_array_equal(loss.weight, [0.5, 1.5])
    assert (loss.name, loss.gamma, loss.lambda_focal, loss.lambda_dice, loss.ignore_index) == (
        "combined", 3, 4, 5, 254)
    only_alpha = build.build_criterion(
        settings("--focal-alpha", 0.5), "focal", None, SHARES)
    assert only_alpha.weight == 0.5
    smooth = build.build_criterion(
        settings("--loss", "ce", "--label-smoothing", 0.1, "--focal-alpha", 9), "ce", weights,
        SHARES)
    assert smooth.label_smoothing == 0.1
    np.testing.assert_array_equal(smooth.weight, weights)
    adjusted = build.build_criterion(settings("--logit-tau", 0.5), "logit_adjusted", None, SHARES)
    assert (adjusted.tau, adjusted.prior) == (0.5, SHARES)
    tversky = build.build_criterion(settings("--tversky-alpha", 0.1, "--tversky-beta", 0.8),
                                    "tversky", weights, SHARES)
    assert (tversky.tversky_alpha, tversky.tversky_beta) == (0.1, 0.8)
    assert build.build_criterion(settings("--ohem-thresh", 0.6), "ohem", None,
                                 SHARES).ohem_thresh == 0.6
    assert build.build_criterion(settings("--dice-mode", "smp"), "dice", None,
                                 SHARES).dice_mode == "smp"


def test_each_of_two_stages_has_a_whole_schedule():
    schedule = build.build_schedule(
        settings("--freeze", "backbone", "--freeze-epochs", 2, "--freeze-lr", 0.5, "--lr", 0.1,
                 "--epochs", 5, "--schedule", "cosine", "--warmup-epochs", 1), 10)
    for start, lr, steps in ((0, 0.5, 10), (20, 0.1, 20)):
        cosine = optim.CosineAnnealingLR(lr, steps)
        stage = optim.LinearWarmup(cosine, 10)
        assert [schedule(start + k) for k in range(10 + steps)] == [
            stage(k) for k in range(10 + steps)]


def test_layers_get_their_own_rates():
    model = build_model("mini", 3)
    optimizer = build.build_optimizer(
        settings("--optimizer", "sgd", "--momentum", 0, "--weight-decay", 0, "--lr", 1,
                 "--lr-scale", "backbone=0.5", "classifier=0"), model)
    before = {name: array.copy() for name, array in model.named_parameters()}
    optimizer.flat.grad[...] = 1
    optimizer.step()
    for name, array in model.named_parameters():
        step = {"backbone": 0.5, "classifier": 0.0}.get(name.split(".")[0], 1.0)
        np.testing.assert_allclose(before[name] - array, step, atol=1e-6, err_msg=name)
    with pytest.raises(UserError, match="--lr-scale head=2.*backbone"):
        build.build_optimizer(settings("--lr-scale", "head=2"), model)


def test_plateau_and_early_stopping_know_what_is_better():
    for monitor, better, worse in (("mean_iou", 2.0, 1.0), ("val_loss", 1.0, 2.0)):
        plateau, early_stopping = build.build_watchers(
            settings("--monitor", monitor, "--schedule", "plateau", "--plateau-patience", 0,
                     "--plateau-factor", 0.5, "--early-stop-patience", 2))
        for value, scale in ((worse, 1.0), (better, 1.0), (worse, 0.5), (worse, 0.25)):
            plateau.update(value)
            assert plateau.scale == scale
        assert [early_stopping.update(value) for value in (worse, better, worse, worse)] == [
            False, False, False, True]
    assert build.build_watchers(settings()) == (None, None)
