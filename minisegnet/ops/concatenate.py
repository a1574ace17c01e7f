"""Concatenation along the channels, and its backward, the split."""

from minisegnet.backend import get_array_module
from minisegnet.ops._checks import check_dtype


def concatenate_forward(inputs):
    """Join (N, H, W, C_i) arrays to (N, H, W, sum C_i). The cache is the tuple of C_i.

    Raises ValueError if their N, H, W differ, TypeError if their dtypes do.
    """
    if len({x.shape[:3] for x in inputs}) != 1:
        raise ValueError(f"concatenate takes inputs of one N, H, W, not "
                         f"{[x.shape for x in inputs]}")
    check_dtype("concatenate", *inputs)
    xp = get_array_module(*inputs)
    return xp.concatenate(inputs, axis=3), tuple(x.shape[3] for x in inputs)


def concatenate_backward(dout, channels):
    """Return the list of dx_i: each input's own channels of `dout`."""
    if dout.shape[-1] != sum(channels):
        raise ValueError(f"concatenate backward takes dout of {sum(channels)} channels, not "
                         f"{dout.shape[-1]}")
    pieces, start = [], 0
    for C in channels:
        pieces.append(dout[..., start:start + C])
        start += C
    return pieces
