"""The evaluate command: its numbers, which checkpoints it takes, what it warns of and refuses."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from minisegnet import evaluate, plots
from minisegnet.datasets import DataLoader, open_dataset
from minisegnet.errors import run_command
from minisegnet.losses.criterion import Criterion
from minisegnet.models import build_model
from minisegnet.training.checkpoint import load_model, save_checkpoint
from minisegnet.training.evaluation import evaluate as evaluate_in_training

NAMES = ["ground", "house", "pool"]


def make_data(root):
    """Write four pictures in each split, 32x48 with three classes, some pixels ignored."""
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for i in range(4):
            mask = np.zeros((32, 48), np.uint8)
            mask[8:24, 8:24 + i] = 1
            mask[12:20, 28:40] = 2
            mask[:2] = 255
            image = (mask[..., None] * 60 + rng.integers(0, 60, (32, 48, 3))).astype(np.uint8)
            folder = root / split
            Image.fromarray(image).save(folder / "images" / f"{i}.png")
            Image.fromarray(mask).save(folder / "masks" / f"{i}.png")
    (root / "classes.txt").write_text("\n".join(NAMES))
    return root


@pytest.fixture
def data(tmp_path):
    return make_data(tmp_path / "data")


@pytest.fixture
def quick_pictures(monkeypatch):
    """Drawing takes longer than all the rest; one test draws."""
    for name in ("confusion", "reliability"):
        monkeypatch.setattr(plots, name, lambda *arguments: None)
    monkeypatch.setattr(plots, "save", lambda figure, path: path.write_bytes(b"picture"))


def save(path, data, *, seed=0, epoch=1, names=NAMES, **changes):
    """Save an untrained model that predicts every class somewhere; return its path."""
    model = build_model("mini", len(names), seed=seed)
    model.classifier.params["weight"] *= 100
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, model, meta={
        "epoch": epoch, "image_size": [32, 48],
        "classes": {"names": list(names), "ignore_index": 255,
                    "pixels": [10 ** (4 - c) for c in range(len(names))]},
        "config": {"data": str(data), "layout": "auto", "class_weights": "none"}, **changes})
    return path


@pytest.fixture
def run_of(data, tmp_path, quick_pictures):
    """A run folder with a best.npz."""
    return save(tmp_path / "run" / "best.npz", data).parent


def run(*flags):
    return run_command(evaluate.main, [str(flag) for flag in (*flags, "--num-workers", 0,
                                                              "--bootstrap", 50)])


def results(folder):
    return json.loads((folder / "evaluation.json").read_text())


def score_of(path, data, split="val"):
    """Return the confusion matrix as training finds it."""
    model, _ = evaluate.load_checked(path)
    loader = DataLoader(open_dataset(data, split=split), 2, num_workers=0)
    return evaluate_in_training(model, loader, Criterion())[1]


# ---------------------------------------------------------------- one model


def test_the_score_is_the_one_of_training_and_everything_is_in_the_json(data, run_of, capsys):
    assert run(run_of) == 0
    found, expected = results(run_of / "evaluation_val"), score_of(run_of / "best.npz", data)
    assert found["confusion"] == expected.matrix.tolist()
    assert found["iou"] == expected.iou.tolist() and found["classes"] == NAMES
    assert found["mean_iou_present"] == expected.mean_iou_present
    assert found["images"] == 4 and found["image_size"] == [32, 48] and found["epoch"] == 1
    lo, hi = found["mean_iou_present_interval"]
    assert lo <= found["mean_iou_present"] <= hi
    assert sum(found["pixels_in_truth"]) == sum(found["pixels_predicted"]) == 4 * 30 * 48
    calibration = found["calibration"]
    assert np.array(calibration["classes"]["count"]).sum() == 3 * 4 * 30 * 48
    assert {"top_label_ece", "classwise_ece", "ece", "mean_probability"} <= set(calibration)
    out = capsys.readouterr().out
    assert f"{expected.mean_iou_present:.4f}" in out and "FWIoU" in out
    assert {p.name for p in (run_of / "evaluation_val").iterdir()} == set(evaluate.RESULTS)


def test_the_pictures_are_drawn(data, tmp_path):
    path = save(tmp_path / "run" / "best.npz", data)
    assert run(path, "--output", tmp_path / "out") == 0
    for name in evaluate.RESULTS[1:]:
        with Image.open(tmp_path / "out" / name) as picture:
            assert picture.format == "PNG" and min(picture.size) > 300


def test_a_class_that_is_nowhere_is_null_and_named(data, tmp_path, quick_pictures, capsys):
    names = [*NAMES, "unicorn"]
    (data / "classes.txt").write_text("\n".join(names))
    path = save(tmp_path / "run" / "last.npz", data, names=names)
    model, checkpoint = load_model(path)
    model.classifier.params["bias"][3] = -1e6
    save_checkpoint(path, model, meta=checkpoint.meta)
    assert run(path) == 0
    found = results(tmp_path / "run" / "evaluation_val_last")
    assert found["iou"][3] is None and found["absent_classes"] == ["unicorn"]
    assert found["present_classes"] == 3
    assert "(absent: unicorn)" in capsys.readouterr().out


def test_any_image_size_is_scored_at_the_size_of_the_masks(run_of):
    assert run(run_of, "--image-size", 45, 61) == 0
    found = results(run_of / "evaluation_val_45x61")
    assert sum(found["pixels_in_truth"]) == 4 * 30 * 48
    assert run(run_of) == 0
    assert found["confusion"] != results(run_of / "evaluation_val")["confusion"]


def test_pictures_of_several_sizes_are_scored_one_by_one(data, run_of, capsys):
    for kind in ("images", "masks"):
        path = data / "val" / kind / "1.png"
        with Image.open(path) as picture:
            picture.resize((64, 40), Image.Resampling.NEAREST).save(path)
    assert run(run_of) == 0
    with Image.open(data / "val" / "masks" / "1.png") as mask:
        valid = (np.asarray(mask) != 255).sum()
    assert sum(results(run_of / "evaluation_val")["pixels_in_truth"]) == 3 * 30 * 48 + valid
    assert "2 sizes" in capsys.readouterr().out


def test_mirroring_scales_and_other_models_take_part_by_their_flags(data, run_of, tmp_path,
                                                                    monkeypatch):
    other = save(tmp_path / "other" / "best.npz", data, seed=1, image_size=[40, 56])
    seen = []

    def watched(members, loaders, *, flip, **options):
        seen.append(([size for _, size in members], list(loaders), flip))
        seen.append([model.classifier.params["weight"][0, 0, 0, 0] for model, _ in members])
        return score(members, loaders, flip=flip, **options)

    score = evaluate.score
    monkeypatch.setattr(evaluate, "score", watched)
    assert run(run_of) == 0
    assert run(run_of, "--tta", "--tta-scales", 0.75, 1, "--ensemble", other.parent) == 0
    assert seen[0] == ([(32, 48)], [(32, 48)], False)
    sizes = [(24, 36), (32, 48), (30, 42), (40, 56)]  # each model at its own size
    assert seen[2] == (sizes, sizes, True)
    assert seen[3][0] == seen[3][1] == seen[1][0] != seen[3][2] == seen[3][3]
    assert (run_of / "evaluation_val_ensemble_tta_scales" / "evaluation.json").exists()


def test_class_weights_and_what_they_do_to_probabilities_are_said(data, run_of, capsys):
    assert run(run_of) == 0
    assert "class weights" not in capsys.readouterr().out
    save(run_of / "best.npz", data, config={"data": str(data), "class_weights": "sqrt"})
    assert run(run_of) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "1 is right" in line)
    assert "class weights (sqrt) distort probabilities" in line
    calibration = results(run_of / "evaluation_val")["calibration"]
    ratio = calibration["mean_probability"][2] / calibration["frequency"][2]
    assert f"pool {ratio:.3g}" in line


def test_an_earlier_evaluation_is_replaced_and_nothing_else(run_of, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(run_of, "--output", out) == 0
    assert run(run_of, "--output", out, "--all") == 0  # has no pictures: the old ones go
    assert [p.name for p in out.iterdir()] == ["evaluation.json"]
    capsys.readouterr()
    assert run(run_of, "--output", run_of) == 2
    assert "no earlier evaluation" in capsys.readouterr().err
    assert sorted(p.name for p in run_of.iterdir()) == ["best.npz"]


# ---------------------------------------------------------------- several checkpoints


def test_all_checkpoints_come_by_epoch_number_each_once(data, run_of, capsys):
    for epoch in (2, 10, 100, 10000):
        save(run_of / f"epoch_{epoch:04d}.npz", data, seed=epoch, epoch=epoch)
    save(run_of / "best.npz", data, seed=10, epoch=10)
    save(run_of / "last.npz", data, seed=5, epoch=100)  # the same epoch, other weights
    assert run(run_of, "--all") == 0
    rows = results(run_of / "evaluation_val_all")["checkpoints"]
    files = [[name.rsplit("/")[-1] for name in row["files"]] for row in rows]
    assert files == [["epoch_0002.npz"], ["epoch_0010.npz", "best.npz"], ["epoch_0100.npz"],
                     ["last.npz"], ["epoch_10000.npz"]]
    for row in rows:
        expected = score_of(row["files"][0], data)
        assert row["confusion"] == expected.matrix.tolist()
    best = int(np.argmax([row["mean_iou_present"] for row in rows]))
    lines = capsys.readouterr().out.splitlines()[2:7]
    assert [line.split()[0] for line in lines] == ["2", "10", "100", "100", "10000"]
    assert [i for i, line in enumerate(lines) if "<- best" in line] == [best]


def test_choosing_on_test_is_called_that(data, run_of, capsys):
    for epoch in (1, 2, 3):
        save(run_of / f"epoch_{epoch:04d}.npz", data, seed=epoch, epoch=epoch)
    assert run(run_of, "--all") == 0
    assert "WARNING" not in capsys.readouterr().out
    assert not results(run_of / "evaluation_val_all")["selected_on_test"]
    assert run(run_of, "--all", "--split", "test") == 0
    out = capsys.readouterr().out
    assert "WARNING" in out and "selection score" in out and "4 checkpoints" in out
    found = results(run_of / "evaluation_test_all")
    assert found["selected_on_test"] and "selection score" in found["notes"][0]


def test_looks_at_test_are_counted_by_run_and_data(data, run_of, tmp_path, capsys):
    outs = []
    for _ in range(3):
        assert run(run_of, "--split", "test") == 0
        outs.append(capsys.readouterr().out)
    assert run(run_of) == 0
    assert "looked at" not in outs[0] + capsys.readouterr().out
    assert "looked at once before" in outs[1] and "looked at 2 times before" in outs[2]
    (tmp_path / "elsewhere").symlink_to(data)
    assert run(run_of, "--split", "test", "--data", tmp_path / "elsewhere") == 0
    assert "looked at 3 times" in capsys.readouterr().out  # the same pictures
    looks = json.loads((run_of / evaluate.LOOKS).read_text())
    shutil.copytree(data, tmp_path / "copy")
    assert run(run_of, "--split", "test", "--data", tmp_path / "copy") == 0
    assert "looked at" not in capsys.readouterr().out  # other pictures, for all we know
    assert len(looks) == 4 and looks[0]["files"] == [str(run_of / "best.npz")]


@pytest.mark.parametrize("split, trained_on, words", [
    ("train", None, "on pictures of train:"), ("val", "trainval", "on pictures of val:"),
    ("val", None, "chosen by its mean_iou on val"), ("test", "trainval", None)])
def test_a_score_on_what_was_trained_on_is_no_validation_score(data, run_of, capsys, split,
                                                               trained_on, words):
    config = {"data": str(data), **({"split": trained_on} if trained_on else {})}
    save(run_of / "best.npz", data, config=config)
    assert run(run_of, "--split", split) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note")]
    assert len(notes) == (words is not None) and all(words in note for note in notes)


def test_other_data_of_the_same_classes_can_be_evaluated(data, run_of, capsys):
    # The layout of training, which is none of these pictures', goes with its data.
    save(run_of / "best.npz", data, config={"data": str(data), "layout": "camvid"})
    other = data.rename(data.with_name("other"))
    assert run(run_of, "--data", other, "--split", "train") == 0
    assert "trained on" not in capsys.readouterr().out
    assert (run_of / "evaluation_train_other" / "evaluation.json").exists()
    assert run(run_of) == 2
    assert "there is no folder" in capsys.readouterr().err


# ---------------------------------------------------------------- bad input


def save_spoilt(path, data):
    model, checkpoint = load_model(save(path, data))
    model.classifier.params["bias"][1] = np.nan
    save_checkpoint(path, model, meta=checkpoint.meta)


@pytest.fixture(scope="module")
def bad_run(tmp_path_factory):
    """A run folder with a best.npz, and everything that can be wrong beside it."""
    root = tmp_path_factory.mktemp("bad")
    data, run = make_data(root / "data"), root / "run"
    save(run / "best.npz", data)
    (run / "damaged.npz").write_bytes((run / "best.npz").read_bytes()[:5000])
    (run / "text.npz").write_text("no archive")
    save(run / "four.npz", data, names=[*NAMES, "tree"])
    save(run / "swapped.npz", data, names=NAMES[::-1])
    save_checkpoint(run / "bare.npz", build_model("mini", 3), meta={"epoch": 1})
    save_spoilt(run / "nan.npz", data)
    (run / "empty").mkdir()
    (run / "full").mkdir()
    (run / "full" / "thesis.txt").write_text("all my work")
    return run


@pytest.mark.parametrize("flags, words", [
    (["none.npz"], ["no checkpoint", "none.npz"]),
    (["empty"], ["empty", "no best.npz"]),
    (["empty", "--all"], ["empty", "no checkpoint", "epoch_NNNN.npz"]),
    (["best.npz", "--all"], ["--all", "run folder"]),
    (["damaged.npz"], ["damaged.npz", "not a checkpoint"]),
    (["text.npz"], ["text.npz", "not a checkpoint"]),
    (["bare.npz"], ["bare.npz", "image_size"]),
    (["nan.npz"], ["nan.npz", "classifier.bias", "nan"]),
    (["four.npz"], ["data has 3 classes", "four.npz has 4"]),
    (["swapped.npz"], ["class 0 is 'ground' there and 'pool' here"]),
    ([".", "--ensemble", "four.npz"], ["four.npz has 4 classes", "best.npz has 3"]),
    ([".", "--ensemble", "best.npz", "swapped.npz"], ["class 0 is 'pool'"]),
    ([".", "--ensemble", "none.npz"], ["no checkpoint", "none.npz"]),
    ([".", "--ensemble", "best.npz", "--all"], ["--all", "--ensemble"]),
    ([".", "--split", "dev"], ["--split", "dev"]),
    ([".", "--data", "nowhere"], ["nowhere", "--data"]),
    ([".", "--layout", "camvid"], ["valannot"]),
    ([".", "--tta-scales", "0"], ["--tta-scales", ">= 0.1"]),
    ([".", "--image-size", "0", "5"], ["--image-size", ">= 1"]),
    ([".", "--device", "cuda"], ["--device cuda"]),
    ([".", "--output", "full"], ["full", "no earlier evaluation"]),
    ([".", "--output", "best.npz"], ["best.npz", "--output"]),
])
def test_bad_input_is_one_line_and_exit_2_and_nothing_is_written(bad_run, monkeypatch, capsys,
                                                                 flags, words):
    monkeypatch.chdir(bad_run)
    before = sorted(bad_run.rglob("*"))
    assert run(*flags) == 2
    captured = capsys.readouterr()
    error = captured.err.strip()
    assert error.startswith("error: ") and "\n" not in error and captured.out == ""
    assert all(word in error for word in words), error
    assert sorted(bad_run.rglob("*")) == before


def test_a_spoilt_checkpoint_among_all_is_named_before_the_first_score(data, run_of, capsys):
    save(run_of / "epoch_0001.npz", data)
    save_spoilt(run_of / "epoch_0007.npz", data)
    assert run(run_of, "--all") == 2
    assert "epoch_0007.npz is spoilt" in capsys.readouterr().err


def test_a_damaged_record_of_looks_is_refused_and_kept(data, run_of, capsys):
    (run_of / evaluate.LOOKS).write_text("[1, 2")
    assert run(run_of, "--split", "test") == 2
    assert evaluate.LOOKS in capsys.readouterr().err
    assert (run_of / evaluate.LOOKS).read_text() == "[1, 2"
