"""Class maps from training to prediction: --classes, and what a checkpoint says of its classes."""

import json

import numpy as np
import pytest
from PIL import Image

from minisegnet import evaluate, predict, train
from minisegnet.datasets import ClassMap, open_dataset, read_class_map
from minisegnet.errors import run_command
from minisegnet.models import build_model
from minisegnet.training.checkpoint import read_checkpoint, save_checkpoint

VALUES = np.array([70, 3, 200, 255], np.uint8)  # of ground, house, pool and the ignored rows
COLOURS = np.array([(9, 9, 9), (0, 128, 255), (1, 2, 3), (255, 255, 255)], np.uint8)
NAMES = ("pool", "ground", "house")
MAPS = {
    "ids": ClassMap(NAMES, (200, 70, 3), excluded={255: "void", 9: "unnamed"}),
    "colours": ClassMap(NAMES, COLOURS[[2, 0, 1]], excluded={(255, 255, 255): "void"}),
}


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(train, "draw_results", lambda *arguments: None)


def relabel(root, table):
    """Write the masks of `root` anew: ids 0, 1, 2 and 255 become the rows of `table`."""
    for path in root.rglob("masks/*.png"):
        mask = np.asarray(Image.open(path))
        Image.fromarray(table[np.where(mask == 255, 3, mask)]).save(path)
    (root / "classes.txt").unlink()


@pytest.fixture(params=["ids", "colours"])
def kind(request):
    return request.param


@pytest.fixture
def data(tiny_folder, kind):
    """The tiny folder, with other values in its masks that nothing in it declares."""
    relabel(tiny_folder, VALUES if kind == "ids" else COLOURS)
    return tiny_folder


def run(command, *flags):
    return run_command(command.main, [str(flag) for flag in flags])


def train_tiny(data, out, *flags):
    return run(train, "--data", data, "--output-dir", out, "--epochs", 1, "--batch-size", 4,
               "--num-workers", 0, *flags)


def score_of(folder):
    return json.loads((folder / "evaluation.json").read_text("utf-8"))["iou"]


def test_a_run_keeps_the_class_map_it_was_given(data, kind, tmp_path, monkeypatch, capsys):
    given, out = tmp_path / "mine.json", tmp_path / "run"
    MAPS[kind].write(given)
    assert train_tiny(data, out, "--classes", given) == 0
    assert ClassMap.from_dict(read_checkpoint(out / "last.npz").meta["classes"]["map"]) \
        == read_class_map(out / "class_map.json") == MAPS[kind]

    # Whatever becomes of the file, the run goes on and is judged by its own.
    given.write_text("changed")
    assert run(train, "--resume", out, "--epochs", 2) == 0
    assert run(train, "--resume", out, "--classes", given) == 2
    assert "leave out --classes" in capsys.readouterr().err
    monkeypatch.setattr(evaluate.plots, "save", lambda figure, path: None)
    assert run(evaluate, out, "--num-workers", 0, "--bootstrap", 0) == 0
    logged = json.loads((out / "log.jsonl").read_text().splitlines()[-1])
    best = read_checkpoint(out / "best.npz").meta
    assert logged["epoch"] == 2 and best["classes"]["names"] == list(NAMES)
    scored = score_of(out / "evaluation_val")
    assert len(scored) == 3 and None not in scored


def test_other_data_are_read_as_they_declare_or_as_told(data, kind, tmp_path, monkeypatch, capsys):
    out, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    MAPS[kind].write(data / "class_map.json")
    assert train_tiny(data, out) == 0 and not (out / "class_map.json").exists()
    monkeypatch.setattr(evaluate.plots, "save", lambda figure, path: None)
    flags = ("--num-workers", 0, "--bootstrap", 0)
    assert run(evaluate, out, *flags, "--output", tmp_path / "own") == 0

    # The same pictures with plain ids, in other places than the checkpoint's map has them.
    for path in data.rglob("*.png"):
        target = elsewhere / path.relative_to(data)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
        if "masks" in target.parts:
            ids = MAPS[kind].to_ids(np.asarray(Image.open(path)))
            Image.fromarray(np.where(ids == 255, 255, 2 - ids).astype(np.uint8)).save(target)
    plain = ClassMap(NAMES, (2, 1, 0), excluded={255: "void"})
    plain.write(tmp_path / "plain.py")
    assert run(evaluate, out, "--data", elsewhere, *flags) == 2
    assert "--classes" in capsys.readouterr().err
    assert run(evaluate, out, "--data", elsewhere, *flags, "--classes", tmp_path / "plain.py",
               "--output", tmp_path / "told") == 0
    plain.write(elsewhere / "class_map.json")
    assert run(evaluate, out, "--data", elsewhere, *flags, "--output", tmp_path / "found") == 0
    assert score_of(tmp_path / "own") == score_of(tmp_path / "told") \
        == score_of(tmp_path / "found")


def checkpoint(path, classes):
    """Save an untrained model of three classes that predicts each of them somewhere."""
    model = build_model("mini", 3)
    model.classifier.params["weight"] *= 100
    save_checkpoint(path, model, meta={
        "epoch": 1, "image_size": [32, 48], "original_size": [32, 48], "classes": classes})
    return path


@pytest.fixture
def photo(tmp_path, rng):
    pixels = rng.integers(0, 256, (64, 96, 3)).astype(np.uint8)
    Image.fromarray(pixels).resize((48, 32)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_predictions_are_masks_that_their_class_map_reads(kind, tmp_path, photo):
    path = checkpoint(tmp_path / "model.npz", {"map": MAPS[kind].to_dict()})
    assert run(predict, path, photo, "--output", tmp_path / "out", "--probabilities") == 0
    written = tmp_path / "out" / "photo.png"
    with np.load(tmp_path / "out" / "photo.npz") as arrays:
        ids, values = arrays["probs"].argmax(axis=2), arrays["mask_values"]
    assert len(np.unique(ids)) == 3
    assert values.tolist() == [list(v) if kind == "colours" else v for v in MAPS[kind].values]
    with Image.open(written) as picture:
        assert picture.mode == {"ids": "P", "colours": "RGB"}[kind]
        np.testing.assert_array_equal(MAPS[kind].to_ids(np.asarray(picture)), ids)

    # And so they can be trained on.
    for split in ("images", "masks"):
        (tmp_path / "again" / split).mkdir(parents=True)
        for name in "ab":
            (tmp_path / "again" / split / f"{name}.png").write_bytes(written.read_bytes())
    dataset = open_dataset(tmp_path / "again", classes=MAPS[kind])
    np.testing.assert_array_equal(dataset[0].mask, ids)


def test_a_checkpoint_without_a_map_says_its_values_one_by_one(tiny_folder, tmp_path, photo,
                                                               monkeypatch):
    relabel(tiny_folder, VALUES)
    out = tmp_path / "old"
    MAPS["ids"].write(tmp_path / "ids.py")
    assert train_tiny(tiny_folder, out, "--classes", tmp_path / "ids.py") == 0
    meta = read_checkpoint(out / "best.npz").meta
    del meta["classes"]["map"]  # as versions before this one wrote it
    meta["classes"] |= {"mask_values": [200, 70, 3], "void": 255}
    model = build_model("mini", 3)
    model.classifier.params["weight"] *= 100
    save_checkpoint(out / "best.npz", model, meta=meta)
    monkeypatch.setattr(evaluate.plots, "save", lambda figure, path: path.write_bytes(b""))
    assert run(evaluate, out, "--num-workers", 0, "--bootstrap", 0) == 0
    assert run(predict, out, photo, "--output", tmp_path / "out", "--overwrite") == 0
    with Image.open(tmp_path / "out" / "photo.png") as picture:
        assert set(np.unique(np.asarray(picture))) <= {200, 70, 3}


@pytest.mark.parametrize("classes", [
    {"map": {}}, {"map": []}, {"map": {"classes": [{"value": 0, "name": "a"}]}},
    {"map": {"classes": [{"value": 0, "name": "a"}] * 3}}])
def test_a_spoilt_map_in_a_checkpoint_is_one_line(tmp_path, photo, capsys, classes):
    path = checkpoint(tmp_path / "model.npz", classes)
    assert run(predict, path, photo, "--output", tmp_path / "out") == 2
    assert "model.npz does not say what its classes" in capsys.readouterr().err


@pytest.mark.parametrize("flags, words", [
    (["--classes", "gone.json"], ["gone.json", "No such file"]),
    (["--classes", "README.md"], ["README.md", "no class map"]),
    (["--classes", "two.txt"], ["masks/0.png", "outside the 2 classes"]),
    (["--classes", "two.json"], ["--ignore-index 254"]),
])
def test_classes_that_do_not_fit_are_refused_before_training(tiny_folder, tmp_path, monkeypatch,
                                                             capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("no map")
    (tmp_path / "two.txt").write_text("ground\nhouse\n")
    ClassMap(("a", "b", "c"), ignore_index=254).write(tmp_path / "two.json")
    assert train_tiny(tiny_folder, tmp_path / "run", *flags) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and all(word in error for word in words)
    assert not (tmp_path / "run").exists()
