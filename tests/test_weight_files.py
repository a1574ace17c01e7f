"""Weights from elsewhere: every format, what fits, what is refused, and nothing in between."""

import sys

import numpy as np
import pytest

from minisegnet.errors import UserError
from minisegnet.models import build_model, to_torch_state_dict
from minisegnet.models.torch_layout import COUNTER
from minisegnet.training.checkpoint import save_checkpoint
from minisegnet.training.weight_files import (
    MOST_NAMES,
    initialize,
    read_state_dict,
    read_tensors,
    write_state_dict,
)

FORMATS = ("npz", "safetensors", "pth", "pt")


def randomized(name, num_classes=5, seed=0):
    """Return a model whose every array is random; running variances are positive."""
    model = build_model(name, num_classes)
    rng = np.random.default_rng(seed)
    for _, array in model.named_parameters():
        array[...] = rng.standard_normal(array.shape)
    for name, array in model.named_buffers():
        array[...] = rng.uniform(0.5, 2, array.shape)
    return model


def arrays_of(model):
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def copies_of(model):
    return {name: array.copy() for name, array in arrays_of(model).items()}


def assert_same(model, expected):
    for name, array in arrays_of(model).items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def torchvision_state(model, rng):
    """Return what torchvision's mobilenet_v3_small().state_dict() would hold: `model`'s backbone.

    Checked once against the state of torchvision 0.28 itself: the same 244 names and shapes.
    """
    state = {name.removeprefix("backbone."): array
             for name, array in to_torch_state_dict(model).items() if name.startswith("backbone.")}
    for layer, shape in ((0, (1024, 576)), (3, (1000, 1024))):
        state[f"classifier.{layer}.weight"] = rng.standard_normal(shape).astype(np.float32)
        state[f"classifier.{layer}.bias"] = rng.standard_normal(shape[:1]).astype(np.float32)
    assert len(state) == 244
    return state


# Reading

@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_gives_back_every_number(torch, tmp_path, suffix):
    state = to_torch_state_dict(randomized("mini"))
    path = tmp_path / f"weights.{suffix}"
    write_state_dict(path, state)
    found = read_state_dict(path)
    assert found.keys() == state.keys()
    for name, array in state.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize("suffix", ["npz", "safetensors", "pth"])
@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_half_precision_becomes_float32(torch, tmp_path, rng, suffix, half):
    if (suffix, half) == ("npz", "bfloat16"):
        pytest.skip("NumPy has no bfloat16")
    tensor = torch.tensor(rng.standard_normal((3, 4))).to(getattr(torch, half))
    path = tmp_path / f"half.{suffix}"
    if suffix == "pth":
        torch.save({"w": tensor}, path)
    elif suffix == "npz":
        np.savez(path, w=tensor.numpy())
    else:
        from safetensors.torch import save_file

        save_file({"w": tensor}, path)
    found = read_tensors(path)["w"]
    assert found.array.dtype == np.float32 and found.stored_dtype == half
    np.testing.assert_array_equal(found.array, tensor.float().numpy())


@pytest.mark.parametrize("wrap", [
    lambda state: {"state_dict": state, "epoch": 3},
    lambda state: {"model_state_dict": state, "optimizer_state_dict": {"lr": 1.0}},
    lambda state: {"model": state, "args": {}},
    lambda state: {"model": {"state_dict": state}},
    lambda state: {"epoch": next(iter(state.values())).sum(), "model": state},
    lambda state: {**state, "mask_values": [0, 1]},
    lambda state: {**state, "model": {"depth": 3}},  # a word that wraps no tensors
    lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
])
def test_what_training_scripts_wrap_around_a_state_dict_is_taken_off(torch, tmp_path, wrap):
    model = randomized("mini")
    state = {name: torch.tensor(array) for name, array in to_torch_state_dict(model).items()}
    torch.save(wrap(state), tmp_path / "wrapped.pth")
    other = build_model("mini", 5, seed=3)
    assert initialize(other, tmp_path / "wrapped.pth").count == 159
    assert_same(other, arrays_of(model))


def test_a_prefix_that_not_all_names_have_stays(tmp_path):
    np.savez(tmp_path / "x.npz", **{"module.a": np.ones(1), "b": np.ones(1)})
    assert set(read_state_dict(tmp_path / "x.npz")) == {"module.a", "b"}


class Malicious:
    def __reduce__(self):
        return print, ("this would have been run",)


def test_no_code_in_a_file_is_run(torch, tmp_path, capsys):
    torch.save({"w": torch.ones(2), "x": Malicious()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="evil.pth is not a torch file of tensors alone"):
        read_state_dict(tmp_path / "evil.pth")
    np.savez(tmp_path / "evil.npz", x=np.array([Malicious()], dtype=object))
    with pytest.raises(UserError, match="cannot read .*evil.npz as .npz of plain arrays"):
        read_state_dict(tmp_path / "evil.npz")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name, content, message", [
    ("none.pth", None, "there is no file .*none.pth"),
    ("weights.h5", b"", "weights.h5 is no file of weights.*.npz, .safetensors, .pth, .pt"),
    ("weights", b"", "is no file of weights"),
    ("a.npz", b"text", "cannot read .*a.npz"),
    ("a.npz", b"", "cannot read .*a.npz"),
    ("a.safetensors", b"text", "cannot read .*a.safetensors"),
    ("a.safetensors", b"", "cannot read .*a.safetensors"),
    ("a.pth", b"text", "a.pth is not a torch file"),
    ("a.pt", b"PK\x03\x04 cut", "a.pt is not a torch file"),
])
def test_files_that_cannot_be_read_are_one_line(torch, tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as refusal:
        initialize(build_model("mini", 5), path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {}], ids=str)
def test_a_torch_file_without_tensors_is_refused(torch, tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(UserError, match="x.pth (holds no arrays|is not a torch file)"):
        read_state_dict(tmp_path / "x.pth")


@pytest.mark.parametrize("package, suffix", [("torch", "pth"), ("safetensors", "safetensors")])
def test_a_missing_package_is_named_with_the_cure(tmp_path, monkeypatch, package, suffix):
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(b"something")
    monkeypatch.setitem(sys.modules, package, None)  # an import of it raises ImportError
    message = rf"\.{suffix} files need {package}.*pip install 'minisegnet\[torch\]'"
    with pytest.raises(UserError, match=message):
        read_state_dict(path)
    with pytest.raises(UserError, match=message):
        write_state_dict(path, {})
    assert path.read_bytes() == b"something"


# Everything fits

@pytest.mark.parametrize("name", ["mini", "deeplab_light", "deeplab_baseline", "unet_small"])
def test_a_complete_state_loads_bit_for_bit(tmp_path, name):
    model = randomized(name)
    np.savez(tmp_path / "x.npz", **to_torch_state_dict(model))
    other = build_model(name, 5, seed=3)
    loaded = initialize(other, tmp_path / "x.npz")
    assert_same(other, arrays_of(model))
    assert loaded.count == loaded.total == len(arrays_of(model))
    path = tmp_path / "x.npz"
    assert loaded.report_lines == [f"{loaded.count} of {loaded.total} arrays loaded from {path}"]


def test_the_counters_of_batches_may_be_missing(tmp_path):
    model = randomized("unet_small")
    state = {name: array for name, array in to_torch_state_dict(model).items()
             if not name.endswith(COUNTER)}
    np.savez(tmp_path / "x.npz", **state)
    other = build_model("unet_small", 5, seed=3)
    initialize(other, tmp_path / "x.npz")
    assert_same(other, arrays_of(model))


@pytest.mark.parametrize("allow_partial", [False, True])
def test_our_own_checkpoint_loads(tmp_path, allow_partial):
    model = randomized("mini")
    save_checkpoint(tmp_path / "best.npz", model, meta={})
    other = build_model("mini", 5, seed=3)
    loaded = initialize(other, tmp_path / "best.npz", allow_partial=allow_partial)
    assert_same(other, arrays_of(model))
    assert (loaded.count, loaded.total, len(loaded.report_lines)) == (159, 159, 1)


def test_an_optimizer_sees_what_was_loaded(tmp_path):
    from minisegnet.optim import AdamW

    model, other = randomized("mini"), build_model("mini", 5, seed=3)
    np.savez(tmp_path / "x.npz", **to_torch_state_dict(model))
    optimizer = AdamW(other, 1e-3)
    initialize(other, tmp_path / "x.npz")
    first = next(array for _, array in model.named_parameters())
    np.testing.assert_array_equal(optimizer.flat.data[:first.size], first.ravel())


# torchvision's backbone

@pytest.mark.parametrize("name, total", [("deeplab_light", 263), ("deeplab_baseline", 253)])
def test_torchvision_weights_load_into_the_backbone_alone(tmp_path, rng, name, total):
    source, model = randomized("deeplab_light"), build_model(name, 5, seed=3)
    np.savez(tmp_path / "mobilenet_v3_small.npz", **torchvision_state(source, rng))
    expected = copies_of(model)
    expected.update({name: array for name, array in arrays_of(source).items()
                     if name.startswith("backbone.")})
    loaded = initialize(model, tmp_path / "mobilenet_v3_small.npz")
    assert_same(model, expected)
    assert (loaded.count, loaded.total) == (206, total)
    assert loaded.report_lines[0].startswith(f"206 of {total} arrays loaded from ")
    assert loaded.report_lines[0].endswith(": the backbone")
    assert loaded.report_lines[1:] == ["  left over in the file: classifier.0.weight, "
                                       "classifier.0.bias, classifier.3.weight, "
                                       "classifier.3.bias"]


@pytest.mark.parametrize("lack", ["features.7.block.2.fc1.bias", "features.0.1.running_mean"])
def test_an_incomplete_backbone_is_refused(tmp_path, rng, lack):
    state = torchvision_state(randomized("deeplab_light"), rng)
    del state[lack]
    np.savez(tmp_path / "x.npz", **state)
    model = build_model("deeplab_light", 5, seed=3)
    before = copies_of(model)
    with pytest.raises(UserError, match=f"backbone.{lack} is missing there"):
        initialize(model, tmp_path / "x.npz")
    assert_same(model, before)
    assert initialize(model, tmp_path / "x.npz", allow_partial=True).count == 205


def test_torchvision_weights_do_not_fit_another_backbone(tmp_path, rng):
    np.savez(tmp_path / "x.npz", **torchvision_state(randomized("deeplab_light"), rng))
    with pytest.raises(UserError, match=r"does not fit mini with 5.*\(72, 16, 1, 1\) there"):
        initialize(build_model("mini", 5), tmp_path / "x.npz")


# Misfits

def write_as(kind, path, model):
    if kind == "checkpoint":
        save_checkpoint(path, model, meta={})
    else:
        np.savez(path, **to_torch_state_dict(model))


@pytest.mark.parametrize("kind, shapes", [
    ("checkpoint", r"\(1, 1, 48, 7\) there and \(1, 1, 48, 5\) here"),
    ("state dict", r"\(7, 48, 1, 1\) there and \(5, 48, 1, 1\) here")])
def test_another_number_of_classes_is_refused_by_name_and_shape_and_changes_nothing(
        tmp_path, kind, shapes):
    write_as(kind, tmp_path / "x.npz", randomized("mini", 7))
    model = build_model("mini", 5, seed=3)
    before = copies_of(model)
    message = rf"classifier.weight is {shapes} \(2 misfits in all\).*--allow-partial"
    with pytest.raises(UserError, match=message) as refusal:
        initialize(model, tmp_path / "x.npz")
    assert "\n" not in str(refusal.value)
    assert_same(model, before)


@pytest.mark.parametrize("kind", ["checkpoint", "state dict"])
def test_with_allow_partial_what_fits_is_loaded_and_the_rest_is_named(tmp_path, kind):
    source, model = randomized("mini", 7), build_model("mini", 5, seed=3)
    write_as(kind, tmp_path / "x.npz", source)
    expected = {**copies_of(source), **{name: array for name, array in copies_of(model).items()
                                        if name.startswith("classifier.")}}
    loaded = initialize(model, tmp_path / "x.npz", allow_partial=True)
    assert_same(model, expected)
    assert (loaded.count, loaded.total) == (157, 159)
    assert loaded.report_lines[0].startswith("157 of 159 arrays loaded")
    [kept] = loaded.report_lines[1:]
    assert kept.startswith("  kept as they were: classifier.weight ((")
    assert "classifier.bias ((7,) there, (5,) here)" in kept


@pytest.mark.parametrize("kind", ["checkpoint", "state dict"])
def test_long_lists_are_cut(tmp_path, kind):
    write_as(kind, tmp_path / "x.npz", randomized("deeplab_light"))
    lines = initialize(build_model("deeplab_baseline", 5), tmp_path / "x.npz",
                       allow_partial=True).report_lines
    assert len(lines) == 3
    for line in lines[1:]:
        assert " more" in line
        names = [word for word in line.split() if "." in word]
        assert len(names) == MOST_NAMES


@pytest.mark.parametrize("kind", ["checkpoint", "state dict"])
@pytest.mark.parametrize("allow_partial", [False, True])
def test_nothing_that_fits_is_refused_even_with_allow_partial(tmp_path, kind, allow_partial):
    write_as(kind, tmp_path / "x.npz", randomized("unet_small"))
    message = "nothing in .*x.npz fits mini: it holds inc" if allow_partial else "does not fit"
    with pytest.raises(UserError, match=message):
        initialize(build_model("mini", 5), tmp_path / "x.npz", allow_partial=allow_partial)


def test_whole_numbers_are_no_weights(tmp_path):
    state = to_torch_state_dict(randomized("mini"))
    state["classifier.bias"] = state["classifier.bias"].astype(np.int8)
    np.savez(tmp_path / "x.npz", **state)
    with pytest.raises(UserError, match=r"classifier.bias is int8 \(5,\) there"):
        initialize(build_model("mini", 5), tmp_path / "x.npz")


# Numbers that are none

@pytest.mark.parametrize("kind", ["checkpoint", "state dict"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("allow_partial", [False, True])
def test_what_is_not_finite_is_refused_by_name_and_changes_nothing(tmp_path, kind, value,
                                                                   allow_partial):
    source = randomized("mini")
    for name in ("stage2.pointwise.norm.running_var", "classifier.bias"):
        arrays_of(source)[name][:2] = value
    write_as(kind, tmp_path / "x.npz", source)
    model = build_model("mini", 5, seed=3)
    before = copies_of(model)
    first = "classifier.bias holds 2 of 5" if kind == "checkpoint" else \
        "stage2.pointwise.1.running_var holds 2 of 48"
    with pytest.raises(UserError, match=f"x.npz: {first} numbers that are NaN or infinite"):
        initialize(model, tmp_path / "x.npz", allow_partial=allow_partial)
    assert_same(model, before)


def test_a_number_beyond_float32_is_refused(tmp_path):
    state = {name: array.astype(np.float64) for name, array in
             to_torch_state_dict(randomized("mini")).items()}
    state["classifier.bias"][0] = 1e300
    np.savez(tmp_path / "x.npz", **state)
    with pytest.raises(UserError, match="classifier.bias holds 1 of 5"):
        initialize(build_model("mini", 5), tmp_path / "x.npz")
    assert initialize(build_model("mini", 5, dtype="float64"), tmp_path / "x.npz").count == 159


# Writing

def test_writing_refuses_what_it_cannot_do(tmp_path):
    with pytest.raises(UserError, match="format of .*x.bin; end its name in .npz"):
        write_state_dict(tmp_path / "x.bin", {})
    with pytest.raises(UserError, match="there is no folder .*none"):
        write_state_dict(tmp_path / "none" / "x.npz", {})


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_write_that_fails_leaves_the_old_file_alone(torch, tmp_path, monkeypatch, suffix):

    def disk_full(*args):
        raise OSError("disk full")

    path = tmp_path / f"x.{suffix}"
    path.write_bytes(b"the old one")
    monkeypatch.setattr("os.fsync", disk_full)
    with pytest.raises(UserError, match="cannot write .*disk full"):
        write_state_dict(path, {"w": np.ones(3, np.float32)})
    assert path.read_bytes() == b"the old one"
    assert list(tmp_path.iterdir()) == [path]
