"""`python -m minisegnet.analyze --data PICTURES`: what do the masks hold, before any training?

    python -m minisegnet.analyze --data data/CamVid
    python -m minisegnet.analyze --data pictures --classes cmap.py
    python -m minisegnet.analyze --data floorplans

Counts the masks of train and val, whatever state they are in, and prints what occurs, how rare and
how small it is, what each scheme of class weights would make of it, and what looks wrong. Leaves
report.json, three pictures, and class_map.json and class_weights.json for the training.
"""

import json
import shlex
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minisegnet import datasets, plots
from minisegnet.cli import ArgumentParser
from minisegnet.datasets import files, make_augmentation
from minisegnet.errors import UserError, run_command
from minisegnet.imbalance.data_report import build_report, format_report
from minisegnet.imbalance.mask_scan import facts_of, look_at_files, scan
from minisegnet.imbalance.occurring import occurring_classes
from minisegnet.imbalance.suspicions import find_suspicions, values_of
from minisegnet.plots.augmentation import augmentations
from minisegnet.plots.distribution import class_distribution, weights_compared
from minisegnet.training.run_folder import json_ready, new_run_folder, write_text

SPLITS = ("train", "val")
PRESETS = ("standard", "enhanced", "strong")  # one row of augmentation.png each
VERSIONS, LARGEST = 3, 480  # of a picture, beside the original; px of the longer side


def build_parser():
    """Return the parser of all flags."""
    parser = ArgumentParser(
        prog="python -m minisegnet.analyze",
        description="Look through all masks of a data set: classes, imbalance, weights, mistakes.")
    add = parser.add_argument
    add("--data", required=True, help="floorplans, or the folder of a data set")
    add("--layout", choices=("auto", "camvid", "voc", "folder"), default="auto",
        help="camvid, voc, folder (images and masks), or what the folders look like")
    add("--classes", metavar="FILE",
        help="classes the masks should have: a class_map.json, a .py table, a classes.txt "
             "(default: those of the layout, or of a file in the data's folder)")
    add("--output-dir", help="new folder for the results (default: runs/..._analysis_...)")
    return parser


def main(argv=None):
    settings = build_parser().parse_args(argv)
    source = (_FloorPlans if settings.data == "floorplans" else _Files)(settings)
    folder = new_run_folder(settings.output_dir,
                            default_name=f"{Path(settings.data).resolve().name}_analysis")
    try:
        return _analyze(settings, source, folder)
    finally:
        if not any(folder.iterdir()):  # refused or interrupted before there was anything to keep
            folder.rmdir()


def _analyze(settings, source, folder):
    """Look through the masks of `source`, print what is found, and leave it in `folder`."""
    scans = {}
    for split, items in source.items.items():
        scans[split] = scan(items, source.look, source.declared and source.declared.values,
                            progress=partial(tqdm, desc=split, leave=False, disable=None))
    if not scans["train"].num_masks:
        raise UserError(f"no mask can be read; {scans['train'].oddities['unreadable'][1][0]}")
    classes, lacking = occurring_classes(source.declared, values_of(scans))
    if classes is not None and not scans["train"].totals(classes.values).pixels.any():
        classes, lacking = None, "no class occurs in train"
    suspicions = find_suspicions(scans, source.declared, classes, no_val=source.no_val)
    report = build_report(scans, classes, suspicions)

    write_text(folder / "report.json", json.dumps(json_ready(
        {"data": str(settings.data), "layout": settings.layout, **report}), indent=1))
    if classes is not None:
        _write_for_training(folder, classes, report)
        _draw(folder, source, scans, classes, report)
    print(f"{settings.data}: " + "\n".join(format_report(report)))
    if classes is None:
        print(f"no class map and no weights: {lacking}; see {folder}/report.json")
        return 0
    print(f"see {folder}/class_distribution.png, class_weights.png and augmentation.png")
    print(f"next: {_next(settings, folder)}")
    return 0


def _write_for_training(folder, classes, report):
    """Write class_map.json, and class_weights.json with the recommended weights."""
    classes.write(folder / "class_map.json")
    recommended = report["recommended"]
    scheme = report["schemes"][recommended["scheme"]]
    write_text(folder / "class_weights.json", json.dumps(json_ready(
        {**recommended, "formula": scheme["formula"], "weights": scheme["weights"]}), indent=1))


def _draw(folder, source, scans, classes, report):
    """Write the three pictures."""
    totals = {split: scan.totals(classes.values) for split, scan in scans.items()}
    train = totals["train"]
    plots.save(class_distribution(
        {split: of.frequency for split, of in totals.items() if of.pixels.any()},
        {split: of.images for split, of in totals.items()}, classes.names, classes.palette),
        folder / "class_distribution.png")
    plots.save(weights_compared(
        {name: list(scheme["weights"].values()) for name, scheme in report["schemes"].items()},
        train.frequency, classes.names), folder / "class_weights.png")
    rows = {}
    for k in np.argsort(train.pixels, kind="stable"):
        if train.fullest[k] < 0 or len(rows) == len(PRESETS):
            continue
        with suppress(UserError):  # a picture that cannot be used was spoken of
            sample = source.sample(source.items["train"][train.fullest[k]], classes)
            scale = min(1, LARGEST / max(sample.mask.shape))
            size = [max(1, round(scale * side)) for side in sample.mask.shape]
            preset = PRESETS[len(rows)]
            transform = make_augmentation(preset, size)
            rows[f"{preset}\n{classes.names[k]}"] = [datasets.Resize(size)(sample, None)] + [
                transform(sample, np.random.default_rng([int(k), version]))
                for version in range(VERSIONS)]
    if rows:
        plots.save(augmentations(rows, classes.names, classes.palette),
                   folder / "augmentation.png")


def _next(settings, folder):
    """Return the command line that trains with what was written."""
    layout = [] if settings.layout == "auto" else ["--layout", settings.layout]
    words = ["--data", str(settings.data), *layout, "--classes", str(folder / "class_map.json"),
             "--class-weights", str(folder / "class_weights.json")]
    return f"python -m minisegnet.train {shlex.join(words)}"


class _Files:
    """The pairs of files of a data set, in the state that they are in."""

    def __init__(self, settings):
        where = settings.data, settings.layout
        self.declared = datasets.declared_classes(*where, settings.classes)
        self.items = {"train": datasets.list_pairs(*where, "train")}
        self.no_val = None  # why there is no validation set
        try:
            self.items["val"] = datasets.list_pairs(*where, "val")
        except UserError as error:
            self.no_val = str(error)
        # The first mask says of what kind they are meant to be, as in training.
        are_rgb = files.shows_colours(self.items["train"][0][1])
        if self.declared is not None and are_rgb:
            with suppress(UserError):  # no colours declared: what occurs is told all the same
                self.declared = self.declared.through_colours()
        self.look = partial(look_at_files,
                            colours=self.declared is not None and self.declared.is_rgb,
                            grey_as_ids=self.declared is not None or not are_rgb)

    @staticmethod
    def sample(pair, classes):
        """Return a pair as a `Sample`; UserError if it is none."""
        image = files.read_image(pair[0])
        raw = files.read_raw_mask(pair[1], colours=classes.is_rgb)
        if image.shape[:2] != raw.shape[:2]:
            raise UserError(f"image {pair[0]} and mask {pair[1]} differ in size")
        return datasets.Sample(image, classes.to_ids(raw), pair[0].stem)


class _FloorPlans:
    """The generated floor plans, drawn anew at every look, so that none stays in memory."""

    no_val = None

    def __init__(self, settings):
        self.declared = datasets.declared_classes(settings.data, classes=settings.classes)
        self.items = {split: [(split, i) for i in range(len(datasets.FloorPlans(split)))]
                      for split in SPLITS}

    @staticmethod
    def sample(item, classes=None):
        """Return a plan as a `Sample`; without `classes`, with the values that it is drawn in."""
        split, index = item
        return datasets.FloorPlans(split, classes=classes)[index]

    def look(self, item):
        """Look at a plan; see `mask_scan.scan`."""
        sample = self.sample(item)
        return facts_of(sample.mask), [], sample.name


if __name__ == "__main__":
    sys.exit(run_command(main))
