# %% [markdown]
# # 10 · Dilation, ASPP, and the gradient of a fan-out
#
# | | |
# |---|---|
# | goal | count what a dilated kernel sees; write the backward of branches that share an input |
# | before this | lessons 7 and 9 |
# | read | 15 minutes |
# | exercises | 15 minutes |
# | computes | 3 s |

# %%
import inspect

import numpy as np

from minisegnet import ops, plots
from minisegnet.models import build_model
from minisegnet.models.aspp import ASPP
from minisegnet.plots.dilation import taps_on_maps
from minisegnet.tables import percent, ruled
from minisegnet.verify import check
from minisegnet.verify.gradcheck import numeric_slope, relative_error

rng = np.random.default_rng(10)

# %% [markdown]
# ## Predict before you run
#
# A street picture of 180x240 pixels has become a map of 12x15 in the depth of a network (stride
# 16). A 3x3 convolution with dilation rate 12 goes over that map: the neighbours that it reads
# are 12 pixels away. Outside the map there are zeros.
#
# **How many of its 9 taps see the picture, on average over the map?** Write down a guess. The
# answer is computed in the section "The experiment".

# %% [markdown]
# ## A kernel with holes
#
# To say what a pixel belongs to, a network must look around: a toilet is a small symbol that
# stands in a bathroom. Large kernels are dear, and many small ones one after the other take long
# to get anywhere. *Dilation* (or *atrous* convolution, from the French *à trous*, with holes)
# pulls the taps of a small kernel apart. With the rate $r$, in one dimension and with three taps:
#
# $$y_i = w_0 \, x_{i-r} + w_1 \, x_i + w_2 \, x_{i+r}, \qquad x = 0 \text{ outside}$$
#
# | | in words | formula |
# |---|---|---|
# | span | first to last pixel that a kernel of $k$ taps reads | $(k - 1) \, r + 1$ |
# | receptive field | what a pixel sees, stride 1 | $1 + \sum_l (k_l - 1) \, r_l$, over layers |
# | weights | as many as without dilation | $k$, or $k^2$ in two dimensions |


# %%
def dilated_conv1d(x, weight, rate):
    """Return the (L,) convolution of x (L,) with three taps (3,) at the given rate."""
    padded = np.pad(x, rate)
    return sum(weight[k] * padded[k * rate:k * rate + len(x)] for k in range(3))


line, taps = rng.standard_normal(15), rng.standard_normal(3)
for rate in (1, 2, 6, 12):
    weight = np.zeros((3, 3, 1, 1))
    weight[1, :, 0, 0] = taps  # the middle row of a 3x3 kernel
    out, _ = ops.conv2d_forward(line.reshape(1, 1, 15, 1), weight, padding=rate, dilation=rate)
    error = relative_error(dilated_conv1d(line, taps, rate), out.ravel())
    print(f"rate {rate:2}: span {2 * rate + 1:2}, package against formula: "
          f"relative error {error:.1e}")

# %% [markdown]
# The last of these kernels spans 25 pixels, and the line has 15. There is no place where all
# three of its taps are inside.
#
# ## Exercise 10.1: taps that see the picture
#
# Count them, for every place on a line.


# %% tags=["exercise-10.1"]
def seen_taps(size, rate):
    """Return how many of three taps fall inside a line, for each of its places: (size,) int.

    At place i the taps are at i - rate, i and i + rate; inside are the places 0 to size - 1.
    """
    ### BEGIN SOLUTION
    seen = np.zeros(size, int)
    for shift in (-rate, 0, rate):
        place = np.arange(size) + shift
        seen += (0 <= place) & (place < size)
    return seen
    ### END SOLUTION


# %% tags=["check-10.1"]
def count_by_convolution(size, rate):
    """A line of ones, and three weights of one: what the convolution adds up is the count."""
    return np.rint(dilated_conv1d(np.ones(size), np.ones(3), rate)).astype(int)


check("10.1", seen_taps, {"size": 11, "rate": 4}, expected=count_by_convolution,
      torch=lambda torch, size, rate: torch.nn.functional.conv1d(
          torch.ones(1, 1, size), torch.ones(1, 1, 3), padding=rate, dilation=rate)[0, 0],
      slips={"place size is outside: the last one is size - 1": lambda size, rate: sum(
                 ((0 <= i) & (i <= size)).astype(int)
                 for i in (np.arange(size) - rate, np.arange(size), np.arange(size) + rate)),
             "the taps are rate pixels apart, not one": lambda size, rate:
                 count_by_convolution(size, 1),
             "place 0 is inside": lambda size, rate: sum(
                 ((0 < i) & (i < size)).astype(int)
                 for i in (np.arange(size) - rate, np.arange(size), np.arange(size) + rate)),
             "the tap in the middle is one as well": lambda size, rate:
                 count_by_convolution(size, rate) - 1,
             "a negative place is outside, too (NumPy counts it from the end)":
             lambda size, rate: sum((np.arange(size) + shift < size).astype(int)
                                    for shift in (-rate, 0, rate)),
             "this kernel goes round: what leaves the line on one side comes back on the other. "
             "Here zeros lie outside": lambda size, rate: np.full(size, 3)},
      hints={"named": "", "dtype": "Count in an array of ints: np.zeros(size, int).",
             "": "For each of the shifts -rate, 0, rate: add one where 0 <= place < size."})

# %% [markdown]
# ## The experiment: turn up the rate
#
# On average over a line of $n$ places, the two outer taps are inside for $n - r$ places each, so
# $1 + 2 \max(0, 1 - \frac{r}{n})$ of the three see the picture. In two dimensions a tap must be
# inside in both: the counts multiply. Here is the map of 12x15, from rate 1 to the 18 of the
# DeepLab papers, and the maps of this course's models beside it:


# %% tags=["experiment"]
def seen_on_map(height, width, rate):
    """Return how many of the nine taps fall on the map, by place: (height, width) int."""
    return np.outer(count_by_convolution(height, rate), count_by_convolution(width, rate))


def map_of(height, width, stride=16):
    """Return the size of the map of a picture: each halving rounds up."""
    return -(-height // stride), -(-width // stride)


maps = {rate: seen_on_map(*map_of(180, 240), rate) for rate in (1, 6, 12, 18)}
cases = {}
for name, image, rates in (("mini", (64, 80), (2, 4)), ("mini", (128, 160), (2, 4)),
                           ("deeplab_light", (180, 240), (6, 12)),
                           ("deeplab_light", (360, 480), (6, 12)),
                           ("deeplab_baseline", (512, 512), (6, 12, 18))):
    H, W = map_of(*image)
    label = f"{name}\n{image[0]}x{image[1]}: map {H}x{W}"
    cases[label] = {rate: seen_on_map(H, W, rate).mean() for rate in rates}
for rate, seen in maps.items():
    print(f"12x15, rate {rate:2}: {seen.mean():.2f} of 9 taps see the picture, "
          f"{seen.max()} at best")
plots.show(taps_on_maps(maps, cases), "10_aspp")

# %% [markdown]
# At rate 12 a place sees the picture through little more than one tap: the middle one. The larger
# the rate, the *less* such a kernel looks around, as soon as the map is small. The DeepLab
# authors saw it too, and gave it as their reason for one more branch, the image pooling below.
#
# ## A claim, put to the test: "a larger rate sees more"
#
# Make the rate as large as the map, and compare with a 1x1 convolution by the middle tap alone.
# Then send a random gradient back, and count the weights that receive none:

# %%
H, W = 12, 15
features = rng.standard_normal((2, H, W, 8))
kernel = rng.standard_normal((3, 3, 8, 4))
for rate in (1, 6, 12, 18):
    out, cache = ops.conv2d_forward(features, kernel, padding=rate, dilation=rate)
    middle, _ = ops.conv2d_forward(features, kernel[1:2, 1:2])
    _, dkernel, _ = ops.conv2d_backward(rng.standard_normal(out.shape), cache)
    dead = (dkernel == 0).all(axis=(2, 3)).sum()
    print(f"rate {rate:2}: differs from the 1x1 by {relative_error(out, middle):.1e}; "
          f"{dead} of 9 taps have no gradient at all")

# %% [markdown]
# From rate 15 on it *is* a 1x1 convolution, and its other eight taps are never multiplied by
# anything but zero. No loss will ever reach the random numbers that they began with. How much of
# a model is that? The baseline of this course has rates 6, 12 and 18, as in the paper:

# %%
model = build_model("deeplab_baseline", 21)
for height, width in ((180, 240), (360, 480), (512, 512)):
    H, W = -(-height // 16), -(-width // 16)
    dead = 0
    for conv in model.aspp.atrous.children.values():
        rate, weight = conv.conv.window["dilation"], conv.conv.params["weight"]
        alive = (1 + 2 * (rate < H)) * (1 + 2 * (rate < W))
        dead += (9 - alive) * weight[0, 0].size
    print(f"{height}x{width}: {dead:,} of {model.num_parameters:,} parameters never see anything "
          f"but padding ({percent(dead / model.num_parameters)})")

# %% [markdown]
# Rates belong to a map size. Whoever changes the size of the pictures, in training or only in
# evaluation, changes what the kernels see.
#
# ## ASPP: one input, several views
#
# *Atrous spatial pyramid pooling* puts several rates side by side, on the same input: a 1x1
# convolution (rate 0, one may say), a 3x3 per rate, and the mean of the whole picture. Their
# outputs are joined along the channels, and a last 1x1 convolution weighs them up. In our code:

# %%
print(inspect.getsource(ASPP.forward))

# %% [markdown]
# There is no autograd here, and none is missed: a model's backward is its forward read upside
# down. Three places need thought.
#
# **Joining goes back as splitting.** `concatenate` copies each branch into channels of its own.
# So each branch finds its gradient in exactly these channels of `dout`.
#
# **An input with several readers collects from all of them.** Let $x$ go into the branches
# $f_1, \dots, f_B$. If $x$ moves a little, every branch moves, and the loss feels the sum of it:
#
# $$dL = \sum_b \Big\langle d_b, \frac{\partial f_b}{\partial x} \, dx \Big\rangle
# \qquad\Longrightarrow\qquad
# \frac{\partial L}{\partial x}
# = \sum_{b=1}^{B} \Big(\frac{\partial f_b}{\partial x}\Big)^{\!\top} d_b$$
#
# with $d_b$ the gradient that branch $b$ is sent. That is the rule of a *fan-out*: **copies on
# the way forward, a sum on the way back.** It is a sum, not a mean, and each branch's share
# counts fully.
#
# ## Exercise 10.2: three branches
#
# Three 1x1 convolutions read the same $x$, and their outputs are joined:
# `np.concatenate([x @ weight1, x @ weight2, x @ weight3], axis=-1)`. Write the gradient of $x$.
# For one of them, $y = x W$, it is $d \, W^\top$.


# %% tags=["exercise-10.2"]
def branches_backward(dout, x, weight1, weight2, weight3):
    """Return dx (N, H, W, C) of three joined 1x1 convolutions of x (N, H, W, C).

    The weights are (C, OC1), (C, OC2), (C, OC3), and dout is (N, H, W, OC1 + OC2 + OC3).
    """
    ### BEGIN SOLUTION
    dx = np.zeros_like(x)
    start = 0
    for weight in (weight1, weight2, weight3):
        stop = start + weight.shape[1]
        dx += dout[..., start:stop] @ weight.T
        start = stop
    return dx
    ### END SOLUTION


# %% tags=["check-10.2"]
small = rng.standard_normal((2, 2, 3, 4))
weights = {f"weight{b}": rng.standard_normal((4, OC)) for b, OC in ((1, 2), (2, 3), (3, 1))}


def of_one_branch(b):
    """Return the slip that keeps what one branch sends back, and forgets the others."""
    def slip(dout, x, weight1, weight2, weight3):
        return (dout[..., :2] @ weight1.T, dout[..., 2:5] @ weight2.T,
                dout[..., 5:] @ weight3.T)[b]
    return slip


check("10.2", branches_backward, {"x": small, **weights},
      forward=lambda x, weight1, weight2, weight3: np.concatenate(
          [x @ weight1, x @ weight2, x @ weight3], axis=-1),
      wrt=("x",),
      torch=lambda torch, x, weight1, weight2, weight3: torch.cat(
          [x @ weight1, x @ weight2, x @ weight3], dim=-1),
      quantities={"the number of branches": 3},
      slips={"this is what the last branch alone sends back: the others were overwritten. "
             "Write dx += , not dx =": of_one_branch(2),
             "this is what the first branch alone sends back: add up all three":
             of_one_branch(0),
             "the last branch is missing in the sum": lambda dout, **arrays:
                 of_one_branch(0)(dout, **arrays) + of_one_branch(1)(dout, **arrays),
             "the pieces of dout lie in the order of the branches: weight1's are the first OC1":
             lambda dout, x, weight1, weight2, weight3: dout @ np.concatenate(
                 [weight3, weight2, weight1], axis=1).T},
      hints={"named": "",
             "scale": "The branches' shares are added up, not averaged.",
             "": "Cut dout after OC1 and after OC1 + OC2 channels; each piece goes back through "
                 "the transpose of its own weight, and the three results add up."})

# %% [markdown]
# ## The branch that sees everything
#
# Image pooling takes the mean over all pixels of a picture, $\bar x_c = \frac{1}{HW} \sum_i
# x_{ic}$, sends it through a 1x1 convolution, and repeats the result at every pixel, so that it
# can be joined with the others. Back it goes step by step:
#
# | forward | backward |
# |---|---|
# | `pooled = x.mean(axis=(1, 2))` | `dpooled / (H * W)` at every pixel: that was its share |
# | `mixed = pooled @ weight` | `dpooled = dmixed @ weight.T` |
# | `out[n, i, j] = mixed[n]` | a copy for every pixel: `dmixed` is the *sum* over the pixels |
#
# Copies go back as a sum, and a mean goes back as even shares: a *broadcast* of $\frac{1}{HW}$.
#
# ## Exercise 10.3: pooling and repeating


# %% tags=["exercise-10.3"]
def pooling_branch_backward(dout, x, weight):
    """Return dx (N, H, W, C) of the image pooling branch.

    Forward: the mean of x (N, H, W, C) over the pixels, times weight (C, OC), repeated at every
    pixel. dout is (N, H, W, OC).
    """
    ### BEGIN SOLUTION
    N, H, W, C = x.shape
    dmixed = dout.sum(axis=(1, 2))  # (N, OC)
    dpooled = dmixed @ weight.T  # (N, C)
    return np.broadcast_to(dpooled[:, None, None, :] / (H * W), x.shape).copy()
    ### END SOLUTION


# %% tags=["check-10.3"]
check("10.3", pooling_branch_backward,
      {"x": small, "weight": weights["weight2"]},
      forward=lambda x, weight: np.broadcast_to(
          x.mean(axis=(1, 2), keepdims=True) @ weight, (*x.shape[:3], weight.shape[1])).copy(),
      wrt=("x",),
      torch=lambda torch, x, weight: (x.mean(dim=(1, 2), keepdim=True) @ weight).expand(
          *x.shape[:3], -1),
      quantities={"H * W, the number of pixels of a picture": 6},
      slips={"every pixel is sent what stands at its own place. But the mean feels what all "
             "places are sent: sum dout over the pixels": lambda dout, x, weight:
                 dout @ weight.T / 6,
             "the pictures of a batch are apart: sum over the pixels, not over the batch":
             lambda dout, x, weight: np.broadcast_to(
                 dout.sum(axis=(0, 1, 2)) @ weight.T / 6, x.shape),
             "the pictures of a batch are apart: each has a mean of its own, over axes 1 and 2":
             lambda dout, x, weight: np.broadcast_to(
                 dout.mean(axis=(0, 1, 2)) @ weight.T, x.shape),
             "this is the gradient of a 1x1 convolution. The mean before it and the copies after "
             "it have backward passes, too": lambda dout, x, weight: dout @ weight.T},
      hints={"named": "",
             "shape": "Every pixel of a picture receives the same: broadcast to the shape of x.",
             "scale": "Repeating goes back as a sum, and the mean as a share of 1 / (H * W): "
                      "one of the two is missing or there twice (and N has no part in it).",
             "": "Sum dout over the pixels, go back through the weight, and give every pixel "
                 "1 / (H * W) of it."})

# %% [markdown]
# ## Forward, read upside down
#
# Now ASPP's backward pass. Read it beside the forward pass above, from the last line to the
# first:

# %%
print(inspect.getsource(ASPP.backward))

# %% [markdown]
# | forward, from its end | backward, from its start |
# |---|---|
# | concatenate, project, dropout | their `backward`s, from dropout to concatenate |
# | branches joined | `dbranches`, a list, one gradient each |
# | `pointwise.forward(x)` | `dx = ...`: the first share |
# | `conv.forward(x)` for each rate | `add_into(dx, ...)`: one more share each |
# | repeat, after conv, after pool | repeat, conv, pool backwards, added to `dx` |
#
# Is it right? A directional check costs two forwards whatever the size: move *all* of $x$ a
# little in a random direction $u$, and compare the slope of the loss with $\langle dx, u
# \rangle$. And is the check able to fail? Take one branch's share away from `dx` again, and see:

# %%
aspp = ASPP(16, 8, (2, 4), dropout=0.0, rng=rng, momentum=0.1).astype("float64")
x = rng.standard_normal((4, 8, 10, 16)) + rng.standard_normal((4, 1, 1, 16))
upstream = rng.standard_normal((4, 8, 10, 8))
direction = rng.standard_normal(x.shape)
slope = numeric_slope(aspp.forward, [x], [direction], upstream)

aspp.forward(x)
dbranches = aspp.concatenate.backward(aspp.project.backward(aspp.dropout.backward(upstream)))
shares = {"1x1": aspp.pointwise.backward(dbranches[0])}
for (name, conv), dbranch in zip(aspp.atrous.children.items(), dbranches[1:]):
    shares[name] = conv.backward(dbranch)
dpooled = dbranches[-1].sum(axis=(1, 2), keepdims=True)
shares["image pooling"] = aspp.pool.backward(aspp.pooled.backward(dpooled))
by_hand = sum(shares.values())

aspp.forward(x)
dx = aspp.backward(upstream)
print(f"the sum by hand against ASPP.backward: relative error {relative_error(by_hand, dx):.1e}")
rows = [("dx", "slope along u, off by", "size of the share")]
rows.append(("complete", f"{abs((dx * direction).sum() / slope - 1):.1e}", ""))
rows += [(f"without {name}", f"{abs(((dx - share) * direction).sum() / slope - 1):.1e}",
          f"{np.linalg.norm(share):.3g}") for name, share in shares.items()]
print("\n".join(ruled(rows)))

# %% [markdown]
# A forgotten share does not crash. All shapes fit, and the gradients from here up to the loss are
# right, so the loss may well fall; only the layers below are misled. A check of the numbers sees
# it at once. The course of a training may never show it.
#
# ## To think about
#
# **1.** Our pooling branch is `repeat(conv(pool(x)))`. DeepLab's code resizes the 1x1 map
# bilinearly to the size of the others. Is that the same?
#
# <details><summary>Answer</summary>
#
# Yes. Between equal neighbours bilinear interpolation gives the same value again, and a map of
# one pixel has no other neighbours. Lesson 11 shows it with a matrix: its rows sum to one.
#
# </details>
#
# **2.** The dead taps of a convolution never have a gradient. Do they stay as they are?
#
# <details><summary>Answer</summary>
#
# Weight decay still acts: without a gradient it draws them towards zero, step by step. If the
# model is later evaluated on larger pictures, these taps come alive with whatever is left of
# random numbers.
#
# </details>
#
# **3.** Two branches by mistake have the same weights. Will training tell them apart?
#
# <details><summary>Answer</summary>
#
# Yes. Equal weights give equal outputs, but the projection after the join has different random
# weights for the two, so the gradients that they are sent differ, and from the first step on they
# part. If the projection began with equal weights for them as well, they never would.
#
# </details>
