"""Batches: samples loaded and augmented by threads, ahead of the training step."""

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import numpy as np

from minisegnet.datasets.transforms import normalize, refuse_focus

_AHEAD = 2  # batches in the making while one is in use, or more for more workers


class Batch(NamedTuple):
    """What one training step consumes."""

    images: np.ndarray  # (N, H, W, 3) float32, normalised
    target: np.ndarray  # (N, H, W) uint8, class ids or the ignore label
    names: tuple  # N names of samples


class DataLoader:
    """Yields the batches of an epoch, the same ones for any number of workers.

    The order of an epoch is that of the data set, or a random one with `shuffle`, or what
    `sampler` draws (which then replaces `shuffle`), from `default_rng([seed, epoch])`.
    `transform(sample, rng)` prepares a sample, `transform(sample, rng, focus)` one that the
    sampler drew for a class; its random numbers come from `default_rng([seed, epoch, n])`, n being
    its number in the epoch, from 1. With `num_workers` 0 everything happens in the calling thread;
    otherwise each worker makes a batch ahead of the one in use (a single worker, two). `drop_last`
    leaves out a last, smaller batch.
    """

    def __init__(self, dataset, batch_size, *, transform=None, shuffle=False, sampler=None, seed=0,
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
        if sampler is not None and len(sampler) != len(dataset):
            raise ValueError(f"the sampler draws from {len(sampler)} images, but the data set "
                             f"has {len(dataset)}; build it for this one")
        if sampler is not None and sampler.has_focus and not getattr(transform, "crops", False):
            refuse_focus()
        self.dataset, self.batch_size = dataset, batch_size
        self.transform, self.shuffle, self.sampler = transform, shuffle, sampler
        self.seed, self.num_workers, self.drop_last = seed, num_workers, drop_last

    def __len__(self):
        full, rest = divmod(len(self.dataset), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def batches(self, epoch=0, start=0):
        """Yield the `Batch`es of an epoch from number `start` on; raise what a worker raises.

        The batches before `start` are not loaded, and those after it are the same as ever.
        Closing the generator (also by leaving its loop) stops the workers.
        """
        if not 0 <= start <= len(self):
            raise ValueError(f"start {start} is outside 0 to {len(self)}, the batches of an epoch")
        # (position, index, focus): an image may occur twice, a position does not.
        drawn = [(position, *pair) for position, pair in enumerate(self._drawn(epoch))]
        groups = (drawn[k * self.batch_size:(k + 1) * self.batch_size]
                  for k in range(start, len(self)))
        if self.num_workers == 0:
            yield from (self._batch(epoch, group) for group in groups)
            return

        pool = ThreadPoolExecutor(self.num_workers, thread_name_prefix="minisegnet-loader")
        try:
            # A whole batch is one worker's: the training step finds it ready, normalised as well.
            pending = deque(pool.submit(self._batch, epoch, group)
                            for group in islice(groups, max(_AHEAD, self.num_workers)))
            while pending:
                ready = pending.popleft().result()
                pending.extend(pool.submit(self._batch, epoch, group)
                               for group in islice(groups, 1))
                yield ready
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def sampler_report(self, epoch=0):
        """Return `sampler.report` of the samples that the batches of `epoch` hold."""
        return self.sampler.report(self._drawn(epoch)[:len(self) * self.batch_size])

    def _drawn(self, epoch):
        """Return the [(index, focus)] of an epoch, in order."""
        rng = np.random.default_rng([self.seed, epoch])
        if self.sampler is not None:
            return self.sampler.draw(rng)
        order = np.arange(len(self.dataset))
        if self.shuffle:
            order = rng.permutation(order)
        return [(int(index), None) for index in order]

    def _batch(self, epoch, group):
        """Return the `Batch` of a list of (position, index, focus)."""
        return _stack([self._prepare(epoch, *place) for place in group])

    def _prepare(self, epoch, position, index, focus):
        """Return the sample at `position` of an epoch, augmented."""
        sample = self.dataset[index]
        if self.transform is None:
            return sample
        # From 1 on: a stream with a 0 at the end is the one without it, the order's own.
        rng = np.random.default_rng([self.seed, epoch, position + 1])
        if focus is None:
            return self.transform(sample, rng)
        return self.transform(sample, rng, focus)


def _stack(samples):
    """Return the `Batch` of the samples, normalised."""
    names = tuple(sample.name for sample in samples)
    for kind, arrays in (("images", [sample.image for sample in samples]),
                         ("masks", [sample.mask for sample in samples])):
        shapes = sorted({array.shape for array in arrays})
        if len(shapes) > 1:
            raise ValueError(
                f"{kind} of different shapes {shapes} in one batch ({', '.join(names)}); "
                "resize them with a transform, or use batch size 1"
            )
    # Straight into the batch: no float copy of each sample, and none of all of them together.
    images = np.empty((len(samples), *samples[0].image.shape), np.float32)
    for sample, out in zip(samples, images):
        normalize(sample.image, out)
    return Batch(images, np.stack([sample.mask for sample in samples]), names)
