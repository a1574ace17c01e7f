"""The exercises of the lessons: right answers pass, wrong ones fail with a hint that fits."""

import importlib.util
from functools import lru_cache
from pathlib import Path

import pytest
from conftest import require_compiler

from lessons.build import exercises, strip_solution
from lessons.course import lesson_paths, read_cells
from minisegnet.verify import exercises as verify_exercises

pytest.importorskip("jupytext", reason="lessons are read with jupytext: pip install jupytext")
PATHS = lesson_paths()
FOLDER = Path(__file__).parent / "lesson_mistakes"
LEAST = 2  # planted mistakes per exercise


def skip_without_tools(path):
    """Skip the lesson that compiles CUDA kernels where there is nothing to do it with."""
    if path.stem == "16_numpy_to_cuda":
        require_compiler()


def mistakes_of(path):
    file = FOLDER / f"mistakes_{path.name[:2]}.py"
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.MISTAKES


@lru_cache(maxsize=1)  # the tests come lesson by lesson
def lesson(path):
    """Return {exercise: (namespace before it, text of its cell, text of its check)}."""
    skip_without_tools(path)
    namespace, posed, found = {"__name__": "__main__"}, {}, {}
    for cell in read_cells(path):
        if not cell.is_for_exercises:
            continue
        if cell.exercise:
            posed[cell.exercise] = (dict(namespace), cell.source)
        exec(cell.source, namespace)
        if cell.check:
            before, source = posed[cell.check]
            # What stands between the exercise and its check is there too.
            found[cell.check] = ({**namespace, **before}, source, cell.source)
    return found


def verdict(path, exercise, source):
    """Run the cell of an exercise with `source` in place, and its check; return the `Result`."""
    before, _, check = lesson(path)[exercise]
    namespace = dict(before)
    exec(source, namespace)
    exec(check, namespace)
    result = verify_exercises.results[-1]
    assert result.exercise == exercise
    return result


CASES = [(path, exercise) for path in PATHS for exercise in exercises(path)]
MISTAKES = [(path, *mistake) for path in PATHS for mistake in mistakes_of(path)]


@pytest.mark.parametrize("path, exercise", CASES, ids=[exercise for _, exercise in CASES])
def test_the_solution_passes_and_the_stub_is_to_do(path, exercise):
    source = lesson(path)[exercise][1]
    assert verdict(path, exercise, source).verdict == "PASS"
    assert verdict(path, exercise, strip_solution(source, exercise)).verdict == "TODO"


@pytest.mark.parametrize("path, exercise, source, hint", MISTAKES,
                         ids=[mistake[1] for mistake in MISTAKES])
def test_a_mistake_fails_with_a_hint_that_fits(path, exercise, source, hint):
    result = verdict(path, exercise, source)
    assert result.verdict == "FAIL"
    assert hint in " ".join([*result.lines, result.hint]), result


@pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS])
def test_every_exercise_has_its_planted_mistakes(path):
    planted = [exercise for exercise, *_ in mistakes_of(path)]
    assert set(planted) == set(exercises(path))
    for exercise in exercises(path):
        assert planted.count(exercise) >= LEAST, exercise
