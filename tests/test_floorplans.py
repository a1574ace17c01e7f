"""The generated floor plans: deterministic, imbalanced as dialled, and not told by colour."""

import numpy as np
import pytest

from minisegnet.datasets import FloorPlans
from minisegnet.datasets.floorplans import (
    BACKGROUND,
    BATHROOM,
    BEDROOM,
    KITCHEN,
    LIVING,
    RAREST,
    WALL,
    WINDOW,
)
from minisegnet.metrics import ConfusionMatrix

K = FloorPlans.num_classes


@pytest.fixture(scope="module")
def plans():
    return FloorPlans("train", length=160)


def masks_of(dataset):
    return np.stack([dataset[i].mask for i in range(len(dataset))])


def pixel_share(masks, label):
    return (masks == label).mean()


def image_share(masks, label):
    return (masks == label).any(axis=(1, 2)).mean()


def test_a_plan_is_a_picture_with_a_mask_of_the_same_size():
    sample = FloorPlans("val", length=1, size=(112, 144))[0]
    assert sample.image.shape == (112, 144, 3) and sample.image.dtype == np.uint8
    assert sample.mask.shape == (112, 144) and sample.mask.dtype == np.uint8


def test_the_same_arguments_give_the_same_bytes_in_any_order():
    one, other = FloorPlans("train", length=4), FloorPlans("train", length=4)
    forward = [one[i] for i in range(4)]
    backward = [other[i] for i in reversed(range(4))][::-1]
    for a, b in zip(forward, backward):
        assert a.image.tobytes() == b.image.tobytes() and a.mask.tobytes() == b.mask.tobytes()
        assert a.name == b.name


@pytest.mark.parametrize("kwargs", [{"split": "val"}, {"split": "test"}, {"seed": 1}])
def test_another_split_or_seed_gives_other_plans(kwargs):
    assert (FloorPlans(**kwargs)[0].mask != FloorPlans("train")[0].mask).any()


def test_trainval_is_the_plans_of_train_then_those_of_val():
    both, train, val = (FloorPlans(split) for split in ("trainval", "train", "val"))
    assert len(both) == len(train) + len(val) == 896
    for index, dataset, other in (
            (0, train, 0), (639, train, 639), (640, val, 0), (895, val, 255)):
        assert both[index].name == dataset[other].name
        assert (both[index].image == dataset[other].image).all()
        assert (both[index].mask == dataset[other].mask).all()


def test_the_raw_values_of_the_masks_are_the_class_ids(plans):
    assert plans.mask_values == tuple(range(12)) and plans.void == 255
    assert FloorPlans(length=1, ignore_index=99).void == 99


def test_check_counts_every_plan(plans):
    counts = plans.check().counts
    assert counts.shape == (160, 12)
    assert (counts.sum(axis=1) == 128 * 160).all()
    assert counts[7].tolist() == np.bincount(plans[7].mask.ravel(), minlength=12).tolist()


def test_there_are_twelve_named_classes_with_colours_of_their_own(plans):
    assert K == 12 == len(set(plans.class_names))
    assert len({tuple(colour) for colour in plans.palette}) == 12


def test_every_class_occurs_and_nothing_else(plans):
    assert set(np.unique(masks_of(plans))) == set(range(K))


def test_background_dominates_and_the_fixtures_are_the_rarest_four(plans):
    pixels = plans.check().pixels
    assert 0.68 <= pixels[BACKGROUND] / pixels.sum() <= 0.78
    assert set(np.argsort(pixels)[:4]) == set(RAREST)
    assert pixels[list(RAREST)].max() < 0.005 * pixels.sum()


def test_every_plan_has_walls_doors_and_all_four_floors(plans):
    for mask in masks_of(plans):
        assert set(range(8)) - {WINDOW} <= set(np.unique(mask))


def test_furniture_changes_the_picture_but_not_the_labels():
    bare, full = FloorPlans(length=20, furniture=0), FloorPlans(length=20, furniture=6)
    for i in range(20):
        assert (bare[i].mask == full[i].mask).all()
    assert (bare[3].image != full[3].image).any()


@pytest.mark.parametrize("rare_image_share", [0.12, 1.0])
def test_doors_lead_from_outside_into_every_room(rare_image_share):
    for mask in masks_of(FloorPlans(length=40, rare_image_share=rare_image_share)):
        open_floor = (mask != WALL) & (mask != WINDOW)
        reached = np.zeros_like(open_floor)
        reached[mask == BACKGROUND] = True
        while True:  # spread by one pixel in four directions
            spread = reached.copy()
            spread[1:] |= reached[:-1]
            spread[:-1] |= reached[1:]
            spread[:, 1:] |= reached[:, :-1]
            spread[:, :-1] |= reached[:, 1:]
            spread &= open_floor
            if (spread == reached).all():
                break
            reached = spread
        # Strips behind doors and fixtures may be cut off, whole rooms not.
        for room in (LIVING, KITCHEN, BATHROOM, BEDROOM):
            assert reached[mask == room].mean() > 0.5


def test_colour_does_not_tell_the_class(plans):
    """A classifier that knows the commonest class of each of 32x32x32 colours stays below 0.25."""

    def colour_bin(image):
        red, green, blue = np.moveaxis(image.astype(np.intp) >> 3, -1, 0)
        return (red * 32 + green) * 32 + blue

    counts = np.zeros((32**3, K), np.int64)
    for i in range(len(plans)):
        np.add.at(counts, (colour_bin(plans[i].image), plans[i].mask), 1)
    commonest = counts.argmax(axis=1)
    matrix = ConfusionMatrix(K)
    unseen = FloorPlans("val", length=48)
    for i in range(len(unseen)):
        matrix.update(unseen[i].mask, commonest[colour_bin(unseen[i].image)])
    assert matrix.mean_iou_all <= 0.25


@pytest.mark.parametrize("background_share", [0.5, 0.8])
def test_background_share_is_met(background_share):
    masks = masks_of(FloorPlans(length=60, background_share=background_share))
    assert abs(pixel_share(masks, BACKGROUND) - background_share) < 0.03


@pytest.mark.parametrize("share", [0.2, 1.0])
def test_rare_image_share_is_met(share):
    masks = masks_of(FloorPlans(length=100, rare_image_share=share))
    measured = np.mean([image_share(masks, label) for label in RAREST])
    assert abs(measured - share) < 0.08


def test_fixture_size_sets_how_large_fixtures_are():
    small = masks_of(FloorPlans(length=60, fixture_size=8, rare_image_share=1.0))
    large = masks_of(FloorPlans(length=60, fixture_size=12, rare_image_share=1.0))
    for label in RAREST:
        ratio = pixel_share(large, label) / pixel_share(small, label)
        assert 1.8 < ratio < 2.8  # (12 / 8)^2 = 2.25


def test_rare_share_sets_the_pixels_by_more_copies():
    masks = masks_of(
        FloorPlans(length=150, size=(160, 208), rare_image_share=0.5, rare_share=0.005)
    )
    for label in RAREST:
        assert abs(pixel_share(masks, label) / 0.005 - 1) < 0.3
        assert abs(image_share(masks, label) - 0.5) < 0.13


@pytest.mark.parametrize(
    "kwargs, words",
    [
        ({"split": "all"}, "all"),
        ({"background_share": 0.95}, "0.95"),
        ({"fixture_size": 40}, "40"),
        ({"rare_image_share": 0.0}, "rare_image_share"),
        ({"rare_share": 0.2}, "rare_share 0.2"),
        ({"size": (40, 40)}, "40"),
    ],
)
def test_dials_that_cannot_be_met_are_refused(kwargs, words):
    with pytest.raises(ValueError, match=words):
        FloorPlans(**kwargs)


def test_a_cached_plan_cannot_be_overwritten(plans):
    with pytest.raises(ValueError):
        plans[0].mask[0, 0] = 1


def test_an_index_past_the_end_ends_iteration(plans):
    with pytest.raises(IndexError):
        plans[len(plans)]
    assert sum(1 for _ in FloorPlans(length=3)) == 3
