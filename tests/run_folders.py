"""Run folders as training leaves them, written without training."""

import json
from pathlib import Path

import numpy as np

from minisegnet import train
from minisegnet.training.run_folder import to_toml

NAMES, PIXELS = ("ground", "house", "pool"), (900, 95, 5)  # the pool is rare


def plain(settings):
    return {key: value for key, value in settings.items() if value not in (None, []) and
            key not in ("config", "resume", "dry_run", "output_dir")}


def record(epoch, iou=(0.9, 0.5, 0.1), **changes):
    return {"epoch": epoch, "train_loss": 1 / epoch, "val_loss": 1.1 / epoch, "lr": 0.1,
            "mean_iou": float(np.mean(iou)), "iou": list(iou), "precision": [1.0] * 3,
            "recall": [1.0] * 3, "pixel_accuracy": 0.8, "fw_iou": 0.7, "active_classes": 3,
            "seconds": 2.0, **changes}


def write_run(folder, *, names=NAMES, pixels=PIXELS, log=None, progress=None, **config):
    """Write a run folder as training would: a log up to `epochs` unless it is given."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {**plain(vars(train.parse_settings([]))), "image_size": [128, 160], **config}
    (folder / "config.toml").write_text(to_toml(config))
    (folder / "class_weights.json").write_text(json.dumps(
        {"scheme": config["class_weights"], "classes": names, "pixels": pixels}))
    if log is None:
        log = [record(epoch) for epoch in range(1, config["epochs"] + 1)]
    (folder / "log.jsonl").write_text("".join(json.dumps(each) + "\n" for each in log))
    np.savez(folder / "last.npz", meta=json.dumps({"progress": progress or {}}))
    return folder
