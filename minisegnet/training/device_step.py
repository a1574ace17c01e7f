"""The training step on a GPU: enqueued, never waited for.

The host only hands over batches. Losses, the norm of the gradient and the number of steps add up
in device memory and are read once in a while (`read`), since every reading waits until the GPU has
done all that was enqueued.
"""

import math

from minisegnet.backend import asnumpy, get_array_module
from minisegnet.cuda.replay import Replay
from minisegnet.cuda.upload import Uploader
from minisegnet.layers import BatchNorm2d
from minisegnet.losses.criterion import WholeBatch, pixels_per_class
from minisegnet.ops import add_into, cast
from minisegnet.optim import clip_grad_norm

KEPT = 2  # kinds of steps whose graphs are kept, with the memory that they work in


class DeviceStep:
    """Runs training steps of `model`, whose arrays are on a device, and sums up what they say.

    With `replay` a step that looks like one before (shapes, criterion, what is frozen) is repeated
    as one CUDA graph.

    Mixed precision is a matter of the images: given a `dtype` of 16 bits they are cast to it, and
    so all activations and their gradients are of it, and nothing else is. `loss_scale` is the
    `LossScale` that float16 needs.
    """

    def __init__(self, model, optimizer, *, clip_norm=0.0, ema=None, replay=True, dtype=None,
                 loss_scale=None):
        self.model, self.optimizer, self.ema = model, optimizer, ema
        self.clip_norm = clip_norm
        self.replay = replay
        self.dtype, self.loss_scale = dtype, loss_scale
        self.xp = get_array_module(optimizer.flat.data)
        self.steps = 0  # since the last reading
        self._totals = {}  # name -> (1,) on the device
        self._prepared = {}  # what a step looks like -> (Uploader, Replay)

    def __call__(self, batches, criterion):
        """Enqueue one update from the gradients of `batches`, a list."""
        hosts = [array for batch in batches for array in (batch.images, batch.target)]
        key = self._describe(hosts, criterion)
        if key not in self._prepared:
            if len(self._prepared) >= KEPT:  # of an earlier stage, size or loss
                del self._prepared[next(iter(self._prepared))]
            uploader = Uploader(self.xp, hosts)
            enqueue = _Enqueue(self, uploader.arrays, criterion)
            self._prepared[key] = (uploader, Replay(self.xp, enqueue) if self.replay else enqueue)
        uploader, run = self._prepared[key]
        uploader.upload(hosts)
        run()
        self.steps += 1

    def read(self):
        """Return {name: sum over the steps since the last reading}, and begin anew; waits.

        "skipped" is the number of steps whose gradient was not finite: they changed nothing, and
        with a loss scale their norm is left out of the sum.
        """
        totals = {**self._totals, "skipped": self.optimizer.skipped}
        sums = {name: asnumpy(total).item() for name, total in totals.items()}
        for total in totals.values():
            total.fill(0)
        self.steps = 0
        return sums

    @property
    def why_not_captured(self):
        """Why steps are not one CUDA graph, or None."""
        reasons = [run.reason for _, run in self._prepared.values() if isinstance(run, Replay)]
        return next((reason for reason in reasons if reason), None)

    def _describe(self, hosts, criterion):
        """Return what decides about the launches of a step."""
        layers = [layer for _, layer in self.model.named_layers()]
        return (tuple(host.shape for host in hosts), id(criterion),
                tuple(layer.frozen for layer in layers),
                tuple(layer.frozen_statistics for layer in layers
                      if isinstance(layer, BatchNorm2d)),
                tuple(self.optimizer.flat.lr_scales.values()))

    def _total(self, name, value):
        """Return the sum of that name, of the dtype of `value`."""
        if name not in self._totals:
            self._totals[name] = self.xp.zeros((1,), value.dtype)
        return self._totals[name]

    def _add(self, name, value):
        add_into(self._total(name, value), value)

    def _enqueue(self, arrays, criterion):
        """One step, on the device's copies of images and targets."""
        batches = list(zip(arrays[::2], arrays[1::2]))
        scale = None if self.loss_scale is None else self.loss_scale.scale
        self.optimizer.zero_grad()
        whole = None
        if len(batches) > 1:
            counts = None
            for _, target in batches:
                counts = pixels_per_class(target, self.model.num_classes, into=counts)
            whole = WholeBatch(counts, len(batches))
        for images, target in batches:
            if self.dtype is not None:
                images = cast(images, self.dtype)
            coarse = self.model.forward_coarse(images)
            loss, cache = criterion.forward_upsampled(coarse, target, whole=whole)
            self._add("train_loss", loss)
            for name, value in criterion.parts(cache).items():
                self._add(f"train_{name}", value)
            self.model.backward_coarse(
                criterion.backward_upsampled(1.0, cache, loss_scale=scale))
        norm = clip_grad_norm(self.optimizer, self.clip_norm or math.inf, loss_scale=scale)
        self.optimizer.step(norm=norm, loss_scale=scale)
        if scale is None:
            self._add("gradient_norm", norm)
        else:
            self.loss_scale.update(norm, self._total("gradient_norm", norm))
        if self.ema is not None:
            self.ema.update()


class _Enqueue:
    """A step bound to its arrays; keeps the criterion alive, by whose id it is found again."""

    def __init__(self, step, arrays, criterion):
        self.step, self.arrays, self.criterion = step, arrays, criterion

    def __call__(self):
        self.step._enqueue(self.arrays, self.criterion)
