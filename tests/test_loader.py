"""Batches: the same for any number of workers, bounded ahead, and no thread left behind."""

import threading
import time

import numpy as np
import pytest

from minisegnet.datasets import DataLoader, Sample, StandardAugment


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


def test_the_number_of_workers_changes_no_number():
    def run(num_workers):
        loader = DataLoader(
            Numbered(), 4, transform=StandardAugment((12, 16)), shuffle=True, seed=3,
            num_workers=num_workers,
        )
        return [batch for epoch in range(2) for batch in loader.batches(epoch)]

    reference = run(0)
    for num_workers in (1, 3):
        for a, b in zip(reference, run(num_workers), strict=True):
            assert (a.images == b.images).all() and (a.target == b.target).all()
            assert a.names == b.names


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
    assert not loader_threads() and len(dataset.loaded) <= 6


def test_leaving_early_drops_what_was_only_queued():
    class Slow(Numbered):
        def __getitem__(self, index):
            time.sleep(0.005)
            return super().__getitem__(index)

    dataset = Slow(100)
    batches = DataLoader(dataset, 20, num_workers=1).batches()
    next(batches)
    batches.close()
    assert len(dataset.loaded) < 40  # of the 60 that were queued


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
