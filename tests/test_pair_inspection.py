"""Labels from the file to the batch, and pairs that fit: each fault shows in its place."""

import numpy as np
import pytest
from inspecting import SIZE, Changed, alarms, inspected, plans, relabelled
from PIL import Image

from minisegnet import datasets
from minisegnet.datasets import DataLoader, FloorPlans, Resize, make_augmentation
from minisegnet.datasets.class_map import ClassMap
from minisegnet.datasets.subset import Subset
from minisegnet.datasets.transforms import resize_mask
from minisegnet.imbalance.alignment import judge
from minisegnet.training.pair_inspection import check_transform, inspect_pairs, nearest

EXCLUDED = 200  # a value in mask files


def write(root, picture):
    """Write ten plans for training and validation, their masks as `picture(mask)`, of Pillow."""
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for image, mask, name in plans(split, 10):
            Image.fromarray(image).save(root / split / "images" / f"{name}.png")
            picture(mask).save(root / split / "masks" / f"{name}.png")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder of plans: class k is 2 k + 1 in its masks, a strip of each is excluded."""
    def picture(mask):
        values = 2 * mask + 1
        values[:, :3] = EXCLUDED
        return Image.fromarray(values)

    root = tmp_path_factory.mktemp("plans")
    write(root, picture)
    ClassMap(FloorPlans.class_names, values=range(1, 24, 2),
             excluded={EXCLUDED: "strip"}).write(root / "class_map.json")
    return root


def file_sets(root):
    return tuple(datasets.open_dataset(root, "folder", split) for split in ("train", "val"))


def test_sound_files_raise_no_alarm(files):
    record = inspected(*file_sets(files))
    assert alarms(record) == []
    for split in ("train", "val"):
        path = record["label_path"][split]
        declared = {value: label for value, label in path["declared"]}
        assert declared[EXCLUDED] == 255 and declared[1] == 0 and declared[23] == 11
        assert path["samples"] == 10
        assert {value: label for value, label, _ in path["pairs"]}.items() <= declared.items()
        assert sum(pixels for *_, pixels in path["pairs"]) == 10 * SIZE[0] * SIZE[1]
    assert [EXCLUDED, 255, 10 * 3 * SIZE[0]] in record["label_path"]["train"]["pairs"]


@pytest.mark.parametrize("name", ["camvid", "floorplans"])
def test_real_and_generated_pictures_raise_no_alarm_with_every_preset(name, request):
    if name == "camvid":
        root = request.getfixturevalue("camvid_root")
        sets = [datasets.open_dataset(root, "camvid", split) for split in ("train", "val")]
        train_set, val_set = (Subset(each, range(0, len(each), step))
                              for each, step in zip(sets, (12, 8)))
    else:
        train_set, val_set = plans(length=30), plans("val")
    for augment in datasets.PRESETS:
        loader = DataLoader(train_set, 8, transform=make_augmentation(augment, (90, 120)),
                            shuffle=True, num_workers=2)
        pairs = inspect_pairs(loader)
        val_pairs = inspect_pairs(DataLoader(val_set, 8, transform=Resize(
            (90, 120), resize_mask=False), num_workers=2))
        for found in (pairs, val_pairs):
            assert judge(found["alignment"]) == "fits"
            assert found["transform"]["invented"] == []
            assert found["alignment"]["transform"]["kept"] == 1


@pytest.mark.parametrize("table, told", [
    ({label: (label + 1) % 12 for label in range(12)}, "1 as 1 ("),
    ({255: 0}, f"{EXCLUDED} as 0 ("), ({0: 255}, "1 as 255 ("), ({1: 0}, "3 as 0 (")],
    ids=["shifted", "excluded as a class", "a class ignored", "two become one"])
def test_labels_that_are_not_declared_are_told(table, told, files):
    train_set, val_set = file_sets(files)
    record = inspected(Changed(train_set, relabelled(table)), val_set)
    [line] = [line for line in alarms(record) if "than declared" in line]
    assert told in line and "10 training masks" in line
    path = record["label_path"]["train"]
    declared = {value: label for value, label in path["declared"]}
    assert all(label == table.get(declared[value], declared[value])
               for value, label, _ in path["pairs"])


def test_masks_of_a_data_set_that_resizes_are_followed_as_well(files):
    train_set, val_set = file_sets(files)
    smaller = Changed(train_set, lambda sample: Resize((40, 50))(sample, None))
    record = inspected(smaller, val_set)
    assert [line for line in alarms(record) if "than declared" in line] == []
    assert sum(pixels for *_, pixels in record["label_path"]["train"]["pairs"]) == 10 * 40 * 50


def with_palette(mask, colours):
    picture = Image.fromarray(11 - mask)  # the numbers in the file say nothing
    picture.putpalette(colours[::-1].astype(np.uint8).tobytes())
    return picture


@pytest.mark.parametrize("picture", [
    lambda mask, colours: Image.fromarray(colours.astype(np.uint8)[mask]), with_palette],
    ids=["RGB", "palette"])
def test_colour_masks_are_followed(picture, tmp_path):
    colours = np.random.default_rng(1).integers(0, 256, (12, 3))
    write(tmp_path, lambda mask: picture(mask, colours))
    colours = colours.tolist()
    ClassMap(FloorPlans.class_names, values=map(tuple, colours)).write(tmp_path / "class_map.json")
    record = inspected(*file_sets(tmp_path))
    assert alarms(record) == []
    path = record["label_path"]["train"]
    assert [colours[0], 0] in path["declared"]
    assert {(*value, label) for value, label, _ in path["pairs"]} <= {
        (*colour, label) for label, colour in enumerate(colours)}


def interpolated(sample, rng):
    mask = Image.fromarray(sample.mask).resize((70, 56), Image.Resampling.BILINEAR)
    return Resize((56, 70))(sample, None)._replace(mask=np.array(mask))


def test_labels_that_a_transform_invents_are_told():
    record = inspected(transform=interpolated)
    invented = dict(record["transform"]["train"]["invented"])
    assert {9, 10} & set(invented) and record["transform"]["train"]["samples"] == 24
    assert record["transform"]["val"]["invented"] == []
    assert any("training transform invents labels in 24 masks" in line for line in alarms(record))
    record = inspected(val_transform=interpolated)
    assert record["transform"]["val"]["invented"] and alarms(record)


def flipped_alone(sample, rng):
    sample = make_augmentation("standard", SIZE)(sample, rng)
    return sample._replace(image=sample.image[:, ::-1].copy()) if rng.random() < 0.5 else sample


def cropped_apart(sample, rng):
    standard = make_augmentation("standard", SIZE)
    return standard(sample, rng)._replace(mask=standard(sample, rng).mask)


def upside_down_before(sample, rng):
    return make_augmentation("strong", SIZE)(sample._replace(image=sample.image[::-1].copy()), rng)


@pytest.mark.parametrize("transform, verdict", [
    (flipped_alone, "mirrored"), (upside_down_before, "upside down"),
    (cropped_apart, ("mirrored", "shifted"))])
def test_a_transform_that_parts_pictures_from_masks_is_told(transform, verdict):
    record = inspected(transform=transform)
    assert judge(record["alignment"]) in verdict
    assert judge(record["alignment"]["val"]) == "fits"
    assert any("training masks" in line and "[!]" in line for line in alarms(record))


def test_the_share_of_pictures_that_a_transform_flips_is_measured():
    found = check_transform(flipped_alone)
    assert found["draws"] > 25 and found["upside_down"] == 0
    assert 0.2 < found["mirrored"] < 0.8
    assert check_transform(None) == {"draws": 0}


def mixed_up(dataset):
    others = {dataset[i].name: dataset[(i + 5) % len(dataset)].mask for i in range(len(dataset))}
    return Changed(dataset, lambda sample: sample._replace(mask=others[sample.name]))


@pytest.mark.parametrize("change, verdict", [
    (mixed_up, "shuffled"),
    (lambda data: Changed(data, lambda s: s._replace(image=s.image[:, ::-1])), "mirrored"),
    (lambda data: Changed(data, lambda s: s._replace(mask=s.mask[::-1])), "upside down"),
    (lambda data: Changed(data, lambda s: s._replace(mask=np.roll(s.mask, 5, 1))), "shifted")])
@pytest.mark.parametrize("split", ["train", "val"])
def test_pairs_that_do_not_fit_as_they_are_read_are_told(split, change, verdict):
    sets = {"train_set": plans(length=40), "val_set": plans("val", 40)}
    sets[f"{split}_set"] = change(sets[f"{split}_set"])
    record = inspected(**sets)
    verdicts = {"train": judge(record["alignment"]), "val": judge(record["alignment"]["val"])}
    assert verdicts == {"train": "fits", "val": "fits", split: verdict}
    [line] = alarms(record)
    assert {"train": "training", "val": "validation"}[split] in line and "[!]" in line


def test_few_pictures_over_and_over_count_once():
    record = inspected(Subset(plans(), [0, 1, 2, 3] * 20), augment="none")
    assert record["alignment"]["pictures"] == record["alignment"]["as_read"]["pictures"] == 4
    [line] = alarms(record)
    assert line.startswith("[?]") and "only 4 have borders enough" in line
    # What the transform does is seen without them.
    record = inspected(Subset(plans(), [0, 1, 2, 3] * 20), transform=flipped_alone)
    [line] = alarms(record)
    assert line.startswith("[!]") and "the transform does that to" in line


def test_nearest_agrees_with_the_resizing_of_masks(rng):
    mask = rng.integers(0, 256, (37, 53), dtype=np.uint8)
    for size in ((12, 20), (37, 53), (90, 70)):
        np.testing.assert_array_equal(nearest(mask, size), resize_mask(mask, size))
