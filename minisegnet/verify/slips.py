"""What is wrong with an answer that is not right: the usual slips, recognised by their traces.

A wrong array is compared with the right one. Minus the right one: a sign. A multiple: a missing
factor, which has a name if it is the size of an axis. The same amount off along some axes: a term
that is summed over them. Wrong in some places only: the border, one class, the ignored pixels.
Each finding is a `Slip` of a kind that an exercise can add a text of its own to.

kinds: "type", "dtype", "shape", "sum", "nan", "defined" (where nan is right), "zero", "sign",
"scale", "ones", "transposed", "flipped", "axis", "term", "offset", "ratio", "places", and "" where
nothing is recognised.
"""

from itertools import combinations, permutations
from typing import NamedTuple

import numpy as np

from minisegnet.verify.gradcheck import relative_error

SAME = 1e-6  # relative: the right answer may come from central differences
MAX_AXES = 4


class Slip(NamedTuple):
    """What an answer seems to have got wrong."""

    kind: str
    hint: str
    finding: str = ""  # what is there and what was expected; for shapes and types only


def shape_slip(answer, expected):
    """Return the `Slip` of an answer of the wrong type, dtype or shape; None if all is right."""
    if not isinstance(answer, (np.ndarray, np.generic, float, int)):
        return Slip("type", "return a NumPy array (or a float for a single number)",
                    f"a {type(answer).__name__}, expected an array {np.shape(expected)}")
    answer, expected = np.asarray(answer), np.asarray(expected)
    if answer.shape != expected.shape:
        kind, hint = _wrong_shape(answer, expected)
        return Slip(kind, hint, f"shape {answer.shape}, expected {expected.shape}")
    if answer.dtype != expected.dtype:
        return Slip("dtype", "code follows the dtype of its input: look for an integer or float32 "
                             "array made on the way (np.zeros without a dtype, astype)",
                    f"dtype {answer.dtype}, expected {expected.dtype}")
    return None


def _wrong_shape(answer, expected):
    """Return the kind and the hint of an answer of another shape."""
    if answer.size == expected.size:
        if _close(answer.reshape(expected.shape), expected):
            return "shape", "the numbers are right: reshape, or sum without keepdims=True"
        for order in permutations(range(min(answer.ndim, MAX_AXES + 1))):
            if len(order) == answer.ndim and _close(answer.transpose(order), expected):
                return "shape", (f"its axes are in another order: .transpose{order} gives the "
                                 f"right one")
    axes = _missing_sum(answer, expected)
    if axes:
        return "sum", (f"summed over {_axes(axes)} it would be right: what was copied on the way "
                       f"forward is summed on the way back")
    return "shape", ("write down the shape of every factor; a gradient has the shape of what it "
                     "is the gradient of")


def _missing_sum(answer, expected):
    """Return the axes of `answer` over which its sum is right, or ()."""
    for axes in _subsets(answer.ndim):
        for keepdims in (False, True):
            if _close(answer.sum(axis=axes, keepdims=keepdims), expected):
                return axes
    return ()


def find_slip(answer, expected, *, inputs, dout=None, quantities=None, for_ones=None):
    """Return the `Slip` that turns `expected` into `answer`, two arrays of one shape.

    `inputs` (dict) and `dout` are what the answer was computed from; `for_ones()` gives the right
    gradient for dout = 1; `quantities` (dict from text to number) are factors worth naming.
    """
    answer, expected = np.asarray(answer, float), np.asarray(expected, float)
    odd = ~np.isfinite(answer) & np.isfinite(expected)
    if odd.any():
        at = f" at [{', '.join(map(str, np.argwhere(odd)[0]))}]" if odd.ndim else ""
        return Slip("nan", f"nan or inf{at}: look for a division by 0, a log(0) or an "
                           f"overflowing exp")
    missing = np.isnan(expected) & ~np.isnan(answer)
    if missing.any():
        at = f" at [{', '.join(map(str, np.argwhere(missing)[0]))}]" if missing.ndim else ""
        return Slip("defined", f"there is no such number{at}, 0 over 0: return nan, not "
                               f"{answer[missing].flat[0]:.6g}")
    if not np.isfinite(expected).all():
        return Slip("", "")
    if not answer.any():
        return Slip("zero", "every element is 0")
    for find in (_ones, _scale, _rearranged, _axis, _term, _places, _per_axis):
        slip = find(answer, expected, inputs=inputs, dout=dout, quantities=quantities or {},
                    for_ones=for_ones)
        if slip:
            return slip
    return Slip("", "")


def _close(a, b):
    return a.shape == b.shape and relative_error(a, b) < SAME


def _subsets(ndim):
    """Return all sets of axes but the empty one, the largest first."""
    axes = range(min(ndim, MAX_AXES))
    return [chosen for size in range(len(axes), 0, -1) for chosen in combinations(axes, size)]


def _axes(axes):
    return f"axis {axes[0]}" if len(axes) == 1 else f"axes {', '.join(map(str, axes))}"


def _ratio(a, b):
    """Return c where a = c * b for one number c, else None."""
    b_norm = float(np.vdot(b, b))
    if b_norm == 0:
        return None
    c = float(np.vdot(b, a)) / b_norm
    return c if np.linalg.norm(a - c * b) < SAME * max(np.linalg.norm(a), 1e-300) else None


def _scale(answer, expected, *, inputs, quantities, **_):
    c = _ratio(answer, expected)
    if c is None or c == 0:
        return None
    if abs(c + 1) < SAME:
        return Slip("sign", "the sign is wrong everywhere, the size is right")
    sign = "minus " if c < 0 else ""
    for text, number in _factors(inputs, quantities):
        if number <= 0 or number == 1:
            continue
        for factor, words in ((number, "times"), (1 / number, "divided by")):
            if abs(abs(c) - factor) < SAME * factor:
                # `:.6g` shows integers as such.
                return Slip("scale", f"it is {sign}the right answer {words} {number:.6g}, "
                                     f"which is {text}")
    if expected.ndim == 0:  # any number is a multiple of any other
        return None
    return Slip("scale", f"it is the right answer times {c:.6g}, everywhere")


def _factors(inputs, quantities):
    """Yield (text, number) for what might be missing as a factor: the likeliest first."""
    for text, number in quantities.items():
        yield text, float(number)
    shapes = {name: np.shape(value) for name, value in inputs.items()}
    for name, shape in shapes.items():
        for i, size in enumerate(shape):
            yield f"the size of axis {i} of {name}", size
    for name, shape in shapes.items():
        yield f"{name}.size", np.prod(shape)
    for name, shape in shapes.items():
        for n in range(2, len(shape)):
            yield f"the number of elements over the first {n} axes of {name}", np.prod(shape[:n])
    yield "two", 2


def _ones(answer, expected, *, dout, for_ones, **_):
    if for_ones is not None and np.ndim(dout) and _close(answer, np.asarray(for_ones())):
        return Slip("ones", "this is right for an upstream gradient of all ones: dout is not used")
    if for_ones is not None and not np.ndim(dout) and _close(answer * dout, expected):
        return Slip("ones", "the upstream gradient (dloss) is not used: multiply by it")
    return None


def _rearranged(answer, expected, **_):
    if expected.ndim > MAX_AXES:
        return None
    for order in permutations(range(expected.ndim)):
        if list(order) != sorted(order) and _close(answer, expected.transpose(order)):
            return Slip("transposed", f"it is the right answer with its axes in the order {order}")
    for axes in reversed(_subsets(expected.ndim)):
        if _close(answer, np.flip(expected, axes)):
            return Slip("flipped", f"it is the right answer turned round along {_axes(axes)}")
    return None


def _axis(answer, expected, **_):
    """Centred, or summing to one, over other axes than the right answer."""
    for words, level in (("has the mean 0", 0), ("adds up to 1", 1)):
        wrong, right = (_axes_of_level(array, level) for array in (answer, expected))
        if wrong and right and wrong != right:
            return Slip("axis", f"it {words} over {_axes(wrong)}, the right answer over "
                                f"{_axes(right)}: a mean or a sum goes over the wrong axes")
    return None


def _axes_of_level(array, level):
    """Return the fewest axes over which the sum of `array` is `level` everywhere, or None."""
    for axes in reversed(_subsets(array.ndim)):
        # Fewer than three numbers may cancel by chance, as the two of a binary softmax do.
        if np.prod([array.shape[axis] for axis in axes]) >= 3 \
                and (np.abs(array.sum(axis=axes) - level) < SAME * np.abs(array).max()).all():
            return axes
    return None


def _term(answer, expected, *, inputs, dout, **_):
    """A multiple of an input, or of dout, too much or too little."""
    difference = answer - expected
    for name, value in [*inputs.items(), ("dout", dout)]:
        if np.shape(value) != answer.shape or answer.ndim == 0:
            continue
        c = _ratio(difference, np.asarray(value, float))
        if c is not None:
            return Slip("term", f"it is the right answer {'plus' if c > 0 else 'minus'} "
                                f"{abs(c):.6g} times {name}: a term is missing or too much")
    return None


def _places(answer, expected, *, inputs, **_):
    """Wrong in some places only, which are at one index of an axis, or in some classes."""
    is_wrong = np.abs(answer - expected) > SAME * np.abs(expected).max()
    if is_wrong.all() or answer.ndim == 0:
        return None
    share = f"{is_wrong.sum()} of {is_wrong.size} elements are wrong"
    for name, value in inputs.items():
        value = np.asarray(value)
        if value.dtype.kind not in "iub" or value.ndim == 0 \
                or value.shape != is_wrong.shape[:value.ndim]:
            continue
        rest = tuple(range(value.ndim, is_wrong.ndim))
        at = np.unique(value[is_wrong.any(axis=rest)])
        # All but one would say where it is right: at the ignored pixels, as a rule.
        if len(at) <= max(1, len(np.unique(value)) - 2):
            return Slip("places", f"{share}, all where {name} is {', '.join(map(str, at[:5]))}")
    for axis in range(answer.ndim):
        others = tuple(i for i in range(answer.ndim) if i != axis)
        at = np.flatnonzero(is_wrong.any(axis=others))
        if 0 < len(at) < answer.shape[axis] and 2 * len(at) <= max(4, answer.shape[axis]):
            return Slip("places", f"{share}, all at index {', '.join(map(str, at[:5]))} of axis "
                                  f"{axis}")
    inside = np.zeros(is_wrong.shape, bool)
    inside[tuple(slice(1, -1) if size > 2 else slice(None) for size in is_wrong.shape)] = True
    if not (is_wrong & inside).any():
        return Slip("places", f"{share}, all of them on the border")
    return None


def _per_axis(answer, expected, **_):
    """Off by an amount, or by a factor, that is the same along some axes."""
    if answer.ndim < 2:
        difference = answer - expected
        if answer.size > 2 and np.ptp(difference) < SAME * np.abs(difference).max():
            return Slip("offset", f"every element is off by {difference.flat[0]:.6g}: a mean or a "
                                  f"sum is missing or too much")
        return None
    difference = answer - expected
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(expected == 0, 1, answer / expected)
    for axes in _subsets(answer.ndim):
        if np.prod([answer.shape[axis] for axis in axes]) < 3:
            continue
        if _is_constant(difference, axes):
            return Slip("offset", f"along {_axes(axes)} every element is off by the same amount: "
                                  f"a term that is summed over there is missing or too much")
        if _is_constant(ratio, axes):
            rest = tuple(axis for axis in range(answer.ndim) if axis not in axes)
            return Slip("ratio", f"it is the right answer times a factor that depends on "
                                 f"{_axes(rest)} only: what has one value for each index there?"
                        if rest else "it is a multiple of the right answer")
    return None


def _is_constant(array, axes):
    return np.isfinite(array).all() and bool(
        (np.ptp(array, axis=axes) <= SAME * np.abs(array).max()).all())
