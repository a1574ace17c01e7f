"""What a healthy run measures, to be bent by each test of a diagnosis."""

import math
from pathlib import Path

import numpy as np

from minisegnet.diagnosis import Evidence

NAMES = ("ground", "wall", "room", "door", "stove", "sink")
K, VOID = len(NAMES), 255
PIXELS = np.array([72000, 15000, 8000, 3000, 1500, 500])
VALUES = (0, 3, 7, 8, 12, 20)  # in the files; 255 is void, 40 is excluded
SQRT = np.sqrt(PIXELS.max() / PIXELS)  # weights
BACKBONE = [f"backbone.features.{i}.weight" for i in range(30)]
CONFIG = {"data": "data/town", "layout": "auto", "epochs": 6, "lr": 0.05, "loss": "ce",
          "class_weights": "sqrt", "model": "mini", "min_lr": 0.0}


def declared():
    return [[value, label] for label, value in enumerate(VALUES)] + [[VOID, VOID], [40, VOID]]


def label_path(changes=(), extra=()):
    """A split's record: each value goes where it should, but for {value: label} `changes`."""
    changes = dict(changes)
    pixels = dict(zip(VALUES, PIXELS.tolist())) | {VOID: 900, 40: 700}
    pairs = [[value, changes.get(value, label), pixels[value]] for value, label in declared()]
    return {"samples": 32, "pairs": pairs + list(extra), "declared": declared()}


def alignment(own=0.9, mirrored=0.55, upside_down=0.55, prefer=(0.95, 0.0, 0.0), z=40.0):
    stage = {"pictures": 32, "as_is": own, "mirrored": mirrored, "upside_down": upside_down,
             "turned": 0.52, "other_mask": 0.52, "spread": 0.05, "z_as_is": z, "z_best": z,
             "prefer_as_is": prefer[0], "prefer_mirrored": prefer[1],
             "prefer_upside_down": prefer[2], "prefer_turned": 0.0}
    read = {**stage, "shift": [0, 0], "shift_gain": 0.0, "z_shift": 0.0}
    transform = {"draws": 32, "kept": 1.0, "mirrored": 0.0, "upside_down": 0.0}
    return {**stage, "as_read": read, "transform": transform}


def probe(weight=SQRT, pixels=PIXELS):
    """That of weighted cross-entropy: a pixel's gradient is its weight."""
    share = pixels * weight / (pixels @ weight)
    return {"pixels": pixels.tolist(), "batches": 4, "loss_uniform": math.log(len(pixels)),
            "gradient_uniform": 4 * 2 * (1 - 1 / len(pixels)), "share_uniform": share.tolist(),
            "loss_perfect": 2e-4, "pull_perfect": [2e-4] * len(pixels)}


def confusion(recall=(0.98, 0.9, 0.85, 0.7, 0.6, 0.5), pixels=PIXELS // 4):
    """What is missed of a class is called ground, what is missed of ground wall."""
    matrix = np.zeros((len(pixels), len(pixels)), int)
    for c, (n, r) in enumerate(zip(pixels, recall)):
        matrix[c, c] = round(n * r)
        matrix[c, 0 if c else 1] += n - matrix[c, c]
    return matrix


def validation(matrix=None, epoch=6, counted=None):
    matrix = confusion() if matrix is None else matrix
    counted = matrix.sum(axis=1) if counted is None else counted
    return {"kind": "validation", "epoch": epoch, "loss": 0.4, "confusion": matrix.tolist(),
            "target_pixels": np.asarray(counted).tolist(), "ignored_pixels": 100,
            "predicted_pixels": matrix.sum(axis=0).tolist()}


def log_record(epoch, train_loss, matrix=None):
    matrix = confusion() if matrix is None else matrix
    hits, truth, predicted = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)

    def ratio(a, b):
        return [x / y if y else None for x, y in zip(a.tolist(), b.tolist())]

    iou = ratio(hits, truth + predicted - hits)
    defined = [value for value in iou if value is not None]
    return {"epoch": epoch, "train_loss": train_loss, "val_loss": 1.1 * train_loss, "lr": 0.03,
            "loss": "ce", "mean_iou": sum(defined) / len(defined) if defined else None,
            "iou": iou, "recall": ratio(hits, truth), "precision": ratio(hits, predicted),
            "pixel_accuracy": hits.sum() / matrix.sum() if matrix.any() else None}


def steps(count=12, ratio=0.01, per_lr=0.2, cosine=0.93, losses=(1.8, 0.4), norms=(1.0, 0.2)):
    """Sampled steps; a pair is a course from its first to its last value."""
    def course(value, i):
        first, last = value if isinstance(value, tuple) else (value, value)
        return first * (last / first) ** (i / (count - 1))

    return [{"kind": "step", "step": 5 * i, "epoch": 1 + i // 2, "loss": course(losses, i),
             "gradient_norm": course(norms, i), "lr": 0.05, "valid_share": 0.95,
             "update_ratio": course(ratio, i), "update_per_lr": course(per_lr, i),
             "update_cosine": course(cosine, i) if i else None} for i in range(count)]


def epoch(number, **changes):
    return {"kind": "epoch", "epoch": number, "steps": 10, "target_pixels": PIXELS.tolist(),
            "ignored_pixels": 2000, "empty_batches": 0, "batches": 10, "still": [],
            "no_gradient": [], "parameters": 101, "batch_norm_still": 0, "batch_norm_layers": 34,
            **changes}


def start(**changes):
    return {"kind": "start", "num_classes": K, "class_names": list(NAMES), "ignore_index": VOID,
            "train": {"images": 64, "pixels": PIXELS.tolist(), "images_with": [64] * K},
            "val": {"images": 16, "pixels": (PIXELS // 4).tolist(), "images_with": [16] * K},
            "label_path": {"train": label_path(), "val": label_path()},
            "transform": {"train": {"samples": 32, "invented": [], "lost": []},
                          "val": {"samples": 16, "invented": [], "lost": []}},
            "input": {"mean": [0.1, 0.0, -0.2], "std": [1.0, 0.9, 1.1], "min": [-2.1, -2.0, -1.8],
                      "max": [2.2, 2.4, 2.6], "pictures": 64},
            "alignment": alignment(),
            "batch_norm": {"layers": 34, "untrained": 34, "frozen": 0,
                           "parts": {"backbone": [20, 20], "aspp": [14, 14]}},
            "probe": probe(), **changes}


def healthy(folder="run", **changes):
    """The Evidence of a run that went well, with fields changed."""
    losses = [1.5, 1.0, 0.8, 0.6, 0.5, 0.45]
    log = [log_record(i, loss) for i, loss in enumerate(losses, 1)]
    fields = {"folder": Path(folder), "config": CONFIG, "log": log, "start": start(),
              "steps": steps(), "epochs": [epoch(i) for i in range(1, 7)],
              "validations": [validation(epoch=i) for i in range(1, 7)], "failures": [],
              "counts": {"classes": list(NAMES), "pixels": PIXELS.tolist(),
                         "validation_pixels": (PIXELS // 4).tolist()},
              "end": {"kind": "end", "epoch": 6, "step": 60, "finished": True},
              "checkpoints": ("best.npz", "last.npz")}
    return Evidence(**{**fields, **changes})


def with_outcome(matrix, losses=(1.5, 1.0, 0.8, 0.6, 0.5, 0.45), **changes):
    """A run whose every validation found `matrix`."""
    return healthy(validations=[validation(matrix, i) for i in range(1, 7)],
                   log=[log_record(i, loss, matrix) for i, loss in enumerate(losses, 1)],
                   **changes)
