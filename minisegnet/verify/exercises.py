"""The verdict on an exercise: `check("3.1", answer, inputs, forward=...)` says PASS, FAIL or TODO.

In this order: does the answer run; has it the right shape and dtype, without any broadcasting; are
its numbers right, a gradient by central differences in float64 with a random upstream gradient, a
value by the function given as `expected`; and does torch, where it is installed, say the same.
"""

import importlib.util
import sys
import traceback
from typing import NamedTuple

import numpy as np

from minisegnet.verify.gradcheck import numeric_gradient, relative_error
from minisegnet.verify.slips import find_slip, shape_slip

GRADIENT_LIMIT = 1e-6  # central differences are good to 1e-8 or so
VALUE_LIMIT = 1e-9
TORCH_LIMIT = 1e-9
UPSTREAM_SEED = 20

results = []  # the Result of every check of this process, in order: what lessons.grade reads


class Result(NamedTuple):
    """What became of one exercise."""

    exercise: str  # as "3.1"
    verdict: str  # "PASS", "FAIL" or "TODO"
    lines: list  # of text: why
    hint: str  # "" where there is none


def check(exercise, answer, inputs, *, forward=None, expected=None, wrt=None, torch=None,
          limit=None, quantities=None, hints=None, slips=None):
    """Print whether `answer` solves an exercise, and if not, where and what to look at.

    `inputs` is a dict from names to arrays (or to anything else, which is passed on).
    With `expected`, a value: `answer(**inputs)` is compared with `expected(**inputs)`.
    With `forward`, a gradient: `answer(dout, **inputs)` must return the gradient of
    `sum(dout * forward(**inputs))` with respect to the inputs named in `wrt` (as a tuple if there
    are several; default: every float64 array), for a random `dout` shaped as the output.
    `torch(torch, **inputs)`, optional, computes the same output with torch, from tensors.

    The answer itself may be a tuple of arrays. It is TODO while it raises NotImplementedError or
    returns None. For the hints: `quantities` names numbers that may be missing as a factor,
    `hints` has a text for a kind of slip (see minisegnet.verify.slips), "" for all others, and
    `slips` maps a text to a function with the arguments of `answer` that makes this very slip.

    An exercise never breaks what stands after it: nothing that `answer` does is raised.
    """
    result = judge(exercise, answer, inputs, forward=forward, expected=expected, wrt=wrt,
                   torch=torch, limit=limit, quantities=quantities, hints=hints, slips=slips)
    results.append(result)
    print(f"{result.verdict}  exercise {result.exercise}"
          + "".join(f"\n      {line}" for line in result.lines)
          + (f"\n      hint: {result.hint}" if result.hint else ""))


def judge(exercise, answer, inputs, *, forward=None, expected=None, wrt=None, torch=None,
          limit=None, quantities=None, hints=None, slips=None):
    """Return the `Result` that `check` prints; the arguments are the same."""
    if (forward is None) == (expected is None):
        raise TypeError("give either forward= (a gradient) or expected= (a value)")
    question = _value(inputs, expected) if forward is None else _gradient(inputs, forward, wrt)
    advice = _Advice(hints or {}, slips or {}, quantities or {})
    return Result(exercise, *_verdict(answer, question, torch, limit, advice))


class _Question(NamedTuple):
    """What an answer is given, and what it should return."""

    inputs: dict
    forward: object  # the function to be differentiated; None where a value is asked for
    names: list  # of the inputs whose gradients are asked for; None for a value
    dout: object  # the upstream gradient; None for a value
    truth: tuple  # of arrays

    @property
    def head(self):
        """The arguments before the inputs."""
        return () if self.forward is None else (self.dout,)

    @property
    def labels(self):
        """A name for each array of the truth."""
        if self.names is not None:
            return [f"d{name}" for name in self.names]
        return ["the value"] if len(self.truth) == 1 else \
            [f"value {i}" for i in range(1, len(self.truth) + 1)]

    @property
    def source(self):
        """Where the truth is from, in a word."""
        return "expected" if self.forward is None else "numeric"


class _Advice(NamedTuple):
    """What an exercise knows of its slips; see `check`."""

    hints: dict
    slips: dict
    quantities: dict

    @property
    def general(self):
        """What to say where nothing fits."""
        return self.hints.get("", "")


def _value(inputs, expected):
    truth = _as_tuple(expected(**_copy(inputs)))
    return _Question(dict(inputs), None, None, None, tuple(map(np.asarray, truth)))


def _gradient(inputs, forward, wrt):
    names = [name for name, value in inputs.items() if _is_float64(value)] \
        if wrt is None else list(wrt)
    dout = _upstream_for(forward(**_copy(inputs)))
    return _Question(dict(inputs), forward, names, dout,
                     tuple(_numeric(forward, inputs, name, dout) for name in names))


def _verdict(answer, question, torch, limit, advice):
    """Return (verdict, lines, hint)."""
    passed = _copy(question.inputs)
    try:
        returned = answer(*_copy(question.head), **passed)
    except NotImplementedError as error:
        return "TODO", [str(error)] if str(error) else [], ""
    except Exception as error:  # whatever a half-written answer raises is a verdict on it
        return "FAIL", _where_it_broke(error), advice.general
    if returned is None or returned is Ellipsis:
        return "TODO", ["it returns nothing yet"], ""
    changed = [name for name, value in question.inputs.items() if not _same(value, passed[name])]
    if changed:
        return ("FAIL", [f"it changes its input {changed[0]}"],
                "work on a copy: whoever called still needs the array as it was")
    found, truth = _as_tuple(returned), question.truth
    if len(found) != len(truth):
        return "FAIL", [f"it returns {_counted(len(found))}, expected {_counted(len(truth))}: "
                        f"{', '.join(question.labels)}"], advice.general

    limit = limit or (VALUE_LIMIT if question.forward is None else GRADIENT_LIMIT)
    errors = []
    for i, (a, e) in enumerate(zip(found, truth)):
        wrong = shape_slip(a, e)
        if wrong is not None:
            return "FAIL", [f"{question.labels[i]}: {wrong.finding}"], _hint(wrong, advice)
        error = relative_error(a, e)
        if _is_tiny(a, e, truth):
            error = 0.0
        if error > limit:
            return ("FAIL", _numbers(question.labels[i], np.asarray(a), e, error, question.source),
                    _hint(_slip(i, found, question, advice), advice))
        errors.append(error)
    return _with_torch(found, question, torch, max(errors), advice)


def _slip(i, found, question, advice):
    """Return the slip in part `i` of an answer with the right shapes and wrong numbers."""
    def for_ones():
        return _numeric(question.forward, question.inputs, question.names[i],
                        np.ones_like(question.dout))

    return _named_slip(advice.slips, question, i, found) or find_slip(
        np.asarray(found[i]), question.truth[i], inputs=question.inputs, dout=question.dout,
        quantities=advice.quantities, for_ones=None if question.forward is None else for_ones)


def _hint(slip, advice):
    """Return the text for a slip: what was found, and what the exercise has to say of it."""
    # A slip that has a name needs no general advice besides.
    general = "" if slip.kind == "named" else advice.general
    return ". ".join(filter(None, (slip.hint, advice.hints.get(slip.kind, general))))


def _with_torch(found, question, torch, error, advice):
    """Return the verdict on an answer that is right, unless torch says otherwise."""
    against = "the expected value" if question.forward is None else "central differences"
    lines = [f"relative error {error:.1e} against {against}"]
    if torch is None:
        return "PASS", lines, ""
    said = _torch_says(torch, question)
    if said is None:
        return "PASS", [*lines, "torch is not installed: not compared with it"], ""
    error = max(0.0 if _is_tiny(a, e, said) else relative_error(a, e)
                for a, e in zip(found, said))
    lines[0] += f", {error:.1e} against torch"
    return ("FAIL", lines, advice.general) if error > TORCH_LIMIT else ("PASS", lines, "")


def _is_float64(value):
    return isinstance(value, np.ndarray) and value.dtype == np.float64


def _as_tuple(value):
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _copy(values):
    """Return the dict or tuple with copies of its arrays: an answer may do as it likes to them."""
    if isinstance(values, dict):
        return dict(zip(values, _copy(tuple(values.values()))))
    return tuple(value.copy() if isinstance(value, np.ndarray) else value for value in values)


def _same(before, after):
    return not isinstance(before, np.ndarray) or np.array_equal(
        before, after, equal_nan=before.dtype.kind == "f")


def _upstream_for(out):
    """Return a random upstream gradient, shaped as `out`: a float for a number."""
    dout = np.random.default_rng(UPSTREAM_SEED).standard_normal(np.shape(out))
    return dout if np.ndim(out) else float(dout)


def _numeric(forward, inputs, name, dout):
    """Return the gradient with respect to the input `name` by central differences."""
    return numeric_gradient(lambda moved: forward(**{**_copy(inputs), name: moved}),
                            inputs[name], dout)


def _is_tiny(a, e, truth):
    """Whether `a` is a zero where zero is right: both drown in the rounding of the others."""
    least = 1e-8 * max(np.nanmax(np.abs(other), initial=0) for other in truth)
    return bool((np.abs(a) <= least).all() and (np.abs(e) <= least).all())  # nan is not tiny


def _counted(results):
    return f"{results} results" if results > 1 else "one result"


def _numbers(label, a, e, error, source):
    """Return the line with the relative error, the worst element and what stands there."""
    is_same = (a == e) | (np.isnan(a) & np.isnan(e))
    difference = np.where(is_same, 0.0, np.abs(a - e))
    worst = np.unravel_index(np.argmax(np.where(np.isnan(difference), np.inf, difference)),
                             np.shape(e))
    where = f" at [{', '.join(map(str, worst))}]" if worst else ""
    size = f"relative error {error:.1e}" if np.isfinite(error) else "not finite, or not zero"
    return [f"{label}: {size}; worst{where}: yours {a[worst]:.6g}, {source} {e[worst]:.6g}"]


class _Named(NamedTuple):
    kind: str
    hint: str


def _named_slip(slips, question, i, found):
    """Return the exercise's own slip that gives all of `found`, else one for part `i`, or None."""
    def is_same(a, b):
        return np.shape(a) == np.shape(b) and relative_error(a, b) < GRADIENT_LIMIT

    slipped = {text: _as_tuple(function(*_copy(question.head), **_copy(question.inputs)))
               for text, function in slips.items()}
    for text, parts in slipped.items():
        if len(parts) == len(found) and all(map(is_same, found, parts)):
            return _Named("named", text)
    return next((_Named("named", text) for text, parts in slipped.items()
                 if is_same(found[i], parts[i])), None)


def _where_it_broke(error):
    """Return one line: what was raised, and in which line of whose function."""
    steps = traceback.extract_tb(error.__traceback__)[1:]  # the first is the call in `judge`
    own = next((step for step in reversed(steps) if "site-packages" not in step.filename
                and "minisegnet" not in step.filename), steps[-1] if steps else None)
    text = str(error).splitlines()[0] if str(error) else ""
    where = f" (in {own.name}: {own.line})" if own and own.line else \
        f" (in {own.name}, line {own.lineno})" if own else ""
    return [f"it raises {type(error).__name__}: {text}{where}"]


def _torch_says(function, question):
    """Return what torch gives for the output or the gradients as arrays; None without torch."""
    if "torch" not in sys.modules and importlib.util.find_spec("torch") is None:
        return None
    import torch

    tensors = {name: torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value
               for name, value in question.inputs.items()}
    for name in question.names or ():
        tensors[name].requires_grad_()
    out = function(torch, **tensors)
    if question.names is None:
        return tuple(np.asarray(tensor) for tensor in _as_tuple(out))
    weighted = (out * torch.as_tensor(np.asarray(question.dout))).sum()
    gradients = torch.autograd.grad(weighted, [tensors[name] for name in question.names],
                                    allow_unused=True)
    return tuple(np.zeros(tensors[name].shape) if gradient is None else gradient.numpy()
                 for name, gradient in zip(question.names, gradients))
