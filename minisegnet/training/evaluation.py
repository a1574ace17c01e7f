"""Score a model on a data set: the mean loss and one confusion matrix."""

from contextlib import contextmanager

import numpy as np

from minisegnet.layers import inference_mode
from minisegnet.losses.upsampled import upsampled_prediction
from minisegnet.metrics import ConfusionMatrix


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


def predict_batch(model, images, size):
    """Return the most likely class per pixel, (N, *size) uint8, for normalised `images`.

    The coarse logits are enlarged to `size` directly, which may differ from the images' size.
    Sets the model to evaluation for the call.
    """
    with _evaluating(model):
        return upsampled_prediction(model.forward_coarse(images), size)


def evaluate(model, loader, criterion, *, progress=lambda batches: batches):
    """Return (mean loss, ConfusionMatrix) of `model` over the batches of `loader`.

    Targets may be larger than the images: the coarse logits are enlarged to the target's size.
    The loss is the mean of the batches' losses, weighted by their number of images.
    """
    confusion = ConfusionMatrix(model.num_classes, criterion.ignore_index)
    losses, images_seen = [], []
    with _evaluating(model):
        for batch in progress(loader.batches()):
            coarse = model.forward_coarse(batch.images)
            loss, _ = criterion.forward_upsampled(coarse, batch.target)
            confusion.update(batch.target, upsampled_prediction(coarse, batch.target.shape[1:]))
            losses.append(float(loss))
            images_seen.append(len(batch.images))
    return float(np.average(losses, weights=images_seen)), confusion
