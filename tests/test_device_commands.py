"""The commands with `--device cuda`, on a GPU or on the emulated device in its place."""

import json
import re

import numpy as np
import pytest

from minisegnet import evaluate, predict, train
from minisegnet.errors import run_command

pytestmark = pytest.mark.usefixtures("compiler")

draw_results = train.draw_results
SIZE = ["--image-size", "16", "24", "--batch-size", "4", "--num-workers", "0"]


@pytest.fixture(autouse=True)
def gpu(monkeypatch, xp):
    """`--device cuda` gives the emulated device, unless there is a GPU; no pictures are drawn."""
    def select(device):
        return xp if device == "cuda" else np

    for command in (train, evaluate, predict):
        monkeypatch.setattr(command, "select_device", select)
    monkeypatch.setattr(train, "draw_results", lambda *arguments: None)


def records(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def run_train(*arguments):
    return run_command(train.main, list(map(str, arguments)))


def train_both(data, tmp_path, *arguments):
    """Train on the CPU and on the device; return both run folders."""
    folders = []
    for device in ("cpu", "cuda"):
        folders.append(tmp_path / device)
        assert run_train("--data", data, "--output-dir", folders[-1], "--epochs", 2, "--seed", 1,
                         "--device", device, *SIZE, *arguments) == 0
    return folders


@pytest.mark.parametrize("arguments", [
    [], ["--loss", "ce", "--class-weights", "none", "--optimizer", "sgd", "--lr", "0.05"],
    ["--ema", "0.9", "--clip-norm", "1", "--accumulate", "2"],
    ["--loss", "dice", "--optimizer", "rmsprop", "--schedule", "plateau"]], ids=str)
def test_a_training_is_that_of_the_cpu_but_for_dropout(tiny_folder, tmp_path, arguments,
                                                       monkeypatch):
    monkeypatch.setattr("minisegnet.layers.Dropout.forward", lambda self, x: self._keep("") or x)
    cpu, cuda = train_both(tiny_folder, tmp_path, *arguments)
    for ours, theirs in zip(records(cpu), records(cuda), strict=True):
        assert ours.keys() == theirs.keys()
        assert theirs["lr"] == ours["lr"]
    # Later epochs drift apart: so small a batch makes much of the rounding of float32.
    assert records(cuda)[0]["train_loss"] == pytest.approx(records(cpu)[0]["train_loss"], rel=1e-3)
    assert (cuda / "best.npz").exists() and (cuda / "last.npz").exists()


def test_a_resumed_training_ends_as_an_unbroken_one(tiny_folder, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    base = ["--data", tiny_folder, "--device", "cuda", "--schedule", "constant", *SIZE]
    assert run_train(*base, "--output-dir", whole, "--epochs", 3) == 0
    assert run_train(*base, "--output-dir", parts, "--epochs", 1) == 0
    assert run_train("--resume", parts, "--epochs", 3) == 0
    with np.load(whole / "last.npz") as one, np.load(parts / "last.npz") as other:
        for name in one.files:
            if name != "meta":
                np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    assert ([record["train_loss"] for record in records(parts)]
            == [record["train_loss"] for record in records(whole)])


def test_a_step_that_cannot_be_captured_is_said_once(tiny_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("minisegnet.training.device_step.DeviceStep.why_not_captured",
                        "the driver refuses")
    assert run_train("--data", tiny_folder, "--output-dir", tmp_path / "run", "--device", "cuda",
                     "--epochs", 2, *SIZE) == 0
    assert capsys.readouterr().out.count("no CUDA graph, which costs time: the driver ref") == 1


def test_a_run_moves_between_devices(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "draw_results", draw_results)
    base = ["--data", tiny_folder, *SIZE, "--schedule", "constant"]
    folder = tmp_path / "run"
    assert run_train(*base, "--output-dir", folder, "--epochs", 1, "--device", "cuda") == 0
    assert run_train("--resume", folder, "--epochs", 2, "--device", "cpu") == 0
    assert run_train("--resume", folder, "--epochs", 3, "--device", "cuda") == 0
    assert [record["epoch"] for record in records(folder)] == [1, 2, 3]
    assert (folder / "curves.png").exists() and (folder / "predictions.png").exists()


def test_a_loss_that_is_not_finite_ends_the_run_with_one_line(tiny_folder, tmp_path, capsys):
    assert run_train("--data", tiny_folder, "--output-dir", tmp_path / "run", "--device", "cuda",
                     "--lr", "1e30", "--loss", "ce", "--epochs", 30, *SIZE) == 2
    error = capsys.readouterr().err.strip()
    assert "not finite" in error and "--device cpu --debug" in error and "\n" not in error


@pytest.mark.parametrize("flag", ["--debug", "--ledger"])
def test_what_watches_every_tensor_is_refused(tiny_folder, tmp_path, flag, capsys):
    assert run_train("--data", tiny_folder, "--output-dir", tmp_path / "run", "--device", "cuda",
                     flag, *SIZE) == 2
    assert flag in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("loss", ["lovasz", "ohem"])
def test_losses_that_sort_are_refused(tiny_folder, tmp_path, loss, capsys):
    assert run_train("--data", tiny_folder, "--output-dir", tmp_path / "run", "--device", "cuda",
                     "--loss", loss, *SIZE) == 2
    assert loss in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_evaluation_and_prediction_are_those_of_the_cpu(tiny_folder, tmp_path, capsys):
    folder = tmp_path / "run"
    assert run_train("--data", tiny_folder, "--output-dir", folder, "--epochs", 1, *SIZE) == 0
    scores, masks = [], []
    picture = next((tiny_folder / "val" / "images").iterdir())
    for device in ("cpu", "cuda"):
        out = tmp_path / device
        assert run_command(evaluate.main, [
            str(folder), "--device", device, "--output", str(out), "--bootstrap", "0",
            "--num-workers", "0"]) == 0
        scores.append(capsys.readouterr().out)
        assert run_command(predict.main, [
            str(folder), str(picture), "--device", device, "--output", str(out / "masks")]) == 0
        masks.append((out / "masks" / f"{picture.stem}.png").read_bytes())
    score = re.compile(r"mean IoU +([0-9.]+)")
    assert score.search(scores[0])[1] == score.search(scores[1])[1]
    assert masks[0] == masks[1]
