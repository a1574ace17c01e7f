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
    slice; `is_norm_or_bias` (P,) bool, True where a parameter array has one axis.
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

    def blocks(self):
        """Return slices that cover the buffer: cache-sized on a CPU, one on a GPU."""
        size = self.data.size
        block = BLOCK_SIZE if self.xp is np else size
        return [slice(start, min(start + block, size)) for start in range(0, size, block)]

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

    A subclass fills `state` (name to (P,) array) and writes `_update(block)`, which changes
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

    def step(self):
        """Update every parameter in place from its gradient."""
        self.flat.check_bound()
        self.num_steps += 1
        for block in self.flat.blocks():
            self._update(block)

    def state_dict(self):
        """Return what a resumed run needs: `num_steps`, `lr`, and a copy of each state array."""
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
