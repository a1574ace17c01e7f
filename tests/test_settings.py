"""Flags, the TOML file that says the same, and what is refused before anything is read."""

import tomllib

import numpy as np
import pytest

from minisegnet import train
from minisegnet.cli import non_negative_float, positive_int
from minisegnet.errors import UserError, run_command
from minisegnet.training.build import build_weights
from minisegnet.training.run_folder import to_toml
from minisegnet.training.settings import parse_settings, to_config


def settings(*flags):
    return parse_settings([str(flag) for flag in flags])


def test_the_command_line_wins_over_the_config(tmp_path):
    config = tmp_path / "settings.toml"
    config.write_text('lr = 0.5\nepochs = 7\nimage-size = [64, 80]\n')
    settings = parse_settings(["--config", str(config), "--epochs", "3"])
    assert (settings.lr, settings.epochs, settings.image_size) == (0.5, 3, [64, 80])


@pytest.mark.parametrize("text, words", [
    ("lr = -1", ["--lr", "-1"]), ("lrr = 1", ["'lrr' is not a setting"]), ("lr =", ["not TOML"]),
    ("no_decay_norm_and_bias = 3", ["true or false"]), ("lr = [1, 2]", ["lr is one value"]),
    ("image_size = 8", ["image_size is a list of 2"]), ("image_size = [8]", ["--image-size"]),
    ("[training]", ["'training' is not a setting"])])
def test_a_bad_config_is_refused(tmp_path, capsys, text, words):
    (tmp_path / "bad.toml").write_text(text)
    assert run_command(train.main, ["--config", str(tmp_path / "bad.toml")]) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in ["bad.toml", *words]), error


def test_files_written_by_windows_are_read(tmp_path):
    (tmp_path / "w.json").write_text("[1, 2, 4]", encoding="utf-8-sig")
    (tmp_path / "s.toml").write_text("epochs = 7", encoding="utf-8-sig")
    np.testing.assert_array_equal(build_weights(str(tmp_path / "w.json"), None, "abc"),
                                  [1, 2, 4])
    assert parse_settings(["--config", str(tmp_path / "s.toml")]).epochs == 7


def test_number_types_name_the_bound():
    assert positive_int("3") == 3 and non_negative_float("0") == 0.0
    for kind, text in ((positive_int, "0"), (positive_int, "1.5"), (non_negative_float, "inf")):
        with pytest.raises(Exception, match=text):
            kind(text)


EVERYTHING = (
    "--model", "deeplab_light", "--epochs", 30, "--image-size", 32, 48, "--image-size-after",
    "5:64x96", "9:128x192", "--loss", "ce", "--loss-after", "10:focal", "20:dice", "--lr-scale",
    "backbone=0.1", "classifier=10", "--freeze", "backbone", "--freeze-epochs", 4, "--freeze-lr",
    0.1, "--no-decay-norm-and-bias", "--schedule", "restarts", "--ema", 0.9)


def test_a_written_config_means_the_same(tmp_path):
    first = settings(*EVERYTHING)
    assert first.image_size_after == [(5, [64, 96]), (9, [128, 192])]
    assert first.lr_scale == [("backbone", 0.1), ("classifier", 10.0)]
    assert first.loss_after == [(10, "focal"), (20, "dice")]
    path = tmp_path / "config.toml"
    path.write_text(to_toml(to_config(first)))
    assert "output_dir" not in tomllib.loads(path.read_text())
    again = settings("--config", path)
    assert {**vars(again), "config": None} == {**vars(first), "config": None}


def test_a_scale_replaces_the_size_of_the_file_and_back(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text("image_size = [32, 48]\nlr_scale = []\nloss_after = []\n")
    assert settings("--config", path, "--scale", 0.5).image_size is None
    path.write_text("scale = 0.5\n")
    by_size = settings("--config", path, "--image-size", 32, 48)
    assert (by_size.scale, by_size.image_size) == (None, [32, 48])


def test_a_resumed_run_has_the_settings_of_its_folder(tmp_path):
    first = settings(*EVERYTHING)
    (tmp_path / "config.toml").write_text(to_toml(to_config(first)))
    again = settings("--resume", tmp_path, "--num-workers", 0, "--epochs=31")
    assert (again.num_workers, again.epochs, again.resume) == (0, 31, str(tmp_path))
    unchanged = {"resume": None, "num_workers": 0, "epochs": 31}
    assert {**vars(again), **unchanged} == {**vars(first), **unchanged}


@pytest.mark.parametrize("flags, words", [
    (["--lr", "1"], ["--lr"]), (["--lr=1"], ["--lr"]), (["--config", "x.toml"], ["--config"]),
    (["--no-decay-norm-and-bias"], ["--no-decay-norm-and-bias"])])
def test_a_resumed_run_takes_no_other_settings(tmp_path, flags, words):
    (tmp_path / "config.toml").write_text("")
    with pytest.raises(UserError) as caught:
        settings("--resume", tmp_path, *flags)
    assert all(word in str(caught.value) for word in ["--resume", "leave out", *words])


def test_what_is_no_run_folder_is_not_resumed(tmp_path):
    with pytest.raises(UserError, match="there is no .*config.toml"):
        settings("--resume", tmp_path)


@pytest.mark.parametrize("flags, words", [
    (["--image-size", 8, 8, "--scale", 0.5], ["--image-size", "--scale"]),
    (["--scale", 0], ["--scale"]),
    (["--allow-partial"], ["--init-from"]),
    (["--freeze-epochs", 3], ["--freeze-epochs", "--freeze backbone"]),
    (["--freeze", "backbone", "--freeze-lr", 1], ["--freeze-lr", "--freeze-epochs"]),
    (["--freeze", "backbone", "--freeze-epochs", 8], ["--freeze-epochs 8", "--epochs 8"]),
    (["--freeze", "head"], ["--freeze", "head"]),
    (["--model", "unet_small", "--freeze", "backbone"], ["unet_small", "no backbone"]),
    (["--model", "unet_small", "--freeze-batch-norm", "backbone"], ["unet_small", "no backbone"]),
    (["--loss-after", "8:ce"], ["--loss-after 8", "--epochs 8"]),
    (["--loss-after", "2:hinge"], ["--loss-after", "hinge"]),
    (["--loss-after", "ce"], ["EPOCH:VALUE"]),
    (["--loss-after", "3:ce", "2:dice"], ["--loss-after", "rising"]),
    (["--loss-after", "2:ce", "--label-smoothing", 0.1], ["--label-smoothing", "combined"]),
    (["--loss-after", "2:ce", "--monitor", "val_loss"], ["--monitor val_loss"]),
    (["--image-size-after", "2:64"], ["--image-size-after", "HxW"]),
    (["--image-size-after", "2:64x99999"], ["99999", "8192"]),
    (["--lr-scale", "backbone"], ["--lr-scale", "LAYER=SCALE"]),
    (["--lr-scale", "backbone=-1"], ["-1"]),
    (["--freeze", "backbone", "--freeze-epochs", 2, "--warmup-epochs", 3],
     ["--warmup-epochs 3", "stage"]),
    (["--loss", "tversky", "--tversky-alpha", 0, "--tversky-beta", 0], ["--tversky-alpha 0"]),
    (["--dice-mode", "smp", "--loss", "ce"], ["--dice-mode smp"]),
    (["--dice-mode", "smp", "--loss", "dice"], ["--dice-mode smp", "--class-weights none"]),
    (["--sampler", "class-crops"], ["--sampler class-crops", "--augment"]),
    (["--ema", 1], ["--ema"]),
    (["--schedule", "plateau", "--min-lr", 1], ["--min-lr 1"]),
    (["--schedule", "cosine", "--min-lr", 1e-3, "--freeze", "backbone", "--freeze-epochs", 2,
      "--freeze-lr", 1e-4], ["--min-lr 0.001", "--freeze-lr 0.0001"]),
])
def test_what_makes_no_sense_together_is_refused(flags, words):
    with pytest.raises(UserError) as caught:
        settings(*flags)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_unet_takes_a_batch_of_one():
    assert settings("--model", "unet_small", "--batch-size", 1).batch_size == 1
