"""Files of class maps: what is read from them, nothing run, and one line for what is wrong."""

import json
import os

import numpy as np
import pytest
from checks import assert_refused

from minisegnet.datasets import ClassMap, read_class_map

SKY, ROAD = {"value": 0, "name": "sky"}, {"value": 3, "name": "road"}


def read(path, content, **options):
    """Write `content`, a text or what is to be JSON, and read it as a class map."""
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text, "utf-8")
    return read_class_map(path, **options)


# ---------------------------------------------------------------- what is read


def test_a_table_has_a_class_for_every_name_and_excludes_the_rest(tmp_path):
    classes = read(tmp_path / "cmap.py", '''
"""Aerial pictures."""
# value: (name, colour)
CMAP = {
    0: ("background", (0, 0, 0)),
    7: (" pool ", [0, 50, 89]),  # blanks around a name are no part of it
    3: ("", (9, 9, 9)),
    0x10: ("tree", (1, 2, 3)),
    255: ("", None),
}
''')
    assert classes.names == ("background", "pool", "tree") and classes.values == (0, 7, 16)
    assert classes.palette.tolist() == [[0, 0, 0], [0, 50, 89], [1, 2, 3]]
    assert classes.excluded == {3: "unnamed", 255: "unnamed"} and classes.ignore_index == 255
    assert classes.excluded_colours == {3: (9, 9, 9)}


def test_a_table_of_colours_is_one_of_rgb_masks(tmp_path):
    for colours in ("(1, 2, 3)", "(4, 5, 6)"), ("None", "None"):
        classes = read(tmp_path / "cmap.py", """{(1, 2, 3): ("tree", %s), (4, 5, 6): ("car", %s),
            (0, 0, 0): ("", (0, 0, 0))}""" % colours, ignore_index=99)
        assert classes.is_rgb and classes.values == ((1, 2, 3), (4, 5, 6))
        assert classes.excluded == {(0, 0, 0): "unnamed"} and classes.ignore_index == 99


@pytest.mark.parametrize("text", [
    'import os\nCMAP = {}', 'CMAP = {}\nopen("ran", "w")', 'CMAP = dict(open("ran", "w"))',
    'CMAP = {0: (open("ran", "w"), None)}', 'CMAP = {0: ("a", None), **open("ran", "w")}',
    'CMAP = {0: ("a", None), open("ran", "w"): ("b", None)}', 'CMAP = [open("ran", "w")]',
    'CMAP = {k: ("a", open("ran", "w")) for k in range(9)}'])
def test_a_table_is_never_run(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    assert_refused(lambda: read(tmp_path / "cmap.py", text), tmp_path / "cmap.py", "write")
    assert os.listdir(tmp_path) == ["cmap.py"]


def test_class_map_json_needs_classes_alone(tmp_path):
    path = tmp_path / "class_map.json"
    assert read(path, {"classes": [SKY, ROAD]}) == ClassMap(("sky", "road"), (0, 3))
    assert read(path, {"about": "mine", "classes": [SKY, ROAD]}, ignore_index=9).ignore_index == 9
    path.write_text(json.dumps({"classes": [SKY, ROAD]}), "utf-8-sig")  # as Notepad saves it
    assert read_class_map(path).names == ("sky", "road")


def test_the_ignore_index_of_file_and_run_must_be_one(tmp_path):
    path, content = tmp_path / "class_map.json", {"classes": [SKY, ROAD], "ignore_index": 254}
    assert read(path, content).ignore_index == read(path, content, ignore_index=254).ignore_index \
        == 254
    assert_refused(lambda: read(path, content, ignore_index=255), path, "254", "255",
                   "--ignore-index 254")


def test_classes_txt_excludes_one_value(tmp_path):
    path = tmp_path / "classes.txt"
    assert read(path, "sky\nroad").excluded == {255: "void"}
    classes = read(path, "4 sky\n0 road", ignore_index=77, void=11)
    assert classes.values == (4, 0) and classes.excluded == {11: "void"}
    assert classes.to_ids(np.array([[11, 0, 4]], np.uint8)).tolist() == [[77, 1, 0]]
    assert read(path, "4 sky\n255 road").excluded == {}


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("content, words", [
    ("{", ["not JSON", "line 1"]),
    ("[" * 100_000, ["not JSON"]),
    ("", ["not JSON"]),
    ([], ['"classes" must be there']),
    ({}, ['"classes" must be there']),
    ({"classes": []}, ["0 classes"]),
    ({"classes": [SKY]}, ["1 class"]),
    ({"classes": {"sky": 0}}, ["'classes' is a list of records", '{"sky": 0}']),
    ({"classes": [SKY, "road"]}, ['"road"', "no record"]),
    ({"classes": [SKY, {"value": 1}]}, ['{"value": 1}', "no record", '"name"']),
    ({"classes": [SKY, {**ROAD, "color": [1, 1, 1]}]}, ["no record", '"colour"']),
    ({"classes": [SKY, {**ROAD, "name": 7}]}, ['"name" is a text']),
    ({"classes": [SKY, {**ROAD, "name": ""}]}, ["''", "no name"]),
    ({"classes": [SKY, {**ROAD, "name": "sky"}]}, ["the name 'sky' occurs twice"]),
    ({"classes": [SKY, {**ROAD, "value": 0}]}, ["the value 0 occurs twice"]),
    ({"classes": [SKY, {**ROAD, "value": "3"}]}, ["'3'", "0 to 255"]),
    ({"classes": [SKY, {**ROAD, "value": None}]}, ["None", "0 to 255"]),
    ({"classes": [SKY, {**ROAD, "value": {}}]}, ["{}", "0 to 255"]),
    ({"classes": [SKY, {**ROAD, "value": [1, 2, 3]}]}, ["some values are ids"]),
    ({"classes": [SKY, {**ROAD, "colour": [1, 2, 3]}]}, ["1 of 2 classes have a colour"]),
    ({"classes": [{**SKY, "colour": "red"}, {**ROAD, "colour": [1, 2, 3]}]}, ['"red"']),
    ({"classes": [{**SKY, "colour": {}}, {**ROAD, "colour": [1, 2, 3]}]}, ["{}", "no colour"]),
    ({"classes": [{**SKY, "value": [1, 2, 3], "colour": [1, 2, 3]},
                  {**ROAD, "value": [4, 5, 6], "colour": [4, 5, 7]}]}, ["another colour besides"]),
    ({"classes": [SKY, ROAD], "excluded": 255}, ["'excluded' is a list"]),
    ({"classes": [SKY, ROAD], "excluded": [255]}, ["255", '"why"']),
    ({"classes": [SKY, ROAD], "excluded": [{"value": 3, "why": "void"}]},
     ["value 3", "'road'", "excluded"]),
    ({"classes": [SKY, ROAD], "excluded": [{"value": 9, "why": "a"}, {"value": 9, "why": "b"}]},
     ["9 is excluded twice"]),
    ({"classes": [SKY, ROAD], "excluded": [{"value": [1, {}, 2], "why": "a"}]}, ["no colour"]),
    ({"classes": [SKY, ROAD], "ignore_index": 1}, ["--ignore-index 1", "(road)"]),
    ({"classes": [SKY, ROAD], "ignore_index": "255"}, ["ignore index 255"]),
    ({"classes": [SKY, ROAD], "names": []}, ["'names'", "classes, excluded, ignore_index"]),
    ('{"classes": [{"value": 0, "value": 1, "name": "sky"}]}', ["'value' occurs twice"]),
])
def test_a_class_map_json_that_makes_no_sense(tmp_path, content, words):
    path = tmp_path / "class_map.json"
    assert_refused(lambda: read(path, content), path, *words)


@pytest.mark.parametrize("text, words", [
    ("", ["must be one table", "it holds none"]),
    ("CMAP = {0: ('a'}", ["line 1", "not Python"]),
    ("CMAP = {0: ('a\x00', None)}", ["not Python"]),
    ("CMAP = [0, 1]", ["must be one table"]),
    ("CMAP = {0: ('a', None)}\n\nCMAP[1] = ('b', None)", ["line 3 goes on"]),
    ("CMAP = {0: ('a', None), 1: 'b'}", ["line 1", "'b' is not (name, colour)"]),
    ("CMAP = {0: ('a', None),\n 1: ('b',)}", ["line 2", "('b',)"]),
    ("CMAP = {0: ('a', None),\n 1: ('b', RED)}", ["line 2", "nothing is computed"]),
    ("CMAP = {0: ('a', None), 0: ('b', None)}", ["value 0", "twice"]),
    ("CMAP = {0: ('', None), 0: ('', None), 1: ('b', None)}", ["0 is excluded twice"]),
    ("CMAP = {0: ('a', None), 1: ('a', None)}", ["'a' occurs twice"]),
    ("CMAP = {0: ('a', None), 0: ('', None), 1: ('b', None)}", ["value 0", "excluded"]),
    ("CMAP = {0: ('a', None), 1: ('b', (1, 2, 3))}", ["1 of 2 classes have a colour"]),
    ("CMAP = {0: ('a', 7), 1: ('b', 8)}", ["7 is no colour"]),
    ("CMAP = {'0': ('a', None), 1: ('b', None)}", ["'0'", "0 to 255"]),
    ("CMAP = {0: ('', None), 1: ('', None)}", ["0 classes"]),
    ("CMAP = {0: ('a', None)}", ["1 class"]),
])
def test_a_table_that_makes_no_sense(tmp_path, text, words):
    path = tmp_path / "cmap.py"
    assert_refused(lambda: read(path, text), path, *words)


def test_files_that_are_none(tmp_path):
    for name in ("gone.json", "gone.py", "gone.txt"):
        assert_refused(lambda: read_class_map(tmp_path / name), tmp_path / name, "No such file")
    (tmp_path / "folder.json").mkdir()
    assert_refused(lambda: read_class_map(tmp_path / "folder.json"), "folder.json", "directory")
    assert_refused(lambda: read_class_map(tmp_path / "map.csv"), "map.csv", ".json", ".py")
    (tmp_path / "latin.json").write_bytes("é".encode("latin-1"))
    assert_refused(lambda: read_class_map(tmp_path / "latin.json"), "latin.json", "UTF-8")


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path):
    classes = ClassMap(("sky", "road"))
    assert_refused(lambda: classes.write(tmp_path / "map.txt"), "map.txt", ".json or .py")
    assert_refused(lambda: classes.write(tmp_path / "gone" / "map.json"), "cannot write", "gone")
    (tmp_path / "map.json").mkdir()
    assert_refused(lambda: classes.write(tmp_path / "map.json"), "cannot write")
    assert [path.name for path in tmp_path.iterdir()] == ["map.json"]
