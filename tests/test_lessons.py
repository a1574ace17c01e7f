"""The whole course, run: every lesson as a script, as a student's notebook, and with solutions.

The seconds that a lesson states are printed beside the measured ones in the summary. On two cores:
`pytest -m slow -n 2 tests/test_lessons.py`.
"""

import os
import re
import subprocess
import sys
import time

import pytest
from conftest import SUMMARY, require_compiler

pytest.importorskip("jupytext", reason="lessons are read with jupytext: pip install jupytext")

from lessons.build import (  # noqa: E402
    executed,
    exercises,
    pictures,
    printed,
    solution_notebook,
    student_notebook,
)
from lessons.course import FOLDER, lesson_paths, read_cells  # noqa: E402

pytestmark = pytest.mark.slow
PATHS = lesson_paths()
each_lesson = pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS])
TOO_LONG = 120  # seconds for a script; what a header states is only reported


@pytest.fixture(autouse=True)
def _tools(request):
    """Skip the lesson that compiles CUDA kernels where there is nothing to do it with."""
    path = getattr(request.node, "callspec", None) and request.node.callspec.params["path"]
    if path and path.stem == "16_numpy_to_cuda":
        require_compiler()


def verdicts(text):
    """Return {exercise: verdict} of what checks printed."""
    return dict(reversed(pair) for pair in
                re.findall(r"^(PASS|FAIL|TODO)  exercise ([\d.]+)", text, re.M))


@each_lesson
def test_a_lesson_runs_as_a_script(path, tmp_path, record_property):
    environment = dict(os.environ, PYTHONWARNINGS="error", MPLBACKEND="Agg")
    start = time.perf_counter()
    done = subprocess.run([sys.executable, str(path)], cwd=tmp_path, env=environment, text=True,
                          stdin=subprocess.DEVNULL, capture_output=True, timeout=5 * TOO_LONG)
    seconds = time.perf_counter() - start
    stated = re.search(r"^\| computes \| (\d+) s \|$", read_cells(path)[0].source, re.M)[1]
    record_property(SUMMARY, f"{path.stem}: {stated} s stated, {seconds:.1f} s measured")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert verdicts(done.stdout) == dict.fromkeys(exercises(path), "PASS")
    assert (tmp_path / "runs" / "lessons" / f"{path.stem}.png").exists()
    assert seconds <= TOO_LONG


@each_lesson
def test_a_students_notebook_is_all_to_do(path, tmp_path):
    done = executed(student_notebook(path), tmp_path)
    assert verdicts(printed(done)) == dict.fromkeys(exercises(path), "TODO")


@each_lesson
def test_a_notebook_with_solutions_passes_and_shows_its_picture(path, tmp_path):
    done = executed(solution_notebook(path), tmp_path)
    assert verdicts(printed(done)) == dict.fromkeys(exercises(path), "PASS")
    assert pictures(done)[path.stem].startswith(b"\x89PNG")
    assert not list(tmp_path.glob("runs/lessons/*"))  # in a notebook, below the cell


def test_lessons_are_numbered_without_a_gap():
    assert [int(path.name[:2]) for path in PATHS] == list(range(len(PATHS)))
    assert len(list(FOLDER.glob("[0-9][0-9]_*.py"))) == 18
