"""A few pixels, and what each loss makes of them: the value, the gradient, the share per class."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from minisegnet.imbalance.gradient_ledger import gradient_ledger
from minisegnet.losses.combined import combined_backward, combined_forward
from minisegnet.losses.cross_entropy import cross_entropy_backward, cross_entropy_forward
from minisegnet.losses.dice import dice_backward, dice_forward
from minisegnet.losses.focal import focal_backward, focal_forward
from minisegnet.tables import percent_text


@dataclass(frozen=True, eq=False)
class Example:
    """Rows of R predictions over K classes, each of which stands for as many pixels as it says."""

    rows: np.ndarray  # (R, K) logits, float64
    labels: np.ndarray  # (R,) int
    times: np.ndarray  # (R,) int
    weight: np.ndarray  # (K,)
    alpha: object = None  # (K,), one number, or None
    gamma: float = 2.0
    smooth: float = 1.0
    label_smoothing: float = 0.0
    ignore_index: int = 255

    @cached_property
    def logits(self):
        """The pixels as one image, (1, 1, A, K)."""
        return np.repeat(self.rows, self.times, axis=0)[None, None]

    @cached_property
    def target(self):
        """Their labels, (1, 1, A)."""
        return np.repeat(self.labels, self.times)[None, None]

    @cached_property
    def probs(self):
        """The softmax of the rows, (R, K)."""
        e = np.exp(self.rows - self.rows.max(axis=1, keepdims=True))
        return e / e.sum(axis=1, keepdims=True)

    @cached_property
    def counts(self):
        """Valid pixels per class, (K,)."""
        valid = self.target != self.ignore_index
        return np.bincount(self.target[valid], minlength=self.rows.shape[1])

    @property
    def ignored(self):
        """How many pixels are ignored."""
        return int((self.target == self.ignore_index).sum())

    def p_true(self, row):
        """The probability of a row's true class; None where the row is ignored."""
        label = self.labels[row]
        return None if label == self.ignore_index else float(self.probs[row, label])


class BoundLoss(NamedTuple):
    """A loss with its options, for `gradient_ledger`."""

    title: str
    oracle: str  # the name in verify.torch_oracle
    forward_function: Callable
    backward: Callable
    options: dict

    @property
    def ignore_index(self):
        return self.options["ignore_index"]

    def forward(self, logits, target):
        """Return the loss and its cache."""
        return self.forward_function(logits, target, **self.options)


class Column(NamedTuple):
    """What one loss makes of an `Example`."""

    title: str
    value: float
    gradient: np.ndarray  # (R, K) dL/dlogits of one of the pixels of each row
    shares: np.ndarray  # (K,) share of sum |dL/dlogits| that comes from the pixels of a class
    value_apart: float | None = None  # from torch's value; None where there is no torch
    gradient_apart: float | None = None  # the largest difference from torch's gradient


def losses_of(example):
    """Return the `BoundLoss`es of an `Example`, side by side."""
    e = example
    ignore = {"ignore_index": e.ignore_index}
    soft = {"label_smoothing": e.label_smoothing, **ignore}
    ce = cross_entropy_forward, cross_entropy_backward
    focal = focal_forward, focal_backward
    dice = dice_forward, dice_backward
    combined = combined_forward, combined_backward
    bound = [BoundLoss("ce", "cross_entropy", *ce, soft),
             BoundLoss("weighted ce", "cross_entropy", *ce, {"weight": e.weight, **soft}),
             BoundLoss("focal", "focal", *focal, {"gamma": e.gamma, **ignore})]
    if e.alpha is not None:
        bound.append(BoundLoss("focal alpha", "focal", *focal,
                               {"alpha": e.alpha, "gamma": e.gamma, **ignore}))
    return [*bound, BoundLoss("dice", "dice", *dice, {"smooth": e.smooth, **ignore}),
            BoundLoss("combined", "combined", *combined,
                      {"alpha": e.alpha, "gamma": e.gamma, "smooth": e.smooth, **ignore})]


def work_out(example):
    """Return a `Column` per loss, compared with torch where it is installed."""
    with_torch = importlib.util.find_spec("torch") is not None
    return [_column(loss, example, with_torch) for loss in losses_of(example)]


def _column(loss, example, with_torch):
    _, cache = loss.forward(example.logits, example.target)
    dlogits = loss.backward(1.0, cache)  # (1, 1, A, K)
    books = gradient_ledger(loss, example.logits, example.target)
    first = np.cumsum(example.times) - example.times  # (R,) a pixel of each row
    apart = (None, None)
    if with_torch:
        from minisegnet.verify import torch_oracle

        constants = {"target": example.target, **loss.options}
        [value], gradients = torch_oracle.gradients(
            getattr(torch_oracle, loss.oracle), {"logits": example.logits}, constants, 1.0)
        apart = (abs(books.loss - float(value)),
                 float(np.abs(dlogits - gradients["logits"]).max()))
    return Column(loss.title, books.loss, dlogits[0, 0, first], books.share_by_target, *apart)


def explanations(example, columns):
    """Return (title, formula with its numbers) per loss: how each value comes about."""
    e, P = example, int(example.counts.sum())
    value = {column.title: column.value for column in columns}
    total = float(e.counts @ e.weight)
    of_pixel, weighted = "(-log p_t)", "w (-log p_t)"
    if e.label_smoothing:
        of_pixel, weighted = (
            f"[{1 - e.label_smoothing:g} {here} + {e.label_smoothing:g} mean_c {everywhere}]"
            for here, everywhere in ((of_pixel, "(-log p_c)"), (weighted, "w_c (-log p_c)")))
    g = f"{e.gamma:g}"
    lines = [
        ("ce", f"sum of {of_pixel} / pixels = {_ratio(value['ce'], P)}"),
        ("weighted ce", f"sum of {weighted} / sum of w = {_ratio(value['weighted ce'], total)}"),
        ("", f"sum of w = {_weights_added(e)}"),
        ("focal", f"sum of (1-p_t)^{g} (-log p_t) / pixels = {_ratio(value['focal'], P)}"),
    ]
    if e.alpha is not None:
        lines.append(("focal alpha", f"sum of alpha (1-p_t)^{g} (-log p_t) / pixels = "
                                     f"{_ratio(value['focal alpha'], P)}"))
    scores, of_focal = dice_scores(e), "focal" if e.alpha is None else "focal alpha"
    lines += [
        ("dice", "mean of 1 - D over the classes present = "
                 f"({' + '.join(f'{1 - score:.4f}' for score in scores.values())}) "
                 f"/ {len(scores)}"),
        ("", f"D = (2I+s)/(S+T+s), s = {e.smooth:g}; I, S, T: sums of p t, p and t of a class"),
        ("combined", f"{of_focal} + dice = {value[of_focal]:.4f} + {value['dice']:.4f}"),
    ]
    return lines


def dice_scores(example):
    """Return {class: D_c} of the classes present."""
    scores = {}
    for c in np.flatnonzero(example.counts):
        only = np.eye(len(example.counts))[c]
        loss, _ = dice_forward(example.logits, example.target, smooth=example.smooth, weight=only,
                               ignore_index=example.ignore_index)
        scores[int(c)] = 1 - float(loss)
    return scores


def lessons(example, columns):
    """Return sentences on what the numbers show, each computed from this `Example`."""
    return [*_on_weights(example, columns), *_on_easy_pixels(example, columns),
            *_on_rare_classes(example, columns)]


def _on_weights(example, columns):
    """Return what the weights are divided by; nothing where they are all the same."""
    e, P = example, int(example.counts.sum())
    value = {column.title: column.value for column in columns}
    if np.ptp(e.weight[e.counts > 0]) == 0:
        return
    heavier = replace(e, weight=10 * e.weight, alpha=None if e.alpha is None else 10 * e.alpha)
    after = {loss.title: float(loss.forward(e.logits, e.target)[0])
             for loss in losses_of(heavier)}
    of_focal = "" if e.alpha is None else (
        f"; focal alpha goes from {value['focal alpha']:.4f} to {after['focal alpha']:.4f}")
    yield (f"All weights times 10: weighted ce stays at {after['weighted ce']:.4f}, since it "
           f"divides by their sum{of_focal}.")
    if e.label_smoothing == 0:
        plain, _ = focal_forward(e.logits, e.target, alpha=e.weight, gamma=0.0,
                                 ignore_index=e.ignore_index)
        yield (f"Focal with the weights as alpha and gamma 0 is {plain:.4f}, not weighted ce's "
               f"{value['weighted ce']:.4f}: the same sum, but over {P} pixels and not over "
               f"{float(e.counts @ e.weight):.6g} of weight.")


def _on_easy_pixels(example, columns):
    """Return what gamma does to the share of the easiest row; nothing where there is one row."""
    e = example
    valid = np.flatnonzero(e.labels != e.ignore_index)
    if len(valid) < 2 or e.gamma == 0:
        return
    easiest = max(valid, key=e.p_true)
    shares = {}
    for column in columns:
        amounts = e.times * np.abs(column.gradient).sum(axis=1)  # (R,)
        shares[column.title] = percent_text(amounts[easiest] / (amounts.sum() or 1))
    yield (f"Row {easiest} is the easiest, with p_t {e.p_true(easiest):.4g}; its share of the "
           f"gradient is {shares['ce']} in ce, {shares['focal']} in focal.")


def _on_rare_classes(example, columns):
    """Return what each loss gives the rarest class; nothing where all are as frequent."""
    present = np.flatnonzero(example.counts)
    c = min(present, key=lambda c: example.counts[c])
    if example.counts[c] < example.counts.max():
        yield (f"Class {c} has {percent_text(example.counts[c] / example.counts.sum())} of the "
               "pixels; its share of the gradient is " + ", ".join(
                   f"{percent_text(column.shares[c])} in {column.title}" for column in columns)
               + ".")


def _ratio(value, denominator):
    """Return "numerator / denominator" of a mean."""
    return f"{value * denominator:.6g} / {denominator:.6g}"


def _weights_added(example):
    """Return how the sum of the pixels' weights adds up, class by class."""
    return " + ".join(f"{example.counts[c]} x {example.weight[c]:.4g}"
                      for c in np.flatnonzero(example.counts))
