"""What several runs say beside each other: their scores, tables, and how far to believe them."""

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minisegnet.errors import UserError
from minisegnet.metrics import mean_of_defined
from minisegnet.tables import aligned, number_text
from minisegnet.training.run_folder import read_log
from minisegnet.verdict import verdict

_COLUMNS = {  # key of a score -> (heading, format)
    "mean_iou": ("mean IoU", ".3f"), "best_mean_iou": ("at best", ".3f"),
    "frequent_iou": ("frequent", ".3f"), "rare_iou": ("rare", ".3f"),
    "active_classes": ("active", ".3g"), "pixel_accuracy": ("accuracy", ".3f"),
    "fw_iou": ("FWIoU", ".3f"), "epochs": ("epochs", ".0f"), "seconds": ("seconds", ".0f"),
}


@dataclass(frozen=True, eq=False)
class Run:
    """What the folder of a run says."""

    folder: Path
    config: dict
    class_names: tuple
    pixels: np.ndarray  # (K,) in the training set
    log: list  # a record per epoch, at least one of them validated

    @property
    def validated(self):
        return [record for record in self.log if record.get("mean_iou") is not None]


class Row(NamedTuple):
    """One row of the table: runs that differ in nothing but the seed."""

    name: str
    runs: list

    @property
    def iou(self):
        """IoU at the last epoch, (S, K), nan where a class is absent."""
        return np.array([run.validated[-1]["iou"] for run in self.runs], float)

    @property
    def trained_with(self):
        """Loss and class weights, the latter a scheme or the name of a file."""
        config = self.runs[0].config
        return config["loss"], Path(config["class_weights"]).name


def read_run(folder):
    """Return the `Run` in `folder`; UserError if that is not the folder of a run."""
    folder = Path(folder)
    try:
        config = tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))
        classes = json.loads((folder / "class_weights.json").read_text(encoding="utf-8"))
        for key in ("data", "layout", "ignore_index", "loss", "class_weights", "seed", "epochs",
                    "image_size"):
            config[key]
        run = Run(folder, config, tuple(classes["classes"]), np.array(classes["pixels"]),
                  read_log(folder / "log.jsonl"))
    except OSError as error:
        raise UserError(f"{folder} is not the folder of a run: {Path(error.filename).name} cannot "
                        f"be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: config.toml, class_weights.json or log.jsonl is damaged "
                        f"({error}); train the run again") from error
    if not run.validated:
        raise UserError(f"{folder} has no validated epoch in log.jsonl; train it further, or "
                        f"leave it out")
    return run


def refuse_other_data(first, run):
    """Raise UserError unless both runs have the same classes and training pixels."""
    if run.class_names != first.class_names:
        raise UserError(f"{run.folder} has other classes ({', '.join(run.class_names[:4])}, ...) "
                        f"than {first.folder} ({', '.join(first.class_names[:4])}, ...); compare "
                        f"runs on the same data")
    if not np.array_equal(run.pixels, first.pixels):
        raise UserError(f"{run.folder} and {first.folder} were trained on other pictures, for "
                        f"their classes have other numbers of pixels; compare runs on the same "
                        f"data")


def scores_of(run, rare):
    """Return the numbers of `_COLUMNS` for one run: at its last epoch, and the best mean IoU.

    `rare` (K,) bool sets the rare classes apart from the frequent.
    """
    last = run.validated[-1]
    iou = np.array(last["iou"], float)
    return {
        "mean_iou": last["mean_iou"],
        "best_mean_iou": max(record["mean_iou"] for record in run.validated),
        "frequent_iou": mean_of_defined(iou[~rare]),
        "rare_iou": mean_of_defined(iou[rare]),
        **{key: last.get(key) for key in ("active_classes", "pixel_accuracy", "fw_iou")},
        "epochs": run.log[-1]["epoch"],
        "seconds": sum(record["seconds"] for record in run.log),
    }


def notes_on(rows, rare_names, rule):
    """Return the lines below the table: what its columns mean, budgets that differ, verdicts.

    `rare_names` are the rare classes, and `rule` says what that is, as in `rare_classes`.
    """
    seeds = len(rows[0].runs)
    notes = [(f"Means of {seeds} seeds, with their range. " if seeds > 1 else
              "One run each: differences of a few hundredths may be noise. ")
             + "Validation at the last epoch; at best: the best mean IoU of any epoch.",
             f"rare: mean IoU of the classes {rule} ({', '.join(rare_names)}); frequent: of all "
             f"others." if rare_names else "No class is rare; frequent: mean IoU of all."]
    for what, values in (
            ("epochs", [f"{row.runs[0].log[-1]['epoch']} of {row.runs[0].config['epochs']}"
                        for row in rows]),
            ("sizes in training", ["{}x{}".format(*row.runs[0].config["image_size"])
                                   for row in rows])):
        if len(set(values)) > 1:
            notes.append(f"Not the same {what}: " + ", ".join(
                f"{row.name} {value}" for row, value in zip(rows, values)) + ".")
    said = {}  # sentence -> the runs it is said of, since most have a course like the others'
    for row in rows:
        for sentence in verdict(row.runs[0].log):
            said.setdefault(sentence, []).append(f"{row.name} (seed {row.runs[0].config['seed']})")
    return notes + [f"{', '.join(names)}: {sentence}" for sentence, names in said.items()]


def _cells(row, scores):
    """Return [(mean, range)] of a row's columns as texts; a single seed has the range ""."""
    cells = []
    for key, (_, spec) in _COLUMNS.items():
        values = np.array([score[key] for score in scores], float)
        lowest, mean, highest = (number_text(value, spec) for value in (
            values.min(), values.mean(), values.max()))
        plain = len(values) == 1 or key in ("epochs", "seconds") or np.isnan(values).any()
        cells.append((mean, "" if plain else f"{lowest}..{highest}"))
    return cells


def markdown_table(rows, scores):
    """Return the table for table.md: a range stands in brackets behind its mean."""
    headings = ["", "loss", "class weights", *(heading for heading, _ in _COLUMNS.values())]
    lines = [headings, ["---"] * len(headings)]
    for row in rows:
        cells = [f"{mean} ({spread})" if spread else mean
                 for mean, spread in _cells(row, scores[row.name])]
        lines.append([row.name, *row.trained_with, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def text_table(rows, scores):
    """Return the table for the terminal: a range stands on a second line below its mean."""
    lines = [["", "weights", *(heading for heading, _ in _COLUMNS.values())]]
    for row in rows:
        means, spreads = zip(*_cells(row, scores[row.name]))
        lines.append([row.name, row.trained_with[1], *means])
        lines += [["", "", *spreads]] if any(spreads) else []
    return "\n".join(aligned(lines, left=2))
