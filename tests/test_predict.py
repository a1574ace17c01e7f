"""The predict command: what it writes, for pictures of any size, and how it refuses bad input."""

import os
import shutil
import tracemalloc

import numpy as np
import pytest
from checks import assert_agrees
from PIL import Image

from minisegnet import predict
from minisegnet.datasets.files import read_image, read_mask
from minisegnet.datasets.palettes import colourise
from minisegnet.datasets.transforms import normalize, resize_image
from minisegnet.errors import run_command
from minisegnet.models import build_model
from minisegnet.ops import upsample_bilinear_forward
from minisegnet.predict import load_predictor
from minisegnet.training.checkpoint import load_model, save_checkpoint
from minisegnet.training.evaluation import predict_batch, predict_probabilities
from minisegnet.training.sliding_window import blend_weights

NAMES = ("ground", "house", "pool")
MASK_VALUES = [7, 0, 255]
PALETTE = [[250, 10, 20], [30, 240, 50], [60, 70, 230]]
SIZE, ORIGINAL = (32, 48), (64, 80)  # in training, and in the files before


def checkpoint(path, name="mini", **meta):
    """Write an untrained model that finds all three classes in noise."""
    model = build_model(name, 3, seed=3)
    dict(model.named_parameters())[
        "outc.conv.weight" if "unet" in name else "classifier.weight"][...] *= 100
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, model, meta={
        "image_size": list(SIZE), "original_size": list(ORIGINAL),
        "classes": {"names": NAMES, "mask_values": MASK_VALUES, "palette": PALETTE}, **meta})
    return path


def noise(size, seed=0):
    """A picture of large and small spots."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (9, 11, 3), np.uint8)
    fine = rng.integers(0, 256, (*size, 3), np.uint8)
    return (resize_image(coarse, size) // 2 + fine // 2).astype(np.uint8)


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def run(*arguments):
    return run_command(predict.main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    checkpoint(folder / "best.npz")
    return folder


@pytest.fixture(scope="module")
def model(run_folder):
    return load_model(run_folder / "best.npz")[0]


@pytest.fixture(scope="module")
def done(run_folder, tmp_path_factory):
    """A folder with photos/ and what the command made of them, in results/."""
    root = tmp_path_factory.mktemp("done")
    save(root / "photos" / "same.png", noise(SIZE, 1))
    save(root / "photos" / "usual.jpg", noise(ORIGINAL, 2))
    save(root / "photos" / "wide.png", noise((50, 161), 3))
    assert run(run_folder, root / "photos", "--output", root / "results", "--probabilities") == 0
    return root


@pytest.fixture
def photo(tmp_path):
    return save(tmp_path / "photo.png", noise(SIZE))


# ---------------------------------------------------------------- what it writes


def test_every_picture_gets_a_mask_an_overlay_and_probabilities(done):
    files = {path.name for path in (done / "results").iterdir()}
    assert files == {"legend.png"} | {f"{name}{end}" for name in ("same", "usual", "wide")
                                      for end in (".png", "_overlay.png", ".npz")}


@pytest.mark.parametrize("name", ["same.png", "usual.jpg"])
def test_the_mask_holds_the_original_ids_of_what_the_validation_would_predict(done, model, name):
    image = read_image(done / "photos" / name)
    scored = predict_batch(model, normalize(resize_image(image, SIZE))[None], image.shape[:2])[0]
    assert set(np.unique(scored)) == {0, 1, 2}
    mask = read_mask(done / "results" / f"{name[:-4]}.png")
    np.testing.assert_array_equal(mask, np.array(MASK_VALUES)[scored])


def test_the_mask_file_shows_the_colours_of_the_checkpoint(done):
    path = done / "results" / "wide.png"
    with Image.open(path) as picture:
        assert picture.mode == "P"
        colours = np.asarray(picture.convert("RGB"))
        table = np.array(picture.getpalette()).reshape(-1, 3)
    np.testing.assert_array_equal(table[MASK_VALUES], PALETTE)
    mask = read_mask(path)
    for value, colour in zip(MASK_VALUES, PALETTE):
        assert (mask == value).any()
        assert (colours[mask == value] == colour).all()


@pytest.mark.parametrize("name", ["usual.jpg", "wide.png"])
def test_the_overlay_is_the_picture_half_covered_by_the_colours(done, name):
    image = read_image(done / "photos" / name)
    ids = np.argsort(MASK_VALUES)[np.searchsorted(
        sorted(MASK_VALUES), read_mask(done / "results" / f"{name[:-4]}.png"))]
    overlay = read_image(done / "results" / f"{name[:-4]}_overlay.png")
    assert overlay.shape == image.shape
    expected = (image.astype(float) + colourise(ids, np.array(PALETTE))) / 2
    assert abs(overlay - expected).max() <= 1


@pytest.mark.parametrize("name", ["same.png", "usual.jpg", "wide.png"])
def test_probabilities_sum_to_one_and_their_largest_is_the_mask(done, model, name):
    with np.load(done / "results" / f"{name[:-4]}.npz", allow_pickle=False) as arrays:
        probs, names, values = (arrays[key] for key in ("probs", "class_names", "mask_values"))
    image = read_image(done / "photos" / name)
    assert probs.shape == (*image.shape[:2], 3) and probs.dtype == np.float32
    assert tuple(names) == NAMES and values.tolist() == MASK_VALUES
    np.testing.assert_allclose(probs.sum(axis=2), 1, rtol=1e-6)
    np.testing.assert_array_equal(values[probs.argmax(axis=2)],
                                  read_mask(done / "results" / f"{name[:-4]}.png"))
    if name != "wide.png":
        images = normalize(resize_image(image, SIZE))[None]
        assert_agrees(probs, predict_probabilities(model, images, image.shape[:2])[0], 1e-5)


def test_the_line_says_what_was_done_and_the_classes_by_share(run_folder, tmp_path, capsys):
    save(tmp_path / "in" / "a.png", noise(SIZE))
    save(tmp_path / "in" / "b.png", noise((129, 80)))
    output = tmp_path / "out"
    assert run(run_folder, tmp_path / "in", "--output", output, "--no-overlay") == 0
    one, why, two = capsys.readouterr().out.splitlines()
    assert one.startswith(f"a.png 32x48: at 32x48 -> {output / 'a.png'}; ")
    assert two.startswith("b.png 129x80: 3x1 windows of 32x48 at 64x48 -> ")
    assert why.startswith("b.png is more than twice as large") and "--no-sliding-window" in why
    shares = [part.split("% ") for part in one.partition("; ")[2].split(", ")]
    mask = read_mask(output / "a.png")
    for share, name in shares:
        actual = (mask == MASK_VALUES[NAMES.index(name)]).mean()
        assert float(share) == pytest.approx(100 * actual, abs=0.51)
    assert [float(share) for share, _ in shares] == sorted(
        (float(share) for share, _ in shares), reverse=True)
    assert not list(output.glob("*_overlay.png"))


def test_a_share_that_rounds_to_nothing_is_not_called_nothing():
    mask = np.zeros((40, 50), np.uint8)
    mask[0, :3] = 1, 2, 3
    mask[1, 0] = 4
    text = predict._shares(mask, ["road", "car", "pole", "sign", "dog", "cat"])
    assert text == "100% road, <1% car, <1% pole, <1% sign, and 1 more"


def test_a_second_run_adds_to_the_folder_of_the_first(run_folder, tmp_path, photo):
    other = save(tmp_path / "other.png", noise((20, 30)))
    assert run(run_folder, photo, "--output", tmp_path / "out") == 0
    assert run(run_folder, other, "--output", tmp_path / "out") == 0
    assert (tmp_path / "out" / "other.png").exists()


# ---------------------------------------------------------------- pictures of any size


@pytest.mark.parametrize("size, down, across", [
    ((64, 80), 1, 1), ((128, 160), 1, 1), ((10, 10), 1, 1), ((1, 1), 1, 1),
    ((129, 160), 3, 3), ((64, 161), 1, 3), ((1, 400), 1, 9), ((400, 2), 12, 1),
])
def test_a_picture_more_than_twice_as_large_as_in_training_has_windows(run_folder, size, down,
                                                                       across):
    predictor = load_predictor(run_folder)
    scaled = predictor.working_size(size)
    tops, lefts = predict.grid_windows(scaled, SIZE, cell=4)
    assert (len(tops), len(lefts)) == (down, across)
    # The objects are as large as in training, on a side with more than one window.
    for length, side, window, original in zip(size, scaled, SIZE, ORIGINAL):
        assert side == window or side == pytest.approx(length * window / original, abs=2)
    assert predictor.working_size(size, sliding=False) == SIZE


@pytest.mark.parametrize("name, flip, size", [
    ("mini", False, (64, 80)), ("mini", True, (31, 97)), ("mini", False, (1, 70)),
    ("mini", True, (70, 1)), ("mini", False, (1, 1)), ("unet_small", True, (64, 80)),
    ("unet_small", False, (1, 70)),
])
def test_any_size_is_predicted_as_by_the_validation(tmp_path, name, flip, size):
    path = checkpoint(tmp_path / "model.npz", name)
    predictor, image = load_predictor(path, flip=flip), noise(size)
    rows = np.stack(list(predictor.probability_rows(image, SIZE)))  # (H, K, W)
    images = normalize(resize_image(image, SIZE))[None]
    expected = predict_probabilities(predictor.model, images, size)
    if flip:
        mirrored = np.ascontiguousarray(images[:, :, ::-1])
        expected = (expected + predict_probabilities(predictor.model, mirrored,
                                                     size)[:, :, ::-1]) / 2
    assert_agrees(rows.transpose(0, 2, 1), expected[0], 1e-5)


@pytest.mark.parametrize("name, cell", [("mini", 4), ("unet_small", 1)])
def test_the_inside_of_a_window_is_what_it_would_be_alone(tmp_path, name, cell):
    """Without overlap a picture of two windows is two pictures beside each other."""
    predictor = load_predictor(checkpoint(tmp_path / "model.npz", name))
    assert predictor.cell == cell
    left, right = noise(SIZE, 1), noise(SIZE, 2)
    both = np.concatenate([left, right], axis=1)
    rows = predict.predict_windows(predictor._coarse_probs, both, SIZE, overlap=0, cell=cell)
    expected = predictor._coarse_probs(np.stack([left, right]))
    assert_agrees(np.stack(list(rows)), np.concatenate(list(expected), axis=1), 1e-5)


def test_windows_blend_probabilities_and_enlarge_their_logarithms(run_folder):
    """The whole way, written out: scale, cut, predict, weigh, log, enlarge, softmax."""
    predictor, image = load_predictor(run_folder), noise((150, 172))
    small = resize_image(image, (76, 104))  # 75 x 103.2 px at the training's scale: whole cells
    assert predictor.working_size(image.shape[:2]) == small.shape[:2]
    total, weight = np.zeros((19, 26, 3)), np.zeros((19, 26, 1))
    blend = blend_weights((8, 12))[..., None].astype(float)
    for top in (0, 4, 8, 11):
        for left in (0, 6, 12, 14):
            window = small[4 * top:4 * top + 32, 4 * left:4 * left + 48]
            probs = predict_probabilities(predictor.model, normalize(window)[None], (8, 12))[0]
            total[top:top + 8, left:left + 12] += blend * probs
            weight[top:top + 8, left:left + 12] += blend
    logits, _ = upsample_bilinear_forward(np.log(total / weight)[None], image.shape[:2])
    expected = np.exp(logits[0]) / np.exp(logits[0]).sum(axis=2, keepdims=True)
    rows = np.stack(list(predictor.probability_rows(image, small.shape[:2])))
    assert_agrees(rows.transpose(0, 2, 1), expected, 1e-5)


def test_the_batch_size_does_not_matter(run_folder):
    image = noise((140, 230))
    results = []
    for batch_size in (1, 5):
        predictor = load_predictor(run_folder, batch_size=batch_size)
        scaled = predictor.working_size(image.shape[:2])
        results.append(np.stack(list(predictor.probability_rows(image, scaled))))
    assert_agrees(results[0], results[1], 1e-5)


def test_flags_reach_the_predictor(run_folder, tmp_path, photo, capsys):
    for flags, words in (
        (("--image-size", 16, 20), "32x48: at 16x20 ->"),
        (("--image-size", 16, 24, "--sliding-window"), "32x48: at 16x24 ->"),
        (("--image-size", 64, 80, "--sliding-window"), "32x48: at 64x80 ->"),
    ):
        assert run(run_folder, photo, "--output", tmp_path / "out", "--overwrite", *flags) == 0
        assert words in capsys.readouterr().out
    larger = save(tmp_path / "larger.png", noise((104, 170)))
    for flag, words in (("--sliding-window", "3x4 windows of 32x48 at 52x104 ->"),
                        ("--no-sliding-window", "104x170: at 32x48 ->")):
        assert run(run_folder, larger, "--output", tmp_path / "out", "--overwrite", flag) == 0
        out = capsys.readouterr().out
        assert words in out and out.count("\n") == 1  # who says which needs no explanation


def test_the_mirror_image_changes_the_result(run_folder, tmp_path, photo):
    masks = []
    for flags in ((), ("--tta",)):
        assert run(run_folder, photo, "--output", tmp_path / "out", "--overwrite", *flags) == 0
        masks.append(read_mask(tmp_path / "out" / "photo.png"))
    assert (masks[0] != masks[1]).any()


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "CMYK"])
def test_pictures_of_other_modes_are_predicted(run_folder, tmp_path, mode):
    path = tmp_path / ("photo.jpg" if mode == "CMYK" else "photo.png")
    Image.fromarray(noise((40, 50))).convert(mode).save(path)
    predictor, image = load_predictor(run_folder), read_image(path)
    assert predict.find_pictures([path]) == [path]
    results = predict.Results(tmp_path / "mask.png", tmp_path / "overlay.png", None)
    predict.predict_picture(predictor, image, SIZE, results)
    assert read_mask(results.mask).shape == read_image(results.overlay).shape[:2] == (40, 50)


def test_the_probabilities_of_a_large_picture_are_never_all_in_memory(tmp_path):
    """They would take 21 MB; the rows of it that are take less than one."""
    model = build_model("mini", 21)
    path = tmp_path / "model.npz"
    save_checkpoint(path, model, meta={
        "image_size": [32, 48], "original_size": [250, 1000], "classes": {
            "names": [str(k) for k in range(21)], "mask_values": list(range(21)),
            "palette": [[k, k, k] for k in range(21)]}})
    predictor, image = load_predictor(path), np.zeros((250, 1000, 3), np.uint8)
    tracemalloc.start()
    for _ in predictor.probability_rows(image, (32, 48)):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6


# ---------------------------------------------------------------- mistakes


def assert_refused(capsys, *arguments, words, output):
    """The command says `words` in one line, exits with 2 and leaves nothing in `output`."""
    assert run(*arguments, "--output", output) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    for word in words:
        assert str(word) in err
    assert not output.exists()


@pytest.mark.parametrize("path, words", [
    ("gone.png", ["there is no picture or folder", "gone.png"]),
    ("notes.png", ["notes.png", "cannot"]),
    ("empty", ["empty", "no .jpg"]),
    ("deep.png", ["deep.png", "8 bits"]),
])
def test_what_is_no_picture_is_refused_before_anything_is_predicted(run_folder, tmp_path, photo,
                                                                    capsys, path, words):
    (tmp_path / "notes.png").write_text("no picture")
    (tmp_path / "empty").mkdir()
    Image.fromarray(np.full((9, 9), 40_000, np.uint16)).save(tmp_path / "deep.png")
    assert_refused(capsys, run_folder, photo, tmp_path / path, words=words,
                   output=tmp_path / "out")


@pytest.mark.parametrize("path, words", [
    ("gone", ["there is no checkpoint", "gone"]),
    ("empty", ["has no best.npz"]),
    ("photo.png", ["photo.png", "not a checkpoint"]),
    ("old.npz", ["old.npz", "classes"]),
    ("short.npz", ["short.npz", "classes"]),
    ("few.npz", ["few.npz", "classes"]),
    ("spoilt.npz", ["spoilt.npz", "nan"]),
])
def test_what_is_no_usable_checkpoint_is_refused(tmp_path, photo, capsys, path, words):
    (tmp_path / "empty").mkdir()
    checkpoint(tmp_path / "old.npz", classes=None)
    checkpoint(tmp_path / "short.npz", classes={"names": NAMES, "mask_values": MASK_VALUES,
                                                "palette": PALETTE[:2]})
    checkpoint(tmp_path / "few.npz", classes={"names": NAMES, "mask_values": MASK_VALUES[:2],
                                              "palette": PALETTE})
    model = build_model("mini", 3)
    model.classifier.params["bias"][1] = np.nan
    save_checkpoint(tmp_path / "spoilt.npz", model, meta=load_model(
        checkpoint(tmp_path / "good.npz"))[1].meta)
    assert_refused(capsys, tmp_path / path, photo, words=words, output=tmp_path / "out")


def test_two_pictures_that_would_share_a_result_are_refused(run_folder, tmp_path, photo, capsys):
    again = save(tmp_path / "more" / "photo.jpg", noise(SIZE))
    output = tmp_path / "out"
    assert_refused(capsys, run_folder, photo, again, output=output,
                   words=[photo, again, output / "photo.png", "rename"])
    clash = save(tmp_path / "more" / "photo_overlay.png", noise(SIZE))
    assert_refused(capsys, run_folder, photo, clash, output=output, words=[clash, "rename"])
    legend = save(tmp_path / "more" / "legend.jpg", noise(SIZE))
    assert_refused(capsys, run_folder, legend, output=output, words=["legend.png", "rename"])


def test_a_picture_is_never_written_over(run_folder, photo, capsys):
    before = photo.read_bytes()
    (photo.parent / "link").symlink_to(photo.parent)
    for output in (photo.parent, photo.parent / "link"):
        assert run(run_folder, photo, "--output", output, "--overwrite") == 2
        assert f"{output / 'photo.png'} is a picture to predict" in capsys.readouterr().err
    assert photo.read_bytes() == before


def test_results_of_before_are_replaced_only_on_demand(run_folder, tmp_path, photo, capsys):
    output = tmp_path / "out"
    save(output / "photo_overlay.png", noise(SIZE))
    before = (output / "photo_overlay.png").read_bytes()
    assert run(run_folder, photo, "--output", output) == 2
    err = capsys.readouterr().err
    assert f"{output / 'photo_overlay.png'} is there already" in err and "--overwrite" in err
    assert (output / "photo_overlay.png").read_bytes() == before
    assert len(list(output.iterdir())) == 1
    assert run(run_folder, photo, "--output", output, "--overwrite") == 0
    assert (output / "photo_overlay.png").read_bytes() != before


def test_a_legend_of_other_classes_is_kept(run_folder, tmp_path, photo, capsys):
    save(tmp_path / "out" / "legend.png", noise((9, 9)))
    assert run(run_folder, photo, "--output", tmp_path / "out") == 2
    assert "not the legend of these classes" in capsys.readouterr().err
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_an_output_that_is_a_file_is_refused(run_folder, tmp_path, photo, capsys):
    assert run(run_folder, photo, "--output", tmp_path / "photo.png") == 2
    err = capsys.readouterr().err
    assert "cannot make the folder" in err and "--output" in err and err.count("\n") == 1


def test_a_broken_picture_stops_the_run_and_what_was_done_stays(run_folder, tmp_path, capsys):
    save(tmp_path / "in" / "a.png", noise(SIZE))
    save(tmp_path / "in" / "b.jpg", noise((200, 200)))
    whole = (tmp_path / "in" / "b.jpg").read_bytes()
    (tmp_path / "in" / "b.jpg").write_bytes(whole[:len(whole) // 2])
    save(tmp_path / "in" / "c.png", noise(SIZE))
    assert run(run_folder, tmp_path / "in", "--output", tmp_path / "out") == 2
    out, err = capsys.readouterr()
    assert out.startswith("a.png") and out.count("\n") == 1
    assert "b.jpg" in err and err.count("\n") == 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "legend.png", "a.png", "a_overlay.png"}


@pytest.mark.parametrize("flags", [(), ("--probabilities",), ("--no-overlay",)])
def test_nothing_half_written_stays_when_the_disk_is_full(run_folder, tmp_path, photo, capsys,
                                                          monkeypatch, flags):
    output = tmp_path / "out"
    assert run(run_folder, photo, "--output", output) == 0
    (output / "photo.png").unlink()
    (output / "photo_overlay.png").unlink()
    capsys.readouterr()

    def full(source, target):
        assert target.parent != output or target.name != "legend.png"  # it is there already
        if target.parent == output:
            raise OSError(28, "No space left on device")
        os.rename(source, target)

    monkeypatch.setattr("minisegnet.training.checkpoint.os.replace", full)
    assert run(run_folder, photo, "--output", output, *flags) == 2
    err = capsys.readouterr().err
    assert "No space left" in err and err.count("\n") == 1
    assert {path.name for path in output.iterdir()} == {"legend.png"}


@pytest.mark.parametrize("flags", [
    ("--image-size", "0", "10"), ("--image-size", "32"), ("--image-size", "9000", "9000"),
    ("--batch-size", "0"), ("--window", "3"),
])
def test_senseless_flags_are_one_line(run_folder, photo, tmp_path, capsys, flags):
    assert_refused(capsys, run_folder, photo, *flags, words=[flags[0]], output=tmp_path / "out")


def test_no_picture_at_all_is_one_line(run_folder, capsys):
    assert run(run_folder) == 2
    assert "PICTURE" in capsys.readouterr().err


def test_a_copied_run_folder_is_enough(run_folder, tmp_path, photo):
    shutil.copytree(run_folder, tmp_path / "elsewhere")
    assert run(tmp_path / "elsewhere" / "best.npz", photo, "--output", tmp_path / "out") == 0
