"""Checkpoints: a round trip, no pickle, refusals by name and shape, nothing half-written."""

import os
from pathlib import Path

import numpy as np
import pytest

from minisegnet.errors import UserError
from minisegnet.models import build_model
from minisegnet.optim import AdamW
from minisegnet.training.checkpoint import (
    load_weights,
    read_checkpoint,
    save_checkpoint,
    write_atomically,
)


@pytest.fixture
def saved(tmp_path, rng):
    """A model whose every array is random, its optimizer after one step, and their checkpoint."""
    model = build_model("mini", 5, seed=1)
    for _, array in (*model.named_parameters(), *model.named_buffers()):
        array[...] = rng.standard_normal(array.shape)
    optimizer = AdamW(model, 1e-2)
    optimizer.flat.grad[...] = rng.standard_normal(optimizer.flat.grad.shape)
    optimizer.step()
    path = tmp_path / "last.npz"
    save_checkpoint(path, model, optimizer=optimizer, meta={"epoch": 3})
    return model, optimizer, path


def test_every_array_comes_back(saved):
    model, optimizer, path = saved
    checkpoint = read_checkpoint(path)
    other = build_model("mini", 5, seed=2)
    load_weights(other, checkpoint)
    for kind in ("named_parameters", "named_buffers"):
        for (name, a), (_, b) in zip(getattr(model, kind)(), getattr(other, kind)()):
            np.testing.assert_array_equal(a, b, err_msg=name)
    assert checkpoint.meta == {"model": "mini", "num_classes": 5, "epoch": 3}
    assert set(checkpoint.optimizer) == set(optimizer.state_dict())
    for key, value in optimizer.state_dict().items():
        np.testing.assert_array_equal(checkpoint.optimizer[key], value)


def test_loading_writes_into_the_arrays_an_optimizer_holds(saved):
    _, _, path = saved
    model = build_model("mini", 5, seed=2)
    optimizer = AdamW(model, 1e-2)
    load_weights(model, read_checkpoint(path))
    first = next(array for _, array in model.named_parameters())
    np.testing.assert_array_equal(optimizer.flat.data[:first.size], first.ravel())


def test_no_pickle_is_needed_or_accepted(saved, tmp_path):
    _, _, path = saved
    with np.load(path, allow_pickle=False) as arrays:
        assert all(arrays[key].dtype != object for key in arrays.files)
    bad = tmp_path / "pickled.npz"
    np.savez(bad, meta=np.array([{"a": 1}], dtype=object))
    with pytest.raises(UserError, match="pickled.npz is not a checkpoint"):
        read_checkpoint(bad)


@pytest.mark.parametrize("name, classes, misfit", [
    ("mini", 7, "classifier.weight is"), ("deeplab_light", 5, "backbone")])
def test_another_model_is_refused_by_name_and_shape_before_anything_changes(
        saved, name, classes, misfit):
    _, _, path = saved
    model = build_model(name, classes)
    before = {n: a.copy() for n, a in (*model.named_parameters(), *model.named_buffers())}
    with pytest.raises(UserError, match=f"does not fit {name} with {classes}.*{misfit}"):
        load_weights(model, read_checkpoint(path))
    for n, a in (*model.named_parameters(), *model.named_buffers()):
        np.testing.assert_array_equal(a, before[n])


@pytest.mark.parametrize("meta", ["3", "null", "not JSON"])
def test_meta_data_that_is_no_dictionary_is_refused(tmp_path, meta):
    np.savez(tmp_path / "odd.npz", meta=np.array(meta))
    with pytest.raises(UserError, match="odd.npz is not a checkpoint"):
        read_checkpoint(tmp_path / "odd.npz")


def test_any_damage_to_the_archive_is_one_line(saved, rng):
    _, _, path = saved
    whole = path.read_bytes()
    directory = whole.index(b"PK\x01\x02")
    for place in rng.integers(directory, len(whole), 40):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        try:
            read_checkpoint(path)
        except UserError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"text"])
def test_a_file_that_is_no_checkpoint_is_named(tmp_path, content):
    path = tmp_path / "broken.npz"
    path.write_bytes(content)
    with pytest.raises(UserError, match="broken.npz is not a checkpoint"):
        read_checkpoint(path)


def test_a_truncated_checkpoint_is_refused(saved):
    _, _, path = saved
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UserError, match="last.npz is not a checkpoint"):
        read_checkpoint(path)


def test_a_missing_checkpoint_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is no checkpoint"):
        read_checkpoint(tmp_path / "none.npz")


def test_a_save_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "best.npz"
    path.write_bytes(b"the old one")

    def fail(file):
        file.write(b"half of the new")
        raise OSError("disk full")

    with pytest.raises(UserError, match="cannot write .*best.npz .*disk full"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"the old one"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_appears_in_one_step_when_it_is_whole(tmp_path, monkeypatch):
    moves = []

    def replace(temporary, path):
        moves.append((Path(temporary).read_bytes(), path))

    monkeypatch.setattr(os, "replace", replace)
    write_atomically(tmp_path / "best.npz", lambda file: file.write(b"whole"))
    assert moves == [(b"whole", tmp_path / "best.npz")]
    assert not list(tmp_path.iterdir())  # nothing but the move could have made the file


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_a_save_that_is_cut_off_leaves_nothing(tmp_path, error):
    def fail(file):
        file.write(b"half of it")
        raise error

    with pytest.raises(error):
        write_atomically(tmp_path / "best.npz", fail)
    assert not list(tmp_path.iterdir())
