"""Faults between the mask file and the label that training or validation sees.

But for the number of classes, a data set goes on reporting what its files hold (`check`), and so
the class weights stay: only the labels that it delivers are others.
"""

from contextlib import contextmanager

import numpy as np

from minisegnet.datasets.files import read_raw_mask
from minisegnet.datasets.palettes import palette_for
from minisegnet.imbalance.weighting import ClassStatistics
from minisegnet.lab.planting import Posing, other_criterion, other_dataset
from minisegnet.losses.criterion import Criterion

FEWER, MORE = 2, 4  # classes that get lost, and that are invented
SMOOTHING, WEIGHT_OF_ABSENT = 0.1, 100.0


class _Relabelled:
    """A data set whose labels are `change(mask, index)`; all else is as with `dataset`."""

    def __init__(self, dataset, change):
        self.dataset, self.change = dataset, change

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        sample = self.dataset[index]
        return sample._replace(mask=self.change(sample.mask, index))

    def __getattr__(self, name):
        return getattr(self.dataset, name)


def _with_table(dataset, table):
    """Return `dataset` with labels taken from `table`, {label: other label}."""
    lookup = np.arange(256, dtype=np.uint8)
    for label, other in table.items():
        lookup[label] = other
    return _Relabelled(dataset, lambda mask, index: lookup[mask])


def shifted_labels():
    """Training labels are one too high, the last class the first: ids counted from 1 somewhere.

    Planted in the training data set; validation is right.
    """
    def change(dataset, split):
        K = dataset.num_classes
        return dataset if split == "val" else _with_table(
            dataset, {label: (label + 1) % K for label in range(K)})

    return other_dataset(change)


def other_validation_classes():
    """Validation numbers its classes by another list, sorted by name.

    Planted in the validation data set, whose statistics follow.
    """
    def change(dataset, split):
        names = dataset.class_names
        by_name = sorted(range(len(names)), key=names.__getitem__)
        return dataset if split != "val" else _Recounted(
            _with_table(dataset, {label: place for place, label in enumerate(by_name)}))

    return other_dataset(change)


def ignore_is_a_class():
    """255 is cut to the largest id, as `numpy.clip` does: all that is void is the last class.

    Planted in both data sets.
    """
    return other_dataset(lambda dataset, split: _with_table(
        dataset, {dataset.ignore_index: dataset.num_classes - 1}))


def excluded_ids_in_class_0():
    """A class map that began as zeros: each value it does not name is background; 255 stays void.

    Planted in both data sets, which look up the values in the files.
    """
    def change(dataset, split):
        excluded = [value for value in dataset.class_map.excluded if value != dataset.ignore_index]

        def relabel(mask, index):
            raw = read_raw_mask(dataset.pairs[index][1])
            return np.where(np.isin(raw, excluded), np.uint8(0), mask)

        return _Relabelled(dataset, relabel)

    return other_dataset(change)


# ---------------------------------------------------------------- number of classes


class _Recounted:
    """A data set that counts the labels it delivers, and may have other classes.

    `class_names` are those of `dataset` by default.
    """

    def __init__(self, dataset, class_names=None):
        self.dataset = dataset
        self.class_names = tuple(class_names or dataset.class_names)
        self.num_classes = len(self.class_names)
        self.palette = palette_for(self.num_classes)

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        return self.dataset[index]

    def __getattr__(self, name):
        return getattr(self.dataset, name)

    def check(self, num_workers=0):
        self.dataset.check()  # which sets `sizes`
        masks = (self[i].mask for i in range(len(self)))
        return ClassStatistics.from_masks(masks, self.num_classes, self.ignore_index)


def too_few_classes():
    """The network has two outputs too few, and labels beyond them are cut to the last one.

    Planted in both data sets, which name two classes fewer.
    """
    def change(dataset, split):
        K = dataset.num_classes
        last = K - FEWER - 1
        cut = _with_table(dataset, {label: last for label in range(last + 1, K)})
        return _Recounted(cut, dataset.class_names[:last + 1])

    return other_dataset(change)


@contextmanager
def too_many_classes():
    """The list has four classes that no mask holds; weight 100 and label smoothing 0.1 push them.

    Planted in both data sets, which name four classes more, and in the criterion: cross-entropy,
    smoothed, with inverse weights up to a cap of 100, where the absent classes end.
    """
    def longer(dataset, split):
        K = dataset.num_classes
        absent = [f"class {K + k}" for k in range(MORE)]
        return _Recounted(dataset, [*dataset.class_names, *absent])

    def smoothed(criterion, weights, frequency):
        share = np.maximum(frequency, 1e-9)
        inverse = np.minimum(1 / (len(share) * share), WEIGHT_OF_ABSENT)
        return Posing(**vars(criterion), real=Criterion(
            "ce", weight=inverse, label_smoothing=SMOOTHING, ignore_index=criterion.ignore_index))

    with other_dataset(longer), other_criterion(smoothed):
        yield
