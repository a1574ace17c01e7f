"""What a run left behind that can be measured: the records of debug.jsonl and log.jsonl.

config.toml is read too, and only to word the commands that are proposed: no rule looks at it.
"""

import json
import math
import tomllib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from minisegnet.errors import UserError
from minisegnet.metrics import divide

FILES = ("config.toml", "class_weights.json", "log.jsonl", "debug.jsonl")
CHECKPOINTS = ("best.npz", "last.npz")


def find(record, *path):
    """Return what lies in nested dictionaries at `path`, None where there is nothing."""
    for key in path:
        record = record.get(key) if isinstance(record, dict) else None
    return record


def number(record, *path):
    """Return the number at `path`, nan where there is none."""
    value = find(record, *path)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number else math.nan


def numbers(record, *path):
    """Return the list of numbers at `path` as float64, nan for null; None where there is none."""
    value = find(record, *path)
    if not isinstance(value, list) or not value:
        return None
    try:
        return np.array(value, np.float64)  # null becomes nan
    except (TypeError, ValueError):
        return None


@dataclass(frozen=True)
class Evidence:
    """The records of a run, of which any may be missing.

    `start`, `steps`, `epochs`, `validations`, `failures` and `end` are those of debug.jsonl,
    `counts` is class_weights.json, `log` one record per finished epoch.
    """

    folder: Path
    config: dict = field(default_factory=dict)
    counts: dict = field(default_factory=dict)
    log: list = field(default_factory=list)
    start: dict | None = None
    steps: list = field(default_factory=list)
    epochs: list = field(default_factory=list)
    validations: list = field(default_factory=list)
    failures: list = field(default_factory=list)
    end: dict | None = None
    checkpoints: tuple = ()

    @property
    def has_debug(self):
        """Whether --debug has recorded anything."""
        return bool(self.start or self.steps or self.epochs or self.validations or self.failures)

    @cached_property
    def class_names(self):
        """The names of the classes, as far as they are known."""
        names = find(self.start, "class_names") or self.counts.get("classes") or []
        return tuple(str(name) for name in names)

    @property
    def num_classes(self):
        """K, 0 where it is not known."""
        return len(self.class_names)

    @property
    def ignore_index(self):
        """The label of ignored pixels, as the data sets have it."""
        value = number(self.start, "ignore_index")
        return 255 if math.isnan(value) else int(value)

    @cached_property
    def train_pixels(self):
        """Pixels of each class in the training masks, (K,) or None."""
        return self._of_classes(numbers(self.start, "train", "pixels"), "pixels")

    @cached_property
    def val_pixels(self):
        """Pixels of each class in the validation masks, (K,) or None."""
        return self._of_classes(numbers(self.start, "val", "pixels"), "validation_pixels")

    def _of_classes(self, counted, key):
        counted = numbers(self.counts, key) if counted is None else counted
        fits = counted is not None and counted.shape == (self.num_classes,)
        return np.nan_to_num(counted) if fits else None

    @cached_property
    def confusion(self):
        """The confusion matrix (K, K) of the last validation that has one, or None."""
        for record in reversed(self.validations):
            matrix = numbers(record, "confusion")
            if matrix is not None and matrix.shape == 2 * (self.num_classes,) and matrix.any():
                return matrix
        return None

    @cached_property
    def recall(self):
        """The best recall (K,) of each class over all validations, nan where undefined; or None.

        A class that was found once is within the model's reach.
        """
        return self._best("recall", lambda matrix: divide(np.diag(matrix), matrix.sum(axis=1)))

    @cached_property
    def last_recall(self):
        """The recall (K,) at the last validation, nan where undefined; or None."""
        return self._last("recall", lambda matrix: divide(np.diag(matrix), matrix.sum(axis=1)))

    @cached_property
    def last_precision(self):
        """The precision (K,) at the last validation, nan where undefined; or None."""
        return self._last("precision", lambda matrix: divide(np.diag(matrix), matrix.sum(axis=0)))

    def _last(self, key, of_matrix):
        if self.confusion is not None:
            return of_matrix(self.confusion)
        for record in reversed(self.log):
            values = numbers(record, key)
            if values is not None and values.shape == (self.num_classes,):
                return values
        return None

    def _best(self, key, of_matrix):
        found = [numbers(record, key) for record in self.log]
        found += [of_matrix(matrix) for matrix in
                  (numbers(record, "confusion") for record in self.validations)
                  if matrix is not None and matrix.ndim == 2]
        found = [values for values in found
                 if values is not None and values.shape == (self.num_classes,)]
        return np.fmax.reduce(found) if found else None

    @cached_property
    def train_losses(self):
        """Training loss of each finished epoch since the loss was last changed, nan if null."""
        log = [record for record in self.log if "train_loss" in record]
        start = max((i for i in range(1, len(log))
                     if log[i].get("loss") != log[i - 1].get("loss")), default=0)
        return np.array([number(record, "train_loss") for record in log[start:]])

    def of_steps(self, key):
        """Return the finite numbers `key` of the sampled steps, in their order."""
        values = np.array([number(record, key) for record in self.steps])
        return values[np.isfinite(values)]

    @property
    def steps_done(self):
        """How many steps the run did, as far as the records tell."""
        done = [number(record, "steps") for record in self.epochs]
        sampled = [number(record, "step") + 1 for record in self.steps]
        return int(max([np.nansum(done) if done else 0, *sampled, 0]))


def read_evidence(folder):
    """Return the `Evidence` in a run folder.

    A last line that was cut off, as a killed run leaves it, is passed over. Raises UserError where
    `folder` is not the folder of a run, or a file of it is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; give the folder of a run")
    if not any((folder / name).is_file() for name in FILES):
        raise UserError(f"{folder} is not the folder of a run: it holds none of "
                        f"{', '.join(FILES)}; give what minisegnet.train printed as run folder")
    # A resumed run may begin anew; what its first process saw first is the state at the start.
    kinds = {}
    for record in _read_lines(folder / "debug.jsonl"):
        kinds.setdefault(record.get("kind"), []).append(record)
    return Evidence(
        folder=folder, config=_read(folder / "config.toml", tomllib.loads),
        counts=_read(folder / "class_weights.json", json.loads),
        log=_read_lines(folder / "log.jsonl"),
        start=kinds.get("start", [None])[0], steps=kinds.get("step", []),
        epochs=kinds.get("epoch", []), validations=kinds.get("validation", []),
        failures=kinds.get("failure", []), end=kinds.get("end", [None])[-1],
        checkpoints=tuple(name for name in CHECKPOINTS if (folder / name).is_file()))


def _read(path, parse):
    """Return the dictionary in a file, {} where there is no such file."""
    if not path.is_file():
        return {}
    try:
        return dict(parse(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"cannot read {path} ({error}); restore it, or move it away") from error


def _read_lines(path):
    """Return the records of a file with a line of JSON each, [] where there is no such file."""
    if not path.is_file():
        return []
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror})") from error
    records = []
    for i, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            records.append(dict(json.loads(line)))
        except (ValueError, TypeError) as error:
            if i == len(lines) - 1:  # cut off by a kill
                break
            raise UserError(f"{path}, line {i + 1}, is damaged ({error}); remove that line, or "
                            f"move the file away") from error
    return records
