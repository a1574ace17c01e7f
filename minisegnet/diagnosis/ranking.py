"""All rules on one run: what they find, most certain first, and what they could not look at."""

import numpy as np

from minisegnet.diagnosis.data_rules import data_findings
from minisegnet.diagnosis.evidence import find, number
from minisegnet.diagnosis.finding import LIKELY, names_of
from minisegnet.diagnosis.label_rules import label_findings
from minisegnet.diagnosis.loss_rules import loss_findings
from minisegnet.diagnosis.metric_rules import metric_findings
from minisegnet.diagnosis.optimizer_rules import optimizer_findings
from minisegnet.tables import percent
from minisegnet.verdict import verdict

NOT_FOUND = 0.01  # best recall of a class that validation asks for

RULES = (label_findings, metric_findings, loss_findings, optimizer_findings, data_findings)

# What a group of rules looks at, and whether it is there.
CHECKS = (
    ("masks: values in the files, if any, against the labels in training and validation",
     lambda e: e.start and "label_path" in e.start),  # null where there are no files
    ("masks: labels before and after resizing and augmentation",
     lambda e: e.start and "transform" in e.start),
    ("pictures: their range, and whether masks fit them",
     lambda e: find(e.start, "input") and find(e.start, "alignment")),
    ("loss: its gradient per class on real masks, before the first step",
     lambda e: find(e.start, "probe")),
    ("optimizer: size and direction of the updates", lambda e: e.of_steps("update_ratio").size),
    ("weights and batch norms that never move", lambda e: e.epochs),
    ("batches without a label", lambda e: e.epochs or e.of_steps("valid_share").size),
    ("score: the confusion matrix against the pixels seen", lambda e: e.validations),
    ("course of the losses", lambda e: e.log),
)


def diagnose(evidence):
    """Return the `Finding`s of a run, the most certain first; none of a healthy run.

    Of several findings of one fault the most certain stays. What only says that something is wrong
    goes where a cause was found.
    """
    best = {}
    for rule in RULES:
        for finding in rule(evidence):
            known = best.get(finding.fault)
            if known is None or finding.score > known.score:
                best[finding.fault] = finding
    ranked = sorted(best.values(), key=lambda finding: -finding.score)
    if ranked and ranked[0].score >= LIKELY:
        ranked = [finding for finding in ranked if finding.score >= LIKELY]
    return ranked


def checked(evidence):
    """Return (what was checked, what could not be), two lists of texts."""
    there = [bool(has(evidence)) for _, has in CHECKS]
    return ([text for (text, _), is_there in zip(CHECKS, there) if is_there],
            [text for (text, _), is_there in zip(CHECKS, there) if not is_there])


def remarks(evidence):
    """Return sentences on what is no fault and worth knowing."""
    sentences = []
    if evidence.end is not None and find(evidence.end, "finished") is False:
        epoch = number(evidence.end, "epoch") + 1
        sentences.append(f"The run was interrupted in epoch {epoch:.0f}; --resume "
                         f"{evidence.folder} goes on.")
    train, val = evidence.train_pixels, evidence.val_pixels
    if train is not None and val is not None:
        unseen = (train == 0) & (val > 0)
        if unseen.any():
            sentences.append(f"No training pixel is {names_of(evidence, unseen)}, which "
                             f"validation asks for: it cannot be learned from these pictures.")
    recall = evidence.recall
    if recall is not None and train is not None:
        lost = (recall < NOT_FOUND) & (train > 0)  # nan: not in the truth
        if lost.any():
            sentences.append(f"Not found so far, at a recall below {NOT_FOUND:.0%} in every "
                             f"validation: {names_of(evidence, lost)}, together "
                             f"{percent(train[lost].sum() / train.sum())} of the training pixels. "
                             f"Rare classes come last: train longer, or give them more weight.")
    if evidence.log and not evidence.validations and not any("iou" in r for r in evidence.log):
        sentences.append("No epoch was validated.")
    validated = [record for record in evidence.log if record.get("iou") is not None]
    losses = [number(record, "train_loss") for record in evidence.log]
    if validated and np.isfinite(losses).all():
        sentences += verdict(evidence.log)
    return sentences
