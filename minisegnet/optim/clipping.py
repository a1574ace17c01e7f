"""Clipping the gradient by its global norm.

Pascanu et al., "On the difficulty of training recurrent neural networks" (2013), algorithm 1.
"""

import math

from minisegnet.backend import asnumpy
from minisegnet.cuda.launch import KernelFile
from minisegnet.optim.flat import THREADS, grid

KERNELS = KernelFile(__file__)


def global_norm(flat):
    """Return the Euclidean norm of all gradients in `flat` as one vector, as a Python float.

    Frozen parameters (learning-rate scale 0) do not count: nothing moves along their gradients.
    Waits for a device.
    """
    if flat.on_device:
        return float(asnumpy(_norm_cuda(flat, flat.xp.empty((1,), flat.grad.dtype), None))[0])
    # Blocks are summed in float64: one float32 sum over millions of squares loses digits.
    return math.sqrt(sum(float(flat.grad[block] @ flat.grad[block])
                         for block, _ in flat.trained_blocks()))


def clip_grad_norm(optimizer, max_norm, *, loss_scale=None):
    """Scale all gradients by `min(1, max_norm / (norm + 1e-6))`; return the norm before that.

    `optimizer` is an optimizer or its `FlatParameters`; what is frozen there neither counts nor
    changes. The direction of the step is kept, only its length is bounded. A norm that is infinite
    or NaN is returned and the gradients are left as they are: no factor mends them, and the caller
    should stop. ValueError if max_norm <= 0.

    On a device the norm is an array (1,) there, the same one at each call, and nobody waits for
    it. The gradients may be those of a loss times `loss_scale`, an array (1,) of their dtype: the
    norm is that of the gradients divided by it, and they are left multiplied.
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm must be above 0, got {max_norm}")
    flat = getattr(optimizer, "flat", optimizer)
    if flat.on_device:
        return _clip_grad_norm_cuda(flat, max_norm, loss_scale)
    if loss_scale is not None:
        raise ValueError("a loss scale is for gradients on a GPU")
    norm = global_norm(flat)
    scale = max_norm / (norm + 1e-6)
    if math.isfinite(norm) and scale < 1:
        for block, _ in flat.trained_blocks():
            flat.grad[block] *= scale
    return norm


# ---------------------------------------------------------------- CUDA: clipping.cu


def _clip_grad_norm_cuda(flat, max_norm, loss_scale):
    norm = _norm_cuda(flat, flat.norm, loss_scale)
    if math.isfinite(max_norm):
        P = flat.grad.size
        KERNELS.launch("clip_grad_kernel", grid(P), (THREADS,), g=flat.grad, group=flat.group,
                       table=flat.table, norm=norm, max_norm=max_norm, P=P)
    return norm


def _norm_cuda(flat, norm, loss_scale):
    P = flat.grad.size
    KERNELS.launch("grad_norm_kernel", grid(P), (THREADS,), g=flat.grad, group=flat.group,
                   table=flat.table, loss_scale=loss_scale, sums=flat.sums, tickets=flat.tickets,
                   norm=norm, P=P)
    return norm
