"""The compare command: the same runs but for the loss, what it tells of them, what it refuses."""

import json
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_folders import NAMES, plain, record, write_run

from minisegnet import compare, train
from minisegnet.datasets import open_dataset
from minisegnet.errors import UserError, run_command
from minisegnet.imbalance.weighting import SCHEMES
from minisegnet.plots.comparison import pictures_with
from minisegnet.training import run_folder
from minisegnet.training.checkpoint import save_checkpoint
from minisegnet.training.trained_model import load_checked


@pytest.fixture(scope="module")
def tiny_data(tmp_path_factory):
    """Four training and four validation pictures, 16x24 with three classes."""
    root, rng = tmp_path_factory.mktemp("data") / "tiny", np.random.default_rng(0)
    for split in ("train", "val"):
        for i in range(4):
            mask = np.zeros((16, 24), np.uint8)
            mask[4:12, 4:12] = 1
            mask[6:10, 16:18 + i % 2] = 2 if i else 1  # the first has no pool
            image = (mask[..., None] * 60 + rng.integers(0, 60, (16, 24, 3))).astype(np.uint8)
            for kind, picture in (("images", image), ("masks", mask)):
                path = root / split / kind / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(path)
    (root / "classes.txt").write_text("\n".join(NAMES))
    return root


@pytest.fixture(scope="module")
def comparison(tiny_data, tmp_path_factory):
    """A real comparison, and the flags that made it."""
    out = tmp_path_factory.mktemp("comparison") / "x"
    flags = ["--losses", "ce", "weighted", "--seeds", "1", "--data", str(tiny_data), "--epochs",
             "1", "--batch-size", "2", "--num-workers", "0", "--output-dir", str(out)]
    assert run_command(compare.main, flags) == 0
    return out, flags


@pytest.fixture
def undrawn(monkeypatch):
    """Leave out the pictures, which are the slow part."""
    monkeypatch.setattr(compare.plots, "save", lambda figure, path: path.write_bytes(b""))
    for name in ("compared_curves", "compared_classes", "grid", "pictures_with"):
        monkeypatch.setattr(compare.plots, name, lambda *arguments, **options: [])
    monkeypatch.setattr(compare, "predictions_of", lambda folder, samples: [])


@pytest.fixture
def calls(monkeypatch, undrawn):
    """Put a stub in the place of training; return the list of what it is called with."""
    seen = []

    def main(argv):
        seen.append(list(argv))
        if argv[0] == "--resume":
            config = tomllib.loads((Path(argv[1]) / "config.toml").read_text())
            write_run(argv[1], **config)
        else:
            settings = train.parse_settings(argv)
            write_run(settings.output_dir, **plain(vars(settings)))
        return 0

    monkeypatch.setattr(train, "main", main)
    return seen


def run(*flags):
    return run_command(compare.main, [str(flag) for flag in flags])


def flag_of(argv, name):
    return next(word.partition("=")[2] for word in argv if word.startswith(f"--{name}="))


def test_a_comparison_leaves_its_runs_a_table_and_pictures(comparison):
    out, _ = comparison
    assert {path.name for path in out.iterdir()} == {*compare.FILES, "ce_seed0", "weighted_seed0"}
    for name in ("curves.png", "classes.png", "grid.png"):
        with Image.open(out / name) as image:
            assert image.format == "PNG" and min(image.size) > 250
    table = (out / "table.md").read_text().splitlines()
    assert table[2].startswith("| ce | ce | none | 0.")
    assert table[3].startswith("| weighted | ce | sqrt | 0.")
    found = json.loads((out / "comparison.json").read_text())
    assert found["classes"] == list(NAMES) and found["rare"] == ["pool"]
    assert [row["name"] for row in found["rows"]] == ["ce", "weighted"]
    log = run_folder.read_log(out / "ce_seed0" / "log.jsonl")
    assert found["rows"][0]["runs"][0]["iou"] == log[-1]["iou"]


def test_the_runs_differ_in_nothing_but_what_is_compared(comparison):
    out, _ = comparison
    a, b = (tomllib.loads((out / name / "config.toml").read_text())
            for name in ("ce_seed0", "weighted_seed0"))
    assert {key for key in a if a[key] != b[key]} == {"class_weights"}
    assert (a["loss"], a["class_weights"], b["class_weights"]) == ("ce", "none", "sqrt")


def test_the_same_command_again_trains_nothing_and_writes_the_same(comparison, calls, capsys):
    out, flags = comparison
    before = (out / "comparison.json").read_bytes()
    assert run(*flags) == 0
    assert calls == [] and capsys.readouterr().out.count("is complete") == 2
    assert (out / "comparison.json").read_bytes() == before


def test_runs_of_another_size_are_not_kept(comparison, calls):
    _, flags = comparison
    assert run(*flags, "--scale", 0.5) == 2 and run(*flags, "--image-size", 8, 12) == 2
    assert run(*flags, "--image-size", 16, 24) == 0  # the size of the pictures, said aloud
    assert calls == []


def test_runs_of_other_weights_in_the_same_file_are_not_kept(tiny_data, tmp_path, capsys):
    weights = tmp_path / "w.json"
    flags = ["--losses", "weighted", "--class-weights", weights, "--seeds", 1, "--data",
             tiny_data, "--epochs", 1, "--batch-size", 2, "--output-dir", tmp_path / "x"]
    weights.write_text("[1, 2, 3]")
    assert run(*flags) == 0
    weights.write_text("[1, 5, 3]")
    assert run(*flags) == 2
    assert "other numbers" in capsys.readouterr().err


def test_names_stand_for_losses_and_weights_and_seeds_follow_the_first(tmp_path, calls, capsys):
    assert run("--losses", "ce", "weighted", "focal", "ce:enet", "dice:none", "--seeds", 2,
               "--class-weights", "median", "--seed", 5, "--epochs", 3, "--output-dir",
               tmp_path / "x") == 0
    names = ["ce", "weighted", "focal", "ce-enet", "dice-none"]
    trained = [(flag_of(argv, "loss"), flag_of(argv, "class-weights")) for argv in calls]
    assert trained == 2 * [("ce", "none"), ("ce", "median"), ("focal", "median"), ("ce", "enet"),
                           ("dice", "none")]
    assert [flag_of(argv, "seed") for argv in calls] == 5 * ["5"] + 5 * ["6"]
    assert [flag_of(argv, "output-dir") for argv in calls] == [
        str(tmp_path / "x" / f"{name}_seed{seed}") for seed in (5, 6) for name in names]
    assert all(train.parse_settings(argv).epochs == 3 for argv in calls)
    headings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("== ")]
    assert headings[3] == "== 4/10  ce:enet, seed 5: ce, class weights enet"


def test_an_interrupted_comparison_goes_on_where_it_was(tmp_path, calls):
    flags = ["--losses", "ce", "focal", "dice", "--seeds", 1, "--epochs", 3, "--output-dir",
             tmp_path]
    for loss, weights, log in (("ce", "none", None), ("focal", "sqrt", [record(1)])):
        write_run(tmp_path / f"{loss}_seed0", loss=loss, class_weights=weights, epochs=3, log=log)
    assert run(*flags) == 0
    assert calls[0] == ["--resume", str(tmp_path / "focal_seed0")]
    assert len(calls) == 2 and flag_of(calls[1], "loss") == "dice"


def test_a_run_whose_log_lacked_only_its_last_line_is_kept(tmp_path, monkeypatch, undrawn):
    folder = write_run(tmp_path / "dice_seed0", loss="dice", epochs=2, log=[record(1)])

    def resume(argv):
        write_run(folder, loss="dice", epochs=2)  # the line is in last.npz
        raise UserError("the run is complete")

    monkeypatch.setattr(train, "main", resume)
    assert run("--losses", "dice", "--seeds", 1, "--epochs", 2, "--output-dir", tmp_path) == 0
    assert (tmp_path / "table.md").exists()


@pytest.mark.parametrize("log", ["", '{"epoch": 1, "tr'], ids=["empty", "cut off"])
def test_a_log_that_says_nothing_is_of_an_unfinished_run(tmp_path, calls, log):
    folder = write_run(tmp_path / "dice_seed0", loss="dice", epochs=1)
    (folder / "log.jsonl").write_text(log)
    assert run("--losses", "dice", "--seeds", 1, "--epochs", 1, "--output-dir", tmp_path) == 0
    assert calls == [["--resume", str(folder)]]


def test_a_run_that_stopped_early_is_complete(tmp_path, calls):
    write_run(tmp_path / "dice_seed0", loss="dice", epochs=9, log=[record(1), record(2)],
              progress={"stopped_early": True})
    assert run("--losses", "dice", "--seeds", 1, "--epochs", 9, "--output-dir", tmp_path) == 0
    assert calls == []


def test_an_interrupt_ends_the_comparison_with_its_code(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "main", lambda argv: 130)
    assert run("--losses", "ce", "dice", "--output-dir", tmp_path / "x") == 130
    assert "same command" in capsys.readouterr().out and not (tmp_path / "x").exists()


def test_a_run_that_fails_is_named_in_one_line(tmp_path, monkeypatch, capsys):
    def fail(argv):
        raise UserError("the loss is nan at step 3; lower --lr")

    monkeypatch.setattr(train, "main", fail)
    assert run("--losses", "dice", "ce", "--output-dir", tmp_path / "x") == 2
    error = capsys.readouterr().err
    assert error == "error: dice, seed 0: the loss is nan at step 3; lower --lr\n"


@pytest.mark.parametrize("flags, words", [
    (["--losses", "ce", "ce:none"], ["ce and ce:none are the same"]),
    (["--losses", "ce", "weighted", "--class-weights", "none"], ["the same", "none"]),
    (["--losses", "ce", "ce"], ["the same"]),
    (["--losses", "ce", "hinge"], ["--losses hinge", "dice"]),
    (["--losses", "ce", "ce:cubic"], ["cubic", *SCHEMES]),
    (["--losses", "ce", "dice", "--class-weights", "cubic"], ["cubic", "sqrt"]),
    (["--losses", "ce", "dice", "--class-weights", "no.json"], ["no.json"]),
    (["--losses", "ce", "dice", "--loss", "ce"], ["--loss", "--losses"]),
    (["--losses", "ce", "dice", "--loss=ce"], ["--loss", "--losses"]),
    (["--losses", "ce", "dice", "--resume", "x"], ["--resume", "again"]),
    (["--losses", "ce", "dice", "--label-smoothing", "0.1"], ["--losses dice", "smoothing"]),
    (["--losses", "ce", "dice", "--no-such-flag", "3"], ["--no-such-flag"]),
    (["--losses", "ce", "dice", "--lr", "-1"], ["--lr", "-1"]),
    (["--losses", "ce", "dice", "--seeds", "0"], ["--seeds", "0"]),
    (["--losses"], ["--losses"]),
    (["--losses", "ce", "dice", "--output-dir", "file"], ["file is not a folder"]),
    (["--losses", "ce", "dice", "--output-dir", "run"], ["config.toml", "--output-dir"]),
    (["--losses", "ce", "dice", "--output-dir", "foreign"], ["curves.png", "--output-dir"]),
    (["--losses", "ce", "dice", "--output-dir", "."], ["dice_seed0", "--epochs 5, not 8"]),
    (["--losses", "focal", "--output-dir", "."], ["focal_seed0", "not the folder of a run"]),
    ([], ["--losses", "two run folders"]), (["run"], ["two run folders"]),
    (["run", "run/../run"], ["twice"]), (["run", "nowhere"], ["nowhere", "config.toml"]),
    (["run", "foreign"], ["foreign", "config.toml"]), (["run", "cut"], ["cut", "log.jsonl"]),
    (["run", "unvalidated"], ["unvalidated", "no validated epoch"]),
    (["run", "classes"], ["classes has other classes", "pond"]),
    (["run", "pixels"], ["run", "pixels", "other pictures"]),
    (["run", "dice_seed0", "--epochs", "3"], ["--epochs"]),
    (["run", "dice_seed0", "--seeds", "3"], ["--seeds"]),
    (["run", "dice_seed0", "--output-dir", "foreign"], ["curves.png", "--output-dir"]),
    (["run", "dice_seed0", "--output-dir", "run"], ["config.toml", "--output-dir"]),
])
def test_bad_input_is_one_line_before_anything_is_done(tmp_path, monkeypatch, calls, capsys,
                                                       flags, words):
    monkeypatch.chdir(tmp_path)
    write_run("run", epochs=2)
    write_run("dice_seed0", loss="dice", epochs=5)
    write_run("cut")
    (tmp_path / "cut" / "log.jsonl").write_text('{"epoch": 1')
    write_run("unvalidated", log=[{"epoch": 1, "train_loss": 1.0}])
    write_run("classes", names=("ground", "house", "pond"))
    write_run("pixels", pixels=(90, 900, 10))
    for path in ("foreign/curves.png", "focal_seed0/notes.txt", "file"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("mine")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert run(*flags) == 2
    captured = capsys.readouterr()
    error = captured.err.strip()
    assert error.startswith("error: ") and "\n" not in error and captured.out == ""
    assert all(word in error for word in words), error
    assert calls == []
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_what_does_not_change_the_numbers_may_differ_from_the_run_that_is_there(tmp_path, calls):
    write_run(tmp_path / "dice_seed0", loss="dice", epochs=2, num_workers=1, save_every=1)
    assert run("--losses", "dice", "--seeds", 1, "--epochs", 2, "--num-workers", 0,
               "--output-dir", tmp_path) == 0
    assert calls == []


def test_runs_are_taken_as_they_are_and_their_budgets_told(tmp_path, undrawn, capsys):
    a = write_run(tmp_path / "a", epochs=2)
    b = write_run(tmp_path / "b", epochs=4, image_size=[32, 48], log=[record(1), record(2),
                                                                      record(3)])
    assert run(a, b, "--output-dir", tmp_path / "x") == 0
    text = capsys.readouterr().out
    assert "Not the same epochs: a 2 of 2, b 3 of 4." in text
    assert "Not the same sizes in training: a 128x160, b 32x48." in text
    assert text.index("\na ") < text.index("\nb ") and ".." not in text.partition("\nOne")[0]
    assert "Not the same" in (tmp_path / "x" / "table.md").read_text()


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path, undrawn, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run("a/run"), write_run("b/run")
    assert run("a/run", "b/run") == 0
    assert "\na/run " in capsys.readouterr().out
    assert (tmp_path / "comparisons" / "run_vs_run" / "table.md").exists()


def test_without_the_data_there_is_all_but_the_grid(tmp_path, undrawn, capsys):
    runs = [write_run(tmp_path / name, data=str(tmp_path / "gone")) for name in "ab"]
    (tmp_path / "x").mkdir()
    for name in compare.FILES:  # of an earlier comparison
        (tmp_path / "x" / name).write_text("old")
    assert run(*runs, "--output-dir", tmp_path / "x") == 0
    text = capsys.readouterr().out
    assert "no grid.png: there is no folder" in text and "grid" not in text.splitlines()[-1]
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == sorted(compare.FILES[:4])


def test_without_the_classes_of_training_there_is_no_grid(tmp_path, tiny_data, undrawn, capsys):
    runs = [write_run(tmp_path / name, data=str(tiny_data), names=("ground", "house", "pond"))
            for name in "ab"]
    assert run(*runs, "--output-dir", tmp_path / "x") == 0
    assert "no grid.png" in (text := capsys.readouterr().out) and "class 2 is 'pool'" in text


def test_spoilt_weights_are_named_instead_of_drawn(comparison, tmp_path, capsys):
    folders = [shutil.copytree(comparison[0] / name, tmp_path / name)
               for name in ("ce_seed0", "weighted_seed0")]
    model, meta = load_checked(folders[1] / "best.npz")
    model.classifier.params["bias"][0] = np.nan
    save_checkpoint(folders[1] / "best.npz", model, meta=meta)
    assert run(*folders, "--output-dir", tmp_path / "x") == 0
    assert "weighted_seed0/best.npz is spoilt" in capsys.readouterr().out
    assert not (tmp_path / "x" / "grid.png").exists()


def test_the_grid_shows_the_first_seeds_best_weights_on_pictures_with_rare_classes(
        tiny_data, tmp_path, calls, monkeypatch):
    shown = {}

    def predictions_of(folder, samples):
        shown[folder] = [sample.name for sample in samples]
        return [sample.mask for sample in samples]

    monkeypatch.setattr(compare, "predictions_of", predictions_of)
    monkeypatch.setattr(compare.plots, "pictures_with", pictures_with)
    assert run("--losses", "dice", "focal", "--seeds", 2, "--epochs", 1, "--batch-size", 2,
               "--data", tiny_data, "--output-dir", tmp_path / "x") == 0
    assert list(shown) == [tmp_path / "x" / f"{name}_seed0" for name in ("dice", "focal")]
    # The pool is rare, and in all but the first; the last is needed to make up the number.
    assert all(names == ["1", "2", "3", "0"] for names in shown.values())


def test_predictions_are_made_at_the_size_of_training_and_shown_at_that_of_the_masks(
        tiny_data, comparison, tmp_path):
    sizes = []
    original = compare.predict_batch

    def predict_batch(model, images, size):
        sizes.append((images.shape, tuple(size), model.training))
        return original(model, images, size)

    samples = [open_dataset(tiny_data, split="val")[0]]
    folder = comparison[0] / "ce_seed0"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "predict_batch", predict_batch)
        model, meta = load_checked(folder / "best.npz")
        save_checkpoint(tmp_path / "best.npz", model, meta={**meta, "image_size": [32, 40]})
        predicted = compare.predictions_of(tmp_path, samples)
    assert sizes == [((1, 32, 40, 3), (16, 24), False)]
    assert predicted[0].shape == (16, 24) and predicted[0].dtype == np.uint8


def test_rare_classes_are_named_rarest_first(tmp_path, undrawn, capsys):
    runs = [write_run(tmp_path / name, pixels=(985, 8, 7)) for name in "ab"]
    assert run(*runs, "--output-dir", tmp_path / "x") == 0
    assert "(pool, house); frequent: of all others." in capsys.readouterr().out
    found = json.loads((tmp_path / "x" / "comparison.json").read_text())
    assert found["rare"] == ["pool", "house"] and found["rare_is"].startswith("below 1 %")


def test_where_no_class_is_rare_there_is_a_dash_and_a_word(tmp_path, capsys):
    runs = [write_run(tmp_path / name, pixels=(300, 300, 400), epochs=2) for name in "ab"]
    assert run(*runs, "--output-dir", tmp_path / "x") == 0
    text = capsys.readouterr().out
    row = next(line for line in text.splitlines() if line.startswith("a "))
    assert row.split()[2:6] == ["0.500", "0.500", "0.500", "-"]  # frequent, rare
    assert "No class is rare" in text
    found = json.loads((tmp_path / "x" / "comparison.json").read_text())
    assert found["rare"] == [] and found["rare_is"] == "no class"
    assert found["rows"][0]["runs"][0]["rare_iou"] is None
    assert (tmp_path / "x" / "curves.png").exists() and (tmp_path / "x" / "classes.png").exists()


def test_the_verdict_of_each_row_stands_below_the_table(tmp_path, undrawn, capsys):
    flat = [record(epoch, (0.3, 0.0, 0.0), train_loss=1.1, val_loss=1.1) for epoch in (1, 2, 3)]
    runs = [write_run(tmp_path / "stuck", epochs=3, log=flat),
            write_run(tmp_path / "ok", epochs=3)]
    assert run(*runs, "--output-dir", tmp_path / "x") == 0
    text = capsys.readouterr().out
    assert "stuck (seed 0): Not learning: training loss stays near ln K = 1.10" in text
    assert "ok (seed 0)" not in text
    found = json.loads((tmp_path / "x" / "comparison.json").read_text())
    assert [len(row["runs"][0]["verdict"]) for row in found["rows"]] == [1, 0]
