"""Clipping the gradient by its global norm.

Pascanu et al., "On the difficulty of training recurrent neural networks" (2013), algorithm 1.
"""

import math


def global_norm(flat):
    """Return the Euclidean norm of all gradients in `flat` as one vector, as a Python float.

    Frozen parameters (learning-rate scale 0) do not count: nothing moves along their gradients.
    """
    # Blocks are summed in float64: one float32 sum over millions of squares loses digits.
    return math.sqrt(sum(float(flat.grad[block] @ flat.grad[block])
                         for block, _ in flat.trained_blocks()))


def clip_grad_norm(optimizer, max_norm):
    """Scale all gradients by `min(1, max_norm / (norm + 1e-6))`; return the norm before that.

    `optimizer` is an optimizer or its `FlatParameters`; what is frozen there neither counts nor
    changes. The direction of the step is kept, only its length is bounded. A norm that is infinite
    or NaN is returned and the gradients are left as they are: no factor mends them, and the caller
    should stop. ValueError if max_norm <= 0.
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm must be above 0, got {max_norm}")
    flat = getattr(optimizer, "flat", optimizer)
    norm = global_norm(flat)
    scale = max_norm / (norm + 1e-6)
    if math.isfinite(norm) and scale < 1:
        for block, _ in flat.trained_blocks():
            flat.grad[block] *= scale
    return norm
