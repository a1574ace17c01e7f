"""The audit: never a contradiction in figures of a real matrix, always one in figures of none."""

import json
import math
from decimal import ROUND_DOWN, ROUND_HALF_EVEN, Decimal

import numpy as np
import pytest

from minisegnet.audit import main
from minisegnet.errors import UserError, run_command
from minisegnet.imbalance.consistency import audit
from minisegnet.imbalance.published import read_figure, read_published
from minisegnet.metrics import ConfusionMatrix, divide

A = ["--classes", "34", "--accuracy", "0.424", "--iou", "0=0.727", "rest=0"]
B = ["--mean-iou", "72.73", "--mean-dice", "39.80", "--percent"]
E = ["--classes", "37", "--mean-iou", "2.7%", "--share-of-all", "0=32.6%", "--ignored", "13.6%"]


def run(capsys, *argv):
    """Return the exit code and what the command prints."""
    code = run_command(main, list(argv))
    out, err = capsys.readouterr()
    return code, out + err


def verdict_on(**given):
    return audit(read_published(given))


def confusion_of(matrix):
    confusion = ConfusionMatrix(len(matrix))
    confusion.matrix += matrix
    return confusion


# Figures of real matrices, printed as people print them

def random_matrix(rng, K):
    """A confusion matrix of some kind, often with classes that nobody has or predicts."""
    shares = rng.dirichlet(np.full(K, rng.choice([0.2, 3.0])))
    truth = rng.multinomial(10 ** rng.integers(2, 7), shares)
    kind = rng.integers(6)
    if kind == 0:  # one class everywhere
        matrix = np.outer(truth, np.eye(K)[rng.integers(K)]).astype(int)
    elif kind == 1:  # blind, or nearly
        q = rng.dirichlet(np.ones(K))
        matrix = np.stack([rng.multinomial(n, q) for n in truth])
    elif kind == 2:  # perfect, or with two classes exchanged
        matrix = np.diag(truth)[:, rng.permutation(K) if rng.random() < 0.5 else np.arange(K)]
    else:  # rows of any quality
        q = rng.dirichlet(np.full(K, 0.3), size=K) + np.diag(10 ** rng.uniform(-2, 2, K))
        matrix = np.stack([rng.multinomial(n, row / row.sum()) for n, row in zip(truth, q)])
    absent = rng.random(K) < 0.2
    matrix[absent], matrix[:, absent] = 0, 0
    return matrix, kind


def printer(rng):
    """Return a function from fractions to texts: 3 or 4 digits, rounded or cut off, maybe in %."""
    digits, percent = int(rng.integers(3, 5)), bool(rng.random() < 0.5)
    rounding = [ROUND_HALF_EVEN, ROUND_DOWN][rng.integers(2)]

    def text(value):
        if math.isnan(value):
            return "-"
        unit = Decimal(1).scaleb(2 - digits if percent else -digits)
        number = Decimal(100 * float(value) if percent else float(value))
        return str(number.quantize(unit, rounding)) + "%" * percent

    return text


def all_figures(confusion, over_all):
    """Return the fractions of every kind; means over all classes or over those present."""
    truth, K = confusion.counts[1], confusion.num_classes
    return {
        "accuracy": confusion.pixel_accuracy, "fw_iou": confusion.fw_iou,
        "mean_iou": confusion.mean_iou_all if over_all else confusion.mean_iou_present,
        "mean_dice": confusion.mean_dice_all if over_all else confusion.mean_dice_present,
        "mean_class_accuracy": confusion.mean_class_accuracy,
        "iou": confusion.iou, "dice": confusion.dice, "precision": confusion.precision,
        "recall": confusion.recall, "share": divide(truth, truth.sum()),
    }, K if over_all else int((~confusion.absent).sum())


def random_figures(rng):
    """Return what might be published of a random matrix, the keys of `read_published`; or None."""
    K = int(rng.integers(2, 9))
    matrix, kind = random_matrix(rng, K)
    if not matrix.any():
        return None
    confusion = confusion_of(matrix)
    figures, n = all_figures(confusion, over_all=rng.random() < 0.5)
    text, ignored = printer(rng), rng.choice([0.0, rng.uniform(0, 0.5)])
    given = {"classes": str(n)} if n > 1 and rng.random() < 0.7 else {}
    for key, value in figures.items():
        if rng.random() < 0.4:
            continue
        if np.ndim(value) == 0:
            given[key] = text(value)
        elif rng.random() < 0.6:
            given[key] = [text(v) for v in value]
        else:
            some = rng.permutation(K)[:rng.integers(1, K + 1)]
            given[key] = [f"{c}={text(value[c])}" for c in some if not math.isnan(value[c])]
            if not given[key]:
                del given[key]
    if ignored and "share" in given:
        del given["share"]
        given["ignored"] = text(ignored)
        given["share_of_all"] = [text(v) for v in figures["share"] * (1 - ignored)]
    if kind == 0:
        k = int(confusion.counts[2].argmax())
        given["claim"] = "constant" if rng.random() < 0.5 else f"constant={k}"
    if sum(1 if isinstance(v, str) else len(v) - v.count("-") for key, v in given.items()
           if key not in ("classes", "claim")) < 2:
        return None
    return given


def test_figures_of_a_real_matrix_are_never_contradicted(rng):
    draws = compared = claims = 0
    while draws < 4000:
        given = random_figures(rng)
        if given is None:
            continue
        verdict = audit(read_published(given))
        assert verdict.contradictions == verdict.against_claim == [], given
        draws, compared = draws + 1, compared + verdict.compared
        claims += "claim" in given
    assert compared > 5 * draws and claims > draws / 10  # it was no empty exercise


def full_table(rng, K=5):
    """Return texts of all figures of a matrix in which every class is found, in 4 digits."""
    q = rng.dirichlet(np.ones(K), size=K) + np.eye(K)
    truth = rng.integers(10**4, 10**5, K)
    figures, n = all_figures(confusion_of(np.rint(q * truth[:, None]).astype(int)), False)
    return {"classes": str(n), **{key: f"{value:.4f}" if np.ndim(value) == 0 else
                                  [f"{v:.4f}" for v in value] for key, value in figures.items()}}


def moved(text, rng):
    value = float(text)
    sign = -1 if value > 0.95 or (value > 0.05 and rng.random() < 0.5) else 1
    return f"{value + 0.03 * sign:.4f}"


def test_one_wrong_figure_in_a_full_table_is_always_noticed(rng):
    for _ in range(40):
        given = full_table(rng)
        assert audit(read_published(given)).contradictions == []
        for key, value in given.items():
            if key == "classes":
                continue
            if isinstance(value, str):
                wrong = moved(value, rng)
            else:
                wrong, c = list(value), rng.integers(len(value))
                wrong[c] = moved(wrong[c], rng)
            assert audit(read_published({**given, key: wrong})).contradictions, (key, wrong, given)


@pytest.mark.parametrize("given, words", [
    ({"iou": ["0=0.50"], "dice": ["0=0.60"]}, "Dice of class 0 is given as 0.60 but must"),
    ({"mean_iou": "0.50", "mean_dice": "0.45"}, "between 0.495 and 0.675"),
    ({"mean_iou": "0.50", "mean_dice": "0.70"}, "between 0.495 and 0.675"),
    ({"iou": ["a=0.60"], "precision": ["a=0.80"], "recall": ["a=0.50"]}, "P R / (P + R - P R)"),
    ({"dice": ["a=0.70"], "precision": ["a=0.80"], "recall": ["a=0.50"]}, "2 P R / (P + R)"),
    ({"iou": ["a=0.60"], "recall": ["a=0.50"]}, "no IoU is above the recall of its class"),
    ({"dice": ["a=0.70"], "precision": ["a=0.50"]}, "no IoU is above the precision"),
    ({"accuracy": "0.900", "fw_iou": "0.920"}, "between 0.735 and 0.901"),
    ({"accuracy": "0.900", "fw_iou": "0.500"}, "a^2 / (2 - a)"),
    ({"iou": ["0.5", "0.6"], "fw_iou": "0.75"}, "weighted mean of the IoUs"),
    ({"iou": ["0.90", "0.50"], "share": ["0.70", "0.30"], "fw_iou": "0.85"}, "share x IoU"),
    ({"recall": ["0.90", "0.50"], "share": ["0.70", "0.30"], "accuracy": "0.85"},
     "share x recall"),
    ({"recall": ["0=0.900"], "share": ["0=0.700"], "accuracy": "0.950"}, "of other classes"),
    ({"iou": ["0.50", "0.70", "-"], "mean_iou": "0.65"}, "the IoUs of the classes sum to 1.2"),
    ({"dice": ["0=0.90"], "classes": 4, "mean_dice": "0.20"}, "and 3 more are from 0 to 1"),
    ({"mean_iou": "0.60", "mean_class_accuracy": "0.55"}, "mean recall"),
    ({"accuracy": "0.90", "mean_iou": "0.25", "classes": 3}, "lowest over 3 classes"),
    ({"accuracy": "0.50", "mean_dice": "0.60", "classes": 2}, "between the other two"),
    ({"accuracy": "0.50", "share": ["0=0.80"], "iou": ["0=0.70"]}, "accuracy / share"),
    ({"accuracy": "0.95", "share": ["0=0.90"], "recall": ["0=0.80"]}, "all wrong ones"),
    ({"accuracy": "0.90", "iou": ["0.50", "0.60"]}, "sum of IoU x union"),
    ({"accuracy": "0.90", "iou": ["0.90", "0.95"]}, "sum of IoU x union"),
    ({"accuracy": "0.90", "iou": ["0.90", "0.10"], "share": ["0=0.50"]}, "be at least 0.7"),
    ({"share": ["0=0.50", "1=0.60"]}, "the sum of the shares is given as 1.1 but must"),
    ({"share": ["0.50", "0.30"]}, "the sum of the shares is given as 0.8 but must be 1"),
    ({"share": ["0=0.9"], "recall": ["0=0.9"], "precision": ["0=0.5"]}, "recall / precision"),
])
def test_each_kind_of_contradiction_is_found_and_explained(given, words):
    sentences = verdict_on(**given).contradictions
    assert any(words in sentence for sentence in sentences), sentences
    assert all("\n" not in sentence and sentence.endswith(".") for sentence in sentences)


# The field notes' own

def test_predicts_only_background_is_refuted(capsys):
    code, out = run(capsys, *A, "--mean-iou", "0.021", "--claim", "constant=0")
    assert code == 1
    assert "the IoU of class 0 is given as 0.727 but must be 0.424" in out
    assert "mean IoU is given as 0.021 but must be 0.0125" in out
    assert "0.424 / 0.727 = 0.583 of the pixels" in out
    assert "class 0 is between 0.424 and 0.583 of the truth" in out
    assert "At least 0.417 of the pixels lie outside that union: predicted as other" in out


def test_without_the_claim_the_same_figures_are_possible_and_say_what_follows(capsys):
    code, out = run(capsys, *A, "--mean-iou", "0.021")
    assert code == 0 and "no contradiction" in out
    assert "This is no constant prediction of class 0" in out
    # the data set's own 75 % of background does not go with them
    assert run(capsys, *A, "--share", "0=0.75")[0] == 1


def test_a_dice_below_the_iou_is_refuted(capsys):
    code, out = run(capsys, *B)
    assert code == 1
    assert "mean Dice is given as 39.80 % but must lie between 72.7 % and 84.2 %" in out


@pytest.mark.parametrize("share", [
    ["--share", "0=37.7%"], ["--share-of-all", "0=32.6%", "--ignored", "13.6%"]])
def test_a_mean_iou_of_one_in_37_is_no_constant_prediction(capsys, share):
    code, out = run(capsys, *E[:4], *share, "--claim", "constant=0")
    assert code == 1
    assert "mean IoU is given as 2.7 % but must be 1.02 %" in out
    assert "37.7 %" in out and "2.7 % is 1 / 37, the mean class accuracy" in out


def test_a_constant_prediction_may_be_claimed_of_its_own_figures(capsys):
    code, out = run(capsys, "--classes", "37", "--accuracy", "37.7%", "--mean-iou", "1.02%",
                    "--mean-class-accuracy", "2.7%", "--fw-iou", "14.2%", "--claim", "constant")
    assert (code, out) == (0, "4 figures, 5 relations compared: no contradiction\n")


def test_what_is_wrong_with_a_claim_is_told_from_what_is_wrong_with_the_figures():
    verdict = verdict_on(accuracy="0.424", iou=["0.727", "0"], claim="constant")
    assert verdict.contradictions == [] and len(verdict.against_claim) == 1
    hit = verdict_on(iou=["0.4", "0.1"], accuracy="0.4", claim="constant=0").against_claim
    assert len(hit) == 1 and "IoU of class 1 is given as 0.1 but must be 0" in hit[0]


# Reading

@pytest.mark.parametrize("text, percent, value, low, high", [
    ("0.727", False, 0.727, 0.7265, 0.728), ("72.7", True, 0.727, 0.7265, 0.728),
    ("72.7 %", False, 0.727, 0.7265, 0.728), ("39.80", True, 0.398, 0.39795, 0.3981),
    ("0.0", False, 0, 0, 0.1), ("1.00", False, 1, 0.995, 1), ("5e-3", False, 0.005, 0.0045, 0.006),
    ("0", False, 0, 0, 0), ("1", False, 1, 1, 1), ("0", True, 0, 0, 0.01),
    ("42", True, 0.42, 0.415, 0.43),
])
def test_a_figure_stands_for_all_that_print_like_it(text, percent, value, low, high):
    figure = read_figure(text, "here", percent)
    assert figure[:3] == pytest.approx((value, low, high), abs=1e-12)
    assert figure.text.endswith(" %") == (percent or "%" in text)


def test_rest_is_all_classes_that_are_not_named():
    iou = read_published({"classes": 4, "iou": ["2=0.5", "rest=-"], "accuracy": "0.5",
                          "fw_iou": "0.4"}).iou
    assert iou.complete and list(iou.known) == ["2"] and len(iou.figures) == 4


def test_a_file_keeps_its_digits_and_flags_win(capsys, tmp_path):
    path = tmp_path / "paper.json"
    path.write_text(json.dumps({"percent": True, "mean_iou": 72.73, "classes": 14,
                                "iou": {"road": "90", "car": None}}).replace("72.73", "72.730"))
    code, out = run(capsys, str(path), "--mean-dice", "39.80")
    assert code == 1 and "m = 72.730 %" in out and "given as 39.80 %" in out
    assert run(capsys, str(path), "--mean-dice", "80")[0] == 0


@pytest.mark.parametrize("given, words", [
    ({"accuracy": "42.4", "mean_iou": "0.1"}, "accuracy: 42.4 is above 1; for percent"),
    ({"accuracy": "142.4%", "mean_iou": "0.1"}, "above 100 %"),
    ({"accuracy": "-0.1", "mean_iou": "0.1"}, "not a number from 0 on"),
    ({"accuracy": "nan", "mean_iou": "0.1"}, "not a number"),
    ({"iou": ["0=x"]}, "iou of class 0: 'x' is not a number"),
    ({"accuracy": True, "mean_iou": "0.1"}, "not a number"),
    ({"accuracy": "0.9"}, "nothing to compare"),
    ({"accuracy": "0.9", "claim": "constant"}, "nothing to compare"),
    ({"iou": ["0.1", "1=0.2"]}, "'0.1' has no class"),
    ({"iou": ["1=0.1", "1=0.2"]}, "class 1 is given twice"),
    ({"iou": "0.5", "accuracy": "0.5"}, "iou: give numbers"),
    ({"iou": ["0=0.1", "rest=0"]}, "rest needs the number of classes"),
    ({"iou": ["road=0.1", "rest=0"], "classes": 3}, "rest needs the number of classes"),
    ({"iou": ["0.1", "0.2", "0.3"], "classes": 2}, "3 classes are given, and classes is 2"),
    ({"classes": "many", "iou": ["0.1", "0.2"]}, "'many' is not a whole number"),
    ({"classes": 1, "iou": ["0.1", "0.2"]}, "not a whole number from 2"),
    ({"share_of_all": ["0.1", "0.2"]}, "share_of_all needs ignored"),
    ({"share_of_all": ["0.9", "0.2"], "ignored": "0.5"}, "more than all pixels"),
    ({"iou": ["0.1", "0.2"], "claim": "uniform"}, "claim: 'uniform' is not constant"),
    ({"iou": ["0.1", "0.2"], "claim": "constant=5"}, "there is no class 5; there are 0, 1"),
    ({"classes": 10**7, "iou": ["0.1", "0.2"]}, "whole number from 2 to 10000"),
    ({"iou": ["0.1", "0.2"], "percent": "yes"}, "percent: 'yes'"),
])
def test_what_is_no_figure_is_refused_by_name(given, words):
    with pytest.raises(UserError) as error:
        read_published(given)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_bad_input_is_one_line_and_exit_code_2(capsys, tmp_path):
    path = tmp_path / "paper.json"
    for content, words in (("{", "cannot read"), ("[1]", "not a JSON object"),
                           ("[" * 100_000, "cannot read"),
                           ('{"acuracy": 1}', "'acuracy' is not one of classes, accuracy"),
                           ('{"accuracy": [1], "mean_iou": 1}', "accuracy: [")):
        path.write_text(content)
        code, out = run(capsys, str(path))
        assert code == 2 and words in out and len(out.splitlines()) == 1
    assert run(capsys, str(tmp_path / "none.json"))[0] == 2
    assert run(capsys)[0] == 2
