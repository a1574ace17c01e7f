"""The usual slips are recognised by what they make of the right answer."""

import numpy as np
import pytest

from minisegnet.verify.slips import find_slip, shape_slip


@pytest.fixture
def right(rng):
    return rng.standard_normal((2, 3, 4, 5))


@pytest.fixture
def inputs(rng):
    return {"x": rng.standard_normal((2, 3, 4, 5)), "target": rng.integers(0, 6, (2, 3, 4))}


def slip(answer, right, inputs, **options):
    return find_slip(answer, right, inputs=inputs, **options)


@pytest.mark.parametrize("make, kind, words", [
    (lambda e: np.zeros_like(e), "zero", "every element is 0"),
    (lambda e: -e, "sign", "sign"),
    (lambda e: 5 * e, "scale", "times 5, which is the size of axis 3 of x"),
    (lambda e: e / 24, "scale", "divided by 24, which is target.size"),
    (lambda e: e * 6, "scale", "times 6, which is the number of elements over the first 2 axes"),
    (lambda e: -e / 120, "scale", "minus the right answer divided by 120, which is x.size"),
    (lambda e: e * 0.7310, "scale", "times 0.731, everywhere"),
    (lambda e: e[:, ::-1], "flipped", "turned round along axis 1"),
    (lambda e: e[:, ::-1, ::-1], "flipped", "turned round along axes 1, 2"),
    (lambda e: e + np.random.default_rng(1).standard_normal(5), "offset",
     "along axes 0, 1, 2 every element is off by the same amount"),
    (lambda e: e * np.arange(1.0, 6.0), "ratio", "a factor that depends on axis 3 only"),
    (lambda e: e * np.arange(1.0, 3.0)[:, None, None, None], "places", "at index 1 of axis 0"),
], ids=["zero", "sign", "K", "pixels", "NH", "size", "odd", "flip", "flip two", "offset", "ratio",
        "batch"])
def test_a_slip_is_recognised(right, inputs, make, kind, words):
    found = slip(make(right), right, inputs)
    assert found.kind == kind and words in found.hint


def test_a_factor_with_a_name_goes_first(right, inputs):
    found = slip(24 * right, right, inputs, quantities={"the number of pixels": 24})
    assert "which is the number of pixels" in found.hint


@pytest.mark.parametrize("order", [(1, 0), (0, 1)])
def test_transposed(rng, order):
    right = rng.standard_normal((4, 4))
    found = slip(right.transpose(order) + 0.0, right + 0.0 if order == (1, 0) else -right, {})
    assert found.kind == ("transposed" if order == (1, 0) else "sign")


def test_a_term_with_an_input_or_the_upstream_gradient(rng, right, inputs):
    dout = rng.standard_normal(right.shape)
    found = slip(right - 0.5 * inputs["x"], right, inputs, dout=dout)
    assert found.kind == "term" and "minus 0.5 times x" in found.hint
    found = slip(right + dout, right, inputs, dout=dout)
    assert found.kind == "term" and "plus 1 times dout" in found.hint


def test_an_unused_upstream_gradient(rng, right, inputs):
    dout = rng.standard_normal(right.shape)
    found = slip(right, right * dout, inputs, dout=dout, for_ones=lambda: right)
    assert found.kind == "ones"
    found = slip(right, right * 1.7, inputs, dout=1.7, for_ones=lambda: right)
    assert found.kind == "ones" and "multiply by it" in found.hint


def test_wrong_where_a_label_says_so(right, inputs):
    wrong = right.copy()
    wrong[inputs["target"] == 4] = 0
    found = slip(wrong, right, inputs)
    assert found.kind == "places" and "all where target is 4" in found.hint


def test_wrong_on_the_border(rng):
    right = rng.standard_normal((5, 6))
    wrong = right.copy()
    wrong[0], wrong[-1], wrong[:, 0], wrong[:, -1] = 9, 9, 9, 9
    found = slip(wrong, right, {})
    assert found.kind == "places" and "border" in found.hint


def test_nan_is_found_before_all_else(right, inputs):
    wrong = -right
    wrong[1, 2, 3, 4] = np.nan
    found = slip(wrong, right, inputs)
    assert found.kind == "nan" and "[1, 2, 3, 4]" in found.hint


def softmax(x, axis):
    exp = np.exp(x)
    return exp / exp.sum(axis=axis, keepdims=True)


@pytest.mark.parametrize("make, axes, words", [
    (lambda x, axes: x - x.mean(axis=axes, keepdims=True), ((3,), (0, 1, 2)),
     "has the mean 0 over axis 3, the right answer over axes 0, 1, 2"),
    (lambda x, axes: (x - x.mean(axis=axes, keepdims=True)) / x.std(axis=axes, keepdims=True),
     ((1, 2), (0, 1, 2)), "has the mean 0 over axes 1, 2, the right answer over axes 0, 1, 2"),
    (softmax, (1, 3), "adds up to 1 over axis 1, the right answer over axis 3"),
], ids=["centred", "normalised", "softmax"])
def test_a_mean_or_a_sum_over_the_wrong_axes(rng, inputs, make, axes, words):
    x = rng.standard_normal((2, 3, 4, 5))
    wrong, right = (make(x, axis) for axis in axes)
    found = slip(wrong, right, inputs)
    assert found.kind == "axis" and words in found.hint


def test_a_vector_that_is_off_by_a_constant(rng):
    right = rng.standard_normal(6)
    found = slip(right + 0.25, right, {})
    assert found.kind == "offset" and "0.25" in found.hint


def test_what_is_not_recognised_has_no_hint(rng, right, inputs):
    assert slip(rng.standard_normal(right.shape), right, inputs) == ("", "", "")


@pytest.mark.parametrize("noise", [0.0, 1e-9])
def test_the_right_answer_may_be_a_little_off(rng, right, inputs, noise):
    # As central differences are.
    right = right * (1 + noise * rng.standard_normal(right.shape))
    assert slip(-3 * right, right * (1 + noise), inputs).kind == "scale"


@pytest.mark.parametrize("make, kind, words", [
    (lambda e: np.stack([0.25 * e, 0.75 * e]), "sum", "summed over axis 0"),
    (lambda e: np.stack([np.stack([e, e]), np.stack([-e, 0 * e])]), "sum", "summed over axes"),
    (lambda e: e[None], "shape", "sum without keepdims=True"),
    (lambda e: e.reshape(-1), "shape", "the numbers are right: reshape"),
    (lambda e: e.T, "shape", ".transpose(1, 0)"),
    (lambda e: e[:2], "shape", "write down the shape"),
    (lambda e: e.astype(np.float32), "dtype", "follows the dtype"),
    (lambda e: e.tolist(), "type", "return a NumPy array"),
], ids=["sum", "two sums", "keepdims", "flat", "transposed", "part", "float32", "list"])
def test_a_wrong_shape_is_recognised(rng, make, kind, words):
    right = rng.standard_normal((4, 3))
    found = shape_slip(make(right), right)
    assert found.kind == kind and words in found.hint


def test_the_right_shape_is_no_slip(right):
    assert shape_slip(right, right) is None
    assert shape_slip(1.5, np.asarray(2.5)) is None


def test_a_number_is_no_multiple_of_another_unless_the_factor_has_a_name():
    right, inputs = np.float64(2.5), {"x": np.ones((3, 4))}
    assert find_slip(right * 0.9747, right, inputs=inputs).kind == ""
    assert "divided by 4" in find_slip(right / 4, right, inputs=inputs).hint
    assert find_slip(-right, right, inputs=inputs).kind == "sign"


def test_wrong_nearly_everywhere_is_no_finding_about_places(rng, right, inputs):
    wrong = rng.standard_normal(right.shape)
    wrong[inputs["target"] == 4] = right[inputs["target"] == 4]
    assert slip(wrong, right, inputs).kind == ""
