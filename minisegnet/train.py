"""`python -m minisegnet.train`: train a model on floor plans or real pictures.

    python -m minisegnet.train
    python -m minisegnet.train --loss ce --class-weights none
    python -m minisegnet.train --data data/CamVid --model deeplab_light --image-size 180 240 \\
        --augment standard --loss ce --class-weights enet --epochs 40 --lr 2e-3
"""

import json
import sys
import tomllib
from pathlib import Path

import numpy as np

from minisegnet import datasets, optim, plots
from minisegnet.backend import select_device
from minisegnet.cli import (
    ArgumentParser,
    fraction,
    non_negative_float,
    non_negative_int,
    number,
    positive_float,
    positive_int,
)
from minisegnet.datasets.transforms import normalize
from minisegnet.errors import UserError, run_command
from minisegnet.imbalance.weighting import SCHEMES, class_weights
from minisegnet.losses.criterion import Criterion
from minisegnet.models import MODEL_NAMES, build_model
from minisegnet.training import run_folder
from minisegnet.training.checkpoint import load_weights, read_checkpoint
from minisegnet.training.evaluation import predict_batch
from minisegnet.training.trainer import Trainer

DEFAULT_LR = {"mini": 5e-2}  # a hundred thousand weights bear larger steps than millions
MAX_WEIGHT = 1e6  # of a class, in a file
MAX_SIDE = 8192  # of a picture in training, px


def build_parser():
    """Return the parser of all flags; the defaults train `mini` on floor plans in a minute."""
    parser = ArgumentParser(
        prog="python -m minisegnet.train",
        description="Train a segmentation model and leave curves, pictures and checkpoints.")
    parser.add_argument("--config", metavar="FILE.toml",
                        help="settings from a file; the command line wins")

    data = parser.add_argument_group("data")
    data.add_argument("--data", default="floorplans",
                      help="floorplans (generated), or the folder of a data set")
    data.add_argument("--layout", choices=("auto", "camvid", "folder"), default="auto",
                      help="camvid, folder (images and masks), or what the folders look like")
    data.add_argument("--image-size", type=number(int, least=1, most=MAX_SIDE), nargs=2,
                      metavar=("H", "W"),
                      help="size in training (default: that of the first picture)")
    data.add_argument("--augment", choices=("none", "standard"), default="none",
                      help="standard: flip, scale 0.7 to 1.6, crop, brightness")
    data.add_argument("--ignore-index", type=number(int, least=0, most=255), default=255,
                      help="label that counts in no loss and no score")
    data.add_argument("--num-workers", type=non_negative_int, default=2,
                      help="threads that load ahead; 0 loads in the training step")

    loss = parser.add_argument_group("model and loss")
    loss.add_argument("--model", choices=MODEL_NAMES, default="mini",
                      help="network to train")
    loss.add_argument("--init-from", metavar="CHECKPOINT", help="start from these weights")
    loss.add_argument("--batch-norm-momentum", type=number(float, above=0, most=1),
                      default=0.1, help="share of the new batch in the running statistics")
    loss.add_argument("--loss", choices=("ce", "focal", "dice", "combined"),
                      default="combined",
                      help="loss to minimise")
    loss.add_argument("--class-weights", default="sqrt", metavar="|".join(SCHEMES) + "|FILE.json",
                      help="weights of ce and dice, alpha of focal")
    loss.add_argument("--focal-gamma", type=non_negative_float, default=2.0,
                      help="of focal and combined: how far it turns from easy pixels")
    loss.add_argument("--focal-alpha", type=positive_float, default=1.0,
                      help="one factor on all of focal; per class, use --class-weights")
    loss.add_argument("--lambda-focal", type=non_negative_float, default=1.0,
                      help="of combined: share of focal")
    loss.add_argument("--lambda-dice", type=non_negative_float, default=1.0,
                      help="of combined: share of dice")
    loss.add_argument("--label-smoothing", type=fraction, default=0.0, help="with ce only")

    training = parser.add_argument_group("training")
    training.add_argument("--epochs", type=positive_int, default=8,
                          help="passes over the training set")
    training.add_argument("--batch-size", type=positive_int, default=8,
                          help="images in a step, at least 2")
    training.add_argument("--optimizer", choices=("adamw", "sgd", "rmsprop"), default="adamw",
                          help="rule of the update")
    training.add_argument("--lr", type=positive_float,
                          help="peak or constant rate (default: 0.05 for mini, else 0.002)")
    training.add_argument("--momentum", type=fraction, default=0.9, help="of sgd and rmsprop")
    training.add_argument("--weight-decay", type=non_negative_float, default=0.01,
                          help="pull of every weight towards 0")
    training.add_argument("--no-decay-norm-and-bias", action="store_true",
                          help="adamw: spare batch norms and biases from weight decay")
    training.add_argument("--schedule", default="onecycle",
                          choices=("constant", "step", "cosine", "restarts", "poly", "onecycle"),
                          help="course of the learning rate")
    training.add_argument("--step-size", type=positive_float, default=10, metavar="EPOCHS",
                          help="of step: epochs between divisions by ten")
    training.add_argument("--restart-period", type=positive_float, default=20, metavar="EPOCHS",
                          help="of restarts: length of the first period")
    training.add_argument("--restart-mult", type=positive_int, default=2,
                          help="of restarts: each period is so many times the last")
    training.add_argument("--min-lr", type=non_negative_float, default=0.0,
                          help="of cosine and restarts: the lowest rate")
    training.add_argument("--warmup-epochs", type=non_negative_float, default=0.0,
                          metavar="EPOCHS",
                          help="epochs in which the rate rises to the schedule's start")
    training.add_argument("--clip-norm", type=non_negative_float, default=0.0,
                          help="0: no clipping")
    training.add_argument("--seed", type=non_negative_int, default=0,
                          help="of weights, order and augmentation")
    training.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto",
                          help="where to compute")

    output = parser.add_argument_group("output")
    output.add_argument("--val-every", type=positive_int, default=1, metavar="EPOCHS",
                        help="epochs between validations")
    output.add_argument("--save-every", type=non_negative_int, default=0, metavar="EPOCHS",
                        help="epochs between epoch_NNNN.npz; 0: none")
    output.add_argument("--output-dir", help="new folder of the run (default: runs/...)")
    return parser


def parse_settings(argv):
    """Return the settings: defaults, then --config, then the command line."""
    parser = build_parser()
    path = parser.parse_args(argv).config
    if path is not None:
        try:
            config = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise UserError(f"cannot read --config {path} ({error.strerror})") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"--config {path} is not TOML: {error}") from error
        # The file's lines become flags in front of the real ones: one set of checks for both.
        flags = _as_flags(parser, path, config)
        try:
            parser.parse_args(flags)
        except UserError as error:
            raise UserError(f"--config {path}: {error}") from error
        argv = flags + list(sys.argv[1:] if argv is None else argv)
    settings = parser.parse_args(argv)
    if settings.lr is None:
        settings.lr = DEFAULT_LR.get(settings.model, 2e-3)
    _refuse_contradictions(settings)
    return settings


def _refuse_contradictions(settings):
    """Raise UserError for flags that are fine one by one and senseless together."""
    if settings.batch_size < 2:
        raise UserError("--batch-size 1: the image pooling of these models has one value per "
                        "image and channel, so its batch norm needs a batch of at least 2")
    if settings.label_smoothing and settings.loss != "ce":
        raise UserError(f"--label-smoothing goes with --loss ce, not with {settings.loss}; "
                        f"leave it out")
    if settings.loss == "combined" and settings.lambda_focal == settings.lambda_dice == 0:
        raise UserError("--lambda-focal 0 and --lambda-dice 0 leave no loss; make one positive")
    if settings.warmup_epochs > settings.epochs:
        raise UserError(f"--warmup-epochs {settings.warmup_epochs:g} is longer than --epochs "
                        f"{settings.epochs}; shorten it")
    if settings.schedule in ("cosine", "restarts") and settings.min_lr > settings.lr:
        raise UserError(f"--min-lr {settings.min_lr:g} is above --lr {settings.lr:g}; lower it")


def _as_flags(parser, path, config):
    """Return the settings of a TOML file as the flags that say the same."""
    known = {action.dest: action for action in parser._actions}
    flags = []
    for key, value in config.items():
        action = known.get(key.replace("-", "_"))
        if action is None or action.dest in ("config", "help"):
            raise UserError(f"--config {path}: {key!r} is not a setting; see --help for the names")
        flag = action.option_strings[0]
        if action.nargs == 0:
            if not isinstance(value, bool):
                raise UserError(f"--config {path}: {key} is true or false, not {value!r}")
            flags += [flag] if value else []
        elif isinstance(value, list) != (action.nargs is not None):
            wanted = f"a list of {action.nargs}" if action.nargs else "one value, not a list"
            raise UserError(f"--config {path}: {key} is {wanted}")
        elif isinstance(value, list):
            flags += [flag, *map(str, value)]
        else:
            flags += [f"{flag}={value}"]
    return flags


def build_weights(choice, statistics, class_names):
    """Return class weights (K,) by scheme, or from a JSON file; None for "none"."""
    if choice == "none":
        return None
    if choice in SCHEMES:
        return class_weights(statistics, choice)
    if not choice.endswith(".json"):
        raise UserError(f"--class-weights {choice!r} is not one of {', '.join(SCHEMES)} or a "
                        f".json file")
    try:
        content = json.loads(Path(choice).read_text(encoding="utf-8-sig"))
        values = content["weights"] if isinstance(content, dict) and "weights" in content \
            else content
        if isinstance(values, dict):
            values = [values[name] for name in class_names]
        weights = np.array(values, dtype=np.float64)
    except OSError as error:
        raise UserError(f"cannot read --class-weights {choice} ({error.strerror})") from error
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(f"--class-weights {choice} is not JSON with a list of numbers "
                        f"({error})") from error
    except KeyError as error:
        raise UserError(f"--class-weights {choice} has no weight for class {error}") from error
    K = len(class_names)
    in_range = (weights >= 0) & (weights <= MAX_WEIGHT)  # neither NaN nor infinite
    if weights.shape != (K,) or not in_range.all() or not weights.any():
        raise UserError(f"--class-weights {choice} must hold {K} weights, one per class, >= 0 and "
                        f"<= {MAX_WEIGHT:g}, not all 0")
    return weights


def build_schedule(settings, steps_per_epoch):
    """Return the schedule(step) of the flags; flags count epochs, schedules count steps."""
    lr = settings.lr
    warmup = round(settings.warmup_epochs * steps_per_epoch)
    # The schedule proper starts where the warm-up ends, and has what is left of the run.
    total = max(1, settings.epochs * steps_per_epoch - warmup)
    if settings.schedule == "constant":
        schedule = optim.ConstantLR(lr)
    elif settings.schedule == "step":
        schedule = optim.StepLR(lr, max(1, round(settings.step_size * steps_per_epoch)))
    elif settings.schedule == "cosine":
        schedule = optim.CosineAnnealingLR(lr, total, settings.min_lr)
    elif settings.schedule == "restarts":
        period = max(1, round(settings.restart_period * steps_per_epoch))
        schedule = optim.CosineAnnealingWarmRestarts(lr, period, settings.restart_mult,
                                                     settings.min_lr)
    elif settings.schedule == "poly":
        schedule = optim.PolynomialLR(lr, total)
    else:
        schedule = optim.OneCycleLR(lr, total)
    return optim.LinearWarmup(schedule, warmup) if warmup else schedule


def build_optimizer(settings, model):
    """Return the optimizer of the flags."""
    if settings.optimizer == "adamw":
        return optim.AdamW(model, settings.lr, weight_decay=settings.weight_decay,
                           decay_norm_and_bias=not settings.no_decay_norm_and_bias)
    kind = optim.SGD if settings.optimizer == "sgd" else optim.RMSprop
    return kind(model, settings.lr, momentum=settings.momentum,
                weight_decay=settings.weight_decay)


def build_criterion(settings, weights):
    """Return the loss of the flags; a focal alpha scales the class weights."""
    alpha = settings.focal_alpha
    if settings.loss in ("focal", "combined") and alpha != 1:
        weights = alpha if weights is None else alpha * weights
    return Criterion(
        settings.loss, weight=weights, gamma=settings.focal_gamma,
        label_smoothing=settings.label_smoothing, lambda_focal=settings.lambda_focal,
        lambda_dice=settings.lambda_dice, ignore_index=settings.ignore_index)


def main(argv=None):
    settings = parse_settings(argv)
    if settings.device == "cuda":
        select_device("cuda")  # names what is missing, if anything is
        raise UserError("--device cuda: training on a GPU is not there yet; use --device cpu")

    # Everything that can be refused is refused before the run folder is made.
    train_set, val_set = (
        datasets.open_dataset(settings.data, settings.layout, split,
                              ignore_index=settings.ignore_index) for split in ("train", "val"))
    K, names = train_set.num_classes, train_set.class_names
    if settings.ignore_index < K:
        raise UserError(f"--ignore-index {settings.ignore_index} is a class "
                        f"({names[settings.ignore_index]}); use {K} to 255")
    statistics = train_set.check()
    val_statistics = val_set.check()
    size = settings.image_size = settings.image_size or list(train_set[0].mask.shape)
    if len(train_set) < settings.batch_size:
        raise UserError(f"--batch-size {settings.batch_size} is larger than the training set of "
                        f"{len(train_set)} images")
    weights = build_weights(settings.class_weights, statistics, names)
    model = build_model(settings.model, K, seed=settings.seed,
                        batch_norm_momentum=settings.batch_norm_momentum)
    if settings.init_from is not None:
        load_weights(model, read_checkpoint(settings.init_from))

    loader = {"seed": settings.seed, "num_workers": settings.num_workers}
    train_loader = datasets.DataLoader(
        train_set, settings.batch_size, shuffle=True, drop_last=True,
        transform=datasets.make_augmentation(settings.augment, size,
                                             ignore_index=settings.ignore_index), **loader)
    # Validation is scored at the masks' own size, if all have one; else at the training size.
    val_loader = datasets.DataLoader(
        val_set, settings.batch_size,
        transform=datasets.Resize(size, resize_mask=len(val_set.sizes) > 1,
                                  ignore_index=settings.ignore_index), **loader)

    folder = run_folder.new_run_folder(
        settings.output_dir, default_name=f"{Path(settings.data).resolve().name}_{settings.loss}")
    # Without the output folder: --config repeats a run beside the first, not on top of it.
    config = {key: value for key, value in vars(settings).items()
              if key not in ("config", "output_dir")}
    run_folder.write_text(folder / "config.toml", run_folder.to_toml(config))
    run_folder.write_text(folder / "class_weights.json", json.dumps({
        "scheme": settings.class_weights, "classes": list(names),
        "weights": (np.ones(K) if weights is None else weights).tolist(),
        "pixels": statistics.pixels.tolist(), "images": statistics.images.tolist()}, indent=1))

    trainer = Trainer(
        model=model, optimizer=build_optimizer(settings, model),
        schedule=build_schedule(settings, len(train_loader)),
        criterion=build_criterion(settings, weights), train_loader=train_loader,
        val_loader=val_loader, folder=folder, class_names=names, epochs=settings.epochs,
        clip_norm=settings.clip_norm, val_every=settings.val_every,
        save_every=settings.save_every, meta={
            "config": config, "image_size": list(size),
            "original_size": list(train_set[0].mask.shape),
            "classes": {"names": list(names), "palette": np.asarray(train_set.palette).tolist(),
                        "mask_values": list(getattr(train_set, "mask_values", range(K))),
                        "void": int(getattr(train_set, "void", settings.ignore_index)),
                        "ignore_index": settings.ignore_index,
                        "pixels": statistics.pixels.tolist()}})
    share = statistics.pixels.max() / statistics.pixels.sum()
    print(f"{settings.model}: {model.num_parameters:,} parameters, {K} classes; "
          f"{len(train_set)} images to train, {len(val_set)} to validate, at "
          f"{size[0]}x{size[1]}; {names[int(statistics.pixels.argmax())]} is {share:.1%} of the "
          f"pixels\nrun folder: {folder}", flush=True)
    finished = trainer.fit()
    _draw(folder, names, model, val_set, val_loader.transform, val_statistics)
    if not finished:
        print(f"stopped early; the state is in {folder / 'last.npz'}")
        return 130
    print(f"best mean IoU {trainer.best:.4f}; see {folder}/curves.png and "
          f"{folder}/predictions.png")
    return 0


def _draw(folder, names, model, val_set, transform, statistics):
    """Write curves.png from the log, and predictions.png from the best weights."""
    if (folder / "log.jsonl").exists():
        plots.save(plots.curves(run_folder.read_log(folder / "log.jsonl"), names),
                   folder / "curves.png")
    if (folder / "best.npz").exists():
        load_weights(model, read_checkpoint(folder / "best.npz"))
        samples = [transform(val_set[i], None) for i in _worth_showing(statistics)]
        predictions = [predict_batch(model, normalize(s.image)[None], s.mask.shape)[0]
                       for s in samples]
        figure = plots.predictions(samples, predictions, names, val_set.palette,
                                   val_set.ignore_index)
        plots.save(figure, folder / "predictions.png")


def _worth_showing(statistics, count=5):
    """Return indices of up to `count` images: the first with each class, rarest class first."""
    rarest_first = statistics.first_image[np.argsort(statistics.pixels, kind="stable")]
    chosen = list(dict.fromkeys(int(i) for i in rarest_first if i >= 0))
    evenly = np.linspace(0, statistics.num_images - 1, count).astype(int).tolist()
    return list(dict.fromkeys(chosen + evenly))[:count]


if __name__ == "__main__":
    sys.exit(run_command(main))
