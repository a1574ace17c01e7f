"""What is verified, one by one: a case, and the row of the table that running it gives."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from minisegnet.verify.gradcheck import numeric_gradient, numeric_slope, relative_error

FINITE_DIFFERENCE_LIMIT = 1e-6
REFERENCE_LIMIT = 1e-10


@dataclass(frozen=True)
class GradientCase:
    """A function with a hand-written backward pass, on small float64 inputs.

    `forward(**inputs, **constants)` returns `(out, cache, *others)`; `backward(dout, cache)`
    returns the gradients in the order of `inputs`. `oracle` names the function of `torch_oracle`
    that does the same; `reference` says what that function is: torch's own op ("torch"), or a
    formula that torch differentiates ("autograd").
    """

    kind: str
    name: str
    inputs: dict
    constants: dict
    forward: Callable
    backward: Callable
    oracle: str
    implementation: str = "numpy"
    reference: str = "torch"
    options: str = ""
    has_kinks: bool = False  # inputs lie on kinks, where only a convention defines the derivative


@dataclass(frozen=True)
class ValueCase:
    """Numbers without a backward pass: `compute()` against `expected()`, both arrays.

    With `reference` "torch", `expected` takes the module `torch_oracle`; with "formula" it is an
    independent plain formula, and needs no torch.
    """

    kind: str
    name: str
    compute: Callable
    expected: Callable
    reference: str
    implementation: str = "numpy"
    options: str = ""


@dataclass
class Row:
    """A line of the table; an error is None where it was not, or could not be, measured."""

    kind: str
    name: str
    implementation: str
    options: str
    reference: str = "-"
    finite_difference: float | None = None
    reference_error: float | None = None
    failures: list = field(default_factory=list)  # what went wrong, in words

    @property
    def verdict(self):
        """Return "ok", "OVER", or "needs torch" where nothing could be measured."""
        if self.failures:
            return "OVER"
        measured = (self.finite_difference, self.reference_error)
        return "needs torch" if measured == (None, None) else "ok"

    def record(self, column, errors, limit):
        """Set `column` to the largest of `errors` (by what was compared); note those over."""
        setattr(self, column, max(errors.values()))
        for what, error in errors.items():
            if error > limit:
                words = column.replace("_", " ").removesuffix(" error")
                self.failures.append(f"{what} is off by {error:.1e} against {words}")


def run_case(case, oracle=None, *, quick=False):
    """Run `case` and return its `Row`; `oracle` is the module `torch_oracle`, or None.

    `quick` moves all inputs at once along one random direction, instead of every number alone. An
    exception inside the case becomes a failure of its row, so that one broken op does not hide the
    state of the others.
    """
    row = Row(case.kind, case.name, case.implementation, case.options)
    try:
        if isinstance(case, GradientCase):
            _run_gradient_case(case, row, oracle, quick)
        else:
            _run_value_case(case, row, oracle)
    except Exception as error:
        row.failures.append(f"raised {type(error).__name__}: {error}")
    return row


def _run_value_case(case, row, oracle):
    if case.reference == "torch":
        if oracle is None:
            return
        expected = case.expected(oracle)
    else:
        expected = case.expected()
    row.reference = case.reference
    row.record("reference_error", {"value": relative_error(case.compute(), expected)},
               REFERENCE_LIMIT)


def _run_gradient_case(case, row, oracle, quick):
    names, inputs = list(case.inputs), list(case.inputs.values())
    before = [x.copy() for x in inputs]
    rng = np.random.default_rng(0)

    out, cache, *others = case.forward(**case.inputs, **case.constants)
    upstream = rng.standard_normal(np.shape(out))  # random: ones cannot see every mistake
    gradients = dict(zip(names, case.backward(upstream, cache), strict=True))

    if oracle is not None:
        outputs, expected = oracle.gradients(
            getattr(oracle, case.oracle), case.inputs, case.constants, upstream)
        errors = {"output": max(map(relative_error, (out, *others), outputs))}
        errors |= {f"d{name}": relative_error(gradients[name], expected[name]) for name in names}
        row.reference = case.reference
        row.record("reference_error", errors, REFERENCE_LIMIT)
    if not case.has_kinks:
        def output(*arrays):
            return case.forward(**dict(zip(names, arrays)), **case.constants)[0]

        if quick:
            directions = [rng.standard_normal(x.shape) for x in inputs]
            slope = numeric_slope(output, inputs, directions, upstream)
            ours = sum(np.sum(g * d) for g, d in zip(gradients.values(), directions))
            errors = {"slope": relative_error(ours, slope)}
        else:
            errors = {}
            for i, name in enumerate(names):
                def output_of_one(x):
                    return output(*inputs[:i], x, *inputs[i + 1:])

                numeric = numeric_gradient(output_of_one, inputs[i], upstream)
                errors[f"d{name}"] = relative_error(gradients[name], numeric)
        row.record("finite_difference", errors, FINITE_DIFFERENCE_LIMIT)
    if any((x != copy).any() for x, copy in zip(inputs, before)):
        row.failures.append("an input was changed")
