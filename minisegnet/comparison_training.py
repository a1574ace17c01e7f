"""The runs of a comparison of losses: alike in all else, trained as far as they are not there."""

from pathlib import Path
from typing import NamedTuple

from minisegnet import train
from minisegnet.comparison_report import Row, read_run
from minisegnet.errors import UserError
from minisegnet.imbalance.weighting import SCHEMES
from minisegnet.training.checkpoint import read_checkpoint

# What may differ between a run that is there and the one asked for: none of it is in the numbers.
_NO_MATTER = ("config", "output_dir", "num_workers", "device", "save_every")


class Choice(NamedTuple):
    """What one name of --losses stands for."""

    name: str
    loss: str
    class_weights: str


def parse_choice(text, weights):
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


def train_all(arguments, flags):
    """Train what is not there yet; return (rows, folder of the comparison, exit code).

    Everything that the flags alone can tell is refused before the first run.
    """
    for flag, cure in (("--loss", "name it in --losses"), ("--dry-run", "use minisegnet.train"),
                       ("--resume", "the same command again goes on")):
        if any(word.partition("=")[0] == flag for word in flags):
            raise UserError(f"{flag} does not go with --losses: {cure}")
    base = train.parse_settings([*flags, "--loss=ce"])
    choices = [parse_choice(name, base.class_weights) for name in arguments.losses]
    for i, choice in enumerate(choices):
        for other in choices[:i]:
            if choice[1:] == other[1:]:
                raise UserError(f"--losses {other.name} and {choice.name} are the same: "
                                f"{choice.loss}, class weights {choice.class_weights}; leave one "
                                f"out")
    folder = Path(arguments.output_dir or f"comparisons/{Path(base.data).resolve().name}")
    refuse_foreign_files(folder)

    jobs = []
    for seed in range(base.seed, base.seed + arguments.seeds):
        for choice in choices:
            run_flags = [*flags, f"--loss={choice.loss}",
                         f"--class-weights={choice.class_weights}", f"--seed={seed}"]
            # Windows allows no colon in a name.
            path = folder / f"{choice.name.replace(':', '-')}_seed{seed}"
            try:
                settings = train.parse_settings(run_flags)
            except UserError as error:
                raise UserError(f"--losses {choice.name}: {error}") from error
            refuse_other_settings(path, settings)
            jobs.append((choice, seed, path, run_flags))

    rows = {choice.name: [] for choice in choices}
    print(f"{len(choices)} losses x {arguments.seeds} seeds, {base.epochs} epochs each; {folder}")
    for number, (choice, seed, path, run_flags) in enumerate(jobs, 1):
        print(f"\n== {number}/{len(jobs)}  {choice.name}, seed {seed}: {choice.loss}, class "
              f"weights {choice.class_weights}", flush=True)
        try:
            code = train_one(path, run_flags)
        except UserError as error:
            raise UserError(f"{choice.name}, seed {seed}: {error}") from error
        if code:
            return [], folder, code
        rows[choice.name].append(read_run(path))
    return [Row(name, runs) for name, runs in rows.items()], folder, 0


def refuse_other_settings(path, settings):
    """Raise UserError if `path` holds anything but a run with these settings."""
    if not path.exists() or not any(path.iterdir()):
        return
    if not (path / "config.toml").is_file():
        raise UserError(f"{path} is not empty and not the folder of a run; remove it, or give "
                        f"another --output-dir")
    there = vars(train.parse_settings(["--config", str(path / "config.toml")]))
    for key, value in vars(settings).items():
        if key in ("image_size", "scale") and settings.image_size is None:
            continue  # config.toml has the size that came out
        if key not in _NO_MATTER and value != there[key]:
            raise UserError(f"{path} was trained with --{key.replace('_', '-')} {there[key]}, not "
                            f"{value}; give another --output-dir")


def train_one(path, flags):
    """Train into `path`, go on with the run that is there, or keep it; return the exit code."""
    if not (path / "config.toml").exists():
        return train.main([*flags, f"--output-dir={path}"])
    if is_complete(path):
        print(f"kept: {path} is complete")
        return 0
    try:
        return train.main(["--resume", str(path)])
    except UserError:
        if is_complete(path):  # killed just before the last line of its log, which is back now
            return 0
        raise


def is_complete(path):
    """Whether the log of the run in `path` reaches its last epoch, or it was stopped early."""
    try:
        run = read_run(path)
        progress = read_checkpoint(path / "last.npz").meta.get("progress", {})
    except UserError:
        return False  # whatever it is, going on with it will tell
    return run.log[-1]["epoch"] >= run.config["epochs"] or progress.get("stopped_early", False)
