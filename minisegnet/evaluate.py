"""`python -m minisegnet.evaluate RUN`: how good is a trained model, class by class?

    python -m minisegnet.evaluate runs/x
    python -m minisegnet.evaluate runs/x/last.npz --split test --tta
    python -m minisegnet.evaluate runs/x --all
    python -m minisegnet.evaluate runs/x --ensemble runs/y runs/z

Prints a table; leaves evaluation.json, confusion.png and reliability.png beside the checkpoint.
"""

import json
import sys
from datetime import datetime
from pathlib import Path

from tqdm import tqdm

from minisegnet import datasets, plots
from minisegnet.backend import select_device
from minisegnet.cli import ArgumentParser, non_negative_int, number, positive_int
from minisegnet.errors import UserError, run_command
from minisegnet.evaluation_report import (
    checkpoint_table,
    class_table,
    excess_line,
    report_of,
    summary,
)
from minisegnet.metrics import expected_maximum
from minisegnet.training.evaluation import score
from minisegnet.training.run_folder import json_ready, write_text
from minisegnet.training.trained_model import (
    checkpoint_path,
    checkpoints_of,
    load_checked,
    open_data,
    refuse_other_classes,
)

RESULTS = ("evaluation.json", "confusion.png", "reliability.png")
LOOKS = "test_looks.json"  # in the run folder: every evaluation on a test split


def build_parser():
    """Return the parser of all flags."""
    parser = ArgumentParser(
        prog="python -m minisegnet.evaluate",
        description="Score a trained model class by class, with intervals and calibration.")
    add = parser.add_argument
    add("checkpoint", metavar="RUN|FILE.npz", help="a run folder (its best.npz) or a checkpoint")
    add("--all", action="store_true", help="every checkpoint of the run folder, one line each")
    add("--ensemble", metavar="RUN|FILE.npz", nargs="+",
        help="further models, whose probabilities are averaged with the first's")
    add("--data", help="floorplans, or the folder of a data set (default: that of training)")
    add("--layout", choices=("auto", "camvid", "voc", "folder"), help="default: as in training")
    add("--classes", metavar="FILE",
        help="which mask values are which classes: a class_map.json, a .py table or a .txt file "
             "of names (default: as in training; for other --data: what they declare)")
    add("--split", choices=("train", "val", "trainval", "test"), default="val",
        help="part of the data")
    add("--image-size", type=number(int, least=1, most=8192), nargs=2, metavar=("H", "W"),
        help="size the network sees (default: that of training); the score is at the masks' own")
    add("--tta", action="store_true", help="average with the prediction for the mirrored picture")
    add("--tta-scales", type=number(float, least=0.1, most=4), nargs="+", default=[1.0],
        metavar="S", help="average over pictures of these scales")
    add("--bootstrap", type=non_negative_int, default=1000,
        help="resamples of the images for the 95%% intervals; 0: none")
    add("--batch-size", type=positive_int, default=8, help="images at once")
    add("--num-workers", type=non_negative_int, default=2, help="threads that load ahead")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")
    add("--output", metavar="FOLDER",
        help="for the results (default: evaluation_... beside the checkpoint); an earlier "
             "evaluation there is replaced")
    return parser


def main(argv=None):
    settings = build_parser().parse_args(argv)
    settings.ensemble = settings.ensemble or []
    xp = select_device(settings.device)
    if settings.all and settings.ensemble:
        raise UserError("--all scores checkpoints one by one, --ensemble together; leave one out")

    # Everything that can be refused is refused before the first score.
    groups = checkpoints_of(settings.checkpoint) if settings.all \
        else [[checkpoint_path(settings.checkpoint)]]
    path = groups[0][0]
    loaded = load_members(path, settings.ensemble)
    meta = loaded[0][1]
    classes, config = meta["classes"], meta["config"]
    own_data = settings.data is None or same_data(settings.data, config["data"])
    settings.data = settings.data or config["data"]
    settings.layout = settings.layout or (config.get("layout", "auto") if own_data else "auto")
    folder = results_folder(settings, path, own_data)
    looks = read_looks(path.parent) if settings.split == "test" else []
    dataset = open_data(settings.data, settings.layout, settings.split, classes=classes, path=path,
                        given=settings.classes, own_data=own_data)
    dataset.check()
    notes = notes_on(settings, meta, path, dataset, len(groups),
                     sum(same_data(look["data"], settings.data) for look in looks))

    print(f"{settings.split} of {settings.data}: {len(dataset)} images, scored at their own size")
    reports, scores = [], None
    for paths in groups:
        if settings.all:
            loaded = [load_checked(paths[0])]
        for model, _ in loaded:
            model.to(xp)
        scores = score_members(settings, loaded, dataset)
        reports.append({
            "epoch": loaded[0][1]["epoch"], "files": [str(each) for each in paths],
            "image_size": settings.image_size or loaded[0][1]["image_size"],
            **report_of(scores, classes["names"], classes["pixels"], settings.bootstrap)})
    if settings.all:
        print(checkpoint_table(reports))
    else:
        print_report(settings, path, loaded, reports[0])
    for note in notes:
        print(note if note.startswith("WARNING") else f"note: {note}")
    content = {
        "settings": vars(settings), "notes": notes,
        "selected_on_test": settings.split == "test" and len(groups) > 1,
        **({"checkpoints": reports} if settings.all else reports[0])}
    write_results(folder, content, None if settings.all else scores, classes["names"])
    if settings.split == "test":
        record_look(path.parent, looks, settings.data, sum(groups, []))
    print(f"see {folder}")
    return 0


def load_members(path, ensemble):
    """Return (model, meta) of `path` and of each of `ensemble`; UserError for other classes."""
    loaded = [load_checked(each) for each in (path, *map(checkpoint_path, ensemble))]
    names = loaded[0][1]["classes"]["names"]
    for given, (_, other) in zip(ensemble, loaded[1:]):
        refuse_other_classes(other["classes"]["names"], given, names, path)
    return loaded


def same_data(one, other):
    """Whether two values of --data mean the same pictures."""
    return one == other or ("floorplans" not in (one, other)
                            and Path(one).resolve() == Path(other).resolve())


def score_members(settings, loaded, dataset):
    """Return the `Scores` of one model, or of several together, on a data set that was checked.

    `loaded` are (model, meta) pairs; every model sees the pictures at its own size in training
    unless --image-size is given.
    """
    ignore_index = loaded[0][1]["classes"]["ignore_index"]
    members = [(model, tuple(max(1, round(scale * side)) for side in
                             settings.image_size or meta["image_size"]))
               for model, meta in loaded for scale in settings.tta_scales]
    # Masks of several sizes fit no common batch; they come one by one, each at its own size.
    batch_size = settings.batch_size if len(dataset.sizes) == 1 else 1
    loaders = {size: datasets.DataLoader(
        dataset, batch_size, num_workers=settings.num_workers,
        transform=datasets.Resize(size, resize_mask=False, ignore_index=ignore_index))
        for _, size in members}
    total = len(next(iter(loaders.values())))
    return score(members, loaders, flip=settings.tta, ignore_index=ignore_index,
                 progress=lambda batches: tqdm(batches, total=total, desc=settings.split,
                                               leave=False, disable=None))


def print_report(settings, path, loaded, report):
    """Print what was scored, its classes and means, and what its probabilities are worth."""
    for given, (model, meta) in zip((path, *settings.ensemble), loaded):
        print("{}: {}, epoch {}, sees {}x{}".format(
            given, model.name, meta["epoch"], *(settings.image_size or meta["image_size"])))
    weights = ", ".join(sorted({meta["config"].get("class_weights", "none")
                                for _, meta in loaded} - {"none"})) or "none"
    print(class_table(report), *summary(report), excess_line(report, weights), sep="\n")


def notes_on(settings, meta, path, dataset, contenders, looks):
    """Return what a reader must know before believing the scores, one line each."""
    config, notes = meta["config"], []
    own = same_data(settings.data, config["data"])
    trained_on = ("train", "val", "trainval") if config.get("split") == "trainval" \
        else ("train", "trainval")
    if own and settings.split in trained_on:
        notes.append(f"the model was trained on pictures of {settings.split}: this is no "
                     f"validation score")
    elif own and settings.split == "val" and contenders == 1 and path.name == "best.npz":
        notes.append(f"best.npz was chosen by its {meta.get('monitor', 'mean_iou')} on val, so "
                     f"this score is a little too good; --split test has the last word, once")
    if contenders > 1 and settings.split == "test":
        notes.append(
            f"WARNING: whoever chooses among {contenders} checkpoints by their test score has a "
            f"selection score, no test score: the best of {contenders} scores of pure noise lies "
            f"{expected_maximum(contenders):.1f} sigma too high (of 100: 2.5). Choose on val")
    elif contenders > 1:
        notes.append(f"the best of {contenders} is chosen by this score, so its score is a little "
                     f"too good; --split test has the last word, once")
    if looks:
        times = "once" if looks == 1 else f"{looks} times"
        notes.append(f"test was looked at {times} before, see {path.parent / LOOKS}: a test set "
                     f"that is asked again and again becomes a validation set")
    if len(dataset.sizes) > 1:
        notes.append(f"masks of {len(dataset.sizes)} sizes, each scored at its own; training "
                     f"scores such pictures at its image size")
    return notes


def read_looks(folder):
    """Return the list in the run folder's record of test evaluations."""
    path = folder / LOOKS
    if not path.exists():
        return []
    try:
        return [{"data": look["data"], **look} for look in json.loads(path.read_text("utf-8"))]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is not a list of evaluations ({error}); correct or remove "
                        f"it") from error


def record_look(folder, looks, data, files):
    """Add an evaluation of `files` on test to `looks`, the record of those before it."""
    looks = [*looks, {"data": str(data), "files": [str(path) for path in files],
                      "when": datetime.now().isoformat(timespec="seconds")}]
    try:
        write_text(folder / LOOKS, json.dumps(looks, indent=1))
    except UserError as error:
        print(f"note: this look at test goes unrecorded: {error}")


def results_folder(settings, path, own_data):
    """Return the folder for the results; UserError if it holds something else."""
    words = ["evaluation", settings.split]
    words += [] if own_data else [Path(settings.data).resolve().name]
    words += ["all"] if settings.all else [path.stem] if path.stem != "best" else []
    words += ["ensemble"] if settings.ensemble else []
    words += ["x".join(map(str, settings.image_size))] if settings.image_size else []
    words += ["tta"] if settings.tta else []
    words += ["scales"] if settings.tta_scales != [1.0] else []
    folder = Path(settings.output) if settings.output else path.parent / "_".join(words)
    if folder.exists() and (not folder.is_dir() or (
            any(folder.iterdir()) and not (folder / RESULTS[0]).exists())):
        raise UserError(f"{folder} is there already and holds no earlier evaluation; give another "
                        f"--output")
    return folder


def write_results(folder, content, scores, class_names):
    """Write evaluation.json, and for one model the two pictures, in place of earlier ones."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in RESULTS:
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror}); give another "
                        f"--output") from error
    write_text(folder / RESULTS[0], json.dumps(json_ready(content), indent=1))
    if scores is not None:
        plots.save(plots.confusion(scores.confusion.matrix, class_names), folder / RESULTS[1])
        plots.save(plots.reliability(scores.calibration, class_names), folder / RESULTS[2])


if __name__ == "__main__":
    sys.exit(run_command(main))
