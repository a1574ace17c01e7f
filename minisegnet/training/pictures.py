"""The pictures that a run leaves in its folder."""

import numpy as np

from minisegnet import plots
from minisegnet.datasets import Resize
from minisegnet.datasets.transforms import normalize
from minisegnet.plots.augmentation import augmentations
from minisegnet.training.checkpoint import load_weights, read_checkpoint
from minisegnet.training.evaluation import predict_batch
from minisegnet.training.run_folder import read_log


def draw_results(folder, trainer, val_set, statistics):
    """Write curves.png from the log, and predictions.png from the best weights."""
    if (folder / "log.jsonl").exists():
        log = read_log(folder / "log.jsonl")
        if log:
            plots.save(plots.curves(log, trainer.class_names), folder / "curves.png")
    if (folder / "best.npz").exists():
        best = read_checkpoint(folder / "best.npz")
        transform = trainer.phase.val_loader(best.meta["image_size"]).transform
        load_weights(trainer.model, best)
        samples = [transform(val_set[i], None) for i in worth_showing(statistics)]
        predictions = [predict_batch(trainer.model, normalize(s.image)[None], s.mask.shape)[0]
                       for s in samples]
        figure = plots.predictions(samples, predictions, trainer.class_names, val_set.palette,
                                   val_set.ignore_index)
        plots.save(figure, folder / "predictions.png")


def draw_augmentation(folder, trainer, train_set, statistics, versions=4):
    """Write augmentation.png: pictures with rare classes, and what the training makes of them."""
    settings = trainer.phase.settings
    transform = trainer.phase.train_loader(settings.image_size).transform
    resize = Resize(settings.image_size, ignore_index=settings.ignore_index)
    rows = {}
    for i in worth_showing(statistics, count=3):
        sample = train_set[i]
        rows[sample.name] = [resize(sample, None)] + [
            transform(sample, np.random.default_rng([settings.seed, i, version]))
            for version in range(versions)]
    figure = augmentations(rows, train_set.class_names, train_set.palette, settings.ignore_index)
    plots.save(figure, folder / "augmentation.png")


def worth_showing(statistics, count=5):
    """Return indices of up to `count` images: the first with each class, rarest class first."""
    rarest_first = statistics.first_image[np.argsort(statistics.pixels, kind="stable")]
    chosen = [int(i) for i in rarest_first if i >= 0]
    evenly = np.linspace(0, statistics.num_images - 1, count).astype(int).tolist()
    return list(dict.fromkeys([*chosen, *evenly, *range(statistics.num_images)]))[:count]
