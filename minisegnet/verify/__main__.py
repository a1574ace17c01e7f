"""`python -m minisegnet.verify`: is every gradient, and every other number, right?

One table over every op, layer, loss, optimizer, schedule, metric and weight scheme, in float64.
"differences" is the relative error of the hand-written gradients against central differences;
"reference" that of outputs and gradients against an independent source: torch's own op ("torch"),
a formula that torch differentiates ("autograd"), or a plain formula, without torch ("formula").
"""

import importlib.util
import sys
from collections import Counter

from minisegnet.backend import select_device
from minisegnet.cli import ArgumentParser
from minisegnet.cuda import gemm
from minisegnet.errors import run_command
from minisegnet.verify import cases_layers, cases_losses, cases_ops, cases_values
from minisegnet.verify.case import FINITE_DIFFERENCE_LIMIT, REFERENCE_LIMIT, run_case
from minisegnet.verify.on_device import FLOAT32_LIMIT, FLOAT32_RATIO, run_on_device

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
    parser.add_argument("--device", choices=("cpu", "cuda", "cuda_cpu"), default="cpu",
                        help="cuda: the kernels on a GPU, in float64 and float32; cuda_cpu: the "
                             "same kernels on this CPU")
    arguments = parser.parse_args(argv)

    oracle = None
    if not arguments.no_torch and importlib.util.find_spec("torch"):
        from minisegnet.verify import torch_oracle as oracle

    run, modules = _choose_cases(arguments, oracle)
    rows = []
    _print_line(name for name, _ in COLUMNS)
    _print_line("-" * width for _, width in COLUMNS)
    for module in modules:
        for case in module:
            for row in run(case):
                if rows and rows[-1].kind != row.kind:
                    print()
                rows.append(row)
                _print_row(row)
    return _summarise(rows, oracle)


def _choose_cases(arguments, oracle):
    """Return a function case -> rows, and lists of cases."""
    if arguments.device == "cpu":
        return (lambda case: [run_case(case, oracle, quick=arguments.quick)],
                [module.cases() for module in (cases_ops, cases_layers, cases_losses,
                                               cases_values)])
    if arguments.device == "cuda":
        xp, torch_device = select_device("cuda"), _without_tf32(oracle)
    else:
        from minisegnet.cuda import emulated_device as xp
        torch_device = "cpu"

    def run(case):
        return [run_on_device(case, xp, dtype, oracle, torch_device)
                for dtype in ("float64", "float32")]

    return run, [module.cases(on_device=True) for module in (cases_ops, cases_layers,
                                                             cases_losses)]


def _without_tf32(oracle):
    """Have products computed in full float32, as the limits are; return where torch computes."""
    gemm.allow_tf32 = False
    if oracle is None:
        return "cpu"
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return "cuda" if torch.cuda.is_available() else "cpu"


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


def _worst(rows, column):
    """Return the largest error of a column as text."""
    found = [getattr(row, column) for row in rows]
    return _number(max((error for error in found if error is not None), default=None))


def _summarise(rows, oracle):
    verdicts = Counter(row.verdict for row in rows)
    print(f"\n{len(rows)} checks: {verdicts['ok']} ok, {verdicts['OVER']} over, "
          f"{verdicts['needs torch']} need torch")
    rounded = [row for row in rows if row.implementation.endswith("float32")]
    exact = [row for row in rows if row not in rounded]
    print(f"largest error against central differences {_worst(exact, 'finite_difference')} "
          f"(limit {FINITE_DIFFERENCE_LIMIT:.0e}), against the reference "
          f"{_worst(exact, 'reference_error')} (limit {REFERENCE_LIMIT:.0e})")
    if rounded:
        print(f"in float32 {_worst(rounded, 'reference_error')} against the reference in float64 "
              f"(limit {FLOAT32_LIMIT:.0e}, or {FLOAT32_RATIO:g} x what torch's float32 is off)")
    if oracle is None:
        print("not compared with torch; for that: pip install 'minisegnet[torch]'")
    return 1 if verdicts["OVER"] else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
