"""All parameters of a model in one flat buffer, and the base of the optimizers that update it.

An optimizer treats every number alike, so it does not need two hundred arrays: it needs one. The
layers keep working on their own arrays, which become views of the flat buffer. One update is then
a few long vector operations instead of hundreds of short ones.
"""

import math

import numpy as np

from minisegnet.backend import asnumpy, get_array_module
from minisegnet.cuda.launch import blocks

BLOCK_SIZE = 1 << 16  # elements; a block's few arrays stay in cache between the update's passes
# Of the kernels of this folder.
THREADS = 256
MAX_BLOCKS = 1024  # enough for every multiprocessor of a large GPU
MAX_GROUPS = 256  # the number of a group is one byte


def grid(size):
    """Return the grid for `size` elements, four of them to a thread at a time."""
    return (min(blocks(size, 4 * THREADS), MAX_BLOCKS),)


class FlatParameters:
    """The parameters and gradients of `model`, moved into two contiguous 1-D buffers.

    Every `layer.params[key]` and `layer.grads[key]` is replaced by a view of `data` and `grad`
    that holds the same values. A model has one such buffer at a time: making a second one moves
    the parameters out of the first. Raises TypeError where the parameters' dtypes differ and
    ValueError where there are none.

    Attributes: `data`, `grad` (P,); `names`, dotted, in the order of the buffer; `slices`, name to
    slice; `is_norm_or_bias` (P,) bool in NumPy, True where a parameter array has one axis;
    `lr_scales`, name to the factor on the learning rate, 1 at first (`set_lr_scale`).

    On a device, what kernels need to know of each parameter is its group: `group` (P,) uint8, and
    `table` (2, 256) float64, whose rows hold a group's learning-rate scale (-1 where there is no
    such group) and 1 where it is of norms and biases. They are only ever written in place.
    """

    def __init__(self, model):
        owners = {}  # dotted name -> (layer, key)
        for prefix, layer in model.named_layers():
            for key in layer.params:
                owners[f"{prefix}.{key}" if prefix else key] = (layer, key)
        if not owners:
            raise ValueError(f"{type(model).__name__} has no parameters to optimise")
        arrays = [layer.params[key] for layer, key in owners.values()]
        dtypes = sorted({str(array.dtype) for array in arrays})
        if len(dtypes) > 1:
            raise TypeError(f"parameters of one model must share a dtype, found {dtypes}")

        self.xp = get_array_module(*arrays)
        self.names = list(owners)
        self.slices = {}
        size = sum(array.size for array in arrays)
        self.data = self.xp.empty(size, dtype=dtypes[0])  # (P,)
        self.grad = self.xp.zeros(size, dtype=dtypes[0])  # (P,)
        self.is_norm_or_bias = np.zeros(size, dtype=bool)  # (P,)
        self._views = []  # (layer, key, view of data, view of grad)
        start = 0
        for (name, (layer, key)), array in zip(owners.items(), arrays):
            part = slice(start, start + array.size)
            start += array.size
            self.slices[name] = part
            self.data[part] = array.ravel()
            self.grad[part] = layer.grads[key].ravel()
            # Convolution kernels have three or four axes; biases and batch norm's have one.
            self.is_norm_or_bias[part] = array.ndim == 1
            layer.params[key] = self.data[part].reshape(array.shape)
            layer.grads[key] = self.grad[part].reshape(array.shape)
            self._views.append((layer, key, layer.params[key], layer.grads[key]))
        self.lr_scales = dict.fromkeys(self.names, 1.0)
        self._runs = [(slice(0, size), 1.0)]  # the buffer, cut where the scale changes
        if self.on_device:
            self.group = self.xp.zeros(size, np.uint8)
            self.table = self.xp.zeros((2, MAX_GROUPS), np.float64)
            self._write_groups(self._groups(self.lr_scales))
            self.norm = self.xp.zeros((1,), dtypes[0])  # of the gradients, when last clipped
            self.sums = self.xp.zeros((MAX_BLOCKS,), np.float64)  # on the way to it
            self.tickets = self.xp.zeros((1,), np.uint32)  # of the blocks that are done

    @property
    def on_device(self):
        """Whether the buffers are arrays of a GPU: kernels work on them, and nothing else does."""
        return self.xp is not np

    def _groups(self, lr_scales):
        """Return {(scale, is norm or bias): [names]}; ValueError if there are too many."""
        groups = {}
        for name, part in self.slices.items():
            kind = (lr_scales[name], bool(self.is_norm_or_bias[part].any()))
            groups.setdefault(kind, []).append(name)
        if len(groups) > MAX_GROUPS:
            raise ValueError(f"{len(groups)} groups of parameters differ in learning-rate scale "
                             f"or kind; a GPU takes {MAX_GROUPS}")
        return groups

    def _write_groups(self, groups):
        table = np.full(self.table.shape, -1.0)
        group = np.empty(self.data.size, np.uint8)
        for i, (kind, names) in enumerate(groups.items()):
            table[:, i] = kind
            for name in names:
                group[self.slices[name]] = i
        self.table[...] = self.xp.asarray(table)
        self.group[...] = self.xp.asarray(group)

    def blocks(self, part=None):
        """Return slices that cover the buffer, or its slice `part`: cache-sized, one on a GPU."""
        start, stop = (0, self.data.size) if part is None else (part.start, part.stop)
        block = BLOCK_SIZE if self.xp is np else stop - start
        return [slice(at, min(at + block, stop)) for at in range(start, stop, block)]

    def set_lr_scale(self, prefix, scale):
        """See `Optimizer.set_lr_scale`."""
        if not (math.isfinite(scale) and scale >= 0):
            raise ValueError(f"a learning-rate scale is a finite number >= 0, not {scale}")
        chosen = [name for name in self.names if f"{name}.".startswith(f"{prefix}.")]
        if not chosen:
            top = dict.fromkeys(name.partition(".")[0] for name in self.names)
            raise ValueError(f"no parameter has the name {prefix!r} or lies below it; at the top "
                             f"are {', '.join(top)}")
        changed = {**self.lr_scales, **dict.fromkeys(chosen, float(scale))}
        if self.on_device and changed != self.lr_scales:
            self._write_groups(self._groups(changed))
        self.lr_scales = changed
        self._runs = []
        for name, part in self.slices.items():
            # Neighbours of equal scale are one run: a layer's few numbers make a poor block.
            if self._runs and self._runs[-1][1] == self.lr_scales[name]:
                part = slice(self._runs.pop()[0].start, part.stop)
            self._runs.append((part, self.lr_scales[name]))

    def trained_blocks(self):
        """Return pairs (block, learning-rate scale) of all that is not frozen."""
        return [(block, scale) for part, scale in self._runs if scale > 0
                for block in self.blocks(part)]

    def check_bound(self):
        """Raise RuntimeError if a layer no longer uses its view of the buffer."""
        for name, (layer, key, data, grad) in zip(self.names, self._views):
            if layer.params[key] is not data or layer.grads[key] is not grad:
                raise RuntimeError(
                    f"parameter {name!r} has left this optimizer's buffer: the model was given to "
                    "another optimizer, or the array was replaced; write into it (p[...] = ...)"
                )


class Optimizer:
    """What every optimizer has: a flat buffer, a learning rate, and named state arrays.

    A subclass fills `state` (name to (P,) array) and writes `_update(block, lr)`, which changes
    `flat.data[block]` in place, and `_update_cuda(**arguments)`, which launches its kernel.

    On a device nothing of a step passes through the host: the kernel reads the learning rate and
    the number of the step from device memory and counts the step there, so that its launch may be
    recorded and run again. Whoever asks for `num_steps` waits for the device.
    """

    def __init__(self, model, lr, **non_negative):
        for name, value in {"lr": lr, **non_negative}.items():
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a finite number >= 0, got {value}")
        self.flat = FlatParameters(model)
        self.state = {}
        self._counts = self.flat.xp.zeros((2,), np.int32)  # steps done, steps skipped
        self._lr, self._lr_array = None, self.flat.xp.empty((1,), np.float64)
        self.lr = lr

    @property
    def lr(self):
        """The learning rate of the next step; on a device, written there where it changes."""
        return self._lr

    @lr.setter
    def lr(self, value):
        if value != self._lr:
            self._lr_array.fill(value)
        self._lr = value

    @property
    def num_steps(self):
        """How many steps were done."""
        return int(asnumpy(self._counts)[0])

    @num_steps.setter
    def num_steps(self, value):
        self._counts[:1] = value

    @property
    def skipped(self):
        """How many steps were skipped for a norm that was not finite: (1,) int32."""
        return self._counts[1:]

    def _zeros(self):
        return self.flat.xp.zeros_like(self.flat.data)

    def zero_grad(self):
        """Set every gradient to 0."""
        self.flat.grad.fill(0)

    def set_lr_scale(self, prefix, scale):
        """Update the parameter named `prefix`, or all below it, at `self.lr * scale` from now on.

        The last call that names a parameter counts. Scale 0 freezes: neither value nor state
        changes, there is no weight decay, and clipping does not see the gradient, as with torch's
        `requires_grad=False`. What thaws finds its state as it was left and the steps counted on
        meanwhile; for a clean start call `reset_state`. ValueError for an unknown prefix or a
        negative scale.
        """
        self.flat.set_lr_scale(prefix, scale)

    def step(self, norm=None, *, loss_scale=None):
        """Update every parameter that is not frozen in place from its gradient.

        Where the gradients' `norm` is given, as `clip_grad_norm` returns it, and not finite,
        nothing changes and the step counts as `skipped`. On a device the gradients may be those of
        a loss times `loss_scale`, an array (1,) of the parameters' dtype: they are divided by it.
        """
        self.flat.check_bound()
        if self.flat.on_device:
            flat = self.flat
            self._update_cuda(
                p=flat.data, g=flat.grad, group=flat.group, table=flat.table, P=flat.data.size,
                lr=self._lr_array, norm=norm, loss_scale=loss_scale, counts=self._counts)
            return
        if loss_scale is not None:
            raise ValueError("a loss scale is for gradients on a GPU")
        if norm is not None and not math.isfinite(norm):
            self.skipped[...] += 1
            return
        self.num_steps += 1
        for block, scale in self.flat.trained_blocks():
            self._update(block, self.lr * scale)

    def reset_state(self):
        """Forget all steps: the next one is that of a new optimizer at the present parameters.

        `lr` and the scales stay.
        """
        self.num_steps = 0
        for array in self.state.values():
            array.fill(0)

    def state_dict(self):
        """Return what a resumed run needs: `num_steps`, `lr`, and a copy of each state array.

        The learning-rate scales are not part of it: they follow from the settings and the epoch,
        and whoever resumes sets them again.
        """
        arrays = {name: asnumpy(array).copy() for name, array in self.state.items()}
        return {"num_steps": self.num_steps, "lr": self.lr, **arrays}

    def load_state_dict(self, state_dict):
        """Continue from `state_dict`; ValueError, and no change, where it is of another kind."""
        expected = {"num_steps", "lr", *self.state}
        if set(state_dict) != expected:
            raise ValueError(
                f"{type(self).__name__} state needs {sorted(expected)}, got {sorted(state_dict)}: "
                "was it saved by another optimizer, or with other options?"
            )
        for name, array in self.state.items():
            if np.shape(state_dict[name]) != array.shape:
                raise ValueError(
                    f"state {name!r} has shape {np.shape(state_dict[name])}, this model needs "
                    f"{array.shape}: it was saved with another model"
                )
        self.num_steps = int(state_dict["num_steps"])
        self.lr = float(state_dict["lr"])
        for name, array in self.state.items():
            array[...] = self.flat.xp.asarray(state_dict[name])
