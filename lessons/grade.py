"""`python -m lessons.grade FOLDER`: PASS, FAIL or TODO for every exercise in a student's folder.

The notebooks are found by their names, NN_topic.ipynb, in FOLDER or anywhere below it. A lesson is
run in a process of its own: the student's cells, with the checks as they were handed out in place
of whatever the student has made of them, and without its experiments, which no exercise needs.

Whoever writes code that is run can make it print what they like: a table of PASS is an invitation
to read the answers, not a substitute for it.
"""

import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from lessons.course import FOLDER, NOTEBOOKS, read_cells
from minisegnet.cli import ArgumentParser, positive_int
from minisegnet.errors import UserError, run_command
from minisegnet.tables import ruled

SECONDS = 120


class Grade(NamedTuple):
    """What became of one exercise of a student."""

    lesson: str  # as "03_cross_entropy"
    exercise: str  # as "3.1"
    verdict: str  # "PASS", "FAIL", "TODO" or "MISSING": no such notebook, or no verdict from it
    reason: str  # "" for a PASS; one line


def main(argv=None):
    """Print the table; return 1 unless every exercise passed."""
    parser = ArgumentParser(prog="python -m lessons.grade",
                            description="Run a student's notebooks and list the verdicts.")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="of the student's notebooks")
    parser.add_argument("--only", nargs="+", metavar="NN", default=None,
                        help="these lessons, as 03 (default: all that are there)")
    parser.add_argument("--csv", metavar="FILE", type=Path, default=None,
                        help="write the table, with the reasons, to this file as well")
    parser.add_argument("--seconds", type=positive_int, default=SECONDS,
                        help="that a lesson may take")
    arguments = parser.parse_args(argv)

    grades = grade_folder(arguments.folder, arguments.only, arguments.seconds)
    if arguments.csv is not None:
        write_csv(arguments.csv, arguments.folder, grades)
    rows = [("lesson", "exercise", "verdict", "why")]
    rows += [(grade.lesson, grade.exercise, grade.verdict, _cut(grade.reason, 70))
             for grade in grades]
    print("\n".join(ruled(rows, left=4)))
    counts = {verdict: sum(grade.verdict == verdict for grade in grades)
              for verdict in ("PASS", "FAIL", "TODO", "MISSING")}
    print("\n" + ", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    return 0 if counts["PASS"] == len(grades) else 1


def grade_folder(folder, only=None, seconds=SECONDS):
    """Return the `Grade`s of the notebooks in `folder`, in the order of the course.

    `only` are numbers of lessons; one of them that is not in the folder is MISSING. Raises
    UserError for a folder without any notebook of the course, or with two of the same lesson.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the one with the student's notebooks")
    handed_out = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    for number in only or ():
        if not any(path.name.startswith(f"{number}_") for path in handed_out):
            raise UserError(f"--only {number}: no such lesson; there are "
                            f"{', '.join(path.name[:2] for path in handed_out)}")
    grades, found_any = [], False
    for original in handed_out:
        if only and original.name[:2] not in only:
            continue
        found = [path for path in sorted(folder.rglob(original.name))
                 if ".ipynb_checkpoints" not in path.parts]
        if len(found) > 1:
            raise UserError(f"{folder} holds {original.name} twice: {found[0]} and {found[1]}; "
                            f"keep the one to be graded")
        if found:
            found_any = True
            grades += grade_notebook(found[0], original, seconds)
        elif only:
            grades += [Grade(original.stem, exercise, "MISSING", "no such notebook")
                       for exercise in _exercises(read_cells(original))]
    if not found_any:
        raise UserError(f"no notebook of the course in {folder}; they are named as those in "
                        f"{_short(NOTEBOOKS)}")
    return grades


def grade_notebook(path, original, seconds=SECONDS):
    """Return the `Grade`s of the notebook `path`, made from the notebook `original`."""
    handed_out = read_cells(original)
    exercises = _exercises(handed_out)
    try:
        cells = read_cells(path)
    except UserError as error:
        return [Grade(original.stem, exercise, "MISSING", str(error)) for exercise in exercises]
    outcome = _run(sources_to_run(cells, handed_out), seconds)
    if isinstance(outcome, str):
        return [Grade(original.stem, exercise, "FAIL", outcome) for exercise in exercises]
    # The last verdict counts: a student may well have checked an exercise more often.
    verdicts = {result["exercise"]: result for result in outcome["results"]}
    grades = []
    for exercise in exercises:
        result = verdicts.get(exercise)
        if result is None:
            reason = outcome["troubles"][0] if outcome["troubles"] else "its check was not reached"
            grades.append(Grade(original.stem, exercise, "MISSING", reason))
        else:
            reason = "" if result["verdict"] == "PASS" else "; ".join(
                filter(None, [*result["lines"], result["hint"]]))
            grades.append(Grade(original.stem, exercise, result["verdict"], reason))
    return grades


def _exercises(cells):
    return [cell.exercise for cell in cells if cell.exercise]


def sources_to_run(cells, handed_out):
    """Return the texts to run: a student's cells, with the checks as they were handed out.

    A check that the student's copy lacks comes at the end. Experiments and the installation are
    left out, and the lines that only a notebook understands.
    """
    originals = {cell.check: cell for cell in handed_out if cell.check}
    numbers = {cell.id: cell.check for cell in handed_out if cell.check}
    chosen = []
    for cell in cells:
        number = cell.check or numbers.get(cell.id)
        if number in originals:
            chosen.append(originals.pop(number))
        elif cell.is_for_exercises:
            chosen.append(cell)
    return [_without_magics(cell.source) for cell in [*chosen, *originals.values()]]


def _without_magics(source):
    return "\n".join(f"pass  # {line}" if line.startswith(("%", "!")) else line
                     for line in source.split("\n"))


def _run(sources, seconds):
    """Return what the worker found, or one line on why it did not end."""
    with tempfile.TemporaryDirectory() as folder:
        cells, results = Path(folder, "cells.json"), Path(folder, "results.json")
        cells.write_text(json.dumps(sources), encoding="utf-8")
        environment = dict(os.environ, MPLBACKEND="Agg")
        environment["PYTHONPATH"] = os.pathsep.join(
            filter(None, [str(FOLDER.parent), os.environ.get("PYTHONPATH")]))
        try:
            done = subprocess.run(
                [sys.executable, "-m", "lessons.run_cells", str(cells), str(results)], cwd=folder,
                env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                timeout=seconds)
        except subprocess.TimeoutExpired:
            return f"it was stopped after {seconds} s"
        if not results.exists():
            said = done.stderr.strip().splitlines()
            return f"it broke off{': ' + said[-1] if said else ''}"
        return json.loads(results.read_text(encoding="utf-8"))


def write_csv(path, folder, grades):
    """Write one line per exercise: student (the folder's name), lesson, exercise, verdict, why."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("student", *Grade._fields))
        writer.writerows((folder.resolve().name, *grade) for grade in grades)


def _cut(text, most):
    return text if len(text) <= most else text[:most - 3] + "..."


def _short(path):
    return f"{path.parent.name}/{path.name}"


if __name__ == "__main__":
    sys.exit(run_command(main))
