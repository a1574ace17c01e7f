"""Run the cells of a lesson and tell what became of its exercises: the worker of lessons.grade.

    python -m lessons.run_cells CELLS.json RESULTS.json

CELLS.json is a list of texts. One after the other they are run in one namespace, as a notebook
would; what raises is passed over, since a lesson goes on after an exercise that is not done.
"""

import json
import sys


def run(sources):
    """Run the texts in a fresh namespace; return (the `Result`s of their checks, troubles).

    Troubles are one line for each cell that raised.
    """
    from minisegnet.verify import exercises

    before, namespace, troubles = len(exercises.results), {"__name__": "__main__"}, []
    for source in sources:
        try:
            exec(source, namespace)
        except (Exception, SystemExit) as error:  # a student's cell may do anything
            text = str(error).splitlines()
            troubles.append(f"{type(error).__name__}{': ' + text[0] if text else ''}")
    return exercises.results[before:], troubles


def main(argv):
    """Read the cells, run them, write the results."""
    import matplotlib

    matplotlib.use("Agg")
    cells, path = argv
    with open(cells, encoding="utf-8") as file:
        sources = json.load(file)
    results, troubles = run(sources)
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"results": [result._asdict() for result in results], "troubles": troubles},
                  file)


if __name__ == "__main__":
    main(sys.argv[1:])
