"""Every flag of a training run: its type, its default, and what it is for."""

import argparse
import re

from minisegnet.cli import (
    ArgumentParser,
    fraction,
    non_negative_float,
    non_negative_int,
    number,
    positive_float,
    positive_int,
)
from minisegnet.datasets import PRESETS, SAMPLERS
from minisegnet.imbalance.weighting import SCHEMES
from minisegnet.losses.criterion import LOSSES
from minisegnet.models import MODEL_NAMES

MAX_SIDE = 8192  # of a picture in training, px
LOWER_IS_BETTER = ("train_loss", "val_loss")
HIGHER_IS_BETTER = ("mean_iou", "mean_iou_all", "mean_dice", "fw_iou", "pixel_accuracy")


def after_epoch(parse):
    """Return an argparse type for EPOCH:VALUE, as the pair (epoch, parse(value))."""

    def parse_pair(text):
        epoch, colon, value = text.partition(":")
        if not colon:
            raise argparse.ArgumentTypeError(f"{text!r} is not EPOCH:VALUE, such as 10:...")
        return positive_int(epoch), parse(value)

    return parse_pair


def loss_name(text):
    """Return `text` if it names a loss."""
    if text not in LOSSES:
        raise argparse.ArgumentTypeError(f"{text!r} is not a loss; choose from "
                                         f"{', '.join(LOSSES)}")
    return text


def picture_size(text):
    """Return [H, W] of "HxW"."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not HxW, such as 180x240")
    return [number(int, least=1, most=MAX_SIDE)(side) for side in match.groups()]


def layer_scale(text):
    """Return (dotted prefix, scale) of "PREFIX=SCALE"."""
    prefix, equals, scale = text.rpartition("=")
    if not equals or not prefix:
        raise argparse.ArgumentTypeError(f"{text!r} is not LAYER=SCALE, such as backbone=0.1")
    return prefix, non_negative_float(scale)


def build_parser():
    """Return the parser of all flags; the defaults train `mini` on floor plans in a minute."""
    parser = ArgumentParser(
        prog="python -m minisegnet.train",
        description="Train a segmentation model and leave curves, pictures and checkpoints.")
    parser.add_argument("--config", metavar="FILE.toml",
                        help="settings from a file; the command line wins")
    parser.add_argument("--resume", metavar="RUN_FOLDER",
                        help="go on with an interrupted run, to the same end (of the other flags, "
                             "only --data, --num-workers, --epochs, --device, --amp, --debug and "
                             "--ledger)")
    parser.add_argument("--dry-run", action="store_true",
                        help="say what would be trained and the memory it needs, and stop")
    _add_data(parser.add_argument_group("data"))
    _add_model(parser.add_argument_group("model"))
    _add_loss(parser.add_argument_group("loss"))
    _add_training(parser.add_argument_group("training"))
    _add_schedule(parser.add_argument_group("learning rate"))
    _add_watching(parser.add_argument_group("watching"))
    _add_output(parser.add_argument_group("output"))
    return parser


def _add_data(group):
    add = group.add_argument
    add("--data", default="floorplans",
        help="floorplans (generated), or the folder of a data set")
    add("--layout", choices=("auto", "camvid", "voc", "folder"), default="auto",
        help="camvid, voc, folder (images and masks), or what the folders look like")
    add("--classes", metavar="FILE",
        help="which mask values are which classes: a class_map.json, a .py table or a .txt file "
             "of names (default: what the data declare)")
    add("--split", choices=("train", "trainval"), default="train",
        help="pictures to train on; after trainval the validation score is none")
    add("--image-size", type=number(int, least=1, most=MAX_SIDE), nargs=2, metavar=("H", "W"),
        help="size in training (default: that of the first picture)")
    add("--scale", type=number(float, above=0, most=4),
        help="size in training as a share of the first picture's")
    add("--image-size-after", type=after_epoch(picture_size), nargs="+", metavar="EPOCH:HxW",
        default=[], help="another size from there on, to grow")
    add("--augment", choices=PRESETS, default="none",
        help="standard: flip, scale 0.7 to 1.6, crop, brightness; enhanced: scale 0.5 to 2 and "
             "colours; strong: rotation, distortion, shadow, cut-out as well")
    add("--sampler", choices=SAMPLERS, default="uniform",
        help="which pictures an epoch draws, where rare classes are in few of them")
    add("--ignore-index", type=number(int, least=0, most=255), default=255,
        help="label that counts in no loss and no score")
    add("--num-workers", type=non_negative_int, default=2,
        help="threads that load ahead; 0 loads in the training step")


def _add_model(group):
    add = group.add_argument
    add("--model", choices=MODEL_NAMES, default="mini", help="network to train")
    add("--init-from", metavar="CHECKPOINT",
        help="start from these weights: a checkpoint, or a torch state dict (.npz, .safetensors, "
             ".pth)")
    add("--allow-partial", action="store_true",
        help="with --init-from: load what fits, and name the rest")
    add("--freeze", choices=("backbone",), help="keep these weights as they are")
    add("--freeze-epochs", type=non_negative_int, default=0, metavar="EPOCHS",
        help="with --freeze: train everything after so many; 0: never")
    add("--freeze-lr", type=positive_float,
        help="with --freeze-epochs: rate while frozen (default: --lr)")
    add("--freeze-batch-norm", choices=("no", "frozen", "backbone", "all"), default="frozen",
        help="batch norms that use and keep their running statistics: none, those of what is "
             "frozen while it is, the backbone's, or all")
    add("--batch-norm-momentum", type=number(float, above=0, most=1), default=0.1,
        help="share of the new batch in the running statistics")
    add("--ema", type=fraction, default=0.0, metavar="DECAY",
        help="keep and score an exponential moving average of the weights, such as 0.99; 0: no")


def _add_loss(group):
    add = group.add_argument
    add("--loss", choices=LOSSES, default="combined", help="loss to minimise")
    add("--loss-after", type=after_epoch(loss_name), nargs="+", metavar="EPOCH:LOSS",
        default=[], help="another loss from there on")
    add("--class-weights", default="sqrt", metavar="|".join(SCHEMES) + "|FILE.json",
        help="weights of the classes, alpha of focal")
    add("--focal-gamma", type=non_negative_float, default=2.0,
        help="of focal and combined: how far it turns from easy pixels")
    add("--focal-alpha", type=positive_float, default=1.0,
        help="one factor on all of focal; per class, use --class-weights")
    add("--lambda-focal", type=non_negative_float, default=1.0,
        help="of combined: share of focal")
    add("--lambda-dice", type=non_negative_float, default=1.0,
        help="of combined: share of dice")
    add("--dice-mode", choices=("pooled", "smp"), default="pooled",
        help="of dice: the mean over the classes present, or as segmentation_models.pytorch")
    add("--tversky-alpha", type=non_negative_float, default=0.3,
        help="of tversky: price of a false positive")
    add("--tversky-beta", type=non_negative_float, default=0.7,
        help="of tversky: price of a false negative")
    add("--ohem-thresh", type=number(float, above=0, most=1), default=0.7,
        help="of ohem: pixels whose class is less probable are hard, and kept")
    add("--ohem-min-kept", type=number(float, above=0, most=1), default=1 / 16,
        help="of ohem: share of the pixels that is kept even if none is hard")
    add("--logit-tau", type=non_negative_float, default=1.0,
        help="of logit_adjusted: how far the classes' shares shift the logits")
    add("--label-smoothing", type=fraction, default=0.0, help="with ce only")


def _add_training(group):
    add = group.add_argument
    add("--epochs", type=positive_int, default=8, help="passes over the training set")
    add("--batch-size", type=positive_int, default=8,
        help="images at a time, at least 2 unless the model is a unet")
    add("--accumulate", type=positive_int, default=1, metavar="N",
        help="batches whose gradients make one step: for little memory")
    add("--optimizer", choices=("adamw", "sgd", "rmsprop"), default="adamw",
        help="rule of the update")
    add("--momentum", type=fraction, default=0.9, help="of sgd and rmsprop")
    add("--weight-decay", type=non_negative_float, default=0.01,
        help="pull of every weight towards 0")
    add("--no-decay-norm-and-bias", action="store_true",
        help="adamw: spare batch norms and biases from weight decay")
    add("--clip-norm", type=non_negative_float, default=0.0, help="0: no clipping")
    add("--monitor", choices=HIGHER_IS_BETTER + LOWER_IS_BETTER, default="mean_iou",
        help="what best.npz, plateau and early stopping go by")
    add("--early-stop-patience", type=non_negative_int, default=0, metavar="N",
        help="stop after so many validations without a better --monitor, counted from the last "
             "switch of stage, loss or size on; 0: never")
    add("--seed", type=non_negative_int, default=0, help="of weights, order and augmentation")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")
    add("--amp", choices=("off", "bf16", "fp16"), default="off",
        help="mixed precision, on a GPU: activations of 16 bits, weights and their updates in "
             "float32; for large models and batches")


def _add_schedule(group):
    add = group.add_argument
    add("--lr", type=positive_float,
        help="peak or constant rate (default: 0.05 for mini, else 0.002)")
    add("--lr-scale", type=layer_scale, nargs="+", metavar="LAYER=SCALE", default=[],
        help="rate of some layers as a multiple of the others', such as backbone=0.1")
    add("--schedule", default="onecycle",
        choices=("constant", "step", "cosine", "restarts", "poly", "onecycle", "plateau"),
        help="course of the learning rate")
    add("--step-size", type=positive_float, default=10, metavar="EPOCHS",
        help="of step: epochs between divisions by ten")
    add("--restart-period", type=positive_float, default=20, metavar="EPOCHS",
        help="of restarts: length of the first period")
    add("--restart-mult", type=positive_int, default=2,
        help="of restarts: each period is so many times the last")
    add("--plateau-patience", type=non_negative_int, default=5, metavar="N",
        help="of plateau: validations without a better --monitor before the rate falls")
    add("--plateau-factor", type=number(float, above=0, below=1), default=0.1,
        help="of plateau: what the rate is multiplied by")
    add("--min-lr", type=non_negative_float, default=0.0,
        help="of cosine, restarts and plateau: the lowest rate")
    add("--warmup-epochs", type=non_negative_float, default=0.0, metavar="EPOCHS",
        help="epochs in which the rate rises to the schedule's start")


def _add_watching(group):
    add = group.add_argument
    add("--debug", action="store_true",
        help="check data, gradients, updates and scores all along, into debug.jsonl, and end with "
             "a diagnosis")
    add("--ledger", action="store_true",
        help="note which classes the gradient comes from, into ledger.jsonl and ledger.png")
    add("--overfit-one-batch", action="store_true",
        help="train and score on the same few pictures, plain: a network that cannot learn these "
             "by heart learns nothing")


def _add_output(group):
    add = group.add_argument
    add("--val-every", type=positive_int, default=1, metavar="EPOCHS",
        help="epochs between validations")
    add("--save-every", type=non_negative_int, default=0, metavar="EPOCHS",
        help="epochs between epoch_NNNN.npz; 0: none")
    add("--output-dir", help="new folder of the run (default: runs/...)")
