"""`python -m minisegnet.lab`: break a training in 21 ways, and see whether `diagnose` finds out.

    python -m minisegnet.lab
    python -m minisegnet.lab --faults shifted-labels dice-alone --keep lab
    python -m minisegnet.lab --healthy --seed 1

One line per training: what was planted, what was found first and second with its score, at which
place what was planted stands, and the mean IoU. Healthy trainings should have no finding at all.
"""

import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

from minisegnet.cli import ArgumentParser, non_negative_int, positive_int
from minisegnet.errors import UserError, run_command
from minisegnet.lab.faults import FAULTS
from minisegnet.lab.table import run_all


def build_parser():
    """Return the parser of the flags."""
    parser = ArgumentParser(
        prog="python -m minisegnet.lab",
        description="Plant faults into small trainings, one in each, and let the diagnosis find "
                    "them; and run healthy ones, in which it should find nothing.")
    parser.add_argument("--faults", nargs="+", choices=tuple(FAULTS), metavar="FAULT",
                        help=f"only these of {', '.join(FAULTS)}")
    parser.add_argument("--healthy", action="store_true",
                        help="only the healthy trainings, or those beside --faults")
    parser.add_argument("--seed", type=non_negative_int, default=0,
                        help="of pictures, weights and order")
    parser.add_argument("--workers", type=positive_int, default=2,
                        help="trainings at a time, on one core each")
    parser.add_argument("--keep", metavar="DIR", help="new folder for data, runs and transcripts")
    return parser


def main(argv=None):
    """Print the table; return 1 if a fault was missed or a healthy run suspected, else 0."""
    arguments = build_parser().parse_args(argv)
    faults, healthy = list(FAULTS), True
    if arguments.faults or arguments.healthy:
        faults, healthy = arguments.faults or [], arguments.healthy
    if arguments.keep is None:
        place = tempfile.TemporaryDirectory(prefix="minisegnet_")
    else:
        if Path(arguments.keep).exists():
            raise UserError(f"--keep {arguments.keep} is there already; give a new folder")
        place = nullcontext(arguments.keep)
    with place as folder:
        verdicts = run_all(folder, arguments.seed, faults, healthy, workers=arguments.workers)
    return 0 if all(verdict.is_right for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(run_command(main))
