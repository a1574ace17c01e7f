"""The fingerprint of knowing nothing: what predictors score that never look at the pictures.

A blind predictor calls a pixel class c with probability q_c, whatever is there. With f_c the share
of class c among the valid pixels of the truth, and many pixels,

    accuracy = sum_c f_c q_c
    IoU_c    = f_c q_c / (f_c + q_c - f_c q_c)          Dice_c = 2 f_c q_c / (f_c + q_c)

Always class k, q_k = 1: accuracy = IoU_k = f_k, all other IoUs 0. Uniform random, q = 1/K:
IoU_c = f_c / (1 + (K-1) f_c). By class share, q = f: IoU_c = f_c / (2 - f_c). A class with neither
truth nor predictions has no IoU, as in `ConfusionMatrix`; uniform guessing has one for all.

The loss has such marks too: what it costs to find all classes equally likely, where it stalls, and
how low it can fall.
"""

import math
from typing import NamedTuple

import numpy as np

from minisegnet.losses._overlap import class_shares
from minisegnet.losses._softmax import check_class_weights
from minisegnet.losses.cross_entropy import cross_entropy_terms
from minisegnet.losses.dice import dice_of_sums, dice_shares
from minisegnet.losses.logit_adjusted import logit_shift
from minisegnet.losses.tversky import tversky_of_sums, tversky_shares
from minisegnet.metrics import divide, mean_of_defined
from minisegnet.tables import number_text, ruled

# Effect sizes, not tests of significance: of millions of pixels every difference is significant.
INFORMATION = 0.01  # share of the uncertainty about the truth below which a prediction is blind
ACTIVE = 0.01  # IoU above a blind predictor's from which a class is recognised
SAME_SHARES = 0.05  # share of the pixels that would have to be called something else
SHARES_NAMED = 3  # classes in the name of a blind predictor that is none of the usual ones

SMOOTH = 1.0  # of the dice and tversky of a Criterion


class Baseline(NamedTuple):
    """What a blind predictor scores; the means are over the classes that have an IoU."""

    name: str
    pixel_accuracy: float
    mean_iou: float
    fw_iou: float
    mean_dice: float
    iou: np.ndarray  # (K,), nan where absent
    predicted: np.ndarray  # (K,) q, the shares of the classes among its predictions
    class_names: tuple  # K


def know_nothing(pixels, class_names):
    """Return the `Baseline`s of a data set with `pixels` (K,) per class, ignored ones left out.

    They are: always the most frequent class, uniform random, random by class share. None at all
    where there is no pixel.
    """
    pixels = np.asarray(pixels)
    K = pixels.size
    if not pixels.any():
        return ()
    k = int(pixels.argmax())
    return (_blind(_always(class_names[k]), pixels, np.eye(K)[k], class_names),
            _blind("uniform random guessing", pixels, np.full(K, 1 / K), class_names),
            _blind("random guessing by class share", pixels, pixels / pixels.sum(), class_names))


def _always(class_name):
    return f"always predicting {class_name}"


def _blind(name, pixels, predicted, class_names):
    """Return the `Baseline` that predicts the shares `predicted` (K,) of pixels (K,)."""
    f, q = pixels / pixels.sum(), predicted
    iou = divide(f * q, f + q - f * q)
    return Baseline(name, pixel_accuracy=float(f @ q), mean_iou=mean_of_defined(iou),
                    fw_iou=float(f[f > 0] @ iou[f > 0]),
                    mean_dice=mean_of_defined(divide(2 * f * q, f + q)),
                    iou=iou, predicted=q, class_names=tuple(class_names))


def resembles(confusion, baselines):
    """Return the blind predictor that a model cannot be told from, or None if it knows something.

    `confusion` is its ConfusionMatrix, `baselines` are from `know_nothing` of the same data set.
    Blind is a model whose predictions do not depend on the truth: the rows of its matrix are equal
    but for scale. That is so, for all practical purposes, where both hold:

    - the prediction removes less than 1 % of the uncertainty about the truth (mutual information
      over the entropy of the truth; Theil's U). A model that sees the classes but calls them by
      the wrong names is not blind, though its IoUs are 0.
    - no class has an IoU of 0.01 above that of guessing with the same shares. A model that finds
      but one class, however rare, is not blind.

    Which predictor it is, the shares of its predictions say: a baseline, or always one class, if
    at most 5 % of them are others; else one of its own, named by its shares. None where the truth
    has less than two classes, and without baselines.
    """
    _, truth, predicted = confusion.counts
    if not baselines or np.count_nonzero(truth) < 2:
        return None
    class_names = baselines[0].class_names
    own = _blind(_named_by_shares(predicted, class_names), truth, predicted / predicted.sum(),
                 class_names)
    seen = ~confusion.absent
    if (information(confusion.matrix) >= INFORMATION
            or (confusion.iou[seen] - own.iou[seen]).max() >= ACTIVE):
        return None
    k = int(predicted.argmax())
    constant = _blind(_always(class_names[k]), truth, np.eye(truth.size)[k], class_names)
    nearest = min((*baselines, constant), key=lambda baseline: _difference(baseline, own))
    return nearest if _difference(nearest, own) <= SAME_SHARES else own


def _difference(one, other):
    """Return the share of the pixels that two predictors must call by different names."""
    return float(np.abs(one.predicted - other.predicted).sum() / 2)


def _named_by_shares(predicted, class_names):
    share = predicted / predicted.sum()
    largest = [c for c in np.argsort(-share, kind="stable")[:SHARES_NAMED] if share[c] >= 0.005]
    return f"blind guessing ({', '.join(f'{class_names[c]} {share[c]:.0%}' for c in largest)})"


def information(matrix):
    """Return the share of the uncertainty about the truth that a prediction removes, 0 to 1.

    That is I(truth; prediction) / H(truth) of a confusion matrix (K, K), rows truth: 0 where the
    two are independent, 1 where the truth can be told from the prediction, if only under other
    names. What independence would show by chance, (rows - 1) (columns - 1) / (2 N) nats, is taken
    off (Miller, "Note on the bias of information estimates", 1955). nan where the truth has one
    class, or none.
    """
    joint = np.asarray(matrix, np.float64)
    N = joint.sum()
    truth, predicted = joint.sum(axis=1), joint.sum(axis=0)
    if np.count_nonzero(truth) < 2:
        return float("nan")
    expected = np.outer(truth, predicted) / N
    some = joint > 0
    mutual = float((joint[some] * np.log(joint[some] / expected[some])).sum()) / N
    chance = (np.count_nonzero(truth) - 1) * (np.count_nonzero(predicted) - 1) / (2 * N)
    share = truth[truth > 0] / N
    return max(0.0, mutual - chance) / -float(share @ np.log(share))


def loss_floor(criterion, pixels):
    """Return the largest lower bound of the loss of a batch with `pixels` (K,) per class.

    It depends on their shares only where there are class weights as well as smoothing.

    Only label smoothing e keeps a loss above 0. With a_yc = (1-e) w_y [c = y] + (e/K) w_c, every
    pixel of class y asks for class c with the weight a_yc; best is to predict these weights, made
    to sum to 1. What is left is, with A_y = sum_c a_yc and n_y the pixels,

        sum_y n_y (A_y ln A_y - sum_c a_yc ln a_yc) / sum_y n_y w_y

    All other losses are sums of terms that are not negative, and go to 0 as the logits of the true
    classes grow, whatever the weights, the prior, or the mode of dice.
    """
    pixels = np.asarray(pixels)
    if criterion.name != "ce" or not criterion.label_smoothing:
        return 0.0
    K, e = pixels.size, criterion.label_smoothing
    w = check_class_weights(criterion.weight, K)
    a = (1 - e) * np.diag(w) + e / K * w  # (K, K), row the target
    total = a.sum(axis=1)
    rest = _x_ln_x(total) - _x_ln_x(a).sum(axis=1)
    return float(divide(pixels @ rest, pixels @ w)) if pixels @ w > 0 else 0.0


def _x_ln_x(x):
    return x * np.log(np.where(x > 0, x, 1.0))


def loss_of_uniform(criterion, pixels):
    """Return the loss of finding all K classes equally likely, where an untrained model begins.

    `pixels` (K,) are those of each class; 0 if there are none. Unweighted cross-entropy is ln K.
    """
    pixels = np.asarray(pixels)
    K, P = pixels.size, pixels.sum()
    if P == 0:
        return 0.0
    uniform = np.full(K, 1 / K)
    if criterion.name in ("ce", "ohem"):  # all pixels cost alike: which are hard does not matter
        terms = cross_entropy_terms(pixels, criterion.weight, criterion.label_smoothing, float)
        return float(pixels @ terms.total[:K]) * math.log(K)
    if criterion.name == "logit_adjusted":
        shift = logit_shift(criterion.prior, criterion.tau, K, float)
        terms = cross_entropy_terms(pixels, criterion.weight, 0.0, float)
        return float((pixels * terms.total[:K]) @ (np.log(np.exp(shift).sum()) - shift))
    if criterion.name in ("dice", "tversky", "lovasz"):
        return _overlap_loss(criterion, pixels, uniform)
    alpha = check_class_weights(criterion.weight, K, "alpha")
    focal = float(pixels @ alpha) / P * (1 - 1 / K)**criterion.gamma * math.log(K)
    if criterion.name == "focal":
        return focal
    return (criterion.lambda_focal * focal
            + criterion.lambda_dice * _overlap_loss(criterion, pixels, uniform))


def stall_value(criterion, pixels):
    """Return what the part of a loss that is made of overlaps is worth while one class is all.

    That is 1 - D_k / K for the dice of K classes present: class k, predicted everywhere, has dice
    D_k = 2 f_k / (1 + f_k), near 1 if it dominates, and every other class next to none. Hence the
    plateau near 1 - 1/K: not a broken loss, but one class of K right. dice_mode "smp" counts
    absent classes as right, which puts it near (present - 1) / K. `pixels` (K,) are those of each
    class, k is the most frequent. None for a loss without overlaps, or without a pixel.
    """
    pixels = np.asarray(pixels)
    if criterion.name not in ("dice", "combined", "tversky", "lovasz") or not pixels.any():
        return None
    return _overlap_loss(criterion, pixels, np.eye(pixels.size)[pixels.argmax()])


def _overlap_loss(criterion, pixels, q):
    """Return dice (also of combined), tversky or lovasz of the probabilities q (K,) everywhere."""
    P = pixels.sum()
    if criterion.name == "lovasz":
        shares = class_shares(pixels, "present", criterion.weight, "Lovasz")
        f = pixels / P
        # Where q <= 1/2 all true pixels are worse than all others, and come first: see lovasz.py.
        return float(shares @ np.where(q <= 0.5, 1 - q, q * (1 - f) + (1 - q) * f))
    sums = (pixels * q, P * q, pixels)
    if criterion.name == "tversky":
        alpha, beta = criterion.tversky_alpha, criterion.tversky_beta
        shares = tversky_shares(pixels, alpha, beta, SMOOTH, "present", criterion.weight)
        return tversky_of_sums(*sums, shares, alpha, beta, SMOOTH)[0]
    weight = criterion.weight if criterion.name == "dice" else None
    shares, smooth = dice_shares(pixels, SMOOTH, "present", weight, criterion.dice_mode)
    return dice_of_sums(*sums, shares, smooth, False)[0]


def format_fingerprint(baselines, criterion, pixels):
    """Return the lines to print before training: the `baselines`, and the marks of the loss.

    `pixels` (K,) are those of each class in the data set that the baselines are of.
    """
    if not baselines:
        return ["no valid pixel to validate on: there is no score"]
    columns = ("pixel_accuracy", "mean_iou", "fw_iou", "mean_dice")
    rows = [("knows nothing of the pictures", "accuracy", "mean IoU", "FWIoU", "mean Dice",
             "classes in the means")]
    rows += [(baseline.name, *(number_text(getattr(baseline, key), ".4f") for key in columns),
              str(np.count_nonzero(~np.isnan(baseline.iou)))) for baseline in baselines]
    return [*ruled(rows), *_loss_lines(criterion, np.asarray(pixels))]


def _loss_lines(criterion, pixels):
    K, e = pixels.size, criterion.label_smoothing
    uniform, floor = loss_of_uniform(criterion, pixels), loss_floor(criterion, pixels)
    lines = [f"loss {criterion.name}: {uniform:.4g} where all {K} classes are equally likely"
             + (f" (ln {K})" if math.isclose(uniform, math.log(K), rel_tol=1e-9) else "")
             + (f"; label smoothing {e:g} keeps it above {floor:.4g}"
                if floor else "; can fall to 0")]
    stall = stall_value(criterion, pixels)
    if stall is not None:
        present = np.count_nonzero(pixels)
        part = "its dice" if criterion.name == "combined" else criterion.name
        lines.append(f"{part} stalls at {stall:.4g} while one class is predicted everywhere: 1 of "
                     f"the {present} present is found, {present - 1} are not")
    return lines
