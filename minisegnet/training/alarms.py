"""The warnings of --debug: one line each, each kind once per run, none in a healthy one.

The absolute thresholds are those in use among practitioners; how long a thing must last is set so
that what every training goes through in its first epochs is not reported.
"""

from tqdm import tqdm

VANISHING, EXPLODING = 1e-7, 1e3  # norms of a gradient, of the whole or of a layer
FAINT_LAYERS = 0.1  # share of them; a squeeze-and-excite gate or two may be shut
LEAP = 0.5  # norm of an update / norm of the parameters; healthy ones stay below 0.2
CREEP = 3e-5  # the same, over a whole epoch at the full learning rate
MOSTLY_IGNORED = 0.5  # share of the pixels of an epoch
FEWEST_CLASSES = 5  # a validation batch should show so many, or half of those in its truth
FIRST_STEPS = 200  # of training, in which a healthy model too predicts few classes
COLLAPSED = 3  # validations after them, in a row
NEVER_PREDICTED = 5  # validations after them, in a row


class Alarms:
    """Prints what is wrong in the measurements that a `Monitor` hands it."""

    def __init__(self, class_names):
        self.class_names = tuple(class_names)
        self._told = set()
        self._full_lr = 0.0
        self._collapsed = self._few = 0  # validations in a row
        self._missed = [0] * len(self.class_names)  # likewise, of each class

    def step(self, step, norm, valid_share):
        """Judge the gradient's `norm` in a step."""
        if norm > EXPLODING:
            self._tell("exploding", f"gradient norm {norm:.3g} at step {step} is above "
                                    f"{EXPLODING:g}: exploding; lower --lr, or --clip-norm 1")
        elif norm < VANISHING and valid_share > 0:
            self._tell("vanishing", f"gradient norm {norm:.3g} at step {step} is below "
                                    f"{VANISHING:g}: vanishing; nothing is learned from it")

    def update(self, step, ratio):
        """Judge an update by its length relative to the parameters."""
        if ratio > LEAP:
            self._tell("leap", f"the update of step {step} is {100 * ratio:.3g} % as long as the "
                               f"parameters themselves, above {100 * LEAP:g} %; lower --lr")

    def epoch(self, record, updates, layers, unexpected):
        """Judge the record of an epoch.

        `updates` are pairs (lr, ratio) of its sampled steps, `layers` the largest gradient norm
        of each layer in them, `unexpected` the still parameters that are not frozen on purpose.
        """
        epoch, empty = record["epoch"], record["empty_batches"]
        if empty:
            self._tell("empty", f"{empty} of {record['batches']} batches of epoch {epoch} have no "
                                f"labelled pixel: every pixel is ignored")
        labelled = sum(record["target_pixels"])
        ignored = record["ignored_pixels"] / max(labelled + record["ignored_pixels"], 1)
        if ignored > MOSTLY_IGNORED:
            self._tell("ignored", f"{100 * ignored:.0f} % of the pixels of epoch {epoch} are "
                                  f"ignored; is the ignore label right?")
        seen = [name for name, pixels in zip(self.class_names, record["target_pixels"]) if pixels]
        if len(seen) == 1 and len(self.class_names) > 1:
            self._tell("one label", f"all labels of epoch {epoch} are {seen[0]}")
        faint = [name for name, norm in layers.items() if 0 < norm < VANISHING]
        if len(faint) > FAINT_LAYERS * len(layers):
            self._tell("faint", f"the gradients of {len(faint)} of {len(layers)} layers stayed "
                                f"below {VANISHING:g} in epoch {epoch}: vanishing; "
                                f"{_listed(faint)}")
        if unexpected:
            self._tell("still", f"{len(unexpected)} of {record['parameters']} parameter arrays "
                                f"have not moved since the start and are not frozen: "
                                f"{_listed(unexpected)}")
        self._creeping(epoch, updates)

    def _creeping(self, epoch, updates):
        rates = [lr for lr, _ in updates]
        self._full_lr = max([self._full_lr, *rates])
        # A schedule may end near 0; what counts is how far updates go while it is high.
        if rates and max(rates) > self._full_lr / 2:
            largest = max(ratio for _, ratio in updates)
            if largest < CREEP:
                self._tell("creep", f"no update of epoch {epoch} was longer than "
                                    f"{100 * largest:.2g} % of the parameters; raise --lr")

    def batch_norm(self, still, untrained_still):
        """Judge how many batch norms kept the statistics of an untrained model."""
        if untrained_still:
            self._tell("statistics", f"the running statistics of {still} batch norms have never "
                                     f"moved, those of {untrained_still} of them from mean 0 and "
                                     f"variance 1, as untrained")

    def validation(self, record, batches, steps):
        """Judge the record of a validation after `steps` steps of training.

        `batches` are pairs of class counts, (found, true).
        """
        where = f"the validation of epoch {record['epoch']}"
        total = sum(map(sum, record["confusion"]))
        counted = sum(record["target_pixels"])
        if total == 0:
            self._tell("empty matrix", f"the confusion matrix of epoch {record['epoch']} is "
                                       f"empty, though {counted:,} labelled pixels were compared")
        elif total != counted:
            self._tell("matrix", f"the confusion matrix of epoch {record['epoch']} holds "
                                 f"{total:,} pixels, though {counted:,} were compared")
        else:
            self._check_sums(record)
        loss = record["loss"]
        if not abs(loss) < float("inf"):
            self._tell("validation loss", f"the loss of {where} is {loss}")
        if steps > FIRST_STEPS:
            self._diversity(where, batches, record["predicted_pixels"])
            self._never_predicted(record)

    def _check_sums(self, record):
        rows = map(sum, record["confusion"]), record["target_pixels"], "are"
        columns = map(sum, zip(*record["confusion"])), record["predicted_pixels"], "are predicted"
        for sums, counts, are in (rows, columns):
            for name, held, counted in zip(self.class_names, sums, counts):
                if held != counted:
                    self._tell("matrix", f"the confusion matrix of epoch {record['epoch']} has "
                                         f"{held:,} pixels that {are} {name}, of {counted:,}")

    def _diversity(self, where, batches, predicted):
        judged = [(found, true) for found, true in batches if true > 1]
        one = sum(found <= 1 for found, _ in judged)
        few = sum(found < min(FEWEST_CLASSES, true / 2) for found, true in judged)
        self._collapsed = self._collapsed + 1 if 2 * one > len(judged) else 0
        self._few = self._few + 1 if 2 * few > len(judged) else 0
        if self._collapsed >= COLLAPSED:
            often = self.class_names[max(range(len(predicted)), key=predicted.__getitem__)]
            share = 100 * max(predicted) / max(sum(predicted), 1)
            self._tell("diversity", f"{one} of {len(batches)} batches in {where} are predicted as "
                                    f"one class each: collapse; {share:.0f} % of the pixels as "
                                    f"{often}")
        elif self._few >= COLLAPSED:
            found, true = (sum(column) / len(judged) for column in zip(*judged))
            self._tell("diversity", f"{where} predicts {found:.1f} classes per batch, of "
                                    f"{true:.1f} that are there")

    def _never_predicted(self, record):
        for k, (true, found) in enumerate(zip(record["target_pixels"],
                                              record["predicted_pixels"])):
            if true:
                self._missed[k] = 0 if found else self._missed[k] + 1
        missed = [name for name, times in zip(self.class_names, self._missed)
                  if times >= NEVER_PREDICTED]
        if missed:
            self._tell("missed", f"{NEVER_PREDICTED} validations in a row have not predicted a "
                                 f"pixel as {_listed(missed)}")

    def _tell(self, kind, text):
        if kind not in self._told:
            self._told.add(kind)
            tqdm.write(f"    debug: {text}")


def _listed(names, most=3):
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
