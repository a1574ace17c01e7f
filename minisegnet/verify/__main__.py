"""`python -m minisegnet.verify`: is every gradient, and every other number, right?

One table over every op, layer, loss, optimizer, schedule, metric and weight scheme, in float64.
"differences" is the relative error of the hand-written gradients against central differences;
"reference" that of outputs and gradients against an independent source: torch's own op ("torch"),
a formula that torch differentiates ("autograd"), or a plain formula, without torch ("formula").
"""

import importlib.util
import sys
from collections import Counter

from minisegnet.cli import ArgumentParser
from minisegnet.errors import run_command
from minisegnet.verify import cases_layers, cases_losses, cases_ops, cases_values
from minisegnet.verify.case import FINITE_DIFFERENCE_LIMIT, REFERENCE_LIMIT, run_case

COLUMNS = (
    ("kind", 9), ("name", 27), ("implementation", 14), ("options", 39),
    ("differences", 11), ("reference", 18), ("verdict", 7),
)


def main(argv=None):
    """Print the table; return 1 if anything is over its limit, else 0."""
    parser = ArgumentParser(
        prog="python -m minisegnet.verify",
        description="Check every gradient and every other number of the package.")
    parser.add_argument("--no-torch", action="store_true",
                        help="do not compare with torch, even where it is installed")
    parser.add_argument("--quick", action="store_true",
                        help="finite differences along one random direction only")
    arguments = parser.parse_args(argv)

    oracle = None
    if not arguments.no_torch and importlib.util.find_spec("torch"):
        from minisegnet.verify import torch_oracle as oracle

    rows = []
    _print_line(name for name, _ in COLUMNS)
    _print_line("-" * width for _, width in COLUMNS)
    for module in (cases_ops, cases_layers, cases_losses, cases_values):
        for case in module.cases():
            if rows and rows[-1].kind != case.kind:
                print()
            rows.append(run_case(case, oracle, quick=arguments.quick))
            _print_row(rows[-1])
    return _summarise(rows, oracle)


def _print_line(cells):
    cells = (f"{cell:<{width}}" for cell, (_, width) in zip(cells, COLUMNS))
    print("  ".join(cells).rstrip())


def _number(error):
    return "-" if error is None else f"{error:.1e}"


def _print_row(row):
    reference = _number(row.reference_error)
    if row.reference != "-":
        reference = f"{reference:<8} {row.reference}"
    _print_line((row.kind, row.name, row.implementation, row.options,
                 _number(row.finite_difference), reference, row.verdict))
    for failure in row.failures:
        print(f"    {failure}")


def _summarise(rows, oracle):
    verdicts = Counter(row.verdict for row in rows)
    worst = {
        column: max((getattr(row, column) for row in rows if getattr(row, column) is not None),
                    default=None)
        for column in ("finite_difference", "reference_error")
    }
    print(f"\n{len(rows)} checks: {verdicts['ok']} ok, {verdicts['OVER']} over, "
          f"{verdicts['needs torch']} need torch")
    print(f"largest error against central differences {_number(worst['finite_difference'])} "
          f"(limit {FINITE_DIFFERENCE_LIMIT:.0e}), against the reference "
          f"{_number(worst['reference_error'])} (limit {REFERENCE_LIMIT:.0e})")
    if oracle is None:
        print("not compared with torch; for that: pip install 'minisegnet[torch]'")
    return 1 if verdicts["OVER"] else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
