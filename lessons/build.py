"""`python lessons/build.py`: the two notebooks of every lesson, from its script.

    lessons/NN_topic.py  ->  lessons/notebooks/NN_topic.ipynb     for students: solutions stripped
                             build/lessons/NN_topic.ipynb         executed, with solutions
                             lessons/pictures/NN_topic.png        its main picture

The script is the only source. What stands between `### BEGIN SOLUTION` and `### END SOLUTION` is
cut out for students; an exercise raises NotImplementedError then, and its check says TODO. Cells
keep their ids as long as their text stays, so that a notebook changes where its lesson does.
"""

import argparse
import base64
import hashlib
import re
import sys
import textwrap
import time
from pathlib import Path

if __name__ == "__main__":  # run by its path, Python looks for modules beside it only
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lessons.course import NOTEBOOKS, lesson_paths, read_cells

# What pip installs in Colab: the name of a release, "git+https://..." or the address of a wheel.
PACKAGE = "minisegnet"
INSTALL = textwrap.dedent(f'''\
    # In Colab, install the package; elsewhere it is there already.
    import sys

    if "google.colab" in sys.modules:
        %pip install --quiet "{PACKAGE}"''')
PICTURES = NOTEBOOKS.parent / "pictures"
SOLUTIONS = Path(__file__).resolve().parents[1] / "build" / "lessons"
SECONDS = 300  # for one cell
# A check names the slips and how to tell them: its code is folded away (Jupyter, VS Code; Colab).
FOLDED = {"jupyter": {"source_hidden": True}, "cellView": "form"}
_SOLUTION = re.compile(r"^( *)### BEGIN SOLUTION\n.*?^ *### END SOLUTION *$", re.M | re.S)


def main(argv=None):
    """Build the notebooks that are asked for; return 1 if an exercise of a solution fails."""
    parser = argparse.ArgumentParser(
        prog="python lessons/build.py", description="Build the notebooks of the lessons.")
    parser.add_argument("lessons", nargs="*", metavar="NN", help="numbers, as 03; default: all")
    parser.add_argument("--students-only", action="store_true",
                        help="do not execute the solutions")
    arguments = parser.parse_args(argv)
    paths = [path for path in lesson_paths()
             if not arguments.lessons or path.name[:2] in arguments.lessons]
    if not paths:
        parser.error(f"no lesson {' '.join(arguments.lessons)}; there are "
                     f"{' '.join(path.name[:2] for path in lesson_paths())}")
    failed = 0
    for path in paths:
        NOTEBOOKS.mkdir(exist_ok=True)
        target = NOTEBOOKS / f"{path.stem}.ipynb"
        target.write_text(text_of(student_notebook(path)), encoding="utf-8")
        print(f"{target.name}: {len(exercises(path))} exercises", flush=True)
        if not arguments.students_only:
            SOLUTIONS.mkdir(parents=True, exist_ok=True)
            start = time.perf_counter()
            notebook = executed(solution_notebook(path))
            (SOLUTIONS / target.name).write_text(text_of(notebook), encoding="utf-8")
            PICTURES.mkdir(exist_ok=True)
            (PICTURES / f"{path.stem}.png").write_bytes(pictures(notebook)[path.stem])
            wrong = [line for line in printed(notebook).splitlines()
                     if line.startswith(("FAIL  ", "TODO  "))]
            print("\n".join([f"  executed in {time.perf_counter() - start:.0f} s", *wrong]))
            failed += len(wrong)
    return 1 if failed else 0


def exercises(path):
    """Return the numbers of the exercises of a lesson, in order, as ["3.1", "3.2"]."""
    return [cell.exercise for cell in read_cells(path) if cell.exercise]


def strip_solution(source, exercise):
    """Return the text of an exercise's cell as students get it."""
    stripped, count = _SOLUTION.subn(
        rf'\1raise NotImplementedError("exercise {exercise}: write your solution here")', source)
    if not count:
        raise ValueError(f"exercise {exercise} has no ### BEGIN SOLUTION ... ### END SOLUTION")
    return stripped


def student_notebook(path):
    """Return the notebook for students: no solutions, no outputs."""
    return _notebook(path, strip=True)


def solution_notebook(path):
    """Return the notebook with solutions, not executed yet."""
    return _notebook(path, strip=False)


def _notebook(path, strip):
    import nbformat

    notebook = nbformat.v4.new_notebook(metadata={
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"}})
    header, *rest = read_cells(path)
    ids = set()
    for cell in [header, None, *rest]:
        if cell is None:
            notebook.cells.append(nbformat.v4.new_code_cell(
                INSTALL, id="install", metadata={"tags": ["install"]}))
            continue
        source = strip_solution(cell.source, cell.exercise) if strip and cell.exercise \
            else cell.source
        new = nbformat.v4.new_markdown_cell if cell.kind == "markdown" \
            else nbformat.v4.new_code_cell
        metadata = {"tags": list(cell.tags)} if cell.tags else {}
        if strip and cell.check:
            metadata |= FOLDED
        notebook.cells.append(new(source, id=_id_of(cell, ids), metadata=metadata))
    return notebook


def _id_of(cell, taken):
    """Return an id that stays as long as the text of the cell does, solution or not."""
    if cell.exercise or cell.check:
        name = cell.tags[0].replace(".", "-")
    else:
        name = hashlib.sha256(cell.source.encode()).hexdigest()[:12]
    while name in taken:  # the same text twice
        name += "-again"
    taken.add(name)
    return name


def text_of(notebook):
    """Return the notebook as the text of its file."""
    import nbformat

    nbformat.validate(notebook)
    return nbformat.writes(notebook) + "\n"


def executed(notebook, folder=None):
    """Return a copy of `notebook` executed in `folder` (default: here), with its outputs.

    A cell that raises ends it: nbclient.exceptions.CellExecutionError.
    """
    import nbclient

    notebook = notebook.copy()
    nbclient.NotebookClient(
        notebook, timeout=SECONDS, kernel_name="python3", record_timing=False,
        resources={"metadata": {"path": str(folder or Path.cwd())}}).execute()
    return notebook


def printed(notebook):
    """Return all that the cells of an executed notebook printed."""
    return "".join(output["text"] for cell in notebook.cells
                   for output in cell.get("outputs", ()) if output["output_type"] == "stream")


def pictures(notebook):
    """Return the pictures that `plots.show` left in an executed notebook, {name: PNG}."""
    return {output["metadata"]["name"]: base64.b64decode(output["data"]["image/png"])
            for cell in notebook.cells for output in cell.get("outputs", ())
            if "name" in output.get("metadata", ())}


if __name__ == "__main__":
    sys.exit(main())
