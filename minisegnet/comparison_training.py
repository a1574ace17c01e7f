"""The runs of a comparison of losses: what is asked for, and training what is not there yet."""

import json
from pathlib import Path
from typing import NamedTuple

from minisegnet import train
from minisegnet.comparison_report import Row, read_run
from minisegnet.datasets import open_dataset
from minisegnet.errors import UserError
from minisegnet.imbalance.weighting import SCHEMES
from minisegnet.training.build import build_weights
from minisegnet.training.checkpoint import read_checkpoint
from minisegnet.training.settings import size_in_training

# What may differ between a run that is there and the one asked for: none of it is in the numbers.
_NO_MATTER = ("config", "output_dir", "num_workers", "device", "save_every")


class Choice(NamedTuple):
    """What one name of --losses stands for."""

    name: str
    loss: str
    class_weights: str


class Job(NamedTuple):
    """One run to train: a choice, with the flags of minisegnet.train but for --output-dir."""

    choice: Choice
    seed: int
    folder: Path
    flags: list


def parse_choices(names, flags):
    """Return (the settings all runs share, the `Choice`s) of --losses `names` with `flags`.

    `flags` are those of minisegnet.train. Raises UserError for one that does not go with --losses,
    and for names that are unknown or stand for the same.
    """
    for flag, cure in (("--loss", "name it in --losses"), ("--dry-run", "use minisegnet.train"),
                       ("--resume", "the same command again goes on")):
        if any(word.partition("=")[0] == flag for word in flags):
            raise UserError(f"{flag} does not go with --losses: {cure}")
    base = train.parse_settings([*flags, "--loss=ce"])
    return base, choices_of(names, base.class_weights)


def choices_of(names, weights):
    """Return the `Choice`s of --losses `names`, with what --class-weights says for `weights`.

    Raises UserError for class weights that are unknown, and for names that stand for the same.
    """
    choices = [_parse_choice(name, weights) for name in names]
    for i, choice in enumerate(choices):
        for other in choices[:i]:
            if choice[1:] == other[1:]:
                raise UserError(f"--losses {other.name} and {choice.name} are the same: "
                                f"{choice.loss}, class weights {choice.class_weights}; leave one "
                                f"out")
    return choices


def _parse_choice(text, weights):
    """Return the `Choice` of one name in --losses; `weights` is what --class-weights says."""
    name, colon, scheme = text.partition(":")
    if colon and scheme not in SCHEMES:
        raise UserError(f"--losses {text}: {scheme!r} is not one of {', '.join(SCHEMES)}; use "
                        f"--class-weights for a file")
    scheme = scheme or ("none" if name == "ce" else weights)
    if scheme not in SCHEMES and not Path(scheme).is_file():
        raise UserError(f"--class-weights {scheme!r} is not one of {', '.join(SCHEMES)} or the "
                        f"name of a .json file")
    return Choice(text, "ce" if name == "weighted" else name, scheme)


def plan_jobs(choices, seeds, flags, folder):
    """Return a `Job` per seed and choice, with its place in `folder`.

    Raises UserError if the flags suit no run of a choice, or another run is in its place.
    """
    jobs = []
    for seed in seeds:
        for choice in choices:
            run_flags = [*flags, f"--loss={choice.loss}",
                         f"--class-weights={choice.class_weights}", f"--seed={seed}"]
            # Windows allows no colon in a name.
            path = folder / f"{choice.name.replace(':', '-')}_seed{seed}"
            try:
                settings = train.parse_settings(run_flags)
            except UserError as error:
                raise UserError(f"--losses {choice.name}: {error}") from error
            _refuse_other_settings(path, settings)
            jobs.append(Job(choice, seed, path, run_flags))
    return jobs


def _refuse_other_settings(path, settings):
    """Raise UserError if `path` holds anything but a run with these settings."""
    if not path.exists() or not any(path.iterdir()):
        return
    if not (path / "config.toml").is_file():
        raise UserError(f"{path} is not empty and not the folder of a run; remove it, or give "
                        f"another --output-dir")
    there = vars(train.parse_settings(["--config", str(path / "config.toml")]))
    for key, value in vars(settings).items():
        if key == "image_size":  # config.toml has the size that came out
            value = size_in_training(settings, _first_size(settings))
        elif key == "scale":
            continue
        if key not in _NO_MATTER and value != there[key]:
            raise UserError(f"{path} was trained with --{key.replace('_', '-')} {there[key]}, not "
                            f"{value}; give another --output-dir")

    if settings.class_weights.endswith(".json"):  # whose numbers may have been changed
        saved = json.loads((path / "class_weights.json").read_text(encoding="utf-8"))
        weights = build_weights(settings.class_weights, None, saved["classes"])
        if weights.tolist() != saved["weights"]:
            raise UserError(f"{path} was trained with other numbers in {settings.class_weights}; "
                            f"give another --output-dir")


def _first_size(settings):
    """Return (H, W) of the first training picture, where it decides the size in training."""
    if settings.image_size is not None:
        return None
    return open_dataset(settings.data, settings.layout, settings.split, classes=settings.classes,
                        ignore_index=settings.ignore_index)[0].mask.shape


def train_all(jobs):
    """Train what is not there yet; return (a `Row` per choice, exit code)."""
    runs = {}
    for number, (choice, seed, path, flags) in enumerate(jobs, 1):
        print(f"\n== {number}/{len(jobs)}  {choice.name}, seed {seed}: {choice.loss}, class "
              f"weights {choice.class_weights}", flush=True)
        try:
            code = _train_one(path, flags)
        except UserError as error:
            raise UserError(f"{choice.name}, seed {seed}: {error}") from error
        if code:
            return [], code
        runs.setdefault(choice.name, []).append(read_run(path))
    return [Row(name, of_name) for name, of_name in runs.items()], 0


def _train_one(path, flags):
    """Train into `path`, go on with the run that is there, or keep it; return the exit code."""
    if not (path / "config.toml").exists():
        return train.main([*flags, f"--output-dir={path}"])
    if _is_complete(path):
        print(f"kept: {path} is complete")
        return 0
    try:
        return train.main(["--resume", str(path)])
    except UserError:
        if _is_complete(path):  # killed just before the last line of its log, which is back now
            return 0
        raise


def _is_complete(path):
    """Whether the log of the run in `path` reaches its last epoch, or it was stopped early."""
    try:
        run = read_run(path)
        progress = read_checkpoint(path / "last.npz").meta.get("progress", {})
    except UserError:
        return False  # whatever it is, going on with it will tell
    return run.log[-1]["epoch"] >= run.config["epochs"] or progress.get("stopped_early", False)
