"""Class maps: values of masks to ids and back, their files, and one line for what is wrong."""

import copy
import json

import numpy as np
import pytest
from checks import assert_refused

from minisegnet.datasets import ClassMap, read_class_map
from minisegnet.datasets.class_map import plain_map
from minisegnet.datasets.palettes import palette_for

H, W = 7, 9


def random_map(seed):
    """A map of ids or colours with gaps, any order, some values excluded, and any ignore index."""
    rng = np.random.default_rng(seed)
    K, excluded, is_rgb = rng.integers(1, 40), rng.integers(0, 30), rng.random() < 0.5
    if seed % 50 == 0:
        K, excluded = 255, 1  # all that fit
    if is_rgb:
        codes = rng.choice(1 << 24, K + excluded, replace=False)
        values = [(c >> 16, c >> 8 & 255, c & 255) for c in codes.tolist()]
        palette = None
    else:
        values = rng.choice(256, K + excluded, replace=False)
        palette = rng.integers(0, 256, (K, 3)) if rng.random() < 0.5 else None
    return ClassMap([f"class {k} ünï" for k in rng.permutation(K)], values[:K], palette,
                    {value: str(rng.choice(["void", "unnamed", "absent"]))
                     for value in values[K:]},
                    int(rng.integers(K, 256)))


@pytest.mark.parametrize("start", range(0, 400, 100))
def test_ids_become_values_and_the_same_ids_again(start):
    for seed in range(start, start + 100):
        classes, rng = random_map(seed), np.random.default_rng(seed)
        known = [*range(classes.num_classes)]
        known += [classes.ignore_index] if classes.excluded else []
        ids = rng.choice(known, (H, W)).astype(rng.choice([np.uint8, np.int64]))
        raw = classes.to_values(ids)
        assert raw.dtype == np.uint8 and raw.shape == ((H, W, 3) if classes.is_rgb else (H, W))
        again = classes.to_ids(raw)
        assert again.dtype == np.uint8
        np.testing.assert_array_equal(again, ids)


@pytest.mark.parametrize("seed", range(0, 200, 7))
def test_every_value_becomes_what_the_map_says_pixel_by_pixel(seed):
    classes, rng = random_map(seed), np.random.default_rng(seed)
    table = {**{value: k for k, value in enumerate(classes.values)},
             **{value: classes.ignore_index for value in classes.excluded}}
    values = list(table)
    chosen = rng.integers(0, len(values), (H, W))
    raw = np.array(values, np.uint8)[chosen]
    expected = [[table[values[c]] for c in row] for row in chosen]
    assert classes.to_ids(raw).tolist() == expected
    assert classes.to_ids(raw[:, ::-1]).tolist() == [row[::-1] for row in expected]


@pytest.mark.parametrize("start", range(0, 200, 100))
def test_files_hold_the_whole_map(tmp_path, start):
    for seed in range(start, start + 100):
        classes = random_map(seed)
        assert ClassMap.from_dict(json.loads(json.dumps(classes.to_dict()))) == classes
        if classes.num_classes < 2:
            continue
        classes.write(tmp_path / "class_map.json")
        assert read_class_map(tmp_path / "class_map.json") == classes
        classes.write(tmp_path / "cmap.py")
        read = read_class_map(tmp_path / "cmap.py", ignore_index=classes.ignore_index)
        assert (read.names, read.values) == (classes.names, classes.values)
        assert list(read.excluded) == list(classes.excluded)
        np.testing.assert_array_equal(read.palette, classes.palette)
        assert set(read.excluded.values()) <= {"unnamed"}  # a table has no place for reasons
    assert {path.name for path in tmp_path.iterdir()} == {"class_map.json", "cmap.py"}


def test_a_class_map_json_has_a_line_for_every_value(tmp_path):
    ClassMap(("sky", "tree"), (3, 0), [(0, 9, 255), (1, 2, 3)], {11: "void"}, 254,
             {11: (5, 5, 5)}).write(tmp_path / "class_map.json")
    lines = (tmp_path / "class_map.json").read_text("utf-8").splitlines()
    assert '  {"value": 3, "name": "sky", "colour": [0, 9, 255]},' in lines
    assert '  {"value": 0, "name": "tree", "colour": [1, 2, 3]}' in lines
    assert '  {"value": 11, "why": "void", "colour": [5, 5, 5]}' in lines
    assert ' "ignore_index": 254' in lines


def test_excluded_values_are_ignored_and_never_class_0():
    classes = ClassMap(("ground", "roof"), (4, 7), excluded={0: "unnamed", 9: "absent"},
                       ignore_index=200)
    assert classes.to_ids(np.array([[0, 4, 7, 9]], np.uint8)).tolist() == [[200, 0, 1, 200]]


def test_ignored_pixels_go_back_as_the_value_nearest_to_void():
    def back(excluded, **options):
        classes = ClassMap(("a", "b"), excluded=dict.fromkeys(excluded, "why"), **options)
        return classes.void, classes.to_values(np.array([[classes.ignore_index]])).tolist()

    assert back([9, 255, 3]) == (255, [[255]])
    assert back([9, 3]) == (9, [[9]])
    assert back([255, 77], ignore_index=77) == (77, [[77]])
    colours = {"values": [(1, 1, 1), (2, 2, 2)]}
    assert back([(9, 9, 9), (0, 0, 0)], **colours) == ((0, 0, 0), [[[0, 0, 0]]])
    assert back([(9, 8, 7)], **colours) == ((9, 8, 7), [[[9, 8, 7]]])


def test_ids_that_no_mask_can_say_are_refused():
    classes = ClassMap(("background", "object"), (0, 255))
    for ids in ([[0, 2]], [[255]], [[-1]], [[256]]):
        with pytest.raises(ValueError, match="no class id"):
            classes.to_values(np.array(ids))
    with pytest.raises(ValueError, match="integers"):
        classes.to_values(np.zeros((2, 2)))


def test_undeclared_values_are_named_with_their_mask():
    ids = ClassMap(("a", "b", "c"), (0, 1, 4), excluded={255: "void", 9: "unnamed"})
    raw = np.array([[0, 1, 4, 9, 255, 3, 200]], np.uint8)
    assert_refused(lambda: ids.to_ids(raw, "mask x.png"), "mask x.png", "the values 3, 200,",
                   "0, 1, 4, and 9, 255 for ignored", "exclude")
    colours = ClassMap(("a", "b"), ((0, 0, 0), (9, 9, 8)))
    raw = np.array([[(0, 0, 0), (1, 2, 3), (9, 9, 8), (9, 8, 9)]], np.uint8)
    assert_refused(lambda: colours.to_ids(raw, "mask x.png"), "mask x.png",
                   "(1, 2, 3), (9, 8, 9),", "class_map.json", "smoothing")
    many = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    assert_refused(lambda: colours.to_ids(many), "... (1200 values)")


def test_masks_of_the_other_kind_are_refused():
    ids, colours = ClassMap(("a", "b")), ClassMap(("a", "b"), ((0, 0, 0), (9, 9, 8)))
    flat, deep = np.zeros((H, W), np.uint8), np.zeros((H, W, 3), np.uint8)
    assert_refused(lambda: ids.to_ids(deep, "it"), "it is (7, 9, 3)", "(H, W) of ids")
    assert_refused(lambda: colours.to_ids(flat), "(H, W, 3) of colours")
    assert_refused(lambda: ids.to_ids(flat.astype(int)), "int64", "uint8")
    grey = np.repeat(np.arange(3, dtype=np.uint8)[None, :, None], 3, axis=2)
    assert_refused(lambda: colours.to_ids(grey), "looks like a mask of ids")


def test_maps_that_say_the_same_are_equal_and_can_be_copied():
    one = ClassMap(["a", "b"], np.array([1, 2]), excluded={np.uint8(0): "void"})
    same = ClassMap(("a", "b"), (1, 2), excluded={0: "void"}, ignore_index=255)
    assert one == same == copy.deepcopy(one) and one != ClassMap(("a", "b")) and one != "a"
    assert (one.palette == palette_for(2)).all() and not one.has_colours
    with pytest.raises(ValueError):
        one.palette[0, 0] = 1


def test_a_plain_map_ignores_one_value_that_is_no_class():
    assert plain_map("ab").excluded == {255: "void"}
    assert plain_map("ab", ignore_index=7, void=11).to_dict()["excluded"] == [
        {"value": 11, "why": "void"}]
    assert plain_map("ab", [0, 255]).excluded == {}


# ---------------------------------------------------------------- through colours


def test_ids_with_colours_read_masks_of_these_colours():
    classes = ClassMap(("road", "car"), (7, 26), [(128, 64, 128), (0, 0, 142)],
                       {0: "unlabelled", 255: "void"}, 200, {0: (1, 1, 1)})
    shown = classes.through_colours()
    raw = np.array([[(0, 0, 142), (1, 1, 1), (128, 64, 128)]], np.uint8)
    assert shown.is_rgb and shown.to_ids(raw).tolist() == [[1, 200, 0]]
    assert shown.names == classes.names and shown.excluded == {(1, 1, 1): "unlabelled"}
    assert shown.through_colours() is shown


@pytest.mark.parametrize("palette, colours, words", [
    (None, {}, ["no colours"]),
    ([(1, 1, 1), (1, 1, 1)], {}, ["(1, 1, 1)", "twice"]),
    ([(1, 1, 1), (2, 2, 2)], {9: (2, 2, 2)}, ["(2, 2, 2)", "'b'", "excluded"]),
])
def test_colours_that_tell_nothing_are_refused(palette, colours, words):
    classes = ClassMap(("a", "b"), None, palette, {9: "void"}, excluded_colours=colours)
    assert_refused(classes.through_colours, *words)


# ---------------------------------------------------------------- what contradicts itself


@pytest.mark.parametrize("arguments, words", [
    (((),), ["0 classes"]),
    ((["x"] * 256,), ["256 classes"]),
    ((("a", "a"),), ["'a'", "twice"]),
    ((("a", " "),), ["' '", "no name"]),
    ((("a", "b\nc"),), ["no name"]),
    ((("a", 3),), ["3", "no name"]),
    ((("a", "b"), (1,)), ["1 values for 2 classes"]),
    ((("a", "b"), (1, 1)), ["value 1", "twice"]),
    ((("a", "b"), (1, 256)), ["256", "0 to 255"]),
    ((("a", "b"), (1, -1)), ["-1", "0 to 255"]),
    ((("a", "b"), (1, 2.0)), ["2.0"]),
    ((("a", "b"), (1, True)), ["True"]),
    ((("a", "b"), (1, "2")), ["'2'"]),
    ((("a", "b"), (1, (1, 2, 3))), ["some values are ids and some are colours"]),
    ((("a", "b"), ((1, 2), (1, 2, 3))), ["[1, 2]", "[r, g, b]"]),
    ((("a", "b"), ((1, 2, 256), (1, 2, 3))), ["[1, 2, 256]", "0 to 255"]),
    ((("a", "b"), None, [(1, 2, 3)]), ["1 colours for 2 classes"]),
    ((("a", "b"), None, ["red", "blue"]), ['"red"', "[r, g, b]"]),
    ((("a", "b"), ((0, 0, 0), (1, 1, 1)), [(0, 0, 0), (2, 2, 2)]), ["another colour besides"]),
    ((("a", "b"), None, None, {1: "void"}), ["value 1", "'b'", "excluded"]),
    ((("a", "b"), None, None, {(1, 1, 1): "void"}), ["some values are ids"]),
    ((("a", "b"), None, None, {300: "void"}), ["300"]),
    ((("a", "b"), None, None, {}, 1), ["--ignore-index 1", "(b)", "2 to 255"]),
    ((("a", "b"), None, None, {}, 256), ["256", "8-bit"]),
    ((("a", "b"), None, None, {}, -1), ["-1", "255"]),
])
def test_a_map_that_contradicts_itself_is_refused(arguments, words):
    assert_refused(lambda: ClassMap(*arguments), *words)
