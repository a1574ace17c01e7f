"""Evaluation: pooled over the batches, in evaluation mode, targets of any size, any average."""

import numpy as np
import pytest
from checks import assert_agrees

from minisegnet.datasets import DataLoader, Resize, Sample
from minisegnet.losses.criterion import Criterion
from minisegnet.metrics import ConfusionMatrix
from minisegnet.models import build_model
from minisegnet.ops import upsample_bilinear_forward
from minisegnet.training.evaluation import (
    evaluate,
    predict_batch,
    predict_probabilities,
    score,
)

SIZE = (32, 48)


@pytest.fixture
def dataset(rng):
    return [Sample(rng.integers(0, 256, (32, 48, 3), np.uint8),
                   rng.integers(0, 4, (64, 96), np.uint8), str(i)) for i in range(5)]


def sure_model(seed):
    model = build_model("mini", 4, seed=seed)
    model.classifier.params["weight"] *= 100  # predictions of more than one class
    return model


@pytest.fixture
def model():
    return sure_model(3)


def loaders_of(dataset, *sizes, batch_size=2):
    return {size: DataLoader(dataset, batch_size, num_workers=0,
                             transform=Resize(size, resize_mask=False)) for size in sizes}


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


@pytest.mark.parametrize("of", [
    lambda model, dataset: evaluate(model, DataLoader(dataset, 5), Criterion()),
    lambda model, dataset: score([(model, SIZE)], loaders_of(dataset, SIZE), flip=True),
    lambda model, dataset: predict_probabilities(
        model, next(DataLoader(dataset, 5).batches()).images, SIZE)],
    ids=["evaluate", "score", "predict_probabilities"])
def test_evaluation_changes_nothing_in_the_model(dataset, model, of):
    before = {name: array.copy() for name, array in model.named_buffers()}
    of(model, dataset)
    assert model.training and model.aspp.dropout.training
    for name, array in model.named_buffers():
        np.testing.assert_array_equal(array, before[name])
    assert all(layer._cache is None for _, layer in model.named_layers())


def test_predict_batch_gives_the_size_asked_for(dataset, model):
    batch = next(DataLoader(dataset, 3).batches())
    prediction = predict_batch(model, batch.images, (50, 70))
    assert prediction.shape == (3, 50, 70) and prediction.dtype == np.uint8


@pytest.mark.parametrize("size", [(50, 70), (20, 31), (1, 1)])
def test_probabilities_are_the_softmax_of_the_enlarged_logits(dataset, model, size):
    images = next(DataLoader(dataset, 3).batches()).images
    probs = predict_probabilities(model, images, size)
    assert probs.shape == (3, *size, 4) and probs.dtype == np.float32
    model.eval()
    logits, _ = upsample_bilinear_forward(model.forward_coarse(images).astype(float), size)
    expected = np.exp(logits) / np.exp(logits).sum(axis=3, keepdims=True)
    assert_agrees(probs, expected, 1e-5)
    np.testing.assert_array_equal(probs.argmax(axis=3), predict_batch(model, images, size))


def test_probabilities_of_huge_logits_are_finite(dataset, model):
    model.classifier.params["weight"] *= 1e4
    probs = predict_probabilities(model, next(DataLoader(dataset, 3).batches()).images, SIZE)
    assert np.isfinite(probs).all() and probs.max() == 1


def test_one_model_scores_as_it_does_in_training(dataset, model):
    dataset[0].mask[:9] = 255
    _, expected = evaluate(model, DataLoader(dataset, 2), Criterion())
    scores = score([(model, SIZE)], loaders_of(dataset, SIZE))
    np.testing.assert_array_equal(scores.confusion.matrix, expected.matrix)
    assert scores.counts.shape == (5, 3, 4)
    np.testing.assert_array_equal(scores.counts.sum(axis=0), expected.counts)
    assert scores.counts[0, 1].sum() == 55 * 96
    np.testing.assert_array_equal(scores.calibration.classes.hits.sum(axis=1), expected.counts[1])
    assert (scores.calibration.top_label.hits.sum() == expected.counts[0].sum())


def test_an_ensemble_of_a_model_with_itself_is_the_model(dataset, model):
    loaders = loaders_of(dataset, SIZE)
    alone, twice = (score([(model, SIZE)] * n, loaders) for n in (1, 2))
    np.testing.assert_array_equal(alone.confusion.matrix, twice.confusion.matrix)
    np.testing.assert_array_equal(alone.calibration.classes.count,
                                  twice.calibration.classes.count)


def test_probabilities_are_averaged_over_models_scales_and_mirror_images(dataset, model):
    other, large = sure_model(4), (40, 60)
    scores = score([(model, SIZE), (model, large), (other, SIZE)],
                   loaders_of(dataset, SIZE, large), flip=True)
    expected = ConfusionMatrix(4)
    for batches in zip(*(loader.batches() for loader in loaders_of(dataset, SIZE,
                                                                   large).values())):
        probs = 0
        for each, images in ((model, batches[0].images), (model, batches[1].images),
                             (other, batches[0].images)):
            probs = probs + predict_probabilities(each, images, (64, 96))
            mirrored = predict_probabilities(each, images[:, :, ::-1].copy(), (64, 96))
            probs = probs + mirrored[:, :, ::-1]
        expected.update(batches[0].target, probs.argmax(axis=3))
    difference = np.abs(scores.confusion.matrix - expected.matrix).sum()
    assert difference <= 2e-4 * expected.matrix.sum()  # ties, by the order of summation
    for part in ([(model, SIZE)], [(model, large)], [(other, SIZE)]):
        alone = score(part, loaders_of(dataset, SIZE, large), flip=True)
        assert np.abs(alone.confusion.matrix - expected.matrix).sum() > 100 * difference + 100


def test_with_flip_a_mirrored_data_set_scores_the_same(dataset, model):
    mirrored = [s._replace(image=s.image[:, ::-1], mask=s.mask[:, ::-1]) for s in dataset]
    for flip, limit in ((True, 10), (False, np.inf)):
        one, other = (score([(model, SIZE)], loaders_of(data, SIZE), flip=flip).confusion.matrix
                      for data in (dataset, mirrored))
        difference = np.abs(one - other).sum()
        assert difference <= limit
    assert difference > 100  # without it they do not


def test_masks_of_several_sizes_are_scored_at_their_own(dataset, model, rng):
    dataset[1] = dataset[1]._replace(mask=rng.integers(0, 4, (20, 31), np.uint8))
    scores = score([(model, SIZE)], loaders_of(dataset, SIZE, batch_size=1))
    assert scores.counts[:, 1].sum(axis=1).tolist() == [6144, 620, 6144, 6144, 6144]
