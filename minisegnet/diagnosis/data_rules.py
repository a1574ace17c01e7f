"""Data faults: pictures as the model gets them, and whether they belong to their masks."""

import numpy as np

from minisegnet.diagnosis.evidence import find, number, numbers
from minisegnet.diagnosis.finding import (
    CONTRADICTION,
    EXACT,
    LIKELY,
    STRONG,
    Finding,
    look_at_data,
    train_again,
)
from minisegnet.diagnosis.label_path import SCRAMBLED, label_path_of
from minisegnet.imbalance.alignment import judge
from minisegnet.tables import percent

# Normalised with the usual mean and deviation, pictures lie within -2.2 and 2.7.
TOO_LARGE = 6.0
# Bytes divided by 255 and left at that lie within 0 and 1, give or take rounding.
UNIT = 0.01
# Share of the batches without a single label from which a run is hurt by them; a crop may once
# meet nothing but void.
EMPTY_BATCHES = 0.02


def data_findings(evidence):
    """Yield the data faults of a run."""
    yield from _unnormalised(evidence)
    yield from _misaligned(evidence)
    yield from _empty_batches(evidence)


def _unnormalised(evidence):
    least, most, mean, std = (numbers(evidence.start, "input", key)
                              for key in ("min", "max", "mean", "std"))
    if least is None or most is None:
        return
    least, most = float(np.nanmin(least)), float(np.nanmax(most))
    is_bytes = max(-least, most) > TOO_LARGE
    is_unit = -UNIT <= least and most <= 1 + UNIT
    if not is_bytes and not is_unit:
        return

    def channels(values):
        return "unknown" if values is None else ", ".join(f"{value:.3g}" for value in values)

    yield Finding(
        "unnormalised-input", "data", "the pictures reach the model without normalisation",
        f"in {number(evidence.start, 'input', 'pictures'):.0f} pictures the values run from "
        f"{least:.3g} to {most:.3g}, with means {channels(mean)} and deviations {channels(std)}; "
        f"normalised ones run from -2.2 to 2.7, with means near 0 and deviations near 1",
        f"the step (x / 255 - mean) / deviation is missing"
        f"{', or only its division by 255 is there' if is_unit else ''}; pretrained weights and "
        f"learning rates are made for normalised input",
        train_again(evidence, "--overfit-one-batch", epochs=1), EXACT)


def _misaligned(evidence):
    record = find(evidence.start, "alignment")
    try:
        judgement = judge(record) if record else "cannot tell"
    except (KeyError, TypeError):  # an incomplete record
        judgement = "cannot tell"
    path = label_path_of(evidence, "train")
    scrambled = path.scrambled if path is not None else 0.0
    without = train_again(evidence, "--augment", "none", "--sampler", "uniform", epochs=1)
    fit = _fit_in_words(record)
    if judgement in ("mirrored", "upside down"):
        yield Finding(
            "image-flipped-alone", "data", f"masks fit pictures that are {judgement}", fit,
            "a flip is applied to the picture and not to its mask (or the other way round), or "
            "one of the two is stored flipped", without, EXACT)
    elif judgement == "shuffled":
        yield Finding(
            "shuffled-pairs", "data", "masks do not belong to their pictures", fit,
            "two lists of files that are sorted or shuffled apart, so that a picture gets "
            "another's mask", look_at_data(evidence), EXACT)
    elif scrambled > SCRAMBLED:
        yield Finding(
            "shuffled-pairs", "data", "the masks in training are not those of the files",
            f"{percent(scrambled)} of the pixels of the training masks have another label than "
            f"the usual one of their value in the file", "the mask that is delivered is another "
            "picture's, or is flipped or moved where it is read", look_at_data(evidence), STRONG)
    elif judgement == "shifted":
        yield Finding(
            "moved-masks", "data", "masks are moved against their pictures", fit,
            "a crop, or a change of size, that differs between picture and mask", without, LIKELY)


def _fit_in_words(record):
    """Return the numbers of the alignment in words, of the stage that shows most."""
    read = find(record, "as_read")
    stage, name = (read, "as read") if read and number(record, "pictures") < 6 \
        else (record, "in training")
    poses = ", ".join(f"{percent(number(stage, f'prefer_{pose}'))} {words}" for pose, words in
                      (("as_is", "as they are"), ("mirrored", "mirrored"),
                       ("upside_down", "upside down")))
    words = (f"of {number(stage, 'pictures'):.0f} pictures {name}, masks clearly fit {poses}; "
             f"mean rank of the picture's edges along the mask's borders "
             f"{number(stage, 'as_is'):.3f} as they are, {number(stage, 'mirrored'):.3f} "
             f"mirrored, {number(stage, 'other_mask'):.3f} with the masks of other pictures "
             f"(0.5: borders lie anywhere)")
    partners = number(read, "partners")
    if partners > 0:
        words += f"; {percent(partners)} of the pictures fit another picture's mask better"
    for pose, verb in (("mirrored", "mirrors"), ("upside_down", "turns upside down")):
        share = number(record, "transform", pose)
        if share > 0:
            words += f"; the transform {verb} {percent(share)} of the pictures without their masks"
    return words


def _empty_batches(evidence):
    empty = sum(number(record, "empty_batches") for record in evidence.epochs)
    batches = sum(number(record, "batches") for record in evidence.epochs)
    where = "epochs"
    if not batches > 0:  # before the first epoch's end
        valid = evidence.of_steps("valid_share")
        empty, batches, where = np.count_nonzero(valid == 0), len(valid), "sampled steps"
    if not batches > 0:
        empty, batches = (number(evidence.start, "batches", "train", key)
                          for key in ("empty", "batches"))
        where = "looked at before the first step"
    if not empty > EMPTY_BATCHES * batches:
        return
    ignored = sum(number(record, "ignored_pixels") for record in evidence.epochs)
    valid = sum(np.nansum(pixels) for pixels in
                (numbers(record, "target_pixels") for record in evidence.epochs)
                if pixels is not None)
    words = (f"{int(empty)} of {int(batches)} batches ({where}) have no pixel with a label, so "
             f"neither loss nor gradient")
    if ignored + valid > 0:
        words += f"; {percent(ignored / (ignored + valid))} of all training pixels are ignored"
    yield Finding(
        "all-ignored-batches", "data", "whole batches are ignored", words,
        "masks that hold the ignored value alone: unlabelled pictures in the training list, 0/255 "
        "masks of which 255 is swallowed as void, or crops that fall beside what is labelled",
        look_at_data(evidence), CONTRADICTION if empty >= batches / 2 else EXACT)
