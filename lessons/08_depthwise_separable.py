# %% [markdown]
# # 8 · Depthwise-separable convolution, counted and timed
#
# | | |
# |---|---|
# | goal | split a convolution in two, count what is saved, and measure what is left |
# | before this | lesson 7 |
# | read | 15 minutes |
# | exercises | 15 minutes |
# | computes | 4 s |

# %%
import time
import tracemalloc

import numpy as np

from minisegnet import ops, plots, process
from minisegnet.blocks import SeparableConv2d
from minisegnet.layers import Conv2d
from minisegnet.losses import Criterion
from minisegnet.models import build_model
from minisegnet.parallel import one_thread
from minisegnet.plots.knob import Panel, over_a_knob
from minisegnet.tables import percent, ruled
from minisegnet.verify import check
from minisegnet.verify.gradcheck import relative_error

process.set_up()  # one thread for BLAS, where that can be set
rng = np.random.default_rng(8)

# %% [markdown]
# ## Predict before you run
#
# A 3 x 3 convolution from 128 to 128 channels can be replaced by two cheaper ones, one after the
# other: the *depthwise* one looks at the neighbours of a pixel, the *pointwise* one mixes its
# channels. Per pixel the first takes $9 \cdot 128$ multiply-adds and the second
# $128 \cdot 128$. So the depthwise part does 9 of every 137, which is 7 %.
#
# **Which share of the time does the depthwise part take, on the machine in front of you?** Write
# down a guess. The answer is measured in the section "Timed".

# %% [markdown]
# ## One convolution, two jobs
#
# A dense convolution does two things at once. It looks around, over the $K \times K$ pixels of a
# window ($K$ is the side of the kernel here, not a number of classes), and it mixes, all $C$
# channels into each of $OC$:
#
# $$\text{out}[i, j, o] = \sum_{a, b, c} x[i + a - p,\; j + b - p,\; c] \cdot w[a, b, c, o]$$
#
# *Depthwise*: only look around. Every channel has a $K \times K$ kernel of its own, and stays by
# itself. *Pointwise*: only mix. That is a 1 x 1 convolution, in NHWC the product `x @ weight`.
#
# $$\text{mid}[i, j, c] = \sum_{a, b} x[i + a - p,\; j + b - p,\; c] \cdot u[a, b, c] \qquad\qquad
#   \text{out}[i, j, o] = \sum_{c} \text{mid}[i, j, c] \cdot v[c, o]$$
#
# Put one into the other: it is a dense convolution with the kernel
# $w[a, b, c, o] = u[a, b, c] \cdot v[c, o]$. So the pair can do *less* than the dense one: not
# every kernel is such a product. Networks that are trained with it make up for that elsewhere, or
# do not miss it.
#
# With stride 1 and $p = (K - 1) / 2$ the code of the depthwise part is the formula, tap by tap:


# %%
def depthwise_same(x, weight):
    """Filter each channel of x (N, H, W, C) by its own kernel in weight (K, K, C), K odd."""
    K = len(weight)
    H, W = x.shape[1:3]
    padded = np.pad(x, ((0, 0), (K // 2, K // 2), (K // 2, K // 2), (0, 0)))
    out = np.zeros_like(x)
    for a, b in np.ndindex(K, K):
        out += padded[:, a:a + H, b:b + W] * weight[a, b]  # (N, H, W, C) * (C,)
    return out


x, u, v = (rng.standard_normal(shape) for shape in ((2, 9, 8, 4), (3, 3, 4), (4, 5)))
by_package, _ = ops.depthwise_conv2d_forward(x, u, padding=1)
print(f"depthwise against the package: relative error "
      f"{relative_error(depthwise_same(x, u), by_package):.1e}")
dense, _ = ops.conv2d_forward(x, u[..., None] * v, padding=1)
print(f"depthwise, then pointwise, against dense with w = u v: relative error "
      f"{relative_error(depthwise_same(x, u) @ v, dense):.1e}")

# %% [markdown]
# ## Stride and dilation
#
# The *stride* $s$ is the step from one window to the next. The *dilation* $d$ is the step from one
# tap to the next *within* a window: with $d = 2$ a 3 x 3 kernel looks at every other pixel of a 5
# x 5 window. It sees further with no more weights, which is what segmentation wants where the map
# is small and must not become smaller. Tap $(a, b)$ of the window of output $(i, j)$ looks at
#
# $$(is + ad - p,\;\; js + bd - p)$$
#
# A window spans $d(K - 1) + 1$ pixels, so $\lfloor (H + 2p - d(K - 1) - 1) / s \rfloor + 1$ of
# them fit. What one tap sees of all the windows is again a slice of the padded input. Only its
# beginning is new, $(ad, bd)$ instead of $(a, b)$:


# %%
def output_size(H, K, stride, padding, dilation):
    """Return how many windows of K pixels, `dilation` apart, fit along an axis of H pixels."""
    return (H + 2 * padding - dilation * (K - 1) - 1) // stride + 1


def seen_from(padded, row, column, OH, OW, stride):
    """Return what a tap at (row, column) of the first window sees: a view (N, OH, OW, C)."""
    return padded[:, row:row + stride * (OH - 1) + 1:stride,
                  column:column + stride * (OW - 1) + 1:stride]


def pad(x, padding):
    """Return x (N, H, W, C) with `padding` zeros around every picture."""
    return np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))


# %% [markdown]
# ## Exercise 8.1: forward, with stride and dilation


# %% tags=["exercise-8.1"]
def depthwise(x, weight, stride, padding, dilation):
    """Return out (N, OH, OW, C) of x (N, H, W, C) and weight (K, K, C)."""
    ### BEGIN SOLUTION
    N, H, W, C = x.shape
    K = len(weight)
    OH = output_size(H, K, stride, padding, dilation)
    OW = output_size(W, K, stride, padding, dilation)
    padded = pad(x, padding)
    out = np.zeros((N, OH, OW, C), x.dtype)
    for a, b in np.ndindex(K, K):
        out += seen_from(padded, a * dilation, b * dilation, OH, OW, stride) * weight[a, b]
    return out
    ### END SOLUTION


# %% tags=["check-8.1"]
def package_depthwise(x, weight, stride, padding, dilation):
    """The package's: what the checks compare with."""
    return ops.depthwise_conv2d_forward(x, weight, stride=stride, padding=padding,
                                        dilation=dilation)[0]


def torch_depthwise(torch, x, weight, stride, padding, dilation):
    """torch's, a convolution with as many groups as channels."""
    out = torch.nn.functional.conv2d(
        x.permute(0, 3, 1, 2), weight.permute(2, 0, 1)[:, None], stride=stride, padding=padding,
        dilation=dilation, groups=x.shape[3])
    return out.permute(0, 2, 3, 1)


inputs = {"x": rng.standard_normal((2, 9, 8, 5)), "weight": rng.standard_normal((3, 3, 5)),
          "stride": 2, "padding": 2, "dilation": 2}

check("8.1", depthwise, inputs, expected=package_depthwise, torch=torch_depthwise,
      slips={"this is right without dilation: the taps must stand `dilation` pixels apart":
             lambda x, weight, stride, padding, dilation: package_depthwise(
                 x, weight, stride, padding, 1)[:, :5, :4],
             "the windows stand one pixel apart here: hand the stride on to seen_from":
             lambda x, weight, stride, padding, dilation: package_depthwise(
                 x, weight, 1, padding, dilation)[:, :5, :4],
             "the channels are summed up: here each one stays by itself":
             lambda x, weight, stride, padding, dilation: np.broadcast_to(package_depthwise(
                 x, weight, stride, padding, dilation).sum(axis=3, keepdims=True), (2, 5, 4, 5))},
      hints={"shape": "OH and OW come from output_size; the channels stay as many as they are.",
             "": "For each tap: out += seen_from(pad(x, padding), a * dilation, b * dilation, OH, "
                 "OW, stride) * weight[a, b]"})

# %% [markdown]
# ## Backward
#
# As in lesson 7, each multiplication sends `dout` to both of its factors. Nothing is summed over
# the channels forward, so nothing mixes them backward:
#
# $$du[a, b, c] = \sum_{n, i, j} x_{\text{seen by } (a, b)}[n, i, j, c] \cdot
#   d\text{out}[n, i, j, c] \qquad\qquad
#   dx_{\text{seen by } (a, b)} \mathrel{+}= d\text{out} \cdot u[a, b]$$
#
# On the left, all windows share the weight: sum over them. On the right, a pixel is in several
# windows: add what comes from each.
#
# ## Exercise 8.2: both gradients


# %% tags=["exercise-8.2"]
def depthwise_backward(dout, x, weight, stride, padding, dilation):
    """Return dx (N, H, W, C) and dweight (K, K, C) for dout (N, OH, OW, C)."""
    ### BEGIN SOLUTION
    _, H, W, _ = x.shape
    _, OH, OW, _ = dout.shape
    padded = pad(x, padding)
    dpadded, dweight = np.zeros_like(padded), np.zeros_like(weight)
    for a, b in np.ndindex(*weight.shape[:2]):
        tap = (a * dilation, b * dilation, OH, OW, stride)
        dweight[a, b] = (seen_from(padded, *tap) * dout).sum(axis=(0, 1, 2))
        seen_from(dpadded, *tap)[...] += dout * weight[a, b]
    return dpadded[:, padding:padding + H, padding:padding + W], dweight
    ### END SOLUTION


# %% tags=["check-8.2"]
def overwriting(dout, x, weight, stride, padding, dilation):
    """Both gradients, but dx where a tap overwrites what the taps before it have left."""
    dpadded = np.zeros_like(pad(x, padding))
    for a, b in np.ndindex(*weight.shape[:2]):
        seen_from(dpadded, a * dilation, b * dilation, *dout.shape[1:3],
                  stride)[...] = dout * weight[a, b]
    _, cache = ops.depthwise_conv2d_forward(x, weight, stride=stride, padding=padding,
                                            dilation=dilation)
    dweight = ops.depthwise_conv2d_backward(dout, cache)[1]
    return dpadded[:, padding:padding + x.shape[1], padding:padding + x.shape[2]], dweight


def summed_up(dout, x, weight, stride, padding, dilation):
    """Both gradients, but dweight summed over the channels, too."""
    _, cache = ops.depthwise_conv2d_forward(x, weight, stride=stride, padding=padding,
                                            dilation=dilation)
    dx, dweight = ops.depthwise_conv2d_backward(dout, cache)[:2]
    return dx, np.broadcast_to(dweight.sum(axis=2, keepdims=True), dweight.shape)


check("8.2", depthwise_backward, inputs, forward=package_depthwise, wrt=["x", "weight"],
      torch=torch_depthwise,
      slips={"each tap overwrites what the taps before it have brought: add (+=), since a pixel "
             "is in several windows": overwriting,
             "without axes, sum adds up the channels as well: sum over the axes 0, 1, 2":
             summed_up},
      quantities={"the number of windows, N * OH * OW": 2 * 5 * 4,
                  "the number of pictures, N": 2},
      hints={"scale": "A sum over the windows, not a mean.",
             "shape": "dx has the shape of x: cut the padding off. dweight[a, b] has one number "
                      "per channel: sum over the axes 0, 1, 2.",
             "": "For each tap: dweight[a, b] is the sum of (what it sees) * dout over the axes "
                 "0, 1, 2; and dout * weight[a, b] is added to dx where the tap saw, dilation "
                 "and all. In the end cut the padding off: x begins at [padding, padding]."})

# %% [markdown]
# ## Counted
#
# Three things can be counted without running anything: *parameters*; *multiply-adds*, for $P$
# pixels of output; and *numbers moved*, if every array is read once or written once, which is the
# least that a computation can do that does not fit into the processor's cache. For the dense
# convolution ($K \times K$, stride 1, no bias):


# %%
def dense_cost(C, OC, K, P):
    """Return (parameters, multiply-adds, numbers moved) of a dense convolution."""
    parameters = K * K * C * OC
    return parameters, P * parameters, P * C + parameters + P * OC


# %% [markdown]
# ## Exercise 8.3: the separable one
#
# The depthwise part writes its result, `mid`, and the pointwise part reads it again.


# %% tags=["exercise-8.3"]
def separable_cost(C, OC, K, P):
    """Return (parameters, multiply-adds, numbers moved) of depthwise K x K, then pointwise.

    Whole numbers, for C channels in, OC channels out and P pixels (which all maps have).
    """
    ### BEGIN SOLUTION
    parameters = K * K * C + C * OC
    return parameters, P * parameters, P * C + P * C + P * C + P * OC + parameters
    ### END SOLUTION


# %% tags=["check-8.3"]
def counted(C, OC, K, P):
    """The three numbers, from the shapes of arrays as the package makes them."""
    separable = SeparableConv2d(C, OC, K, rng=np.random.default_rng(0))
    parameters = sum(array.size for name, array in separable.named_parameters() if "conv" in name)
    read = P * C + P * C  # x, then mid
    written = P * C + P * OC  # mid, then out
    return parameters, P * parameters, read + written + parameters


C, OC, K, P = 6, 10, 3, 100
check("8.3", separable_cost, dict(C=C, OC=OC, K=K, P=P),
      expected=counted,
      slips={"mid is written once and read once: P * C numbers, twice":
             lambda C, OC, K, P: (*counted(C, OC, K, P)[:2], counted(C, OC, K, P)[2] - P * C),
             "mid is missing: it is written by the one and read by the other, P * C numbers each":
             lambda C, OC, K, P: (*counted(C, OC, K, P)[:2], counted(C, OC, K, P)[2] - 2 * P * C),
             "mid has as many channels as x: the pointwise part comes second":
             lambda C, OC, K, P: (*counted(C, OC, K, P)[:2],
                                  counted(C, OC, K, P)[2] + P * (OC - C)),
             "the weights are read, too: they count among the numbers moved":
             lambda C, OC, K, P: (*counted(C, OC, K, P)[:2],
                                  counted(C, OC, K, P)[2] - counted(C, OC, K, P)[0]),
             "the kernels of the depthwise part are for C channels, one each, not for OC":
             lambda C, OC, K, P: (K * K * OC + C * OC, P * (K * K * OC + C * OC), 0)},
      hints={"type": "Return three whole numbers.",
             "": "Depthwise: one K x K kernel per channel. Pointwise: a matrix (C, OC). Each "
                 "weight is used once per pixel. Moved: x, mid (twice), out, the weights."})

# %% [markdown]
# ## Myth check: 160 to 128 channels
#
# A guide to light networks says that in the decoder, from 160 to 128 channels, the separable 3 x 3
# convolution has 20,928 parameters, 8.8 times fewer than the dense one. Count them in the layers:

# %%
C, OC, K = 160, 128, 3
dense = Conv2d(C, OC, K, padding=1, bias=False, rng=rng)
separable = SeparableConv2d(C, OC, K, rng=rng)
sizes = {name: array.size for name, array in separable.named_parameters()}
print(f"dense: {dense.num_parameters:,}")
print("\n".join(f"separable: {name} {size:,}" for name, size in sizes.items()))
weights = sum(size for name, size in sizes.items() if "conv" in name)
for what, count in (("its two kernels", weights), ("with both batch norms", sum(sizes.values()))):
    print(f"{what}: {count:,}, a factor of {dense.num_parameters / count:.2f}")

# %% [markdown]
# Neither number is the guide's, and its factor is a little too good. The factor depends on little
# but $OC$: $K^2 C \cdot OC$ over $C (K^2 + OC)$ is $1 / (1/OC + 1/K^2)$, which stays below
# $K^2 = 9$ however many channels there are.
#
# Now all three counts, for a map of 48 x 64 pixels:

# %%
P = 48 * 64
rows = [("", "parameters", "multiply-adds", "numbers moved", "multiply-adds per number moved")]
for name, cost in (("dense", dense_cost(C, OC, K, P)),
                   ("separable", counted(C, OC, K, P)),
                   ("  its depthwise part", (K * K * C, P * K * K * C, 2 * P * C + K * K * C)),
                   ("  its pointwise part", (C * OC, P * C * OC, P * (C + OC) + C * OC))):
    rows.append((name, *(f"{number:,}" for number in cost), f"{cost[1] / cost[2]:.1f}"))
print("\n".join(ruled(rows)))

# %% [markdown]
# The separable one calculates an eighth as much, and moves *more* numbers. The last column says
# how much calculation there is for every number that has to be fetched or put away. Where it is
# high, the arithmetic decides how long it takes; where it is low, the memory does. The depthwise
# part has the lowest by far: every number that it fetches takes part in nine multiply-adds, and
# never in more, while in a matrix product each number meets a whole row or column of the other
# matrix.
#
# ## Timed


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


def float32(*shape):
    """Return random numbers as they are trained with."""
    return rng.standard_normal(shape).astype(np.float32)


def timed(channels, N=2, H=24, W=32):
    """Return the milliseconds of dense, depthwise and pointwise, `channels` in and out."""
    x = float32(N, H, W, channels)
    dense, around, mixing = (float32(3, 3, channels, channels), float32(3, 3, channels),
                             float32(1, 1, channels, channels))
    return (milliseconds(lambda: ops.conv2d_forward(x, dense, padding=1)),
            milliseconds(lambda: ops.depthwise_conv2d_forward(x, around, padding=1)),
            milliseconds(lambda: ops.conv2d_forward(x, mixing)))


C, P = 128, 2 * 24 * 32
work = (9 * C * C * P, 9 * C * P, C * C * P)
rows = [("128 to 128 channels", "million multiply-adds", "ms", "billion of them per second")]
times = timed(C)
for name, count, ms in zip(("dense", "depthwise", "pointwise"), work, times):
    rows.append((name, f"{count / 1e6:.1f}", f"{ms:.2f}", f"{count / ms / 1e6:.1f}"))
print("\n".join(ruled(rows)))
print(f"\nthe depthwise part: {percent(work[1] / sum(work[1:]))} of the multiply-adds of the "
      f"separable convolution, {percent(times[1] / sum(times[1:]))} of its time")

# %% [markdown]
# That is the answer to the question at the top. Compare the last column: a multiply-add of the
# depthwise part takes several times as long as one of the pointwise part.
#
# ## The experiment: turn the number of channels
#
# One knob: the channels, as many in as out. Two pictures of the same measurements. On the left the
# depthwise part's share, of the multiply-adds and of the time. On the right how many times cheaper
# the separable convolution is than the dense one, counted and measured.

# %% tags=["experiment"]
knob = (8, 16, 32, 64, 128)
measured = np.array([timed(channels) for channels in knob])  # (5, 3)
dense_ms, depthwise_ms, pointwise_ms = measured.T
C = np.array(knob)
moved = dense_cost(C, C, 3, P)[2] / (3 * P * C + P * C + 9 * C + C * C)
separable_ms = depthwise_ms + pointwise_ms
shares = {"of the multiply-adds": 9 / (9 + C), "of the time": depthwise_ms / separable_ms}
gains = {"multiply-adds, counted": 9 * C / (9 + C),
         "time, measured": dense_ms / separable_ms,
         "numbers moved, counted": moved}
rows = [("channels", *(f"depthwise {name}" for name in shares),
         *(f"gain: {name}" for name in gains))]
rows += [(str(C[i]), *(percent(line[i]) for line in shares.values()),
          *(f"{line[i]:.1f}" for line in gains.values())) for i in range(len(C))]
print("\n".join(ruled(rows)))
plots.show(over_a_knob("channels, in and out", knob, [
    Panel("the depthwise part's share", "share of the separable convolution", shares),
    Panel("how many times cheaper than dense", "dense / separable", gains)]),
    "08_depthwise_separable")

# %% [markdown]
# On the left: with few channels most of the time goes to the part that hardly calculates, and with
# many it is still far more than its share of the work. On the right: counting multiply-adds
# foretells the time badly. With few channels the gain is far below the count, since the depthwise
# part waits for its numbers and not for the arithmetic. With more channels it rises; whether it
# reaches the count, or even passes it, depends on how well the *dense* convolution does, which has
# troubles of its own: it must add up nine products for each output (lesson 7). And the numbers
# moved are not fewer but more.
#
# So count, by all means: parameters exactly, and the time by order of magnitude. Then measure, on
# the machine that it is for.
#
# ## Myth check: a light network, 30-40 % faster and 60 % less memory
#
# The same guide says so of a DeepLabV3+ whose decoder is separable and half as wide. Both networks
# are in the package. Here is one training step of each, with two pictures of 96 x 128 pixels.
# There are two kinds of memory: the weights, and what a step holds besides at its peak, which is
# mostly activations that wait for the backward pass.


# %% tags=["experiment"]
def train_once(model, images, target, criterion=Criterion("ce")):
    """Forward and backward: what a training step does before the optimizer."""
    model.zero_grad()
    _, cache = criterion.forward(model.forward(images), target)
    model.backward(criterion.backward(1.0, cache))


def cost_of(model, images, target):
    """Return (ms of a step, MiB of weights, MiB that a step holds at its peak beside them)."""
    ms = milliseconds(train_once, model, images, target, calls=3)
    tracemalloc.start()
    with one_thread():
        train_once(model, images, target)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    weights = sum(array.nbytes for _, array in model.named_parameters())
    return ms, weights / 2 ** 20, peak / 2 ** 20


images, target = float32(2, 96, 128, 3), rng.integers(0, 21, (2, 96, 128))
baseline, light = (cost_of(build_model(name, 21), images, target)
                   for name in ("deeplab_baseline", "deeplab_light"))
rows = [("", "baseline", "light", "saved")]
for what, *pair in zip(("a step, ms", "weights, MiB", "activations and the like, MiB"),
                       baseline, light):
    rows.append((what, *(f"{number:.1f}" for number in pair), percent(1 - pair[1] / pair[0])))
print("\n".join(ruled(rows)))

# %% [markdown]
# About 60 % less is right for the *weights*; that much is a fact of the architecture. What grows
# with the pictures and with the batch shrinks far less: both networks have the same backbone,
# whose activations are the same, and a separable block keeps *more* arrays than a dense
# one. And "so many percent faster" is a statement about one machine, one size of picture and one
# program. Yours is above.
#
# ## To think about
#
# **1.** Why does the factor of the parameters hardly depend on the number of input channels?
#
# <details><summary>Answer</summary>
#
# Both convolutions have $C$ as a factor: $K^2 C \cdot OC$ and $C (K^2 + OC)$. Every input channel
# brings $K^2 \cdot OC$ weights to the dense one and $K^2 + OC$ to the separable one.
#
# </details>
#
# **2.** Between the two parts there is batch norm and ReLU in our block. What does that do to the
# claim that the pair is a dense convolution with $w = u v$?
#
# <details><summary>Answer</summary>
#
# It ends there: the ReLU in the middle is not linear. Without it the two parts are one linear map,
# a dense convolution of a special form. With it they are a small network of two layers.
#
# </details>
#
# **3.** A 5 x 5 kernel in place of the 3 x 3 one: by what factor do the multiply-adds grow, dense
# and separable, at 128 channels?
#
# <details><summary>Answer</summary>
#
# Dense: $25 / 9 = 2.8$. Separable: $(25 + 128) / (9 + 128) = 1.12$. That is why networks built of
# depthwise convolutions can afford large kernels; MobileNetV3 has 5 x 5 ones in many places.
#
# </details>
