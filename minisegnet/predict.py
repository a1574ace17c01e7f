"""`python -m minisegnet.predict`: segment pictures of any size with a trained model.

    python -m minisegnet.predict runs/x street.jpg
    python -m minisegnet.predict runs/x/last.npz photos/ more/plan.png --output masks/ --tta

For every picture NAME, the output folder holds NAME.png, a mask with the values that the classes
had in the masks of the training (a palette PNG, or an RGB one where these were colours);
NAME_overlay.png, the picture under their colours; and with --probabilities NAME.npz. legend.png
names values and colours.

A picture is resized to the training size, as in the validation, and the logits are enlarged to its
own size. One more than twice as high or wide as the pictures of the training is taken to show more
of the world: it is brought to their scale, and predicted in windows that overlap by half. If it
shows the same in finer detail instead, --no-sliding-window resizes it like any other.
"""

import sys
import tempfile
import zipfile
from argparse import BooleanOptionalAction
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from minisegnet import plots
from minisegnet.backend import select_device
from minisegnet.cli import ArgumentParser, number, positive_int
from minisegnet.datasets import ClassMap
from minisegnet.datasets.files import read_image
from minisegnet.datasets.pictures import find_pictures, mask_picture, overlaid
from minisegnet.datasets.transforms import normalize, resize_image
from minisegnet.errors import UserError, run_command
from minisegnet.layers import inference_mode
from minisegnet.models.unet import LEAST_SIDE
from minisegnet.plots.figures import class_legend
from minisegnet.training.checkpoint import load_model, write_atomically
from minisegnet.training.evaluation import coarse_logits
from minisegnet.training.sliding_window import (
    enlarged_rows,
    grid_windows,
    predict_windows,
    scaled_size,
)
from minisegnet.training.trained_model import checkpoint_path, class_map_of

LARGE = 2  # times the height or width of the pictures in training: windows from there on
MAX_SIDE = 8192  # of a picture in the network, px
TINY = 1e-37  # stands in for a probability of 0, which has no logarithm
CLASSES_SHOWN = 4
LEGEND = "legend.png"


class Predictor(NamedTuple):
    """A model with what it takes to run it on pictures as it was trained."""

    model: object
    classes: ClassMap  # K classes, their values in masks and their colours
    window: tuple  # (h, w), the size in training
    scale: tuple  # (vertical, horizontal), of the pictures in training
    cell: int  # px of a window per pixel of the coarse logits
    flip: bool  # average with the prediction of the mirror image
    batch_size: int  # windows in one forward

    def working_size(self, size, sliding=None):
        """Return the size (H, W) to predict a picture of `size` at.

        `sliding` demands windows, or forbids them; by default a large picture has them.
        """
        if sliding is None:
            sliding = any(length * scale > LARGE * side
                          for length, scale, side in zip(size, self.scale, self.window))
        return scaled_size(size, self.window, self.scale, self.cell) if sliding else self.window

    def probability_rows(self, image, scaled):
        """Yield the rows (K, W) of the class probabilities of `image` (H, W, 3) uint8.

        `scaled` is the size the windows are cut from. Like the validation, it enlarges logits:
        those of blended probabilities are their logarithms.
        """
        probs = predict_windows(self._coarse_probs, resize_image(image, scaled), self.window,
                                cell=self.cell, batch_size=self.batch_size)
        logits = (np.log(np.maximum(row, TINY)) for row in probs)
        for row in enlarged_rows(logits, -(-scaled[0] // self.cell), image.shape[:2]):
            views = row.reshape(-1, self.classes.num_classes, image.shape[1])
            yield _softmax(views, axis=1).mean(axis=0)

    def _coarse_probs(self, windows):
        """Return probabilities (N, h, w, K) of windows; with `flip` (N, h, w, 2K), two views."""
        images = normalize(windows)
        with inference_mode():
            views = [coarse_logits(self.model, images)]
            if self.flip:
                mirrored = coarse_logits(self.model, np.ascontiguousarray(images[:, :, ::-1]))
                views.append(mirrored[:, :, ::-1])
        return np.concatenate([_softmax(view, axis=3) for view in views], axis=3)


def _softmax(logits, axis):
    probs = np.exp(logits - logits.max(axis=axis, keepdims=True))
    probs /= probs.sum(axis=axis, keepdims=True)
    return probs


def load_predictor(path, *, image_size=None, flip=False, batch_size=2, xp=np):
    """Return the `Predictor` of a checkpoint, or of best.npz in a run folder.

    `image_size` [h, w] stands in for the size in training; the model computes on the device of
    the array module `xp`. Raises UserError if there is none, it
    does not know its classes.
    """
    model, checkpoint = load_model(checkpoint_path(path))
    meta = checkpoint.meta
    try:
        classes = class_map_of(meta["classes"], checkpoint.path)
        window = tuple(image_size or meta["image_size"])
        scale = tuple(a / b for a, b in zip(window, meta["original_size"], strict=True))
        if classes.num_classes != model.num_classes:
            raise ValueError(f"{classes.num_classes} names for {model.num_classes} classes")
    except UserError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{checkpoint.path} does not say what its classes and sizes are, which "
                        f"runs of this version save ({error}); train again") from error
    with inference_mode():
        coarse = model.forward_coarse(np.zeros((1, 64, 64, 3), np.float32))
    return Predictor(model.to(xp), classes, window, scale, 64 // coarse.shape[1], flip, batch_size)


class Results(NamedTuple):
    """The files a picture ends in; None for what was not asked for."""

    mask: Path
    overlay: Path
    probabilities: Path


def plan_results(pictures, folder, *, overlay, probabilities, overwrite):
    """Return the `Results` of each picture in `folder`.

    Raises UserError if two of them would share a file, a picture would be written over, or,
    without `overwrite`, anything but the legend is there already.
    """
    plan, taken = [], {folder / LEGEND: "the legend"}
    inputs = {_file_id(path) for path in pictures}
    for picture in pictures:
        results = Results(folder / f"{picture.stem}.png",
                          folder / f"{picture.stem}_overlay.png" if overlay else None,
                          folder / f"{picture.stem}.npz" if probabilities else None)
        for path in filter(None, results):
            if path in taken:
                raise UserError(f"{taken[path]} and {picture} would both be written to {path}; "
                                f"rename one, or predict them into different folders")
            if path.exists() and _file_id(path) in inputs:
                raise UserError(f"{path} is a picture to predict and would be written over; give "
                                f"another --output")
            taken[path] = picture
        plan.append(results)
    there = [path for path in taken if path.exists() and path.name != LEGEND]
    if there and not overwrite:
        raise UserError(f"{there[0]} is there already ({len(there)} of the results in all); give "
                        f"another --output, or --overwrite")
    return plan


def _file_id(path):
    """Return what two paths of one file have in common, however they are written."""
    status = path.stat()
    return status.st_dev, status.st_ino


def write_legend(path, predictor, overwrite):
    """Write the classes, their mask values and colours as a picture, unless it is there already.

    Raises UserError, without `overwrite`, if there is another.
    """
    classes = predictor.classes
    labels = [f"{value} {name}" for value, name in zip(classes.values, classes.names)]
    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder) / LEGEND
        plots.save(_legend(labels, classes.palette), drawn)
        content = drawn.read_bytes()
    if path.exists() and not overwrite:
        if path.read_bytes() != content:
            raise UserError(f"{path} is there already and not the legend of these classes; give "
                            f"another --output, or --overwrite")
        return
    write_atomically(path, lambda file: file.write(content))


def _legend(labels, palette):
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    class_legend(figure, labels, palette)
    box = figure.get_tightbbox()  # inches, of the legend alone, however long the names
    figure.set_size_inches(box.width + 0.2, box.height + 0.2)
    return figure


def predict_picture(predictor, image, scaled, results, progress=lambda rows: rows):
    """Predict `image` (H, W, 3) uint8 at size `scaled`, write `results`, and return the classes.

    The classes are (H, W) uint8. The mask is written last: where it is, the rest is too.
    """
    H, W, _ = image.shape
    mask = np.empty((H, W), np.uint8)

    def rows():
        for y, probs in enumerate(progress(predictor.probability_rows(image, scaled))):
            mask[y] = probs.argmax(axis=0)
            yield probs.T

    if results.probabilities is None:
        for _ in rows():
            pass
    else:
        write_atomically(results.probabilities,
                         lambda file: _write_probabilities(file, rows(), (H, W), predictor))
    if results.overlay is not None:
        # The noise of a photograph hardly shrinks: at Pillow's level 6 it takes three times as
        # long for a seventh less.
        _write_png(results.overlay, overlaid(image, mask, predictor.classes.palette),
                   compress_level=1)
    _write_png(results.mask, mask_picture(mask, predictor.classes))
    return mask


def _write_png(path, picture, **options):
    write_atomically(path, lambda file: picture.save(file, "png", **options))


def _write_probabilities(file, rows, size, predictor):
    """Write an .npz of probs (H, W, K) float32, class_names and mask_values (K,) or (K, 3).

    Row by row: `np.savez` would want all of `probs` in memory.
    """
    with zipfile.ZipFile(file, "w") as archive:
        with archive.open("probs.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, {
                "descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)),
                "fortran_order": False, "shape": (*size, predictor.classes.num_classes)})
            for row in rows:
                member.write(np.ascontiguousarray(row, np.float32).data)
        for name, values in (("class_names", predictor.classes.names),
                             ("mask_values", predictor.classes.values)):
            with archive.open(f"{name}.npy", "w") as member:
                np.save(member, np.array(values))


def _shares(mask, names):
    """Return the classes by their share of the pixels, as text, the largest few."""
    share = np.bincount(mask.ravel(), minlength=len(names)) / mask.size
    order = [k for k in np.argsort(-share, kind="stable") if share[k] > 0]
    text = ", ".join(("<1%" if share[k] < 0.005 else f"{share[k]:.0%}") + f" {names[k]}"
                     for k in order[:CLASSES_SHOWN])
    return text + (f", and {more} more" if (more := len(order) - CLASSES_SHOWN) > 0 else "")


def build_parser():
    """Return the parser of all flags."""
    parser = ArgumentParser(
        prog="python -m minisegnet.predict",
        description="Segment pictures of any size with a trained model.")
    parser.add_argument("run", metavar="RUN|FILE.npz",
                        help="a run folder (its best.npz) or a checkpoint")
    parser.add_argument("pictures", nargs="+", metavar="PICTURE",
                        help="pictures, or folders of them (.jpg, .jpeg, .png)")
    parser.add_argument("--output", default="predictions", metavar="FOLDER",
                        help="where the results go")
    parser.add_argument("--overwrite", action="store_true", help="replace results of before")
    parser.add_argument("--no-overlay", action="store_true", help="write no NAME_overlay.png")
    parser.add_argument("--probabilities", action="store_true",
                        help="write NAME.npz too: probs (H, W, K) float32, class_names and "
                             "mask_values; 4 bytes a pixel and class")
    parser.add_argument("--image-size", nargs=2, metavar=("H", "W"),
                        type=number(int, least=LEAST_SIDE, most=MAX_SIDE),
                        help="of a picture, or of a window, in the network (default: the size in "
                             "training)")
    parser.add_argument("--sliding-window", action=BooleanOptionalAction,
                        help="windows for every picture, or for none (default: for those more "
                             "than twice as high or wide as in training)")
    parser.add_argument("--batch-size", type=positive_int, default=2,
                        help="windows in one forward")
    parser.add_argument("--tta", action="store_true",
                        help="average with the prediction of the mirror image: twice the time")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto",
                        help="where to compute")
    return parser


def main(argv=None):
    settings = build_parser().parse_args(argv)
    predictor = load_predictor(settings.run, image_size=settings.image_size, flip=settings.tta,
                               batch_size=settings.batch_size,
                               xp=select_device(settings.device))
    pictures, folder = find_pictures(settings.pictures), Path(settings.output)
    plan = plan_results(pictures, folder, overlay=not settings.no_overlay,
                        probabilities=settings.probabilities, overwrite=settings.overwrite)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder} ({error.strerror}); give another "
                        f"--output") from error
    write_legend(folder / LEGEND, predictor, settings.overwrite)
    explained = settings.sliding_window is not None
    for picture, results in zip(pictures, plan):
        image = read_image(picture)
        size = image.shape[:2]
        scaled = predictor.working_size(size, settings.sliding_window)
        down, across = map(len, grid_windows(scaled, predictor.window, cell=predictor.cell))
        how = "at {}x{}".format(*scaled)
        if down * across > 1:
            how = f"{down}x{across} windows of {{}}x{{}} {how}".format(*predictor.window)
            if not explained:
                print(f"{picture.name} is more than twice as large as the pictures in training, "
                      f"and taken to show more; if it shows the same in finer detail, use "
                      f"--no-sliding-window", flush=True)
                explained = True
        mask = predict_picture(
            predictor, image, scaled, results, progress=lambda rows: tqdm(
                rows, total=size[0], desc=picture.name, unit="row", leave=False, disable=None,
                delay=1))
        print(f"{picture.name} {size[0]}x{size[1]}: {how} -> {results.mask}; "
              f"{_shares(mask, predictor.classes.names)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
