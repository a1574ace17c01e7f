"""The ledger command: the shares of each loss, what it says of them, its defaults and refusals."""

import json

import numpy as np
import pytest
from PIL import Image

from minisegnet import ledger, plots
from minisegnet.datasets import ClassMap, DataLoader, Resize, open_dataset
from minisegnet.errors import run_command
from minisegnet.imbalance.gradient_ledger import Ledger, gradient_ledger
from minisegnet.imbalance.weighting import class_weights
from minisegnet.losses import Criterion
from minisegnet.models import build_model
from minisegnet.training.checkpoint import load_model, save_checkpoint
from minisegnet.training.evaluation import enlarged_softmax

NAMES = ["ground", "house", "pool"]
UNIFORM, TRAINED = "uniform prediction", "prediction of the model"


@pytest.fixture
def data(tmp_path):
    """Six pictures to train on, 32x48 with three classes, some pixels ignored."""
    root, rng = tmp_path / "data", np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2)):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for i in range(count):
            mask = np.zeros((32, 48), np.uint8)
            mask[8:24, 8:20 + i] = 1
            mask[12:13, 28:32 + i] = 2
            mask[:1 + i] = 255
            image = (mask[..., None] * 60 + rng.integers(0, 60, (32, 48, 3))).astype(np.uint8)
            Image.fromarray(image).save(root / split / "images" / f"{i}.png")
            Image.fromarray(mask).save(root / split / "masks" / f"{i}.png")
    (root / "classes.txt").write_text("\n".join(NAMES))
    return root


@pytest.fixture(autouse=True)
def at_home_without_pictures(tmp_path, monkeypatch):
    """Drawing takes longer than all the rest; one test draws."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plots, "save", lambda figure, path: path.write_bytes(b"picture"))
    monkeypatch.setattr(ledger, "ledgers_side_by_side", lambda *arguments: None)


def save_run(folder, data, *, names=NAMES, **config):
    """Save an untrained model that predicts every class somewhere; return the run folder."""
    model = build_model("mini", len(names), seed=0)
    model.classifier.params["weight"] *= 100
    folder.mkdir(parents=True)
    save_checkpoint(folder / "best.npz", model, meta={
        "epoch": 1, "image_size": [32, 48],
        "classes": {"names": list(names), "ignore_index": 255, "pixels": [1] * len(names),
                    "map": ClassMap(names, excluded={255: "void"}).to_dict()},
        "config": {"data": str(data), "layout": "auto", "class_weights": "none", **config}})
    return folder


def run(*flags):
    return run_command(ledger.main, [str(flag) for flag in flags])


def results(folder):
    return json.loads((folder / "ledger.json").read_text())


def batches(data, size=8):
    dataset = open_dataset(data)
    return list(DataLoader(dataset, size, shuffle=True, num_workers=0,
                           transform=Resize((32, 48))).batches(1)), dataset.check()


def test_at_the_uniform_prediction_ce_and_focal_share_out_as_the_pixels(data, capsys):
    assert run("--data", data) == 0
    content = results(data.parent / "ledgers" / "data")
    [batch], statistics = batches(data)
    frequency = np.bincount(batch.target[batch.target != 255], minlength=3) / (
        batch.target != 255).sum()
    np.testing.assert_allclose(content["share_of_pixels"], frequency)
    uniform = {name: books["share_by_target"] for name, books in
               content["states"][UNIFORM].items()}
    assert list(uniform) == ["ce", "focal:none", "weighted", "focal", "dice", "combined"]
    weighted = frequency * class_weights(statistics, "sqrt")
    for name in ("ce", "focal:none"):
        np.testing.assert_allclose(uniform[name], frequency, atol=1e-7)
    for name in ("weighted", "focal"):
        np.testing.assert_allclose(uniform[name], weighted / weighted.sum(), atol=1e-7)
    out = capsys.readouterr().out
    assert "uniform prediction focal:none has exactly the shares of ce" in out
    assert "uniform prediction focal has exactly the shares of weighted" in out
    assert out.count("exactly") == 2
    assert list(content["states"]) == [UNIFORM]


def test_says_nothing_of_equal_shares_where_they_are_not(data, capsys):
    assert run("--data", data, "--losses", "ce", "weighted", "dice", "focal:enet") == 0
    assert "exactly" not in capsys.readouterr().out


def test_the_models_prediction_is_taken_at_full_size_on_each_batch(data, tmp_path):
    folder = save_run(tmp_path / "run", data)
    assert run(folder, "--losses", "ce", "dice:none", "--batch-size", 4) == 0
    content = results(folder / "ledger")
    model, _ = load_model(folder / "best.npz")
    for name, criterion in (("ce", Criterion("ce")), ("dice:none", Criterion("dice"))):
        books = []
        for batch in batches(data, 4)[0]:
            probs = enlarged_softmax(model.eval().forward_coarse(batch.images), (32, 48))
            books.append(gradient_ledger(criterion, np.log(probs), batch.target))
        found = content["states"][TRAINED][name]
        assert len(books) == 2
        for key in ("share_by_target", "share_by_logit"):
            np.testing.assert_allclose(
                found[key], np.mean([getattr(each, key) for each in books], axis=0), rtol=1e-4)
        assert found["loss"] == pytest.approx(np.mean([each.loss for each in books]), rel=1e-4)
        np.testing.assert_allclose(np.sum(found["matrix"], axis=1), found["share_by_target"])


def test_equal_shares_are_equal_in_every_class_and_part_where_they_differ_most():
    uniform = {"a": np.array([0.5, 0.3, 0.2]), "b": np.array([0.5 + 1e-9, 0.3, 0.2]),
               "c": np.array([0.5, 0.2, 0.3])}
    trained = {"a": np.array([0.1, 0.5, 0.4]), "b": np.array([0.1, 0.25, 0.65]), "c": np.ones(3)}
    assert ledger.notes_on({UNIFORM: uniform, TRAINED: trained}, np.ones(3), NAMES) == [
        "at the uniform prediction b has exactly the shares of a (largest difference 1e-09); at "
        "the model's they differ, most in house, by 25 percentage points"]


def test_a_run_brings_its_data_and_settings_and_flags_override_them(data, tmp_path):
    folder = save_run(tmp_path / "run", data, class_weights="enet", focal_gamma=0.0,
                      label_smoothing=0.2, batch_size=3, seed=5)
    losses = ("--losses", "weighted", "focal:none", "ce")
    statistics = open_dataset(data).check()
    assert run(folder, *losses) == 0
    content = results(folder / "ledger")
    assert [content["settings"][key] for key in ("batch_size", "seed")] == [3, 5]
    np.testing.assert_allclose(content["weights"]["weighted"], class_weights(statistics, "enet"))
    assert content["weights"]["ce"] is None and content["weights"]["focal:none"] is None
    uniform = content["states"][UNIFORM]
    assert uniform["focal:none"]["loss"] == pytest.approx(np.log(3), rel=1e-6)  # gamma is 0
    # Smoothing takes a fifth away from ce's gradient, and leaves focal alone.
    assert uniform["ce"]["total"] == pytest.approx(0.8 * uniform["focal:none"]["total"], rel=1e-5)

    assert run(folder, *losses, "--class-weights", "inverse", "--label-smoothing", 0) == 0
    content = results(folder / "ledger")
    np.testing.assert_allclose(content["weights"]["weighted"],
                               class_weights(statistics, "inverse"))
    uniform = content["states"][UNIFORM]
    assert uniform["ce"]["total"] == pytest.approx(uniform["focal:none"]["total"], rel=1e-5)


def test_for_a_run_without_weights_weighted_has_those_of_sqrt(data, tmp_path):
    assert run(save_run(tmp_path / "run", data), "--losses", "ce", "weighted") == 0
    np.testing.assert_allclose(results(tmp_path / "run" / "ledger")["weights"]["weighted"],
                               class_weights(open_dataset(data).check(), "sqrt"))


def test_classes_says_which_mask_values_are_classes(data, tmp_path):
    path = tmp_path / "map.json"
    ClassMap(["house", "ground"], [1, 0], excluded={2: "pool", 255: "void"}).write(path)
    assert run("--data", data, "--losses", "ce", "--classes", path) == 0
    content = results(tmp_path / "ledgers" / "data")
    [batch], _ = batches(data)
    house = np.sum(batch.target == 1) / np.sum(batch.target < 2)
    assert content["classes"] == ["house", "ground"]
    np.testing.assert_allclose(content["share_of_pixels"], [house, 1 - house])
    assert "map.json" in content["settings"]["classes"]


def test_by_logit_shares_out_by_logit(data, capsys):
    assert run("--data", data, "--losses", "ce", "--by", "logit") == 0
    share = results(data.parent / "ledgers" / "data")["states"][UNIFORM]["ce"]["share_by_logit"]
    out = capsys.readouterr().out
    assert "by logit class" in out
    [ground] = [line.split() for line in out.splitlines() if line.startswith("ground")]
    assert float(ground[2]) == pytest.approx(100 * share[0], abs=1e-3)


def test_batches_limits_the_pictures_taken(data, capsys):
    assert run("--data", data, "--losses", "ce", "--batch-size", 2, "--batches", 2) == 0
    assert "4 images at 32x48, batches of 2" in capsys.readouterr().out


def test_names_the_classes_that_no_batch_has(data, capsys):
    for path in (data / "train" / "masks").iterdir():
        mask = np.asarray(Image.open(path)).copy()
        mask[mask == 2] = 0
        Image.fromarray(mask).save(path)
    assert run("--data", data, "--losses", "ce") == 0
    assert "in none of these batches: pool" in capsys.readouterr().out


def test_every_batch_counts_the_same_whatever_its_gradient():
    one = Ledger(np.array([[1.0, 0], [0, 3]]), np.array([[1.0, 0], [0, -3]]), 1.0)
    other = Ledger(np.array([[40.0, 0], [0, 0]]), np.array([[-40.0, 0], [0, 0]]), 3.0)
    means = ledger.means([one, other])
    assert means["share_by_target"].tolist() == [0.625, 0.375]
    assert means["loss"] == 2 and means["total"] == 22
    assert means["matrix"].tolist() == [[0.625, 0], [0, 0.375]]
    assert means["signed"].tolist() == [[-0.375, 0], [0, -0.375]]


def test_the_table_goes_from_frequent_to_rare_and_adds_up_the_rare():
    shares = {"ce": np.array([0.06, 0.9, 0.04]), "dice": np.array([0.3, 0.4, 0.3])}
    books = {name: {"loss": 1.0, "total": 2.0} for name in shares}
    lines = ledger.table(NAMES, np.array([0.06, 0.9, 0.04]), books, shares,
                         np.array([True, False, True])).splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["house", "ground", "pool"]
    assert lines[2].split()[1:] == ["90.000", "90.000", "40.000"]
    assert lines[5].split() == ["=", "the", "2", "rare", "10.000", "10.000", "60.000"]


def stopped(capsys, *flags):
    assert run(*flags) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_refuses_what_cannot_be_compared(data, tmp_path, capsys):
    assert "'nothing' is not weighted or one of ce," in stopped(
        capsys, "--data", data, "--losses", "ce", "nothing")
    assert "are the same" in stopped(capsys, "--data", data, "--losses", "ce", "ce:none")
    assert "'no' is not one of none," in stopped(capsys, "--data", data, "--losses", "focal:no")
    assert "no folder" in stopped(capsys, "--data", tmp_path / "absent")
    assert "has no best.npz" in stopped(capsys, tmp_path)
    folder = save_run(tmp_path / "others", "elsewhere", names=["ground", "house", "pond"])
    assert "class 2 is 'pool' there and 'pond' here" in stopped(capsys, folder, "--data", data)
    folder = save_run(tmp_path / "smp", data, dice_mode="smp")
    assert "dice:none has no weights" in stopped(capsys, folder)
    assert run(folder, "--losses", "dice:none") == 0


def test_replaces_an_earlier_ledger_and_nothing_else(data, tmp_path, capsys):
    folder = tmp_path / "out"
    for losses in ("ce", "dice"):
        assert run("--data", data, "--losses", losses, "--output-dir", folder) == 0
    assert list(results(folder)["states"][UNIFORM]) == ["dice"]
    assert "holds no earlier ledger" in stopped(capsys, "--data", data, "--output-dir", data)
    assert sorted(path.name for path in data.iterdir()) == ["classes.txt", "train", "val"]


def test_on_real_pictures_weights_and_dice_turn_to_the_rare_classes(camvid_root, tmp_path):
    assert run("--data", camvid_root, "--image-size", 88, 120, "--batches", 3) == 0
    content = results(tmp_path / "ledgers" / camvid_root.resolve().name)
    rare = np.array(content["rare"])
    of_rare = {name: np.sum(books["share_by_target"], where=rare)
               for name, books in content["states"][UNIFORM].items()}
    assert of_rare["ce"] == pytest.approx(np.sum(content["share_of_pixels"], where=rare))
    assert of_rare["ce"] == pytest.approx(of_rare["focal:none"], rel=1e-5)
    assert 3 * of_rare["ce"] < of_rare["weighted"] < of_rare["dice"]


def test_no_picture_of_an_earlier_ledger_stays_beside_new_numbers(data, tmp_path, monkeypatch):
    flags = ("--data", data, "--losses", "ce", "--output-dir", tmp_path / "out")
    assert run(*flags) == 0

    def fail(figure, path):
        raise OSError("disk full")

    monkeypatch.setattr(plots, "save", fail)
    assert run(*flags) == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["ledger.json"]


def test_of_another_checkpoint_and_other_data_go_to_folders_of_their_own(data, tmp_path):
    folder = save_run(tmp_path / "run", data)
    (folder / "best.npz").rename(folder / "last.npz")
    assert run(folder / "last.npz", "--losses", "ce") == 0
    assert run(folder / "last.npz", "--data", data, "--losses", "ce") == 0
    assert sorted(path.name for path in folder.iterdir()) == [
        "last.npz", "ledger_last", "ledger_last_data"]


def test_draws_a_png_of_both_states(data, tmp_path, monkeypatch):
    monkeypatch.undo()
    assert run(save_run(tmp_path / "run", data)) == 0
    with Image.open(tmp_path / "run" / "ledger" / "ledger.png") as image:
        assert image.format == "PNG" and min(image.size) > 500
