"""Faults of pictures, batches and the metric."""

from contextlib import contextmanager
from unittest import mock

import numpy as np
from PIL import Image

from minisegnet.datasets import transforms
from minisegnet.lab.planting import other_dataset, other_train_loader, replaced
from minisegnet.metrics import ConfusionMatrix

BLANK_SHARE = 0.5  # of the batches


def shuffled_pairs():
    """Images and masks are listed in two orders, and paired by place: no mask fits its picture.

    Planted in the list of pairs of both data sets.
    """
    def change(dataset, split):
        images, masks = zip(*dataset.pairs)
        order = np.random.default_rng(len(masks)).permutation(len(masks))
        # A cycle along a random order leaves none in its place.
        other = dict(zip(order.tolist(), np.roll(order, 1).tolist()))
        dataset.pairs = [(image, masks[other[i]]) for i, image in enumerate(images)]
        return dataset

    return other_dataset(change)


def image_flipped_alone():
    """An augmentation mirrors every other picture at random and forgets the mask.

    Planted behind the transform of the training loader.
    """
    def change(loader):
        loader.transform = _FlipsImages(loader.transform)
        return loader

    return other_train_loader(change)


class _FlipsImages:
    """`transform`, and then the image of half of the samples mirrored left to right."""

    def __init__(self, transform):
        self.transform = transform

    def __call__(self, sample, rng, *focus):
        out = self.transform(sample, rng, *focus)
        if rng.random() < 0.5:
            out = out._replace(image=np.ascontiguousarray(out.image[:, ::-1]))
        return out

    def __getattr__(self, name):
        return getattr(self.transform, name)


@contextmanager
def interpolated_masks():
    """Masks are resized like pictures, bilinearly: between ids 2 and 8 a seam of 5 appears.

    Planted in `resize_mask`, and what would refuse invented labels is silenced. Values between the
    classes and 255 become 255, or the loss would refuse them.
    """
    def resize_mask(mask, size):
        resized = np.array(Image.fromarray(mask).resize(size[::-1], Image.Resampling.BILINEAR))
        resized[resized > mask[mask < 255].max(initial=0)] = 255
        return resized

    with replaced(transforms.resize_mask, resize_mask), \
            replaced(transforms.check_labels, lambda *masks: None):
        yield


def unnormalised_input():
    """Pictures reach the network as 0 to 255 instead of standardised, in training and after.

    Planted in `normalize`. The batch norm behind the first convolution makes up for most of it:
    the harm begins with pretrained weights, which these pictures are foreign to.
    """
    def normalize(image, out=None):
        out = np.empty(image.shape, np.float32) if out is None else out
        out[...] = image
        return out

    return replaced(transforms.normalize, normalize)


def all_ignored_batches():
    """Half of the batches have nothing but void: masks not drawn yet, crops beside everything.

    Planted behind the training loader.
    """
    return other_train_loader(_Blanking)


class _Blanking:
    """A loader of which half of the batches, by chance, are all ignored."""

    def __init__(self, loader):
        self.loader = loader

    def __len__(self):
        return len(self.loader)

    def batches(self, epoch=0, start=0):
        is_blank = np.random.default_rng([self.loader.seed, epoch]).random(len(self)) < BLANK_SHARE
        ignore_index = self.loader.dataset.ignore_index
        batches = self.loader.batches(epoch, start)
        try:
            for number, batch in enumerate(batches, start):
                yield batch._replace(target=np.full_like(batch.target, ignore_index)) \
                    if is_blank[number] else batch
        finally:
            batches.close()  # stops the workers

    def __getattr__(self, name):
        return getattr(self.loader, name)


@contextmanager
def empty_confusion_matrix():
    """The metric is never told anything: every score is a quotient of zeros.

    Planted in `ConfusionMatrix.update`.
    """
    with mock.patch.object(ConfusionMatrix, "update", lambda *arguments: None):
        yield
