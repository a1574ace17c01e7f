# %% [markdown]
# # 7 · Convolution: one definition, several ways to compute it
#
# | | |
# |---|---|
# | goal | write a convolution forward and backward as matrix products, and know their price |
# | before this | lesson 0 |
# | read | 15 minutes |
# | exercises | 15 minutes |
# | computes | 3 s |

# %%
import time
import tracemalloc

import numpy as np

from minisegnet import ops, plots, process
from minisegnet.parallel import one_thread
from minisegnet.plots.cells import copied_matrices
from minisegnet.plots.knob import Panel, over_a_knob
from minisegnet.tables import ruled
from minisegnet.verify import check
from minisegnet.verify.gradcheck import relative_error

process.set_up()  # one thread for BLAS, where that can be set: all ways use the same hardware
rng = np.random.default_rng(7)

# %% [markdown]
# ## Predict before you run
#
# A convolution can be written as seven nested loops. It can also be written as *one* matrix
# product, if the input is copied first: with a 3 x 3 kernel, every pixel nine times. Not a single
# multiplication is saved by that.
#
# **How many times faster is the matrix product than the loops: ten times, a thousand times, ten
# thousand times?** And does it help to copy less? Write down a guess. The answers are computed in
# the section "The ways, timed".

# %% [markdown]
# ## The definition
#
# A pixel of the output looks at a window of the input, multiplies what it sees by the weights, and
# adds up over the window's rows and columns and over all channels. There is one set of weights per
# output channel $o$:
#
# $$\text{out}[n, i, j, o] = \sum_{a=0}^{KH-1} \sum_{b=0}^{KW-1} \sum_{c=0}^{C-1}
#   x[n,\; is + a - p,\; js + b - p,\; c] \cdot w[a, b, c, o]$$
#
# $s$ is the *stride*, the step from one window to the next; $p$ is the *padding*, the number of
# zeros put around the picture. A position $(a, b)$ of the kernel is called a *tap*.
# (Mathematicians turn the kernel by 180 degrees first. Without the turn it should be called
# cross-correlation, but the whole field says convolution.)
#
# How many windows fit? The last one must end inside the padded input. So along an axis of $H$
# pixels there are
#
# $$OH = \left\lfloor \frac{H + 2p - KH}{s} \right\rfloor + 1$$
#
# Arrays are NHWC here: the channels of a pixel lie side by side in memory, then come the pixels of
# a row, then the rows. Weights are (KH, KW, C, OC). As code, letter by letter:


# %%
def output_size(H, KH, stride, padding):
    """Return how many windows of KH pixels fit along an axis of H pixels."""
    return (H + 2 * padding - KH) // stride + 1


def conv2d_loops(x, weight, stride, padding):
    """Convolve x (N, H, W, C) with weight (KH, KW, C, OC): the definition, and slow."""
    N, H, W, C = x.shape
    KH, KW, _, OC = weight.shape
    out = np.zeros((N, output_size(H, KH, stride, padding), output_size(W, KW, stride, padding),
                    OC), x.dtype)
    for n, i, j, o in np.ndindex(out.shape):
        for a, b, c in np.ndindex(KH, KW, C):
            h, w = i * stride + a - padding, j * stride + b - padding
            if 0 <= h < H and 0 <= w < W:
                out[n, i, j, o] += x[n, h, w, c] * weight[a, b, c, o]
    return out


small = rng.standard_normal((1, 7, 8, 3))
small_weight = rng.standard_normal((3, 3, 3, 4))
for s, p in ((1, 1), (2, 1), (2, 0)):
    out, _ = ops.conv2d_forward(small, small_weight, stride=s, padding=p)
    error = relative_error(conv2d_loops(small, small_weight, s, p), out)
    print(f"stride {s}, padding {p}: out {out.shape}, relative error against the package "
          f"{error:.1e}")

# %% [markdown]
# ## im2col: the whole convolution as one matrix product
#
# A matrix product is fast because it has been tuned for decades. To use one, write what each
# output pixel sees into a row of a matrix: $KH \cdot KW \cdot C$ numbers. The weights, reshaped,
# are the other matrix, one column per output channel. This is *im2col*:
#
# | formula | shapes |
# |---|---|
# | `out = cols @ weight.reshape(-1, OC)` | $(N \cdot OH \cdot OW, OC)$ |
# | `cols` | $(N \cdot OH \cdot OW, KH \cdot KW \cdot C)$ |
# | `weight.reshape(-1, OC)` | $(KH \cdot KW \cdot C, OC)$ |
#
# Both run over the taps in the same order: $a$, then $b$, then $c$.
#
# No loop over pixels is needed to fill the matrix. What *one tap* sees of all the windows together
# is a slice of the padded input, starting at $(a, b)$ with step $s$:


# %%
def seen_by(padded, a, b, OH, OW, stride):
    """Return what tap (a, b) sees, (N, OH, OW, C): a view, so adding to it adds to `padded`."""
    return padded[:, a:a + stride * (OH - 1) + 1:stride, b:b + stride * (OW - 1) + 1:stride]


def pad(x, padding):
    """Return x (N, H, W, C) with `padding` zeros around every picture."""
    return np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))


# %% [markdown]
# ## Exercise 7.1: forward
#
# Write the convolution as one matrix product (or add up one product per tap, if you like that
# better). Loop over the taps only: `for a, b in np.ndindex(KH, KW)`.


# %% tags=["exercise-7.1"]
def conv2d(x, weight, stride, padding):
    """Return out (N, OH, OW, OC) of x (N, H, W, C) and weight (KH, KW, C, OC)."""
    ### BEGIN SOLUTION
    N, H, W, C = x.shape
    KH, KW, _, OC = weight.shape
    OH, OW = output_size(H, KH, stride, padding), output_size(W, KW, stride, padding)
    padded = pad(x, padding)
    cols = np.empty((N, OH, OW, KH, KW, C), x.dtype)
    for a, b in np.ndindex(KH, KW):
        cols[:, :, :, a, b] = seen_by(padded, a, b, OH, OW, stride)
    out = cols.reshape(-1, KH * KW * C) @ weight.reshape(-1, OC)
    return out.reshape(N, OH, OW, OC)
    ### END SOLUTION


# %% tags=["check-7.1"]
def by_package(x, weight, stride, padding):
    """The package's convolution: what the checks compare with."""
    return ops.conv2d_forward(x, weight, stride=stride, padding=padding)[0]


def by_torch(torch, x, weight, stride, padding):
    """torch's, from NHWC to its NCHW and back."""
    out = torch.nn.functional.conv2d(x.permute(0, 3, 1, 2), weight.permute(3, 2, 0, 1),
                                     stride=stride, padding=padding)
    return out.permute(0, 2, 3, 1)


# The kernel is not square, nor is the output, so that no axes are mixed up without notice.
inputs = {"x": rng.standard_normal((2, 6, 8, 3)), "weight": rng.standard_normal((3, 2, 3, 4)),
          "stride": 2, "padding": 1}

check("7.1", conv2d, inputs, expected=by_package, torch=by_torch,
      slips={
          "this is right for a kernel turned by 180 degrees. Here tap (a, b) meets the pixel a "
          "rows below and b columns to the right of the window's corner":
          lambda x, weight, stride, padding: by_package(x, weight[::-1, ::-1], stride, padding),
          "the windows stand one pixel apart here: hand the stride on to seen_by":
          lambda x, weight, stride, padding: by_package(x, weight, 1, padding)[:, :3, :5],
          "each tap overwrites what the taps before it have brought: add (+=) the products":
          lambda x, weight, stride, padding: seen_by(
              pad(x, padding), 2, 1, 3, 5, stride) @ weight[2, 1],
          "the numbers of a row of cols are in another order than the weights: both must run over "
          "KH, then KW, then C":
          lambda x, weight, stride, padding: by_package(
              x, np.ascontiguousarray(weight.reshape(-1, 4)).reshape(3, 3, 2, 4)
              .transpose(1, 2, 0, 3), stride, padding)},
      hints={"shape": "OH and OW come from output_size; N, OH and OW are the first three axes.",
             "": "cols is (N, OH, OW, KH, KW, C); cols[:, :, :, a, b] = seen_by(pad(x, padding), "
                 "a, b, OH, OW, stride). Flatten it to two axes, multiply, reshape to four."})

# %% [markdown]
# ## Backward
#
# Look at one multiplication of the forward pass: $x \cdot w$ is added to $\text{out}$. Backward,
# the gradient of $\text{out}$ goes to both factors, each multiplied by the other one:
#
# $$dw \mathrel{+}= x \cdot d\text{out} \qquad\qquad dx \mathrel{+}= w \cdot d\text{out}$$
#
# All multiplications of one tap together are a matrix product, $X W$, of which $\text{out}$ is the
# sum over the taps. $X$ is what the tap sees, $(P, C)$ with $P = N \cdot OH \cdot OW$, and $W$ is
# $w[a, b]$, $(C, OC)$. So per tap:
#
# | formula | in words |
# |---|---|
# | $dW = X^\top \, d\text{out}$ | summed over all windows, since all share the weights |
# | $dX = d\text{out} \; W^\top$ | belongs to the pixels that the tap saw: *add* it there |
#
# The shapes leave no choice: $dW$ must be $(C, OC)$ and $dX$ must be $(P, C)$.
#
# ## Exercise 7.2: the gradient of the weights
#
# `x` is the input as it was, not padded; `weight` is given for its shape. (A product of an array
# with four axes and one with two is a product over the last axis: `dout @ W.T` works as it stands.
# For $X^\top d\text{out}$, reshape both to two axes.)


# %% tags=["exercise-7.2"]
def conv2d_dweight(dout, x, weight, stride, padding):
    """Return dweight (KH, KW, C, OC) for dout (N, OH, OW, OC)."""
    ### BEGIN SOLUTION
    KH, KW, C, OC = weight.shape
    _, OH, OW, _ = dout.shape
    padded = pad(x, padding)
    dweight = np.empty_like(weight)
    for a, b in np.ndindex(KH, KW):
        X = seen_by(padded, a, b, OH, OW, stride).reshape(-1, C)
        dweight[a, b] = X.T @ dout.reshape(-1, OC)
    return dweight
    ### END SOLUTION


# %% tags=["check-7.2"]
check("7.2", conv2d_dweight, inputs, forward=by_package, wrt=["weight"], torch=by_torch,
      slips={
          "the taps lie one step too far up and left: the input must be padded as it was forward":
          lambda dout, x, weight, stride, padding: ops.conv2d_backward(
              dout, ops.conv2d_forward(np.pad(x, ((0, 0), (0, 2), (0, 2), (0, 0))), weight,
                                       stride=stride)[1])[1]},
      quantities={"the number of windows, N * OH * OW": 2 * 3 * 5,
                  "the number of pictures, N": 2},
      hints={"scale": "A sum over the windows, not a mean: the loss has taken its mean already.",
             "": "For each tap: dweight[a, b] = X.T @ dout, with X = seen_by(padded, ...) and "
                 "dout both reshaped to two axes."})

# %% [markdown]
# ## Exercise 7.3: the gradient of the input
#
# Windows overlap, so a pixel was seen by several taps, and what came to it from each is added up:
# *what was copied forward is summed backward*. Undoing im2col in this way is called *col2im*.
# Begin with zeros in the shape of the padded input, add at the places that each tap saw, and cut
# the padding off in the end. (Mind `[padding:-padding]` where the padding is 0: it is empty then.)


# %% tags=["exercise-7.3"]
def conv2d_dx(dout, x, weight, stride, padding):
    """Return dx (N, H, W, C) for dout (N, OH, OW, OC); x is given for its shape."""
    ### BEGIN SOLUTION
    _, H, W, _ = x.shape
    KH, KW, _, _ = weight.shape
    _, OH, OW, _ = dout.shape
    dpadded = np.zeros_like(pad(x, padding))
    for a, b in np.ndindex(KH, KW):
        seen_by(dpadded, a, b, OH, OW, stride)[...] += dout @ weight[a, b].T
    return dpadded[:, padding:padding + H, padding:padding + W]
    ### END SOLUTION


# %% tags=["check-7.3"]
def of_one_tap_each(dout, x, weight, stride, padding):
    """dx where a tap overwrites what the taps before it have left."""
    dpadded = np.zeros_like(pad(x, padding))
    for a, b in np.ndindex(weight.shape[:2]):
        seen_by(dpadded, a, b, *dout.shape[1:3], stride)[...] = dout @ weight[a, b].T
    return dpadded[:, padding:padding + x.shape[1], padding:padding + x.shape[2]]


check("7.3", conv2d_dx, inputs, forward=by_package, wrt=["x"], torch=by_torch,
      slips={"each tap overwrites what the taps before it have brought: add (+=), since a pixel "
             "is in several windows": of_one_tap_each,
             "the sums begin with x in place of zeros":
             lambda dout, x, weight, stride, padding: x + ops.conv2d_backward(
                 dout, ops.conv2d_forward(x, weight, stride=stride, padding=padding)[1])[0],
             "the padding is on all four sides: the picture begins at [padding, padding], not at "
             "[0, 0]": lambda dout, x, weight, stride, padding: ops.conv2d_backward(
                 dout, ops.conv2d_forward(pad(x, padding), weight, stride=stride)[1])[0][
                     :, :x.shape[1], :x.shape[2]]},
      hints={"shape": "dx has the shape of x: cut the padding off, on all four sides.",
             "": "For each tap: seen_by(dpadded, ...)[...] += dout @ weight[a, b].T; then cut the "
                 "padding off: x begins at [padding, padding]."})

# %% [markdown]
# Such a backward pass is a layer of its own. With stride 2, dx has twice the rows and columns of
# dout: it makes a small picture large, with weights that can be learned. That is the *transposed
# convolution* of many decoders, and its forward pass is what you have just written:

# %%
coarse = rng.standard_normal((2, 5, 6, 4))  # (N, OH, OW, OC)
kernel = rng.standard_normal((2, 2, 3, 4))  # (KH, KW, C, OC)
_, cache = ops.conv2d_forward(np.zeros((2, 10, 12, 3)), kernel, stride=2)
dx, dweight, _ = ops.conv2d_backward(coarse, cache)
enlarged, _ = ops.conv_transpose2d_forward(coarse, kernel, stride=2)
print(f"{coarse.shape} became {enlarged.shape}; dx against the transposed convolution: relative "
      f"error {relative_error(dx, enlarged):.1e}")

# %% [markdown]
# ## Copy less: row windows
#
# im2col writes every pixel down $KH \cdot KW$ times. In NHWC less will do. The $KW$ pixels that a
# window sees *in one row* lie side by side in memory, $KW \cdot C$ numbers in one piece. Copy
# these pieces, for every row and every column: $KW$ copies of the input. Then take the kernel's
# rows one after the other. Row $a$ needs the pieces of rows $a, a + 1, \dots$, and that is a
# slice, without another copy. So three shifted products, each $3C$ deep, make a 3 x 3
# convolution.
#
# (`as_strided` below describes overlapping pieces without a copy. It is explained in question 1;
# you may take it as it is.) Here are three ways, for stride 1:


# %%
def by_im2col(x, weight, padding):
    """Every window becomes a row: KH * KW copies of the input, one product."""
    N, OH, OW, KH, KW, C, OC = sizes(x, weight, padding)
    padded = pad(x, padding)
    image, row, pixel, channel = padded.strides
    windows = np.lib.stride_tricks.as_strided(
        padded, (N, OH, OW, KH, KW * C), (image, row, pixel, row, channel))
    cols = windows.reshape(N * OH * OW, KH * KW * C)  # here it copies
    return (cols @ weight.reshape(-1, OC)).reshape(N, OH, OW, OC)


def by_rows(x, weight, padding):
    """KW copies of the input, KH products of depth KW * C."""
    N, OH, OW, KH, KW, C, OC = sizes(x, weight, padding)
    padded = pad(x, padding)
    windows = np.ascontiguousarray(np.lib.stride_tricks.as_strided(
        padded, (N, padded.shape[1], OW, KW * C), padded.strides))
    out = np.zeros((N, OH * OW, OC), x.dtype)
    for a in range(KH):
        out += windows[:, a:a + OH].reshape(N, OH * OW, KW * C) @ weight[a].reshape(-1, OC)
    return out.reshape(N, OH, OW, OC)


def by_taps(x, weight, padding):
    """No window is kept: KH * KW products of depth C."""
    N, OH, OW, KH, KW, C, OC = sizes(x, weight, padding)
    padded = pad(x, padding)
    out = np.zeros((N * OH * OW, OC), x.dtype)
    for a, b in np.ndindex(KH, KW):
        out += seen_by(padded, a, b, OH, OW, 1).reshape(-1, C) @ weight[a, b]
    return out.reshape(N, OH, OW, OC)


def sizes(x, weight, padding):
    """Return N, OH, OW, KH, KW, C, OC at stride 1."""
    KH, KW, C, OC = weight.shape
    return (len(x), output_size(x.shape[1], KH, 1, padding),
            output_size(x.shape[2], KW, 1, padding), KH, KW, C, OC)


expected, _ = ops.conv2d_forward(small, small_weight, padding=1)
for way in (by_im2col, by_rows, by_taps):
    error = relative_error(way(small, small_weight, 1), expected)
    print(f"{way.__name__} against the package: relative error {error:.1e}")

# %% [markdown]
# The picture shows both matrices for a picture of 4 x 5 pixels with one channel, and a 3 x 3
# kernel without padding: in every cell stands the number of the pixel that it was copied from. Of
# the row windows, the first product reads the upper six rows, the second one the six that begin
# three further down, the third one the lower six.

# %%
pixels = np.arange(4 * 5).reshape(4, 5)
view = np.lib.stride_tricks.sliding_window_view
plots.show(copied_matrices({
    "the picture": pixels,
    "im2col: a row per window": view(pixels, (3, 3)).reshape(-1, 9),
    "row windows: a row per\npicture row and column": view(pixels, 3, axis=1).reshape(-1, 3)},
    pixels.size), "07_convolution_windows")

# %% [markdown]
# ## The ways, timed
#
# All of them do the same multiplications. A measurement of time needs some care: the first call is
# thrown away (memory is fetched, caches are filled), and of several further ones the *fastest*
# counts, since whatever else the machine does only ever makes a call slower. All run on one
# thread. The loops are so slow that they get a small input; what is compared is the time per
# multiply-add.


# %%
def milliseconds(function, *arguments, calls=15):
    """Return the time of the fastest of several calls, after one that does not count."""
    with one_thread():
        function(*arguments)
        times = []
        for _ in range(calls):
            start = time.perf_counter()
            function(*arguments)
            times.append(time.perf_counter() - start)
    return 1000 * min(times)


def multiply_adds(x, weight):
    """Return how many there are at stride 1 with "same" padding, those with zeros included."""
    return x[..., 0].size * weight.size


def float32(*shape):
    """Return random numbers as they are trained with."""
    return rng.standard_normal(shape).astype(np.float32)


x, weight = float32(4, 48, 64, 32), float32(3, 3, 32, 32)
tiny, tiny_weight = float32(1, 8, 10, 3), float32(3, 3, 3, 4)

nanoseconds = {"loops": 1e6 * milliseconds(conv2d_loops, tiny, tiny_weight, 1, 1, calls=3)
               / multiply_adds(tiny, tiny_weight)}
for way in (by_im2col, by_rows, by_taps):
    nanoseconds[way.__name__] = 1e6 * milliseconds(way, x, weight, 1) / multiply_adds(x, weight)
nanoseconds["the package"] = 1e6 * milliseconds(
    lambda: ops.conv2d_forward(x, weight, padding=1)) / multiply_adds(x, weight)

rows = [("way", "ns per multiply-add", "times as fast as the loops")]
rows += [(name, f"{each:.3g}", f"{nanoseconds['loops'] / each:,.0f}")
         for name, each in nanoseconds.items()]
print("\n".join(ruled(rows)))

# %% [markdown]
# That answers the first question, and begins to answer the second. Python makes an object for
# every single number; BLAS, the library behind `@`, multiplies eight or more numbers with one
# instruction, and uses each that it has fetched many times before it lets go of it.
#
# ## The experiment: turn the size of the kernel
#
# One knob: the kernel grows from 1 x 1 to 7 x 7, all else stays. The multiply-adds grow with
# $KH \cdot KW$. What grows with them in *memory* depends on the way. Counted is what a call holds
# at its peak, the output included, as a multiple of the input; the time is given per tap, so that
# a way that pays for nothing but its multiplications has a level line.


# %% tags=["experiment"]
def peak(function, *arguments):
    """Return the bytes that a call holds at its peak, its result included."""
    tracemalloc.start()
    function(*arguments)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


knob = (1, 3, 5, 7)
ways = {"im2col": by_im2col, "row windows": by_rows, "tap by tap": by_taps}
x = float32(4, 40, 48, 16)
times, memory = {name: [] for name in ways}, {name: [] for name in ways}
for size in knob:
    weight = float32(size, size, 16, 16)
    for name, way in ways.items():
        times[name].append(milliseconds(way, x, weight, size // 2) / size ** 2)
        memory[name].append(peak(way, x, weight, size // 2) / x.nbytes)

rows = [("kernel", *(f"{name}: {what}" for what in ("ms per tap", "memory") for name in ways))]
rows += [(f"{size} x {size}", *(f"{times[name][i]:.3f}" for name in ways),
          *(f"{memory[name][i]:.1f} x" for name in ways)) for i, size in enumerate(knob)]
print("\n".join(ruled(rows)))
plots.show(over_a_knob("side of the kernel, pixels", knob, [
    Panel("time per tap", "milliseconds", times),
    Panel("memory at the peak", "multiples of the input", memory, is_log=True)]),
    "07_convolution")

# %% [markdown]
# Read it from right to left. In memory, im2col grows with the *area* of the kernel, the row
# windows with its *side*, and tap by tap hardly grows at all. (The 1 x 1 kernel needs no copy
# whatever: in NHWC it is `x @ weight`. These three do not look out for it; the package does.)
#
# Time is less simple. The one large product of im2col is the best that BLAS can be asked for. But
# once its matrix has outgrown the processor's cache, writing it and reading it again costs more
# than the product gains. Tap by tap copies little, but adds a product to the whole output
# $KH \cdot KW$ times; the row windows do so $KH$ times only, and their products are deeper. Make
# `x` smaller or larger, and the order may change: "which way is best" has no answer without sizes
# and a machine.
#
# ## To think about
#
# **1.** NumPy can describe the row windows without copying them: `as_strided` gives a view whose
# last axis runs on into the next pixel, since all the other steps in memory stay as they are. Why
# is the copy made all the same?
#
# <details><summary>Answer</summary>
#
# A matrix product is made by BLAS, and BLAS takes matrices whose rows begin at least one row's
# length apart. These overlap: a row is $KW \cdot C$ long, and the next one begins $C$ further.
# NumPy would have to copy them, or multiply without BLAS.
#
# </details>
#
# **2.** The backward pass needs `cols` again, for $dW = \text{cols}^\top d\text{out}$. Should the
# forward pass keep it?
#
# <details><summary>Answer</summary>
#
# It would save a copy, and cost nine times the memory of the input, for every 3 x 3 layer of the
# network at once, since all of them wait for their backward pass. The package keeps `x`, which is
# there anyway, and gathers a second time.
#
# </details>
#
# **3.** With stride 2 and a 3 x 3 kernel, the pixels of dx are sums of different numbers of terms.
# How many, and what would one see in a decoder that enlarges pictures in this way?
#
# <details><summary>Answer</summary>
#
# Away from the border a pixel lies in one or two windows along each axis, so in 1, 2 or 4 windows,
# in a regular pattern. Enlarged pictures can show that pattern: a checkerboard. A kernel whose
# side is a multiple of the stride, 2 x 2 or 4 x 4, treats all pixels alike.
#
# </details>
