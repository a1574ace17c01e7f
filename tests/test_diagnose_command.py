"""`python -m minisegnet.diagnose`: run folders, whole, cut off or spoilt, and what it says."""

import json

import numpy as np
import pytest
from diagnosis_cases import BACKBONE, CONFIG, K, epoch, healthy, probe, start, steps
from run_folders import write_run

from minisegnet import diagnose
from minisegnet.diagnosis import read_evidence
from minisegnet.errors import run_command
from minisegnet.training.run_folder import to_toml


def write(folder, evidence, *, log=True):
    """Write `evidence` as the files of a run."""
    folder.mkdir(exist_ok=True)
    (folder / "config.toml").write_text(to_toml(CONFIG))
    (folder / "class_weights.json").write_text(json.dumps(evidence.counts))
    records = [evidence.start, *evidence.steps, *evidence.epochs, *evidence.validations,
               *evidence.failures, evidence.end]
    write_lines(folder / "debug.jsonl", [record for record in records if record])
    if log:
        write_lines(folder / "log.jsonl", evidence.log)
    return folder


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def run(capsys, *words):
    code = run_command(diagnose.main, [str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_healthy_run(tmp_path, capsys):
    code, out, err = run(capsys, write(tmp_path / "run", healthy()))
    assert (code, err) == (0, "") and "nothing wrong found" in out
    assert "score: the confusion matrix" in out and "could not" not in out


def test_what_is_written_is_what_is_read(tmp_path):
    evidence, read = healthy(), read_evidence(write(tmp_path / "run", healthy()))
    for key in ("start", "steps", "epochs", "validations", "log", "end", "counts", "config"):
        assert getattr(read, key) == getattr(evidence, key), key
    assert read.checkpoints == ()
    np.savez(tmp_path / "run" / "last.npz")
    assert read_evidence(tmp_path / "run").checkpoints == ("last.npz",)


def test_a_fault_is_printed_with_numbers_and_a_command(tmp_path, capsys):
    folder = write(tmp_path / "run", healthy(epochs=[epoch(6, still=BACKBONE)]))
    code, out, _ = run(capsys, folder)
    assert code == 0 and "1. [optimizer, certain]" in out and "(frozen-random-backbone)" in out
    assert "30 of 101 parameter arrays" in out
    assert f"\n     python -m minisegnet.train --config {folder}/config.toml --epochs 1" in out


def test_json(tmp_path, capsys):
    folder = write(tmp_path / "run", healthy(start=start(probe=probe(np.r_[0, np.ones(K - 1)]))))
    code, out, _ = run(capsys, folder, "--json")
    content = json.loads(out)
    assert code == 0 and content["run"] == str(folder) and content["not_checked"] == []
    first = content["findings"][0]
    assert first["fault"] == "wrong-ignore-id" and first["score"] > 0.8
    assert set(first) == {"fault", "kind", "title", "evidence", "cause", "experiment", "score"}


def test_a_run_that_failed_before_its_first_epoch_ended(tmp_path, capsys):
    evidence = healthy(
        steps=steps(ratio=(0.4, 3.0), losses=(1.8, 1e20), per_lr=1.0)[:8], epochs=[], end=None,
        validations=[], failures=[{"kind": "failure", "step": 36, "what": "loss", "tensor": "aspp",
                                   "direction": "forward", "message": "..."}])
    code, out, _ = run(capsys, write(tmp_path / "run", evidence, log=False))
    assert code == 0 and "(lr-too-high)" in out
    assert "course of the losses" in out.partition("could not be checked")[2]


def test_a_run_without_debug_is_told_what_is_missing_and_how_to_get_it(tmp_path, capsys):
    folder = write_run(tmp_path / "run", epochs=5)
    (folder / "debug.jsonl").unlink(missing_ok=True)
    code, out, _ = run(capsys, folder)
    assert code == 0 and "nothing wrong found" in out
    missing = out.partition("could not be checked")[2]
    assert "gradient per class" in missing and "no record of --debug" in missing
    assert f"python -m minisegnet.train --config {folder}/config.toml --debug" in missing


def test_a_log_alone_shows_a_loss_that_does_not_fall(tmp_path, capsys):
    folder = write_run(tmp_path / "run", log=[
        {"epoch": i, "train_loss": 1.1, "val_loss": 1.1, "mean_iou": 0.3, "iou": [0.9, 0.0, 0.0],
         "recall": [1.0, 0.0, 0.0], "precision": [0.9, None, None], "pixel_accuracy": 0.9}
        for i in range(1, 6)])
    code, out, _ = run(capsys, folder)
    assert code == 0 and "(not-learning)" in out and "--overfit-one-batch" in out


def test_a_log_alone_shows_an_empty_matrix(tmp_path, capsys):
    nothing = {"mean_iou": None, "iou": [None] * 3, "recall": [None] * 3, "pixel_accuracy": None}
    folder = write_run(tmp_path / "run", log=[
        {"epoch": i, "train_loss": 1 / i, "val_loss": 1 / i, **nothing} for i in range(1, 6)])
    counts = json.loads((folder / "class_weights.json").read_text())
    (folder / "class_weights.json").write_text(json.dumps({
        **counts, "validation_pixels": [90, 9, 1]}))
    assert "(empty-confusion-matrix)" in run(capsys, folder)[1]


def test_a_resumed_run_is_read_as_one(tmp_path):
    first = healthy()
    folder = write(tmp_path / "run", first)
    again = start(batch_norm={"layers": 34, "untrained": 0, "parts": {}})
    with open(folder / "debug.jsonl", "a") as file:
        for record in (again, *steps(), epoch(7)):
            file.write(json.dumps(record) + "\n")
    read = read_evidence(folder)
    assert read.start == first.start and len(read.steps) == 24 and len(read.epochs) == 7


def test_a_line_cut_off_by_a_kill_is_passed_over(tmp_path, capsys):
    folder = write(tmp_path / "run", healthy())
    for name in ("debug.jsonl", "log.jsonl"):
        with open(folder / name, "a") as file:
            file.write('{"kind": "step", "st')
    assert "nothing wrong found" in run(capsys, folder)[1]


@pytest.mark.parametrize("spoil, words", [
    (lambda folder: None, "there is no folder"),
    (lambda folder: folder.mkdir(), "is not the folder of a run"),
    (lambda folder: folder.write_text("x"), "there is no folder"),
    (lambda folder: (write(folder, healthy()) / "config.toml").write_text("a = ["), "config.toml"),
    (lambda folder: (write(folder, healthy()) / "class_weights.json").write_text("[1]"),
     "class_weights.json"),
    (lambda folder: (write(folder, healthy()) / "log.jsonl").write_text("{}\n[1\n{}\n"),
     "log.jsonl, line 2"),
    (lambda folder: (write(folder, healthy()) / "debug.jsonl").write_text("1\n{}\n"),
     "debug.jsonl, line 1"),
])
def test_what_is_no_run_is_one_line_and_code_2(tmp_path, capsys, spoil, words):
    spoil(tmp_path / "run")
    code, out, err = run(capsys, tmp_path / "run")
    assert code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert words in err


def test_an_unfinished_run_is_told_how_to_go_on(tmp_path, capsys):
    folder = write(tmp_path / "run", healthy(
        end={"kind": "end", "epoch": 3, "step": 33, "finished": False}))
    text = " ".join(run(capsys, folder)[1].split())
    assert f"interrupted in epoch 4; --resume {folder} goes on" in text
