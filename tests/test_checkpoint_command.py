"""The checkpoint command: what it shows, what it finds, and weights that torch agrees with."""

import subprocess
import sys

import numpy as np
import pytest
from checks import assert_agrees

from minisegnet import checkpoint as command
from minisegnet.errors import run_command
from minisegnet.models import build_model, to_torch_state_dict
from minisegnet.optim import AdamW
from minisegnet.training.checkpoint import save_checkpoint
from minisegnet.training.weight_files import read_state_dict, write_state_dict

META = {"epoch": 7, "monitor": "mean_iou", "best": 0.61234,
        "classes": {"names": ["floor", "wall", "door"]}}


def trained(name, num_classes=3):
    """Return a model that is not as it was built, running statistics included."""
    model = build_model(name, num_classes, seed=4)
    rng = np.random.default_rng(5)
    for _, array in model.named_parameters():
        array += 0.1 * rng.standard_normal(array.shape).astype(np.float32)
    for _, array in model.named_buffers():
        array += rng.uniform(0, 0.5, array.shape).astype(np.float32)
    return model


@pytest.fixture
def saved(tmp_path):
    """A model and its checkpoint, with an optimizer's state."""
    model = trained("mini")
    save_checkpoint(tmp_path / "best.npz", model, optimizer=AdamW(model, 1e-3), meta=META)
    return model, tmp_path / "best.npz"


def run(*arguments):
    return run_command(command.main, [str(argument) for argument in arguments])


def row_of(name, printed):
    [line] = [line for line in printed.splitlines() if line.split()[:1] == [name]]
    return line


def test_inspect_shows_every_array_and_the_run(saved, capsys):
    model, path = saved
    assert run("inspect", path) == 0
    out = capsys.readouterr().out
    weight = model.classifier.params["weight"]
    *shape, dtype, low, high, mean, bad = row_of("classifier.weight", out).split()[1:]
    assert (" ".join(shape), dtype, bad) == (str(weight.shape), "float32", "0")
    for text, value in ((low, weight.min()), (high, weight.max()), (mean, np.abs(weight).mean())):
        assert float(text) == pytest.approx(value, rel=1e-3)
    for name, _ in (*model.named_parameters(), *model.named_buffers()):
        row_of(name, out)
    assert "optimizer/" in out
    assert (f"{path}: mini with 3 classes (floor, wall, door), epoch 7, best mean_iou 0.6123; "
            in out)
    assert f"{model.num_parameters:,} parameters" in out
    lines = out.splitlines()
    assert len({len(line) for line in lines[:lines.index("")]}) == 1


@pytest.mark.parametrize("suffix", ["npz", "safetensors", "pth"])
def test_inspect_reads_torch_state_dicts(torch, tmp_path, capsys, suffix):
    model = trained("unet_small")
    path = tmp_path / f"unet.{suffix}"
    write_state_dict(path, to_torch_state_dict(model))
    assert run("inspect", path) == 0
    out = capsys.readouterr().out
    assert "(16, 3, 3, 3)" in row_of("inc.double_conv.0.weight", out)
    assert "int64" in row_of("inc.double_conv.1.num_batches_tracked", out)
    assert f"a torch state dict; 118 arrays, {model.num_parameters:,} parameters, " in out
    assert f"{path.stat().st_size / 2**20:.2f} MiB on disk" in out


def test_inspect_shows_the_dtype_in_the_file(torch, tmp_path, capsys):
    torch.save({"w": torch.ones(3, dtype=torch.bfloat16)}, tmp_path / "x.pth")
    assert run("inspect", tmp_path / "x.pth") == 0
    assert "bfloat16" in row_of("w", capsys.readouterr().out)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_inspect_exits_with_1_and_names_the_first_array_that_is_not_finite(saved, capsys, value):
    model, path = saved
    stem = model.backbone.features.children["0"]
    stem.norm.buffers["running_var"][...] = value  # the buffers come after the parameters
    model.classifier.params["weight"][0, 0, :2, 0] = value
    save_checkpoint(path, model, meta={})
    assert run("inspect", path) == 1
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == \
        "NaN or Inf in 2 of 159 arrays, first in classifier.weight (2 of 144 numbers)"
    finite = row_of("classifier.weight", out).split()
    assert finite[-1] == "2" and "nan" not in finite and "inf" not in finite
    assert row_of("backbone.features.0.norm.running_var", out).split()[-4:] == ["-", "-", "-",
                                                                                "16"]


def test_a_broken_optimizer_is_found_too(saved, capsys):
    model, path = saved
    optimizer = AdamW(model, 1e-3)
    key = next(key for key, value in optimizer.state_dict().items() if np.size(value) > 1)
    optimizer.state[key.rpartition("/")[2]][3] = np.nan
    save_checkpoint(path, model, optimizer=optimizer, meta={})
    assert run("inspect", path) == 1
    assert f"first in optimizer/{key} (1 of" in capsys.readouterr().out


@pytest.mark.parametrize("name, suffix", [("deeplab_light", "pth"),
                                          ("unet_small", "safetensors"), ("mini", "npz")])
def test_torch_gives_the_same_logits_from_the_exported_file(torch, tmp_path, rng, capsys, name,
                                                            suffix):
    from minisegnet.verify.torch_models import torch_twin

    model = trained(name).eval()
    save_checkpoint(tmp_path / "best.npz", model, meta=META)
    out = tmp_path / f"weights.{suffix}"
    assert run("export", tmp_path / "best.npz", out) == 0
    assert f"arrays of {name} with 3 classes" in capsys.readouterr().out

    twin = torch_twin(build_model(name, 3, seed=9)).eval()  # other weights, until these are loaded
    if suffix == "pth":
        state = torch.load(out, weights_only=True)
    elif suffix == "safetensors":
        from safetensors.torch import load_file

        state = load_file(out)
    else:
        with np.load(out) as arrays:
            state = {key: torch.tensor(arrays[key]) for key in arrays.files}
    twin.load_state_dict(state, strict=True)
    images = rng.standard_normal((2, 48, 40, 3), dtype=np.float32)
    with torch.no_grad():
        expected = twin(torch.tensor(images).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    assert_agrees(model.forward(images), expected, 1e-5)


def test_an_exported_file_can_be_overwritten_and_read_again(saved, tmp_path):
    model, path = saved
    out = tmp_path / "weights.npz"
    out.write_bytes(b"an older file")
    assert run("export", path, out) == 0
    state = to_torch_state_dict(model)
    found = read_state_dict(out)
    assert found.keys() == state.keys()
    for name, array in state.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize("arguments, message", [
    ([], "COMMAND"),
    (["look"], "invalid choice: 'look'"),
    (["inspect"], "FILE"),
    (["inspect", "none.npz"], "there is no file none.npz"),
    (["inspect", "notes.txt"], "notes.txt is no file of weights"),
    (["inspect", "broken.npz"], "cannot read broken.npz"),
    (["inspect", "odd.npz"], "odd.npz is not a checkpoint"),
    (["export", "best.npz"], "OUT"),
    (["export", "none.npz", "x.npz"], "there is no checkpoint none.npz"),
    (["export", "plain.npz", "x.npz"], "plain.npz is no checkpoint of minisegnet"),
    (["export", "broken.npz", "x.npz"], "broken.npz is no checkpoint of minisegnet"),
    (["export", "best.npz", "x.bin"], "cannot tell the format of x.bin"),
    (["export", "best.npz", "none/x.npz"], "there is no folder none"),
    (["export", "best.npz", "best.npz"], "best.npz is the checkpoint itself"),
    (["export", "best.npz", "folder.npz"], "cannot write folder.npz"),
])
def test_mistakes_are_one_line_and_exit_code_2(saved, tmp_path, monkeypatch, capsys, arguments,
                                               message):
    _, path = saved
    before = path.read_bytes()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "broken.npz").write_bytes(before[:-1000])
    (tmp_path / "folder.npz").mkdir()
    np.savez("odd.npz", meta=np.array("not JSON"))
    np.savez("plain.npz", w=np.ones(3))
    files = sorted(tmp_path.iterdir())
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and message in err
    assert path.read_bytes() == before and sorted(tmp_path.iterdir()) == files


def test_a_missing_package_is_one_line(saved, tmp_path, monkeypatch, capsys):
    _, path = saved
    for package, suffix in (("torch", "pth"), ("safetensors", "safetensors")):
        monkeypatch.setitem(sys.modules, package, None)
        assert run("export", path, tmp_path / f"x.{suffix}") == 2
        assert f".{suffix} files need {package}" in capsys.readouterr().err
        assert not (tmp_path / f"x.{suffix}").exists()


def test_inspecting_a_checkpoint_needs_neither_torch_nor_safetensors(saved):
    _, path = saved
    code = ("import sys; from minisegnet.checkpoint import main; code = main(sys.argv[1:]);"
            "extra = {'torch', 'safetensors', 'PIL', 'matplotlib'} & set(sys.modules);"
            "sys.exit(code or (f'imported {extra}' if extra else 0))")
    done = subprocess.run([sys.executable, "-c", code, "inspect", str(path)],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
