"""All parameters of a model in one flat buffer, and the base of the optimizers that update it.

An optimizer treats every number alike, so it does not need two hundred arrays: it needs one. The
layers keep working on their own arrays, which become views of the flat buffer. One update is then
a few long vector operations instead of hundreds of short ones.
"""

import math

import numpy as np

from minisegnet.backend import asnumpy, get_array_module

BLOCK_SIZE = 1 << 16  # elements; a block's few arrays stay in cache between the update's passes


class FlatParameters:
    """The parameters and gradients of `model`, moved into two contiguous 1-D buffers.

    Every `layer.params[key]` and `layer.grads[key]` is replaced by a view of `data` and `grad`
    that holds the same values. A model has one such buffer at a time: making a second one moves
    the parameters out of the first. Raises TypeError where the parameters' dtypes differ and
    ValueError where there are none.

    Attributes: `data`, `grad` (P,); `names`, dotted, in the order of the buffer; `slices`, name to
    slice; `is_norm_or_bias` (P,) bool, True where a parameter array has one axis; `lr_scales`,
    name to the factor on the learning rate, 1 at first (`set_lr_scale`).
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
        self.is_norm_or_bias = self.xp.zeros(size, dtype=bool)  # (P,)
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
        self.lr_scales.update(dict.fromkeys(chosen, float(scale)))
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
    `flat.data[block]` in place.
    """

    def __init__(self, model, lr, **non_negative):
        for name, value in {"lr": lr, **non_negative}.items():
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a finite number >= 0, got {value}")
        self.flat = FlatParameters(model)
        self.lr = lr
        self.num_steps = 0
        self.state = {}

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

    def step(self):
        """Update every parameter that is not frozen in place from its gradient."""
        self.flat.check_bound()
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
