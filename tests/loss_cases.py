"""Batches and comparisons that the tests of the losses share."""

import numpy as np

from minisegnet.losses import _softmax


def random_batch(rng, *, shape=(2, 5, 7), num_classes=4, dtype=np.float64, scale=2.0,
                 ignore_index=255, ignored=0.2, target_dtype=np.int64):
    """Return logits (N, H, W, K) and target (N, H, W) with a share of ignored pixels."""
    logits = (scale * rng.standard_normal((*shape, num_classes))).astype(dtype)
    target = rng.integers(0, num_classes, shape).astype(target_dtype)
    target[rng.random(shape) < ignored] = ignore_index
    return logits, target


def relative_error(found, expected):
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    return np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-300)


def assert_gradient_matches_differences(loss_of, x, gradient, rng, *, step=1e-5, tolerance=1e-7):
    """Compare the gradient (float64) with central differences, number by number."""
    expected = np.empty_like(x)
    for position in np.ndindex(x.shape):
        shifted = x.copy()
        shifted[position] += step
        above = loss_of(shifted)
        shifted[position] -= 2 * step
        expected[position] = (above - loss_of(shifted)) / (2 * step)
    assert relative_error(gradient, expected) < tolerance


def to_torch(torch, logits, target):
    """Return torch's (N, K, H, W) float64 logits that want a gradient, and int64 target."""
    z = torch.tensor(np.moveaxis(logits, 3, 1).astype(np.float64), requires_grad=True)
    return z, torch.tensor(target.astype(np.int64))


def from_torch(gradient):
    return np.moveaxis(gradient.numpy(), 1, 3)


def probabilities(logits):
    """Softmax by its definition, in float64."""
    z = logits.astype(np.float64)
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def warn_afresh(monkeypatch):
    """Forget for one test which warnings were given, so that it sees its own."""
    monkeypatch.setattr(_softmax, "_warned", set())


def oracle_loss_and_gradient(torch, name, logits, target, dloss, **options):
    """Return the loss `name` of `verify.torch_oracle` and dloss times its gradient."""
    from minisegnet.verify import torch_oracle  # needs torch, hence the fixture

    options = {key: np.array(value, np.float64) if isinstance(value, list) else value
               for key, value in options.items()}
    [loss], gradients = torch_oracle.gradients(
        getattr(torch_oracle, name), {"logits": logits}, {"target": target, **options}, dloss)
    return loss, gradients["logits"]
