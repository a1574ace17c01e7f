"""One finding of a diagnosis, and the words that findings share."""

import shlex
from typing import NamedTuple

from minisegnet.tables import listed

KINDS = ("label", "metric", "loss", "optimizer", "data")
# Settings that tell of later epochs: a run with them cannot be made shorter at will.
WAITS = ("loss_after", "image_size_after", "freeze_epochs", "warmup_epochs")

# Scores: what a measurement is worth. They order the findings, so that a root stands above what
# follows from it.
CONTRADICTION = 1.0  # two counts of the same thing differ: one of them is wrong, whatever else is
EXACT = 0.9  # a number that no healthy run can show
STRONG = 0.75  # a fault by its measurement and by its outcome
LIKELY = 0.6  # what is seen has few other explanations
SYMPTOM = 0.3  # something is wrong, and nothing measured says why


class Finding(NamedTuple):
    """A fault, why it is believed, and what to try. `experiment` is one line for a shell."""

    fault: str
    kind: str
    title: str
    evidence: str
    cause: str
    experiment: str
    score: float

    @property
    def certainty(self):
        """The score in a word."""
        return ("certain" if self.score >= EXACT else "likely" if self.score >= LIKELY
                else "possible")


def train_again(evidence, *flags, epochs=None):
    """Return the command that trains as the run did, but for `flags`, and watches.

    `epochs` makes it short, unless something in the run's course waits for a later epoch.
    """
    config = evidence.config
    own = ["--config", str(evidence.folder / "config.toml")] if config else []
    if epochs is not None and not any(config.get(key) for key in WAITS):
        flags = *flags, "--epochs", epochs
    return shlex.join(["python", "-m", "minisegnet.train", *own, *map(str, flags), "--debug"])


def with_weights(evidence, scheme, *flags):
    """Return `train_again` with the class weights of a scheme."""
    if evidence.config.get("dice_mode") == "smp":  # which has no weights
        flags = *flags, "--dice-mode", "pooled"
    return train_again(evidence, "--class-weights", scheme, *flags)


def look_at_data(evidence):
    """Return the command that shows the data of the run: what its files hold, class by class."""
    data = evidence.config.get("data", "floorplans")
    if data == "floorplans":  # generated: there are no files to look at
        return train_again(evidence, epochs=1)
    layout = evidence.config.get("layout", "auto")
    return shlex.join(["python", "-m", "minisegnet.analyze", "--data", data,
                       *(["--layout", layout] if layout != "auto" else [])])


def names_of(evidence, chosen):
    """Return the names of the classes that `chosen`, (K,) bool, holds, as one text."""
    return listed([name for name, is_chosen in zip(evidence.class_names, chosen) if is_chosen])
