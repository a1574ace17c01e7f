"""Label faults: what a mask's values mean on their way to the loss, and to the score."""

import numpy as np

from minisegnet.diagnosis.evidence import find, number, numbers
from minisegnet.diagnosis.finding import (
    CONTRADICTION,
    EXACT,
    LIKELY,
    SYMPTOM,
    Finding,
    look_at_data,
    names_of,
    train_again,
    with_weights,
)
from minisegnet.diagnosis.label_path import label_path_of, told
from minisegnet.metrics import divide
from minisegnet.tables import percent

# A class with so many pixels in the probed batch has a gradient unless the loss passes it over.
ENOUGH_PIXELS = 10
# Share of the training pixels from which a class must turn up in the batches of an epoch.
MANY_PIXELS = 0.01
# Pull of a class that no training pixel has, relative to the whole gradient at the start. Label
# smoothing 0.1 of equal weights gives 0.05 / K; here it is a force of its own.
ABSENT_PULL = 0.05
# Share of the predictions that may go to classes that no training pixel has.
ABSENT_PREDICTED = 0.01
# Recall and precision from which a class counts as found, be it under another name.
FOUND = 0.5
# Difference (half the L1 distance) of the class shares of training and validation from which they
# are hardly samples of one thing; floor plans differ by 0.02 to 0.05, CamVid's splits by 0.1.
OTHER_SHARES = 0.4


def label_findings(evidence):
    """Yield the label faults of a run."""
    train, val = (label_path_of(evidence, split) for split in ("train", "val"))
    if train is not None:
        yield from _of_training_path(evidence, train)
    if val is not None:
        yield from _of_validation_path(evidence, val, train)
    yield from _passed_over_by_the_loss(evidence)
    yield from _never_delivered(evidence)
    yield from _invented(evidence)
    yield from _absent_classes(evidence)
    if train is None or val is None:
        yield from _other_names_for_the_same(evidence)


# ---------------------------------------------------------------- the path of the labels


def _of_training_path(evidence, path):
    void = evidence.ignore_index
    seen = f"of {path.samples} training masks, value in the file -> label in training: "
    if path.shift is not None:
        yield Finding(
            "shifted-labels", "label",
            f"the training labels are shifted by {path.shift:+d}",
            f"{seen}{told(path.moved, void)}",
            "an offset where the masks are read: classes counted from 1 in one place and from 0 "
            "in another (reduce_zero_label, a background that was added or dropped)",
            look_at_data(evidence), CONTRADICTION)
        return  # what is cut off at the ends of the list follows from it
    yield from _excluded_as_class(evidence, path, seen)
    beyond = [d for d in path.deviations if d.wanted is not None and d.wanted != void
              and d.wanted >= path.num_classes]
    missing = path.undeclared + beyond
    # Folded into a class that others have too, or dropped: the model has no class for it.
    folded = [d for d in path.moved + path.class_ignored if d not in beyond
              and find(evidence.start, "train", "pixels") is not None
              and evidence.train_pixels is not None
              and d.wanted < len(evidence.train_pixels)
              and evidence.train_pixels[d.wanted] == 0]
    if missing or folded:
        lost = sum(d.pixels for d in missing + folded)
        yield Finding(
            "too-few-classes", "label",
            f"{len(missing + folded)} value{'s' * (len(missing + folded) != 1)} in the masks "
            f"without a class of {'their' if len(missing + folded) != 1 else 'its'} own: the "
            f"model has {path.num_classes} classes",
            f"{seen}{told(missing + folded, void)}; {percent(lost / path.pixels)} of the pixels",
            "the number of classes, or the list of them, is shorter than what the masks hold, and "
            "what lies beyond is folded into another class or ignored",
            look_at_data(evidence), CONTRADICTION if missing else EXACT)
    ignored = [d for d in path.class_ignored if d not in beyond + folded]
    if ignored:
        yield Finding(
            "wrong-ignore-id", "label",
            f"{len(ignored)} declared class{'es' * (len(ignored) != 1)} of the masks "
            f"{'is' if len(ignored) == 1 else 'are'} ignored", f"{seen}{told(ignored, void)}",
            "the id that is ignored is that of a class",
            look_at_data(evidence), CONTRADICTION)
    moved = [d for d in path.moved if d not in beyond + folded]
    if moved:
        yield Finding(
            "other-classes", "label", "training masks come with labels that were not declared",
            f"{seen}{told(moved, void)}", "another class map than the one declared is applied to "
            "the training masks", look_at_data(evidence), EXACT)


def _excluded_as_class(evidence, path, seen):
    """What should be ignored and is a class: the void alone, or excluded ids sent to 0."""
    excluded, void = path.excluded_as_class, evidence.ignore_index
    if not excluded:
        return
    share = percent(sum(d.pixels for d in excluded) / path.pixels)
    to_0 = [d for d in excluded if d.got == 0]
    # A map that starts from zeros sends every id to 0 that it does not name; the void among them
    # or not. A void that was merely forgotten is one value.
    from_zeros = len(to_0) == len(excluded) and any(not _looks_void(d.value, void) for d in to_0)
    if from_zeros:
        yield Finding(
            "excluded-ids-in-class-0", "label",
            f"{len(to_0)} excluded id{'s' * (len(to_0) != 1)} in the masks became class 0, "
            f"{_class_name(evidence, 0)}", f"{seen}{told(to_0, void)}; {share} of the pixels",
            "a class map that starts from zeros: every id that it does not name becomes class 0, "
            "where it should become the label that is ignored", look_at_data(evidence),
            CONTRADICTION)
    else:
        names = ", ".join(sorted({_class_name(evidence, d.got) for d in excluded}))
        yield Finding(
            "ignore-is-a-class", "label", f"pixels to be ignored are trained as {names}",
            f"{seen}{told(excluded, void)}; {share} of the pixels",
            "the void value is taken for a class: the model is rewarded for calling borders and "
            f"unlabelled pixels {names}", look_at_data(evidence), CONTRADICTION)


def _looks_void(value, ignore_index):
    """Whether a value in a file is one that usually means "no label"."""
    return value in (ignore_index, 255, (0, 0, 0), (255, 255, 255), (224, 224, 192))


def _class_name(evidence, label):
    known = 0 <= label < evidence.num_classes
    return evidence.class_names[label] if known else f"label {label}"


def _of_validation_path(evidence, path, train):
    """Validation masks that mean something else than the training masks do, or than declared."""
    void = evidence.ignore_index
    in_train = {(d.value, d.got) for d in train.deviations} if train is not None else set()
    own = [d for d in path.deviations if (d.value, d.got) not in in_train]
    other = [] if train is None else [
        value for value in path.declared
        if value in train.declared and path.declared[value] != train.declared[value]]
    unseen = [] if train is None else [
        value for value in path.declared if value not in train.declared]
    if not own and not other and not unseen:
        return
    words = []
    if own:
        words.append(f"of {path.samples} validation masks, value in the file -> label: "
                     f"{told(own, void)}")
    if other:
        words.append("declared for training and for validation: " + ", ".join(
            f"{value} -> {train.declared[value]} and {path.declared[value]}"
            for value in other[:4]))
    if unseen:
        words.append(f"values {', '.join(map(str, unseen[:4]))} are declared for validation only")
    yield Finding(
        "other-validation-classes", "label",
        "the validation masks do not mean the classes that training teaches",
        "; ".join(words), "validation is read with another list of classes, or another class map, "
        "than training: its score is about other classes",
        look_at_data(evidence), CONTRADICTION)


# ---------------------------------------------------------------- the loss, the transforms


def _passed_over_by_the_loss(evidence):
    """Classes whose pixels have no gradient at all."""
    pixels = numbers(evidence.start, "probe", "pixels")
    share = numbers(evidence.start, "probe", "share_uniform")
    if pixels is None or share is None or pixels.shape != share.shape or not share.sum() > 0:
        return
    silent = (pixels >= ENOUGH_PIXELS) & (share == 0)  # exactly: a small weight is not nothing
    if not silent.any():
        return
    words = (f"of {int(pixels.sum()):,} pixels in the probed batch, "
             f"{int(pixels[silent].sum()):,} are {names_of(evidence, silent)}, and their share of "
             f"the gradient is {percent(share[silent].sum())}")
    unscored = _unscored(evidence) & silent
    if unscored.any():
        words += (f"; in the confusion matrix {names_of(evidence, unscored)} has no pixel, though "
                  f"the validation masks show it")
    yield Finding(
        "wrong-ignore-id", "label",
        f"the loss passes over every pixel of {names_of(evidence, silent)}", words,
        "the loss ignores the id of a class (ignore_index 0 where 0 is a class, or an id after "
        "and not before the mapping)" + ("" if unscored.any() else ", or the class has weight 0"),
        train_again(evidence, "--ignore-index", 255, epochs=1),
        CONTRADICTION if unscored.any() else EXACT)


def _never_delivered(evidence):
    """Classes that the masks hold and no batch of whole epochs."""
    counted = [numbers(record, "target_pixels") for record in evidence.epochs]
    pixels = evidence.train_pixels
    if pixels is None or not counted or any(n is None or n.shape != pixels.shape for n in counted):
        return
    delivered = np.nansum(counted, axis=0)
    missing = (pixels >= MANY_PIXELS * pixels.sum()) & (delivered == 0)
    if not missing.any() or not delivered.any():
        return
    yield Finding(
        "wrong-ignore-id", "label", f"no batch holds a pixel of {names_of(evidence, missing)}",
        f"{names_of(evidence, missing)} {'is' if missing.sum() == 1 else 'are'} "
        f"{percent(pixels[missing].sum() / pixels.sum())} of the pixels in the training masks, "
        f"and none of the {int(delivered.sum()):,} with a label in the batches of "
        f"{len(counted)} epochs", "between the masks and the loss, the id of a class is ignored",
        train_again(evidence, "--augment", "none", "--sampler", "uniform", epochs=1), EXACT)


def _unscored(evidence):
    """Classes (K,) bool that the monitor counted in validation and the matrix did not."""
    counted = numbers(evidence.validations[-1], "target_pixels") if evidence.validations else None
    if evidence.confusion is None or counted is None:
        return np.zeros(evidence.num_classes, bool)
    return (counted > 0) & (evidence.confusion.sum(axis=1) == 0)


def _invented(evidence):
    """Labels that are there only after the transform: masks that were interpolated."""
    for split, name in (("train", "training"), ("val", "validation")):
        found = [(label, pixels) for label, pixels in
                 find(evidence.start, "transform", split, "invented") or []
                 if label != evidence.ignore_index]
        # A picture of two halves, labelled 0 and 2; where most labels are in a mask already,
        # those invented may hide among them.
        halves = number(find(evidence.start, "alignment") if split == "train" else
                        find(evidence.start, "alignment", "val"), "transform", "invented")
        words = []
        if found:
            samples = number(evidence.start, "transform", split, "samples")
            labels = ", ".join(f"{_class_name(evidence, label)} ({int(pixels):,} px)"
                               for label, pixels in sorted(found, key=lambda f: -f[1])[:4])
            words.append(f"in {samples:.0f} {name} masks, "
                         f"{int(sum(pixels for _, pixels in found)):,} pixels have a label after "
                         f"the transform that their mask did not hold before: {labels}")
        if halves > 0:
            words.append(f"of a test picture with the labels 0 and 2 alone, {halves:,.0f} pixels "
                         f"come out with another label")
        if words:
            yield Finding(
                "interpolated-masks", "label",
                f"resizing or augmentation invents labels in the {name} masks", "; ".join(words),
                "masks are resized with interpolation: between labels 2 and 6 lies 4, which is "
                "another class and not a border; use nearest for masks",
                train_again(evidence, "--augment", "none", "--sampler", "uniform", epochs=1),
                EXACT)
            return


def _absent_classes(evidence):
    """Classes of the model that no training pixel has, and that the loss or the model wants."""
    pixels = evidence.train_pixels
    pull = numbers(evidence.start, "probe", "pull_perfect")
    if pixels is None or not (pixels == 0).any() or not pixels.any():
        return
    absent, words, score = pixels == 0, [], 0.0
    if pull is not None and pull.shape == pixels.shape and pull[absent].max() > ABSENT_PULL:
        words.append(f"at a nearly perfect prediction the loss still pulls "
                     f"{percent(pull[absent].sum())} of its first gradient towards them, and "
                     f"{percent(pull[~absent].sum())} towards all others")
        score = EXACT
    predicted = _predicted_share(evidence)
    if predicted is not None and predicted[absent].sum() > ABSENT_PREDICTED:
        words.append(f"they take {percent(predicted[absent].sum())} of the predictions")
        score = EXACT + 0.05 if score else SYMPTOM + 0.1  # a poor model predicts anything
    if not words:
        return
    yield Finding(
        "too-many-classes", "label",
        f"{absent.sum()} of {absent.size} classes occur in no training mask and still pull",
        f"{names_of(evidence, absent)} {'has' if absent.sum() == 1 else 'have'} no training "
        f"pixel; " + "; ".join(words),
        "the list of classes is longer than what the masks hold, and label smoothing hands an "
        "absent class its share of every pixel, times its weight: give it weight 0, or drop it",
        with_weights(evidence, "sqrt"), score)


def _predicted_share(evidence):
    """The share (K,) of each class among the last validation's predictions, or None."""
    predicted = numbers(evidence.validations[-1], "predicted_pixels") \
        if evidence.validations else None
    if predicted is None and evidence.confusion is not None:
        predicted = evidence.confusion.sum(axis=0)
    ok = predicted is not None and predicted.shape == (evidence.num_classes,) and predicted.any()
    return predicted / predicted.sum() if ok else None


# ---------------------------------------------------------------- without files


def _other_names_for_the_same(evidence):
    """Classes that the model finds under other names: the confusion matrix is a permutation.

    A score cannot tell which side is wrong. A step by one along the list is what an offset does,
    on either side; anything else is another list.
    """
    matrix = evidence.confusion
    if matrix is None or evidence.num_classes < 2:
        yield from _other_shares(evidence)
        return
    K = evidence.num_classes
    recall = np.nan_to_num(divide(matrix, matrix.sum(axis=1, keepdims=True)))  # (K, K)
    precision = np.nan_to_num(divide(matrix, matrix.sum(axis=0, keepdims=True)))
    # A name that is used for one class, and that class by this name: a collapse gives many
    # classes one name, and a poor model one class many names.
    belongs = (recall >= FOUND) & (precision >= FOUND)  # at most one in a row or a column
    called = np.where(belongs.any(axis=1), belongs.argmax(axis=1), -1)  # (K,)
    moved = [c for c in range(K) if called[c] not in (-1, c)]
    right = [c for c in range(K) if called[c] == c]
    truth = matrix.sum(axis=1)
    # A few classes that pass for others are a poor model. Most of the pixels must have moved, or
    # most of the classes: background is often the first in every list.
    most_pixels = truth[moved].sum() > truth.sum() / 2
    most_classes = len(moved) > max(len(right), 2) and 2 * len(moved) > np.count_nonzero(truth)
    if len(moved) < 2 or not (most_pixels or most_classes):
        yield from _other_shares(evidence)
        return
    names = evidence.class_names
    words = ", ".join(f"{names[c]} is called {names[called[c]]} ({percent(recall[c, called[c]])})"
                      for c in moved[:4])
    steps = [(called[c] - c) % K for c in moved]
    step = max(set(steps), key=steps.count)
    is_shift = step in (1, K - 1) and steps.count(step) >= 0.7 * len(steps)
    common = ("label", f"in validation: {words}; {len(right)} classes are called by their names")
    shifted = Finding(
        "shifted-labels", "label", f"the classes are found, {'one place' if is_shift else 'some'} "
        f"along the list", common[1], "the training labels are shifted against those of "
        "validation: classes counted from 1 in one place and from 0 in another",
        look_at_data(evidence), EXACT if is_shift else LIKELY)
    other = Finding(
        "other-validation-classes", "label", "the classes are found, under other names",
        common[1], "validation is read with another list of classes, or another order of it, than "
        "training", look_at_data(evidence), LIKELY if is_shift else EXACT)
    yield from (shifted, other) if is_shift else (other,)


def _other_shares(evidence):
    """Classes in quite other shares in validation than in training."""
    train, val = evidence.train_pixels, evidence.val_pixels
    if train is None or val is None or not train.any() or not val.any():
        return
    train, val = train / train.sum(), val / val.sum()
    difference = np.abs(train - val).sum() / 2
    if difference < OTHER_SHARES:
        return
    most = np.argsort(-np.abs(train - val), kind="stable")[:3]
    words = ", ".join(f"{evidence.class_names[c]} {percent(train[c])} and {percent(val[c])}"
                      for c in most)
    yield Finding(
        "other-validation-classes", "label",
        "training and validation hold quite different classes",
        f"{percent(difference)} of the pixels would have to change class; share in training and "
        f"in validation: {words}", "validation is read with another list of classes, or holds "
        "other scenes", look_at_data(evidence), LIKELY)
