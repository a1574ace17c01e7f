"""What the tests of the inspection before the first step share: small data sets, and faults."""

import numpy as np

from minisegnet.datasets import DataLoader, FloorPlans, Resize, make_augmentation
from minisegnet.losses.criterion import Criterion
from minisegnet.models import build_model
from minisegnet.training.checklist import format_checklist
from minisegnet.training.inspection import inspect

SIZE = (64, 80)


class Changed:
    """A data set whose samples are `change(sample)`; all else is as with `dataset`."""

    def __init__(self, dataset, change):
        self.dataset, self.change = dataset, change

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        return self.change(self.dataset[index])

    def __getattr__(self, name):
        return getattr(self.dataset, name)


def plans(split="train", length=24):
    """Small plans that show all twelve classes."""
    return FloorPlans(split, length=length, size=SIZE, rare_image_share=1.0, fixture_size=8,
                      wall=4)


def relabelled(table):
    """Return a change of samples by {label: other label}."""
    lookup = np.arange(256, dtype=np.uint8)
    for label, other in table.items():
        lookup[label] = other
    return lambda sample: sample._replace(mask=lookup[sample.mask])


def inspected(train_set=None, val_set=None, *, criterion=None, augment="standard", model=None,
              loader=DataLoader, transform=None, val_transform=None):
    """The record of what training with these would inspect."""
    train_set = plans() if train_set is None else train_set
    val_set = plans("val", 12) if val_set is None else val_set
    transform = transform or make_augmentation(augment, SIZE)
    return inspect(
        train_set, val_set, train_set.check(), val_set.check(),
        loader(train_set, 4, transform=transform, shuffle=True, num_workers=0),
        DataLoader(val_set, 4, transform=val_transform or Resize(SIZE), num_workers=0),
        model or build_model("mini", train_set.num_classes, seed=0), criterion or Criterion(),
        train_set.class_names)


def alarms(record):
    """The lines of the checklist that are not ok."""
    return [line for line in format_checklist(record) if not line.startswith("[ok]")]
