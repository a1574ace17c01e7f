"""Inverted dropout: what is kept is scaled up, so that evaluation does nothing.

Source: Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting"
(2014).
"""

from minisegnet.backend import get_array_module
from minisegnet.ops._checks import check_dtype, check_upstream


def dropout_forward(x, p, rng):
    """Zero each element of `x` with probability `p` and scale the rest by 1 / (1 - p).

    `rng` is a NumPy Generator. Returns `out` and the scaled mask (the cache). Raises ValueError
    unless 0 <= p < 1.
    """
    if not 0 <= p < 1:
        raise ValueError(f"dropout probability must be in [0, 1), not {p}")
    check_dtype("dropout", x)
    xp = get_array_module(x)
    keep = xp.asarray(rng.random(x.shape, dtype="float32") >= p)
    scaled_mask = keep * x.dtype.type(1 / (1 - p))
    return x * scaled_mask, scaled_mask


def dropout_backward(dout, scaled_mask):
    """dx = dout * mask / (1 - p)."""
    check_upstream("dropout", dout, scaled_mask.shape)
    return dout * scaled_mask
