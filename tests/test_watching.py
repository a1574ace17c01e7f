"""What a run says of itself while it trains: fingerprint, ledger, monitors, diagnosis."""

import json

import numpy as np
import pytest

from minisegnet import train
from minisegnet.errors import run_command
from minisegnet.training.checkpoint import read_checkpoint
from minisegnet.training.run_folder import read_log


def tiny_run(data, output, *flags):
    return run_command(train.main, [
        "--data", str(data), "--epochs", "3", "--batch-size", "4", "--num-workers", "1",
        "--output-dir", str(output), *map(str, flags)])


def same_run(folder, other):
    """Assert that two runs left the same weights and the same scores, bit for bit."""
    weights, others = (read_checkpoint(each / "last.npz").parameters for each in (folder, other))
    assert weights.keys() == others.keys()
    for name, array in weights.items():
        np.testing.assert_array_equal(array, others[name])
    for record, expected in zip(read_log(folder / "log.jsonl"), read_log(other / "log.jsonl"),
                                strict=True):
        assert {**record, "seconds": 0} == {**expected, "seconds": 0}


def test_a_run_begins_with_what_knowing_nothing_scores(tiny_folder, tmp_path, capsys):
    assert tiny_run(tiny_folder, tmp_path / "run", "--loss", "ce", "--class-weights", "none") == 0
    before = capsys.readouterr().out.partition("epoch")[0]
    # 30 x 48 valid pixels, of which 16 x 16 are house and 8 x 12 pool
    share = (30 * 48 - 256 - 96) / (30 * 48)
    assert "always predicting ground" in before and f"{share:.4f}" in before
    assert f"{share / 3:.4f}" in before  # its mean IoU
    assert f"{np.log(3):.4g} where all 3 classes are equally likely" in before


@pytest.mark.parametrize("learns", [False, True])
def test_a_model_that_knows_nothing_is_said_to(tiny_folder, tmp_path, capsys, monkeypatch, learns):
    if not learns:
        monkeypatch.setattr("minisegnet.training.evaluation.upsampled_prediction",
                            lambda coarse, size: np.zeros((len(coarse), *size), np.uint8))
    tiny_run(tiny_folder, tmp_path / "run", "--epochs", "20")
    said = capsys.readouterr().out
    assert ("epoch  20/20" in said
            and (said.rindex("always predicting ground") > said.rindex("epoch  20/20")) != learns)


def test_the_ledger_is_kept_and_drawn_and_changes_nothing(tiny_folder, tmp_path):
    plain, watched = tmp_path / "plain", tmp_path / "watched"
    assert tiny_run(tiny_folder, plain) == tiny_run(tiny_folder, watched, "--ledger") == 0
    same_run(watched, plain)
    assert {p.name for p in watched.iterdir()} - {p.name for p in plain.iterdir()} == {
        "ledger.jsonl", "ledger.png"}
    first = json.loads((watched / "ledger.jsonl").read_text().splitlines()[0])
    assert first["step"] == 0 and sum(first["by_target"]) == pytest.approx(1)


def test_the_monitors_change_nothing(tiny_folder, tmp_path, capsys):
    plain, watched = tmp_path / "plain", tmp_path / "watched"
    flags = ("--augment", "standard", "--ema", "0.9", "--accumulate", "2")
    assert tiny_run(tiny_folder, plain, *flags) == 0
    capsys.readouterr()
    assert tiny_run(tiny_folder, watched, *flags, "--debug") == 0
    said = capsys.readouterr().out
    same_run(watched, plain)
    assert {p.name for p in watched.iterdir()} - {p.name for p in plain.iterdir()} == {
        "debug.jsonl"}
    assert said.index("before the first step") < said.index("epoch   1/3") < said.index(
        "diagnosis:")
    kinds = [json.loads(line)["kind"] for line in
             (watched / "debug.jsonl").read_text().splitlines()]
    assert kinds[0] == "start" and kinds[-1] == "end"
    assert kinds.count("epoch") == kinds.count("validation") == 3 and "step" in kinds


def test_a_run_that_fails_is_diagnosed_all_the_same(tiny_folder, tmp_path, capsys):
    assert tiny_run(tiny_folder, tmp_path / "run", "--optimizer", "sgd", "--lr", "1e30",
                    "--debug") == 2
    captured = capsys.readouterr()
    assert "diagnosis:" in captured.out and captured.out.rindex("1.") > captured.out.index(
        "diagnosis:")
    assert captured.err.count("\n") == 1 and "step" in captured.err
