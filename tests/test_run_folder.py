"""The run folder: TOML that reads back, JSON without NaN, and no run written over another."""

import io
import json
import tomllib

import numpy as np
import pytest

from minisegnet.errors import UserError
from minisegnet.training import run_folder
from minisegnet.training.run_folder import (
    append_json_line,
    new_run_folder,
    read_log,
    to_toml,
)


def test_toml_reads_back():
    settings = {"lr": 2e-3, "epochs": 40, "flag": True, "image_size": [180, 240],
                "data": 'a "quoted" \\ path é', "none": None}
    assert tomllib.loads(to_toml(settings)) == {k: v for k, v in settings.items() if k != "none"}


def test_log_lines_are_json_with_null_for_nan(tmp_path):
    append_json_line(tmp_path / "log.jsonl", {"epoch": 1, "iou": np.array([0.5, np.nan])})
    append_json_line(tmp_path / "log.jsonl", {"epoch": 2, "loss": np.float32(0.25)})
    assert read_log(tmp_path / "log.jsonl") == [{"epoch": 1, "iou": [0.5, None]},
                                                {"epoch": 2, "loss": 0.25}]
    json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])


def test_a_full_disk_leaves_no_half_line(tmp_path, monkeypatch):
    path = tmp_path / "log.jsonl"
    append_json_line(path, {"epoch": 1})

    class FullDisk(io.FileIO):
        def write(self, data):
            return super().write(data[:4])

    monkeypatch.setattr(run_folder, "open", lambda path, mode, buffering: FullDisk(path, mode),
                        raising=False)
    with pytest.raises(UserError, match="cannot write .*log.jsonl .*disk full"):
        append_json_line(path, {"epoch": 2})
    assert read_log(path) == [{"epoch": 1}]


def test_a_folder_with_anything_in_it_is_not_written_to(tmp_path):
    (tmp_path / "log.jsonl").write_text("a run of hours")
    with pytest.raises(UserError, match="not empty"):
        new_run_folder(tmp_path, default_name="x")
    assert (tmp_path / "log.jsonl").read_text() == "a run of hours"


def test_default_folders_are_numbered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = new_run_folder(None, default_name="plans_ce")
    assert [first.name, new_run_folder(None, default_name="plans_ce").name] == [
        "plans_ce_001", "plans_ce_002"]


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for path in ("file", "file/run", "long" * 100):
        with pytest.raises(UserError, match=path[:4]):
            new_run_folder(tmp_path / path, default_name="x")
