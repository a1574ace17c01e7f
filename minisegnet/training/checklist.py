"""The checklist that --debug prints before the first step: lines with the numbers they rest on."""

import numpy as np

from minisegnet.datasets.files import show_values
from minisegnet.datasets.transforms import MEAN, STD
from minisegnet.imbalance import alignment
from minisegnet.tables import listed, percent

SPLITS = {"train": "training", "val": "validation"}
PULLED = 0.02  # share of the first gradient that an absent class may pull with
_STRAYED = 0.1  # share of the pixels of a value that may come out as another label
_NAMED = 4

_OK, _BAD, _UNKNOWN = "[ok]", "[!]", "[?]"


def format_checklist(record):
    """Return the lines that tell what `inspect` found: "[ok]", "[!]" or, undecided, "[?]"."""
    lines = []
    for tell in (_labels, _shares, _absent, _label_path, _transforms, _input, _pairs, _batch_norm,
                 _loss, _baseline):
        lines += tell(record)
    return [f"{mark:4} {text}" for mark, text in lines]


def _labels(record):
    for split, name in SPLITS.items():
        batches, ignore_index = record["batches"][split], record["ignore_index"]
        pictures = f"the first {batches['pictures']} {name} pictures"
        last = record["num_classes"] - 1
        if batches["foreign"]:
            foreign = ", ".join(f"{label} ({pixels:,} px)" for label, pixels in batches["foreign"])
            yield _BAD, (f"labels {foreign} in {pictures} are neither classes, 0 to {last}, nor "
                         f"ignored, {ignore_index}")
        if batches["empty"]:
            yield _BAD, (f"{batches['empty']} of the first {batches['batches']} {name} batches "
                         f"have no labelled pixel")
        if not batches["foreign"] and not batches["empty"]:
            found = show_values(np.flatnonzero(batches["pixels"]))
            total = sum(batches["pixels"]) + batches["ignored"]
            yield _OK, (f"labels {found} in {pictures}, of 0 to {last}; ignored ({ignore_index}): "
                        f"{percent(batches['ignored'] / total)}")


def _shares(record):
    pixels = np.array(record["train"]["pixels"])
    names, present = record["class_names"], np.flatnonzero(pixels)
    if not present.size:
        yield _BAD, "the training masks have no labelled pixel"
        return
    most, least = present[pixels[present].argmax()], present[pixels[present].argmin()]
    share = pixels / pixels.sum()
    yield _OK, (f"training pixels: {percent(share[most])} {names[most]}, the most; "
                f"{percent(share[least])} {names[least]}, the least, in "
                f"{record['train']['images_with'][least]} of {record['train']['images']} images")


def _absent(record):
    in_train, in_val = (np.array(record[split]["pixels"]) > 0 for split in SPLITS)
    only_val, never = in_val & ~in_train, ~in_val & ~in_train
    if only_val.any():
        yield _BAD, f"in validation but never in training: {_names(record, only_val)}"
    if never.any():
        yield _BAD, f"classes without a pixel anywhere: {_names(record, never)}"
    if in_train.all():
        only_train = in_train & ~in_val
        yield _OK, (f"all {in_train.size} classes occur in training"
                    + (f"; no validation pixel, and so no IoU: {_names(record, only_train)}"
                       if only_train.any() else ""))


def _label_path(record):
    for split, name in SPLITS.items():
        path = record["label_path"][split]
        if path is None:
            continue
        astray, values = _astray(path)
        if astray:
            yield _BAD, (f"in {path['samples']} {name} masks, values come out as other labels "
                         f"than declared: {listed(astray)}")
        else:
            yield _OK, (f"the {values} values in {path['samples']} {name} masks come out as the "
                        f"labels that are declared")


def _astray(path):
    """Return texts for the values in mask files that do not become what is declared; and K."""
    declared = {str(value): label for value, label in path["declared"]}
    found = {}
    for value, label, pixels in path["pairs"]:
        found.setdefault(str(value), {})[label] = pixels
    astray = []
    for value, labels in found.items():
        wrong = {label: n for label, n in labels.items() if label != declared.get(value)}
        if sum(wrong.values()) > _STRAYED * sum(labels.values()):
            label = max(wrong, key=wrong.get)
            astray.append(f"{value} as {label} ({wrong[label]:,} px, declared "
                          f"{declared.get(value, 'nowhere')})")
    return astray, len(found)


def _transforms(record):
    for split, name in SPLITS.items():
        transform = record["transform"][split]
        if transform is None:
            continue
        if transform["invented"]:
            invented = sorted(transform["invented"], key=lambda pair: -pair[1])[:_NAMED]
            yield _BAD, (f"the {name} transform invents labels in {transform['samples']} masks: "
                         + ", ".join(f"{label} ({pixels:,} px)" for label, pixels in invented))
        else:
            yield _OK, f"the {name} transform invents no label in {transform['samples']} masks"


def _input(record):
    for split, name in SPLITS.items():
        values = record["input"] if split == "train" else record["input"]["val"]
        fault = _input_fault(values)
        mean, std = (" ".join(f"{number:.2f}" for number in values[key])
                     for key in ("mean", "std"))
        yield (_BAD if fault else _OK), (
            f"{name} input has mean {mean}, deviation {std}, values from {min(values['min']):.2f} "
            f"to {max(values['max']):.2f}" + (f": {fault}" if fault else ""))


def _input_fault(values):
    """Return what is wrong with input of such numbers; "" if it may be normalised as it should."""
    low, high = np.array(values["min"]), np.array(values["max"])
    lowest, highest = -MEAN / STD - 0.01, (1 - MEAN) / STD + 0.01
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        return "it is not finite"
    if low.min() >= 0:
        return (f"it looks like values of 0 to {255 if high.max() > 1.5 else 1} that were never "
                f"normalised")
    if (low < lowest).any() or (high > highest).any():
        return "beyond what normalised pictures can hold"
    return "it is constant" if max(values["std"]) < 1e-3 else ""


_VERDICTS = {
    "fits": (_OK, "{} masks fit their pictures"),
    "cannot tell": (_UNKNOWN, "whether {} masks fit their pictures cannot be told"),
    "mirrored": (_BAD, "{} masks or pictures are mirrored, without the other"),
    "upside down": (_BAD, "{} masks or pictures are upside down, without the other"),
    "shifted": (_BAD, "{} masks and pictures are shifted against each other"),
    "shuffled": (_BAD, "{} masks belong to other pictures"),
}


def _pairs(record):
    for split, name in SPLITS.items():
        found = record["alignment"] if split == "train" else record["alignment"]["val"]
        verdict, read = alignment.judge(found), found["as_read"]
        mark, text = _VERDICTS[verdict]
        if read["pictures"] < alignment.LEAST_PICTURES:
            fit = f"only {read['pictures']} have borders enough to see"
        else:
            fit = (f"fit {read['as_is']:.2f}, mirrored {read['mirrored']:.2f}, upside down "
                   f"{read['upside_down']:.2f}, of other masks {read['other_mask']:.2f}")
        yield mark, f"{text.format(name)}: {fit}{_pairs_detail(verdict, found)}"


def _pairs_detail(verdict, found):
    """Return the numbers that a verdict rests on beyond the fits."""
    read, transform = found["as_read"], found["transform"]
    if verdict == "shuffled" and read.get("partners"):
        return f"; {percent(read['partners'])} of the pictures fit another mask better"
    if verdict in ("mirrored", "upside down"):
        key = verdict.replace(" ", "_")
        poses = ("mirrored",) if verdict == "mirrored" else ("upside_down", "turned")
        share = sum(read[f"prefer_{pose}"] or 0.0 for pose in poses)
        by_transform = transform.get(key, 0.0)
        if by_transform > share:
            return f"; the transform does that to {percent(by_transform)} of the pictures"
        return f"; {percent(share)} of the pictures are read so" if share else ""
    if verdict == "shifted" and transform.get("kept", 1.0) < 1:
        return f"; the transform keeps {percent(transform['kept'])} of the pairs together"
    if verdict == "shifted" or (verdict == "cannot tell" and (read["shift_gain"] or 0.0) > 0.1):
        down, right = read["shift"] if any(read["shift"]) else found["shift"]
        return f"; the masks fit best {down} px further down and {right} px to the right"
    return ""


def _batch_norm(record):
    layers, untrained, frozen = (record["batch_norm"][key] for key in
                                 ("layers", "untrained", "frozen_untrained"))
    if not layers:
        return
    if frozen:
        yield _BAD, (f"{frozen} of {layers} batch norms are frozen at the statistics they were "
                     f"made with, mean 0 and variance 1")
    loaded = [part for part, (count, new) in record["batch_norm"]["parts"].items() if new < count]
    yield _OK, (f"batch norms that were trained before: {layers - untrained} of {layers}"
                + (f", in {', '.join(loaded)}" if loaded else "; no weights were loaded"))


def _loss(record):
    probe, absent = record["probe"], np.array(record["train"]["pixels"]) == 0
    if not probe["batches"]:
        yield _BAD, "the first training batches teach the loss nothing: no pixel has a weight"
        return
    pixels, share = np.array(probe["pixels"]), np.array(probe["share_uniform"])
    mute = (pixels > 0) & (share == 0)
    if mute.any():
        yield _BAD, f"the loss passes over every pixel of {_names(record, mute)}"
    pull = float(np.array(probe["pull_perfect"])[absent].sum())
    if pull > PULLED:
        yield _BAD, (f"where all is right, the loss pulls towards classes that never occur "
                     f"({_names(record, absent)}) with {percent(pull)} of its first gradient")
    most = int(share.argmax())
    floor = f", never below {record['floor']:.4g}" if record["floor"] else ""
    yield _OK, (f"first batches, all classes equally likely: loss {probe['loss_uniform']:.4g}"
                f"{floor}; {percent(share[most])} of its gradient from "
                f"{record['class_names'][most]}, {percent(pixels[most] / pixels.sum())} of the "
                f"pixels")


def _baseline(record):
    for baseline in record["baselines"][:1]:
        yield _OK, (f"to be beaten: {baseline['name']}, accuracy "
                    f"{baseline['pixel_accuracy']:.4f}, mean IoU {baseline['mean_iou']:.4f}")


def _names(record, chosen):
    return listed([name for name, is_chosen in zip(record["class_names"], chosen) if is_chosen])
