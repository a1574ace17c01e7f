"""Batches: samples loaded, augmented and normalised by threads, ahead of the training step."""

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import numpy as np

from minisegnet.datasets.transforms import normalize

_AHEAD = 2  # batches in the making while one is in use


class Batch(NamedTuple):
    """What one training step consumes."""

    images: np.ndarray  # (N, H, W, 3) float32, normalised
    target: np.ndarray  # (N, H, W) uint8, class ids or the ignore label
    names: tuple  # N names of samples


class DataLoader:
    """Yields the batches of an epoch, the same ones for any number of workers.

    `transform(sample, rng)` prepares a sample; its random numbers come from
    `default_rng([seed, epoch, index])`, the order of the epoch from `default_rng([seed, epoch])`.
    With `num_workers` 0 everything happens in the calling thread; otherwise up to two batches
    are in the making ahead of the one in use. `drop_last` leaves out a last, smaller batch.
    """

    def __init__(self, dataset, batch_size, *, transform=None, shuffle=False, seed=0,
                 num_workers=2, drop_last=False):
        if batch_size < 1 or num_workers < 0:
            raise ValueError(
                f"batch_size {batch_size} must be at least 1 and num_workers {num_workers} "
                "at least 0"
            )
        if drop_last and len(dataset) < batch_size:
            raise ValueError(
                f"{len(dataset)} samples do not fill one batch of {batch_size}; "
                "lower the batch size"
            )
        self.dataset, self.batch_size = dataset, batch_size
        self.transform, self.shuffle, self.seed = transform, shuffle, seed
        self.num_workers, self.drop_last = num_workers, drop_last

    def __len__(self):
        full, rest = divmod(len(self.dataset), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def batches(self, epoch=0):
        """Yield the `Batch`es of an epoch; what a worker raises is raised here.

        Closing the generator (also by leaving its loop) stops the workers.
        """
        order = np.arange(len(self.dataset))
        if self.shuffle:
            order = np.random.default_rng([self.seed, epoch]).permutation(order)
        groups = (
            order[k * self.batch_size:(k + 1) * self.batch_size] for k in range(len(self))
        )
        if self.num_workers == 0:
            for group in groups:
                yield _stack([self._prepare(epoch, int(index)) for index in group])
            return

        pool = ThreadPoolExecutor(self.num_workers, thread_name_prefix="minisegnet-loader")

        def start(group):
            return [pool.submit(self._prepare, epoch, int(index)) for index in group]

        try:
            pending = deque(start(group) for group in islice(groups, _AHEAD))
            while pending:
                ready = _stack([future.result() for future in pending.popleft()])
                pending.extend(start(group) for group in islice(groups, 1))
                yield ready
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _prepare(self, epoch, index):
        """Return (image (H, W, 3) float32, mask (H, W) uint8, name) of one sample."""
        sample = self.dataset[index]
        if self.transform is not None:
            sample = self.transform(sample, np.random.default_rng([self.seed, epoch, index]))
        return normalize(sample.image), sample.mask, sample.name


def _stack(prepared):
    """Return the `Batch` of (image, mask, name) triples."""
    images, masks, names = zip(*prepared)
    for kind, arrays in (("images", images), ("masks", masks)):
        shapes = sorted({array.shape for array in arrays})
        if len(shapes) > 1:
            raise ValueError(
                f"{kind} of different shapes {shapes} in one batch ({', '.join(names)}); "
                "resize them with a transform, or use batch size 1"
            )
    return Batch(np.stack(images), np.stack(masks), names)
