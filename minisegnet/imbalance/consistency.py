"""Can these figures be of one confusion matrix? What contradicts them, and what they imply.

Of class c let h_c be the hits, t_c the truth, q_c the predictions, u_c = t_c + q_c - h_c their
union, all as shares of the valid pixels. Every rule below follows from

    sum t_c = sum q_c = 1        accuracy a = sum h_c        hence sum u_c = 2 - a
    h_c <= t_c <= u_c <= 1       h_c <= q_c <= u_c           u_c - h_c <= 1 - a, all that is wrong
    IoU_c = h_c / u_c            Dice_c = 2 h_c / (t_c + q_c) = 2 IoU_c / (1 + IoU_c)

A `Figure` stands for all numbers that are printed like it, and a rule contradicts only what none
of them can fulfil: figures of a real matrix are never contradicted, however they were rounded.
"""

import math
from typing import NamedTuple

from minisegnet.imbalance.published import Figure

EPSILON = 1e-9  # for the rounding of the arithmetic here


class Bound(NamedTuple):
    """Where a figure must lie because of others."""

    what: str  # the figure's name
    figure: Figure
    low: float
    high: float
    why: str

    @property
    def holds(self):
        """Whether some number that prints like the figure lies within."""
        return (self.figure.high >= self.low - EPSILON
                and self.figure.low <= self.high + EPSILON)

    @property
    def distance(self):
        """How far the figure lies outside; negative within."""
        return max(self.low - self.figure.high, self.figure.low - self.high)


class Verdict(NamedTuple):
    """What an audit finds."""

    contradictions: list  # sentences: why the figures are not of one matrix
    against_claim: list  # sentences: why they are not of a constant prediction
    follows: list  # sentences
    compared: int  # relations between figures that could be looked at


def audit(published):
    """Return the `Verdict` on `Published` figures."""
    bounds = [bound for rule in RULES for bound in rule(published)]
    of_claim = list(_constant(published))
    contradictions, against_claim = (
        [_sentence(bound, published) for bound in some if not bound.holds]
        for some in (bounds, of_claim))
    return Verdict(contradictions, against_claim, _only_class_hit(published),
                   len(bounds) + len(of_claim))


def _sentence(bound, published):
    what, figure, low, high, why = bound
    low, high = max(0.0, low), min(1.0, high)
    if high - low <= 0.02 * high:
        must = f"be {published.show((low + high) / 2)}"
    elif high == 1:
        must = f"be at least {published.show(low)}"
    elif low == 0:
        must = f"be at most {published.show(high)}"
    else:
        must = f"lie between {published.show(low)} and {published.show(high)}"
    return f"{what} is given as {figure.text} but must {must}: {why}."


def _dice(iou):
    return 2 * iou / (1 + iou)


def _pairs(*measures):
    """Return (label, figure of each measure) of the classes that have all of them."""
    return [(label, *(measure.known[label] for measure in measures)) for label in measures[0].known
            if all(label in measure.known for measure in measures)]


def _is_complete(measure, p):
    """Whether a per-class measure is known of every class that is not absent."""
    return measure.complete or (p.num_classes is not None and len(measure.known) >= p.num_classes)


# Each rule yields the bounds that it can set.

def _dice_of_each_class(p):
    for label, iou, dice in _pairs(p.iou, p.dice):
        yield Bound(f"the Dice of class {label}", dice, _dice(iou.low), _dice(iou.high),
                    f"Dice = 2 IoU / (1 + IoU), and the IoU of this class is {iou.text}")


def _mean_dice_of_mean_iou(p):
    if p.mean_iou is not None and p.mean_dice is not None:
        yield Bound("mean Dice", p.mean_dice, p.mean_iou.low, _dice(p.mean_iou.high),
                    f"every class has Dice = 2 IoU / (1 + IoU), which is never below its IoU, so "
                    f"that over the same classes mean Dice lies between the mean IoU "
                    f"m = {p.mean_iou.text} and 2 m / (1 + m)")


def _overlap_of_precision_and_recall(p):
    for name, measure, of_iou in (("IoU", p.iou, float), ("Dice", p.dice, _dice)):
        for label, figure, precision, recall in _pairs(measure, p.precision, p.recall):
            low, high = (of_iou(_iou(precision[i], recall[i])) for i in (1, 2))
            formula = {"IoU": "P R / (P + R - P R)", "Dice": "2 P R / (P + R)"}[name]
            yield Bound(f"the {name} of class {label}", figure, low, high,
                        f"{name} = {formula} of precision P = {precision.text} and recall "
                        f"R = {recall.text}")
        for other, limits in (("precision", p.precision), ("recall", p.recall)):
            for label, figure, limit in _pairs(measure, limits):
                if label not in p.precision.known or label not in p.recall.known:
                    yield Bound(f"the {name} of class {label}", figure, 0.0, of_iou(limit.high),
                                f"no IoU is above the {other} of its class, here {limit.text}"
                                + ", and Dice = 2 IoU / (1 + IoU)" * (name == "Dice"))


def _iou(precision, recall):
    return precision * recall / (precision + recall - precision * recall) \
        if precision and recall else 0.0


def _fw_iou(p):
    fw, a = p.fw_iou, p.accuracy
    if fw is not None and a is not None:
        # sum t h/u >= sum h^2/u >= (sum h)^2 / sum u
        yield Bound("FWIoU", fw, a.low**2 / (2 - a.low), a.high,
                    f"FWIoU, the sum of share x IoU, lies between a^2 / (2 - a) and the accuracy "
                    f"a = {a.text}, the sum of share x recall, for no IoU is above its recall")
    if fw is not None and p.iou.known and _is_complete(p.iou, p):
        ious = p.iou.known.values()
        yield Bound("FWIoU", fw, min(f.low for f in ious), max(f.high for f in ious),
                    "a weighted mean of the IoUs lies between the least and the largest of them")


def _weighted_means(p):
    for name, mean, kind, measure in (("FWIoU", p.fw_iou, "IoU", p.iou),
                                      ("accuracy", p.accuracy, "recall", p.recall)):
        pairs = _pairs(p.share, measure)
        if mean is None or not pairs:
            continue
        low, high = (sum(share[i] * figure[i] for _, share, figure in pairs) for i in (1, 2))
        rest = max(0.0, 1 - sum(share.low for _, share, _ in pairs))  # may have 0 to 1
        yield Bound(name, mean, low, high + rest,
                    f"{name} is the sum of share x {kind} over the classes"
                    + (f", and no {kind} above 1 is possible in the {p.show(rest)} of the pixels "
                       f"that are of other classes" if rest > 0.01 else ""))


def _means_of_the_classes(p):
    for name, mean, kind, measure in (
            ("mean IoU", p.mean_iou, "IoUs", p.iou), ("mean Dice", p.mean_dice, "Dices", p.dice),
            ("mean class accuracy", p.mean_class_accuracy, "recalls", p.recall)):
        known = list(measure.known.values())
        if mean is None or not known:
            continue
        if measure.complete:  # absent classes are left out, or count as 0
            numbers, missing = {len(known), len(measure.figures), p.num_classes} - {None}, 0
        elif p.num_classes is not None and name != "mean class accuracy":
            numbers, missing = {p.num_classes}, p.num_classes - len(known)
        else:  # recall is over the classes in the truth, and nobody says how many
            continue
        yield min((Bound(name, mean, sum(f.low for f in known) / n,
                         (sum(f.high for f in known) + missing) / n,
                         f"the {kind} of the classes sum to {sum(f.value for f in known):.4g}, "
                         f"here divided by {n}"
                         + f", and {missing} more are from 0 to 1" * (missing > 0))
                   for n in sorted(numbers)), key=lambda bound: bound.distance)


def _mean_class_accuracy(p):
    if p.mean_iou is not None and p.mean_class_accuracy is not None:
        yield Bound("mean IoU", p.mean_iou, 0.0, p.mean_class_accuracy.high,
                    f"no IoU is above the recall of its class, and the mean recall, which is the "
                    f"mean class accuracy, is {p.mean_class_accuracy.text}")


def _means_of_accuracy(p):
    a, K = p.accuracy, p.num_classes
    for name, mean, of_iou in (("mean IoU", p.mean_iou, float), ("mean Dice", p.mean_dice, _dice)):
        if a is not None and K is not None and mean is not None:
            yield Bound(name, mean, of_iou(a.low) / K,
                        (K - 2 + 2 * of_iou(a.high / (2 - a.high))) / K,
                        f"with accuracy {a.text} it is lowest over {K} classes where one class "
                        f"has all hits in a union of all pixels, and highest where {K - 2} are "
                        f"perfect and all errors lie between the other two")


def _classes_of_accuracy(p):
    if p.accuracy is None:
        return
    a = p.accuracy
    for name, measure in (("IoU", p.iou), ("recall", p.recall)):
        for label, share, figure in _pairs(p.share, measure):
            if share.low > 0:
                yield Bound(f"the {name} of class {label}", figure, 1 - (1 - a.low) / share.low,
                            a.high / share.low,
                            f"it is at most accuracy / share, if the class of share {share.text} "
                            f"has all right pixels, {a.text}, and at least "
                            f"1 - (1 - accuracy) / share, if it has all wrong ones")


def _unions(p):
    """Accuracy = sum IoU x union, where the unions sum to 2 - a and none exceeds 1."""
    if p.accuracy is None or len(p.iou.known) < 2 or not _is_complete(p.iou, p):
        return
    a = p.accuracy
    (low, next_low), (high, next_high) = (
        sorted(figure.low for figure in p.iou.known.values())[:2],
        sorted((figure.high for figure in p.iou.known.values()), reverse=True)[:2])
    yield Bound("accuracy", a, (low + next_low) / (1 + next_low),
                (high + next_high) / (1 + next_high),
                f"it is the sum of IoU x union over the classes, no union is more than all "
                f"pixels, and they sum to 2 - accuracy; the largest IoUs are {p.show(high)} and "
                f"{p.show(next_high)}, the least {p.show(low)} and {p.show(next_low)}")
    for label, share in p.share.known.items():
        others = sum(figure.high for other, figure in p.iou.known.items() if other != label)
        yield Bound(f"the share of class {label}", share, a.low - others, 1.0,
                    f"of the right pixels, {a.text}, the other classes have at most the sum of "
                    f"their IoUs, {p.show(min(1, others))}, and the rest is of this class")


def _shares(p):
    shares = p.share.known.values()
    if len(shares) > 1:
        yield Bound("the sum of the shares", _sum(p, shares), float(p.share.complete), 1.0,
                    "the shares of all classes in the valid pixels sum to 1")
    predicted = [Figure(share.value * recall.value / max(precision.value, EPSILON),
                        share.low * recall.low / precision.high, math.inf, "")
                 for _, share, recall, precision in _pairs(p.share, p.recall, p.precision)
                 if precision.high > 0]
    if predicted:
        yield Bound("the sum of share x recall / precision", _sum(p, predicted), 0.0, 1.0,
                    "that is the share of the class among the predictions")


def _sum(p, figures):
    value, low, high = (sum(figure[i] for figure in figures) for i in range(3))
    return Figure(value, low, high, p.show(value))


def _constant(p):
    """What is claimed to be the constant prediction of one class, of share f."""
    if not p.claims_constant:
        return
    K, label = p.num_classes, p.constant_class
    if label is None and p.iou.known and _is_complete(p.iou, p):
        best = max(p.iou.known, key=lambda label: p.iou.known[label].value)
        label = best if all(figure.high < p.iou.known[best].low
                            for other, figure in p.iou.known.items() if other != best) else None
    name = "one class" if label is None else f"class {label}"

    def of_class(measure):
        return measure.known.get(label)

    given = [(what, figure, of_share, to_share) for what, figure, of_share, to_share in (
        (f"the share of {name}", of_class(p.share), float, float),
        ("accuracy", p.accuracy, float, float),
        (f"the IoU of {name}", of_class(p.iou), float, float),
        (f"the precision of {name}", of_class(p.precision), float, float),
        (f"the Dice of {name}", of_class(p.dice), _dice, lambda dice: dice / (2 - dice)),
        ("FWIoU", p.fw_iou, lambda f: f**2, math.sqrt),
        ("mean IoU", p.mean_iou, lambda f: f / K, lambda m: m * K),
        ("mean Dice", p.mean_dice, lambda f: _dice(f) / K, lambda m: m * K / max(0.1, 2 - m * K)),
    ) if figure is not None and (K is not None or not what.startswith("mean"))]
    if given:
        (source, figure, _, to_share), *others = given
        low, high = (min(1.0, to_share(figure[i])) for i in (1, 2))
        for what, other, of_share, _ in others:
            means = "" if K is None else f", mean IoU f / {K}"
            yield Bound(what, other, of_share(low), of_share(high),
                        f"to predict always {name}, of share f, gives accuracy = IoU = precision "
                        f"= f{means} and FWIoU f^2, and {source} is {figure.text}"
                        + _hint(p, other is p.mean_iou))
    if label is None:
        return
    why = f"whoever always predicts {name} finds all of it, and nothing of any other class"
    if of_class(p.recall) is not None:
        yield Bound(f"the recall of {name}", of_class(p.recall), 1.0, 1.0, why)
    for kind, measure in (("IoU", p.iou), ("Dice", p.dice), ("recall", p.recall)):
        for other, figure in measure.known.items():
            if other != label:
                yield Bound(f"the {kind} of class {other}", figure, 0.0, 0.0, why)


def _hint(p, is_mean_iou):
    if not is_mean_iou or not p.mean_iou.low <= 1 / p.num_classes <= p.mean_iou.high:
        return ""
    return (f"; {p.mean_iou.text} is 1 / {p.num_classes}, the mean class accuracy of every "
            f"constant prediction: recall 1 in one class, 0 in all others")


RULES = (_dice_of_each_class, _mean_dice_of_mean_iou, _overlap_of_precision_and_recall, _fw_iou,
         _weighted_means, _means_of_the_classes, _mean_class_accuracy, _means_of_accuracy,
         _classes_of_accuracy, _unions, _shares)


# What follows

def _only_class_hit(p):
    """Return what accuracy and IoU say of the only class that is hit, as sentences."""
    hit = [label for label, figure in p.iou.known.items() if figure.value > 0]
    if p.accuracy is None or len(hit) != 1 or not _is_complete(p.iou, p):
        return []
    a, iou, label = p.accuracy, p.iou.known[hit[0]], hit[0]
    union = a.value / iou.value
    if union > 1:
        return []  # a contradiction
    sentences = [
        f"All right pixels are of class {label}, the only one with an IoU above 0. Its union of "
        f"truth and prediction is accuracy / IoU = {a.text} / {iou.text} = {p.show(union)} of the "
        f"pixels, so that class {label} is between {p.show(a.value)} and {p.show(union)} of the "
        f"truth."]
    if not Bound("", iou, a.low, a.high, "").holds:
        sentences.append(
            f"This is no constant prediction of class {label}, which would have accuracy = IoU. "
            f"At least {p.show(1 - union)} of the pixels lie outside that union: predicted as "
            f"other classes, and all wrong. Suspect the label mapping or the metric before the "
            f"model.")
    return sentences
