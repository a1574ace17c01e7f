"""A run's folder: what was asked (config.toml), what happened (log.jsonl), what came out."""

import json
import math
from pathlib import Path

import numpy as np

from minisegnet.errors import UserError
from minisegnet.training.checkpoint import write_atomically, writing


def new_run_folder(path, *, default_name):
    """Make and return the folder `path`, or `runs/<default_name>_<n>` if it is None.

    Raises UserError if the folder holds anything: a finished run is never written over.
    """
    if path is None:
        n = 1
        while Path(f"runs/{default_name}_{n:03d}").exists():
            n += 1
        path = f"runs/{default_name}_{n:03d}"
    path = Path(path)
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f"{path} is there already and not empty; give a new --output-dir, or "
                            f"remove it")
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path} ({error.strerror}); give another "
                        f"--output-dir") from error
    return path


def to_toml(settings):
    """Return a flat dictionary of strings, numbers, booleans and lists of them as TOML text."""

    def value(v):
        if isinstance(v, bool):
            return "true" if v else "false"
        if isinstance(v, (list, tuple)):
            return f"[{', '.join(value(item) for item in v)}]"
        # A JSON string is a TOML basic string.
        return repr(v) if isinstance(v, (int, float)) else json.dumps(str(v), ensure_ascii=False)

    return "".join(f"{key} = {value(v)}\n" for key, v in settings.items() if v is not None)


def write_text(path, text):
    """Write a UTF-8 text file whole or not at all."""
    write_atomically(path, lambda file: file.write(text.encode("utf-8")))


def write_class_weights(folder, scheme, class_names, weights, statistics, val_statistics):
    """Write class_weights.json: the weights (None: ones) and the counts that they come from."""
    write_text(folder / "class_weights.json", json.dumps({
        "scheme": scheme, "classes": list(class_names),
        "weights": [1.0] * len(class_names) if weights is None else weights.tolist(),
        "pixels": statistics.pixels.tolist(), "images": statistics.images.tolist(),
        "validation_pixels": val_statistics.pixels.tolist()}, indent=1))


def read_class_weights(folder, class_names, statistics, val_statistics):
    """Return the weights (K,) of the run in `folder`, None where its scheme is "none".

    Raises UserError where its classes, or their pixels in either set of pictures, were others.
    """
    path = Path(folder) / "class_weights.json"
    K = len(class_names)
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        names, weights = list(saved["classes"]), np.array(saved["weights"], np.float64)
        pixels = {"training": (saved["pixels"], statistics.pixels),
                  "validation": (saved["validation_pixels"], val_statistics.pixels)}
        if weights.shape != (K,) and names == list(class_names) or not np.isfinite(weights).all():
            raise ValueError(f"it should have {K} weights")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"cannot read {path} ({error}); restore it, or start a new run") from error
    if names != list(class_names):
        raise UserError(f"the run in {folder} has the classes {', '.join(map(str, names))}, the "
                        f"data now {', '.join(class_names)}; restore classes.txt, or start a new "
                        f"run")
    for kind, (before, now) in pixels.items():
        if before != now.tolist():
            raise UserError(f"the {kind} pictures have changed since the run in {folder} began: "
                            f"the pixels of the classes were {before} and are {now.tolist()}; "
                            f"restore them, or start a new run with --init-from")
    return None if saved["scheme"] == "none" else weights


def json_ready(value):
    """Return `value` with NumPy numbers and arrays as plain ones, and NaN as None."""
    if isinstance(value, dict):
        return {key: json_ready(v) for key, v in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [json_ready(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def append_json_line(path, record):
    """Add one line of JSON to a log file, the whole line or nothing."""
    line = (json.dumps(json_ready(record)) + "\n").encode("utf-8")
    with writing(path), open(path, "ab", buffering=0) as file:
        size = file.tell()
        if file.write(line) < len(line):
            file.truncate(size)
            raise OSError("disk full")


def read_log(path):
    """Return the records of a log.jsonl, one dictionary per epoch; UserError if it is damaged."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        return [dict(json.loads(line)) for line in lines if line]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"cannot read the log {path} ({error}); restore it") from error


def restore_log(path, record):
    """Make the log at `path` end with `record`, that of the last finished epoch (None: empty).

    What came after it (an epoch that is now trained again), and a line that was cut off, go.
    """
    last_epoch = record["epoch"] if record else 0
    text = Path(path).read_text(encoding="utf-8", errors="replace") if Path(path).exists() else ""
    lines = text.splitlines()
    # The last line may have been cut off; those before it were written whole.
    lines = lines[:last_epoch - 1] + [json.dumps(record)] if record else []
    write_text(path, "".join(line + "\n" for line in lines))
