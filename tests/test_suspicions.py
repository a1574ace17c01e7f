"""What `analyze` suspects: each mistake planted in masks made by hand, and none in clean ones."""

import numpy as np
import pytest

from minisegnet.datasets import ClassMap
from minisegnet.imbalance.mask_scan import facts_of, scan
from minisegnet.imbalance.occurring import occurring_classes
from minisegnet.imbalance.suspicions import find_suspicions, values_of

NAMES = ("ground", "wall", "door")


def house(*, door=40, shift=0):
    """Return a mask (40, 50) with a wall of 300 px and a door of `door`."""
    mask = np.zeros((40, 50), np.uint8)
    mask[5:20, 5 + shift:25 + shift] = 1
    mask[30:31, :door] = 2
    return mask


def scans_of(valid=None, oddities=(), **splits):
    """Return the `Scan`s of the masks in memory that `splits` list; `oddities` are the first's."""
    def look(item):
        split, i, mask = item
        return facts_of(mask), oddities if (split, i) == ("train", 0) else (), f"{split}/{i}.png"

    return {split: scan([(split, i, mask) for i, mask in enumerate(masks)], look, valid)
            for split, masks in splits.items()}


def found_in(declared=None, oddities=(), **splits):
    """Return {kind: suspicion} of masks by split; `val` is a copy of train if it is not given."""
    splits.setdefault("val", splits["train"])
    scans = scans_of(declared and declared.values, oddities, **splits)
    classes, _ = occurring_classes(declared, values_of(scans))
    found = find_suspicions(scans, declared, classes)
    assert len({each.kind for each in found}) == len(found)
    return {each.kind: each for each in found}


CLEAN = [house(shift=shift) for shift in range(12)]
DECLARED = ClassMap(NAMES)


def test_clean_masks_are_not_suspicious():
    assert found_in(train=CLEAN, val=CLEAN[:4]) == {}
    assert found_in(DECLARED, train=CLEAN, val=CLEAN[:4]) == {}
    with_void = ClassMap(NAMES, excluded={255: "void"})
    masks = [np.where(mask == 1, 255, mask).astype(np.uint8) for mask in CLEAN[:3]] + CLEAN[3:]
    assert found_in(with_void, train=masks) == {}


# ---------------------------------------------------------------- values


def test_masks_of_0_and_255_alone_are_black_and_white_pictures():
    masks = [np.where(mask == 1, 255, 0).astype(np.uint8) for mask in CLEAN]
    found = found_in(train=masks)
    assert list(found) == ["0 and 255"] and found["0 and 255"].serious
    # Not if a class map says what they are.
    assert found_in(ClassMap(("ground", "wall"), (0, 255), ignore_index=254), train=masks) == {}
    # A mask that is all white is then no mask of ignored pixels only.
    white = np.full((40, 50), 255, np.uint8)
    assert list(found_in(train=[*masks, white])) == ["0 and 255"]


def test_255_beside_other_ids_is_worth_a_word():
    masks = [np.where(mask == 2, 255, mask).astype(np.uint8) for mask in CLEAN]
    found = found_in(train=masks)
    assert list(found) == ["255"] and not found["255"].serious
    assert "2.00% of all pixels, as in train/0.png" in found["255"].what


def test_masks_of_one_id_teach_nothing():
    found = found_in(train=[np.full((4, 4), 3, np.uint8)] * 3)
    assert found["one value"].serious
    assert "every pixel of every mask is 3" in found["one value"].what


def test_many_masks_of_one_id_are_worth_a_word():
    empty = np.zeros((40, 50), np.uint8)
    found = found_in(train=CLEAN[:3] + 4 * [empty])
    assert list(found) == ["one value"] and not found["one value"].serious
    assert "8 of 14" in found["one value"].what
    assert found_in(train=CLEAN[:4] + 4 * [empty]) == {}


def test_more_values_than_classes_are_suspicious_unless_declared(rng):
    noise = [rng.integers(0, 70, (40, 50)).astype(np.uint8)] * 3
    assert "many values" in found_in(train=noise)
    names = [f"name {k}" for k in range(70)]
    assert "many values" not in found_in(ClassMap(names), train=noise)


def test_values_that_are_specks_come_from_interpolation():
    masks = []
    for mask in CLEAN:
        mask = mask * 4
        mask[5:20, 4] = 1  # the edges of the wall, half way from 0 to 4
        mask[5:20:2, 30] = 2
        mask[6:20:2, 30] = 3
        masks.append(mask)
    assert found_in(train=masks[:1]) == {}  # too few to tell
    found = found_in(train=masks)
    assert list(found) == ["slivers"] and ": 2, 3 (" in found["slivers"].what


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("kind", ["size", "turned by exif", "grey as rgb", "image unreadable"])
def test_oddities_of_files_are_told_with_the_first_of_them(kind):
    found = found_in(oddities=[(kind, "what is wrong with a.png")], train=CLEAN)
    assert list(found) == [kind] and found[kind].serious
    assert "1 of 24; the first: what is wrong with a.png" in found[kind].what


def test_palette_files_are_worth_a_word():
    found = found_in(oddities=[("palette", "a.png")], train=CLEAN)
    assert list(found) == ["palette"] and not found["palette"].serious


def test_colours_need_a_class_map():
    palette = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0]], np.uint8)
    colours = [palette[mask] for mask in CLEAN]
    found = found_in(oddities=[("rgb", "a.png")], train=colours)
    assert list(found) == ["rgb"]
    assert "#000000, #00ff00, #ff0000" in found["rgb"].what
    assert found_in(ClassMap(NAMES, palette.tolist()), train=colours) == {}
    # Ids are declared, and the masks hold colours.
    found = found_in(DECLARED, oddities=[("rgb", "a.png")], train=colours)
    assert "rgb" in found and "undefined" not in found and "absent" not in found


def test_masks_of_ignored_pixels_only_are_named():
    void = np.full((40, 50), 255, np.uint8)
    found = found_in(ClassMap(NAMES, excluded={255: "void"}), train=[*CLEAN, void], val=CLEAN)
    assert list(found) == ["all ignored"] and "1 of 25; the first: train/12.png" in \
        found["all ignored"].what


# ---------------------------------------------------------------- what is declared


def test_undefined_unnamed_and_absent_values_are_told_apart():
    masks = [mask.copy() for mask in CLEAN]
    masks[3][0, :20] = 9
    masks[4][0, :10] = 5
    declared = ClassMap((*NAMES, "window"), excluded={5: "unnamed", 6: "unnamed", 7: "void"})
    found = found_in(declared, train=masks)
    assert list(found) == ["undefined", "unnamed", "absent"]
    assert ": 9 (0.08% of all pixels, as in train/3.png)" in found["undefined"].what
    assert ": 5 (0.042% of all pixels, as in train/4.png)" in found["unnamed"].what
    assert found["absent"].what.endswith("never occur: window")
    assert [each.serious for each in found.values()] == [True, False, False]


def test_the_trap_of_absent_classes_at_the_cap_is_told_where_it_is_one():
    """Ground is 83 % of the pixels and weighs 0.30: 100 is more than 1 + 4 * 9 times as much."""
    found = found_in(ClassMap((*NAMES, "window")), train=CLEAN)
    assert "make window (p 0.80) a better answer than ground (p 0.09)" in found["absent"].cure
    many = [f"name {k}" for k in range(200)]
    even = [np.repeat(np.arange(199, dtype=np.uint8), 9).reshape(1, -1)] * 3
    assert "smoothing" not in found_in(ClassMap(many), train=even)["absent"].cure


# ---------------------------------------------------------------- train against validation


def test_shares_that_differ_beyond_chance_are_named():
    rare = [house(door=5, shift=shift) for shift in range(20)]
    found = found_in(train=rare, val=[house(door=50)] * 20)
    assert list(found) == ["splits differ"]
    assert found["splits differ"].what.endswith(": class 2 0.25% and 2.50%")
    # One picture with much more is chance, and half as much more not worth a word in any number.
    assert found_in(train=rare, val=[house(door=50)]) == {}
    assert found_in(train=[house(door=6)] * 200, val=[house(door=9)] * 200) == {}


def test_classes_of_one_split_only_are_named():
    without = [np.where(mask == 2, 0, mask).astype(np.uint8) for mask in CLEAN]
    found = found_in(train=without, val=CLEAN)
    assert list(found) == ["only in val"] and found["only in val"].what.endswith(": class 2")
    found = found_in(DECLARED, train=CLEAN, val=without)
    assert list(found) == ["only in train"] and found["only in train"].what.endswith(": door")


def test_without_validation_masks_that_is_said():
    scans = scans_of(train=CLEAN)
    classes, _ = occurring_classes(None, values_of(scans))
    found, = find_suspicions(scans, None, classes, no_val="there is no folder x/val")
    assert "there is no folder x/val" in found.what and found.serious


# ---------------------------------------------------------------- the classes that occur


def test_declared_classes_that_occur_stay_in_their_order():
    declared = ClassMap(("sky", "road", "car"), (7, 3, 5), excluded={11: "void"},
                        palette=[(1, 1, 1), (2, 2, 2), (3, 3, 3)])
    classes, why = occurring_classes(declared, [5, 7, 11, 40])
    assert why is None and classes.names == ("sky", "car") and classes.values == (7, 5)
    assert classes.palette.tolist() == [[1, 1, 1], [3, 3, 3]]
    assert classes.excluded == {11: "void", 3: "absent: road", 40: "undefined"}


def test_undeclared_ids_and_colours_get_names():
    classes, _ = occurring_classes(None, [0, 4, 7, 255])
    assert classes.names == ("class 0", "class 4", "class 7") and classes.values == (0, 4, 7)
    assert classes.excluded == {255: "ignored"}
    classes, _ = occurring_classes(None, [0, 255])
    assert classes.names == ("background", "object") and classes.values == (0, 255)
    classes, _ = occurring_classes(None, [(0, 0, 0), (0, 216, 252)])
    assert classes.names == ("#000000", "#00d8fc")
    assert classes.values == ((0, 0, 0), (0, 216, 252)) and classes.is_rgb
    classes, _ = occurring_classes(DECLARED, [(0, 0, 0), (0, 216, 252)])
    assert classes.names == ("#000000", "#00d8fc")


@pytest.mark.parametrize("declared, values, words", [
    (None, [3], "only one class"), (None, [255], "no class"), (DECLARED, [1, 255], "only one"),
    (None, [1, (0, 0, 0)], "only one"),
    (None, [(k, 0, c) for k in range(200) for c in (0, 1)], "400 values"),
])
def test_what_makes_no_classes_is_said(declared, values, words):
    classes, why = occurring_classes(declared, values)
    assert classes is None and words in why
