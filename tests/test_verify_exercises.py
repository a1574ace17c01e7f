"""`check`: PASS, FAIL or TODO for an exercise, and what it says of a wrong answer."""

import sys

import numpy as np
import pytest

from minisegnet.verify import check, exercises
from minisegnet.verify.exercises import judge

EPS = 1e-5


def zeros_of(x):
    return np.zeros_like(x)


def total(x):
    return x.sum()


def normalise(x):
    return (x - x.mean(axis=(0, 1, 2))) / np.sqrt(x.var(axis=(0, 1, 2)) + EPS)


def normalise_backward(dout, x):
    axes = (0, 1, 2)
    x_hat = normalise(x)
    return (dout - dout.mean(axis=axes) - x_hat * (dout * x_hat).mean(axis=axes)) \
        / np.sqrt(x.var(axis=axes) + EPS)


def linear(x, weight):
    return x @ weight


def linear_backward(dout, x, weight):
    return dout @ weight.T, x.T @ dout


@pytest.fixture
def x(rng):
    return rng.standard_normal((2, 3, 4, 5))


@pytest.fixture
def pair(rng):
    return {"x": rng.standard_normal((6, 4)), "weight": rng.standard_normal((4, 3))}


def test_a_right_gradient_passes(x):
    result = judge("9.1", normalise_backward, {"x": x}, forward=normalise)
    assert result.verdict == "PASS" and result.hint == ""


def test_the_upstream_gradient_is_random(x):
    # Right for ones alone: the sum over a normalised channel does not change with x.
    wrong = judge("9.1", lambda dout, x: np.zeros_like(x), {"x": x}, forward=normalise)
    assert wrong.verdict == "FAIL"
    seen = []
    judge("9.1", lambda dout, x: seen.append(dout), {"x": x}, forward=normalise)
    assert seen[0].shape == x.shape and len(np.unique(seen[0])) == x.size


def test_a_missing_term_fails(x):
    def without_the_mean(dout, x):
        axes = (0, 1, 2)
        return normalise_backward(dout, x) + dout.mean(axis=axes) / np.sqrt(x.var(axis=axes) + EPS)

    result = judge("9.1", without_the_mean, {"x": x}, forward=normalise,
                   hints={"offset": "the mean of dout is missing"})
    assert result.verdict == "FAIL"
    assert "axes 0, 1, 2" in result.hint and "the mean of dout is missing" in result.hint


def test_several_gradients_are_checked_each(pair):
    assert judge("1.1", linear_backward, pair, forward=linear).verdict == "PASS"
    result = judge("1.1", lambda dout, x, weight: (dout @ weight.T, -x.T @ dout), pair,
                   forward=linear)
    assert result.verdict == "FAIL"
    assert result.lines[0].startswith("dweight: relative error 2.0e+00; worst at [")
    assert "sign" in result.hint


def test_only_what_is_asked_for_is_checked(pair):
    result = judge("1.1", lambda dout, x, weight: x.T @ dout, pair, forward=linear,
                   wrt=["weight"])
    assert result.verdict == "PASS"
    result = judge("1.1", lambda dout, x, weight: x.T @ dout, pair, forward=linear)
    assert result.verdict == "FAIL" and "expected 2 results: dx, dweight" in result.lines[0]


def test_the_worst_element_is_shown(x):
    def wrong_at_one(x):
        out = normalise(x)
        out[1, 2, 3, 4] += 7.0
        return out

    result = judge("9.2", wrong_at_one, {"x": x}, expected=normalise)
    value = normalise(x)[1, 2, 3, 4]
    assert f"worst at [1, 2, 3, 4]: yours {value + 7:.6g}, expected {value:.6g}" in result.lines[0]


@pytest.mark.parametrize("answer, finding", [
    (lambda x: x.mean(axis=0), "shape (3, 4, 5), expected (2, 3, 4, 5)"),
    (lambda x: normalise(x)[..., :1], "shape (2, 3, 4, 1), expected (2, 3, 4, 5)"),
    (lambda x: 0.0, "shape (), expected (2, 3, 4, 5)"),
    (lambda x: normalise(x).astype(np.float32), "dtype float32, expected float64"),
    (lambda x: normalise(x).tolist(), "it returns 2 results, expected one result"),
    (lambda x: "ready", "a str, expected an array (2, 3, 4, 5)"),
    (lambda x: {"out": x}, "a dict"),
], ids=["mean", "one channel", "number", "float32", "list", "text", "dict"])
def test_shape_and_dtype_come_first_without_broadcasting(x, answer, finding):
    result = judge("9.2", answer, {"x": x}, expected=normalise)
    assert result.verdict == "FAIL" and finding in result.lines[0]


def test_a_constant_that_would_broadcast_does_not_pass():
    zeros = np.zeros((4, 3))
    assert judge("1.2", lambda x: 0.0, {"x": zeros}, expected=zeros_of).verdict == "FAIL"
    assert judge("1.2", lambda x: np.zeros(3), {"x": zeros},
                 expected=zeros_of).verdict == "FAIL"
    assert judge("1.2", zeros_of, {"x": zeros}, expected=zeros_of).verdict == "PASS"


def stub(x):
    raise NotImplementedError("exercise 9.2: write your solution here")


@pytest.mark.parametrize("answer", [stub, lambda x: None, lambda x: ...])
def test_what_is_not_written_yet_is_to_do(x, answer):
    assert judge("9.2", answer, {"x": x}, expected=normalise).verdict == "TODO"


def test_what_an_answer_raises_is_told_with_its_line(x):
    def breaks(x):
        return x.reshape(7, -1)

    result = judge("9.2", breaks, {"x": x}, expected=normalise)
    assert result.verdict == "FAIL"
    assert "ValueError: cannot reshape" in result.lines[0]
    assert "in breaks: return x.reshape(7, -1)" in result.lines[0]


def test_an_error_raised_inside_the_package_names_the_answers_own_line(x):
    from minisegnet import ops

    def breaks(x):
        return ops.batch_norm_forward(x[0], None, None)

    assert "in breaks" in judge("9.2", breaks, {"x": x}, expected=normalise).lines[0]


def test_an_answer_that_changes_its_input_fails(x):
    before = x.copy()

    def in_place(x):
        x -= x.mean(axis=(0, 1, 2))
        return x / np.sqrt((x ** 2).mean(axis=(0, 1, 2)) + EPS)

    result = judge("9.2", in_place, {"x": x}, expected=normalise)
    assert result.verdict == "FAIL" and "changes its input x" in result.lines[0]
    np.testing.assert_array_equal(x, before)  # the caller's own


def test_an_input_with_nan_is_not_taken_for_changed():
    x = np.array([1.0, np.nan])
    assert judge("1.2", zeros_of, {"x": x}, expected=zeros_of).verdict == "PASS"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_fails(x, bad):
    def answer(x):
        out = normalise(x)
        out[0, 1, 2, 3] = bad
        return out

    result = judge("9.2", answer, {"x": x}, expected=normalise)
    assert result.verdict == "FAIL"
    assert "worst at [0, 1, 2, 3]" in result.lines[0] and "at [0, 1, 2, 3]" in result.hint


def test_a_gradient_that_is_zero_passes_as_zero_only(pair):
    def ignores(x, weight):
        return x * 2.0

    right = judge("1.3", lambda dout, x, weight: (2 * dout, np.zeros_like(weight)), pair,
                  forward=ignores)
    wrong = judge("1.3", lambda dout, x, weight: (2 * dout, 1e-3 * weight), pair, forward=ignores)
    assert (right.verdict, wrong.verdict) == ("PASS", "FAIL")


def test_a_number_is_checked_like_an_array(rng):
    x = rng.standard_normal(5)
    assert judge("1.4", lambda x: float(x.sum()), {"x": x}, expected=total).verdict == "PASS"
    assert judge("1.4", lambda x: x.sum(), {"x": x}, expected=total).verdict == "PASS"
    result = judge("1.4", lambda x: float(x.mean()), {"x": x}, expected=total)
    assert result.verdict == "FAIL" and "divided by 5" in result.hint


def test_integers_are_compared_as_such():
    target = np.array([0, 2, 2, 1])
    result = judge("2.1", lambda target: np.bincount(target), {"target": target},
                   expected=lambda target: np.bincount(target))
    assert result.verdict == "PASS"
    result = judge("2.1", lambda target: np.bincount(target)[::-1].copy(), {"target": target},
                   expected=lambda target: np.bincount(target))
    assert result.verdict == "FAIL"


def test_torch_has_the_last_word(torch, pair):
    def by_torch(torch, x, weight):
        return x @ weight

    assert "against torch" in judge("1.1", linear_backward, pair, forward=linear,
                                    torch=by_torch).lines[0]
    result = judge("1.1", linear_backward, pair, forward=linear,
                   torch=lambda torch, x, weight: 2 * (x @ weight))
    assert result.verdict == "FAIL" and "against torch" in result.lines[0]
    value = judge("1.1", linear, pair, expected=linear, torch=by_torch)
    assert value.verdict == "PASS" and "against torch" in value.lines[0]


def test_without_torch_it_says_so(pair, monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = judge("1.1", linear_backward, pair, forward=linear,
                   torch=lambda torch, x, weight: x @ weight)
    assert result.verdict == "PASS" and "torch is not installed" in result.lines[1]


def test_a_slip_of_the_exercise_itself_is_named(pair):
    slips = {"that is the gradient without the last row": lambda dout, x, weight: (
        dout @ weight.T, x[:-1].T @ dout[:-1])}
    result = judge("1.1", lambda dout, x, weight: (dout @ weight.T, x[:-1].T @ dout[:-1]), pair,
                   forward=linear, slips=slips, hints={"": "multiply the right way round"})
    assert result.hint == "that is the gradient without the last row"  # and nothing general
    other = judge("1.1", lambda dout, x, weight: (dout @ weight.T, -x.T @ dout), pair,
                  forward=linear, slips=slips)
    assert "last row" not in other.hint


def test_the_verdict_is_printed_and_kept(pair, capsys):
    before = len(exercises.results)
    assert check("1.1", lambda dout, x, weight: None, pair, forward=linear) is None
    assert capsys.readouterr().out.startswith("TODO  exercise 1.1")
    assert [result.verdict for result in exercises.results[before:]] == ["TODO"]


def test_the_exercise_itself_must_be_well_posed(pair):
    with pytest.raises(TypeError, match="forward= .* or expected="):
        check("1.1", linear, pair)
    with pytest.raises(TypeError, match="forward= .* or expected="):
        check("1.1", linear, pair, forward=linear, expected=linear)


@pytest.mark.parametrize("wrong, words", [
    (np.array([0.5, 0.0, 0.25]), "at [1], 0 over 0: return nan, not 0"),
    (np.array([0.5, np.nan, 0.3]), "yours 0.3, expected 0.25"),
    (np.array([np.nan, np.nan, 0.25]), "nan or inf at [0]"),
    (np.array([0.0, 0.0, 0.0]), "return nan, not 0"),
], ids=["0 for nan", "another number", "nan too often", "zeros"])
def test_where_nan_is_right_all_else_is_still_checked(wrong, words):
    right = np.array([0.5, np.nan, 0.25])
    x = {"x": np.ones(3)}
    assert judge("2.2", lambda x: right, x, expected=lambda x: right).verdict == "PASS"
    result = judge("2.2", lambda x: wrong, x, expected=lambda x: right)
    assert result.verdict == "FAIL" and words in " ".join([*result.lines, result.hint])
