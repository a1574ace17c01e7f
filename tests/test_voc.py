"""The layout of Pascal VOC: lists, their mistakes, and colours for its 21 classes."""

import numpy as np
import pytest
from checks import assert_refused
from PIL import Image

from minisegnet.datasets import CamVid, Folder, open_dataset
from minisegnet.datasets.palettes import CAMVID_PALETTE, FLOORPLAN_PALETTE, palette_for
from minisegnet.datasets.voc import CLASS_NAMES, VOC

H, W = 10, 14
STEMS = {"train": ["2007_000032", "2007_000039", "2008_000001"], "val": ["2007_000033"]}


def write_pair(root, stem, mask=None, suffix=".jpg"):
    """Write an image and a palette mask with classes 0, 15 and 20 and an ignored outline."""
    if mask is None:
        mask = np.zeros((H, W), np.uint8)
        mask[2:8, 3:9] = 15
        mask[2:8, 9:12] = 20
        mask[2, 3:12] = 255
    image = Image.fromarray(np.full((H, W, 3), len(stem), np.uint8))
    image.save(root / "JPEGImages" / f"{stem}{suffix}")
    picture = Image.fromarray(mask)
    picture.putpalette(bytes(range(256)) * 3)
    picture.save(root / "SegmentationClass" / f"{stem}.png")


def write_list(root, split, stems):
    path = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    path.write_text("".join(f"{stem}\n" for stem in stems))
    return path


@pytest.fixture
def root(tmp_path):
    """VOCdevkit/VOC2012 with four listed pairs, one unlisted, and lists for train and val."""
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for split, stems in STEMS.items():
        for stem in stems:
            write_pair(root, stem)
        write_list(root, split, stems)
    write_pair(root, "2012_unlisted")
    return root


def stems_of(dataset):
    return [dataset[i].name for i in range(len(dataset))]


# ---------------------------------------------------------------- what it reads


def test_a_list_decides_what_is_read_and_in_which_order(root):
    write_list(root, "train", STEMS["train"][::-1])
    assert stems_of(VOC(root, "train")) == STEMS["train"][::-1]
    assert stems_of(VOC(root, "val")) == STEMS["val"]


def test_masks_are_palette_indices_with_255_ignored(root):
    dataset = VOC(root)
    sample = dataset[0]
    assert sample.image.shape == (H, W, 3) and sample.mask.shape == (H, W)
    assert np.unique(sample.mask).tolist() == [0, 15, 20, 255]
    assert dataset.num_classes == 21 == len(dataset.palette)
    assert dataset.class_names[15] == "person" and dataset.class_names[20] == "tvmonitor"
    counts = dataset.check().counts
    assert counts.shape == (3, 21)
    assert counts[0, [0, 15, 20]].tolist() == [H * W - 6 * 9, 5 * 6, 5 * 3]


def test_the_raw_values_of_the_masks_are_known(root):
    dataset = VOC(root, ignore_index=77)
    assert dataset.mask_values == tuple(range(21)) and dataset.void == 255
    assert 77 in dataset[0].mask and 255 not in dataset[0].mask


def test_blank_lines_and_spaces_in_a_list_do_not_matter(root):
    path = write_list(root, "train", [])
    path.write_bytes(b"\xef\xbb\xbf\r\n 2007_000032 \r\n\r\n2008_000001\r\n\n")
    assert stems_of(VOC(root)) == ["2007_000032", "2008_000001"]


def test_trainval_is_its_own_list_or_else_train_and_val_joined(root):
    assert stems_of(VOC(root, "trainval")) == STEMS["train"] + STEMS["val"]
    write_list(root, "trainval", ["2012_unlisted"])
    assert stems_of(VOC(root, "trainval")) == ["2012_unlisted"]


def test_classes_txt_replaces_the_21_classes(root):
    (root / "classes.txt").write_text("20 screen\n0 nothing\n15 person\n")
    dataset = VOC(root)
    assert dataset.class_names == ("screen", "nothing", "person")
    assert dataset.mask_values == (20, 0, 15)
    assert np.unique(dataset[0].mask).tolist() == [0, 1, 2, 255]
    assert dataset[0].mask[5, 10] == 0  # value 20
    (root / "classes.txt").write_text("a\nb\n")
    assert_refused(VOC(root).check, "2007_000032.png", "15, 20")


@pytest.mark.parametrize("up", [0, 1, 2])
def test_auto_finds_the_layout_from_the_devkit_folders_too(root, up):
    given = [root, *root.parents][up]
    dataset = open_dataset(given, split="val")
    assert isinstance(dataset, VOC) and stems_of(dataset) == STEMS["val"]
    assert isinstance(open_dataset(given, "voc"), VOC)


def test_auto_still_finds_the_other_layouts(tmp_path, camvid_root):
    (tmp_path / "JPEGImages").mkdir()
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
        for k in range(2):
            Image.fromarray(np.full((H, W), k, np.uint8)).save(tmp_path / kind / f"{k}.png")
    assert isinstance(open_dataset(tmp_path), Folder)
    assert isinstance(open_dataset(camvid_root), CamVid)


# ---------------------------------------------------------------- what it refuses


def test_two_years_below_one_folder(root):
    (root.parent / "VOC2007" / "JPEGImages").mkdir(parents=True)
    assert_refused(lambda: open_dataset(root.parent), "VOC2007", "VOC2012", "one of them")


def test_a_folder_that_is_no_voc(tmp_path):
    assert_refused(lambda: open_dataset(tmp_path, "voc"), "train.txt", "voc layout")


@pytest.mark.parametrize("split, missing", [
    ("train", "train.txt"), ("trainval", "train.txt"), ("test", "test.txt")])
def test_a_missing_list(root, split, missing):
    (root / "ImageSets" / "Segmentation" / "train.txt").unlink()
    assert_refused(lambda: VOC(root, split), "ImageSets/Segmentation/" + missing, "one stem")


def test_an_empty_list(root):
    path = write_list(root, "train", ["", " "])
    assert_refused(lambda: VOC(root), path, "lists no picture")


def test_a_stem_twice(root):
    path = write_list(root, "train", ["2007_000032", "2007_000039", "2007_000032"])
    assert_refused(lambda: VOC(root), path, "'2007_000032' twice")


def test_a_stem_in_train_and_in_val(root):
    write_list(root, "val", ["2007_000039"])
    assert_refused(lambda: VOC(root, "trainval"), "val.txt", "'2007_000039'", "train.txt")


def test_a_stem_without_image_and_one_without_mask(root):
    path = write_list(root, "train", ["2007_000032", "2007_999999"])
    assert_refused(lambda: VOC(root), path, "'2007_999999'", "JPEGImages/2007_999999.jpg")
    (root / "SegmentationClass" / "2007_000032.png").unlink()
    assert_refused(lambda: VOC(root), path, "'2007_000032'", "SegmentationClass/2007_000032.png")


def test_a_test_list_without_masks_says_where_to_score_instead(root):
    path = write_list(root, "test", ["2008_000001", "2012_test"])
    Image.fromarray(np.zeros((H, W, 3), np.uint8)).save(root / "JPEGImages" / "2012_test.jpg")
    assert_refused(lambda: VOC(root, "test"), path, "'2012_test'", "does not publish", "val")


def test_a_label_out_of_range(root):
    mask = np.full((H, W), 21, np.uint8)
    write_pair(root, "2007_000039", mask)
    assert_refused(VOC(root).check, "2007_000039.png", "value", "21", "0 to 20, and 255")


# ---------------------------------------------------------------- colours

# From linear RGB to linear RGB as seen: Machado et al. (2009), severity 1.0.
SEEN = {
    "normally": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                   [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                     [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                   [0.004733, 0.691367, 0.303900]],
}
XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
                [0.0193339, 0.1191920, 0.9503041]]) / [[0.95047], [1.0], [1.08883]]  # D65


def lab(colours, seen):
    """CIE L*a*b* (..., 3) of sRGB colours (..., 3) uint8, for an eye in `SEEN`."""
    c = np.asarray(colours) / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    xyz = np.clip(linear @ np.transpose(seen), 0, 1) @ XYZ.T
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def ciede2000(one, other):
    """Colour difference of L*a*b* colours (Sharma, Wu and Dalal, 2005)."""
    (L1, a1, b1), (L2, a2, b2) = np.moveaxis(one, -1, 0), np.moveaxis(other, -1, 0)

    def by_chroma(C):
        return np.sqrt(C ** 7 / (C ** 7 + 25.0 ** 7))

    G = 1.5 - 0.5 * by_chroma((np.hypot(a1, b1) + np.hypot(a2, b2)) / 2)
    C1, C2 = np.hypot(G * a1, b1), np.hypot(G * a2, b2)
    h1, h2 = (np.degrees(np.arctan2(b, G * a)) % 360 for a, b in ((a1, b1), (a2, b2)))
    turn = (h2 - h1 + 180) % 360 - 180  # the short way round
    h = np.where(C1 * C2 == 0, h1 + h2, h1 + turn / 2)
    L, C = (L1 + L2) / 2, (C1 + C2) / 2
    T = (1 - 0.17 * np.cos(np.radians(h - 30)) + 0.24 * np.cos(np.radians(2 * h))
         + 0.32 * np.cos(np.radians(3 * h + 6)) - 0.20 * np.cos(np.radians(4 * h - 63)))
    dL = (L2 - L1) / (1 + 0.015 * (L - 50) ** 2 / np.sqrt(20 + (L - 50) ** 2))
    dC = (C2 - C1) / (1 + 0.045 * C)
    dH = 2 * np.sqrt(C1 * C2) * np.sin(np.radians(turn / 2)) / (1 + 0.015 * C * T)
    tilt = np.sin(np.radians(60 * np.exp(-((h % 360 - 275) / 25) ** 2)))
    return np.sqrt(dL ** 2 + dC ** 2 + dH ** 2 - 2 * by_chroma(C) * tilt * dC * dH)


def smallest_distance(palette):
    """Over all pairs of `palette` and black, and all eyes of `SEEN`."""
    colours = np.vstack([palette, [[0, 0, 0]]])
    first, second = np.triu_indices(len(colours), 1)
    return min(ciede2000(lab(colours[first], seen), lab(colours[second], seen)).min()
               for seen in SEEN.values())


@pytest.mark.parametrize("one, other, expected", [
    # from the table of test data in Sharma, Wu and Dalal
    ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
    ((50, 2.5, 0), (50, 0, -2.5), 4.3065),
    ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
    ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
])
def test_the_colour_difference_is_the_published_one(one, other, expected):
    assert ciede2000(np.array(one), np.array(other)) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("palette, promised", [
    (FLOORPLAN_PALETTE, 18.9), (CAMVID_PALETTE, 16.2), (palette_for(13), 12.9),
    (palette_for(len(CLASS_NAMES)), 10.6)])
def test_palettes_keep_the_distance_they_promise(palette, promised):
    assert smallest_distance(palette) == pytest.approx(promised, abs=0.05)


def test_a_class_keeps_its_colour_when_others_are_added():
    for K in (5, 12, 21, 30):
        np.testing.assert_array_equal(palette_for(40)[:K], palette_for(K))
