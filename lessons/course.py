"""The lessons as lists of cells, from a percent script or a notebook, and where they all are."""

import json
import re
from pathlib import Path
from typing import NamedTuple

from minisegnet.errors import UserError

FOLDER = Path(__file__).resolve().parent
NOTEBOOKS = FOLDER / "notebooks"  # the student's, as committed
_TAG = re.compile(r"(exercise|check)-(\d+\.\d+)")


class Cell(NamedTuple):
    """One cell of a lesson."""

    kind: str  # "markdown" or "code"
    source: str
    tags: tuple  # of str: "exercise-3.1", "check-3.1", "experiment", "install"
    id: str  # "" in a script

    @property
    def exercise(self):
        """The number of the exercise that this cell poses, or None."""
        return self._number("exercise")

    @property
    def check(self):
        """The number of the exercise that this cell checks, or None."""
        return self._number("check")

    @property
    def is_for_exercises(self):
        """Whether exercises need it run: code, but no experiment and no installation."""
        return self.kind == "code" and not {"experiment", "install"} & set(self.tags)

    def _number(self, role):
        matches = filter(None, map(_TAG.fullmatch, self.tags))
        return next((match[2] for match in matches if match[1] == role), None)


def lesson_paths():
    """Return the scripts of all lessons, in order."""
    return sorted(FOLDER.glob("[0-9][0-9]_*.py"))


def read_cells(path):
    """Return the `Cell`s of a notebook, or of a percent script (which takes jupytext).

    Raises UserError for a file that is neither.
    """
    path = Path(path)
    try:
        if path.suffix == ".py":
            import jupytext

            notebook = jupytext.reads(path.read_text(encoding="utf-8"), fmt="py:percent")
        else:
            notebook = json.loads(path.read_text(encoding="utf-8"))
        return [Cell(cell["cell_type"], _text(cell["source"]),
                     tuple(cell.get("metadata", {}).get("tags", ())), cell.get("id", ""))
                for cell in notebook["cells"] if cell["cell_type"] in ("markdown", "code")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"cannot read {path} as a notebook ({type(error).__name__}: {error}); "
                        f"save it again, or take a fresh copy from lessons/notebooks") from error


def _text(source):
    return source if isinstance(source, str) else "".join(source)
