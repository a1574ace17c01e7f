"""Batches: the same for any number of workers, bounded ahead, and no thread left behind."""

import threading
import time

import numpy as np
import pytest

from minisegnet.datasets import (
    PRESETS,
    SAMPLERS,
    DataLoader,
    FloorPlans,
    Resize,
    Sample,
    StandardAugment,
    make_augmentation,
    make_sampler,
)
from minisegnet.errors import UserError


class Numbered:
    """Samples that carry their index, and count how many were asked for."""

    def __init__(self, length=10, size=(16, 20), broken=()):
        self.length, self.size, self.broken = length, size, broken
        self.loaded = []

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        self.loaded.append(index)
        if index in self.broken:
            raise OSError(f"sample {index} is broken")
        rng = np.random.default_rng(index)
        image = rng.integers(0, 256, (*self.size, 3), dtype=np.uint8)
        return Sample(image, rng.integers(0, 5, self.size, dtype=np.uint8), str(index))


def loader_threads():
    return [t for t in threading.enumerate() if t.name.startswith("minisegnet-loader")]


def counts_of(dataset):
    """Pixels of the classes 0 to 4 in each image, (n, 5)."""
    masks = (dataset[i].mask for i in range(len(dataset)))
    return np.array([np.bincount(mask.ravel(), minlength=5) for mask in masks])


def assert_same(a, b):
    assert a.names == b.names
    assert a.images.tobytes() == b.images.tobytes() and a.target.tobytes() == b.target.tobytes()


@pytest.mark.parametrize("preset, name", [(preset, "uniform") for preset in PRESETS]
                         + [("strong", name) for name in SAMPLERS[1:]])
def test_the_number_of_workers_changes_no_number(preset, name):
    plans = FloorPlans(length=10, size=(64, 80), rare_image_share=0.5)

    def run(num_workers):
        loader = DataLoader(
            plans, 4, transform=make_augmentation(preset, (24, 32)), seed=3,
            sampler=make_sampler(name, plans.check().counts), num_workers=num_workers,
        )
        return [batch for epoch in range(2) for batch in loader.batches(epoch)]

    reference = run(0)
    for num_workers in (1, 3):
        for a, b in zip(reference, run(num_workers), strict=True):
            assert_same(a, b)


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_from_a_start_on_batches_are_the_same_and_none_before_is_loaded(num_workers):
    dataset = Numbered(30)
    counts = counts_of(dataset)
    loader = DataLoader(dataset, 4, transform=StandardAugment((12, 16)), seed=1,
                        sampler=make_sampler("repeat-factor", counts), num_workers=num_workers)
    whole = list(loader.batches(2))
    for start in (0, 1, 5, 7):
        dataset.loaded.clear()
        rest = list(loader.batches(2, start))
        assert len(rest) == len(loader) - start
        for a, b in zip(whole[start:], rest, strict=True):
            assert_same(a, b)
        names = [name for batch in rest for name in batch.names]
        assert sorted(dataset.loaded) == sorted(map(int, names))
    assert list(loader.batches(2, len(loader))) == []


@pytest.mark.parametrize("start", [-1, 4])
def test_a_start_beyond_the_epoch_is_refused(start):
    with pytest.raises(ValueError, match="outside 0 to 3"):
        next(DataLoader(Numbered(), 4).batches(0, start))


def test_a_sample_draws_by_seed_epoch_and_position():
    drawn = {}

    def transform(sample, rng):
        drawn[sample.name] = rng.random()
        return sample

    list(DataLoader(Numbered(5), 2, transform=transform, seed=7, num_workers=0).batches(3, 1))
    assert drawn == {str(k): np.random.default_rng([7, 3, k + 1]).random() for k in (2, 3, 4)}


class Fixed:
    """A sampler that always draws the same."""

    def __init__(self, drawn, has_focus=False):
        self.drawn, self.has_focus = drawn, has_focus

    def __len__(self):
        return len(self.drawn)

    def draw(self, rng):
        return self.drawn

    def report(self, drawn):
        return {"drawn": drawn}


def test_an_image_drawn_twice_is_augmented_twice():
    loader = DataLoader(Numbered(4), 4, transform=StandardAugment((16, 20)), shuffle=True,
                        sampler=Fixed([(2, None), (2, None), (0, None), (2, None)]))
    batch = next(loader.batches())
    assert batch.names == ("2", "2", "0", "2")
    assert len({image.tobytes() for image in batch.images}) == 4


def test_the_class_to_crop_around_reaches_the_transform():
    seen = []

    class Transform:
        crops = True

        def __call__(self, sample, rng, focus=None):
            seen.append((sample.name, focus))
            return sample

    drawn = [(1, 4), (0, None), (1, 0)]
    list(DataLoader(Numbered(3), 2, transform=Transform(), sampler=Fixed(drawn, has_focus=True),
                    num_workers=0).batches())
    assert seen == [("1", 4), ("0", None), ("1", 0)]


def test_shuffling_and_the_uniform_sampler_give_the_same_order():
    dataset = Numbered(20)
    sampler = make_sampler("uniform", counts_of(dataset))
    for a, b in zip(DataLoader(dataset, 6, shuffle=True, seed=4).batches(5),
                    DataLoader(dataset, 6, sampler=sampler, seed=4).batches(5), strict=True):
        assert_same(a, b)


def test_class_crops_without_a_crop_are_refused_before_anything_is_loaded():
    for transform in (None, Resize((8, 8))):
        with pytest.raises(UserError, match="--augment standard"):
            DataLoader(Numbered(1), 1, transform=transform, sampler=Fixed([(0, 1)], True))


def test_a_sampler_for_another_data_set_is_refused():
    with pytest.raises(ValueError, match="2 images.*has 3"):
        DataLoader(Numbered(3), 1, sampler=Fixed([(0, None), (1, None)]))


@pytest.mark.parametrize("drop_last, drawn", [(False, 5), (True, 4)])
def test_a_sampler_reports_what_the_batches_hold(drop_last, drawn):
    sampler = Fixed([(k, None) for k in (3, 3, 1, 0, 2)])
    loader = DataLoader(Numbered(5), 2, sampler=sampler, drop_last=drop_last)
    assert loader.sampler_report(1) == {"drawn": sampler.drawn[:drawn]}


def test_a_batch_is_normalised_float32_with_uint8_targets():
    batch = next(DataLoader(Numbered(), 4, num_workers=0).batches())
    assert batch.images.shape == (4, 16, 20, 3) and batch.images.dtype == np.float32
    assert batch.target.shape == (4, 16, 20) and batch.target.dtype == np.uint8
    assert batch.names == ("0", "1", "2", "3")


@pytest.mark.parametrize("drop_last, sizes", [(False, [4, 4, 2]), (True, [4, 4])])
def test_length_is_the_number_of_batches(drop_last, sizes):
    loader = DataLoader(Numbered(), 4, drop_last=drop_last)
    assert [len(batch.names) for batch in loader.batches()] == sizes
    assert len(loader) == len(sizes)


def test_shuffling_visits_every_sample_once_and_differs_by_epoch_and_seed():
    def order(seed, epoch):
        loader = DataLoader(Numbered(30), 7, shuffle=True, seed=seed)
        return [name for batch in loader.batches(epoch) for name in batch.names]

    orders = [order(0, 0), order(0, 1), order(1, 0)]
    assert all(sorted(map(int, o)) == list(range(30)) for o in orders)
    assert len({tuple(o) for o in orders}) == 3


def test_augmentation_differs_by_epoch_and_seed():
    def images(seed, epoch):
        loader = DataLoader(Numbered(1), 1, transform=StandardAugment((16, 20)), seed=seed)
        return next(loader.batches(epoch)).images

    assert (images(0, 0) == images(0, 0)).all()
    assert (images(0, 0) != images(0, 1)).any() and (images(0, 0) != images(1, 0)).any()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_what_a_worker_raises_is_raised_here(num_workers):
    loader = DataLoader(Numbered(broken=(6,)), 4, num_workers=num_workers)
    with pytest.raises(OSError, match="sample 6"):
        list(loader.batches())
    assert not loader_threads()


def test_loading_stays_two_batches_ahead_at_most():
    dataset = Numbered(100)
    batches = DataLoader(dataset, 4, num_workers=2).batches()
    for consumed in range(1, 6):
        next(batches)
        time.sleep(0.02)  # time enough to run ahead
        assert len(dataset.loaded) <= 4 * (consumed + 2)
    batches.close()


def test_leaving_early_stops_the_workers():
    dataset = Numbered(1000)
    batches = DataLoader(dataset, 2, num_workers=3).batches()
    next(batches)
    assert loader_threads()
    batches.close()
    # One batch was used, and each of the workers had begun another.
    assert not loader_threads() and len(dataset.loaded) <= 2 * (1 + 3)


def test_leaving_early_drops_what_was_only_queued():
    class Slow(Numbered):
        def __getitem__(self, index):
            time.sleep(0.005)
            return super().__getitem__(index)

    dataset = Slow(100)
    batches = DataLoader(dataset, 20, num_workers=1).batches()
    next(batches)
    batches.close()
    assert len(dataset.loaded) <= 40  # of 60: the batch in the making is finished, no other begun


def test_samples_of_different_sizes_are_refused_with_the_cure():
    class Mixed(Numbered):
        def __getitem__(self, index):
            self.size = (16 + index, 20)
            return super().__getitem__(index)

    with pytest.raises(ValueError, match="different shapes.*transform"):
        list(DataLoader(Mixed(), 4, num_workers=0).batches())


@pytest.mark.parametrize("kwargs", [{"batch_size": 0}, {"batch_size": 4, "num_workers": -1}])
def test_numbers_out_of_range_are_refused(kwargs):
    with pytest.raises(ValueError, match="at least"):
        DataLoader(Numbered(), **kwargs)


def test_a_batch_larger_than_the_data_is_refused_when_the_last_is_dropped():
    with pytest.raises(ValueError, match="do not fill"):
        DataLoader(Numbered(3), 4, drop_last=True)
