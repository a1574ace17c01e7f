"""Transforms: image and mask move together, and a mask never gains a label."""

import numpy as np
import pytest

from minisegnet.datasets import transforms
from minisegnet.datasets.sample import Sample, labels_in
from minisegnet.datasets.transforms import (
    MEAN,
    STD,
    Resize,
    StandardAugment,
    check_labels,
    denormalize,
    make_augmentation,
    normalize,
    resize_mask,
)


def random_sample(rng, H=40, W=56):
    image = rng.integers(0, 256, (H, W, 3), dtype=np.uint8)
    return Sample(image, rng.integers(0, 12, (H, W), dtype=np.uint8), "random")


def ramps(H=96, W=128):
    """A picture that is its own mask: red and the mask grow along x, green along y."""
    y, x = np.mgrid[:H, :W].astype(np.uint8)
    return Sample(np.stack([x, y, x], axis=-1), x, "ramps"), y


@pytest.mark.parametrize("size", [(96, 128), (64, 80), (150, 100)])
def test_image_and_mask_move_together(size, monkeypatch):
    monkeypatch.setattr(transforms, "BRIGHTNESS", (1.0, 1.0))
    along_x, y = ramps()
    along_y = along_x._replace(mask=y)
    for seed in range(12):
        for sample, channel in ((along_x, 0), (along_y, 1)):
            out = StandardAugment(size)(sample, np.random.default_rng(seed))
            valid = out.mask != 255
            gap = out.image[..., channel].astype(float)[valid] - out.mask[valid]
            assert abs(gap).max() <= 2.0 and abs(gap.mean()) < 0.3


def test_padding_is_ignored_and_has_the_mean_colour():
    sample = Sample(np.zeros((40, 40, 3), np.uint8), np.zeros((40, 40), np.uint8), "black")
    edges = np.zeros(4, int)  # how often each edge of the window is padded
    for seed in range(20):
        out = StandardAugment((40, 40), ignore_index=254)(sample, np.random.default_rng(seed))
        outside = out.mask == 254
        assert (out.image[~outside] == 0).all()
        assert (out.image[outside] > 60).all()
        edges += [side.all() for side in (outside[0], outside[-1], outside[:, 0], outside[:, -1])]
    assert (edges > 0).all() and (edges < 20).all()


def test_scales_reach_from_seven_tenths_to_one_point_six():
    """The share of the window that the picture fills, or of the picture that is seen, says so."""
    mask = np.arange(200, dtype=np.uint8)[None].repeat(200, axis=0)
    sample = Sample(np.zeros((200, 200, 3), np.uint8), mask, "ramp")
    scales = []
    for seed in range(200):
        out = StandardAugment((200, 200))(sample, np.random.default_rng(seed))
        seen = np.ptp(labels_in(out.mask[out.mask != 255])) + 1
        filled = (out.mask != 255).any(axis=0).sum()
        scales.append(filled / seen)
    assert 0.69 <= min(scales) < 0.75 and 1.5 < max(scales) <= 1.63


@pytest.mark.parametrize("preset", ["none", "standard"])
def test_no_label_is_invented_and_nothing_is_mutated(preset, rng):
    sample = random_sample(rng)
    image, mask = sample.image.copy(), sample.mask.copy()
    transform = make_augmentation(preset, (33, 47))
    for _ in range(10):
        out = transform(sample, rng)
        assert out.image.shape == (33, 47, 3) and out.mask.shape == (33, 47)
        assert set(labels_in(out.mask)) <= set(labels_in(mask)) | {255}
    assert (sample.image == image).all() and (sample.mask == mask).all()


def test_an_invented_label_is_caught(rng):
    mask = np.array([[0, 4]], np.uint8)
    check_labels(mask, np.array([[4, 255]], np.uint8))
    with pytest.raises(ValueError, match="2"):
        check_labels(mask, np.array([[0, 2]], np.uint8))


def test_a_bilinear_mask_would_be_caught(rng, monkeypatch):
    monkeypatch.setattr(
        transforms,
        "resize_mask",
        lambda mask, size: transforms.resize_image(mask[..., None].repeat(3, 2), size)[..., 0],
    )
    sample = Sample(np.zeros((8, 8, 3), np.uint8), np.eye(8, dtype=np.uint8) * 9, "eye")
    with pytest.raises(ValueError, match="invented"):
        Resize((20, 20))(sample, rng)


def test_the_same_generator_gives_the_same_sample(rng):
    sample = random_sample(rng)
    a, b = (StandardAugment((32, 32))(sample, np.random.default_rng(5)) for _ in range(2))
    assert (a.image == b.image).all() and (a.mask == b.mask).all()


def test_resize_can_leave_the_mask_alone(rng):
    sample = random_sample(rng)
    out = Resize((20, 30), resize_mask=False)(sample, rng)
    assert out.image.shape == (20, 30, 3) and (out.mask == sample.mask).all()


def test_nearest_takes_the_pixel_under_the_centre():
    mask = np.array([[1, 2, 3, 4]], np.uint8)
    assert resize_mask(mask, (1, 2)).tolist() == [[2, 4]]
    assert resize_mask(mask, (2, 8)).tolist() == [[1, 1, 2, 2, 3, 3, 4, 4]] * 2


def test_normalize_follows_its_formula_and_back(rng):
    image = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    out = normalize(image)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, (image / 255 - MEAN) / STD, rtol=1e-5, atol=1e-6)
    assert (denormalize(out) == image).all()


def test_an_unknown_preset_is_refused():
    with pytest.raises(ValueError, match="strong"):
        make_augmentation("strong", (8, 8))
