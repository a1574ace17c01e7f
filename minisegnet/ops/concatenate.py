"""Concatenation along the channels, and its backward, the split."""

from minisegnet.backend import get_array_module
from minisegnet.cuda.launch import KernelFile, blocks
from minisegnet.ops._checks import check_dtype, choose


def concatenate_forward(inputs, *, implementation=None):
    """Join (N, H, W, C_i) arrays to (N, H, W, sum C_i). The cache is the tuple of C_i.

    `implementation` is "numpy", "cuda" or "cuda_cpu"; None chooses by the array. Raises ValueError
    if their N, H, W differ, TypeError if their dtypes do.
    """
    if len({x.shape[:3] for x in inputs}) != 1:
        raise ValueError(f"concatenate takes inputs of one N, H, W, not "
                         f"{[x.shape for x in inputs]}")
    check_dtype("concatenate", *inputs)
    forward = choose(implementation, inputs[0], numpy=concatenate_forward_numpy,
                     cuda=concatenate_forward_cuda)
    return forward(inputs), tuple(x.shape[3] for x in inputs)


def concatenate_backward(dout, channels, *, implementation=None):
    """Return the list of dx_i: each input's own channels of `dout`. NumPy returns views of it."""
    if dout.shape[-1] != sum(channels):
        raise ValueError(f"concatenate backward takes dout of {sum(channels)} channels, not "
                         f"{dout.shape[-1]}")
    check_dtype("concatenate", dout)
    backward = choose(implementation, dout, numpy=concatenate_backward_numpy,
                      cuda=concatenate_backward_cuda)
    return backward(dout, channels)


def concatenate_forward_numpy(inputs):
    return get_array_module(*inputs).concatenate(inputs, axis=3)


def concatenate_backward_numpy(dout, channels):
    pieces, start = [], 0
    for C in channels:
        pieces.append(dout[..., start:start + C])
        start += C
    return pieces


# ---------------------------------------------------------------- CUDA: concatenate.cu

THREADS = 256  # of a block
AT_ONCE = 6  # narrow maps that one launch joins or splits

KERNELS = KernelFile(__file__, templates={
    "concatenate_forward_kernel": ("1", "4"),
    "concatenate_backward_kernel": ("1", "4"),
})


def concatenate_forward_cuda(inputs):
    xp = get_array_module(*inputs)
    inputs = [xp.ascontiguousarray(x) for x in inputs]
    OC = sum(x.shape[3] for x in inputs)
    out = xp.empty((*inputs[0].shape[:3], OC), inputs[0].dtype)
    _launch("concatenate_forward_kernel", inputs, [x.shape[3] for x in inputs], "x", out=out)
    return out


def concatenate_backward_cuda(dout, channels):
    xp = get_array_module(dout)
    dout = xp.ascontiguousarray(dout)
    pieces = [xp.empty((*dout.shape[:-1], C), dout.dtype) for C in channels]
    _launch("concatenate_backward_kernel", pieces, channels, "dx", dout=dout)
    return pieces


def _launch(name, narrow, channels, word, **wide):
    """Copy between the `wide` map and the `narrow` ones, AT_ONCE of them in a launch.

    The kernel calls the narrow ones `word`0, `word`1 ... of C0, C1 ... channels.
    """
    (whole,) = wide.values()
    OC = whole.shape[-1]
    vector = 4 if all(C % 4 == 0 for C in channels) else 1
    start = 0
    for i in range(0, len(narrow), AT_ONCE):
        group = list(zip(narrow, channels))[i:i + AT_ONCE]
        width = sum(C for _, C in group)
        size = whole.size // max(OC, 1) * width // vector
        group += [(None, 0)] * (AT_ONCE - len(group))
        arguments = {f"{word}{k}": array for k, (array, _) in enumerate(group)}
        arguments |= {f"C{k}": C for k, (_, C) in enumerate(group)}
        if size:
            KERNELS.launch(f"{name}<{vector}>", (blocks(size, THREADS),), (THREADS,), size=size,
                           width=width, start=start, OC=OC, **wide, **arguments)
        start += width
