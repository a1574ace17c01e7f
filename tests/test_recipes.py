"""Every file of data/recipes, run small: two epochs on tiny pictures."""

import tomllib
from pathlib import Path

import pytest
from checks import benchmark_module

from minisegnet import train
from minisegnet.errors import run_command
from minisegnet.training.run_folder import read_log
from minisegnet.training.settings import parse_settings

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "data" / "recipes").glob("*.toml"))
kill_and_resume = benchmark_module("kill_and_resume")


def test_there_is_a_recipe_for_each_practice():
    assert len(RECIPES) == 5


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_a_recipe_is_what_the_flags_make_of_it(path):
    asked, settings = tomllib.loads(path.read_text()), parse_settings(["--config", str(path)])
    for key, value in asked.items():
        if not isinstance(value, list):
            assert getattr(settings, key) == value


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_a_recipe_runs(path, tmp_path, capsys):
    kill_and_resume.make_pictures(tmp_path / "data")
    asked = tomllib.loads(path.read_text())
    flags = ["--config", path, "--data", tmp_path / "data", "--output-dir", tmp_path / "run",
             "--epochs", 2]
    # What counts in epochs is shortened too.
    if "freeze_epochs" in asked:
        flags += ["--freeze-epochs", 1]
    if "loss_after" in asked:
        flags += ["--loss-after", *(text.replace(text.split(":")[0], "1", 1)
                                    for text in asked["loss_after"])]
    if "scale" in asked:
        flags += ["--scale", 1]
    if "save_every" in asked:
        flags += ["--save-every", 1]
    assert run_command(train.main, [str(flag) for flag in flags]) == 0, capsys.readouterr().err
    log = read_log(tmp_path / "run" / "log.jsonl")
    assert len(log) == 2 and log[-1]["mean_iou"] > 0
