"""A run with --debug that was interrupted or killed leaves the records of one that was not."""

import json
import signal

import pytest

from minisegnet import train
from minisegnet.errors import run_command
from minisegnet.training import trainer as trainer_module


def run(*flags):
    return run_command(train.main, [str(flag) for flag in flags])


@pytest.fixture
def flags(tiny_folder, monkeypatch):
    monkeypatch.setattr(train, "draw_results", lambda *arguments: None)
    return ("--data", tiny_folder, "--epochs", 3, "--batch-size", 2, "--num-workers", 0,
            "--clip-norm", 1, "--debug")


def strike_in_step(monkeypatch, number, strike):
    """Call `strike()` in step `number`, from 1."""
    steps, step = [], trainer_module.Trainer.train_step

    def struck(self, *arguments):
        steps.append(1)
        if len(steps) == number:
            strike()
        return step(self, *arguments)

    monkeypatch.setattr(trainer_module.Trainer, "train_step", struck)


def ctrl_c():
    signal.raise_signal(signal.SIGINT)


def kill():
    raise KeyboardInterrupt


def records(folder):
    found = {}
    for line in (folder / "debug.jsonl").read_text().splitlines():
        record = json.loads(line)
        found.setdefault(record.pop("kind"), []).append(record)
    return found


@pytest.mark.parametrize("strike", [ctrl_c, kill])
@pytest.mark.parametrize("epoch, part", [(1, 0.0), (2, 0.0), (2, 0.5), (2, 1.0), (3, 1.0)])
def test_the_records_go_on(flags, tmp_path, monkeypatch, capsys, strike, epoch, part):
    assert run(*flags, "--output-dir", tmp_path / "whole") == 0
    whole = records(tmp_path / "whole")
    length = whole["epoch"][0]["steps"]
    number = (epoch - 1) * length + max(1, round(part * length))
    with monkeypatch.context() as patch:
        strike_in_step(patch, number, strike)
        assert run(*flags, "--output-dir", tmp_path / "broken") == 130
    if strike is kill:  # in the middle of a line
        with open(tmp_path / "broken" / "debug.jsonl", "a") as file:
            file.write('{"kind": "step", "st')
    assert run("--resume", tmp_path / "broken") == 0
    broken = records(tmp_path / "broken")
    resumed = next((i for i, (one, other) in enumerate(zip(whole["step"], broken["step"]))
                    if one != other), None)
    if resumed is not None:  # no step before it was seen in this process
        assert broken["step"][resumed]["update_cosine"] is None
        broken["step"][resumed]["update_cosine"] = whole["step"][resumed]["update_cosine"]
    assert broken["step"] == whole["step"]
    assert broken["validation"] == whole["validation"]
    assert [each["finished"] for each in broken["end"]] == [True]
    assert [each["epoch"] for each in broken["epoch"]] == [1, 2, 3]
    for one, other in zip(whole["epoch"], broken["epoch"]):
        assert one == other or other["steps"] < length  # those since it went on
