"""`python -m minisegnet.compare`: one network under several losses, or finished runs.

    python -m minisegnet.compare --losses ce weighted focal dice combined
    python -m minisegnet.compare --losses ce ce:sqrt ce:enet --seeds 2 --data data/CamVid \\
        --image-size 180 240 --epochs 40 --lr 2e-3
    python -m minisegnet.compare runs/a runs/b

The losses get the same weights to start from, batches, schedule and budget, for each of several
seeds, since one seed is noise. The same command again goes on where a comparison was stopped.
"""

import json
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minisegnet import plots, train
from minisegnet.cli import ArgumentParser, positive_int
from minisegnet.datasets import open_dataset
from minisegnet.datasets.transforms import normalize, resize_image
from minisegnet.errors import UserError, run_command
from minisegnet.imbalance.weighting import SCHEMES
from minisegnet.training.checkpoint import load_model, read_checkpoint, writing
from minisegnet.training.evaluation import predict_batch
from minisegnet.training.run_folder import json_ready, read_log, write_text
from minisegnet.verdict import verdict

FILES = ("comparison.json", "table.md", "curves.png", "classes.png", "grid.png")
PICTURES = 4  # in grid.png
# What may differ between a run that is there and the one asked for: none of it is in the numbers.
_NO_MATTER = ("config", "output_dir", "num_workers", "device", "save_every")
_COLUMNS = {  # key of a score -> (heading, format)
    "mean_iou": ("mean IoU", "{:.3f}"), "best_mean_iou": ("at best", "{:.3f}"),
    "frequent_iou": ("frequent", "{:.3f}"), "rare_iou": ("rare", "{:.3f}"),
    "active_classes": ("active", "{:.3g}"), "pixel_accuracy": ("accuracy", "{:.3f}"),
    "fw_iou": ("FWIoU", "{:.3f}"), "epochs": ("epochs", "{:.0f}"),
    "seconds": ("seconds", "{:.0f}"),
}


class Choice(NamedTuple):
    """What one name of --losses stands for."""

    name: str
    loss: str
    class_weights: str


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


def build_parser(training):
    """Return the parser of --losses with what goes with it, or of run folders."""
    parser = ArgumentParser(
        prog="python -m minisegnet.compare",
        usage="%(prog)s --losses NAME [NAME ...] [--seeds N] [--output-dir FOLDER] [flags of "
              "minisegnet.train]\n       %(prog)s RUN_FOLDER RUN_FOLDER ... [--output-dir FOLDER]",
        description="Train one network under several losses, everything else being equal, or "
                    "take finished runs; leave a table and pictures of all of them.",
        epilog="Names: ce is cross-entropy without class weights. weighted is cross-entropy, and "
               "focal, dice, combined and all other losses of minisegnet.train are themselves, "
               "with the weights of --class-weights (default: sqrt). NAME:SCHEME sets the "
               f"weights of one of them: ce:enet, dice:none. SCHEME is {', '.join(SCHEMES)}.")
    if not training:
        parser.add_argument("runs", nargs="*", metavar="RUN_FOLDER", help="folders of runs")
    parser.add_argument("--losses", nargs="+", metavar="NAME", help="what to train, see below")
    parser.add_argument("--seeds", type=positive_int, default=3 if training else None,
                        help="runs of each with the seeds from --seed on, since one is noise "
                             "(default: 3)")
    parser.add_argument("--output-dir", metavar="FOLDER",
                        help="where the comparison goes (default: comparisons/...)")
    return parser


def main(argv=None):
    argv = [str(word) for word in (sys.argv[1:] if argv is None else argv)]
    # Two parsers: a parser with free arguments would take the 3 of `--epochs 3` for a run folder.
    training = any(word.partition("=")[0] == "--losses" for word in argv)
    if training:
        settings, flags = build_parser(True).parse_known_args(argv)
        rows, folder, code = train_all(settings, flags)
        if code:
            print(f"stopped; the same command goes on with {folder}")
            return code
    else:
        rows, folder = take_runs(build_parser(False).parse_args(argv))
    report(rows, folder)
    return 0


def take_runs(arguments):
    """Return the rows of the given run folders, and the folder to write to."""
    if arguments.seeds is not None:
        raise UserError("--seeds goes with --losses; runs are taken as they are")
    paths = [Path(path) for path in arguments.runs]
    if len(paths) < 2:
        raise UserError("give --losses NAME NAME ... to train, or at least two run folders (see "
                        "python -m minisegnet.compare --help)")
    if len({path.resolve() for path in paths}) < len(paths):
        raise UserError("the same run folder is given twice; leave one out")
    runs = [read_run(path) for path in paths]
    for run in runs[1:]:
        refuse_other_data(runs[0], run)
    names = [path.resolve().name for path in paths]
    names = names if len(set(names)) == len(names) else [str(path) for path in paths]
    folder = Path(arguments.output_dir
                  or f"comparisons/{'_vs_'.join(path.resolve().name for path in paths)[:80]}")
    refuse_foreign_files(folder)
    return [Row(name, [run]) for name, run in zip(names, runs)], folder


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


def refuse_foreign_files(folder):
    """Raise UserError if the files of a comparison would replace those of something else."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give another --output-dir")
    there = [name for name in ("config.toml", *FILES) if (folder / name).exists()]
    if there and there[0] != FILES[0]:
        raise UserError(f"{folder} holds a {there[0]} that is of no comparison; give another "
                        f"--output-dir")


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


def rare_classes(pixels):
    """Return the ids of the third of the classes with the fewest pixels (K,), rarest first.

    Classes without a pixel are left out: nothing can learn them.
    """
    order = [int(c) for c in np.argsort(pixels, kind="stable") if pixels[c] > 0]
    return order[:max(1, round(len(order) / 3))]


def scores_of(run, rare):
    """Return the numbers of `_COLUMNS` for one run: at its last epoch, and the best mean IoU."""
    last = run.validated[-1]
    iou = np.array(last["iou"], float)
    is_rare = np.isin(np.arange(len(iou)), rare)
    return {
        "mean_iou": last["mean_iou"],
        "best_mean_iou": max(record["mean_iou"] for record in run.validated),
        "frequent_iou": _mean(iou[~is_rare & (run.pixels > 0)]),
        "rare_iou": _mean(iou[is_rare]),
        **{key: last.get(key) for key in ("active_classes", "pixel_accuracy", "fw_iou")},
        "epochs": run.log[-1]["epoch"],
        "seconds": sum(record["seconds"] for record in run.log),
    }


def _mean(values):
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")


def report(rows, folder):
    """Print the table and the verdicts; write them and the pictures into `folder`."""
    first = rows[0].runs[0]
    rare = rare_classes(first.pixels)
    scores = {row.name: [scores_of(run, rare) for run in row.runs] for row in rows}
    notes = notes_on(rows, rare)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    # First, for it marks the folder as that of a comparison, which may be written anew.
    write_text(folder / "comparison.json", json.dumps(json_ready({
        "classes": first.class_names, "pixels": first.pixels,
        "rare": [first.class_names[c] for c in rare],
        "rows": [{"name": row.name, "runs": [
            {"folder": str(run.folder), "loss": run.config["loss"],
             "class_weights": run.config["class_weights"], "seed": run.config["seed"],
             **score, "iou": run.validated[-1]["iou"], "verdict": verdict(run.log)}
            for run, score in zip(row.runs, scores[row.name])]} for row in rows]}), indent=1))
    write_text(folder / "table.md", markdown_table(rows, scores) + "\n\n" + "\n".join(
        f"- {note}" for note in notes) + "\n")
    print("\n" + text_table(rows, scores) + "\n\n" + "\n".join(notes), flush=True)

    plots.save(plots.compared_curves(
        {row.name: [run.log for run in row.runs] for row in rows}, rare), folder / "curves.png")
    plots.save(plots.compared_classes({row.name: row.iou for row in rows}, first.class_names,
                                      first.pixels, rare), folder / "classes.png")
    pictures = _grid(rows, rare)
    if pictures is None:
        (folder / "grid.png").unlink(missing_ok=True)  # of an earlier comparison
    else:
        plots.save(pictures, folder / "grid.png")
    print(f"see {folder}: {', '.join(name for name in FILES if (folder / name).exists())}")


def _grid(rows, rare):
    """Return the grid of the first seeds' best weights; None, and a line, without the data."""
    first = rows[0].runs[0]
    try:
        dataset = open_dataset(first.config["data"], first.config["layout"], "val",
                               ignore_index=first.config["ignore_index"])
        samples = plots.pictures_with(dataset, rare, PICTURES, apart=len(dataset) // PICTURES)
        predicted = {row.name: predictions_of(row.runs[0].folder / "best.npz", samples)
                     for row in rows}
    except UserError as error:  # runs may have come here from another machine
        print(f"no grid.png: {error}")
        return None
    return plots.grid(samples, predicted, first.class_names, dataset.palette,
                      dataset.ignore_index)


def notes_on(rows, rare):
    """Return the lines below the table: what its columns mean, budgets that differ, verdicts."""
    first = rows[0].runs[0]
    names = ", ".join(first.class_names[c] for c in rare)
    seeds = len(rows[0].runs)
    notes = [(f"Means of {seeds} seeds, with their range. " if seeds > 1 else
              "One run each: differences of a few hundredths may be noise. ")
             + "Validation at the last epoch; at best: the best mean IoU of any epoch.",
             f"rare: mean IoU of the third of the classes with the fewest training pixels "
             f"({names}); frequent: of all others."]
    for what, values in (
            ("epochs", [f"{row.runs[0].log[-1]['epoch']} of {row.runs[0].config['epochs']}"
                        for row in rows]),
            ("sizes in training", ["{}x{}".format(*row.runs[0].config["image_size"])
                                   for row in rows])):
        if len(set(values)) > 1:
            notes.append(f"Not the same {what}: " + ", ".join(
                f"{row.name} {value}" for row, value in zip(rows, values)) + ".")
    for row in rows:
        notes += [f"{row.name} (seed {row.runs[0].config['seed']}): {sentence}"
                  for sentence in verdict(row.runs[0].log)]
    return notes


def _cells(row, scores):
    """Return [(mean, range)] of a row's columns as texts; a single seed has the range ""."""
    cells = []
    for key, (_, number) in _COLUMNS.items():
        values = np.array([score[key] for score in scores], float)
        spread = f"{number.format(values.min())}..{number.format(values.max())}"
        plain = len(values) == 1 or key in ("epochs", "seconds")
        cells.append((number.format(values.mean()), "" if plain else spread))
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
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(
        cell.ljust(width) if i < 2 else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(line, widths))).rstrip() for line in lines)


def predictions_of(checkpoint, samples):
    """Return the predictions (h, w) uint8 of the model in a file, one per sample."""
    model, saved = load_model(checkpoint)
    size = saved.meta["image_size"]
    return [predict_batch(model, normalize(resize_image(sample.image, size))[None],
                          sample.mask.shape)[0] for sample in samples]


if __name__ == "__main__":
    sys.exit(run_command(main))
