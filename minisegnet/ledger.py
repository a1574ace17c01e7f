"""`python -m minisegnet.ledger`: which class does the gradient come from, under which loss?

    python -m minisegnet.ledger
    python -m minisegnet.ledger runs/x
    python -m minisegnet.ledger runs/x --losses ce ce:enet ce:inverse dice --by logit
    python -m minisegnet.ledger --data data/CamVid --image-size 180 240

Every loss sees the same batches at the same prediction: the uniform one, from which a network
starts, and that of a trained model. Prints tables; leaves ledger.json and ledger.png.
"""

import json
import sys
from argparse import Namespace
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minisegnet import datasets, plots
from minisegnet.cli import ArgumentParser, fraction, non_negative_int, number, positive_int
from minisegnet.comparison_training import choices_of
from minisegnet.errors import UserError, run_command
from minisegnet.evaluate import same_data
from minisegnet.imbalance.gradient_ledger import gradient_ledger
from minisegnet.imbalance.rarity import rare_classes
from minisegnet.imbalance.weighting import SCHEMES
from minisegnet.layers import inference_mode
from minisegnet.losses.criterion import LOSSES
from minisegnet.ops.upsample import upsample_bilinear_forward
from minisegnet.plots.ledger import ledgers_side_by_side
from minisegnet.tables import ruled
from minisegnet.training.build import build_criterion, build_weights
from minisegnet.training.flags import MAX_SIDE
from minisegnet.training.run_folder import json_ready, write_text
from minisegnet.training.settings import parse_settings, size_in_training
from minisegnet.training.trained_model import checkpoint_path, load_checked, open_data

# The flags whose default is what the run says, where there is one.
OF_RUN = ("data", "layout", "image_size", "class_weights", "label_smoothing", "batch_size", "seed")
RESULTS = ("ledger.json", "ledger.png")
DEFAULT_LOSSES = ("ce", "focal:none", "weighted", "focal", "dice", "combined")
UNIFORM, TRAINED = "uniform prediction", "prediction of the model"
EQUAL = 1e-6  # shares that differ by less are called the same: float32 keeps seven digits


def build_parser():
    """Return the parser of all flags."""
    parser = ArgumentParser(
        prog="python -m minisegnet.ledger",
        description="Show which class's pixels the gradient of a loss comes from, loss by loss on "
                    "the same batches.",
        epilog="Names: ce is cross-entropy without class weights. weighted is cross-entropy, and "
               "focal, dice, combined and all other losses of minisegnet.train are themselves, "
               "with the weights of --class-weights. NAME:SCHEME sets the weights of one of them: "
               f"ce:enet, focal:none. SCHEME is {', '.join(SCHEMES)}.")
    add = parser.add_argument
    add("checkpoint", metavar="RUN|FILE.npz", nargs="?",
        help="a run folder (its best.npz) or a checkpoint, whose prediction is taken as well, and "
             "whose data and settings are the defaults")
    add("--losses", nargs="+", metavar="NAME",
        help=f"what to set side by side, see below (default: {' '.join(DEFAULT_LOSSES)})")
    add("--by", choices=("target", "logit"), default="target",
        help="share out the gradient by the class of its pixel, or by the class of its logit")
    add("--class-weights", metavar="|".join(SCHEMES) + "|FILE.json",
        help="weights of the classes, alpha of focal (default: those of the run if it has any, "
             "else sqrt)")
    add("--label-smoothing", type=fraction,
        help="of cross-entropy (default: that of the run, or 0)")
    add("--data", help="floorplans, or the folder of a data set (default: that of the run, or "
                       "floorplans)")
    add("--layout", choices=("auto", "camvid", "voc", "folder"),
        help="default: that of the run, or auto")
    add("--classes", metavar="FILE",
        help="which mask values are which classes: a class_map.json, a .py table or a .txt file "
             "of names (default: as in the run, or what the data declare)")
    add("--image-size", type=number(int, least=1, most=MAX_SIDE), nargs=2, metavar=("H", "W"),
        help="size of the pictures (default: that of the run, or of the first picture)")
    add("--batch-size", type=positive_int,
        help="images in a batch (default: that of the run, or 8)")
    add("--batches", type=positive_int, default=8,
        help="batches of the training set, over which shares are averaged")
    add("--seed", type=non_negative_int,
        help="of the choice of batches (default: that of the run, or 0)")
    add("--output-dir", metavar="FOLDER",
        help="for the results (default: ledger in the run folder, or ledgers/...); an earlier "
             "ledger there is replaced")
    return parser


def main(argv=None):
    arguments = build_parser().parse_args(argv)
    path = model = meta = None
    if arguments.checkpoint is not None:
        path = checkpoint_path(arguments.checkpoint)
        model, meta = load_checked(path)
    settings = settings_of(arguments, meta)
    choices = choices_of(arguments.losses or DEFAULT_LOSSES, settings.class_weights)
    for choice in choices:
        if choice.loss not in LOSSES:
            raise UserError(f"--losses {choice.name}: {choice.loss!r} is not weighted or one of "
                            f"{', '.join(LOSSES)}")
    folder = results_folder(arguments, path, settings)
    dataset = open_training_data(arguments, settings, meta, path)
    statistics = dataset.check()
    settings.image_size = size_in_training(settings, dataset[0].mask.shape)
    criteria = {choice.name: criterion_of(choice, settings, statistics, dataset.class_names)
                for choice in choices}

    pixels, images, books = keep_books(settings, arguments.batches, dataset, criteria, model)
    rare, rule = rare_classes(statistics.pixels)
    shares = {state: {name: of_loss[f"share_by_{arguments.by}"]
                      for name, of_loss in of_state.items()} for state, of_state in books.items()}
    print("{} of {}: {} images at {}x{}, batches of {}; class weights {}; rare: {}".format(
        settings.split, settings.data, images, *settings.image_size, settings.batch_size,
        settings.class_weights, rule))
    for state, of_state in books.items():
        print(f"\n% of the gradient by {arguments.by} class, at the {state}")
        print(table(dataset.class_names, pixels, of_state, shares[state], rare))
    notes = notes_on(shares, pixels, dataset.class_names)
    print("", *notes, sep="\n", flush=True)

    write_text(folder_for(folder) / RESULTS[0], json.dumps(json_ready({
        "settings": {**vars(arguments), **{name: getattr(settings, name) for name in OF_RUN}},
        "classes": dataset.class_names, "share_of_pixels": pixels, "rare": rare, "rare_is": rule,
        "weights": {name: criterion.weight for name, criterion in criteria.items()},
        "notes": notes, "states": books}), indent=1))
    plots.save(ledgers_side_by_side(pixels, shares, dataset.class_names, dataset.palette, rare,
                                    f"{arguments.by} class"), folder / RESULTS[1])
    print(f"see {folder}")
    return 0


def open_training_data(arguments, settings, meta, path):
    """Return the data set whose gradient is asked for; UserError if it is not the model's."""
    if meta is None:
        return datasets.open_dataset(settings.data, settings.layout, settings.split,
                                     classes=arguments.classes,
                                     ignore_index=settings.ignore_index)
    return open_data(settings.data, settings.layout, settings.split, classes=meta["classes"],
                     path=path, given=arguments.classes,
                     own_data=same_data(settings.data, meta["config"]["data"]))


def settings_of(arguments, meta):
    """Return the settings of a training: the defaults, then the run's, then the flags'."""
    config = {} if meta is None else {**meta["config"], "image_size": meta["image_size"],
                                      "ignore_index": meta["classes"]["ignore_index"]}
    settings = Namespace(**{**vars(parse_settings([])), **config})
    if arguments.data is not None:
        settings.layout = "auto"
    if settings.class_weights == "none":
        settings.class_weights = "sqrt"  # "weighted" is to be something else than "ce"
    for name in OF_RUN:
        if getattr(arguments, name) is not None:
            setattr(settings, name, getattr(arguments, name))
    return settings


def criterion_of(choice, settings, statistics, class_names):
    """Return the `Criterion` of a `Choice`; UserError where its settings contradict each other."""
    weights = build_weights(choice.class_weights, statistics, class_names)
    smoothing = settings.label_smoothing if choice.loss == "ce" else 0.0
    try:
        return build_criterion(Namespace(**{**vars(settings), "label_smoothing": smoothing}),
                               choice.loss, weights, statistics.frequency)
    except ValueError as error:
        raise UserError(f"--losses {choice.name}: {error} ({choice.loss}:none has no "
                        f"weights)") from error


def keep_books(settings, number, dataset, criteria, model):
    """Return (shares of the pixels (K,), images, {state: {name of a criterion: `means`}}).

    `number` batches are taken, as in a first epoch; without a `model` there is one state, the
    uniform prediction.
    """
    transform = datasets.Resize(tuple(settings.image_size), ignore_index=settings.ignore_index)
    loader = datasets.DataLoader(dataset, settings.batch_size, shuffle=True, seed=settings.seed,
                                 transform=transform)
    K = dataset.num_classes
    pixels, images, kept = [], 0, {}
    with closing(loader.batches(1)) as batches:
        for batch in tqdm(islice(batches, number), total=min(number, len(loader)), desc="ledger",
                          leave=False, disable=None):
            for state, logits in predictions(batch, K, model):
                for name, criterion in criteria.items():
                    kept.setdefault(state, {}).setdefault(name, []).append(
                        gradient_ledger(criterion, logits, batch.target))
            counts = np.bincount(batch.target[batch.target != settings.ignore_index], minlength=K)
            pixels.append(counts / max(1, counts.sum()))
            images += len(batch.images)
    books = {state: {name: means(ledgers) for name, ledgers in of_state.items()}
             for state, of_state in kept.items()}
    return np.mean(pixels, axis=0), images, books


def predictions(batch, num_classes, model):
    """Yield the states (title, logits (N, H, W, K)) in which the gradient of `batch` is taken."""
    yield UNIFORM, np.zeros((*batch.target.shape, num_classes), np.float32)
    if model is not None:
        with inference_mode():
            coarse = model.forward_coarse(batch.images)
        yield TRAINED, upsample_bilinear_forward(coarse, batch.target.shape[1:])[0]


def means(ledgers):
    """Return what several batches have in common: means, in which every batch counts the same.

    "matrix" and "signed" are as in `Ledger`, but shares of their batch's L1 norm.
    """
    return {"loss": np.mean([ledger.loss for ledger in ledgers]),
            "total": np.mean([ledger.total for ledger in ledgers]),
            **{key: np.mean([getattr(ledger, key) for ledger in ledgers], axis=0)
               for key in ("share_by_target", "share_by_logit")},
            **{key: np.mean([getattr(ledger, key) / (ledger.total or 1) for ledger in ledgers],
                            axis=0) for key in ("matrix", "signed")}}


def table(class_names, pixels, books, shares, rare):
    """Return the table of one state: classes from the most frequent to the rarest, then sums."""
    columns = [pixels, *shares.values()]
    rows = [("class", "pixels", *shares)]
    for c in np.argsort(-pixels, kind="stable"):
        rows.append((class_names[c], *(f"{100 * column[c]:.3f}" for column in columns)))
    if rare.any():
        rows.append((f"= the {rare.sum()} rare",
                     *(f"{100 * column[rare].sum():.3f}" for column in columns)))
    for label, key in (("loss", "loss"), ("L1 norm", "total")):
        rows.append((label, "", *(f"{of_loss[key]:.4f}" for of_loss in books.values())))
    return "\n".join(ruled(rows))


def notes_on(shares, pixels, class_names):
    """Return what the numbers say: losses with the same shares, and classes that are missing."""
    notes, names = [], list(shares[UNIFORM])
    for i, first in enumerate(names):
        for name in names[i + 1:]:
            apart = {state: np.abs(of_state[first] - of_state[name])
                     for state, of_state in shares.items()}  # (K,)
            if apart[UNIFORM].max() < EQUAL:
                notes.append(f"at the uniform prediction {name} has exactly the shares of {first} "
                             f"(largest difference {apart[UNIFORM].max():.1g})"
                             + _where_they_part(apart, class_names))
    absent = [name for name, share in zip(class_names, pixels) if share == 0]
    if absent:
        notes.append(f"in none of these batches: {', '.join(absent)}; --batches N takes more")
    return notes


def _where_they_part(apart, class_names):
    if TRAINED not in apart:
        return ""
    c = int(apart[TRAINED].argmax())
    return (f"; at the model's they differ, most in {class_names[c]}, by "
            f"{100 * apart[TRAINED][c]:.2g} percentage points")


def results_folder(arguments, path, settings):
    """Return the folder for the results; UserError if it holds something else."""
    if arguments.output_dir is not None:
        folder = Path(arguments.output_dir)
    elif path is None:
        folder = Path("ledgers") / Path(settings.data).resolve().name
    else:
        words = ["ledger"] + ([path.stem] if path.stem != "best" else [])
        words += [Path(settings.data).resolve().name] if arguments.data is not None else []
        folder = path.parent / "_".join(words)
    if folder.exists() and (not folder.is_dir() or (
            any(folder.iterdir()) and not (folder / RESULTS[0]).exists())):
        raise UserError(f"{folder} is there already and holds no earlier ledger; give another "
                        f"--output-dir")
    return folder


def folder_for(folder):
    """Make `folder`, without earlier results; return it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in RESULTS:
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror}); give another "
                        f"--output-dir") from error
    return folder


if __name__ == "__main__":
    sys.exit(run_command(main))
