"""The losses command: right numbers in the right place, refusals in one line, nothing too wide."""

import importlib.util
import math

import numpy as np
import pytest
from PIL import Image

from minisegnet.errors import run_command
from minisegnet.imbalance.weighting import ClassStatistics, class_weights
from minisegnet.losses import (
    combined_forward,
    cross_entropy_backward,
    cross_entropy_forward,
    dice_forward,
    focal_forward,
)
from minisegnet.losses.__main__ import main
from minisegnet.losses.worked_example import Example, explanations, losses_of, work_out

LOGITS = np.array([[2.0, 0.5, -1.0], [0.0, 1.0, 0.5], [-1.0, 0.2, 0.3], [1.0, 1.0, 1.0]])
LABELS = np.array([0, 2, 1, 255])
TYPED = ["--logits", "2", "0.5", "-1", "/", "0", "1", ".5", "/", "-1", "0.2", "0.3", "/",
         "1", "1", "1", "--target", "0", "2", "1", "255"]
COLUMNS = ["ce", "weighted ce", "focal", "focal alpha", "dice", "combined"]


def run(capsys, *argv):
    """Return the exit code and what the command prints."""
    code = run_command(main, [str(word) for word in argv])
    out, err = capsys.readouterr()
    return code, out + err


def output(capsys, *argv):
    code, text = run(capsys, *argv)
    assert code == 0, text
    assert max(map(len, text.splitlines())) <= 100
    return text


def row_of(text, label):
    """Return the words behind `label` in the first line that begins with it, whatever the gaps."""
    words = label.split()
    lines = (line.split() for line in text.splitlines())
    return next(line[len(words):] for line in lines if line[:len(words)] == words)


def convention(text, project):
    """Return the value of a project, in its first row, of the last table."""
    return text.split(f"  {project}  ")[1].split()[0]


def example(**options):
    return Example(LOGITS, LABELS, np.array([5, 1, 2, 3]), np.array([1.0, 2.0, 4.0]), **options)


# ------------------------------------------------------------------------------ what is computed


def test_each_row_stands_for_as_many_pixels_as_it_says(rng):
    """As if every pixel had been typed, in any order."""
    times, weight = np.array([5, 1, 2, 3]), np.array([1.0, 2.0, 4.0])
    order = rng.permutation(11)
    place = np.repeat(np.arange(4), times)[order]
    logits, target = LOGITS[place][None, :, None], LABELS[place][None, :, None]  # (1, 11, 1, K)
    loss, cache = cross_entropy_forward(logits, target, weight=weight)
    dlogits = cross_entropy_backward(1.0, cache)[0, :, 0]
    column = work_out(example())[1]
    assert column.title == "weighted ce" and column.value == pytest.approx(float(loss), rel=1e-12)
    np.testing.assert_allclose(column.gradient[place], dlogits, rtol=1e-12)
    by_class = [np.abs(dlogits[target[0, :, 0] == c]).sum() for c in range(3)]
    np.testing.assert_allclose(column.shares, by_class / np.sum(by_class), rtol=1e-12)


def test_every_loss_has_its_options():
    e = example(alpha=np.array([0.5, 1.0, 3.0]), gamma=1.5, smooth=0.3, label_smoothing=0.2)
    logits, target = e.logits, e.target
    expected = [
        cross_entropy_forward(logits, target, label_smoothing=0.2),
        cross_entropy_forward(logits, target, weight=e.weight, label_smoothing=0.2),
        focal_forward(logits, target, gamma=1.5),
        focal_forward(logits, target, gamma=1.5, alpha=e.alpha),
        dice_forward(logits, target, smooth=0.3),
        combined_forward(logits, target, gamma=1.5, alpha=e.alpha, smooth=0.3)]
    columns = work_out(e)
    assert [column.title for column in columns] == COLUMNS
    assert [column.value for column in columns] == [float(loss) for loss, _ in expected]


def test_all_losses_agree_with_torch(torch):
    e = example(alpha=np.array([0.5, 1.0, 3.0]), gamma=1.5, smooth=0.3, label_smoothing=0.2)
    for column in work_out(e):
        assert column.value_apart < 1e-13 and column.gradient_apart < 1e-14


def test_a_wrong_gradient_is_seen_in_the_comparison_with_torch(torch, monkeypatch):
    monkeypatch.setattr("minisegnet.losses.worked_example.dice_backward",
                        lambda dloss, cache: np.zeros((1, 1, 11, 3)))
    apart = {column.title: column.gradient_apart for column in work_out(example())}
    assert apart["dice"] > 1e-3 and apart["ce"] < 1e-14


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_explanations_add_up_to_the_values(smoothing):
    e = example(alpha=np.array([0.5, 1.0, 3.0]), label_smoothing=smoothing)
    columns = work_out(e)
    texts = dict(pair for pair in explanations(e, columns) if pair[0])
    # 5 pixels of class 0, one of class 2 and two of class 1, whose weights are 1, 4 and 2.
    for column, divisor in zip(columns, (8, 13, 8, 8)):
        numerator, denominator = map(float, texts[column.title].split(" = ")[-1].split("/"))
        assert denominator == divisor
        assert numerator / denominator == pytest.approx(column.value, rel=1e-4)
    by_class, count = texts["dice"].split(" = ")[-1].split("/")
    total = sum(map(float, by_class.strip(" ()").split("+")))
    assert total / int(count) == pytest.approx(columns[4].value, abs=1e-4)
    parts = texts["combined"].split(" = ")[-1].split("+")
    assert sum(map(float, parts)) == pytest.approx(columns[5].value, abs=2e-4)


# ------------------------------------------------------------------------------- what is printed


def test_without_arguments_there_is_an_easy_and_a_hard_pixel_of_two_classes(capsys):
    text = output(capsys)
    assert text.startswith("1000 pixels of 3 classes, 200 more ignored; weights: sqrt")
    assert text.count("\n") < 95
    shares = np.array([row_of(text, f"class {c}, {share}% of pixels")
                       for c, share in ((0, "98.00"), (1, "2.00"), (2, "0.00"))], float)
    np.testing.assert_allclose(shares.sum(axis=0), 100, atol=0.02)
    assert (shares[1] > 2).all() and (shares[2] == 0).all()
    assert row_of(text, "row 0, class 0: logit 0")[0] == "-0.0500"  # p - 1
    assert row_of(text, "row 3, class 1: logit 0")[0] == "0.8000"


def test_the_numbers_of_typed_logits_are_those_of_the_losses(capsys):
    text = output(capsys, *TYPED, "--times", 5, 1, 2, 3, "--weights", 1, 2, 4, "--gamma", 1.5,
                  "--alpha", 0.5, 1, 3, "--smooth", 0.3, "--label-smoothing", 0.2)
    e = example(alpha=np.array([0.5, 1.0, 3.0]), gamma=1.5, smooth=0.3, label_smoothing=0.2)
    columns = work_out(e)
    assert row_of(text, "1 1 class 2")[0] == "4"
    assert row_of(text, "value") == [f"{column.value:.4f}" for column in columns]
    assert row_of(text, "class 1, 25.00% of pixels") == [
        f"{100 * column.shares[1]:.2f}" for column in columns]
    assert row_of(text, "row 1, class 2: logit 0") == [
        f"{8 * column.gradient[1, 0]:.4f}" for column in columns]
    assert convention(text, "smp SoftCrossEntropy") == f"{columns[0].value * 8 / 11:.4f}"
    assert convention(text, "MONAI, softmax") == f"{columns[2].value / 3:.4f}"
    assert convention(text, "mmseg 1.x") == "stops"


def test_probabilities_are_the_softmax_of_their_logarithms(capsys):
    typed = ["--probs", *"0.7 0.2 0.1 / 0.25 0.25 0.5".split(), "--target", 0, 1]
    text = output(capsys, *typed)
    ce = (-math.log(0.7) - math.log(0.25)) / 2
    assert row_of(text, "value")[0] == f"{ce:.4f}"
    assert row_of(text, "1 1 class 1 1")[:4] == ["0.2500", "0.2500", "0.5000", "0.2500"]
    assert "Here the logits are log p." in text
    assert "Here the logits are log p." not in output(capsys, *TYPED)
    quoted = output(capsys, "--probs", "0.7 0.2 0.1 / 0.25 0.25 0.5", "--target", 0, 1)
    assert quoted == text


@pytest.mark.parametrize("flags, counts", [
    (["--weights", "enet"], [5, 2, 1]), (["--weights", "inverse", "--frequency", 90, 9, 1],
                                         [90, 9, 1]),
    ([], [5, 2, 1])])
def test_a_scheme_of_weights_goes_by_the_pixels_or_by_the_frequency(capsys, flags, counts):
    text = output(capsys, *TYPED, "--times", 5, 1, 2, 3, *flags)
    scheme = flags[1] if flags else "sqrt"
    weight = class_weights(ClassStatistics(np.array([counts])), scheme)
    e = Example(LOGITS, LABELS, np.array([5, 1, 2, 3]), weight, weight)
    assert row_of(text, "value") == [f"{column.value:.4f}" for column in work_out(e)]


def test_alpha_is_the_weights_one_number_or_none(capsys):
    weights = [*TYPED, "--weights", 1, 2, 4]
    assert row_of(output(capsys, *weights), "value") == row_of(
        output(capsys, *weights, "--alpha", 1, 2, 4), "value")
    plain = row_of(output(capsys, *weights, "--alpha", "none"), "value")
    assert len(plain) == 5
    half = row_of(output(capsys, *weights, "--alpha", 0.5), "value")
    assert float(half[3]) == pytest.approx(float(half[2]) / 2, abs=1e-4)
    assert "MONAI, alpha 0.5 " in output(capsys, *weights, "--alpha", 0.5)


def test_the_sentences_say_what_the_numbers_are(capsys):
    text = " ".join(output(capsys, *TYPED, "--times", 5, 1, 2, 3, "--weights", 1, 2, 4).split())
    e = example(alpha=np.array([1.0, 2.0, 4.0]))
    columns = {column.title: column for column in work_out(e)}
    weighted, alpha = columns["weighted ce"].value, columns["focal alpha"].value
    assert f"weighted ce stays at {weighted:.4f}" in text
    assert f"focal alpha goes from {alpha:.4f} to {10 * alpha:.4f}." in text
    # The same sum, over 8 pixels and not over 5 + 2 2 + 1 4 = 13 of weight.
    assert f"gamma 0 is {weighted * 13 / 8:.4f}, not weighted ce's {weighted:.4f}" in text
    assert "over 8 pixels and not over 13 of weight" in text
    assert (f"Class 2 has 12.50% of the pixels; its share of the gradient is "
            f"{100 * columns['ce'].shares[2]:.2f}% in ce") in text
    easy = {}
    for name in ("ce", "focal"):
        amounts = e.times * np.abs(columns[name].gradient).sum(axis=1)
        easy[name] = f"{100 * amounts[0] / amounts.sum():.2f}%"
    assert (f"Row 0 is the easiest, with p_t {e.p_true(0):.4g}; its share of the gradient is "
            f"{easy['ce']} in ce, {easy['focal']} in focal.") in text


def test_where_there_is_nothing_to_say_of_weights_or_classes_nothing_is_said(capsys):
    text = output(capsys, "--logits", 1, 2, "--target", 0, "--weights", 3, 3)
    assert "What the numbers show" not in text
    assert "times 10" not in output(capsys, *TYPED, "--weights", "none")


def test_without_torch_there_is_one_line_and_no_comparison(capsys, monkeypatch):
    with_torch = output(capsys, *TYPED)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    text = output(capsys, *TYPED)
    assert "apart from torch" not in text
    assert text.count("torch is not installed, hence no comparison") == 1
    assert row_of(text, "value") == row_of(with_torch, "value")


def test_a_gradient_that_autograd_does_not_have_is_explained(torch, capsys):
    text = output(capsys, "--logits", 100, 0, "/", 0, 1, "--target", 0, 0, "--gamma", 0.5)
    assert row_of(text, "apart from torch's gradient")[2] == "nan"
    assert row_of(text, "row 0, class 0: logit 0")[2] == "0"
    assert "nan: where p_t is 1" in text
    assert "nan: " not in output(capsys, *TYPED)


def test_a_gradient_too_small_for_four_decimals_is_not_called_0(capsys):
    text = output(capsys, "--logits", 20, 0, "/", 0, 1, "--target", 0, 1)
    assert row_of(text, "logit 1")[0] == "2e-09"


def test_the_largest_table_fits(capsys):
    rows = ["-12.5", "1", "2", "3", "4", "5"]
    typed = (rows + ["/"]) * 11 + rows
    output(capsys, "--logits", *typed, "--target", *[0, 1, 2, 3, 4, 5] * 2, "--times",
           *[7_000] * 12, "--weights", 1000, 22.2222, 33.3333, 44.4444, 55.5555, 66.6666,
           "--label-smoothing", 0.15)


def test_no_loss_is_left_out_of_the_comparison():
    assert [loss.title for loss in losses_of(example())] == [
        title for title in COLUMNS if title != "focal alpha"]


# --------------------------------------------------------------------------------------- the plot


def test_the_plot_is_a_png_and_marks_the_rows(capsys, tmp_path, monkeypatch):
    from minisegnet.plots import loss_functions

    seen = []
    monkeypatch.setattr(loss_functions, "loss_against_probability",
                        lambda *arguments, real=loss_functions.loss_against_probability:
                        (seen.append(arguments), real(*arguments))[1])
    monkeypatch.chdir(tmp_path)
    assert "see loss_functions.png" in output(capsys, *TYPED, "--plot")
    assert "see x.png" in output(capsys, *TYPED, "--plot", "x.png", "--gammas", 0, 3)
    for name in ("loss_functions.png", "x.png"):
        with Image.open(tmp_path / name) as image:
            assert image.format == "PNG"
    (gammas, marked), (others, _) = seen
    assert list(gammas) == [0, 0.5, 1, 2, 5] and others == [0, 3]
    probs = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
    assert marked == pytest.approx({f"row {r}": probs[r, LABELS[r]] for r in range(3)})


# -------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("argv, words", [
    ("--probs 1 0 --target 0", "row 0 has a probability of 0"),
    ("--probs .5 .6 --target 0", "sum 1.1"),
    ("--probs .5 .5 / 1.5 -.5 --target 0 0", "row 1 is 1.5 -0.5"),
    ("--probs .5 .5 / .3 --target 0 0", "numbers in row 1: 1, in row 0: 2"),
    ("--probs .5 .5 / --target 0 0", "numbers in row 1: 0"),
    ("--probs / .5 .5 --target 0 0", "numbers in row 0: 0"),
    ("--probs .5 .5", "--probs needs --target"),
    ("--logits 1 2", "--logits needs --target"),
    ("--target 0", "--target goes with"),
    ("--probs .5 .5 --logits 1 2 --target 0", "give one of them"),
    ("--logits 1 x --target 0", "row 0: 'x' is not a number"),
    ("--logits 1 2 / 1 nan --target 0 0", "row 1: 'nan' is not a number"),
    ("--logits 1 2e6 --target 0", "'2e6' is not a number from -1e+06 to 1e+06"),
    ("--logits 1 --target 0", "2 to 6 classes"),
    ("--logits 1 2 3 4 5 6 7 --target 0", "2 to 6 classes"),
    ("--logits 1 2 --target 2", "--target 2 is neither a class 0..1 nor --ignore-index 255"),
    ("--logits 1 2 --target -1", "--target -1 is neither"),
    ("--logits 1 2 --target 0.5", "'0.5' is not a whole number"),
    ("--logits 1 2 --target 0 1", "--target: 2 given, 1 expected, one per row"),
    ("--logits 1 2 --target 255", "every row of --target is ignored"),
    ("--logits 1 2 --target 0 --weights 0 1", "every class in --target has weight 0"),
    ("--weights 1 2", "--weights: 2 given, 3 expected, one per class"),
    ("--weights 1 -2 3", "'-2' is not a number from 0"),
    ("--weights sqr", "'sqr' is neither a number nor one of none, inverse, sqrt, median, enet"),
    ("--weights effective", "neither a number nor one of"),
    ("--weights sqrt 3", "stands alone; leave out 3"),
    ("--weights 1 2 3 --frequency 1 2 3", "--frequency goes with a scheme"),
    ("--weights enet --frequency 0 0 0", "0 for every class"),
    ("--weights enet --frequency 1 2", "--frequency: 2 given, 3 expected"),
    ("--alpha 1 2", "--alpha: 2 given, 3 expected"),
    ("--alpha -1", "'-1' is not a number from 0"),
    ("--alpha half", "'half' is not a number"),
    ("--times 1 2", "--times: 2 given, 5 expected"),
    ("--times 900000 200000 1 1 1", "1000000 at most"),
    ("--gamma -1", "--gamma"),
    ("--label-smoothing 1", "--label-smoothing"),
    ("--smooth -1", "--smooth"),
    ("--gammas 1", "--gammas goes with --plot"),
    ("--plot x.jpg", "x.jpg is not the name of a .png file"),
    ("--plot --gammas 1 1", "each once"),
    ("--plot nowhere/x.png", "nowhere/x.png")])
def test_a_mistake_is_one_line_and_code_2(capsys, tmp_path, monkeypatch, argv, words):
    monkeypatch.chdir(tmp_path)
    code = run_command(main, argv.split())
    error = capsys.readouterr().err
    assert code == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert words in error


def test_a_class_can_be_ignored(capsys):
    text = output(capsys, "--logits", 0, 1, "/", 2, 0, "--target", 0, 1, "--ignore-index", 1)
    assert text.startswith("1 pixels of 2 classes, 1 more ignored")
    assert row_of(text, "value")[0] == f"{math.log(1 + math.e):.4f}"
    assert "IndexError" not in text  # class 1 has a weight
