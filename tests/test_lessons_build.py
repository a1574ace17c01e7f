"""Lessons as scripts and notebooks: their parts, and the student's notebooks in step with them."""

import json
import re

import pytest

pytest.importorskip("jupytext", reason="lessons are read with jupytext: pip install jupytext")

from lessons import build  # noqa: E402
from lessons.build import exercises, student_notebook, text_of  # noqa: E402
from lessons.course import FOLDER, NOTEBOOKS, lesson_paths, read_cells  # noqa: E402
from minisegnet.errors import UserError  # noqa: E402

PATHS = lesson_paths()
each_lesson = pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS])

LESSON = '''# %% [markdown]
# # 7 · A title

# %%
import numpy as np

# %% tags=["exercise-7.1"]
def double(x):
    """Return 2x."""
    ### BEGIN SOLUTION
    twice = 2 * x

    return twice
    ### END SOLUTION

# %% tags=["check-7.1"]
print(double(2))

# %%
print("once")

# %%
print("once")
'''


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "07_title.py"
    path.write_text(LESSON, encoding="utf-8")
    return path


@each_lesson
def test_the_students_notebook_is_in_step_with_its_lesson(path):
    committed = NOTEBOOKS / f"{path.stem}.ipynb"
    assert committed.exists(), f"python lessons/build.py {path.name[:2]}"
    assert committed.read_text(encoding="utf-8") == text_of(student_notebook(path)), \
        f"python lessons/build.py --students-only {path.name[:2]}"


def test_no_notebook_is_left_of_a_lesson_that_is_gone():
    assert {path.stem for path in NOTEBOOKS.iterdir()} == {path.stem for path in PATHS}


@each_lesson
def test_the_students_notebook_holds_no_solution_and_no_output(path):
    text = (NOTEBOOKS / f"{path.stem}.ipynb").read_text(encoding="utf-8")
    assert "SOLUTION" not in text
    cells = json.loads(text)["cells"]
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in cells)
    stubs = [cell for cell in cells if "raise NotImplementedError" in "".join(cell["source"])]
    assert len(stubs) == len(exercises(path)) >= 1


@each_lesson
def test_the_header_says_what_a_teacher_asks_first(path):
    cells = read_cells(path)
    header = cells[0].source
    number = int(path.name[:2])
    assert re.match(rf"# {number} · \S", header)
    for row in (r"goal \| \S.*", r"before this \| \S.*", r"read \| \d+ minutes",
                r"exercises \| \d+ minutes", r"computes \| \d+ s"):
        assert re.search(rf"^\| {row} \|$", header, re.M), row
    text = "\n".join(cell.source for cell in cells if cell.kind == "markdown")
    assert "redict before you run" in text
    assert text.count("<details>") == text.count("</details>") >= 2
    assert f'"{path.stem}"' in path.read_text(encoding="utf-8"), "no picture for the overview"


@each_lesson
def test_every_exercise_has_a_check_and_a_number_of_the_lesson(path):
    cells = read_cells(path)
    posed = [cell.exercise for cell in cells if cell.exercise]
    assert 1 <= len(posed) <= 3
    assert posed == [f"{int(path.name[:2])}.{i}" for i in range(1, len(posed) + 1)]
    assert [cell.check for cell in cells if cell.check] == posed
    for cell in cells:
        if cell.check:
            assert f'check("{cell.check}"' in cell.source


def test_a_solution_is_cut_out_and_says_where(path):
    cells = {tag: cell.source for cell in student_notebook(path).cells
             for tag in cell.metadata.get("tags", ())}
    assert cells["exercise-7.1"] == (
        'def double(x):\n    """Return 2x."""\n'
        '    raise NotImplementedError("exercise 7.1: write your solution here")')
    kept = "\n".join(cell.source for cell in build.solution_notebook(path).cells)
    assert "twice = 2 * x" in kept


def test_the_code_of_a_check_is_folded_away_for_students(path):
    folded = [cell.metadata.get("tags") for cell in student_notebook(path).cells
              if cell.metadata.get("jupyter", {}).get("source_hidden")]
    assert folded == [["check-7.1"]]
    assert not any("jupyter" in cell.metadata for cell in build.solution_notebook(path).cells)


def test_an_exercise_without_a_solution_is_refused(path):
    path.write_text(LESSON.replace("### END SOLUTION", ""), encoding="utf-8")
    with pytest.raises(ValueError, match="exercise 7.1 has no ### BEGIN SOLUTION"):
        student_notebook(path)


def test_ids_are_unique_and_stay_where_the_text_stays(path):
    def ids():
        return [cell.id for cell in student_notebook(path).cells]

    before = ids()
    assert len(set(before)) == len(before) == 7
    assert before[1] == "install" and before[3:5] == ["exercise-7-1", "check-7-1"]
    path.write_text(LESSON.replace("2 * x", "x + x").replace(
        "# %%\nimport", "# %% [markdown]\n# New.\n\n# %%\nimport"), encoding="utf-8")
    after = ids()
    assert set(before) < set(after) and len(after) == len(before) + 1


def test_the_package_is_installed_in_colab_only(path):
    cell = student_notebook(path).cells[1].source
    assert build.PACKAGE in cell and 'if "google.colab" in sys.modules:' in cell


def test_a_notebook_is_executed_and_its_prints_are_read(path, tmp_path):
    done = build.executed(build.solution_notebook(path), tmp_path)
    assert build.printed(done) == "4\nonce\nonce\n"
    assert not any(cell.get("outputs") for cell in build.solution_notebook(path).cells)


def test_a_number_that_is_no_lesson_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        build.main(["99"])
    assert stop.value.code == 2 and "no lesson 99" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"cells": [{}]}', '{"cells": 3}'])
def test_a_file_that_is_no_notebook_is_named(tmp_path, content):
    path = tmp_path / "03_cross_entropy.ipynb"
    path.write_text(content)
    with pytest.raises(UserError, match="03_cross_entropy.ipynb"):
        read_cells(path)


@each_lesson
def test_the_overview_and_the_teachers_notes_know_the_lesson(path):
    overview = (FOLDER / "README.md").read_text(encoding="utf-8")
    notes = (FOLDER / "TEACHER.md").read_text(encoding="utf-8")
    header = read_cells(path)[0].source
    title = re.match(r"# (\d+ · .+)", header)[1]
    minutes = [re.search(rf"\| {row} \| (\d+)", header)[1]
               for row in ("read", "exercises", "computes")]
    row = next(line for line in overview.splitlines() if f"]({path.name})" in line)
    number, _, rest = title.partition(" · ")
    assert f"**{number} · [{rest}]" in row and f"({NOTEBOOKS.name}/{path.stem}.ipynb)" in row
    posed = len(exercises(path))
    assert (f"{minutes[0]} min to read, {posed} exercise{'s' * (posed > 1)} of {minutes[1]} min, "
            f"{minutes[2]} s of computing") in row
    assert f'src="pictures/{path.stem}.png"' in row
    assert (FOLDER / "pictures" / f"{path.stem}.png").exists()
    assert f"\n## {title}\n" in notes
