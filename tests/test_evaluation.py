"""Evaluation: pooled over the batches, in evaluation mode, targets of any size."""

import numpy as np
import pytest

from minisegnet.datasets import DataLoader, Sample
from minisegnet.losses.criterion import Criterion
from minisegnet.metrics import ConfusionMatrix
from minisegnet.models import build_model
from minisegnet.ops import upsample_bilinear_forward
from minisegnet.training.evaluation import evaluate, predict_batch


@pytest.fixture
def dataset(rng):
    return [Sample(rng.integers(0, 256, (32, 48, 3), np.uint8),
                   rng.integers(0, 4, (64, 96), np.uint8), str(i)) for i in range(5)]


@pytest.fixture
def model():
    model = build_model("mini", 4, seed=3)
    model.classifier.params["weight"] *= 100  # predictions of more than one class
    return model


def test_evaluation_pools_what_plain_logits_predict(dataset, model):
    criterion = Criterion()
    loss, confusion = evaluate(model, DataLoader(dataset, 2), criterion)
    expected, losses = ConfusionMatrix(4), []
    model.eval()
    for batch in DataLoader(dataset, 1).batches():
        logits, _ = upsample_bilinear_forward(model.forward_coarse(batch.images), (64, 96))
        expected.update(batch.target, logits.argmax(axis=3))
        losses.append(criterion.forward(logits, batch.target)[0])
    np.testing.assert_array_equal(confusion.matrix, expected.matrix)
    assert len(np.flatnonzero(confusion.matrix.sum(axis=0))) > 1
    assert loss == pytest.approx(np.mean(losses), rel=1e-5)


def test_evaluation_changes_nothing_in_the_model(dataset, model):
    before = {name: array.copy() for name, array in model.named_buffers()}
    evaluate(model, DataLoader(dataset, 5), Criterion())
    assert model.training and model.aspp.dropout.training
    for name, array in model.named_buffers():
        np.testing.assert_array_equal(array, before[name])
    assert all(layer._cache is None for _, layer in model.named_layers())


def test_predict_batch_gives_the_size_asked_for(dataset, model):
    batch = next(DataLoader(dataset, 3).batches())
    prediction = predict_batch(model, batch.images, (50, 70))
    assert prediction.shape == (3, 50, 70) and prediction.dtype == np.uint8
