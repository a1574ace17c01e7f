"""`python -m minisegnet.evaluate RUN`: how good is a trained model, class by class?

    python -m minisegnet.evaluate runs/x
    python -m minisegnet.evaluate runs/x/last.npz --split test --tta
    python -m minisegnet.evaluate runs/x --all
    python -m minisegnet.evaluate runs/x --ensemble runs/y runs/z

Prints a table; leaves evaluation.json, confusion.png and reliability.png beside the checkpoint.
"""

import hashlib
import json
import math
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minisegnet import datasets, plots
from minisegnet.backend import select_device
from minisegnet.cli import ArgumentParser, non_negative_int, number, positive_int
from minisegnet.errors import UserError, run_command
from minisegnet.metrics import expected_maximum
from minisegnet.training.checkpoint import load_model
from minisegnet.training.evaluation import report_of, score
from minisegnet.training.run_folder import json_ready, write_text

FEW_IMAGES = 10  # a class in fewer gets an interval that hardly means anything
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


# ---------------------------------------------------------------- what to evaluate


def checkpoint_path(given):
    """Return the checkpoint that `given` means: itself, or the best.npz of a run folder."""
    path = Path(given)
    if path.is_dir():
        path = path / "best.npz"
        if not path.is_file():
            raise UserError(f"the folder {given} has no best.npz; give a run folder, or the path "
                            f"of a .npz file")
    return path


def load_checked(path):
    """Return (model, meta) of a checkpoint; UserError if it cannot be evaluated."""
    model, checkpoint = load_model(path)
    for name, array in {**checkpoint.parameters, **checkpoint.buffers}.items():
        if not np.isfinite(array).all():
            raise UserError(f"{path} is spoilt: {name} holds nan or infinite numbers; use an "
                            f"earlier checkpoint")
    meta = checkpoint.meta
    try:
        meta["epoch"], meta["image_size"], meta["config"]["data"]
        [meta["classes"][key] for key in ("names", "pixels", "ignore_index")]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} does not say its {error}; it was written by another version: "
                        f"train again") from error
    return model, meta


def checkpoints_of(folder):
    """Return the checkpoints of a run folder by epoch number, each a list of paths.

    Files of one epoch with the same weights are one checkpoint.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"--all needs a run folder, and {folder} is none; leave --all out for one "
                        f"checkpoint")
    found, names = {}, None  # found: (epoch, hash of the weights) -> paths
    for path in (*sorted(folder.glob("epoch_*.npz")), folder / "best.npz", folder / "last.npz"):
        if path.is_file():
            model, meta = load_checked(path)
            names = names or meta["classes"]["names"]
            refuse_other_classes(meta["classes"]["names"], path, names, "the first")
            weights = hashlib.sha256()
            for _, array in (*model.named_parameters(), *model.named_buffers()):
                weights.update(array.tobytes())
            found.setdefault((meta["epoch"], weights.digest()), []).append(path)
    if not found:
        raise UserError(f"the folder {folder} has no checkpoint (epoch_NNNN.npz, best.npz, "
                        f"last.npz); give the folder of a run")
    return [found[key] for key in sorted(found, key=lambda key: key[0])]


def refuse_other_classes(names, where, expected, path):
    """Raise UserError unless the classes of `where` are those of the checkpoint `path`."""
    names, expected = list(names), list(expected)
    if names != expected:
        first = next((f"class {c} is {a!r} there and {b!r} here" for c, (a, b) in
                      enumerate(zip(names, expected)) if a != b), "the first ones agree")
        raise UserError(f"{where} has {len(names)} classes and {path} has {len(expected)}, not "
                        f"the same by name ({first}); both need the same classes in one order")


def same_data(one, other):
    """Whether two values of --data mean the same pictures."""
    return one == other or ("floorplans" not in (one, other)
                            and Path(one).resolve() == Path(other).resolve())


def open_checked(settings, meta, path):
    """Return the data set of the flags, read once; UserError if its classes are others."""
    classes = meta["classes"]
    dataset = datasets.open_dataset(settings.data, settings.layout, settings.split,
                                    ignore_index=classes["ignore_index"])
    refuse_other_classes(dataset.class_names, settings.data, classes["names"], path)
    dataset.check()
    return dataset


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


# ---------------------------------------------------------------- what to say about it


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


def _text(value, spec=".3f"):
    return "-" if np.isnan(value) else format(value, spec)


def _interval(pair):
    return "" if np.isnan(pair).any() else f"[{pair[0]:.3f}, {pair[1]:.3f}]"


def _lines(rows, left=1):
    """Return rows of texts as aligned lines; the first `left` columns to the left."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(text.ljust(width) if c < left else text.rjust(width)
                      for c, (text, width) in enumerate(zip(row, widths))).rstrip()
            for row in rows]


def class_table(report):
    """Return the table per class, frequent and rare apart, each with its means."""
    rows = [("class", "IoU", "95 %" if report["resamples"] else "", "Dice", "precision", "recall",
             "px in truth", "px predicted", "of training")]
    names, pixels = report["classes"], report["training_pixels"]
    for kind in ("frequent", "rare"):
        group = report["groups"][kind]
        for name in group["classes"]:
            c = names.index(name)
            rows.append((name, _text(report["iou"][c]), _interval(report["iou_interval"][c]),
                         *(_text(report[key][c]) for key in ("dice", "precision", "recall")),
                         f"{report['pixels_in_truth'][c]:,}",
                         f"{report['pixels_predicted'][c]:,}",
                         f"{pixels[c] / pixels.sum():.3%}"))
        if group["classes"]:
            iou, *others = (_text(group[f"mean_{key}"])
                            for key in ("iou", "dice", "precision", "recall"))
            rows.append((f"= mean of {len(group['classes'])} {kind}", iou, "", *others, *3 * [""]))
    lines = _lines(rows)
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def summary(report):
    """Return the lines below the table: the means, and how far probabilities can be believed."""
    K, absent = len(report["classes"]), report["absent_classes"]
    lines = [f"mean IoU             {report['mean_iou_present']:.4f} "
             f"{_interval(report['mean_iou_present_interval'])} over the "
             f"{report['present_classes']} classes present; {report['mean_iou_all']:.4f} over "
             f"all {K}" + (f" (absent: {', '.join(absent)})" if absent else "")]
    for label, key in (("mean Dice", "mean_dice_present"), ("FWIoU", "fw_iou"),
                       ("pixel accuracy", "pixel_accuracy"),
                       ("mean class accuracy", "mean_class_accuracy")):
        lines.append(f"{label:<21}{report[key]:.4f}")
    few = [f"{name} {images}" for name, images in
           zip(report["classes"], report["images_with_class"]) if 0 < images < FEW_IMAGES]
    if few and report["resamples"]:
        lines.append(f"images with          {', '.join(few)}: too few for their intervals")
    calibration = report["calibration"]
    lines.append(f"rare                 {report['groups']['rare_is']}")
    lines.append(f"calibration error    {calibration['top_label_ece']:.4f} of the top label, "
                 f"{calibration['classwise_ece']:.4f} of a class on average")
    return lines


def excess_line(report, weights):
    """Return how often each class is promised for once that it comes, the worst first."""
    calibration = report["calibration"]
    ratios = {name: p / f for name, p, f in zip(
        report["classes"], calibration["mean_probability"], calibration["frequency"])
        if f > 0 and p > 0}
    worst = sorted(ratios, key=lambda name: -abs(math.log(ratios[name])))
    more = f", {len(worst) - 8} nearer to 1" if len(worst) > 8 else ""
    return ("mean probability / frequency, 1 is right: "
            + ", ".join(f"{name} {ratios[name]:.3g}" for name in worst[:8]) + more
            + (f"; class weights ({weights}) distort probabilities" if weights != "none" else ""))


def checkpoint_table(reports):
    """Return one line per checkpoint, the best mean IoU marked."""
    scores = [report["mean_iou_present"] for report in reports]
    best = int(np.nanargmax(scores))
    rows = [("epoch", "files", "mean IoU", "95 %" if reports[0]["resamples"] else "", "all",
             "frequent", "rare", "Dice", "FWIoU", "accuracy", "active", "ECE", "")]
    for i, report in enumerate(reports):
        rows.append((
            str(report["epoch"]), ", ".join(Path(name).stem for name in report["files"]),
            _text(scores[i], ".4f"), _interval(report["mean_iou_present_interval"]),
            *(_text(value, ".4f") for value in (
                report["mean_iou_all"], report["groups"]["frequent"]["mean_iou"],
                report["groups"]["rare"]["mean_iou"], report["mean_dice_present"],
                report["fw_iou"], report["pixel_accuracy"])),
            str(report["active_classes"]), _text(report["calibration"]["top_label_ece"], ".4f"),
            "<- best" if i == best else ""))
    return "\n".join(_lines(rows, left=2))


# ---------------------------------------------------------------- the command


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


def main(argv=None):
    settings = build_parser().parse_args(argv)
    settings.ensemble = settings.ensemble or []
    if settings.device == "cuda":
        select_device("cuda")  # names what is missing, if anything is
        raise UserError("--device cuda: evaluation on a GPU is not there yet; use --device cpu")
    if settings.all and settings.ensemble:
        raise UserError("--all scores checkpoints one by one, --ensemble together; leave one out")

    # Everything that can be refused is refused before the first score.
    groups = checkpoints_of(settings.checkpoint) if settings.all \
        else [[checkpoint_path(settings.checkpoint)]]
    path = groups[0][0]
    loaded = [load_checked(each) for each in (path, *map(checkpoint_path, settings.ensemble))]
    meta = loaded[0][1]
    names, config = meta["classes"]["names"], meta["config"]
    for given, (_, other) in zip(settings.ensemble, loaded[1:]):
        refuse_other_classes(other["classes"]["names"], given, names, path)
    own_data = settings.data is None or same_data(settings.data, config["data"])
    settings.data = settings.data or config["data"]
    settings.layout = settings.layout or (config.get("layout", "auto") if own_data else "auto")
    folder = results_folder(settings, path, own_data)
    looks = read_looks(path.parent) if settings.split == "test" else []
    dataset = open_checked(settings, meta, path)
    notes = notes_on(settings, meta, path, dataset, len(groups),
                     sum(same_data(look["data"], settings.data) for look in looks))

    print(f"{settings.split} of {settings.data}: {len(dataset)} images, scored at their own size")
    reports, scores = [], None
    for paths in groups:
        if settings.all:
            loaded = [load_checked(paths[0])]
        scores = score_members(settings, loaded, dataset)
        reports.append({
            "epoch": loaded[0][1]["epoch"], "files": [str(each) for each in paths],
            "image_size": settings.image_size or loaded[0][1]["image_size"],
            **report_of(scores, names, meta["classes"]["pixels"], settings.bootstrap)})
    content = {
        "settings": vars(settings), "notes": notes,
        "selected_on_test": settings.split == "test" and len(groups) > 1,
        **({"checkpoints": reports} if settings.all else reports[0])}
    if settings.all:
        print(checkpoint_table(reports))
    else:
        models = "\n".join(
            "{}: {}, epoch {}, sees {}x{}".format(each, model.name, its["epoch"], *(
                settings.image_size or its["image_size"]))
            for each, (model, its) in zip((path, *settings.ensemble), loaded))
        weights = ", ".join(sorted({its["config"].get("class_weights", "none")
                                    for _, its in loaded} - {"none"})) or "none"
        print(models, class_table(reports[0]), *summary(reports[0]),
              excess_line(reports[0], weights), sep="\n")
    for note in notes:
        print(note if note.startswith("WARNING") else f"note: {note}")
    write_results(folder, content, None if settings.all else scores, names)
    if settings.split == "test":
        looks.append({"data": str(settings.data), "files": [str(p) for ps in groups for p in ps],
                      "when": datetime.now().isoformat(timespec="seconds")})
        try:
            write_text(path.parent / LOOKS, json.dumps(looks, indent=1))
        except UserError as error:
            print(f"note: this look at test goes unrecorded: {error}")
    print(f"see {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
