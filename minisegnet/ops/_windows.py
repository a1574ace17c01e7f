"""Where the taps of a sliding window fall: shared by convolution, depthwise and max pooling."""

from typing import NamedTuple

# Of a stride, a padding and a dilation: kernels compute in int where a tap falls, three strides
# beyond the map too, and no map is as long as this.
LARGEST = 2 ** 20


class Tap(NamedTuple):
    """One kernel position, and the outputs for which it lands inside the input."""

    kh: int
    kw: int
    x: tuple  # slices of an (N, H, W, C) input: the pixels this tap reads
    out: tuple  # slices of an (N, OH, OW, C) output: the pixels it contributes to


def output_size(size, kernel, stride, padding, dilation):
    """Length of a windowed axis: (size + 2 padding - dilation (kernel - 1) - 1) // stride + 1.

    Raises ValueError if the window is larger than the padded input.
    """
    out = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    if out < 1:
        raise ValueError(
            f"a kernel of {kernel} with dilation {dilation} does not fit an input of {size} with "
            f"padding {padding}; use a larger input, more padding or less dilation"
        )
    return out


def check_window(stride, padding, dilation):
    """Refuse anything but a whole stride >= 1, padding >= 0 and dilation >= 1, up to LARGEST."""
    for name, value, least in (("stride", stride, 1), ("padding", padding, 0),
                               ("dilation", dilation, 1)):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be a whole number >= {least}, not {value!r}")
        if value > LARGEST:
            raise ValueError(f"{name} must be at most {LARGEST}, not {value!r}")


def _valid(k, in_size, out_size, stride, padding, dilation):
    """Input and output slices along one axis for tap `k`, or None if it reads only padding."""
    offset = k * dilation - padding  # input index that output 0 reads
    first = max(0, -(offset // stride))  # smallest o with o*stride + offset >= 0
    last = min(out_size - 1, (in_size - 1 - offset) // stride)
    if last < first:
        return None
    start = first * stride + offset
    return slice(start, last * stride + offset + 1, stride), slice(first, last + 1)


def valid_taps(x_shape, out_shape, kernel, stride, padding, dilation):
    """The taps of a `(KH, KW)` kernel that touch the input, each with the region it touches.

    A tap that sees only zero padding is left out: at output stride 16 a dilated kernel is often
    wider than its input, and most of its multiplications would be by zero.
    """
    taps = []
    for kh in range(kernel[0]):
        rows = _valid(kh, x_shape[1], out_shape[1], stride, padding, dilation)
        for kw in range(kernel[1]):
            cols = _valid(kw, x_shape[2], out_shape[2], stride, padding, dilation)
            if rows is not None and cols is not None:
                taps.append(Tap(kh, kw, (slice(None), rows[0], cols[0]),
                                (slice(None), rows[1], cols[1])))
    return taps
