"""The command `analyze`: what it prints and leaves for all kinds of data, and training takes."""

import json

import numpy as np
import pytest
from PIL import Image

from minisegnet import analyze, plots, train
from minisegnet.datasets import FloorPlans, floorplans, open_dataset, read_class_map
from minisegnet.errors import run_command
from minisegnet.plots import figures

H, W = 32, 48
FILES = {"report.json", "class_map.json", "class_weights.json", "class_distribution.png",
         "class_weights.png", "augmentation.png"}


def house(i):
    """Return a mask (H, W) of ground 0, a wall 1 and a door 2 somewhere."""
    mask = np.zeros((H, W), np.uint8)
    mask[4:20, i:i + 24] = 1
    mask[20:24, 8:10 + i] = 2
    return mask


def write_folder(root, masks, *, names=None, val=None, palette=None):
    """Write masks, arrays or Pillow pictures, and images in the folder layout; return `root`."""
    for split, of_split in (("train", masks), ("val", masks[:4] if val is None else val)):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for i, mask in enumerate(of_split):
            picture = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
            if palette is not None:
                picture.putpalette(palette)
            picture.save(root / split / "masks" / f"{i:02}.png")
            Image.new("RGB", picture.size, (40 * (i % 6), 99, 9)).save(
                root / split / "images" / f"{i:02}.jpg")
    if names:
        (root / "classes.txt").write_text("".join(f"{name}\n" for name in names))
    return root


@pytest.fixture(autouse=True)
def quick_pictures(monkeypatch):
    """Drawing takes longer than all the rest; one test draws."""
    monkeypatch.setattr(plots, "save", lambda figure, path: path.write_bytes(b"picture"))


def analysed(capsys, tmp_path, data, *flags):
    """Run the command; return what it printed, its report and its folder."""
    folder = tmp_path / "analysis"
    argv = ["--data", str(data), "--output-dir", str(folder), *map(str, flags)]
    assert run_command(analyze.main, argv) == 0
    return capsys.readouterr().out, json.loads((folder / "report.json").read_text()), folder


def assert_refused(capsys, argv, *words):
    """The command ends with code 2 and one line that has all `words` in it."""
    assert run_command(analyze.main, list(map(str, argv))) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    for word in words:
        assert str(word) in message


def kinds(report):
    return [suspicion["kind"] for suspicion in report["suspicions"]]


def train_with(printed, *flags):
    """Run the command line that `analyze` printed, as a dry run."""
    words = printed.splitlines()[-1].removeprefix("next: python -m minisegnet.train ").split()
    return run_command(train.main, [*words, "--dry-run", *flags])


# ---------------------------------------------------------------- a clean data set


def test_a_clean_folder_by_hand(tmp_path, capsys):
    data = write_folder(tmp_path / "houses", [house(i) for i in range(8)],
                        names=("ground", "wall", "door"))
    printed, report, folder = analysed(capsys, tmp_path, data)
    assert {path.name for path in folder.iterdir()} == FILES
    assert "8 masks to train, 4 masks to validate, 32x48" in printed
    assert "nothing suspicious" in printed and report["suspicions"] == []

    doors = sum(4 * (2 + i) for i in range(8))  # px: 176
    of_door = report["values"][2]
    assert of_door["class"] == "door" and of_door["train"] == {
        "pixels": doors, "share_of_all": doors / (8 * H * W), "share_of_valid":
        doors / (8 * H * W), "images": 8, "objects": 8, "mean_object_pixels": doors / 8,
        "mean_object_cells": doors / 8 / 256, "objects_below_a_cell": 1.0}
    ground = 8 * (H * W - 16 * 24) - doors
    assert report["imbalance_ratio"] == ground / doors
    assert (report["most_frequent"], report["rarest"]) == ("ground", "door")
    assert report["splits"]["train"]["ignored"] == 0
    unweighted = report["schemes"]["none"]
    assert unweighted["smoothed_p_lightest"] == pytest.approx(0.9 + 0.1 / 3)
    assert unweighted["smoothed_p_heaviest"] == pytest.approx(0.1 / 3)
    row = next(line for line in printed.splitlines() if line.startswith("2 "))
    assert row.split() == ["2", "door", "176", "1.43%", "8", "8", "22", "0.1", "100%", "0.91%"]

    weights = json.loads((folder / "class_weights.json").read_text())
    assert weights["scheme"] == "sqrt" and weights["why"]
    assert weights["weights"] == pytest.approx({
        "ground": 1, "wall": (ground / (8 * 16 * 24)) ** 0.5, "door": (ground / doors) ** 0.5})
    classes = read_class_map(folder / "class_map.json")
    assert classes.names == ("ground", "wall", "door") and classes.values == (0, 1, 2)
    assert train_with(printed) == 0


def test_no_line_is_too_long_and_lists_are_cut_short(tmp_path, capsys):
    stripes = np.arange(60, dtype=np.uint8).repeat(48).reshape(60, 48)
    data = write_folder(tmp_path / "stripes", [stripes] * 5,
                        names=[f"a very long name {'of a class ' * 9} {k}" for k in range(60)])
    printed, report, _ = analysed(capsys, tmp_path, data)
    assert len(report["values"]) == 60 and "nothing suspicious" in printed
    assert len(printed.splitlines()) < 100
    assert max(len(line) for line in printed.splitlines()[1:-2]) < 110


# ---------------------------------------------------------------- mistakes


def test_each_planted_mistake_is_found_and_the_rest_still_counted(tmp_path, capsys):
    masks = [house(i) for i in range(12)]
    masks[3] = masks[3][:20]  # another size than its image, which is written below
    masks[5][0, 0] = 9
    masks[6][:] = 255
    data = write_folder(tmp_path / "houses", masks, names=("ground", "wall", "door", "window"),
                        val=[house(i) for i in range(4)])
    Image.new("RGB", (W, H)).save(data / "train" / "images" / "03.jpg")
    (data / "train" / "masks" / "07.png").write_bytes(b"no picture")
    Image.fromarray(np.stack([masks[8]] * 3, axis=-1)).save(data / "train" / "masks" / "08.png")
    palette = Image.fromarray(masks[9])
    palette.putpalette(bytes(range(256)) * 3)
    palette.save(data / "train" / "masks" / "09.png")
    printed, report, folder = analysed(capsys, tmp_path, data)
    assert set(kinds(report)) == {"unreadable", "size", "grey as rgb", "all ignored", "undefined",
                                  "absent", "palette"}
    for file in ("03.png", "05.png", "06.png", "07.png", "08.png"):
        assert f"masks/{file}" in printed
    assert report["splits"]["train"]["masks"] == 11
    assert [each["value"] for each in report["values"]] == [0, 1, 2, 9, 255]
    classes = read_class_map(folder / "class_map.json")
    assert classes.names == ("ground", "wall", "door")
    assert classes.excluded == {3: "absent: window", 9: "undefined", 255: "void"}


def test_black_and_white_masks_become_two_classes_that_training_takes(tmp_path, capsys):
    data = write_folder(tmp_path / "bw", [255 * (house(i) == 1).astype(np.uint8)
                                          for i in range(8)])
    printed, report, folder = analysed(capsys, tmp_path, data)
    assert kinds(report) == ["0 and 255"]
    assert list(json.loads((folder / "class_weights.json").read_text())["weights"]) == \
        ["background", "object"]
    assert train_with(printed) == 0


def test_ids_with_gaps_become_classes_that_training_takes(tmp_path, capsys):
    masks = [np.array([10, 20, 200], np.uint8)[house(i)] for i in range(8)]
    data = write_folder(tmp_path / "gaps", masks)
    printed, _, folder = analysed(capsys, tmp_path, data)
    classes = read_class_map(folder / "class_map.json")
    assert classes.names == ("class 10", "class 20", "class 200")
    assert train_with(printed) == 0
    dataset = open_dataset(data, classes=folder / "class_map.json")
    assert (dataset[0].mask == house(0)).all()


def test_colours_become_classes_that_training_takes(tmp_path, capsys):
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 216, 252]], np.uint8)
    data = write_folder(tmp_path / "rgb", [colours[house(i)] for i in range(8)])
    printed, report, folder = analysed(capsys, tmp_path, data)
    assert kinds(report) == ["rgb"] and "#000000, #00d8fc, #ff0000" in printed
    assert report["values"][1]["value"] == [0, 216, 252]
    assert train_with(printed) == 0
    assert (folder / "augmentation.png").exists()


@pytest.mark.parametrize("how", ["ids with colours", "colours", "palette files"])
def test_declared_colours_name_the_classes_of_rgb_masks(tmp_path, capsys, how):
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 216, 252], [9, 9, 9]], np.uint8)
    keys = range(4) if how == "ids with colours" else map(tuple, colours.tolist())
    names = ("ground", "wall", "door", "")
    table = {key: (name, tuple(colour)) for key, name, colour in
             zip(keys, names, colours.tolist())}
    (tmp_path / "cmap.py").write_text(f"CMAP = {table}\n")
    masks = [house(i) for i in range(8)]
    if how == "palette files":
        data = write_folder(tmp_path / "x", masks, palette=colours.tobytes())
    else:
        data = write_folder(tmp_path / "x", [colours[mask] for mask in masks])
    printed, report, folder = analysed(capsys, tmp_path, data, "--classes", tmp_path / "cmap.py")
    assert set(kinds(report)) <= {"palette"} and (folder / "augmentation.png").exists()
    assert list(json.loads((folder / "class_weights.json").read_text())["weights"]) == \
        ["ground", "wall", "door"]
    assert train_with(printed) == 0


def test_a_table_with_empty_names_excludes_and_reports(tmp_path, capsys):
    (tmp_path / "cmap.py").write_text('CMAP = {0: ("ground", None), 1: ("", None), '
                                      '2: ("door", None), 7: ("window", None)}\n')
    data = write_folder(tmp_path / "x", [house(i) for i in range(8)])
    _, report, folder = analysed(capsys, tmp_path, data, "--classes", tmp_path / "cmap.py")
    assert kinds(report) == ["unnamed", "absent"]
    classes = read_class_map(folder / "class_map.json")
    assert classes.names == ("ground", "door")
    assert classes.excluded == {1: "unnamed", 7: "absent: window"}
    assert report["splits"]["train"]["ignored"] == pytest.approx(16 * 24 / (H * W))


def test_without_two_classes_there_is_a_report_and_nothing_to_train_with(tmp_path, capsys):
    data = write_folder(tmp_path / "x", [np.full((H, W), 3, np.uint8)] * 6)
    printed, report, folder = analysed(capsys, tmp_path, data)
    assert kinds(report) == ["one value"] and "only one class occurs" in printed
    assert [path.name for path in folder.iterdir()] == ["report.json"]


@pytest.mark.parametrize("empty", ["train", "val"])
def test_a_split_of_ignored_pixels_only_is_analysed(tmp_path, capsys, empty):
    void, masks = [np.full((H, W), 255, np.uint8)] * 3, [house(i) for i in range(8)]
    data = write_folder(tmp_path / "x", *((void,) if empty == "train" else (masks,)),
                        val=void if empty == "val" else masks)
    printed, report, folder = analysed(capsys, tmp_path, data)
    assert "all ignored" in kinds(report) and "3 of 11" in printed
    assert ("no class occurs in train" in printed) == (empty == "train")
    assert (folder / "class_map.json").exists() == (empty == "val")


def test_masks_to_train_alone_are_analysed(tmp_path, capsys):
    data = write_folder(tmp_path / "x", [house(i) for i in range(8)], val=[])
    printed, report, _ = analysed(capsys, tmp_path, data)
    assert kinds(report) == ["no validation"] and "4 masks" not in printed


# ---------------------------------------------------------------- layouts


def test_voc_has_its_names_and_palette_files(tmp_path, capsys):
    root = tmp_path / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for split, stems in (("train", range(8)), ("val", range(8, 11))):
        for i in stems:
            picture = Image.fromarray(np.array([0, 15, 255], np.uint8)[house(i)])
            picture.putpalette(bytes(range(256)) * 3)
            picture.save(root / "SegmentationClass" / f"{i}.png")
            Image.new("RGB", (W, H)).save(root / "JPEGImages" / f"{i}.jpg")
        (root / "ImageSets/Segmentation" / f"{split}.txt").write_text(
            "".join(f"{i}\n" for i in stems))
    printed, report, folder = analysed(capsys, tmp_path, root)
    assert kinds(report) == ["palette", "absent"] and "(void)" in printed
    assert read_class_map(folder / "class_map.json").names == ("background", "person")
    assert train_with(printed) == 0


def test_floor_plans_are_counted_as_they_are(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(floorplans, "_SIZES", {"train": 60, "val": 60})
    printed, report, folder = analysed(capsys, tmp_path, "floorplans")
    assert [split["masks"] for split in report["splits"].values()] == [60, 60]
    assert set(kinds(report)) <= {"only in train", "only in val", "absent"}
    expected = FloorPlans(length=60).check()
    names = FloorPlans.class_names
    counted = {each["class"]: each["train"]["pixels"] for each in report["values"]}
    assert [counted.get(name, 0) for name in names] == expected.pixels.tolist()
    assert (folder / "augmentation.png").exists()


def test_floor_plans_with_classes_of_ones_own(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(floorplans, "_SIZES", {"train": 6, "val": 6})
    names = FloorPlans.class_names
    table = {k: (name if k < 8 else "", None) for k, name in enumerate(names)}
    (tmp_path / "cmap.py").write_text(f"CMAP = {table}\n")
    _, report, folder = analysed(capsys, tmp_path, "floorplans", "--classes",
                                 tmp_path / "cmap.py")
    assert read_class_map(folder / "class_map.json").names == names[:8]


def test_camvid_has_the_figures_that_are_known_of_it(camvid_root, tmp_path, capsys):
    printed, report, folder = analysed(capsys, tmp_path, camvid_root)
    assert [split["masks"] for split in report["splits"].values()] == [367, 101]
    bicyclist = next(each for each in report["values"] if each["class"] == "bicyclist")
    assert f"{bicyclist['train']['share_of_valid']:.4f}" == "0.0030"
    assert f"{bicyclist['val']['share_of_valid']:.4f}" == "0.0226"
    assert kinds(report) == ["splits differ"] and "bicyclist 0.30% and 2.26%" in printed
    expected = open_dataset(camvid_root).check()
    counted = {each["class"]: each["train"] for each in report["values"]}
    for k, name in enumerate(open_dataset(camvid_root).class_names):
        assert counted[name]["pixels"] == expected.pixels[k]
        assert counted[name]["images"] == expected.images[k]
    assert report["schemes"]["inverse"]["flips"] and not report["schemes"]["sqrt"]["flips"]
    assert train_with(printed, "--model", "deeplab_light", "--image-size", "90", "120") == 0


# ---------------------------------------------------------------- what is refused


def test_what_cannot_be_analysed_is_one_line(tmp_path, capsys):
    data = write_folder(tmp_path / "x", [house(i) for i in range(4)])
    there = ["--output-dir", tmp_path / "out"]
    assert_refused(capsys, [], "--data")
    assert_refused(capsys, ["--data", tmp_path / "nothing", *there], "there is no folder")
    assert_refused(capsys, ["--data", data, "--layout", "voc", *there], "ImageSets")
    assert_refused(capsys, ["--data", data, "--classes", tmp_path / "no.py", *there], "no.py")
    assert_refused(capsys, ["--data", data, "--output-dir", data], data, "not empty")
    (data / "train" / "masks" / "00.png").unlink()
    assert_refused(capsys, ["--data", data, *there], "00.jpg has no mask")
    assert not (tmp_path / "out").exists()


def test_masks_none_of_which_can_be_read_are_one_line(tmp_path, capsys):
    data = write_folder(tmp_path / "x", [house(i) for i in range(4)])
    for path in (data / "train" / "masks").iterdir():
        path.write_bytes(b"no picture")
    argv = ["--data", data, "--output-dir", tmp_path / "out"]
    assert_refused(capsys, argv, "no mask", "00.png cannot be decoded")
    assert not (tmp_path / "out").exists()


def test_a_val_none_of_whose_masks_can_be_read_stops_nothing(tmp_path, capsys):
    masks = [house(i) for i in range(4)]
    data = write_folder(tmp_path / "x", masks, val=masks)
    for path in (data / "val" / "masks").iterdir():
        path.write_bytes(b"no picture")
    printed, report, folder = analysed(capsys, tmp_path, data)
    assert "4 of 8; the first" in printed and "nan" not in printed
    assert report["splits"]["val"]["ignored"] is None
    assert (folder / "class_map.json").exists()


# ---------------------------------------------------------------- pictures


def test_the_pictures_are_pictures(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plots, "save", figures.save)
    data = write_folder(tmp_path / "houses", [house(i) for i in range(8)])
    _, _, folder = analysed(capsys, tmp_path, data)
    for name in ("class_distribution.png", "class_weights.png", "augmentation.png"):
        with Image.open(folder / name) as picture:
            picture.load()
            assert min(picture.size) > 200
