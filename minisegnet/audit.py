"""`python -m minisegnet.audit`: can published figures be of one confusion matrix?

    python -m minisegnet.audit --mean-iou 72.73 --mean-dice 39.80 --percent
    python -m minisegnet.audit --classes 34 --accuracy 0.424 --iou 0=0.727 rest=0 \\
        --claim constant=0
    python -m minisegnet.audit --classes 37 --mean-iou 2.7% --share-of-all 0=32.6% \\
        --ignored 13.6% --claim constant=0
    python -m minisegnet.audit paper.json

A file holds the same under the names of the flags: {"classes": 34, "accuracy": "0.424", "iou":
{"0": "0.727", "rest": 0}, "claim": "constant=0"}; a flag wins. Numbers are fractions, or percent
with --percent, or one by one with the sign. A number stands for all that are rounded to it or cut
off after its last digit; a plain 0 or 1 as a fraction is exact. Means are taken to be over the
same classes, --classes of them, and everything to be of one matrix, pooled over the pictures:
means of scores per picture are other numbers.

Exit code 0: no contradiction. 1: contradictions, or the claim cannot be true. 2: bad input.
"""

import json
import sys
from pathlib import Path

from minisegnet.cli import ArgumentParser, number
from minisegnet.errors import UserError, run_command
from minisegnet.imbalance.consistency import audit
from minisegnet.imbalance.published import MOST_CLASSES, PER_CLASS, SINGLE, read_published

KEYS = ("classes", *SINGLE, *PER_CLASS, "claim", "percent")


def build_parser():
    """Return the parser of all flags."""
    parser = ArgumentParser(
        prog="python -m minisegnet.audit",
        description="Find contradictions between published figures of a segmentation.",
        epilog="Per class: all values in the order of the classes, or CLASS=VALUE for some; rest="
               "VALUE for all others, - for an absent class.")
    add = parser.add_argument
    add("file", nargs="?", metavar="FILE.json", help="figures under the names of these flags")
    add("--classes", type=number(int, least=2, most=MOST_CLASSES),
        help="number of classes that the means are over")
    for key, words in (
            ("accuracy", "pixel accuracy"), ("mean_iou", "mean of the IoUs of the classes"),
            ("mean_dice", "mean of the Dices (F1) of the classes"),
            ("fw_iou", "IoU weighted with the shares of the truth"),
            ("mean_class_accuracy", "mean recall of the classes in the truth"),
            ("ignored", "share of all pixels that is ignored")):
        add(_flag(key), metavar="X", help=words)
    for key, words in (
            ("iou", "IoU per class"), ("dice", "Dice (F1) per class"),
            ("precision", "precision per class"), ("recall", "recall per class"),
            ("share", "share of each class in the valid pixels of the truth"),
            ("share_of_all", "the same of all pixels, with --ignored")):
        add(_flag(key), nargs="+", metavar="X", help=words)
    add("--claim", metavar="constant[=CLASS]", help="what is said: that one class is predicted")
    add("--percent", action="store_true", help="all numbers are percent")
    return parser


def _flag(key):
    return "--" + key.replace("_", "-")


def main(argv=None):
    settings = vars(build_parser().parse_args(argv))
    path = settings.pop("file")
    given = {} if path is None else read_file(path)
    given.update({key: value for key, value in settings.items() if value not in (None, False)})
    published = read_published(given)
    verdict = audit(published)
    for heading, sentences in (("contradiction", verdict.contradictions),
                               ("against the claim", verdict.against_claim),
                               ("it follows", verdict.follows)):
        for sentence in sentences:
            print(f"{heading}: {sentence}")
    print(f"{published.count} figures, {verdict.compared} relations compared: "
          + conclusion(published, verdict))
    return int(bool(verdict.contradictions or verdict.against_claim))


def conclusion(published, verdict):
    """Return the last words on a `Verdict`."""
    if verdict.contradictions:
        return (f"{len(verdict.contradictions)} contradicted; these are not of one confusion "
                f"matrix over the same classes")
    if verdict.against_claim:
        return f"{len(verdict.against_claim)} against the claim, which cannot be true of these"
    if verdict.compared:
        return "no contradiction"
    return "nothing in these can be compared" + (
        "" if published.num_classes else "; give --classes, or more figures")


def read_file(path):
    """Return the dictionary of a JSON file, its numbers as the texts that they are there."""
    try:
        given = json.loads(Path(path).read_text(encoding="utf-8"), parse_float=str, parse_int=str,
                           parse_constant=str)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path} as JSON ({error}); check the path and the "
                        f"commas") from error
    if not isinstance(given, dict):
        raise UserError(f'{path} is not a JSON object like {{"accuracy": 0.9, ...}}')
    unknown = [key for key in given if key not in KEYS]
    if unknown:
        raise UserError(f"{path}: {unknown[0]!r} is not one of {', '.join(KEYS)}")
    return given


if __name__ == "__main__":
    sys.exit(run_command(main))
