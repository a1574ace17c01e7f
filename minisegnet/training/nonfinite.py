"""Which tensor stopped being finite first: found by going through the step once more, on guard."""

from contextlib import contextmanager

import numpy as np


class _Found(Exception):
    """Ends the search; its arguments are what `first_non_finite` returns."""


def first_non_finite(model, optimizer, batches, criterion, *, whole=None):
    """Return (name of the first tensor that is not finite, where it arose), or None.

    To be asked after a loss or gradient that is not finite, of a run that ends there: gradients,
    caches and running statistics are not those of before. The step is that of `batches`, with
    `whole` if they are several. Where it arose is

    optimizer   the update of a parameter; this is the first thing looked at, since an update comes
                before the next forward
    forward     "images" of a batch, the output of a layer named, the "input of" a layer (what
                its predecessors were added or multiplied to), running statistics, "the logits" or
                "the loss"
    backward    the gradient that a layer returns or keeps (also where only its square overflows),
                "the gradient into" a layer, or that of the loss

    in the order of the computation. None where all is finite, as after another draw of dropout.
    """
    with np.errstate(all="ignore"):
        try:
            _check_parameters(optimizer.flat)
            optimizer.zero_grad()
            with _guarded(model):
                for batch in batches:
                    _check_batch(model, batch, criterion, whole)
        except _Found as found:
            return found.args
    return None


def _check_parameters(flat):
    for name, part in flat.slices.items():
        _check(name, "optimizer", flat.data[part])


def _check_batch(model, batch, criterion, whole):
    _check("images", "forward", batch.images)
    coarse = model.forward_coarse(batch.images)
    _check("the logits", "forward", coarse)
    loss, cache = criterion.forward_upsampled(coarse, batch.target, whole=whole)
    _check("the loss", "forward", loss)
    dcoarse = criterion.backward_upsampled(1.0, cache)
    _check("the gradient of the loss", "backward", dcoarse)
    model.backward_coarse(dcoarse)


def _check(name, direction, arrays):
    """Raise _Found if one of `arrays`, a tensor or several or None, is not finite."""
    for array in arrays if isinstance(arrays, (list, tuple)) else [arrays]:
        if array is not None and not np.isfinite(array).all():
            raise _Found(name, direction)


@contextmanager
def _guarded(model):
    """Within it, every layer that has none below checks what it gets and what it gives."""
    leaves = [(name, layer) for name, layer in model.named_layers() if not layer.children]
    own = [{method: vars(layer).get(method) for method in ("forward", "backward")}
           for _, layer in leaves]
    try:
        for name, layer in leaves:
            _guard(name, layer)
        yield
    finally:
        for (_, layer), methods in zip(leaves, own):
            for method, function in methods.items():
                vars(layer).pop(method, None)
                if function is not None:
                    setattr(layer, method, function)


def _guard(name, layer):
    forward, backward = layer.forward, layer.backward

    def guarded_forward(x, *args):
        _check(f"the input of {name}", "forward", x)
        for key, buffer in layer.buffers.items():
            _check(f"{name}.{key}", "forward", buffer)
        out = forward(x, *args)
        _check(name, "forward", out)
        return out

    def guarded_backward(dout, **options):
        _check(f"the gradient into {name}", "backward", dout)
        dx = backward(dout, **options)
        _check(name, "backward", dx)
        for key, gradient in layer.grads.items():
            # Its square as well: a norm that overflows ends a run too.
            _check(f"{name}.{key}", "backward", [gradient, np.vdot(gradient, gradient)])
        return dx

    # Attributes of the instance hide the methods of the class.
    layer.forward, layer.backward = guarded_forward, guarded_backward
