"""What is measured before the first step: the data as the model will get it, and the loss on it.

Nothing here reads a setting. What was asked for may not be what happens; and what is measured does
not know what was asked for.
"""

from contextlib import closing

import numpy as np

from minisegnet.imbalance import alignment
from minisegnet.imbalance.fingerprint import know_nothing, loss_floor
from minisegnet.imbalance.gradient_ledger import gradient_ledger
from minisegnet.layers import BatchNorm2d
from minisegnet.training.pair_inspection import inspect_pairs, nearest

PICTURES, VAL_PICTURES = 64, 16  # in the first batches
_MOST_PIXELS = 2**22  # of the first batches together
_WIDEST = 256  # px, of a picture that is compared with masks
_PROBED_BATCHES = 4
_PROBED_PIXELS = 2**14  # of a batch
_SURE = 10.0  # the true class's logit, where all others are 0: p of each other is 5e-5


def inspect(train_set, val_set, statistics, val_statistics, train_loader, val_loader, model,
            criterion, class_names):
    """Return what is known before the first step, the "start" record of debug.jsonl.

    `statistics` and `val_statistics` are the `ClassStatistics` of the two data sets. A dictionary
    of plain numbers, K-lists being per class:

    train, val    {"images", "pixels": [K], "images_with": [K]}: the masks, counted
    batches       per split, of the first batches: {"pictures", "pixels": [K], "ignored": pixels,
                  "foreign": [[label, pixels], ...], neither class nor ignored, "empty": batches
                  without a valid pixel, "batches"}
    input         {"mean", "std", "min", "max": [3], "pictures"} of the first training batches as
                  the model gets them; "val" within it, the same for validation
    label_path, transform          per split, see `inspect_pairs`
    alignment     `alignment.measure` of the first training batches, and those of `inspect_pairs`;
                  "val" within it, those of the validation. See `alignment.judge`.
    batch_norm    {"layers", "untrained": with running mean 0 and variance 1 exactly,
                  "frozen_untrained": of those, that use and keep them in training, "parts": {part
                  of the model: [layers, untrained]}}
    probe         see `probe_criterion`, on the first training batches
    baselines     [{"name", "pixel_accuracy", "mean_iou", "fw_iou", "mean_dice"}, ...] of
                  predictors that know nothing of the validation pictures
    floor         the least value that the training loss can have

    Reads up to 64 training and 32 validation pictures, and the first batches of epoch 1. Changes
    nothing: neither `model`, nor what the loaders will yield.
    """
    ignore_index = train_set.ignore_index
    with closing(train_loader.batches(1)) as batches:
        train = _FirstBatches(batches, len(class_names), ignore_index, PICTURES)
    with closing(val_loader.batches()) as batches:
        val = _FirstBatches(batches, len(class_names), ignore_index, VAL_PICTURES)
    pairs, val_pairs = inspect_pairs(train_loader), inspect_pairs(val_loader, pictures=32)
    return {
        "kind": "start", "num_classes": len(class_names), "class_names": list(class_names),
        "ignore_index": ignore_index,
        "train": _counted(statistics), "val": _counted(val_statistics),
        "batches": {"train": train.labels, "val": val.labels},
        "input": {**train.input, "val": val.input},
        **{key: {"train": pairs[key], "val": val_pairs[key]}
           for key in ("label_path", "transform")},
        "alignment": {**alignment.measure(*train.pairs, ignore_index), **pairs["alignment"],
                      "val": val_pairs["alignment"]},
        "batch_norm": _batch_norm(model),
        "probe": probe_criterion(criterion, train.targets, len(class_names), ignore_index),
        "baselines": [{key: getattr(baseline, key) for key in
                       ("name", "pixel_accuracy", "mean_iou", "fw_iou", "mean_dice")}
                      for baseline in know_nothing(val_statistics.pixels, class_names)],
        "floor": loss_floor(criterion, statistics.pixels),
    }


def _counted(statistics):
    return {"images": statistics.num_images, "pixels": statistics.pixels.tolist(),
            "images_with": statistics.images.tolist()}


class _FirstBatches:
    """What the first of `batches` hold, `pictures` or a little more, fewer if they are large.

    `labels` and `input` are parts of the record; `pairs` are images (N, H, W, 3) and masks
    (N, H, W) at a size to compare them at, none twice; `targets` the first batches' own.
    """

    def __init__(self, batches, num_classes, ignore_index, pictures):
        counts, seen, pixels = np.zeros(256, np.int64), 0, 0
        empty = number = 0
        sums, squares = np.zeros((2, 3))
        low, high = np.full(3, np.inf), np.full(3, -np.inf)
        pairs, self.targets = {}, []
        for batch in batches:
            found = np.bincount(batch.target.reshape(-1), minlength=256)
            counts += found
            number += 1
            empty += int(found.sum() == found[ignore_index])
            # Whole rows first: sums over pixels of three numbers each take six times as long.
            rows = batch.images.reshape(-1, 3 * batch.images.shape[2])
            for total, of_rows, combine in (
                    (sums, rows.sum(axis=0, dtype=np.float64), np.add),
                    (squares, np.einsum("rw,rw->w", rows, rows, dtype=np.float64), np.add),
                    (low, rows.min(axis=0), np.minimum), (high, rows.max(axis=0), np.maximum)):
                combine(total, combine.reduce(of_rows.reshape(-1, 3)), out=total)
            for name, *pair in zip(batch.names, *_reduced(batch.images, batch.target)):
                pairs.setdefault(name, pair)
            if len(self.targets) < _PROBED_BATCHES:
                self.targets.append(batch.target)
            seen, pixels = seen + len(batch.images), pixels + batch.images.size // 3
            if seen >= pictures or pixels >= _MOST_PIXELS:
                break
        mean = sums / pixels
        self.pairs = [np.stack(arrays) for arrays in zip(*pairs.values())]
        self.input = {"mean": mean.tolist(), "min": low.tolist(), "max": high.tolist(),
                      "std": np.sqrt(np.maximum(squares / pixels - mean**2, 0)).tolist(),
                      "pictures": seen}
        foreign = [[int(label), int(counts[label])] for label in np.flatnonzero(counts)
                   if label >= num_classes and label != ignore_index]
        self.labels = {"pictures": seen, "pixels": counts[:num_classes].tolist(),
                       "ignored": int(counts[ignore_index]), "foreign": foreign, "empty": empty,
                       "batches": number}


def _reduced(images, target):
    """Return images and targets at one size, at most about `_WIDEST` px a side."""
    N, H, W, C = images.shape
    f = -(-max(H, W) // _WIDEST)
    h, w = H // f, W // f
    if f > 1:
        images = images[:, :h * f, :w * f].reshape(N, h, f, w, f, C).mean(axis=(2, 4))
    return images, nearest(target, (h, w))


def _batch_norm(model):
    """Return the "batch_norm" of the record."""
    parts, frozen = {}, 0
    for name, layer in model.named_layers():
        if isinstance(layer, BatchNorm2d):
            count = parts.setdefault(name.split(".")[0], [0, 0])
            count[0] += 1
            untrained = (not layer.buffers["running_mean"].any()
                         and bool((layer.buffers["running_var"] == 1).all()))
            count[1] += untrained
            frozen += untrained and layer.frozen_statistics
    layers, untrained = np.sum([*parts.values(), [0, 0]], axis=0).tolist()
    return {"layers": layers, "untrained": untrained, "frozen_untrained": frozen,
            "parts": parts}


def probe_criterion(criterion, targets, num_classes, ignore_index=255):
    """Return what `criterion` asks for on some targets (N, H, W), whatever the model.

    It is given two predictions: uniform, where all logits are 0, and nearly perfect, where those
    of the true classes are 10: of 12 classes, the true one then has probability 0.9995. There a
    loss is at rest, but for what pulls the logits elsewhere: label smoothing asks every pixel for
    e / K of each class, times its weight, and so also for classes that never occur.

    pixels            [K] in the targets, whether the criterion passes over them or not
    loss_uniform, loss_perfect          the mean over the batches
    gradient_uniform  the L1 norm of dL/dlogits, summed over the batches
    share_uniform     [K] the shares in it of each true class's pixels
    pull_perfect      [K] the sum of the negative dL/dlogits of each logit at the nearly perfect
                      prediction, what pulls it up, as a share of gradient_uniform
    batches           those that had something to learn; 0: all losses and gradients are 0 too

    Large targets are thinned out evenly.
    """
    K = num_classes
    pixels, by_target, pull = np.zeros((3, K))
    losses = []
    for target in targets:
        every = max(1, int(np.ceil(np.sqrt(target.size / _PROBED_PIXELS))))
        target = target[:, ::every, ::every]
        pixels += np.bincount(target[(target < K) & (target != ignore_index)], minlength=K)
        target = np.where(target < K, target, criterion.ignore_index)
        if not _teaches(criterion, target, K):
            continue
        uniform = np.zeros((*target.shape, K), np.float32)
        perfect = np.where(np.arange(K) == target[..., None], np.float32(_SURE), np.float32(0))
        first, last = (gradient_ledger(criterion, logits, target) for logits in (uniform, perfect))
        losses.append((first.loss, last.loss))
        by_target += first.by_target
        pull += (last.matrix - last.signed).sum(axis=0) / 2
    total = by_target.sum()
    loss_uniform, loss_perfect = np.mean(losses, axis=0) if losses else (0.0, 0.0)
    return {"pixels": pixels.astype(int).tolist(), "loss_uniform": float(loss_uniform),
            "gradient_uniform": float(total),
            "share_uniform": (by_target / (total or 1)).tolist(),
            "loss_perfect": float(loss_perfect), "pull_perfect": (pull / (total or 1)).tolist(),
            "batches": len(losses)}


def _teaches(criterion, target, num_classes):
    """Return whether a pixel of `target` has a weight: a loss without any warns, once per run."""
    present = np.unique(target[target != criterion.ignore_index])
    weight = np.ones(num_classes) if criterion.weight is None else np.asarray(criterion.weight)
    return bool(weight[present].sum() > 0)
