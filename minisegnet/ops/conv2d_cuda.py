"""Launchers of conv2d.cu: a convolution's parts on a GPU, which transposed convolution shares.

Where few numbers make an output, the definition. Else a matrix product: the inputs of each output
pixel are gathered into a row (im2col), some thousand pixels at a time, and the rows multiplied
with the weight while they are still in the L2 cache:

    out     = cols weight            dweight = cols^T dout, added up over the chunks in order
    dx      = at stride 1, the convolution of dout with the turned kernel
            = else, dcols = dout weight^T, each pixel gathering its own from them (col2im)

At 1x1 and stride 1 the columns are x itself. All arrays are contiguous; nothing waits for the GPU.
"""

from pathlib import Path
from typing import NamedTuple

from minisegnet.backend import get_array_module
from minisegnet.cuda.gemm import gemm
from minisegnet.cuda.launch import KernelFile, blocks
from minisegnet.ops._checks import is_half
from minisegnet.ops.elementwise import cast_cuda

THREADS = 256  # of a block
STRIP = 4  # outputs of one thread of the forward kernel
# Up to this many weights per output, as for a picture's three channels, the definition is as fast
# as memory allows; beyond, gathering columns for a matrix product is.
DIRECT_MAX_WEIGHTS = 32
# Columns of this size stay in the L2 cache (50 MB on an H100) until they have been multiplied;
# but a product of fewer rows would not keep the GPU busy.
CHUNK_BYTES = 32 * 2 ** 20
CHUNK_PIXELS = 4096
WEIGHT_THREADS = 2 ** 18  # about: enough for every multiprocessor, few enough shares of dweight
BIAS_BLOCKS = 256  # about, likewise of dbias

KERNELS = KernelFile(Path(__file__).with_name("conv2d.py"), templates={
    f"conv2d_{name}_kernel": ("1", "4")
    for name in ("forward", "backward_weight", "im2col", "col2im", "bias")
})


class Window(NamedTuple):
    """How a kernel lies over a map: tap kh reads row oh * stride + kh * dilation - padding_h."""

    stride: int
    dilation: int
    padding_h: int  # may be negative
    padding_w: int


def seen_taps(x, weight, out, stride, padding, dilation):
    """Return the taps that see more than padding, slices of (KH, KW), and the window of these.

    A kernel that is dilated beyond its map shrinks to its centre. What remains of a weight has no
    gaps in memory: taps are left out of a row only where one row remains.
    """
    seen = []
    for K, size, out_size in zip(weight.shape[:2], x.shape[1:3], out.shape[1:3]):
        offsets = [k * dilation - padding for k in range(K)]
        inside = [k for k in range(K)
                  if offsets[k] < size and (out_size - 1) * stride + offsets[k] >= 0]
        seen.append(slice(inside[0], inside[-1] + 1) if inside else slice(0, K))
    rows, columns = seen
    if rows.stop - rows.start > 1:
        columns = slice(0, weight.shape[1])
    return (rows, columns), Window(stride, dilation, padding - rows.start * dilation,
                                   padding - columns.start * dilation)


# ---------------------------------------------------------------- the definition


def is_direct(weight):
    """Whether the kernels that follow the definition are the faster ones."""
    KH, KW, C, _ = weight.shape
    return 1 < KH * KW and KH * KW * C <= DIRECT_MAX_WEIGHTS


def convolve_directly(x, weight, bias, out, window):
    """out = the convolution of x, plus the bias where there is one."""
    N, OH, OW, OC = out.shape
    vector = _vector(OC)
    (across, down), block = _grid(OC // vector, N * OH * blocks(OW, STRIP))
    KERNELS.launch(f"conv2d_forward_kernel<{vector}>", (down, across), block, x=x, weight=weight,
                   bias=bias, out=out, **_sizes(x, weight, out), **window._asdict())


def add_weight_gradient_directly(dout, x, dweight, window):
    """dweight += its gradient."""
    N, OH, _, OC = dout.shape
    vector = _vector(OC)
    # The threads of a row make one share together; each share has every count-th row of pixels.
    items = dweight.size // vector
    (across, _), (columns, rows) = _grid(items, 1, widest=THREADS)
    count = max(1, min(N * OH, WEIGHT_THREADS // items) // rows)
    shares = get_array_module(x).empty((count * rows, dweight.size), dweight.dtype)
    KERNELS.launch(f"conv2d_backward_weight_kernel<{vector}>", (count, across), (columns, rows),
                   dout=dout, x=x, shares=shares, **_sizes(x, dweight, dout), **window._asdict())
    _add_rows(shares, dweight)


def input_gradient_directly(dout, weight, dx, window):
    """dx = the input gradient."""
    KERNELS.launch("conv2d_backward_input_kernel", (blocks(dx.size, THREADS),), (THREADS,),
                   dout=dout, weight=weight, dx=dx, **_sizes(dx, weight, dout),
                   **window._asdict())


# ---------------------------------------------------------------- matrix products


def convolve(x, weight, out, window):
    """out = the convolution of x."""
    weight = in_dtype_of(x, weight)
    for pixels, cols in columns(x, weight, out, window):
        # out = cols weight
        gemm(cols, rows_of(weight), rows_of(out)[pixels])


def add_weight_gradient(dout, x, dweight, window):
    """dweight += its gradient."""
    for pixels, cols in columns(x, dweight, dout, window):
        # dweight = cols^T dout
        gemm(cols, rows_of(dout)[pixels], rows_of(dweight), transpose_a=True, add=True)


def input_gradient(dout, weight, dx, window, cast=None):
    """dx = the input gradient; `cast` is the weight in the type of dout, where there is one."""
    if window.stride == 1 and not is_pointwise(dx, weight, dout, window):
        _input_gradient_by_turning(dout, weight, dx, window)
        return
    weight = in_dtype_of(dout, weight) if cast is None else cast
    if is_pointwise(dx, weight, dout, window):
        # dx = dout weight^T
        gemm(rows_of(dout), rows_of(weight), rows_of(dx), transpose_b=True)
    else:
        _input_gradient_by_col2im(dout, weight, dx, window)


def _input_gradient_by_turning(dout, weight, dx, window):
    KH, KW, C, OC = weight.shape
    turned = get_array_module(dout).empty((KH, KW, OC, C), dout.dtype)
    KERNELS.launch("conv2d_turn_kernel", (blocks(weight.size, THREADS),), (THREADS,),
                   weight=weight, turned=turned, taps=KH * KW, C=C, OC=OC)
    convolve(dout, turned, dx, window._replace(
        padding_h=window.dilation * (KH - 1) - window.padding_h,
        padding_w=window.dilation * (KW - 1) - window.padding_w))


def _input_gradient_by_col2im(dout, weight, dx, window):
    N, H, W, C = dx.shape
    KH, KW = weight.shape[:2]
    OH, OW = dout.shape[1:3]
    # Whole images: a pixel gathers from neighbours above and below.
    pieces = chunks(N, OH * OW * KH * KW * C * dx.itemsize)
    memory = get_array_module(dx).empty((pieces[0].stop * OH * OW, KH * KW * C), dx.dtype)
    vector = _vector(C)
    for images in pieces:
        count = images.stop - images.start
        dcols = memory[:count * OH * OW]
        # dcols = dout weight^T
        gemm(rows_of(dout[images]), rows_of(weight), dcols, transpose_b=True)
        (across, down), block = _grid(C // vector, count * H * W)
        KERNELS.launch(f"conv2d_col2im_kernel<{vector}>", (down, across), block, dcols=dcols,
                       dx=dx[images], N=count, H=H, W=W, C=C, OH=OH, OW=OW, KH=KH, KW=KW,
                       **window._asdict())


def is_pointwise(x, weight, out, window):
    """Whether an output is a product with the input at its own pixel."""
    return (weight.shape[:2] == (1, 1) and x.shape[1:3] == out.shape[1:3]
            and window.padding_h == window.padding_w == 0)


def columns(x, weight, out, window):
    """Yield `(pixels, cols)`: a slice of the N*OH*OW outputs, and their inputs (P, KH*KW*C).

    `cols` is to be used before the next one is asked for: they share their memory.
    """
    if is_pointwise(x, weight, out, window):
        yield slice(0, x.size // x.shape[3]), rows_of(x)
        return
    _, H, W, C = x.shape
    N, OH, OW, _ = out.shape
    KH, KW = weight.shape[:2]
    pieces = chunks(N * OH * OW, KH * KW * C * x.itemsize, least=CHUNK_PIXELS)
    memory = get_array_module(x).empty((pieces[0].stop, KH * KW * C), x.dtype)
    vector = _vector(C)
    for pixels in pieces:
        P = pixels.stop - pixels.start
        (_, down), block = _grid(C // vector, P)
        KERNELS.launch(f"conv2d_im2col_kernel<{vector}>", (down, KH * KW), block, x=x,
                       cols=memory[:P], first=pixels.start, P=P, H=H, W=W, C=C, OH=OH, OW=OW,
                       KW=KW, **window._asdict())
        yield pixels, memory[:P]


def chunks(count, bytes_each, *, least=1):
    """Cut `count` things into slices of one size, about CHUNK_BYTES and at least `least` each."""
    pieces = blocks(count, max(least, CHUNK_BYTES // bytes_each))
    step = blocks(count, pieces)
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def in_dtype_of(x, weight):
    """Return `weight` as it is, or in the type of the activations where that is another."""
    return weight if weight.dtype == x.dtype else cast_cuda(weight, x.dtype)


def cast_weight(x, weight):
    """Return the weight in x's type, for the forward's products and the backward's.

    None where the weight itself serves: where the types are one, and for the kernels that follow
    the definition. Raises TypeError for a weight of 16 bits.
    """
    if is_half(weight):
        raise TypeError(f"a weight is float32 also where x is {x.dtype}, not {weight.dtype}: its "
                        f"updates would be lost in rounding")
    if not is_half(x) or is_direct(weight):
        return None
    return cast_cuda(weight, x.dtype)


# ---------------------------------------------------------------- bias


def add_bias(out, bias):
    """out += bias (OC,), in place."""
    OC = out.shape[3]
    vector = _vector(OC)
    KERNELS.launch(f"conv2d_bias_kernel<{vector}>", (blocks(out.size // vector, THREADS),),
                   (THREADS,), out=out, bias=bias, P=out.size // OC, OC=OC)


def add_bias_gradient(dout, dbias):
    """dbias += the sum of dout over every pixel."""
    OC = dout.shape[3]
    P = dout.size // OC
    (across, down), (columns, rows) = _grid(OC, P)
    count = max(1, min(down // 8, BIAS_BLOCKS // across))  # a thread adds up eight rows or more
    shares = get_array_module(dout).empty((count, OC), dbias.dtype) if count > 1 else None
    KERNELS.launch("conv2d_backward_bias_kernel", (count, across), (columns, rows),
                   shared_bytes=columns * rows * dbias.itemsize,
                   dout=dout, dbias=dbias, shares=shares, P=P, OC=OC)
    if shares is not None:
        _add_rows(shares, dbias)


def _add_rows(shares, total):
    """total += the sum over the rows of `shares`."""
    P, size = shares.shape
    rows = min(P, 32)
    KERNELS.launch("conv2d_sum_kernel", (1, blocks(size, 32)), (32, rows),
                   shared_bytes=32 * rows * shares.itemsize, shares=shares, total=total, P=P,
                   size=size)


# ---------------------------------------------------------------- sizes


def rows_of(array):
    """View an array as a matrix, the last axis its columns."""
    if not array.flags.c_contiguous:  # reshape would make a copy, and what is written be lost
        raise ValueError(f"an array of shape {array.shape} has gaps; make it contiguous")
    return array.reshape(-1, array.shape[-1])


def _sizes(x, weight, out):
    N, H, W, C = x.shape
    KH, KW, _, OC = weight.shape
    return dict(N=N, H=H, W=W, C=C, OH=out.shape[1], OW=out.shape[2], OC=OC, KH=KH, KW=KW)


def _vector(C):
    """Return how many channels a thread reads in one go."""
    return 4 if C % 4 == 0 else 1


def _grid(columns, rows, widest=32):
    """Return (blocks across, blocks down) for columns x rows threads, and a block's threads."""
    wide = 1
    while wide < min(columns, widest):
        wide *= 2
    return ((blocks(columns, wide), blocks(rows, THREADS // wide)), (wide, THREADS // wide))
