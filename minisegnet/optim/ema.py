"""The exponential moving average of a model's weights over the steps of its training.

Polyak and Juditsky, "Acceleration of stochastic approximation by averaging" (1992); with a decay
that forgets, Tarvainen and Valpola, "Mean teachers are better role models" (2017).
"""

from contextlib import contextmanager

import numpy as np

from minisegnet.backend import asnumpy, get_array_module
from minisegnet.cuda.launch import KernelFile, blocks
from minisegnet.optim.flat import THREADS, grid

KERNELS = KernelFile(__file__)
ALIGNMENT = 64  # elements; where a buffer begins in the flat one, as if it were an allocation


class ExponentialMovingAverage:
    """`average = d * average + (1 - d) * weights` at every `update()`, beside the model.

    The first update copies the weights, as torch's AveragedModel; after t updates the next has
    `d = min(decay, (1 + t) / (10 + t))`, as TensorFlow's ExponentialMovingAverage: the random
    start of a short run would otherwise weigh 0.999^600 = 0.55 after 600 steps.

    Buffers (batch norm's running statistics) are averaged in the same way, as torchvision's
    training scripts do with torch's `use_buffers=True`: they belong to the weights beside them.
    Buffers of integers are copied.

    `optimizer` is an optimizer of `model` or its `FlatParameters`. ValueError for a decay outside
    [0, 1).

    On a device the model's buffers become views of one flat buffer, as its parameters are, and an
    update is one launch. It is counted there; whoever asks for `num_updates` waits for the device.
    TypeError there for a buffer of another dtype than the parameters'.
    """

    def __init__(self, optimizer, model, decay=0.999):
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay}")
        self.flat = getattr(optimizer, "flat", optimizer)
        self.model = model
        self.decay = decay
        self._count = self.flat.xp.zeros((1,), np.int32)
        self._average = self.flat.data.copy()  # (P,)
        if self.flat.on_device:
            self._tickets = self.flat.xp.zeros((1,), np.uint32)
            self._flat_buffers = FlatBuffers(model, self.flat)
            self._buffers = self._flat_buffers.averages
        else:
            self._buffers = {name: array.copy() for name, array in model.named_buffers()}

    @property
    def num_updates(self):
        """How many updates there were."""
        return int(asnumpy(self._count)[0])

    @num_updates.setter
    def num_updates(self, value):
        self._count.fill(value)

    def update(self):
        """Take the model's present weights into the average; call it after every step."""
        self.flat.check_bound()
        if self.flat.on_device:
            self._update_cuda()
            return
        if self.num_updates == 0:
            self._copy_model()
        else:
            d = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
            for block in self.flat.blocks():
                _move_towards(self._average[block], self.flat.data[block], 1 - d)
            for name, buffer in self.model.named_buffers():
                if np.issubdtype(buffer.dtype, np.floating):
                    _move_towards(self._buffers[name], buffer, 1 - d)
                else:
                    self._buffers[name][...] = buffer
        self.num_updates += 1

    @contextmanager
    def applied(self):
        """Within it, the model's parameters and buffers hold the averages: to score or to save.

        The model's own come back at the end, bit for bit, whatever was raised or written
        meanwhile. Before the first update the averages are the weights themselves.
        """
        self.flat.check_bound()
        if self.num_updates == 0:
            self._copy_model()
        own = self.flat.data.copy()
        own_buffers = {name: array.copy() for name, array in self.model.named_buffers()}
        try:
            self._write(self._average, self._buffers)
            yield self.model
        finally:
            self._write(own, own_buffers)

    def state_dict(self):
        """Return {name: array} of all averages, under the model's names, and `num_updates`."""
        if self.num_updates == 0:
            self._copy_model()
        return {"num_updates": self.num_updates,
                **{name: asnumpy(array).copy() for name, array in self._named().items()}}

    def load_state_dict(self, state_dict):
        """Continue from `state_dict`; ValueError, and no change, where it is of another model."""
        averages = self._named()
        if set(state_dict) != {"num_updates", *averages}:
            names = ", ".join(sorted(set(state_dict) ^ {"num_updates", *averages})[:3])
            raise ValueError(f"these averages are of another model: {names} is in only one of the "
                             f"two")
        for name, array in averages.items():
            if np.shape(state_dict[name]) != array.shape:
                raise ValueError(f"the average {name!r} has shape {np.shape(state_dict[name])}, "
                                 f"this model needs {array.shape}: it is of another model")
        self.num_updates = int(state_dict["num_updates"])
        for name, array in averages.items():
            array[...] = get_array_module(array).asarray(state_dict[name])

    def _named(self):
        """Return {name: view} of the averages, in the model's shapes."""
        views = {name: self._average[self.flat.slices[name]].reshape(array.shape)
                 for name, array in self.model.named_parameters()}
        return {**views, **self._buffers}

    def _update_cuda(self):
        buffers = self._flat_buffers
        buffers.check_bound()
        P, B = self._average.size, buffers.data.size
        KERNELS.launch("ema_update_kernel", grid(max(P, B)), (THREADS,),
                       average=self._average, value=self.flat.data, P=P,
                       buffer_average=buffers.average, buffer=buffers.data, B=B,
                       count=self._count, tickets=self._tickets, decay=self.decay)

    def _copy_model(self):
        self._average[...] = self.flat.data
        for name, buffer in self.model.named_buffers():
            self._buffers[name][...] = buffer

    def _write(self, data, buffers):
        self.flat.data[...] = data
        for name, buffer in self.model.named_buffers():
            buffer[...] = buffers[name]


def _move_towards(average, value, share):
    """Move `average` in place by `share` of the way to `value`.

    Written so, and not as `d * average + share * value`, it leaves alone what has not moved: the
    average of a frozen weight is that weight, bit for bit.
    """
    difference = value - average
    difference *= share
    average += difference


class FlatBuffers:
    """The buffers of a model on a device, moved into one flat array, and their averages beside it.

    `data` and `average` (B,) have gaps, for the alignment, that are 0; `averages` is {name: view}.
    Raises TypeError for a buffer of another dtype than the parameters'.
    """

    def __init__(self, model, flat):
        owners = {}  # dotted name -> (layer, key, start)
        size = 0
        for prefix, layer in model.named_layers():
            for key, array in layer.buffers.items():
                name = f"{prefix}.{key}" if prefix else key
                if array.dtype != flat.data.dtype:
                    raise TypeError(f"buffer {name!r} is {array.dtype}, the parameters are "
                                    f"{flat.data.dtype}: on a GPU they must share a dtype")
                owners[name] = (layer, key, size)
                size += blocks(array.size, ALIGNMENT) * ALIGNMENT
        self.data = flat.xp.zeros((size,), flat.data.dtype)  # (B,)
        self._views = {}  # name -> (layer, key, view)
        for name, (layer, key, start) in owners.items():
            array = layer.buffers[key]
            view = self.data[start:start + array.size].reshape(array.shape)
            view[...] = array
            layer.buffers[key] = view
            self._views[name] = layer, key, view
        self.average = self.data.copy()  # (B,)
        self.averages = {
            name: self.average[start:start + layer.buffers[key].size].reshape(
                layer.buffers[key].shape) for name, (layer, key, start) in owners.items()}

    def check_bound(self):
        """Raise RuntimeError if a layer no longer uses its view of `data`."""
        for name, (layer, key, view) in self._views.items():
            if layer.buffers[key] is not view:
                raise RuntimeError(f"buffer {name!r} has left its average: the array was replaced;"
                                   f" write into it (b[...] = ...)")
