"""`python -m minisegnet.verify`: everything passes, everything is covered, and it can fail."""

import subprocess
import sys

import numpy as np
import pytest

from minisegnet import blocks, imbalance, layers, losses, metrics, ops, optim
from minisegnet.errors import UserError, run_command
from minisegnet.verify import __main__ as command
from minisegnet.verify import cases_layers, cases_losses, cases_ops, cases_values, on_device
from minisegnet.verify.case import GradientCase, run_case

MODULES = {"op": cases_ops, "layer": cases_layers, "loss": cases_losses}


def rows(kind, name, **options):
    """Run all cases of this kind and name."""
    cases = MODULES.get(kind, cases_values).cases()
    return [run_case(case, **options) for case in cases if (case.kind, case.name) == (kind, name)]


def names(module, kind):
    return {case.name for case in module.cases() if case.kind == kind}


def test_everything_is_within_its_limits_against_torch_and_differences(torch, capsys):
    assert command.main([]) == 0
    printed = capsys.readouterr().out
    assert " 0 over, 0 need torch" in printed


def test_it_passes_with_numpy_alone_and_imports_nothing_else():
    code = (
        "import sys; from minisegnet.verify.__main__ import main;"
        "code = main(['--no-torch', '--quick']);"
        "extra = {'torch', 'matplotlib', 'PIL', 'tqdm', 'cupy'} & set(sys.modules);"
        "sys.exit(code or (f'imported {extra}' if extra else 0))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert " 0 over" in done.stdout and "needs torch" in done.stdout


def test_every_op_and_loss_has_a_case():
    for module, cases, kind in ((ops, cases_ops, "op"), (losses, cases_losses, "loss")):
        public = {name.removesuffix("_forward") for name in module.__all__
                  if name.endswith("_forward")}
        assert names(cases, kind) == public


def test_every_layer_and_block_has_a_case():
    public = {
        name for module in (layers, blocks) for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, layers.Layer)
        and value is not layers.Layer and not name.startswith("_")
    }
    assert names(cases_layers, "layer") == public | {"InvertedResidual", "ASPP"}


def test_every_optimizer_schedule_metric_and_weight_scheme_has_a_case():
    covered = names(cases_values, "optimizer") | names(cases_values, "schedule")
    assert covered == set(optim.__all__) - {"FlatParameters", "global_norm"}
    public = {name for name in vars(metrics.ConfusionMatrix) if not name.startswith("_")}
    assert names(cases_values, "metric") == public - {"update", "reset"}
    assert names(cases_values, "weights") == set(imbalance.SCHEMES)


# Planted bugs

def mutated(function, change):
    """Return `function` with its result changed by `change(result)`."""
    def wrapper(*args, **kwargs):
        return change(function(*args, **kwargs))
    return wrapper


def without_gate_path(self, dout):
    """SqueezeExcite.backward that forgets one of x's two ways to the output."""
    x, gate = self._spend()
    dgate = (dout * x).sum(axis=(1, 2), keepdims=True)
    dgate = self.fc2.backward(self.hardsigmoid.backward(dgate))
    self.pool.backward(self.fc1.backward(self.relu.backward(dgate)))
    return dout * gate


PLANTED = {
    "dx is zero": (
        "op", "conv2d", ops, "conv2d_backward", lambda g: (0 * g[0], *g[1:])),
    "forgotten 1/N": (
        "op", "global_average_pool", ops, "global_average_pool_backward", lambda dx: 20 * dx),
    "swapped axis": (
        "op", "depthwise_conv2d", ops, "depthwise_conv2d_backward",
        lambda g: (g[0], g[1].swapaxes(0, 1))),
    "concatenation's pieces in the wrong order": (
        "op", "concatenate", ops, "concatenate_backward", lambda g: [g[0], g[1][..., ::-1], g[2]]),
    "loss gradient twice too large": (
        "loss", "dice", losses, "dice_backward", lambda dlogits: 2 * dlogits),
    "wrong shape": (
        "op", "sigmoid", ops, "sigmoid_backward", lambda dx: dx[:1]),
    "not a number": (
        "op", "sigmoid", ops, "sigmoid_backward", lambda dx: dx * np.nan),
}


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("name", PLANTED)
def test_planted_bug_is_found_without_torch(monkeypatch, name, quick):
    kind, op, module, attribute, change = PLANTED[name]
    monkeypatch.setattr(module, attribute, mutated(getattr(module, attribute), change))
    found = rows(kind, op, quick=quick)
    assert found and all(row.verdict == "OVER" for row in found)


def test_planted_missing_fan_out_sum_is_found_in_dx_alone(monkeypatch):
    monkeypatch.setattr(blocks.SqueezeExcite, "backward", without_gate_path)
    [row] = rows("layer", "SqueezeExcite")
    assert row.verdict == "OVER"
    assert len(row.failures) == 1 and row.failures[0].startswith("dx is off by")


def test_planted_wrong_forward_is_found_against_torch(monkeypatch, torch):
    from minisegnet.verify import torch_oracle

    monkeypatch.setattr(ops, "relu6_forward",
                        mutated(ops.relu6_forward, lambda result: (result[0] + 1, result[1])))
    found = rows("op", "relu6", oracle=torch_oracle)
    assert found and all("output is off" in row.failures[0] for row in found)
    # A constant has no gradient: differences alone cannot see this one.
    assert all(row.verdict != "OVER" for row in rows("op", "relu6"))


def test_planted_wrong_metric_and_weights_are_found(monkeypatch):
    monkeypatch.setattr(metrics.ConfusionMatrix, "mean_iou_present",
                        property(lambda self: float(np.nan_to_num(self.iou).mean())))
    assert [row.verdict for row in rows("metric", "mean_iou_present")] == ["OVER"]
    monkeypatch.setattr(imbalance, "class_weights",
                        mutated(imbalance.class_weights, lambda weights: weights + 1e-6))
    assert [row.verdict for row in rows("weights", "enet")] == ["OVER"]


def test_planted_wrong_optimizer_is_found_against_torch(monkeypatch, torch):
    from minisegnet.optim import adamw
    from minisegnet.verify import torch_oracle

    def without_bias_correction(*args, t, **options):
        return right_update(*args, t=10**6, **options)

    right_update = adamw.adamw_update_inplace
    monkeypatch.setattr(adamw, "adamw_update_inplace", without_bias_correction)
    found = rows("optimizer", "AdamW", oracle=torch_oracle)
    assert {(row.implementation, row.verdict) for row in found} == {
        ("plain", "ok"), ("in place", "OVER")}


def test_a_forward_that_changes_its_input_is_found():
    def forward(x):
        x += 1
        return x * 2, None

    case = GradientCase("op", "careless", {"x": np.ones(3)}, {}, forward,
                        lambda dout, _: [2 * dout], oracle="")
    assert "an input was changed" in run_case(case).failures


def test_a_machine_that_cannot_run_kernels_is_told_of_once(monkeypatch, capsys):
    def refuse(*_):
        raise UserError("kernels need g++")

    monkeypatch.setattr(on_device, "_run", refuse)
    assert run_command(command.main, ["--device", "cuda_cpu"]) == 2
    out, err = capsys.readouterr()
    assert err == "error: kernels need g++\n" and "OVER" not in out


def test_one_over_makes_the_command_fail_and_is_named(monkeypatch, capsys):
    monkeypatch.setattr(ops, "hardswish_backward",
                        mutated(ops.hardswish_backward, lambda dx: dx * (1 + 1e-4)))
    monkeypatch.setattr(losses, "focal_backward", None)  # an exception must not stop the table
    assert command.main(["--no-torch", "--quick"]) == 1
    printed = capsys.readouterr().out
    assert "slope is off by 1.0e-04 against finite difference" in printed
    assert "raised TypeError" in printed and "effective" in printed
