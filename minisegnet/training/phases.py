"""What each epoch trains with: the flags that say "from there on", and what stays frozen."""

from tqdm import tqdm

from minisegnet import datasets
from minisegnet.layers import freeze_batch_norm
from minisegnet.training.build import build_criterion
from minisegnet.training.trainer import Phase


class Phases:
    """The `Phase` of every epoch, by `settings`; called with the epoch, counted from 1.

    Which phase an epoch is in depends on its number alone: a resumed run finds it again.
    """

    def __init__(self, settings, *, model, optimizer, train_set, val_set, weights, statistics):
        self.settings, self.model, self.optimizer = settings, model, optimizer
        self.train_set, self.val_set = train_set, val_set
        self.weights, self.frequency = weights, statistics.frequency
        self.sampler = None
        if settings.sampler != "uniform":  # which is what a shuffled loader does by itself
            self.sampler = datasets.make_sampler(settings.sampler, statistics.counts)
        self._told = None  # what the last epoch had, to say what changes

    def __call__(self, epoch):
        s = self.settings
        loss = _from_there_on(s.loss, s.loss_after, epoch)
        size = tuple(_from_there_on(s.image_size, s.image_size_after, epoch))
        frozen = self._freeze(epoch)
        starts_stage = s.freeze_epochs > 0 and epoch == s.freeze_epochs + 1
        switches = [s.freeze_epochs, *(after for after, _ in (*s.loss_after, *s.image_size_after))]
        self._say(epoch, {"loss": loss, "image size": "{}x{}".format(*size),
                          "backbone": "frozen" if frozen else "trained"})
        return Phase(build_criterion(s, loss, self.weights, self.frequency),
                     self.train_loader(size), self.val_loader(size), size, starts_stage,
                     is_last=epoch > max(switches))

    @property
    def steps_per_epoch(self):
        """Return the updates of an epoch; the last may be of fewer than --accumulate batches."""
        s = self.settings
        return -(-(len(self.train_set) // s.batch_size) // s.accumulate)

    def train_loader(self, size):
        """Return the loader of augmented pictures (H, W) = `size`."""
        s = self.settings
        return datasets.DataLoader(
            self.train_set, s.batch_size, shuffle=not s.overfit_one_batch, sampler=self.sampler,
            drop_last=True,
            transform=datasets.make_augmentation(s.augment, size, ignore_index=s.ignore_index),
            seed=s.seed, num_workers=s.num_workers)

    def val_loader(self, size):
        """Return the loader for validation.

        Masks keep their own size if all have one; else they too are scored at `size`.
        """
        s = self.settings
        transform = datasets.Resize(size, resize_mask=len(self.val_set.sizes) > 1,
                                    ignore_index=s.ignore_index)
        return datasets.DataLoader(self.val_set, max(2, s.batch_size), transform=transform,
                                   seed=s.seed, num_workers=s.num_workers)

    def _freeze(self, epoch):
        """Freeze what this epoch leaves alone; return whether that is the backbone."""
        s, model, optimizer = self.settings, self.model, self.optimizer
        if s.freeze_batch_norm == "all":
            freeze_batch_norm(model)
        if not hasattr(model, "backbone"):
            return False
        frozen = s.freeze == "backbone" and (not s.freeze_epochs or epoch <= s.freeze_epochs)
        model.backbone.frozen = frozen
        if s.freeze_batch_norm in ("frozen", "backbone"):
            freeze_batch_norm(model.backbone, frozen or s.freeze_batch_norm == "backbone")
        if s.freeze is not None:
            optimizer.set_lr_scale("backbone", 0.0 if frozen else 1.0)
            for layer, scale in s.lr_scale:
                if not (frozen and layer.split(".")[0] == "backbone"):
                    optimizer.set_lr_scale(layer, scale)
        return frozen

    def _say(self, epoch, now):
        if self._told is not None and now != self._told:
            changes = ", ".join(f"{what} {value}" for what, value in now.items()
                                if value != self._told[what])
            tqdm.write(f"from epoch {epoch} on: {changes}")
        self._told = now


def _from_there_on(first, changes, epoch):
    """Return what holds in `epoch`: `first`, or the last of `changes` after an earlier epoch."""
    return [first, *(value for after, value in changes if after < epoch)][-1]
