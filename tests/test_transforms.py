"""Transforms: image and mask move together, and a mask never gains a label."""

import numpy as np
import pytest
from checks import frozen, non_contiguous
from PIL import Image

from minisegnet.datasets import transforms
from minisegnet.datasets.sample import Sample
from minisegnet.datasets.transforms import (
    MEAN,
    MEAN_COLOUR,
    STD,
    Resize,
    check_labels,
    cut_out,
    denormalize,
    distort,
    flip,
    flip_vertical,
    grid_nodes,
    jitter_colour,
    normalize,
    resize_image,
    resize_mask,
    resized_crop,
    rotate,
    shade,
    warp,
)
from minisegnet.errors import UserError

SIZES = [(40, 56), (1, 9), (7, 1), (1, 1), (33, 200)]


def random_sample(rng, H=40, W=56):
    image = rng.integers(0, 256, (H, W, 3), dtype=np.uint8)
    return Sample(image, rng.integers(0, 12, (H, W), dtype=np.uint8), "random")


def own_mask(rng, H, W):
    """A picture that is its own mask, a tenth of it ignored."""
    mask = rng.integers(0, 12, (H, W), dtype=np.uint8)
    mask[rng.random((H, W)) < 0.1] = 255
    return Sample(mask[..., None].repeat(3, axis=2), mask, "own mask")


def stays_its_own_mask(out, ignore_index=255):
    """Whether each pixel shows its label, or, ignored, the mean colour or what was ignored."""
    same = (out.image == out.mask[..., None]).all(axis=2)
    filled = (out.mask == ignore_index) & (out.image == MEAN_COLOUR).all(axis=2)
    return bool((same | filled).all())


def grey(image):
    return image @ np.array([0.299, 0.587, 0.114])


# Each changes where pixels are; called with a sample and random numbers.
GEOMETRY = {
    "flip": lambda s, rng: flip(s),
    "flip_vertical": lambda s, rng: flip_vertical(s),
    "resized_crop, smaller": lambda s, rng: resized_crop(s, (13, 11), -2, 3, (20, 9)),
    "resized_crop, larger": lambda s, rng: resized_crop(s, (130, 71), 40, -6, (20, 90)),
    "rotate": lambda s, rng: rotate(s, rng.uniform(-180, 180)),
    "distort": lambda s, rng: distort(s, rng.uniform(-4, 4, (2, 3, 2))),
    "warp": lambda s, rng: warp(s, rng.uniform(-5, 40, (4, 3, 2))),
    "cut_out": lambda s, rng: cut_out(s, [(0, 0, 3, 4), (5, 2, 9, 90)]),
}
COLOUR = {
    "jitter_colour": lambda s, rng: jitter_colour(s, brightness=1.2, contrast=0.8, saturation=1.3,
                                                  hue=0.1),
    "shade": lambda s, rng: shade(s, [(0, 0), (0, 30), (20, 30)], 0.5),
}


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", GEOMETRY)
def test_a_picture_that_is_its_own_mask_stays_so(name, size, rng, monkeypatch):
    # Sampled as the mask is, the image must agree with it in every single pixel.
    monkeypatch.setattr(transforms, "_FOR_IMAGES", Image.Resampling.NEAREST)
    for _ in range(5):
        sample = own_mask(rng, *size)
        out = GEOMETRY[name](sample, rng)
        assert stays_its_own_mask(out)
        check_labels(sample.mask, out.mask)


@pytest.mark.parametrize("name", [*GEOMETRY, *COLOUR])
def test_inputs_stay_as_they_are_and_need_not_be_contiguous(name, rng):
    sample = random_sample(rng)
    function = {**GEOMETRY, **COLOUR}[name]
    out = function(sample._replace(image=frozen(sample.image), mask=frozen(sample.mask)),
                   np.random.default_rng(1))
    spread = function(sample._replace(image=non_contiguous(sample.image),
                                      mask=non_contiguous(sample.mask)), np.random.default_rng(1))
    assert (out.image == spread.image).all() and (out.mask == spread.mask).all()
    assert out.image.dtype == out.mask.dtype == np.uint8 and out.name == "random"
    if name in COLOUR:
        assert (out.mask == sample.mask).all() and (out.image != sample.image).any()


# ---------------------------------------------------------------- where pixels go


def test_flips_mirror_left_to_right_and_top_to_bottom(rng):
    sample = random_sample(rng)
    for function, view in ((flip, np.s_[:, ::-1]), (flip_vertical, np.s_[::-1])):
        out = function(sample)
        assert (out.image == sample.image[view]).all() and (out.mask == sample.mask[view]).all()


@pytest.mark.parametrize("size, scaled, limit", [
    ((64, 128), (32, 32), 0), ((64, 128), (128, 256), 0), ((64, 128), (64, 128), 0),
    # Places that are no binary fractions: the last digit rounds to either side.
    ((63, 125), (48, 90), 2), ((63, 125), (132, 202), 2), ((63, 125), (20, 26), 2),
], ids=str)
def test_a_resized_crop_is_the_crop_of_the_resized(size, scaled, limit, rng):
    sample = random_sample(rng, *size)
    image, mask = resize_image(sample.image, scaled), resize_mask(sample.mask, scaled)
    top, left = 5, 9
    H, W = scaled[0] - 11, scaled[1] - 14
    out = resized_crop(sample, scaled, top, left, (H, W))
    window = np.s_[top:top + H, left:left + W]
    gap = abs(out.image.astype(int) - image[window])
    assert gap.max() <= limit and (gap > 0).mean() < 0.02
    assert (out.mask == mask[window]).all()


def test_beyond_the_picture_a_crop_has_the_mean_colour_and_is_ignored():
    black = Sample(np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), np.uint8), "black")
    out = resized_crop(black, (4, 6), -2, -1, (7, 9), ignore_index=254)
    inside = np.zeros((7, 9), bool)
    inside[2:6, 1:7] = True
    assert ((out.mask == 0) == inside).all() and ((out.mask == 254) == ~inside).all()
    assert (out.image[inside] == 0).all() and (out.image[~inside] == MEAN_COLOUR).all()


def test_turning_is_counterclockwise(rng):
    sample = random_sample(rng, 30, 30)
    for quarters in (-1, 1, 2, 4):
        out = rotate(sample, 90 * quarters)
        assert (out.mask == np.rot90(sample.mask, quarters)).all()
        assert abs(out.image.astype(int) - np.rot90(sample.image, quarters)).max() <= 1


def test_turned_corners_are_ignored_and_the_centre_stays(rng):
    sample = random_sample(rng, 41, 61)
    out = rotate(sample, 45, ignore_index=200)
    corners = np.s_[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert (out.mask[corners] == 200).all() and (out.image[corners] == MEAN_COLOUR).all()
    assert out.mask[20, 30] == sample.mask[20, 30]
    # What is left: the picture's width 61, seen at 45 degrees through a window 41 high.
    assert 0.75 < (out.mask != 200).mean() < 0.85


@pytest.mark.parametrize("cells", [(1, 1), (3, 2), (5, 7), (50, 3)], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_an_unbent_grid_changes_nothing(size, cells, rng):
    sample = random_sample(rng, *size)
    out = warp(sample, grid_nodes(size, *cells))
    assert (out.image == sample.image).all() and (out.mask == sample.mask).all()


def test_distortion_brings_to_each_corner_of_the_grid_what_lay_at_its_offset(rng):
    sample = random_sample(rng, 60, 80)
    sample.mask[26:30, 34:38] = 77  # around (28, 36)
    offsets = np.zeros((2, 3, 2))
    offsets[0, 1] = 8, -4  # of the inner corner at (20, 40)
    out = distort(sample, offsets)
    assert (out.mask[19:21, 39:41] == 77).all()
    assert (out.mask != 255).all()  # the edge stays, so nothing from outside comes in
    assert (out.mask[:, 60:] == sample.mask[:, 60:]).all()  # nor do cells without a moved corner


def test_cut_out_boxes_have_the_mean_colour_and_are_ignored(rng):
    sample = random_sample(rng)
    out = cut_out(sample, [(2, 3, 5, 9)], ignore_index=254)
    inside = np.zeros(sample.mask.shape, bool)
    inside[2:5, 3:9] = True
    assert (out.mask[inside] == 254).all() and (out.image[inside] == MEAN_COLOUR).all()
    assert (out.mask == sample.mask)[~inside].all() and (out.image == sample.image)[~inside].all()


# ---------------------------------------------------------------- colour


def test_without_a_change_colours_stay_to_the_bit(rng):
    sample = random_sample(rng)
    assert (jitter_colour(sample).image == sample.image).all()


def test_brightness_scales_and_clips(rng):
    sample = random_sample(rng)
    expected = np.minimum(1.3 * sample.image, 255)
    assert abs(jitter_colour(sample, brightness=1.3).image - expected).max() < 0.501


@pytest.mark.parametrize("brightness", [1.0, 0.6])
def test_contrast_scales_the_distance_from_the_mean_grey(brightness, rng):
    sample = random_sample(rng)
    out = jitter_colour(sample, brightness=brightness, contrast=0.5).image
    mean = grey(sample.image.astype(float)).mean()
    expected = brightness * (mean + 0.5 * (sample.image - mean))
    assert abs(out - expected).max() < 1


def test_saturation_scales_the_distance_from_grey(rng):
    sample = random_sample(rng)
    sample = sample._replace(image=sample.image // 2 + 64)  # far from being clipped
    own = grey(sample.image.astype(float))[..., None]
    for saturation in (0.0, 0.5, 1.4):
        out = jitter_colour(sample, saturation=saturation).image
        assert abs(out - (own + saturation * (sample.image - own))).max() < 1


def test_hue_turns_red_towards_yellow_and_keeps_greys(rng):
    sample = random_sample(rng)
    sample = sample._replace(image=sample.image // 4 + 96)
    turned = jitter_colour(sample, hue=0.2)
    assert abs(grey(turned.image.astype(float)) - grey(sample.image.astype(float))).max() < 1
    back = jitter_colour(turned, hue=-0.2).image.astype(int)
    assert abs(back - sample.image).max() <= 2 < abs(turned.image.astype(int) - sample.image).max()
    red = sample._replace(image=np.full((2, 2, 3), (140, 100, 100), np.uint8))
    r, g, b = jitter_colour(red, hue=0.05).image[0, 0].tolist()
    assert g > b and r > b


def test_a_shadow_darkens_the_polygon_and_nothing_else(rng):
    sample = random_sample(rng)
    out = shade(sample, [(5, 10), (5, 30), (25, 30), (25, 10)], 0.5)
    inside = np.zeros(sample.mask.shape, bool)
    inside[5:26, 10:31] = True
    assert abs(out.image[inside] - 0.5 * sample.image[inside]).max() <= 0.5
    assert (out.image == sample.image)[~inside].all()


# ---------------------------------------------------------------- labels, sizes, numbers


def test_an_invented_label_is_caught():
    mask = np.array([[0, 4, 0, 9]], np.uint8)
    check_labels(mask, np.array([[4, 255]], np.uint8))
    check_labels(mask[:, ::2], np.array([[0, 7]], np.uint8), ignore_index=7)
    with pytest.raises(ValueError, match=r"\[2, 255\]"):
        check_labels(mask, np.array([[0, 2, 255]], np.uint8), ignore_index=254)
    with pytest.raises(ValueError, match=r"\[4, 9\]"):
        check_labels(mask[:, ::2], mask)


def test_a_bilinear_mask_would_be_caught(rng, monkeypatch):
    monkeypatch.setattr(transforms, "_FOR_MASKS", Image.Resampling.BILINEAR)
    sample = Sample(np.zeros((8, 8, 3), np.uint8), np.eye(8, dtype=np.uint8) * 9, "eye")
    with pytest.raises(ValueError, match="invented"):
        Resize((20, 20))(sample, rng)


def test_resize_can_leave_the_mask_alone(rng):
    sample = random_sample(rng)
    out = Resize((20, 30), resize_mask=False)(sample, rng)
    assert out.image.shape == (20, 30, 3) and (out.mask == sample.mask).all()


def test_resize_has_no_crop_to_centre_on_a_class(rng):
    with pytest.raises(UserError, match="--augment"):
        Resize((20, 30))(random_sample(rng), rng, 3)


def test_nearest_takes_the_pixel_under_the_centre():
    mask = np.array([[1, 2, 3, 4]], np.uint8)
    assert resize_mask(mask, (1, 2)).tolist() == [[2, 4]]
    assert resize_mask(mask, (2, 8)).tolist() == [[1, 1, 2, 2, 3, 3, 4, 4]] * 2


@pytest.mark.parametrize("shape", [(5, 7, 3), (2, 3, 4, 3), (1, 1, 3), (3,)], ids=str)
def test_normalize_follows_its_formula_and_back(shape, rng):
    image = rng.integers(0, 256, shape, dtype=np.uint8)
    out = normalize(image)
    assert out.dtype == np.float32 and out.shape == shape
    np.testing.assert_allclose(out, (image / 255 - MEAN) / STD, rtol=1e-5, atol=1e-6)
    assert (denormalize(out) == image).all()
    backwards = image[..., ::-1]
    np.testing.assert_allclose(normalize(backwards), (backwards / 255 - MEAN) / STD, rtol=1e-5,
                               atol=1e-6)


def test_normalize_writes_where_it_is_told(rng):
    image = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    batch = np.full((3, 5, 7, 3), np.nan, np.float32)
    assert np.shares_memory(normalize(image, batch[1]), batch)
    assert (batch[1] == normalize(image)).all() and np.isnan(batch[[0, 2]]).all()
