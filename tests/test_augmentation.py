"""Presets: what they may do to a sample, how far they go, and what no draw may ever do."""

from collections import Counter

import numpy as np
import pytest
from checks import frozen, non_contiguous
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from minisegnet.datasets import CamVid, FloorPlans, augmentation, transforms
from minisegnet.datasets.augmentation import (
    PRESETS,
    EnhancedAugment,
    StandardAugment,
    StrongAugment,
    make_augmentation,
)
from minisegnet.datasets.sample import Sample, labels_in
from minisegnet.datasets.transforms import MEAN_COLOUR
from minisegnet.errors import UserError
from minisegnet.plots.augmentation import augmentations

CROPPING = PRESETS[1:]
ODD_SIZES = [(40, 56), (1, 90), (70, 1), (1, 1), (9, 200), (150, 100)]


@pytest.fixture(scope="module")
def plans():
    return FloorPlans(length=6, size=(64, 80), rare_image_share=1.0)


def sample_of(mask):
    return Sample(mask[..., None].repeat(3, axis=2), mask, "sample")


def random_sample(H, W, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (H, W, 3), dtype=np.uint8)
    return Sample(image, rng.integers(0, 12, (H, W), dtype=np.uint8), "random")


def without_colour(preset, size):
    """The preset with its colours left alone: what remains is where pixels go."""
    transform = make_augmentation(preset, size)
    transform.brightness = transform.contrast = transform.saturation = (1.0, 1.0)
    transform.hue, transform.light = (0.0, 0.0), (1.0, 1.0)
    return transform


def outputs(transform, sample, seeds, focus=None):
    return [transform(sample, np.random.default_rng(seed), focus) for seed in range(seeds)]


@pytest.mark.parametrize("preset", PRESETS)
def test_plans_keep_their_labels_and_come_out_at_the_size(preset, plans):
    transform = make_augmentation(preset, (33, 47))
    for index in range(len(plans)):
        sample = plans[index]  # read-only: whoever writes into it is caught
        for out in outputs(transform, sample, 8):
            assert out.image.shape == (33, 47, 3) and out.mask.shape == (33, 47)
            assert out.image.dtype == out.mask.dtype == np.uint8 and out.name == sample.name
            assert set(labels_in(out.mask)) <= set(labels_in(sample.mask)) | {255}


@pytest.mark.parametrize("preset", CROPPING)
def test_real_pictures_keep_their_labels_and_show_the_class_asked_for(preset, camvid_root, rng):
    dataset = CamVid(camvid_root, "val")
    transform = make_augmentation(preset, (90, 120))
    for index in (0, 40):
        for label in labels_in(dataset[index].mask).tolist():
            mask = transform(dataset[index], rng, label).mask
            assert label in labels_in(mask)
            assert set(labels_in(mask)) <= set(labels_in(dataset[index].mask)) | {255}


@pytest.mark.parametrize("size", ODD_SIZES, ids=str)
@pytest.mark.parametrize("preset", PRESETS)
def test_a_picture_that_is_its_own_mask_stays_so(preset, size, monkeypatch):
    # Sampled as the mask is, the image must agree with it in every single pixel.
    monkeypatch.setattr(transforms, "_FOR_IMAGES", Image.Resampling.NEAREST)
    sample = sample_of(random_sample(*size).mask)
    for out in outputs(without_colour(preset, (24, 30)), sample, 20):
        same = (out.image == out.mask[..., None]).all(axis=2)
        filled = (out.mask == 255) & (out.image == MEAN_COLOUR).all(axis=2)
        assert (same | filled).all() and not (same & filled).any()


@pytest.mark.parametrize("size", [(96, 128), (64, 80), (150, 100)])
@pytest.mark.parametrize("preset", CROPPING)
def test_bilinear_images_stay_in_step_with_their_masks(preset, size):
    # Red and the mask grow along x, green along y.
    y, x = np.mgrid[:96, :128].astype(np.uint8)
    image = np.stack([x, y, x], axis=-1)
    for mask, channel in ((x, 0), (y, 1)):
        for out in outputs(without_colour(preset, size), Sample(image, mask, "ramps"), 10):
            # A turned or bent image blends with the padding beside it, and is rounded down.
            edge, shift = (3, 1.5) if preset == "strong" else (0, 0.5)
            inside = np.pad(out.mask != 255, edge)
            inside = sliding_window_view(inside, (2 * edge + 1,) * 2).all(axis=(2, 3))
            gap = out.image[..., channel].astype(float)[inside] - out.mask[inside]
            assert gap.size and abs(gap).max() <= 3.0 and abs(gap.mean()) < shift


@pytest.mark.parametrize("preset", PRESETS)
def test_the_draw_depends_on_the_generator_alone(preset):
    sample = random_sample(40, 56)
    transform = make_augmentation(preset, (32, 32))
    first = outputs(transform, sample, 4)
    spread = sample._replace(image=non_contiguous(sample.image), mask=non_contiguous(sample.mask))
    fixed = sample._replace(image=frozen(sample.image), mask=frozen(sample.mask))
    for again in (sample, spread, fixed):
        for a, b in zip(first, outputs(transform, again, 4)):
            assert (a.image == b.image).all() and (a.mask == b.mask).all()
    assert len({out.image.tobytes() for out in first}) == (1 if preset == "none" else 4)


@pytest.mark.parametrize("window", [(1, 1), (1, 30), (3, 2)], ids=str)
@pytest.mark.parametrize("preset", PRESETS)
def test_a_window_may_be_a_single_pixel(preset, window):
    for out in outputs(make_augmentation(preset, window), random_sample(40, 56), 20):
        assert out.image.shape == (*window, 3) and out.mask.shape == window


@pytest.mark.parametrize("preset", PRESETS)
def test_a_bilinear_mask_would_be_caught(preset, monkeypatch):
    monkeypatch.setattr(transforms, "_FOR_MASKS", Image.Resampling.BILINEAR)
    with pytest.raises(ValueError, match="invented"):
        outputs(make_augmentation(preset, (33, 47)), sample_of(9 * np.eye(20, dtype=np.uint8)), 5)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("size", ODD_SIZES, ids=str)
def test_what_is_all_ignored_stays_so(preset, size):
    sample = random_sample(*size)
    sample.mask[:] = 254
    for out in outputs(make_augmentation(preset, (24, 30), ignore_index=254), sample, 5):
        assert (out.mask == 254).all()


@pytest.mark.parametrize("preset", ["standard", "enhanced"])
def test_padding_is_ignored_has_a_colour_and_reaches_every_edge(preset):
    sample = Sample(np.zeros((40, 40, 3), np.uint8), np.zeros((40, 40), np.uint8), "black")
    edges = np.zeros(4, int)  # how often each edge of the window is padded
    for out in outputs(make_augmentation(preset, (40, 40), ignore_index=254), sample, 30):
        outside = out.mask == 254
        assert (out.image[~outside] < 30).all() and (out.image[outside] > 60).all()
        edges += [side.all() for side in (outside[0], outside[-1], outside[:, 0], outside[:, -1])]
    assert (edges > 0).all() and (edges < 30).all()


@pytest.mark.parametrize("kind, low, high", [(StandardAugment, 0.7, 1.6),
                                             (EnhancedAugment, 0.5, 2.0)])
def test_scales_reach_from_the_smallest_to_the_largest(kind, low, high):
    """The share of the window that the picture fills, or of the picture that is seen, says so."""
    mask = np.arange(200, dtype=np.uint8)[None].repeat(20, axis=0)
    scales = []
    for out in outputs(kind((20, 200)), sample_of(mask), 200):
        seen = np.ptp(labels_in(out.mask[out.mask != 255])) + 1
        filled = (out.mask != 255).any(axis=0).sum()
        scales.append(filled / seen)
    assert low - 0.01 < min(scales) < low + 0.05 and high - 0.1 < max(scales) < high + 0.03


def test_half_of_the_pictures_are_mirrored():
    mask = np.arange(80, dtype=np.uint8)[None].repeat(60, axis=0)
    rising = [labels[-1] > labels[0] for labels in
              (out.mask[out.mask != 255] for out in
               outputs(StandardAugment((60, 80)), sample_of(mask), 200))]
    assert 80 < sum(rising) < 120


@pytest.mark.parametrize("preset, spread", [("standard", 0.01), ("enhanced", 0.05)])
def test_colours_change_as_far_as_the_preset_says(preset, spread):
    """Standard scales all channels alike; enhanced changes their proportions as well."""
    flat = np.full((30, 40, 3), (120, 90, 60), np.uint8)
    sample = Sample(flat, np.zeros((30, 40), np.uint8), "flat")
    transform = make_augmentation(preset, (30, 40))
    transform.scales = (1.0, 1.0)
    colours = np.array([out.image[0, 0] / flat[0, 0] for out in outputs(transform, sample, 100)])
    assert 0.7 < colours[:, 1].min() < 0.8 and 1.2 < colours[:, 1].max() < 1.3
    proportions = colours[:, 0] / colours[:, 2]
    assert (np.ptp(proportions) > 10 * spread) == (preset == "enhanced")


def test_strong_does_each_of_its_changes_to_half_of_the_pictures(monkeypatch):
    calls, turns, boxes = Counter(), [], []
    for name in ("flip_vertical", "rotate", "distort", "shade", "cut_out"):
        def counted(sample, *args, name=name, function=getattr(augmentation, name)):
            calls[name] += 1
            if name == "rotate":
                turns.append(args[0])
            if name == "cut_out":
                boxes.append(args[0])
            return function(sample, *args)

        monkeypatch.setattr(augmentation, name, counted)
    outputs(StrongAugment((24, 32)), random_sample(40, 56), 300)
    assert len(calls) == 5 and all(120 < count < 180 for count in calls.values())
    assert -45 <= min(turns) < -40 and 40 < max(turns) <= 45
    assert set(map(len, boxes)) == {1, 2, 3}
    for top, left, bottom, right in sum(boxes, []):
        assert 0 <= top < bottom <= 24 and 0 <= left < right <= 32
        assert bottom - top <= 8 and right - left <= 11


# ---------------------------------------------------------------- crops around a class


@pytest.mark.parametrize("preset", CROPPING)
def test_a_crop_around_a_class_always_contains_it(preset):
    """Single pixels of a large picture, scaled down to a few: most would fall through the grid."""
    rng = np.random.default_rng(0)
    transform = make_augmentation(preset, (20, 28))
    for size in ((150, 210), (30, 30), (1, 90), (70, 1), (9, 200)):
        sample = random_sample(*size)
        sample.mask[:] = 0
        for _ in range(60):
            y, x = rng.integers(0, size)
            sample.mask[y, x] = 9
            out = transform(sample, rng, 9)
            assert (out.mask == 9).any(), (size, y, x)
            sample.mask[y, x] = 0


@pytest.mark.parametrize("preset", CROPPING)
def test_plans_are_cropped_around_every_class_they_have(preset, plans, rng):
    transform = make_augmentation(preset, (48, 60))
    for index in range(len(plans)):
        for label in labels_in(plans[index].mask).tolist():
            assert (transform(plans[index], rng, label).mask == label).any()


def test_the_class_lies_in_the_centre_or_as_near_as_the_edge_allows():
    transform = without_colour("standard", (40, 40))
    # In the middle; at the top, where rows 2 and 3 of 80 cannot be further down; bottom right.
    # Scaled down to 20 x 20 in the window of 40 x 40, it always finds its way into the middle.
    for scale, y, x, rows, columns in (
            (2, 20, 20, {19, 20}, {19, 20}), (2, 1, 20, {2, 3}, {19, 20}),
            (2, 38, 39, {36, 37}, {38, 39}), (0.5, 1, 20, {20}, {20})):
        transform.scales = (scale, scale)
        sample = random_sample(40, 40)
        sample.mask[:] = 0
        sample.mask[y, x] = 5
        for out in outputs(transform, sample, 6, focus=5):
            its_rows, its_columns = map(set, np.nonzero(out.mask == 5))
            assert its_rows == rows and its_columns in (columns, {39 - x for x in columns})


def test_every_pixel_of_the_class_is_a_centre_now_and_then():
    transform = without_colour("standard", (10, 10))
    transform.scales = (1.0, 1.0)
    sample = random_sample(10, 10)
    sample.mask[:] = 0
    sample.mask[3, 2:6] = 1
    drawn = Counter(augmentation._pixel_of(sample, np.random.default_rng(seed), 1)
                    for seed in range(200))
    assert set(drawn) == {(3, 2), (3, 3), (3, 4), (3, 5)} and min(drawn.values()) > 30


def test_a_class_that_the_picture_lacks_cannot_be_the_centre(rng):
    with pytest.raises(ValueError, match="sample random has no pixel of class 77"):
        StandardAugment((8, 8))(random_sample(20, 20), rng, 77)


def test_without_crops_there_is_nothing_to_centre(rng):
    with pytest.raises(UserError, match="class-crops"):
        make_augmentation("none", (8, 8))(random_sample(20, 20), rng, 3)


def test_an_unknown_preset_is_refused():
    with pytest.raises(ValueError, match="'stronger' is not one of none, standard"):
        make_augmentation("stronger", (8, 8))


# ---------------------------------------------------------------- the picture of examples


def test_the_figure_lays_labels_over_pictures_and_blackens_what_is_ignored():
    palette = np.array([[255, 255, 255], [200, 0, 0]], np.uint8)
    image = np.full((1, 3, 3), 100, np.uint8)
    before = Sample(image, np.array([[0, 1, 254]], np.uint8), "a")
    after = Sample(image, np.array([[254, 1, 0]], np.uint8), "a")
    rows = {"flip": [before, after], "none": [before, before]}
    figure = augmentations(rows, ("ground", "house"), palette, ignore_index=254)
    shown = [axes.get_images()[0].get_array().tolist() for axes in figure.axes]
    ground, house, ignored = [177, 177, 177], [150, 50, 50], [0, 0, 0]
    assert shown[0] == shown[2] == shown[3] == [[ground, house, ignored]]
    assert shown[1] == [[ignored, house, ground]]
    assert [axes.get_ylabel() for axes in figure.axes] == ["flip", "", "none", ""]
