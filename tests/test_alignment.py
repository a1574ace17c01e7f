"""Alignment: masks that fit, that do not and how; and pairs of which nothing can be said."""

import numpy as np
import pytest
from checks import frozen

from minisegnet.datasets import CamVid, DataLoader, FloorPlans, Resize, make_augmentation
from minisegnet.datasets.sample import Sample
from minisegnet.imbalance import alignment
from minisegnet.imbalance.alignment import find_partners, fit_table, in_doubt, judge, measure

SIZE = (64, 80)


def pairs_of(samples):
    images, masks, _ = zip(*samples)
    return frozen(np.stack(images), np.stack(masks))


def plans(count, seed=0, size=SIZE):
    return pairs_of(list(FloorPlans(length=count, size=size, seed=seed)))


@pytest.fixture(scope="module")
def forty():
    return plans(40)


@pytest.fixture(scope="module")
def streets(camvid_root):
    """Every twelfth training picture at 90 x 120."""
    dataset, resize = CamVid(camvid_root), Resize((90, 120))
    return pairs_of([resize(dataset[i], None) for i in range(0, len(dataset), 12)])


def judged(images, masks, **stages):
    """The verdict on pairs as they were read."""
    as_read = measure(images, masks)
    if in_doubt(as_read):
        as_read |= find_partners(images, masks)
    return judge({"as_read": as_read, **stages})


def on_half(images, change):
    """Change every other picture."""
    images = images.copy()
    images[::2] = change(images[::2])
    return images


def mirrored(arrays):
    return arrays[:, :, ::-1]


def upside_down(arrays):
    return arrays[:, ::-1]


def turned(arrays):
    return arrays[:, ::-1, ::-1]


def shuffled(masks, seed=0):
    """Masks in an order in which none is with its picture."""
    order = np.random.default_rng(seed).permutation(len(masks))
    while (order == np.arange(len(masks))).any():
        order = np.roll(order, 1)
    return masks[order]


FAULTS = {
    "shuffled": [lambda x, y: (x, shuffled(y)), lambda x, y: (x, np.roll(y, 1, axis=0))],
    "mirrored": [lambda x, y: (mirrored(x), y), lambda x, y: (x, mirrored(y)),
                 lambda x, y: (on_half(x, mirrored), y)],
    "upside down": [lambda x, y: (upside_down(x), y), lambda x, y: (on_half(x, upside_down), y),
                    lambda x, y: (turned(x), y)],
    "fits": [lambda x, y: (x, y), lambda x, y: (turned(x), turned(y)),
             lambda x, y: (0.2 * x + 30, y)],
}


@pytest.mark.parametrize("verdict, plant", [
    (verdict, plant) for verdict, plants in FAULTS.items() for plant in plants])
def test_what_is_done_to_pairs_is_named(verdict, plant, forty, streets):
    for images, masks in (forty, streets):
        assert judged(*plant(images, masks)) == verdict


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("count, size", [(8, SIZE), (24, (64, 96)), (64, (96, 120))])
def test_sound_pairs_fit_and_shuffled_ones_are_never_taken_for_mirrored(count, size, seed):
    images, masks = plans(count, seed, size)
    sound = measure(images, masks)
    assert judge({"as_read": sound}) == "fits" and not in_doubt(sound)
    assert sound["as_is"] > sound["other_mask"] + 5 * sound["spread"]
    assert sound["prefer_as_is"] >= 0.9 and sound["shift"] == [0, 0]
    verdict = judged(images, shuffled(masks, seed))
    # A partner beside its picture is found among many pictures, hardly among eight.
    assert verdict == "shuffled" or count == 8 and verdict == "cannot tell"


def test_numbers_of_pairs_mirrored_by_halves_add_up(forty):
    images, masks = forty
    whole, half = (measure(changed, masks) for changed in (images, on_half(images, mirrored)))
    assert half["prefer_as_is"] == pytest.approx(0.5, abs=0.05)
    assert half["prefer_mirrored"] == pytest.approx(0.5, abs=0.05)
    assert half["prefer_upside_down"] == half["prefer_turned"] == 0
    assert half["as_is"] == pytest.approx(np.mean([whole["as_is"], whole["mirrored"]]), abs=0.02)


@pytest.mark.parametrize("down, right", [(3, -4), (0, 5), (-10, 2)])
def test_a_shift_is_measured_to_the_pixel(down, right, forty):
    images, masks = forty
    moved = np.roll(masks, (-down, -right), axis=(1, 2))
    found = measure(images, moved)
    assert found["shift"] == [down, right]
    assert found["shift_gain"] > 0.15 and found["z_shift"] > 10
    # Moved along both axes, no border lies on an edge any more: it may be another picture's mask.
    assert judged(images, moved) == ("cannot tell" if down and right else "shifted")


def test_a_single_pixel_of_shift_is_reported_but_no_fault(forty):
    images, masks = forty
    moved = np.roll(masks, 1, axis=2)
    assert measure(images, moved)["shift"] == [0, -1]
    assert judged(images, moved) == "fits"


def silent_cases():
    images, masks = plans(30)
    noise = np.random.default_rng(1).integers(0, 256, images.shape)
    almost_all_ignored = masks.copy()
    almost_all_ignored[:, 4:] = 255
    yield "blank pictures", np.full_like(images, 128), masks
    yield "noise", noise, masks
    yield "pictures under noise", images + 20.0 * noise, masks
    yield "random labels", images, noise[..., 0] % 12
    yield "one class", images, np.zeros_like(masks)
    yield "all ignored", images, np.full_like(masks, 255)
    yield "nearly all ignored", images, almost_all_ignored
    yield "the same mask for all", images, np.repeat(masks[:1], 30, axis=0)
    yield "too few pictures", images[:5], masks[:5]
    yield "one picture", images[:1], masks[:1]
    yield "not finite", np.array([np.nan, np.inf, -np.inf])[noise % 3], masks


def test_where_there_is_nothing_to_see_it_says_so():
    for name, images, masks in silent_cases():
        assert judged(images, masks) == "cannot tell", name
        assert judge(measure(images, masks)) == "cannot tell", name


@pytest.mark.parametrize("count", [8, 40])
@pytest.mark.parametrize("noise", [0, 20])
@pytest.mark.parametrize("images_too", [False, True])
def test_symmetric_pairs_raise_no_alarm(images_too, noise, count, rng):
    images, masks = plans(count)
    half = slice(0, SIZE[1] // 2)

    def symmetric(arrays):
        return np.concatenate([arrays[:, :, half], mirrored(arrays[:, :, half])], axis=2)

    images = (symmetric(images) if images_too else images) + noise * rng.random(images.shape)
    assert judged(images, symmetric(masks)) in ("fits", "cannot tell")


def test_pairs_half_of_which_are_shuffled_are_found(forty):
    images, masks = forty
    mixed = masks.copy()
    mixed[::2] = shuffled(masks[::2])
    assert judged(images, mixed) == "shuffled"


def test_the_fit_of_a_single_edge_by_hand():
    image = np.zeros((40, 40, 3))
    image[:, 20:] = 1
    mask = np.zeros((40, 40), np.uint8)
    mask[:, 20:] = 1
    beside = np.roll(mask, 3, axis=1)  # its left border is 3 px off, its right one at the edge
    beside[:, :20] = 0
    table = fit_table(np.stack([image, image]), np.stack([mask, beside]))
    steps = 40 * 39 + 39 * 40
    # 40 steps are 1, all others 0: they share the mean of their ranks.
    high, low = (steps - 20) / steps, (steps - 40) / 2 / steps
    np.testing.assert_allclose(table[0, 0], high, rtol=1e-6)  # symmetric
    np.testing.assert_allclose(table[0, 1], low, rtol=1e-6)


@pytest.mark.parametrize("ignore_index", [255, 7])
def test_pictures_count_only_where_no_pose_of_their_mask_is_ignored(ignore_index, forty, rng):
    images, masks = (arrays[:6].copy() for arrays in forty)
    masks[:, :10, :25] = ignore_index
    expected = fit_table(images, masks, ignore_index)
    for rows, columns in ((slice(10), slice(25)), (slice(10), slice(-25, None)),
                          (slice(-10, None), slice(25)), (slice(-10, None), slice(-25, None))):
        images[:, rows, columns] = rng.integers(0, 256, images[:, rows, columns].shape)
        np.testing.assert_array_equal(fit_table(images, masks, ignore_index), expected)
    images[:, 30, 40] = 255 - images[:, 30, 40]
    assert (fit_table(images, masks, ignore_index) != expected).any()


@pytest.mark.parametrize("ignore_index", [255, 7])
def test_a_border_with_what_is_ignored_is_none(ignore_index, forty):
    images, masks = forty
    box = np.full_like(masks[0], 3)
    box[20:40, 20:40] = ignore_index
    table = fit_table(images[:2], np.stack([masks[0], box]), ignore_index)
    assert np.isnan(table[0, 1]).all() and not np.isnan(table[0, 0]).any()
    box[30, 20:40], box[31, 20:40] = 1, 2  # a step between labels, 20 px long
    box[50, 20:40] = 1
    table = fit_table(images[:2], np.stack([masks[0], box]), ignore_index)
    assert not np.isnan(table[0, 1]).any()


@pytest.mark.parametrize("preset", ["standard", "enhanced", "strong"])
def test_what_lies_beyond_a_cropped_picture_is_no_edge(preset):
    class Shuffled(FloorPlans):
        def __getitem__(self, i):
            return super().__getitem__(i)._replace(mask=super().__getitem__((i + 7) % 64).mask)

    for dataset, verdict in ((FloorPlans(length=64, size=SIZE), "fits"),
                             (Shuffled(length=64, size=SIZE), "cannot tell")):
        transform = make_augmentation(preset, SIZE)
        batch = next(DataLoader(dataset, 64, transform=transform, num_workers=0).batches())
        assert (batch.target == 255).any()
        assert judge(measure(batch.images, batch.target)) == verdict


def test_the_stage_that_parts_pairs_is_believed(forty):
    images, masks = forty
    sound, mixed = measure(images, masks), measure(images, shuffled(masks))
    flipped = measure(on_half(images, mirrored), masks)
    keeps = {"draws": 32, "kept": 1.0, "mirrored": 0.0, "upside_down": 0.0}
    assert judge({**sound, "as_read": sound, "transform": keeps}) == "fits"
    assert judge({**mixed, "as_read": sound, "transform": keeps}) == "shuffled"  # by the loader
    assert judge({**flipped, "as_read": sound, "transform": keeps}) == "mirrored"
    assert judge({**sound, "as_read": flipped, "transform": keeps}) == "mirrored"
    for fault, verdict in (({"mirrored": 0.5}, "mirrored"), ({"kept": 0.6}, "shifted"),
                           ({"upside_down": 0.25}, "upside down")):
        assert judge({**sound, "as_read": sound, "transform": {**keeps, **fault}}) == verdict
    # Without evidence that the pairs ever fitted, or fit others, nothing is said against them.
    assert judge({**mixed, "as_read": mixed, "transform": keeps}) == "cannot tell"


def test_names_of_numbers_are_the_same_with_and_without_pictures(forty):
    images, masks = forty
    assert list(measure(images, masks)) == list(measure(images[:2], masks[:2]))
    assert measure(images[:2], masks[:2])["pictures"] == 2
    assert measure(images[:2], masks[:2])["z_best"] is None


def test_partners_are_looked_for_among_all_masks(forty):
    images, masks = forty
    found = find_partners(images, np.roll(masks, 3, axis=0), every=4)
    assert found["compared"] == 10 and found["masks"] == 40 and found["partners"] > 0.8
    assert find_partners(images, masks)["partners"] == 0
    assert find_partners(images[:1], masks[:1]) == {"partners": 0.0, "compared": 0, "masks": 1}


def test_blocks_of_masks_change_nothing(forty, monkeypatch):
    expected = fit_table(*forty)
    monkeypatch.setattr(alignment, "BLOCK", 7)
    np.testing.assert_allclose(fit_table(*forty), expected, rtol=1e-5)


@pytest.mark.parametrize("size", [(1, 90), (90, 1), (1, 1), (7, 9)])
def test_pictures_of_odd_sizes_are_measured(size, rng):
    masks = rng.integers(0, 3, (9, *size), dtype=np.uint8)
    images = np.repeat(80 * masks[..., None], 3, axis=3)
    assert judge(measure(images, masks)) in ("fits", "cannot tell")
    assert judge(measure(images, shuffled(masks))) == "cannot tell"


def test_samples_of_any_other_ignore_label(forty):
    images, masks = forty
    padded = [Sample(np.pad(image, ((9, 0), (0, 9), (0, 0))), np.pad(mask + 1, ((9, 0), (0, 9))),
                     "") for image, mask in zip(images, masks)]
    images, masks = pairs_of(padded)
    assert judge(measure(images, masks, ignore_index=0)) == "fits"
    assert judge(measure(images, shuffled(masks), ignore_index=0)) == "cannot tell"
    assert measure(images, shuffled(masks), ignore_index=255)["z_as_is"] > 5  # the common edge
