"""Published figures as they are printed: each stands for all numbers that print like that."""

from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import NamedTuple

from minisegnet.errors import UserError

SINGLE = ("accuracy", "mean_iou", "mean_dice", "fw_iou", "mean_class_accuracy", "ignored")
PER_CLASS = ("iou", "dice", "precision", "recall", "share", "share_of_all")
ABSENT, REST = "-", "rest"
MOST_CLASSES = 10_000


class Figure(NamedTuple):
    """A printed number as a fraction, and the bounds of what may have been printed so."""

    value: float
    low: float
    high: float
    text: str


class PerClass(NamedTuple):
    """A figure for some classes, or for all of them."""

    figures: dict  # label of the class -> Figure, or None where the class is absent
    complete: bool  # whether every class is there

    @property
    def known(self):
        """The classes that are not absent, {label: Figure}."""
        return {label: figure for label, figure in self.figures.items() if figure is not None}


@dataclass(frozen=True)
class Published:
    """What was published: a `Figure` or None, and a `PerClass`, of each kind."""

    num_classes: int | None = None  # that the means are over
    accuracy: Figure | None = None
    mean_iou: Figure | None = None
    mean_dice: Figure | None = None
    fw_iou: Figure | None = None
    mean_class_accuracy: Figure | None = None
    iou: PerClass = PerClass({}, False)
    dice: PerClass = PerClass({}, False)
    precision: PerClass = PerClass({}, False)
    recall: PerClass = PerClass({}, False)
    share: PerClass = PerClass({}, False)  # of the valid pixels
    claims_constant: bool = False
    constant_class: str | None = None  # which one, where that is claimed
    percent: bool = False  # how to print what is computed
    count: int = 0  # of figures given

    def show(self, value):
        """Return a computed fraction in the manner of the figures that were given."""
        return shown(value, "%" * self.percent)


def read_figure(text, where, percent=False):
    """Return the `Figure` of a text such as "0.727", or "72.7" with `percent`, or "72.7%".

    The number may have been rounded or cut off after its last digit: from half a unit of that
    digit below to one above, within 0 to 1. A plain 0 or 1 as a fraction is exact. Raises
    UserError, which names `where`, for anything else.
    """
    digits = str(text).strip()
    percent = percent or digits.endswith("%")
    digits = digits.removesuffix("%").strip()
    try:
        number = Decimal(digits)
    except InvalidOperation:
        number = Decimal("nan")
    if not number.is_finite() or number < 0:
        raise UserError(f"{where}: {text!r} is not a number from 0 on")
    if number > (100 if percent else 1):
        raise UserError(f"{where}: {text} is above {'100 %' if percent else '1'}"
                        + ("" if percent else "; for percent, give --percent or write 72.7%"))
    unit = 0.0 if number in (0, 1) and "." not in digits and not percent \
        else 10.0 ** number.as_tuple().exponent
    scale = 100 if percent else 1
    value = float(number)
    return Figure(value / scale, max(0.0, value - unit / 2) / scale,
                  min(scale, value + unit) / scale, digits + " %" * percent)


def read_published(given):
    """Return what was `Published`, from a dictionary of texts, those of the command's flags.

    Keys: "classes"; of `SINGLE` a text; of `PER_CLASS` a list of texts, of all classes in their
    order or of some as "CLASS=VALUE", "rest" being all others, "-" an absent class; "claim";
    "percent". Raises UserError for what is no figure, or too little to check.
    """
    percent = given.get("percent", False)
    if not isinstance(percent, bool):
        raise UserError(f"percent: {percent!r} is not true or false")
    num_classes = _number_of_classes(given.get("classes"))
    single = {key: read_figure(given[key], key, percent) for key in SINGLE
              if given.get(key) is not None}
    per_class = {key: _read_per_class(given[key], key, percent, num_classes) for key in PER_CLASS
                 if given.get(key) is not None}
    count = len(single) + sum(len(each.known) for each in per_class.values())
    ignored, of_all = single.pop("ignored", None), per_class.pop("share_of_all", None)
    if of_all is not None:
        if ignored is None or "share" in per_class:
            raise UserError("share_of_all needs ignored, the share of the pixels that are, and no "
                            "share beside it")
        per_class["share"] = of_all._replace(figures={
            label: None if figure is None else _of_valid(figure, ignored)
            for label, figure in of_all.figures.items()})
    claims, constant = _read_claim(given.get("claim"))
    if count < 2:
        raise UserError("there is nothing to compare: give two figures or more")
    _refuse_unknown_class(constant, per_class.values())
    shown_in_percent = any(figure.text.endswith("%") for figure in (
        *single.values(), *(f for each in per_class.values() for f in each.known.values())))
    return Published(num_classes, **single, **per_class, claims_constant=claims,
                     constant_class=constant, percent=shown_in_percent, count=count)


def _number_of_classes(text):
    if text is None:
        return None
    try:
        num_classes = int(text)
    except (TypeError, ValueError):
        num_classes = 0
    if isinstance(text, bool) or not 2 <= num_classes <= MOST_CLASSES:
        raise UserError(f"classes: {str(text)[:20]!r} is not a whole number from 2 to "
                        f"{MOST_CLASSES}")
    return num_classes


def _read_claim(text):
    """Return whether a constant prediction is claimed, and of which class if that is said."""
    if text is None:
        return False, None
    claim, equals, label = str(text).partition("=")
    if claim != "constant" or (equals and not label):
        raise UserError(f"claim: {text!r} is not constant, or constant=CLASS")
    return True, label or None


def _refuse_unknown_class(label, measures):
    """Raise UserError for a claim on a class that a complete list lacks; by name, on a new one."""
    known = {name: None for measure in measures for name in measure.figures}
    complete = any(measure.complete for measure in measures)
    if label is not None and known and label not in known and (
            complete or not label.isdecimal()):
        raise UserError(f"claim: there is no class {label}; there are {', '.join(known)}")


def _read_per_class(texts, where, percent, num_classes):
    """Return the `PerClass` of a list of texts, or of a dictionary."""
    if isinstance(texts, dict):
        texts = [f"{label}={ABSENT if value is None else value}" for label, value in texts.items()]
    if not isinstance(texts, (list, tuple)) or not texts:
        raise UserError(f"{where}: give numbers, of all classes in their order or as CLASS=VALUE")
    texts = [ABSENT if text is None else str(text) for text in texts]
    named = ["=" in text for text in texts]
    if any(named) != all(named):
        raise UserError(f"{where}: {texts[named.index(False)]!r} has no class and others have; "
                        f"write CLASS=VALUE for all or for none")
    pairs = [text.rsplit("=", 1) for text in texts] if any(named) else [
        (str(number), text) for number, text in enumerate(texts)]
    figures = {}
    for label, text in pairs:
        if label in figures:
            raise UserError(f"{where}: class {label} is given twice")
        figures[label] = None if text == ABSENT else read_figure(
            text, f"{where} of class {label}", percent)
    complete = not any(named) or REST in figures
    if REST in figures:
        figures = _fill_rest(figures, where, num_classes)
    there = sum(figure is not None for figure in figures.values())
    # A class that is not averaged, being absent, may have a share: 0.
    if num_classes is not None and there > num_classes and not where.startswith("share"):
        raise UserError(f"{where}: {there} classes are given, and classes is {num_classes}")
    return PerClass(figures, complete)


def _fill_rest(figures, where, num_classes):
    """Return `figures` with a number for each class that is not named."""
    rest = figures.pop(REST)
    if num_classes is None or not all(label.isdecimal() and int(label) < num_classes
                                      for label in figures):
        raise UserError(f"{where}: {REST} needs the number of classes, and the others by their "
                        f"numbers from 0 on")
    return {**dict.fromkeys(map(str, range(num_classes)), rest), **figures}


def _of_valid(of_all, ignored):
    """Return a share of the valid pixels, from that of all pixels and the ignored share."""
    if of_all.low + ignored.low > 1 or ignored.high >= 1:
        raise UserError(f"share_of_all {of_all.text} and ignored {ignored.text} sum to more than "
                        f"all pixels")
    value, low, high = (min(1.0, share / (1 - part)) for share, part in
                        zip(of_all[:3], (ignored.value, ignored.low, ignored.high)))
    return Figure(value, low, high,
                  f"{of_all.text} / (1 - {ignored.text}) = {shown(value, of_all.text)}")


def shown(value, like):
    """Return a computed fraction as text, in percent if the text `like` is."""
    return f"{100 * value:.3g} %" if like.endswith("%") else f"{value:.3g}"
