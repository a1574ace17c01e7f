"""The settings of a training run: every flag, a TOML file that says the same, and a resumed run.

The command line wins over `--config`, which wins over the defaults. What belongs together is
checked together, before anything is read or made.
"""

import sys
import tomllib
from pathlib import Path

from minisegnet.errors import UserError
from minisegnet.training.flags import LOWER_IS_BETTER, build_parser

DEFAULT_LR = {"mini": 5e-2}  # a hundred thousand weights bear larger steps than millions
# What a resumed run may be told anew: none of it changes the numbers, but for --epochs; --device
# and --amp change how they are rounded.
RESUMABLE = ("resume", "data", "num_workers", "epochs", "device", "amp", "debug", "ledger")


def parse_settings(argv=None):
    """Return the settings: defaults, then --config, then the command line.

    With --resume they are those of the run in that folder. Raises UserError for what is refused.
    """
    parser = build_parser()
    argv = [str(word) for word in (sys.argv[1:] if argv is None else argv)]
    first = parser.parse_args(argv)
    if first.resume is not None:
        settings = _of_run(parser, argv, first.resume)
    elif first.config is not None:
        # The file's lines become flags in front of the real ones: one set of checks for both.
        given = _given(parser, argv)
        # The two say the same in other words: the one on the command line replaces the file's.
        without = {"image_size": "scale", "scale": "image_size"}
        flags = _flags_of_file(parser, first.config, {without.get(name) for name in given})
        settings = parser.parse_args(flags + argv)
    else:
        settings = first
    if settings.lr is None:
        settings.lr = DEFAULT_LR.get(settings.model, 2e-3)
    if settings.overfit_one_batch:  # plain, whatever --config says
        settings.augment, settings.sampler = "none", "uniform"
    _refuse_contradictions(settings)
    return settings


def _given(parser, argv):
    """Return the names of the settings that `argv` has flags for."""
    return {action.dest for action in parser._actions for word in argv
            if word.partition("=")[0] in action.option_strings}


def _of_run(parser, argv, folder):
    """Return the settings of the run in `folder`, and the few that `argv` may change."""
    refused = sorted(_given(parser, argv) - set(RESUMABLE))
    if refused:
        raise UserError(f"--resume takes its settings from the run: leave out "
                        f"--{refused[0].replace('_', '-')}, or start a new run (--init-from)")
    config = Path(folder) / "config.toml"
    if not config.is_file():
        raise UserError(f"--resume {folder}: there is no {config}; give the folder of a run")
    return parser.parse_args(_flags_of_file(parser, config) + argv)


def size_in_training(settings, first):
    """Return [H, W] of the pictures in training, given the size (H, W) of the first of them."""
    scale = settings.scale or 1
    return settings.image_size or [max(1, round(scale * side)) for side in first]


def to_config(settings):
    """Return the settings as a flat dictionary of numbers, texts and lists, to be written.

    Without what would repeat a run on top of itself: its folder, the file it was read from.
    """
    config = {key: value for key, value in vars(settings).items()
              if key not in ("config", "resume", "dry_run", "output_dir")
              and value not in (None, [])}
    for key, text in (("loss_after", "{}:{}"), ("lr_scale", "{}={}")):
        if key in config:
            config[key] = [text.format(*pair) for pair in config[key]]
    if "image_size_after" in config:
        config["image_size_after"] = [f"{epoch}:{H}x{W}" for epoch, (H, W)
                                      in config["image_size_after"]]
    return config


def _flags_of_file(parser, path, without=()):
    """Return the settings of TOML file `path` as flags, each of which the parser accepts.

    Those called as in `without` are left out, and so are empty lists.
    """
    try:
        config = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"cannot read --config {path} ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path} is not TOML: {error}") from error
    known = {action.dest: action for action in parser._actions}
    flags = []
    for key, value in config.items():
        action = known.get(key.replace("-", "_"))
        if action is None or action.dest in ("config", "help", "resume", "dry_run"):
            raise UserError(f"--config {path}: {key!r} is not a setting; see --help for the names")
        if action.dest in without or value == [] and action.nargs == "+":
            continue
        flag = action.option_strings[0]
        if action.nargs == 0:
            if not isinstance(value, bool):
                raise UserError(f"--config {path}: {key} is true or false, not {value!r}")
            flags += [flag] if value else []
        elif isinstance(value, list) != (action.nargs is not None):
            wanted = f"a list of {action.nargs}".removesuffix(" of +") if action.nargs \
                else "one value, not a list"
            raise UserError(f"--config {path}: {key} is {wanted}")
        elif isinstance(value, list):
            flags += [flag, *map(str, value)]
        else:
            flags += [f"{flag}={value}"]
    try:
        parser.parse_args(flags)
    except UserError as error:
        raise UserError(f"--config {path}: {error}") from error
    return flags


def _refuse_contradictions(settings):
    """Raise UserError for flags that are fine one by one and senseless together."""
    for wrong, message in _contradictions(settings):
        if wrong:
            raise UserError(message)


def _contradictions(s):
    """Yield (whether it is wrong, what to say) of settings `s`."""
    is_unet = s.model.startswith("unet")
    yield (s.amp != "off" and s.device == "cpu",
           f"--amp {s.amp} is for a GPU, and NumPy computes in float32; use --amp off, or "
           f"--device cuda where there is one")
    yield (s.batch_size < 2 and not is_unet,
           "--batch-size 1: the image pooling of these models has one value per image and "
           "channel, so its batch norm needs a batch of at least 2 (or --model unet_small)")
    yield (s.sampler == "class-crops" and s.augment == "none",
           "--sampler class-crops needs crops; add --augment standard, enhanced or strong")
    losses = {s.loss, *(loss for _, loss in s.loss_after)}
    yield (s.label_smoothing and losses != {"ce"},
           f"--label-smoothing goes with --loss ce, not with "
           f"{', '.join(sorted(losses - {'ce'}))}; leave it out")
    yield ("combined" in losses and s.lambda_focal == s.lambda_dice == 0,
           "--lambda-focal 0 and --lambda-dice 0 leave no loss; make one positive")
    yield (s.dice_mode == "smp" and not losses & {"dice", "combined"},
           "--dice-mode smp goes with --loss dice or combined; leave it out")
    yield (s.dice_mode == "smp" and "dice" in losses and s.class_weights != "none",
           "--dice-mode smp has no class weights; add --class-weights none")
    yield ("tversky" in losses and s.tversky_alpha == s.tversky_beta == 0,
           "--tversky-alpha 0 and --tversky-beta 0 leave no loss; make one positive")
    yield (s.image_size is not None and s.scale is not None,
           "--image-size and --scale both set the size; give one of them")
    yield (s.allow_partial and s.init_from is None,
           "--allow-partial goes with --init-from; add it, or leave it out")
    yield s.freeze and is_unet, f"--freeze backbone: {s.model} has no backbone; leave it out"
    yield (s.freeze_batch_norm == "backbone" and is_unet,
           f"--freeze-batch-norm backbone: {s.model} has no backbone; use all or no")
    for flag, value in (("--freeze-epochs", s.freeze_epochs), ("--freeze-lr", s.freeze_lr)):
        yield value and not s.freeze, f"{flag} goes with --freeze backbone; add it"
    yield (s.freeze_lr and not s.freeze_epochs,
           "--freeze-lr goes with --freeze-epochs; add it, or use --lr alone")
    yield (s.freeze_epochs >= s.epochs,
           f"--freeze-epochs {s.freeze_epochs} leaves none of --epochs {s.epochs}; lower it, or "
           f"leave it out to keep the backbone frozen")
    for flag, pairs in (("--loss-after", s.loss_after),
                        ("--image-size-after", s.image_size_after)):
        epochs = [epoch for epoch, _ in pairs]
        yield (epochs and max(epochs) >= s.epochs,
               f"{flag} {max(epochs, default=0)}: there is nothing after that in --epochs "
               f"{s.epochs}")
        yield sorted(set(epochs)) != epochs, f"{flag}: give the epochs in rising order, each once"
    shortest = min(s.freeze_epochs or s.epochs, s.epochs - s.freeze_epochs)
    yield (s.warmup_epochs > shortest,
           f"--warmup-epochs {s.warmup_epochs:g} is longer than --epochs {s.epochs}"
           f"{' leaves each stage' if s.freeze_epochs else ''}; shorten it")
    flag, lr = min((("--lr", s.lr), ("--freeze-lr", s.freeze_lr or s.lr)), key=lambda f: f[1])
    yield (s.schedule in ("cosine", "restarts", "plateau") and s.min_lr > lr,
           f"--min-lr {s.min_lr:g} is above {flag} {lr:g}; lower it")
    yield (s.loss_after and s.monitor in LOWER_IS_BETTER,
           f"--monitor {s.monitor}: its values before and after --loss-after cannot be compared; "
           f"use --monitor mean_iou")
