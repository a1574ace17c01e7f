"""The train command: what a run leaves, that it repeats itself, and how it refuses bad input."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import tomllib

import numpy as np
import pytest
from PIL import Image

from minisegnet import train
from minisegnet.errors import run_command
from minisegnet.imbalance.weighting import ClassStatistics
from minisegnet.models import build_model
from minisegnet.training import pictures
from minisegnet.training.checkpoint import read_checkpoint
from minisegnet.training.pictures import worth_showing
from minisegnet.training.run_folder import read_log


def run(*flags):
    return run_command(train.main, [str(flag) for flag in flags])


def tiny_run(data, output, *flags):
    return run("--data", data, "--epochs", 2, "--batch-size", 4, "--num-workers", 1,
               "--output-dir", output, *flags)


def test_a_run_leaves_everything_it_promises(tiny_folder, tmp_path, capsys):
    out = tmp_path / "run"
    assert tiny_run(tiny_folder, out, "--save-every", 2, "--class-weights", "median",
                    "--augment", "strong") == 0
    assert {p.name for p in out.iterdir()} == {
        "config.toml", "log.jsonl", "class_weights.json", "last.npz", "best.npz",
        "epoch_0002.npz", "curves.png", "predictions.png", "augmentation.png"}
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert len(lines) == 2
    for word in ("train", "val", "mIoU", "active", "/3", ">0.30", "acc", "lr", " s"):
        assert word in lines[0]
    log = read_log(out / "log.jsonl")
    assert [record["epoch"] for record in log] == [1, 2] and len(log[0]["iou"]) == 3
    assert json.loads((out / "class_weights.json").read_text())["scheme"] == "median"
    assert tomllib.loads((out / "config.toml").read_text())["class_weights"] == "median"
    classes = read_checkpoint(out / "best.npz").meta["classes"]
    assert classes["names"] == ["ground", "house", "pool"]
    for picture in ("curves.png", "predictions.png", "augmentation.png"):
        with Image.open(out / picture) as image:
            assert image.size[0] > 500


@pytest.mark.parametrize("loss", ["ce", "focal", "dice", "combined"])
def test_every_loss_trains_with_weights_and_augmentation(tiny_folder, tmp_path, loss):
    out = tmp_path / "run"
    assert tiny_run(tiny_folder, out, "--loss", loss, "--augment", "standard", "--epochs", 4,
                    "--class-weights", "enet", "--lr", 0.01) == 0
    log = read_log(out / "log.jsonl")
    assert log[-1]["train_loss"] < log[0]["train_loss"]
    if loss == "combined":
        assert log[0]["train_focal"] + log[0]["train_dice"] == pytest.approx(log[0]["train_loss"],
                                                                             rel=1e-5)


def test_the_same_seed_gives_the_same_numbers_whatever_the_workers(tiny_folder, tmp_path):
    logs = []
    for name, workers in (("a", 0), ("b", 3)):
        assert tiny_run(tiny_folder, tmp_path / name, "--augment", "standard", "--num-workers",
                        workers) == 0
        logs.append([{k: v for k, v in record.items() if k != "seconds"}
                     for record in read_log(tmp_path / name / "log.jsonl")])
    assert logs[0] == logs[1]
    a, b = (read_checkpoint(tmp_path / name / "last.npz").parameters for name in "ab")
    assert all((a[key] == b[key]).all() for key in a)
    assert tiny_run(tiny_folder, tmp_path / "c", "--augment", "standard", "--seed", 1) == 0
    assert read_log(tmp_path / "c" / "log.jsonl")[0]["train_loss"] != logs[0][0]["train_loss"]


def test_the_resolved_config_repeats_the_run(tiny_folder, tmp_path):
    assert tiny_run(tiny_folder, tmp_path / "a", "--lr", 0.004, "--no-decay-norm-and-bias") == 0
    assert "output_dir" not in tomllib.loads((tmp_path / "a" / "config.toml").read_text())
    assert run("--config", tmp_path / "a" / "config.toml", "--output-dir", tmp_path / "b") == 0
    first, second = (read_log(tmp_path / name / "log.jsonl")[-1]["train_loss"] for name in "ab")
    assert first == second


def test_training_starts_from_a_checkpoint(tiny_folder, tmp_path):
    assert tiny_run(tiny_folder, tmp_path / "a") == 0
    assert tiny_run(tiny_folder, tmp_path / "b", "--init-from", tmp_path / "a" / "last.npz",
                    "--lr", 1e-12, "--schedule", "constant") == 0
    a, b = (read_checkpoint(tmp_path / name / "last.npz").parameters for name in "ab")
    assert all(np.allclose(a[key], b[key], rtol=1e-6, atol=1e-9) for key in a)


@pytest.mark.parametrize("flags, words", [
    (["--lr", "-1"], ["--lr", "-1", "> 0"]),
    (["--batch-size", "0"], ["--batch-size", "0", ">= 1"]),
    (["--image-size", "200000", "64"], ["--image-size", "200000", "<= 8192"]),
    (["--batch-size", "1"], ["--batch-size 1", "at least 2"]),
    (["--epochs", "x"], ["--epochs", "whole number"]),
    (["--loss", "hinge"], ["--loss", "hinge"]),
    (["--focal-gamma", "nan"], ["--focal-gamma", "nan"]),
    (["--label-smoothing", "1"], ["--label-smoothing"]),
    (["--loss", "dice", "--label-smoothing", "0.1"], ["--label-smoothing", "dice"]),
    (["--no-such-flag"], ["--no-such-flag"]),
    (["--class-weights", "cubic"], ["--class-weights", "cubic", "sqrt"]),
    (["--class-weights", "none.json"], ["cannot read", "none.json"]),
    (["--config", "none.toml"], ["cannot read", "none.toml"]),
    (["--init-from", "none.npz"], ["there is no", "none.npz"]),
    (["--data", "nowhere"], ["nowhere", "--data"]),
    (["--batch-size", "9"], ["--batch-size 9", "8 images"]),
    (["--ignore-index", "2"], ["--ignore-index", "2"]),
    (["--ignore-index", "256"], ["--ignore-index", "256", "<= 255"]),
    (["--batch-norm-momentum", "0"], ["--batch-norm-momentum", "> 0"]),
    (["--loss", "combined", "--lambda-focal", "0", "--lambda-dice", "0"], ["--lambda-focal 0"]),
    (["--epochs", "2", "--warmup-epochs", "3"], ["--warmup-epochs 3", "--epochs 2"]),
    (["--schedule", "cosine", "--lr", "0.1", "--min-lr", "1"], ["--min-lr 1", "--lr 0.1"]),
    (["--epoch", "1"], ["--epoch"]),  # no abbreviations: --weight could mean two things
    (["--init-from", ""], ["no file of weights"]),
    (["--model", "unet_small", "--image-size", "8", "8"], ["unet_small", "8x8", "--image-size"]),
    (["--model", "unet_small", "--batch-size", "1", "--image-size", "16", "24"], ["batches of 1"]),
    (["--model", "unet_small", "--image-size", "32", "48", "--image-size-after", "1:4x4"],
     ["4x4"]),
    (["--image-size", "8000", "8000", "--batch-size", "8"], ["MiB of memory", "--accumulate"]),
    (["--output-dir", "long" * 100], ["cannot make", "long", "--output-dir"]),
    (["--data", "long" * 2000], ["long"]),
])
def test_bad_input_is_one_line_and_exit_2_and_no_run_folder(tiny_folder, tmp_path, monkeypatch,
                                                            capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    assert run("--data", tiny_folder, "--output-dir", "run", *flags) == 2
    captured = capsys.readouterr()
    error = captured.err.strip()
    assert error.startswith("error: ") and "\n" not in error
    assert all(word in error for word in words), error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content, words", [
    ("[1, 2]", ["3 weights"]), ("[1, 2, -1]", [">= 0"]), ("{]", ["not JSON"]),
    ('{"ground": 1, "house": 2}', ["pool"]), ('["a", 1, 2]', ["not JSON with a list"]),
    ("[0, 0, 0]", ["not all 0"]), ("[1, 2, NaN]", ["3 weights"]), ("[1, 2, 1e7]", ["<= 1e+06"]),
    (f"[1, 2, 1{400 * '0'}]", ["not JSON with a list"]), (2000 * "[", ["not JSON"])])
def test_a_bad_weights_file_is_refused(tiny_folder, tmp_path, capsys, content, words):
    (tmp_path / "w.json").write_text(content)
    assert tiny_run(tiny_folder, tmp_path / "run", "--class-weights", tmp_path / "w.json") == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words), error


def test_the_model_and_the_batches_get_their_flags(tiny_folder, tmp_path, monkeypatch):
    seen = {}

    def look(self):
        phase = self.phase(1)
        seen.update(trainer=self, phase=phase, first=next(iter(phase.train_loader.batches(1))))
        return False

    monkeypatch.setattr(train.Trainer, "fit", look)
    names = []
    for seed in (3, 4):
        assert tiny_run(tiny_folder, tmp_path / f"{seed}", "--seed", seed, "--image-size", 16, 24,
                        "--batch-norm-momentum", 0.3, "--epochs", 1) == 130
        weight = seen["trainer"].model.classifier.params["weight"]
        np.testing.assert_array_equal(
            weight, build_model("mini", 3, seed=seed).classifier.params["weight"])
        names.append(seen["first"].names)
    assert seen["trainer"].model.aspp.project.norm.momentum == 0.3
    assert seen["first"].images.shape == (4, 16, 24, 3)
    assert names[0] != names[1] and names[0] != ("0", "1", "2", "3")  # shuffled, by the seed
    # Validation: pictures at the training size, masks at their own.
    batch = next(iter(seen["phase"].val_loader.batches()))
    assert batch.images.shape[1:3] == (16, 24) and batch.target.shape[1:] == (32, 48)


def test_masks_of_several_sizes_are_validated_at_the_training_size(tiny_folder, tmp_path):
    for kind in ("images", "masks"):
        path = tiny_folder / "val" / kind / "0.png"
        with Image.open(path) as picture:
            picture.resize((64, 40), Image.Resampling.NEAREST).save(path)
    assert tiny_run(tiny_folder, tmp_path / "run") == 0
    assert tomllib.loads((tmp_path / "run" / "config.toml").read_text())["image_size"] == [32, 48]


def test_the_pictures_show_the_best_weights(tiny_folder, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(pictures, "predict_batch", lambda model, images, size: (
        shown.append(model.classifier.params["weight"].copy()), np.zeros((1, *size), np.uint8))[1])
    fit = train.Trainer.fit

    def fit_and_spoil(self):
        finished = fit(self)
        self.model.classifier.params["weight"][...] = 7
        return finished

    monkeypatch.setattr(train.Trainer, "fit", fit_and_spoil)
    assert tiny_run(tiny_folder, tmp_path / "run") == 0
    best = read_checkpoint(tmp_path / "run" / "best.npz").parameters["classifier.weight"]
    assert len(shown) == 4
    np.testing.assert_array_equal(shown[0], best)


def test_a_full_disk_is_one_line_and_spoils_no_file(tiny_folder, tmp_path, monkeypatch, capsys):
    out, synced = tmp_path / "run", []

    def fsync(number):
        synced.append(number)
        if len(synced) > 4:  # after config, weights, and both checkpoints of the first epoch
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    assert tiny_run(tiny_folder, out) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: cannot write") and "No space left" in error
    assert "\n" not in error
    assert read_checkpoint(out / "last.npz").meta["epoch"] == 1
    assert len(read_log(out / "log.jsonl")) == 1
    assert not [name for name in os.listdir(out) if name.endswith(".tmp")]


def test_a_gpu_that_is_asked_for_and_missing_is_named(capsys):
    assert run("--device", "cuda") == 2
    assert "--device cuda" in capsys.readouterr().err


def test_names_in_any_script_are_fine(tiny_folder, tmp_path):
    (tiny_folder / "classes.txt").write_text("sol\nma\u00eetre\n\u5e8a\n", encoding="utf-8")
    for path in sorted(tiny_folder.glob("*/*/0.png")):
        path.rename(path.with_name("a plan \u5e8a.png"))
    result = subprocess.run(
        [sys.executable, "-m", "minisegnet.train", "--data", tiny_folder, "--epochs", "1",
         "--batch-size", "4", "--output-dir", tmp_path / "a run"],
        capture_output=True, text=True, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (result.returncode, result.stderr) == (0, "")
    assert "\\u5e8a" in result.stdout


def test_a_run_is_never_written_over(tiny_folder, tmp_path, capsys):
    assert tiny_run(tiny_folder, tmp_path / "run") == 0
    before = (tmp_path / "run" / "last.npz").read_bytes()
    assert tiny_run(tiny_folder, tmp_path / "run") == 2
    assert "not empty" in capsys.readouterr().err
    assert (tmp_path / "run" / "last.npz").read_bytes() == before


def test_a_loss_that_is_not_finite_stops_the_run_in_one_line(tiny_folder, tmp_path, capsys):
    assert tiny_run(tiny_folder, tmp_path / "run", "--optimizer", "sgd", "--lr", "1e30",
                    "--schedule", "constant") == 2
    error = capsys.readouterr().err
    assert "not finite" in error or "the loss is" in error
    assert "--lr" in error


def test_ctrl_c_saves_and_leaves_with_130(tiny_folder, tmp_path):
    out = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "minisegnet.train", "--data", tiny_folder, "--epochs", "5000",
         "--batch-size", "4", "--output-dir", out],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    kill_late = threading.Timer(60, process.kill)
    kill_late.start()
    while process.poll() is None and not (out / "log.jsonl").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    text = process.communicate()[0]
    kill_late.cancel()
    assert process.returncode == 130, text
    assert "Traceback" not in text and "last.npz" in text
    assert {"last.npz", "curves.png", "predictions.png"} <= set(os.listdir(out))
    assert not [name for name in os.listdir(out) if name.endswith(".tmp")]
    assert read_checkpoint(out / "last.npz").meta["step"] > 0


def test_the_pictures_show_the_rarest_classes_first():
    masks = [np.full((4, 4), c, np.uint8) for c in (0, 0, 1, 0, 0, 2, 0)]
    masks[3][0] = 3  # the rarest of all
    statistics = ClassStatistics.from_masks(masks, 5)
    assert worth_showing(statistics) == [3, 2, 5, 0, 1]
    assert worth_showing(ClassStatistics.from_masks(masks[:2], 5)) == [0, 1]


def test_one_batch_is_learned_by_heart_and_scored_on_itself(tiny_folder, tmp_path, capsys):
    assert tiny_run(tiny_folder, tmp_path / "run", "--overfit-one-batch", "--augment", "strong",
                    "--epochs", "4") == 0
    said = capsys.readouterr().out
    config = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    assert config["augment"] == "none"  # plain
    weights = json.loads((tmp_path / "run" / "class_weights.json").read_text())
    assert weights["pixels"] == weights["validation_pixels"]
    assert "the same" in said and "by heart" in said
    losses = [record["train_loss"] for record in read_log(tmp_path / "run" / "log.jsonl")]
    assert losses[-1] < losses[0] / 2
