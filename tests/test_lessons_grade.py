"""`python -m lessons.grade`: verdicts on the notebooks of a folder."""

import csv
import json

import pytest

from lessons import grade
from lessons.course import NOTEBOOKS
from minisegnet.errors import run_command

NAME = "03_cross_entropy.ipynb"
RIGHT = """
def cross_entropy(logits, target):
    label = np.where(target != 255, target, 0)
    log_prob = np.take_along_axis(log_softmax(logits), label[..., None], axis=-1)[..., 0]
    return float(-log_prob[target != 255].mean())
"""
WRONG = RIGHT.replace("-log_prob", "log_prob")


@pytest.fixture
def notebook():
    return json.loads((NOTEBOOKS / NAME).read_text(encoding="utf-8"))


def save(notebook, folder):
    folder.mkdir(exist_ok=True, parents=True)
    (folder / NAME).write_text(json.dumps(notebook), encoding="utf-8")
    return folder


def cell_of(notebook, tag):
    return next(cell for cell in notebook["cells"] if tag in cell["metadata"].get("tags", ()))


def verdicts(folder, **options):
    return {each.exercise: each.verdict for each in grade.grade_folder(folder, **options)}


def test_a_fresh_notebook_is_to_do(notebook, tmp_path, capsys):
    assert run_command(grade.main, [str(save(notebook, tmp_path))]) == 1
    printed = capsys.readouterr().out
    assert "0 PASS, 0 FAIL, 2 TODO, 0 MISSING" in printed
    assert "03_cross_entropy  3.1       TODO" in printed


def test_right_and_wrong_answers(notebook, tmp_path):
    cell_of(notebook, "exercise-3.1")["source"] = RIGHT
    assert verdicts(save(notebook, tmp_path)) == {"3.1": "PASS", "3.2": "TODO"}
    cell_of(notebook, "exercise-3.1")["source"] = WRONG
    graded = grade.grade_folder(save(notebook, tmp_path))[0]
    assert graded.verdict == "FAIL" and "sign" in graded.reason


def test_a_check_that_was_changed_or_removed_is_the_one_handed_out(notebook, tmp_path):
    cell_of(notebook, "exercise-3.1")["source"] = WRONG
    cell_of(notebook, "check-3.1")["source"] = 'print("PASS  exercise 3.1")'
    assert verdicts(save(notebook, tmp_path))["3.1"] == "FAIL"
    cell_of(notebook, "exercise-3.1")["source"] = RIGHT
    notebook["cells"].remove(cell_of(notebook, "check-3.1"))
    assert verdicts(save(notebook, tmp_path))["3.1"] == "PASS"


def test_tags_may_be_lost_by_an_editor(notebook, tmp_path):
    cell_of(notebook, "exercise-3.1")["source"] = RIGHT
    cell_of(notebook, "check-3.1")["source"] = "pass"
    for cell in notebook["cells"]:
        cell["metadata"] = {}
    assert verdicts(save(notebook, tmp_path))["3.1"] == "PASS"


def test_a_cell_that_raises_does_not_stop_the_rest(notebook, tmp_path):
    cell_of(notebook, "exercise-3.1")["source"] = RIGHT
    notebook["cells"].insert(3, {"cell_type": "code", "metadata": {}, "id": "mine",
                                 "source": ["%timeit 1 + 1\n", "1 / 0"]})
    assert verdicts(save(notebook, tmp_path))["3.1"] == "PASS"


def test_an_answer_that_is_no_python_fails_to_arrive(notebook, tmp_path):
    cell_of(notebook, "exercise-3.1")["source"] = "def cross_entropy(:"
    graded = grade.grade_folder(save(notebook, tmp_path))
    assert graded[0].verdict == "MISSING" and "SyntaxError" in graded[0].reason
    assert graded[1].verdict == "TODO"


def test_an_endless_answer_is_stopped(notebook, tmp_path):
    cell_of(notebook, "exercise-3.2")["source"] = "while True:\n    pass"
    graded = grade.grade_folder(save(notebook, tmp_path), seconds=3)
    assert [(each.verdict, each.reason) for each in graded] == 2 * [
        ("FAIL", "it was stopped after 3 s")]


def test_an_answer_that_leaves_python_is_told(notebook, tmp_path):
    cell_of(notebook, "exercise-3.1")["source"] = "import os; os._exit(3)"
    assert {each.reason for each in grade.grade_folder(save(notebook, tmp_path))} == {
        "it broke off"}
    cell_of(notebook, "exercise-3.1")["source"] = "exit()"  # which a notebook survives
    assert verdicts(save(notebook, tmp_path))["3.2"] == "TODO"


def test_a_lesson_that_is_not_there_counts_where_it_is_asked_for(notebook, tmp_path, capsys):
    folder = save(notebook, tmp_path / "deeper" / "inside")
    assert set(verdicts(tmp_path)) == {"3.1", "3.2"}
    (folder / NAME).rename(folder / "other.ipynb")
    assert run_command(grade.main, [str(tmp_path)]) == 2
    assert "no notebook of the course" in capsys.readouterr().err


def test_a_broken_notebook_is_missing(tmp_path):
    (tmp_path / NAME).write_text("{")
    assert {each.verdict for each in grade.grade_folder(tmp_path)} == {"MISSING"}


def test_the_table_goes_into_a_csv_file(notebook, tmp_path):
    folder = save(notebook, tmp_path / "ada")
    table = tmp_path / "grades.csv"
    run_command(grade.main, [str(folder), "--csv", str(table), "--only", "03"])
    with open(table, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["student"], row["exercise"], row["verdict"]) for row in rows] == [
        ("ada", "3.1", "TODO"), ("ada", "3.2", "TODO")]


@pytest.mark.parametrize("arguments, word", [
    (["nowhere"], "nowhere is not a folder"), ([".", "--only", "99"], "--only 99"),
    ([".", "--seconds", "0"], "'0'"), ([], "FOLDER")], ids=str)
def test_bad_input_is_refused_in_one_line(tmp_path, monkeypatch, capsys, arguments, word):
    monkeypatch.chdir(tmp_path)
    assert run_command(grade.main, arguments) == 2
    error = capsys.readouterr().err.strip()
    assert word in error and "\n" not in error


def test_two_notebooks_of_one_lesson_are_refused(notebook, tmp_path, capsys):
    save(notebook, tmp_path / "a")
    save(notebook, tmp_path / "b")
    save(notebook, tmp_path / "b" / ".ipynb_checkpoints")
    assert run_command(grade.main, [str(tmp_path)]) == 2
    assert "twice" in capsys.readouterr().err
