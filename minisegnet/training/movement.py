"""Which parameters a gradient reaches, how far an update moves them, and what has never moved."""

import math
from typing import NamedTuple

import numpy as np

from minisegnet.layers import BatchNorm2d
from minisegnet.optim.clipping import global_norm


class Update(NamedTuple):
    """One update of all parameters, or of those of one layer."""

    ratio: float  # norm of the change / norm of the parameters before
    rms: float  # root mean square of the change, over the numbers that changed
    cosine: float | None  # with the update of the step before; None if that was not looked at
    ratio_of_layer: dict  # layer name -> ratio


class Movement:
    """Watches the flat buffer of an optimizer and the batch norms of its model; changes nothing.

    It holds three copies of the parameters. "Since the start" is since this object was made.
    Layers are named by the dotted names of the layers that own parameters.
    """

    def __init__(self, model, flat):
        self.flat = flat
        self._layers = {}  # name -> slice of the buffer
        for name, part in flat.slices.items():
            layer = name.rpartition(".")[0] or name
            start = self._layers.get(layer, part).start
            self._layers[layer] = slice(start, part.stop)
        self._norms = [layer for _, layer in model.named_layers()
                       if isinstance(layer, BatchNorm2d)]
        self._initial = flat.data.copy()  # (P,)
        self._initial_statistics = self._statistics()
        self._still = set(flat.names)  # as far as is known; what has moved is not asked again
        self._before = np.empty_like(flat.data)  # parameters before an update, then its change
        self._last = np.empty_like(flat.data)  # the change of the update before
        self._last_step = None  # and its step
        self.num_batch_norms = len(self._norms)

    def gradient_norms(self, norm):
        """Return {layer name: norm of its gradient before clipping}, given the whole `norm` then.

        Clipping has left alone what is frozen by a learning-rate scale of 0.
        """
        clipped, scales = global_norm(self.flat), self.flat.lr_scales
        unclip = norm / clipped if clipped > 0 else 1.0
        norms = _norms(self.flat.grad, self._layers)
        trained = {name.rpartition(".")[0] or name for name in scales if scales[name] > 0}
        return {name: norms[name] * (unclip if name in trained else 1.0) for name in norms}

    def without_gradient(self):
        """Return the names of the parameters whose gradient is exactly 0."""
        grad = self.flat.grad
        return {name for name, part in self.flat.slices.items() if not grad[part].any()}

    def before_update(self):
        """Remember the parameters; `update` or `note_update` follows the optimizer's step."""
        np.copyto(self._before, self.flat.data)

    def note_update(self, step):
        """Remember the change of the update of `step`, for the cosine with the next one."""
        change = np.subtract(self.flat.data, self._before, out=self._before)
        self._before, self._last = self._last, change
        self._last_step = step

    def update(self, step):
        """Return the `Update` of `step`."""
        size, sizes = _norm(self._before), _norms(self._before, self._layers)
        has_last = self._last_step == step - 1
        self.note_update(step)
        change, last = self._last, self._before  # `note_update` has swapped them
        length, lengths = _norm(change), _norms(change, self._layers)
        cosine = None
        if has_last and length > 0 and (last_length := _norm(last)) > 0:
            cosine = float(last @ change) / (last_length * length)
        changed = max(np.count_nonzero(change != 0), 1)
        return Update(_ratio(length, size), length / math.sqrt(changed), cosine,
                      {name: _ratio(lengths[name], sizes[name]) for name in sizes})

    def still(self):
        """Return the names of the parameters that are, bit for bit, what they were at the start.

        One that moved and came back counts as moved only if it was asked for in between.
        """
        self._still = {name for name in self._still
                       if _same_bits(self.flat.data, self._initial, self.flat.slices[name])}
        return [name for name in self.flat.names if name in self._still]

    def batch_norms_still(self):
        """Return how many batch norms have the running statistics of the start.

        And, second, how many of these are as a new layer has them: mean 0 and variance 1.
        """
        still = [now for now, then in zip(self._statistics(), self._initial_statistics)
                 if np.array_equal(now, then)]
        return len(still), sum((mean == 0).all() and (var == 1).all() for mean, var in still)

    def _statistics(self):
        return [np.stack([layer.buffers["running_mean"], layer.buffers["running_var"]])
                for layer in self._norms]


def _same_bits(array, other, part):
    bits = f"u{array.itemsize}"
    return np.array_equal(array[part].view(bits), other[part].view(bits))


def _norm(array):
    return math.sqrt(float(array @ array))


def _norms(array, parts):
    return {name: _norm(array[part]) for name, part in parts.items()}


def _ratio(change, size):
    # What began at 0, as the bias of a layer without a weight may, has no size to go by.
    return change / size if size > 0 else 0.0
