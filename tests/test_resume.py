"""A run that was interrupted, at any moment and in any way, ends like one that was not."""

import copy
import json
import os
import signal
import subprocess
import sys
import tomllib

import numpy as np
import pytest
from checks import benchmark_module

from minisegnet import datasets, train
from minisegnet.errors import UserError, run_command
from minisegnet.losses import Criterion
from minisegnet.training import trainer as trainer_module
from minisegnet.training.checkpoint import load_model, read_checkpoint
from minisegnet.training.evaluation import evaluate
from minisegnet.training.run_folder import read_log

kill_and_resume = benchmark_module("kill_and_resume")


def run(*flags):
    return run_command(train.main, [str(flag) for flag in flags])


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(train, "draw_results", lambda *arguments: None)


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """The flags of a run with as much state as one can have; 3 steps an epoch, 4 epochs."""
    root = tmp_path_factory.mktemp("pictures")
    kill_and_resume.make_pictures(root)
    return ("--data", root, *kill_and_resume.FLAGS)


@pytest.fixture(scope="module")
def unbroken(flags, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    before, train.draw_results = train.draw_results, lambda *arguments: None
    try:
        assert run(*flags, "--output-dir", folder) == 0
    finally:
        train.draw_results = before
    return kill_and_resume.state(folder)


def same_state(folder, expected):
    found = kill_and_resume.state(folder)
    for name in {**found, **expected}:
        assert found.get(name) == expected.get(name), name


def interrupt_in_step(monkeypatch, number):
    """Let Ctrl-C strike in step `number` (from 1), counted over all runs from now on."""
    steps, step = [], trainer_module.Trainer.train_step

    def struck(self, *arguments):
        steps.append(1)
        if len(steps) == number:
            signal.raise_signal(signal.SIGINT)
        return step(self, *arguments)

    monkeypatch.setattr(trainer_module.Trainer, "train_step", struck)


# The first step, in the middle, the last of an epoch, around each change of phase, the very last.
@pytest.mark.parametrize("number", [1, 2, 4, 5, 8, 12, 15])
def test_ctrl_c_and_resume_give_the_unbroken_run(flags, unbroken, tmp_path, monkeypatch, number):
    folder = tmp_path / "run"
    interrupt_in_step(monkeypatch, number)
    assert run(*flags, "--output-dir", folder) == 130
    assert run("--resume", folder) == 0
    same_state(folder, unbroken)


def test_a_run_may_be_interrupted_again_and_again(flags, unbroken, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    interrupt_in_step(monkeypatch, 1)
    assert run(*flags, "--output-dir", folder) == 130
    for _ in range(3):
        monkeypatch.undo()
        interrupt_in_step(monkeypatch, 2)
        assert run("--resume", folder) == 130
    monkeypatch.undo()
    assert run("--resume", folder, "--num-workers", 0) == 0
    state, expected = kill_and_resume.state(folder), copy.deepcopy(unbroken)
    for either in (state, expected):  # the resolved settings differ by what was asked for
        for meta in (either[name] for name in list(either) if name.endswith("/meta")):
            meta["config"] = {**meta["config"], "num_workers": 0}
    assert state == expected


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop"])
def test_every_optimizer_goes_on(flags, tmp_path, monkeypatch, optimizer):
    for name in ("whole", "broken"):
        more = ("--optimizer", optimizer, "--epochs", 3, "--output-dir", tmp_path / name)
        if name == "broken":
            interrupt_in_step(monkeypatch, 7)
        assert run(*flags, *more) == (130 if name == "broken" else 0)
    assert run("--resume", tmp_path / "broken") == 0
    same_state(tmp_path / "broken", kill_and_resume.state(tmp_path / "whole"))


@pytest.mark.parametrize("ending", ["", '{"epoch": 2, "train_lo', "\n"])
def test_a_kill_between_checkpoint_and_log_is_mended(flags, unbroken, tmp_path, monkeypatch,
                                                     ending):
    folder = tmp_path / "run"
    append = trainer_module.append_json_line

    def killed(path, record):
        if record["epoch"] == 2:
            with open(path, "a") as file:
                file.write(ending)
            raise KeyboardInterrupt
        append(path, record)

    monkeypatch.setattr(trainer_module, "append_json_line", killed)
    assert run(*flags, "--output-dir", folder) == 130
    monkeypatch.setattr(trainer_module, "append_json_line", append)
    (folder / "best.npz.tmp").write_bytes(b"half a file")
    assert run("--resume", folder) == 0
    same_state(folder, unbroken)
    assert not list(folder.glob("*.tmp"))


def test_a_run_killed_before_its_first_checkpoint_begins_anew(flags, unbroken, tmp_path,
                                                              monkeypatch):
    folder = tmp_path / "run"
    monkeypatch.setattr(trainer_module.Trainer, "fit", lambda self: False)
    assert run(*flags, "--output-dir", folder) == 130
    monkeypatch.undo()
    monkeypatch.setattr(train, "draw_results", lambda *arguments: None)
    assert run("--resume", folder) == 0
    same_state(folder, unbroken)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the script forks its runs")
def test_ten_kills_at_random_moments_leave_the_same_runs():
    command = [sys.executable, kill_and_resume.__file__, "--kills", "10", "--seed", "1"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.startswith("10 kills")


@pytest.fixture
def finished(flags, tmp_path):
    folder = tmp_path / "run"
    assert run(*flags, "--epochs", 2, "--image-size-after", "1:40x56", "--output-dir", folder) == 0
    return folder


def test_a_complete_run_stays_as_it_is_unless_it_is_made_longer(finished, capsys):
    before, state = read_log(finished / "log.jsonl"), kill_and_resume.state(finished)
    assert run("--resume", finished) == 0
    text = capsys.readouterr().out
    assert "complete" in text and "--epochs" in text
    same_state(finished, state)
    assert run("--resume", finished, "--epochs", 3) == 0
    log = read_log(finished / "log.jsonl")
    assert log[:2] == before and [record["epoch"] for record in log] == [1, 2, 3]


def test_a_resumed_run_refuses_other_data(finished, tmp_path, capsys):
    other = tmp_path / "other"
    kill_and_resume.make_pictures(other)
    (other / "train" / "images" / "0.png").unlink()
    (other / "train" / "masks" / "0.png").unlink()
    assert run("--resume", finished, "--epochs", 3, "--data", other) == 2
    assert "the training pictures have changed" in capsys.readouterr().err
    (other / "classes.txt").write_text("a\nb\nc\n")
    assert run("--resume", finished, "--epochs", 3, "--data", other) == 2
    assert "classes" in capsys.readouterr().err


def test_a_resumed_run_refuses_another_validation_set(finished, tmp_path, capsys):
    other = tmp_path / "other"
    kill_and_resume.make_pictures(other)
    for kind in ("images", "masks"):
        (other / "val" / kind / "0.png").unlink()
    assert run("--resume", finished, "--epochs", 3, "--data", other) == 2
    assert "the validation pictures have changed" in capsys.readouterr().err


def test_a_longer_run_stays_longer_when_it_is_interrupted(finished, monkeypatch):
    interrupt_in_step(monkeypatch, 2)
    assert run("--resume", finished, "--epochs", 4) == 130
    monkeypatch.undo()
    monkeypatch.setattr(train, "draw_results", lambda *arguments: None)
    assert run("--resume", finished) == 0
    assert len(read_log(finished / "log.jsonl")) == 4


def test_checkpoints_know_the_size_of_their_epoch_and_score_as_logged(finished):
    sizes = {name: read_checkpoint(finished / f"{name}.npz").meta["image_size"]
             for name in ("epoch_0001", "epoch_0002", "last")}
    assert sizes == {"epoch_0001": [32, 48], "epoch_0002": [40, 56], "last": [40, 56]}
    for name in ("epoch_0002", "last"):  # the averages were scored, and are what is loaded
        model, checkpoint = load_model(finished / f"{name}.npz")
        val_set = datasets.open_dataset(read_config(finished)["data"], "folder", "val")
        loader = datasets.DataLoader(val_set, 2, transform=datasets.Resize(
            checkpoint.meta["image_size"], resize_mask=False))
        _, confusion = evaluate(model, loader, Criterion("ce"))
        assert confusion.mean_iou_present == pytest.approx(
            read_log(finished / "log.jsonl")[1]["mean_iou"], rel=1e-12)


def read_config(folder):
    return tomllib.loads((folder / "config.toml").read_text())


def test_a_resumed_run_finds_its_data_elsewhere(finished, tmp_path):
    kill_and_resume.make_pictures(tmp_path / "moved")
    assert run("--resume", finished, "--epochs", 3, "--data", tmp_path / "moved") == 0


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("spoil, words", [
    (lambda folder: (folder / "last.npz").write_bytes(b"PK"), ["last.npz", "not a checkpoint"]),
    (lambda folder: (folder / "class_weights.json").write_text("{"), ["class_weights.json"]),
    (lambda folder: edit_json(folder / "class_weights.json", weights=[1, 2]), ["3 weights"]),
    (lambda folder: edit_json(folder / "class_weights.json", weights=None), ["class_weights"]),
    (lambda folder: edit_json(folder / "class_weights.json", classes=3), ["class_weights.json"]),
    (lambda folder: edit_json(folder / "class_weights.json", pixels=5), ["training pictures"]),
    (lambda folder: (folder / "last.npz").unlink(), ["last.npz has gone"]),
    (lambda folder: (folder / "config.toml").write_text("epochs = 0"), ["config.toml", "epochs"]),
    (lambda folder: (folder / "best.npz").replace(folder / "last.npz"), ["no run to go on with"]),
])
def test_a_spoilt_run_folder_is_refused_in_one_line(finished, capsys, spoil, words):
    spoil(finished)
    before = (finished / "log.jsonl").read_text()
    assert run("--resume", finished) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error and all(word in error for word in words), error
    assert (finished / "log.jsonl").read_text() == before


def test_a_damaged_log_is_refused_in_one_line(tmp_path):
    for content in (b'{"epoch": 1}\n{"ep', b"\xff\xfe\x00", b"3\n"):
        (tmp_path / "log.jsonl").write_bytes(content)
        with pytest.raises(UserError, match="cannot read the log") as caught:
            read_log(tmp_path / "log.jsonl")
        assert "\n" not in str(caught.value)


def test_the_last_checkpoint_alone_carries_the_optimizer(finished):
    assert read_checkpoint(finished / "last.npz").optimizer
    best = read_checkpoint(finished / "best.npz")
    assert not best.optimizer and "progress" not in best.meta
    # Averages were scored, so averages are what best.npz holds.
    last = read_checkpoint(finished / "last.npz")
    assert best.meta["epoch"] in (1, 2)
    assert not all(np.array_equal(best.parameters[name], last.parameters[name])
                   for name in best.parameters)
