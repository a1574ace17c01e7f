"""What a model predicts, and how well on a data set."""

from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from minisegnet.backend import asnumpy
from minisegnet.calibration import Calibration
from minisegnet.layers import inference_mode
from minisegnet.losses._softmax import classes_first, map_pixel_blocks
from minisegnet.losses.upsampled import upsampled_prediction
from minisegnet.metrics import ConfusionMatrix
from minisegnet.ops.upsample import upsample_bilinear_forward


@contextmanager
def _evaluating(model):
    """Within it, `model` is in evaluation and keeps nothing for a backward."""
    was_training = model.training
    model.eval()
    try:
        with inference_mode():
            yield
    finally:
        model.train(was_training)


def coarse_logits(model, images):
    """Return the coarse logits (N, h, w, K) of host `images` on the host, wherever `model` is."""
    return asnumpy(model.forward_coarse(model.xp.asarray(images)))


def predict_batch(model, images, size):
    """Return the most likely class per pixel, (N, *size) uint8, for normalised `images`.

    The coarse logits are enlarged to `size` directly, which may differ from the images' size.
    Sets the model to evaluation for the call.
    """
    with _evaluating(model):
        coarse = model.forward_coarse(model.xp.asarray(images))
        return asnumpy(upsampled_prediction(coarse, size))


def predict_probabilities(model, images, size):
    """Return softmax probabilities (N, *size, K), in the dtype of the normalised `images`.

    Like `predict_batch`, which needs a K-th of the memory, but says how sure the model is.
    """
    with _evaluating(model):
        return enlarged_softmax(coarse_logits(model, images), size)


def enlarged_softmax(coarse, size):
    """Return the softmax (N, *size, K) of coarse logits (N, h, w, K) enlarged to `size`."""
    probs, _ = upsample_bilinear_forward(coarse, size)

    def softmax(rows):  # (P, K), in place: the result is the only array of full size
        z = classes_first(rows)
        np.exp(z, out=z)
        z /= z.sum(axis=0)
        rows[...] = z.T

    map_pixel_blocks(softmax, probs.reshape(-1, probs.shape[3]))
    return probs


def evaluate(model, loader, criterion, *, progress=lambda batches: batches,
             observe=lambda batch, prediction: None):
    """Return (mean loss, ConfusionMatrix) of `model` over the batches of `loader`.

    Targets may be larger than the images: the coarse logits are enlarged to the target's size.
    `observe(batch, prediction)` sees every batch and its most likely classes (N, H, W) besides.
    The loss is the mean of the batches' losses, weighted by their number of images.
    """
    confusion = ConfusionMatrix(model.num_classes, criterion.ignore_index)
    losses, images_seen = [], []
    with _evaluating(model):
        for batch in progress(loader.batches()):
            coarse = model.forward_coarse(model.xp.asarray(batch.images))
            loss, _ = criterion.forward_upsampled(coarse, model.xp.asarray(batch.target))
            prediction = asnumpy(upsampled_prediction(coarse, batch.target.shape[1:]))
            confusion.update(batch.target, prediction)
            observe(batch, prediction)
            losses.append(asnumpy(loss).item())
            images_seen.append(len(batch.images))
    return float(np.average(losses, weights=images_seen)), confusion


class Scores(NamedTuple):
    """What `score` finds."""

    confusion: ConfusionMatrix
    counts: np.ndarray  # (I, 3, K) int64, `ConfusionMatrix.counts` of each image
    calibration: Calibration


def score(members, loaders, *, flip=False, ignore_index=255, progress=lambda batches: batches):
    """Return the `Scores` of probabilities averaged over `members`, one or several.

    A member is (model, size): `loaders[size]` yields the images resized to `size`, and all loaders
    the same targets in the same order. With `flip` each member sees its images mirrored as well.
    Probabilities are averaged at the target's size, one image at a time.
    """
    K = members[0][0].num_classes
    confusion, counts = ConfusionMatrix(K, ignore_index), []
    calibration = Calibration(K, ignore_index)
    for batches in progress(zip(*(loader.batches() for loader in loaders.values()))):
        batch_of = dict(zip(loaders, batches))
        coarse = [logits for model, size in members
                  for logits in _coarse_views(model, batch_of[size].images, flip)]
        for n, target in enumerate(batches[0].target):
            probs = _mean_softmax([logits[n:n + 1] for logits in coarse], target.shape)
            of_image = ConfusionMatrix(K, ignore_index)
            of_image.update(target, probs.argmax(axis=2))
            confusion.matrix += of_image.matrix
            counts.append(of_image.counts)
            calibration.update(target, probs)
    return Scores(confusion, np.stack(counts), calibration)


def _coarse_views(model, images, flip):
    """Return the coarse logits of `images`, and with `flip` those of their mirror images too."""
    with _evaluating(model):
        views = [coarse_logits(model, images)]
        if flip:
            mirrored = coarse_logits(model, np.ascontiguousarray(images[:, :, ::-1]))
            views.append(np.ascontiguousarray(mirrored[:, :, ::-1]))
    return views


def _mean_softmax(coarse, size):
    """Return the mean (*size, K) of the softmax of several logits (1, h, w, K) of one image."""
    total = enlarged_softmax(coarse[0], size)
    for logits in coarse[1:]:
        total += enlarged_softmax(logits, size)
    total *= 1 / len(coarse)
    return total[0]
