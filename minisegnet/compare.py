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
from pathlib import Path

import numpy as np

from minisegnet import plots
from minisegnet.cli import ArgumentParser, positive_int
from minisegnet.comparison_report import (
    Row,
    markdown_table,
    notes_on,
    read_run,
    refuse_other_data,
    scores_of,
    text_table,
)
from minisegnet.comparison_training import parse_choices, plan_jobs, train_all
from minisegnet.datasets.class_map import CLASS_MAP_FILE
from minisegnet.datasets.transforms import normalize, resize_image
from minisegnet.errors import UserError, run_command
from minisegnet.imbalance.rarity import rare_classes
from minisegnet.imbalance.weighting import SCHEMES
from minisegnet.training.checkpoint import writing
from minisegnet.training.evaluation import predict_batch
from minisegnet.training.run_folder import json_ready, write_text
from minisegnet.training.trained_model import checkpoint_path, load_checked, open_data
from minisegnet.verdict import verdict

FILES = ("comparison.json", "table.md", "curves.png", "classes.png", "grid.png")
PICTURES = 4  # in grid.png


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
        rows, folder, code = train_runs(*build_parser(True).parse_known_args(argv))
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


def train_runs(arguments, flags):
    """Train what is not there yet; return (rows, folder of the comparison, exit code).

    Everything that the flags alone can tell is refused before the first run.
    """
    base, choices = parse_choices(arguments.losses, flags)
    folder = Path(arguments.output_dir or f"comparisons/{Path(base.data).resolve().name}")
    refuse_foreign_files(folder)
    seeds = range(base.seed, base.seed + arguments.seeds)
    jobs = plan_jobs(choices, seeds, flags, folder)
    print(f"{len(choices)} losses x {len(seeds)} seeds, {base.epochs} epochs each; {folder}")
    rows, code = train_all(jobs)
    return rows, folder, code


def refuse_foreign_files(folder):
    """Raise UserError if the files of a comparison would replace those of something else."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give another --output-dir")
    there = [name for name in ("config.toml", *FILES) if (folder / name).exists()]
    if there and there[0] != FILES[0]:
        raise UserError(f"{folder} holds a {there[0]} that is of no comparison; give another "
                        f"--output-dir")


def report(rows, folder):
    """Print the table and the verdicts; write them and the pictures into `folder`."""
    first = rows[0].runs[0]
    names = first.class_names
    is_rare, rule = rare_classes(first.pixels)
    rare = [int(c) for c in np.argsort(first.pixels, kind="stable") if is_rare[c]]  # rarest first
    scores = {row.name: [scores_of(run, is_rare) for run in row.runs] for row in rows}
    notes = notes_on(rows, [names[c] for c in rare], rule)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    # First, for it marks the folder as that of a comparison, which may be written anew.
    write_text(folder / "comparison.json", json.dumps(json_ready({
        "classes": names, "pixels": first.pixels,
        "rare": [names[c] for c in rare], "rare_is": rule,
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
    plots.save(plots.compared_classes({row.name: row.iou for row in rows}, names, first.pixels,
                                      rare), folder / "classes.png")
    pictures = _grid(rows, rare)
    if pictures is None:
        (folder / "grid.png").unlink(missing_ok=True)  # of an earlier comparison
    else:
        plots.save(pictures, folder / "grid.png")
    print(f"see {folder}: {', '.join(name for name in FILES if (folder / name).exists())}")


def _grid(rows, rare):
    """Return the grid of the first seeds' best weights; None, and a line, without the data."""
    first = rows[0].runs[0]
    config, names = first.config, first.class_names
    try:
        dataset = open_data(
            config["data"], config["layout"], "val", path=first.folder,
            given=first.folder / CLASS_MAP_FILE if config.get("classes") else None,
            classes={"names": names, "ignore_index": config["ignore_index"]})
        samples = plots.pictures_with(dataset, rare, PICTURES, apart=len(dataset) // PICTURES)
        predicted = {row.name: predictions_of(row.runs[0].folder, samples) for row in rows}
    except UserError as error:  # runs may have come here from another machine
        print(f"no grid.png: {error}")
        return None
    return plots.grid(samples, predicted, names, dataset.palette, dataset.ignore_index)


def predictions_of(given, samples):
    """Return a model's predictions (h, w) uint8, one per sample.

    `given` is a checkpoint, or a run folder, whose best.npz is taken.
    """
    model, meta = load_checked(checkpoint_path(given))
    return [predict_batch(model, normalize(resize_image(sample.image, meta["image_size"]))[None],
                          sample.mask.shape)[0] for sample in samples]


if __name__ == "__main__":
    sys.exit(run_command(main))
