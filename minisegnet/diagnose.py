"""`python -m minisegnet.diagnose RUN_FOLDER`: what is wrong with a run, and what to try next.

    python -m minisegnet.diagnose runs/floorplans_combined_001
    python -m minisegnet.diagnose runs/floorplans_combined_001 --json

Reads what the run measured (`minisegnet.train --debug` measures most), never what it was told.
Prints findings, the most certain first: label, metric, loss, optimizer and data faults apart.
"""

import json
import sys

from minisegnet.cli import ArgumentParser
from minisegnet.diagnosis import as_dictionary, read_evidence, report_lines
from minisegnet.errors import run_command
from minisegnet.training.run_folder import json_ready


def main(argv=None):
    """Print the diagnosis of a run folder."""
    parser = ArgumentParser(prog="python -m minisegnet.diagnose",
                            description="Say what is wrong with a training run, and what to try.")
    parser.add_argument("run", metavar="RUN_FOLDER", help="folder of a run, finished or not")
    parser.add_argument("--json", action="store_true", help="print JSON in place of text")
    arguments = parser.parse_args(argv)
    evidence = read_evidence(arguments.run)
    if arguments.json:
        print(json.dumps(json_ready(as_dictionary(evidence)), indent=1))
    else:
        print(f"diagnosis of {evidence.folder}")
        print(*report_lines(evidence), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
