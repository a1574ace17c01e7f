"""From the value in a mask file to the label that training sees, against what was declared.

The inspection before the first step counts pairs (value in the file, label delivered) pixel by
pixel. Each value should have one label, and that which the class map declares for it. A pixel
count is no estimate: one deviation is a contradiction.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from minisegnet.diagnosis.evidence import find

# A value's pixels go to one label; other labels may come from pixels at odds, such as a mask that
# was resized with care. Above this share of all pixels the masks are not those of the files.
SCRAMBLED = 0.01
# Of the pixels of a class that are delivered ignored: above, the class counts as ignored.
ALL_IGNORED = 0.999


class Deviation(NamedTuple):
    """A value whose pixels come with another label than declared."""

    value: object  # int, or (r, g, b)
    wanted: int | None  # None: the value is not declared at all
    got: int
    pixels: float


@dataclass(frozen=True)
class LabelPath:
    """Where the values of one split's mask files go.

    `num_classes` and `ignore_index` are the model's and the data set's.
    """

    num_classes: int
    ignore_index: int
    declared: dict  # value -> label
    delivered: dict  # value -> {label: pixels}
    samples: int = 0
    deviations: list = field(default_factory=list)

    @property
    def pixels(self):
        """How many pixels were compared."""
        return sum(sum(labels.values()) for labels in self.delivered.values())

    @property
    def scrambled(self):
        """The share of pixels whose label is not the usual one of their value, ignored ones out.

        Where values have no label of their own, the masks delivered are not those of the files.
        """
        labelled = usual = 0
        for labels in self.delivered.values():
            counts = [n for label, n in labels.items() if label != self.ignore_index]
            labelled += sum(counts)
            usual += max(counts, default=0)
        return 1 - usual / labelled if labelled else 0.0

    @property
    def lost(self):
        """The share of pixels of declared classes that are delivered ignored."""
        labelled = ignored = 0
        for value, labels in self.delivered.items():
            if self.declared.get(value, self.ignore_index) != self.ignore_index:
                labelled += sum(labels.values())
                ignored += labels.get(self.ignore_index, 0)
        return ignored / labelled if labelled else 0.0

    def _chosen(self, wanted_class, got_class):
        return [d for d in self.deviations if d.wanted is not None
                and (d.wanted != self.ignore_index) == wanted_class
                and (d.got != self.ignore_index) == got_class]

    @property
    def excluded_as_class(self):
        """Deviations of values that should be ignored and come as a class."""
        return self._chosen(False, True)

    @property
    def class_ignored(self):
        """Deviations of values that should be a class and come ignored."""
        return self._chosen(True, False)

    @property
    def moved(self):
        """Deviations of values that should be one class and come as another."""
        return self._chosen(True, True)

    @property
    def undeclared(self):
        """Values that are in the files and not declared, as deviations."""
        return [d for d in self.deviations if d.wanted is None]

    @property
    def shift(self):
        """How far the labels are shifted along the list of classes, None if they are not.

        Most declared classes must have moved, and most of those by the same step: one at the end
        of the list may have come round, been cut off, or been ignored.
        """
        K, classes = self.num_classes, self._classes_seen()
        steps = [(d.got - d.wanted) % K for d in self.moved]
        if len(steps) < max(2, len(classes) / 2):
            return None
        step = max(set(steps), key=steps.count)
        if steps.count(step) < max(2, 0.7 * len(steps)):
            return None
        return step if step <= K / 2 else step - K

    def _classes_seen(self):
        return [value for value in self.delivered
                if self.declared.get(value, self.ignore_index) != self.ignore_index]


def label_path_of(evidence, split):
    """Return the `LabelPath` of "train" or "val", None where no files were compared."""
    record = find(evidence.start, "label_path", split)
    if not isinstance(record, dict) or not record.get("pairs"):
        return None
    declared = {_value(value): label for value, label in record.get("declared") or []}
    delivered = {}
    for value, label, pixels in record["pairs"]:
        labels = delivered.setdefault(_value(value), {})
        labels[label] = labels.get(label, 0) + pixels
    path = LabelPath(evidence.num_classes, evidence.ignore_index, declared, delivered,
                     record.get("samples") or 0)
    if path.scrambled <= SCRAMBLED:
        path.deviations.extend(_deviations(path))
    return path


def _deviations(path):
    """Yield the `Deviation`s; those of a value that is ignored here and there are not among them.

    A mask may be ignored as a whole, or at its border, without a word on what its values mean.
    """
    for value, labels in sorted(path.delivered.items(), key=lambda item: -sum(item[1].values())):
        total = sum(labels.values())
        if labels.get(path.ignore_index, 0) > ALL_IGNORED * total:
            got = path.ignore_index
        else:
            got = max((label for label in labels if label != path.ignore_index), key=labels.get)
        wanted = path.declared.get(value)
        if got != wanted:
            yield Deviation(value, wanted, got, labels[got])


def _value(value):
    return tuple(value) if isinstance(value, list) else value


def told(deviations, ignore_index, most=4):
    """Return deviations as text: "3 -> 1 (declared 2; 51,200 pixels)"."""

    def label(k):
        return "nothing" if k is None else "ignored" if k == ignore_index else str(k)

    words = [f"{d.value} -> {label(d.got)} (declared: {label(d.wanted)}; {int(d.pixels):,} px)"
             for d in deviations]
    more = len(words) - most
    return ", ".join(words[:most]) + (f" and {more} more" if more > 0 else "")
