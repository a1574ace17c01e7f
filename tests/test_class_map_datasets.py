"""Class maps in data sets: every layout, RGB masks, and what is refused in one line."""

import json

import numpy as np
import pytest
from checks import assert_refused
from PIL import Image

from minisegnet.datasets import ClassMap, FloorPlans, list_pairs, open_dataset, read_class_map
from minisegnet.datasets.class_map import plain_map
from minisegnet.datasets.files import read_raw_mask

MASK = np.array([[3, 3, 9, 8]] * 2, np.uint8)
JSON = {"classes": [{"value": 9, "name": "car", "colour": [0, 0, 142]},
                    {"value": 3, "name": "road", "colour": [128, 64, 128]}],
        "excluded": [{"value": 8, "why": "unnamed", "colour": [7, 7, 7]}]}
IDS = [[1, 1, 0, 255]] * 2
RGB = np.array([[(128, 64, 128), (128, 64, 128), (0, 0, 142), (7, 7, 7)]] * 2, np.uint8)


def write_pairs(folders, masks, prefix=""):
    """Write an image and a mask for each of `masks`, Pillow pictures or arrays."""
    images, mask_folder = folders
    images.mkdir(parents=True, exist_ok=True)
    mask_folder.mkdir(parents=True, exist_ok=True)
    for i, mask in enumerate(masks):
        picture = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
        Image.new("RGB", picture.size).save(images / f"{prefix}{i}.png")
        picture.save(mask_folder / f"{prefix}{i}.png")


def make_layout(root, layout, mask=MASK):
    """Write two pictures to train and two to validate."""
    for split in ("train", "val"):
        if layout == "voc":
            lists = root / "ImageSets" / "Segmentation"
            lists.mkdir(parents=True, exist_ok=True)
            (lists / f"{split}.txt").write_text(f"{split}0\n{split}1\n")
        folders = {"folder": (f"{split}/images", f"{split}/masks"),
                   "camvid": (split, f"{split}annot"),
                   "voc": ("JPEGImages", "SegmentationClass")}[layout]
        write_pairs([root / name for name in folders], [mask, mask], prefix=split)
    return root


@pytest.mark.parametrize("layout", ["folder", "camvid", "voc"])
def test_every_layout_uses_the_class_map_in_its_folder(tmp_path, layout):
    root = make_layout(tmp_path / layout, layout)
    (root / "class_map.json").write_text(json.dumps(JSON))
    (root / "classes.txt").write_text("an\nolder\nfile\n")
    for split in ("train", "val", "trainval"):
        dataset = open_dataset(root, split=split)
        assert dataset.class_names == ("car", "road") and dataset[0].mask.tolist() == IDS
        assert dataset.mask_values == (9, 3) and dataset.void == 8
        assert dataset.palette.tolist() == [[0, 0, 142], [128, 64, 128]]
        assert dataset.check().pixels.tolist() == [2 * len(dataset), 4 * len(dataset)]
    assert open_dataset(root, ignore_index=77)[0].mask[0, 3] == 77


@pytest.mark.parametrize("layout", ["folder", "camvid", "voc"])
def test_classes_that_are_given_win_over_those_in_the_folder(tmp_path, layout):
    root = make_layout(tmp_path / layout, layout)
    (root / "class_map.json").write_text("not read")
    table = tmp_path / "cmap.py"
    table.write_text('CMAP = {9: ("car", None), 8: ("tree", None), 3: ("", None)}')
    for given in (table, str(table), read_class_map(table)):
        dataset = open_dataset(root, layout, classes=given)
        assert dataset.class_names == ("car", "tree")
        assert dataset[0].mask.tolist() == [[255, 255, 0, 1]] * 2
    names = tmp_path / "names.txt"
    names.write_text("9 car\n3 road\n8 tree\n")
    assert open_dataset(root, layout, classes=names)[0].mask.tolist() == [[1, 1, 0, 2]] * 2


@pytest.mark.parametrize("layout", ["folder", "camvid", "voc"])
@pytest.mark.parametrize("as_ids", [True, False])
def test_rgb_masks_are_read_through_the_colours(tmp_path, layout, as_ids):
    root, content = make_layout(tmp_path / layout, layout, RGB), JSON
    if not as_ids:  # the same, its values being the colours
        content = {key: [{**record, "value": record["colour"]} for record in records]
                   for key, records in JSON.items()}
        content["classes"] = [{"value": r["value"], "name": r["name"]}
                              for r in content["classes"]]
    (root / "class_map.json").write_text(json.dumps(content))
    dataset = open_dataset(root)
    assert dataset.class_map.is_rgb and dataset[0].mask.tolist() == IDS
    assert dataset.mask_values == ((0, 0, 142), (128, 64, 128)) and dataset.void == (7, 7, 7)
    assert dataset.check().pixels.tolist() == [4, 8]


def test_what_saves_an_rgb_mask_in_less_space_changes_nothing(tmp_path):
    optimised = Image.fromarray(RGB).quantize(8)  # palette PNG, as PNG optimisers make it
    black = Image.new("L", (4, 2))
    opaque = Image.fromarray(RGB).convert("RGBA")
    write_pairs((tmp_path / "images", tmp_path / "masks"), [opaque, optimised, black])
    classes = ClassMap(("car", "road", "none"), ((0, 0, 142), (128, 64, 128), (0, 0, 0)),
                       excluded={(7, 7, 7): "unnamed"})
    dataset = open_dataset(tmp_path, split="trainval", classes=classes)
    assert dataset[0].mask.tolist() == dataset[1].mask.tolist() == IDS
    assert dataset[2].mask.tolist() == [[2] * 4] * 2


def test_raw_masks_are_ids_or_colours_without_opaque_alpha(tmp_path):
    for name, picture, expected in [
            ("p.png", Image.fromarray(MASK).convert("P"), MASK), ("l.png", MASK, MASK),
            ("la.png", Image.fromarray(MASK).convert("LA"), MASK), ("rgb.png", RGB, RGB),
            ("rgba.png", Image.fromarray(RGB).convert("RGBA"), RGB)]:
        write_pairs((tmp_path / "images", tmp_path), [picture])
        (tmp_path / "0.png").rename(tmp_path / name)
        raw = read_raw_mask(tmp_path / name)
        assert raw.dtype == np.uint8
        np.testing.assert_array_equal(raw, expected)
    Image.fromarray(RGB).convert("CMYK").save(tmp_path / "c.jpg")
    assert_refused(lambda: read_raw_mask(tmp_path / "c.jpg"), "c.jpg", "CMYK")


def test_masks_that_are_transparent_in_places_are_refused(tmp_path):
    alpha = np.full((2, 4, 1), 255, np.uint8)
    alpha[1, 2] = 254
    write_pairs((tmp_path / "images", tmp_path / "masks"), [np.dstack([RGB, alpha])] * 2)
    classes = ClassMap(("car", "road"), RGB[0, [2, 0]], excluded={(7, 7, 7): "unnamed"})
    dataset = open_dataset(tmp_path, classes=classes)
    assert_refused(dataset.check, dataset.pairs[0][1], "transparent", "background")


def test_rgb_masks_without_a_map_of_colours_are_told_of_it(tmp_path):
    root = make_layout(tmp_path, "folder", RGB)
    assert_refused(lambda: open_dataset(root), "train0.png is an RGB picture", "class_map.json")
    (root / "classes.txt").write_text("3 road\n9 car\n")
    assert_refused(lambda: open_dataset(root), "train0.png is an RGB picture", "class_map.json",
                   "no colours")


def test_masks_of_ids_in_a_map_of_colours_are_refused(tmp_path):
    root = make_layout(tmp_path, "folder")
    dataset = open_dataset(root, classes=ClassMap(("a", "b"), ((3, 3, 3), (0, 0, 0))))
    assert_refused(dataset.check, "train0.png", "(8, 8, 8), (9, 9, 9)", "mask of ids")


def test_values_neither_valid_nor_excluded_are_refused_with_their_file(tmp_path):
    root = make_layout(tmp_path, "folder")
    (root / "class_map.json").write_text(json.dumps({"classes": JSON["classes"]}))
    assert_refused(open_dataset(root).check, "masks/train0.png", "the values 8,", "3, 9")
    assert_refused(lambda: open_dataset(root)[0], "masks/train0.png", "the values 8,")


def test_masks_of_0_and_255_mean_what_their_map_says(tmp_path):
    masks = [np.array([[0, 255]], np.uint8)] * 3
    write_pairs((tmp_path / "images", tmp_path / "masks"), masks)
    wrong = plain_map(("background", "object"))
    assert_refused(open_dataset(tmp_path, classes=wrong).check, "0 and 255")
    right = ClassMap(("background", "object"), (0, 255))
    assert open_dataset(tmp_path, classes=right).check().pixels.tolist() == [2, 2]
    # Excluded 9s become 255 as well, but are no second half of 0/255 masks.
    write_pairs((tmp_path / "images", tmp_path / "masks"), [np.array([[0, 9]], np.uint8)] * 3)
    for excluded in ({9: "unnamed"}, {9: "unnamed", 255: "void"}):
        left_out = ClassMap(("background", "object"), excluded=excluded)
        assert open_dataset(tmp_path, classes=left_out).check().pixels.tolist() == [2, 0]


def test_floor_plans_follow_a_class_map_too():
    plain = FloorPlans(length=3)
    classes = ClassMap(("wall", "paper"), (1, 0), excluded=dict.fromkeys(range(2, 12), "inside"))
    plans = open_dataset("floorplans", length=3, classes=classes)
    assert plans.class_names == ("wall", "paper") and plans.num_classes == 2
    expected = np.select([plain[1].mask == 1, plain[1].mask == 0], [0, 1], 255)
    np.testing.assert_array_equal(plans[1].mask, expected)
    np.testing.assert_array_equal(plans[1].image, plain[1].image)
    few = open_dataset("floorplans", length=1, classes=ClassMap(("paper", "wall")))
    assert_refused(few.check, "plan 0", "outside the 2 classes")


@pytest.mark.parametrize("layout", ["folder", "camvid", "voc"])
def test_pairs_are_listed_without_reading_a_file(tmp_path, layout):
    root = make_layout(tmp_path / layout, layout)
    splits, classes = ("train", "val", "trainval"), plain_map("abcdefghij")
    expected = [open_dataset(root, layout, split, classes=classes).pairs for split in splits]
    for path in root.rglob("*.png"):
        path.write_bytes(b"spoilt")
    (root / "class_map.json").write_text("spoilt")
    assert [list_pairs(root, "auto", split) for split in splits] == expected
    assert_refused(lambda: list_pairs(root / "gone"), root / "gone")
    assert_refused(lambda: list_pairs("floorplans"), "no files")
