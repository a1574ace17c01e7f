"""The losses of other projects, as far as their numbers differ from ours on the same prediction.

Plain formulas in NumPy, for reading and comparing: they give values, not gradients, and nothing in
a training uses them. Each names the project and the version whose source it was read from. All
take logits (N, H, W, K) and target (N, H, W), and return a float; with
l_i = -log p_i[y_i], valid pixels V (the labels that are not `ignore_index`) and all pixels A.
"""

from typing import NamedTuple

import numpy as np

from minisegnet.losses.cross_entropy import cross_entropy_forward
from minisegnet.losses.dice import dice_forward
from minisegnet.losses.focal import focal_forward

MONAI_ALPHA = 0.25  # the usual number, for the row that shows what MONAI makes of it


class Convention(NamedTuple):
    """One row of the table: whose loss, its formula in one line, and what it gives."""

    loss: str  # "ce", "weighted", "focal" or "dice"
    project: str
    formula: str
    value: float | None  # None where that project stops with an error


# Cross-entropy: what the mean is divided by

def smp_cross_entropy(logits, target, *, smooth_factor=0.0, ignore_index=255):
    """segmentation_models.pytorch 0.3 to 0.6, SoftCrossEntropyLoss: divides by all of A.

    [(1-e) sum_V l_i + e/K sum_V sum_c -log p_i[c]] / A: ignored pixels add nothing above, but
    count below. It has no class weights.
    """
    log_p, y, valid = _rows(logits, target, ignore_index)
    own = -_at(log_p, y)[valid].sum()
    every = -log_p[valid].sum() / logits.shape[3]
    return float(((1 - smooth_factor) * own + smooth_factor * every) / y.size)


def mmseg_cross_entropy(logits, target, *, weight=None, avg_non_ignore=False, ignore_index=255):
    """mmsegmentation 0.x (read: 0.30.0), CrossEntropyLoss: divides by A, with weights as well.

    sum_V w[y_i] l_i / A, or / V with `avg_non_ignore` (since 0.23): never by the sum of the
    weights. Without weights, 1.x (read: 1.2.2) is the same.
    """
    log_p, y, valid = _rows(logits, target, ignore_index)
    w = np.ones(logits.shape[3]) if weight is None else np.asarray(weight, np.float64)
    losses = -(w[y] * _at(log_p, y))[valid]
    return float(losses.sum() / (valid.sum() if avg_non_ignore else y.size))


def mmseg1_weighted_cross_entropy(logits, target, *, weight, ignore_index=255):
    """mmsegmentation 1.x (read: 1.2.2), CrossEntropyLoss with class_weight: torch's, or an error.

    sum_V w[y_i] l_i / sum_A w[y_i]. It looks the weights up by label before it knows which labels
    are ignored, so that an ignored 255 is an IndexError, as it is here.
    """
    log_p, y, valid = _rows(logits, target, ignore_index)
    total = np.asarray(weight, np.float64)[target.reshape(-1)].sum()
    return float(-(weight[y] * _at(log_p, y))[valid].sum() / total)


# Focal: softmax or sigmoids, and divided by what

def smp_focal(logits, target, *, gamma=2.0, alpha=None, mean_over_classes=True, ignore_index=255):
    """segmentation_models.pytorch, FocalLoss("multiclass"): each class against the rest.

    Sigmoids in place of a softmax: with q = sigmoid(z_c), q_t = q where c is the class and 1-q
    where not, sum over V and the K classes of (1-q_t)^gamma (-log q_t), divided by V K since
    0.6.0, and by V before (`mean_over_classes` False; read: 0.3.4, 0.5.0, 0.6.0). `alpha` is the
    factor where c is the class, 1-alpha where it is not.
    """
    losses, truth, valid = _one_against_rest(logits, target, gamma, ignore_index)
    if alpha is not None:
        losses = losses * np.where(truth, alpha, 1 - alpha)
    per_class = losses[valid].sum(axis=0) / valid.sum()  # (K,)
    return float(per_class.mean() if mean_over_classes else per_class.sum())


def mmseg_focal(logits, target, *, gamma=2.0, alpha=0.5, ignore_index=255):
    """mmsegmentation (read: 0.30.0, 1.2.2), FocalLoss: sigmoids, divided by A K.

    As `smp_focal` with alpha, whose default of 0.5 halves everything, but ignored pixels count
    below.
    """
    losses, truth, valid = _one_against_rest(logits, target, gamma, ignore_index)
    losses = losses * np.where(truth, alpha, 1 - alpha)
    return float(losses[valid].sum() / losses.size)


def monai_focal(logits, target, *, gamma=2.0, alpha=None, use_softmax=True, ignore_index=None):
    """MONAI (read: 1.6.1), FocalLoss(to_onehot_y=True): divided by all numbers, pixels times K.

    With `use_softmax` the sum is that of ours, sum (1-p_t)^gamma l_i, yet the mean is over the
    zeros of the other K-1 classes, too; without (the default there) it is over sigmoids. One
    `alpha` for the softmax means 1-alpha for class 0 and alpha for every other class: 0.25
    weighs the background three times as much. Given an `ignore_index` it divides by the pixels of
    V alone, and so is K times as large.
    """
    log_p, y, valid = _rows(logits, target, ignore_index)
    K = logits.shape[3]
    if use_softmax:
        log_pt = _at(log_p, y)
        losses = -(1 - np.exp(log_pt)) ** gamma * log_pt  # (A,), the other K-1 are 0
        if alpha is not None:
            losses = losses * np.where(y == 0, 1 - alpha, alpha)
    else:
        losses, truth, valid = _one_against_rest(logits, target, gamma, ignore_index)
        if alpha is not None:
            losses = losses * np.where(truth, alpha, 1 - alpha)
    return float(losses[valid].sum() / (valid.sum() if ignore_index is not None else K * y.size))


# Dice: which classes are averaged, and what is summed together

def smp_dice(logits, target, *, smooth=0.0, eps=1e-7, ignore_index=255):
    """segmentation_models.pytorch 0.4 to 0.6, DiceLoss("multiclass"): an absent class is perfect.

    D_c = (I + s) / max((S + T)/2 + s, eps), so that s is worth twice ours (read: 0.4.0, 0.5.0,
    0.6.0; in 0.3.4 it was worth the same); then the sum of 1 - D_c over the classes present,
    divided by all K.
    """
    p, t = _probabilities_and_truth(logits, target, ignore_index)
    intersection, predicted, truth = ((a.sum(axis=(0, 1))) for a in (p * t, p, t))  # (K,)
    score = (intersection + smooth) / np.maximum((predicted + truth) / 2 + smooth, eps)
    return float(((1 - score) * (truth > 0)).mean())


def monai_dice(logits, target, *, smooth=1e-5, ignore_index=255):
    """MONAI (read: 1.6.1), DiceLoss(to_onehot_y=True, softmax=True): an absent class is wrong.

    1 - (2 I + s) / (S + T + s), image by image, the mean over the images and all K classes: where
    a class is not there, any probability for it makes a loss of nearly 1.
    """
    p, t = _probabilities_and_truth(logits, target, ignore_index)
    intersection, predicted, truth = ((a.sum(axis=1)) for a in (p * t, p, t))  # (N, K)
    return float((1 - (2 * intersection + smooth) / (predicted + truth + smooth)).mean())


def mmseg_dice(logits, target, *, eps=1e-3, ignore_index=255):
    """mmsegmentation 1.x (read: 1.2.2), DiceLoss(use_sigmoid=False): classes in one sum, squared.

    1 - 2 sum p t / (sum p^2 + sum t^2 + 2 eps), over pixels and classes together, the mean over
    the images; no class is balanced. Ignored pixels have no t, but their p^2 counts. An ignored
    class is left out.
    """
    p, t = _probabilities_and_truth(logits, target, ignore_index, masked=False)
    kept = np.arange(logits.shape[3]) != ignore_index
    both, predicted, truth = (a[..., kept].sum(axis=(1, 2)) for a in (p * t, p**2, t**2))  # (N,)
    return float((1 - 2 * both / (predicted + truth + 2 * eps)).mean())


def unet_dice(logits, target, *, eps=1e-6, ignore_index=255):
    """milesial/Pytorch-UNet, dice_loss(multiclass=True) of utils/dice_score.py: 1 - mean p_t.

    Classes and pixels are flattened together: 1 - (2 sum p t + eps) / (sum p + sum t + eps), in
    which sum p and sum t are both the number of pixels. No class is balanced. (Earlier versions of
    the file took the mean over the classes.) It knows no ignored label; here such pixels are left
    out.
    """
    p, t = _probabilities_and_truth(logits, target, ignore_index)
    return float(1 - (2 * (p * t).sum() + eps) / (p.sum() + t.sum() + eps))


def conventions(logits, target, *, weight, gamma=2.0, alpha=None, smooth=1.0, label_smoothing=0.0,
                ignore_index=255):
    """Return the `Convention`s of one prediction, ours first among those of each loss.

    `weight` (K,) are class weights; `alpha`, one number, is that of MONAI and, for comparison, of
    ours. All have the same gamma, and smp's and MONAI's dice the same `smooth`, each in its way.
    The letters: P valid pixels, A all pixels, q_t the sigmoid of z_c where c is the class, else
    1 - that; e label smoothing; I, S and T as in `dice`.
    """
    ignore = {"ignore_index": ignore_index}
    soft = {"label_smoothing": label_smoothing, **ignore}
    alpha = MONAI_ALPHA if alpha is None else alpha
    valid = target != ignore_index
    some_ignored = not valid.all()
    monai = {"logits": logits[valid][None, None], "target": target[valid][None, None],
             "gamma": gamma}
    plain = "sum (1-p_t)^g (-log p_t)"
    each = "sum over c of (1-q_t)^g (-log q_t)"

    def ours(forward, **options):
        return float(forward(logits, target, **options)[0])

    try:
        mmseg1 = mmseg1_weighted_cross_entropy(logits, target, weight=weight, **ignore)
    except IndexError:
        mmseg1 = None
    sum_ce, sum_weighted = "sum (-log p_t)", "sum w_y (-log p_t)"
    smoothed = f", e = {label_smoothing:g}" if label_smoothing else ""
    unsmoothed = ", e = 0" if label_smoothing else ""
    rows = [
        ("ce", "torch, ours", f"{sum_ce} / P{smoothed}", ours(cross_entropy_forward, **soft)),
        ("ce", "smp SoftCrossEntropy", f"{sum_ce} / A{smoothed}",
         smp_cross_entropy(logits, target, smooth_factor=label_smoothing, **ignore)),
        ("ce", "mmseg", f"{sum_ce} / A{unsmoothed}; / P: avg_non_ignore",
         mmseg_cross_entropy(logits, target, **ignore)),
        ("weighted", "torch, ours", f"{sum_weighted} / sum w_y{smoothed}",
         ours(cross_entropy_forward, weight=weight, **soft)),
        ("weighted", "mmseg 0.x", f"{sum_weighted} / A{unsmoothed}",
         mmseg_cross_entropy(logits, target, weight=weight, **ignore)),
        ("weighted", "mmseg 1.x", f"as torch, but {ignore_index} has no w_y: an IndexError"
         if mmseg1 is None else f"{sum_weighted} / sum over A of w_y{unsmoothed}", mmseg1),
        ("focal", "ours", f"{plain} / P", ours(focal_forward, gamma=gamma, **ignore)),
        ("focal", "smp since 0.6.0", f"{each} / (P K)",
         smp_focal(logits, target, gamma=gamma, **ignore)),
        ("focal", "smp before 0.6.0", f"{each} / P",
         smp_focal(logits, target, gamma=gamma, mean_over_classes=False, **ignore)),
        ("focal", "mmseg, alpha 0.5", f"0.5 {each} / (A K)",
         mmseg_focal(logits, target, gamma=gamma, **ignore)),
        ("focal", "MONAI, sigmoids", "as smp since 0.6.0",
         monai_focal(**monai, use_softmax=False)),
        ("focal", "MONAI, softmax", f"{plain} / (P K)", monai_focal(**monai)),
        *[("focal", "MONAI, ignore_index", f"{plain} / P",
           monai_focal(logits, target, gamma=gamma, **ignore))] * some_ignored,
        ("focal", f"MONAI, alpha {alpha:g}", f"as its softmax, class 0 times {1 - alpha:g}, "
         f"others {alpha:g}", monai_focal(**monai, alpha=alpha)),
        ("focal", f"ours, alpha {alpha:g}", f"{plain} / P, all times {alpha:g}",
         ours(focal_forward, gamma=gamma, alpha=alpha, **ignore)),
        ("dice", "ours", "mean over present of 1 - (2I+s)/(S+T+s)",
         ours(dice_forward, smooth=smooth, **ignore)),
        ("dice", "smp", "sum over present of 1 - (2I+2s)/(S+T+2s), / K",
         smp_dice(logits, target, smooth=smooth, **ignore)),
        ("dice", "MONAI", "mean over all K of 1 - (2I+s)/(S+T+s)",
         monai_dice(logits, target, smooth=smooth, **ignore)),
        ("dice", "mmseg 1.x", "1 - 2 sum pt / (sum p^2 + sum t^2), all pooled",
         mmseg_dice(logits, target, **ignore)),
        ("dice", "Pytorch-UNet", "1 - mean p_t: all pooled",
         unet_dice(logits, target, **ignore)),
    ]
    return [Convention(*row) for row in rows]


def _rows(logits, target, ignore_index):
    """Return log p (A, K) float64, labels (A,) with 0 for ignored ones, and valid (A,) bool."""
    K = logits.shape[3]
    z = logits.reshape(-1, K).astype(np.float64)
    z = z - z.max(axis=1, keepdims=True)
    y = target.reshape(-1)
    valid = np.ones(y.shape, bool) if ignore_index is None else y != ignore_index
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True)), np.where(valid, y, 0), valid


def _at(log_p, y):
    """Return the entries (A,) of log_p (A, K) at the labels y (A,)."""
    return log_p[np.arange(y.size), y]


def _one_against_rest(logits, target, gamma, ignore_index):
    """Return the sigmoid focal losses (A, K), the truth (A, K) bool, and valid (A,) bool."""
    _, y, valid = _rows(logits, target, ignore_index)
    K = logits.shape[3]
    z = logits.reshape(-1, K).astype(np.float64)
    truth = y[:, None] == np.arange(K)
    log_qt = -np.logaddexp(0.0, np.where(truth, -z, z))  # log sigmoid(z), or log(1 - sigmoid(z))
    return -(-np.expm1(log_qt)) ** gamma * log_qt, truth, valid


def _probabilities_and_truth(logits, target, ignore_index, masked=True):
    """Return p and one-hot t (N, H*W, K), both 0 where ignored; p only if `masked`."""
    log_p, y, valid = _rows(logits, target, ignore_index)
    N, K = target.shape[0], logits.shape[3]
    p = np.exp(log_p) * (valid[:, None] if masked else 1.0)
    t = (y[:, None] == np.arange(K)) * valid[:, None]
    return p.reshape(N, -1, K), t.reshape(N, -1, K)
