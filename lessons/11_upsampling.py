# %% [markdown]
# # 11 · Bilinear upsampling, and its transpose
#
# | | |
# |---|---|
# | goal | upsample by a matrix, go back by its transpose, never interpolate labels |
# | before this | lessons 3 and 7 |
# | read | 15 minutes |
# | exercises | 15 minutes |
# | computes | 3 s |

# %%
import time
import tracemalloc

import numpy as np

from minisegnet import datasets, losses, ops, plots
from minisegnet.datasets.transforms import resize_mask
from minisegnet.losses.upsampled import upsampled_loss_backward, upsampled_loss_forward
from minisegnet.ops.upsample import interpolation_matrix, source_positions
from minisegnet.plots.upsampling import labels_resized, shares_and_gradients
from minisegnet.tables import percent, ruled
from minisegnet.verify import check
from minisegnet.verify.gradcheck import relative_error

rng = np.random.default_rng(11)

# %% [markdown]
# ## Predict before you run
#
# A map of logits, 5x7, is enlarged four times to 20x28. Every output pixel sends a gradient of 1
# back. An input pixel in the middle has 16 output pixels to its name, and receives 16 in all.
#
# **What does the pixel in the corner receive: less than 16, exactly 16, or more?** It has fewer
# neighbours to share the outputs with; on the other hand its outer side faces nobody. Write down
# a guess. The answer is computed in the section "The experiment".

# %% [markdown]
# ## Where does an output pixel come from?
#
# A network looks at pictures on coarse maps, and has to answer for every pixel. So its last step
# enlarges the logits. Take a line first: `in_size` numbers are to become `out_size`. Think of
# pixels as small squares, side by side, so that pixel $i$ has its centre at $i + \frac12$. Both
# lines are equally long, so a centre on one lies on the other at
#
# $$\text{src} + \tfrac12 = \big(\text{dst} + \tfrac12\big) \cdot \frac{\text{in}}{\text{out}}
# \qquad\Longrightarrow\qquad
# \text{src}
# = \max\Big(0,\; \big(\text{dst} + \tfrac12\big) \frac{\text{in}}{\text{out}} - \tfrac12\Big)$$
#
# The maximum is for the border: half of the first pixel has no neighbour on its left, and repeats
# the pixel itself. Else `src` lies between two input pixels, and takes a share of each:
#
# | formula | in words |
# |---|---|
# | $i_0 = \lfloor \text{src} \rfloor$ | the pixel on the left |
# | $i_1 = \min(i_0 + 1, \text{in} - 1)$ | the one on the right; at the end of the line the same |
# | $t = \text{src} - i_0$ | the share of $i_1$; that of $i_0$ is $1 - t$ |
#
# This is `align_corners=False` in torch, and the only convention in this package. The other one,
# `align_corners=True`, maps the first centre to the first and the last to the last:
# $\text{src} = \text{dst} \cdot \frac{\text{in} - 1}{\text{out} - 1}$.
#
# Each output is a weighted sum of inputs. So all of it is one matrix $W$ (`out_size`, `in_size`):
# row `dst` holds $1 - t$ at $i_0$ and $t$ at $i_1$.
#
# ## Exercise 11.1: the matrix


# %% tags=["exercise-11.1"]
def resize_matrix(in_size, out_size):
    """Return the (out_size, in_size) float64 matrix that resizes a line, align_corners=False."""
    ### BEGIN SOLUTION
    matrix = np.zeros((out_size, in_size))
    for dst in range(out_size):
        src = max(0.0, (dst + 0.5) * in_size / out_size - 0.5)
        left = int(src)
        right = min(left + 1, in_size - 1)
        matrix[dst, left] += 1 - (src - left)
        matrix[dst, right] += src - left
    return matrix
    ### END SOLUTION


# %% tags=["check-11.1"]
def matrix_by(position, in_size, out_size):
    """Return the matrix of another convention: position(dst) gives the source."""
    matrix = np.zeros((out_size, in_size))
    for dst in range(out_size):
        src = position(dst)
        left = min(int(src), in_size - 1)
        matrix[dst, left] += 1 - (src - left)
        matrix[dst, min(left + 1, in_size - 1)] += src - left
    return matrix


def with_the_last_overwritten(in_size, out_size):
    matrix = interpolation_matrix(in_size, out_size)
    first, second, share = source_positions(in_size, out_size)
    matrix[first == second, second[first == second]] = share[first == second]
    return matrix


def with_the_last_dropped(in_size, out_size):
    matrix = interpolation_matrix(in_size, out_size)
    first, second, share = source_positions(in_size, out_size)
    matrix[first == second, first[first == second]] = 1 - share[first == second]
    return matrix


def with_the_last_before_the_first(in_size, out_size):
    matrix = np.zeros((out_size, in_size))
    for dst in range(out_size):
        src = (dst + 0.5) * in_size / out_size - 0.5
        left = int(np.floor(src))
        matrix[dst, left] += 1 - (src - left)
        matrix[dst, min(left + 1, in_size - 1)] += src - left
    return matrix


def with_shares_swapped(in_size, out_size):
    matrix = np.zeros((out_size, in_size))
    for dst, (left, right, t) in enumerate(zip(*source_positions(in_size, out_size))):
        matrix[dst, left] += t
        matrix[dst, right] += 1 - t
    return matrix


check("11.1", resize_matrix, {"in_size": 4, "out_size": 10}, expected=interpolation_matrix,
      torch=lambda torch, in_size, out_size: torch.nn.functional.interpolate(
          torch.eye(in_size, dtype=torch.float64)[None], size=out_size, mode="linear",
          align_corners=False)[0].T,
      slips={"this is align_corners=True: here centres of squares are mapped":
             lambda in_size, out_size: matrix_by(
                 lambda dst: dst * (in_size - 1) / (out_size - 1), in_size, out_size),
             "the halves are missing: pixel i has its centre at i + 1/2":
             lambda in_size, out_size: matrix_by(
                 lambda dst: dst * in_size / out_size, in_size, out_size),
             "max(0, src) is missing: the first outputs lie before the first centre":
             lambda in_size, out_size: matrix_by(
                 lambda dst: (dst + 0.5) * in_size / out_size - 0.5, in_size, out_size),
             "at the end of the line left and right are the same pixel, and the second share "
             "overwrites the first: write +=": with_the_last_overwritten,
             "at the end of the line the last pixel takes both shares: every row sums to one":
             with_the_last_dropped,
             "max(0, src) is missing: the floor is -1 there, which NumPy takes for the last pixel":
             with_the_last_before_the_first,
             "the shares are swapped: t, the distance from i0, is the share of i1":
             with_shares_swapped,
             "the last half is missing: pixel i has its centre at i + 1/2, so src is less by 1/2":
             lambda in_size, out_size: matrix_by(
                 lambda dst: (dst + 0.5) * in_size / out_size, in_size, out_size),
             "this is nearest neighbour: each output takes from two pixels, 1 - t and t":
             lambda in_size, out_size: matrix_by(
                 lambda dst: int((dst + 0.5) * in_size / out_size), in_size, out_size)},
      hints={"named": "", "shape": "A row for every output, a column for every input.",
             "": "src = max(0, (dst + 0.5) * in_size / out_size - 0.5); 1 - t at its floor i0, t "
                 "at i1 = min(i0 + 1, in_size - 1)."})

# %%
print("from 3 to 6, align_corners=False:")
print(interpolation_matrix(3, 6))

# %% [markdown]
# **Each row sums to one**: two shares of one whole. So a constant stays the same constant, and an
# enlarged map has no values beyond those of the small one.
#
# A picture is enlarged along its columns and along its rows, each by its own matrix, for every
# channel alike:
#
# $$y = W_y \, x \, W_x^\top \qquad\qquad
# y_{abc} = \sum_{i, j} (W_y)_{ai} \, (W_x)_{bj} \, x_{ijc}$$
#
# `np.einsum` takes the second form as it stands. The package takes the columns first, while there
# are few rows, and both steps are matrix products:

# %%
x = rng.standard_normal((2, 5, 7, 3))
wy, wx = interpolation_matrix(5, 20), interpolation_matrix(7, 28)
out, cache = ops.upsample_bilinear_forward(x, (20, 28))
by_formula = np.einsum("ai,nijc,bj->nabc", wy, x, wx)
print(f"package against formula: relative error {relative_error(out, by_formula):.1e}")
ones, _ = ops.upsample_bilinear_forward(np.ones((1, 5, 7, 1)), (23, 31))
print(f"a map of ones, 5x7 to 23x31: from {ones.min():.15f} to {ones.max():.15f}")

# %% [markdown]
# ## Backward: the transpose
#
# What does a linear map's gradient look like? With $y = A x$ the loss moves by
#
# $$\langle d, dy \rangle = \langle d, A \, dx \rangle = \langle A^\top d, \, dx \rangle
# \qquad\Longrightarrow\qquad \frac{\partial L}{\partial x} = A^\top d$$
#
# **The backward pass of a linear map is its transpose.** Not the inverse, which need not exist,
# and not "shrinking the gradient again". Output $a$ took a share $W_{ai}$ of input $i$; on the
# way back input $i$ receives the same share $W_{ai}$ of what output $a$ is sent, from every
# output that read it.
#
# ## Exercise 11.2: upsampling's backward


# %% tags=["exercise-11.2"]
def upsample_backward(dout, x, wy, wx):
    """Return dx (N, H, W, C) of y = wy x wx^T.

    dout (N, OH, OW, C), x (N, H, W, C), wy (OH, H), wx (OW, W).
    """
    ### BEGIN SOLUTION
    return np.einsum("ai,nabc,bj->nijc", wy, dout, wx)
    ### END SOLUTION


# %% tags=["check-11.2"]
small = rng.standard_normal((2, 3, 4, 2))


def shrunk_again(dout, x, wy, wx):
    return np.einsum("ia,nabc,jb->nijc", interpolation_matrix(len(wy), wy.shape[1]), dout,
                     interpolation_matrix(len(wx), wx.shape[1]))


check("11.2", upsample_backward,
      {"x": small, "wy": interpolation_matrix(3, 7), "wx": interpolation_matrix(4, 9)},
      forward=lambda x, wy, wx: np.einsum("ai,nijc,bj->nabc", wy, x, wx), wrt=("x",),
      torch=lambda torch, x, wy, wx: torch.nn.functional.interpolate(
          x.permute(0, 3, 1, 2), size=(7, 9), mode="bilinear",
          align_corners=False).permute(0, 2, 3, 1),
      slips={"this shrinks dout bilinearly. That is another linear map, not the transpose: "
             "use wy and wx themselves": shrunk_again,
             "this is the pseudo-inverse, which undoes the enlargement. A gradient goes back "
             "through the transpose": lambda dout, x, wy, wx: np.einsum(
                 "ia,nabc,jb->nijc", np.linalg.pinv(wy), dout, np.linalg.pinv(wx))},
      quantities={"the area's factor, OH * OW / (H * W)": 7 * 9 / 12},
      hints={"named": "",
             "scale": "The shares are added up as they are; nothing is averaged.",
             "": "As in the forward einsum, with the roles changed: sum over a and b, the "
                 "outputs, and keep i and j."})

# %% [markdown]
# ## The adjoint test
#
# There is a check of a transpose that needs no differences and no derivative, only two random
# arrays: $\langle A x, y \rangle = \langle x, A^\top y \rangle$ must hold to the last digits.
# Here it is for the package, and for two impostors:

# %%
y = rng.standard_normal(out.shape)
candidates = {
    "the transpose": ops.upsample_bilinear_backward(y, cache),
    "shrinking bilinearly": ops.upsample_bilinear_forward(y, (5, 7))[0],
    "the pseudo-inverse": np.einsum("ia,nabc,jb->nijc", np.linalg.pinv(wy), y,
                                    np.linalg.pinv(wx))}
left = (out * y).sum()
rows = [("backward", "<Ax, y>", "<x, backward(y)>", "sum of dx", "sum of dout")]
rows += [(name, f"{left:.6f}", f"{(x * dx).sum():.6f}", f"{dx.sum():.6f}", f"{y.sum():.6f}")
         for name, dx in candidates.items()]
print("\n".join(ruled(rows)))

# %% [markdown]
# The last two columns show a second property, which follows from the rows' sums: all of the
# gradient that is sent arrives, $\sum dx = \sum dout$. It is shared out, and none is lost.
#
# ## The experiment: what each pixel receives
#
# Rows sum to one. What do *columns* sum to? That is what an input pixel receives when every
# output sends 1. Turn one knob, the convention:

# %% tags=["experiment"]
matrices, received = {}, {}
for name, matrix_of in (
        ("align_corners=False", interpolation_matrix),
        ("align_corners=True", lambda n, m: matrix_by(lambda d: d * (n - 1) / (m - 1), n, m))):
    wy_of, wx_of = matrix_of(5, 20), matrix_of(7, 28)
    matrices[name] = wx_of
    received[name] = np.outer(wy_of.sum(axis=0), wx_of.sum(axis=0))
    inner, corner = received[name][2, 3], received[name][0, 0]
    print(f"{name + ':':20} a corner receives {corner:.3f}, the pixel in the middle {inner:.3f}")
plots.show(shares_and_gradients(matrices, received), "11_upsampling")

# %% [markdown]
# With squares (`align_corners=False`) and a whole factor **every pixel receives the same**: what
# the border pixel misses because its outer neighbour does not exist, it gets back because it
# stands in for that neighbour. With `align_corners=True` the line ends in the *middle* of the
# outermost pixels. Their outer half is cut off, so along an edge they receive much less than the
# others do, and a corner loses on both sides. Neither is wrong. But a model trained with one and
# run with the other sees its maps shifted: not in the middle, and most towards the borders.
#
# It is the *sum* that is the same, not the shares. If the gradients of the outputs are random and
# independent, the size of what arrives goes with the root of the sum of the *squared* shares, and
# there the border is ahead: it has outputs all to itself. And where the factor is not a whole
# number, the sums ripple a little:

# %%
print(f"7 to 28, sums of the squared shares: "
      f"{(interpolation_matrix(7, 28) ** 2).sum(axis=0).round(3)}")
print(f"8 to 19, sums of the shares:         "
      f"{interpolation_matrix(8, 19).sum(axis=0).round(3)}")

# %% [markdown]
# ## A claim, put to the test: "a mask is resized like a picture, and then rounded"
#
# A mask is an array of small integers, so any resizing function takes it. Between background (0)
# and a living room (4), halfway, lies 2: a door. Let us count the pixels whose class is none of
# the (up to four) labels they were made from:

# %%
plans = datasets.FloorPlans("val", length=24)
names = plans.class_names
masks = [plans[i].mask for i in range(len(plans))]
size = (96, 120)  # from 128x160


def resized_as_a_picture(mask, size):
    """Return the mask resized bilinearly and rounded, and which of its pixels are invented."""
    wy, wx = (interpolation_matrix(n, m) for n, m in zip(mask.shape, size))
    resized = np.rint(wy @ mask @ wx.T).astype(int)
    top, bottom, _ = source_positions(mask.shape[0], size[0])
    left, right, _ = source_positions(mask.shape[1], size[1])
    sources = np.stack([mask[np.ix_(rows, columns)]
                        for rows in (top, bottom) for columns in (left, right)])
    return resized, (sources != resized).all(axis=0)


bilinear, invented = map(np.stack, zip(*(resized_as_a_picture(mask, size) for mask in masks)))
nearest = np.stack([resize_mask(mask, size) for mask in masks])
K = len(names)
there = np.bincount(nearest.ravel(), minlength=K)
made_up = np.bincount(bilinear[invented], minlength=K)
rows = [("class", "pixels, nearest", "invented", "invented / there")]
rows += [(names[c], f"{there[c]:,}", f"{made_up[c]:,}", percent(made_up[c] / there[c]))
         for c in np.argsort(-made_up) if made_up[c]]
print("\n".join(ruled(rows)))
print(f"\nin all {invented.sum():,} pixels, {percent(invented.mean())}")

# %% [markdown]
# What is invented lies on the outlines, where a network has the hardest time anyway, and goes to
# the classes whose *numbers* lie in the middle. Renumber the classes and others suffer. Rounding
# cannot put it right: the mean of two names is no name. And an ignore label of 255 beside a 0
# could give any class there is. The picture shows two plans:

# %% tags=["experiment"]
shown = np.argsort(-invented.sum(axis=(1, 2)))[:2]
plots.show(labels_resized([[masks[i], nearest[i], bilinear[i], invented[i]] for i in shown],
                          ["mask, 128x160", "nearest, 96x120", "bilinear and rounded",
                           "classes nobody drew"], names, plans.palette),
           "11_upsampling_labels")

# %% [markdown]
# ## Exercise 11.3: nearest neighbour
#
# The right way copies: each output pixel takes the label of the square that its centre lies in,
# $\lfloor (\text{dst} + \frac12) \cdot \frac{\text{in}}{\text{out}} \rfloor$, along both axes.


# %% tags=["exercise-11.3"]
def resize_labels(mask, size):
    """Return the mask (H, W) at size = (OH, OW) by nearest neighbour, with its dtype."""
    ### BEGIN SOLUTION
    H, W = mask.shape
    OH, OW = size
    rows = ((np.arange(OH) + 0.5) * H / OH).astype(int)
    columns = ((np.arange(OW) + 0.5) * W / OW).astype(int)
    return mask[rows][:, columns]
    ### END SOLUTION


# %% tags=["check-11.3"]
labels = rng.integers(0, 12, (6, 9)).astype(np.uint8)


def picked_by(mask, size, source):
    """Return the mask of another rule: source(dst, in, out) gives the index along an axis."""
    return mask[np.ix_(*([source(dst, n, m) for dst in range(m)]
                         for n, m in zip(mask.shape, size)))]


check("11.3", resize_labels, {"mask": labels, "size": (16, 13)}, expected=resize_mask,
      torch=lambda torch, mask, size: torch.nn.functional.interpolate(
          mask[None, None], size=size, mode="nearest-exact")[0, 0],
      slips={"the halves are missing: this is torch's old mode \"nearest\", which takes the pixel "
             "to the left of the centre": lambda mask, size: mask[
                 np.ix_(*(np.arange(n) * m // n for n, m in zip(size, mask.shape)))],
             "labels were interpolated and rounded: that invents classes": lambda mask, size:
             resized_as_a_picture(mask, size)[0],
             "this is the pixel to the left of exercise 11.1, with its - 1/2. A label belongs to "
             "its whole square: the floor without it": lambda mask, size: picked_by(
                 mask, size, lambda dst, n, m: int(max(0, (dst + 0.5) * n / m - 0.5))),
             "that is rounded; the square that a point lies in is the floor": lambda mask, size:
             picked_by(mask, size, lambda dst, n, m: min(n - 1, round((dst + 0.5) * n / m))),
             "this maps first centres to first and last to last, align_corners=True":
             lambda mask, size: picked_by(
                 mask, size, lambda dst, n, m: round(dst * (n - 1) / (m - 1)))},
      hints={"named": "",
             "dtype": "Labels stay integers: pick them by an index, and do not compute with them.",
             "": "Two lists of indices, rows and columns, then mask[rows][:, columns]."})

# %% [markdown]
# ## Never make the large logits
#
# Back to logits, where interpolation is right. The full-size logits are among the largest arrays
# of a training step, and their gradient is as large again. Yet all that anybody wants is a loss,
# and the gradient of the *small* logits. Bilinear upsampling reads two rows at a time, and
# cross-entropy one pixel. So enlarge the columns first, while there are few rows (the result is
# `wide`), and work in bands of rows: enlarge a band, turn it into its gradient in place, bring
# that back through the transpose, and forget it. $P$ is the number of pixels, and the products are
# taken for every class:
#
# | step | formula |
# |---|---|
# | once: enlarge the columns | `wide = coarse @ wx.T` |
# | each band: enlarge its rows | `z = wy[rows] @ wide` |
# | each band: loss, and gradient in place | `z = (softmax(z) - onehot) / P` |
# | each band: back | `dwide += wy[rows].T @ z` |
# | once: back along the columns | `dcoarse = dwide @ wx` |
#
# Here is one training loss, both ways, with the most memory that was in use:

# %%
N, H, W, K = 2, 96, 128, 21
coarse = rng.standard_normal((N, H, W, K)).astype(np.float32)
target = rng.integers(0, K, (N, 4 * H, 4 * W)).astype(np.uint8)


def one_after_the_other():
    logits, upsample_cache = ops.upsample_bilinear_forward(coarse, target.shape[1:])
    loss, loss_cache = losses.cross_entropy_forward(logits, target)
    dlogits = losses.cross_entropy_backward(1.0, loss_cache)
    return loss, ops.upsample_bilinear_backward(dlogits, upsample_cache)


def band_by_band():
    loss, loss_cache = upsampled_loss_forward(coarse, target, "ce")
    return loss, upsampled_loss_backward(1.0, loss_cache)


rows, found = [("way", "loss", "peak memory", "time")], []
for function in (one_after_the_other, band_by_band):
    function()  # warm up
    start = time.perf_counter()
    found.append(function())
    seconds = time.perf_counter() - start
    tracemalloc.start()
    function()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    rows.append((function.__name__, f"{found[-1][0]:.6f}", f"{peak / 2 ** 20:.0f} MiB",
                 f"{1000 * seconds:.0f} ms"))
print("\n".join(ruled(rows)))
print(f"full-size logits: {target.size * K * 4 / 2 ** 20:.0f} MiB; the gradients differ by "
      f"{relative_error(found[1][1], found[0][1]):.1e}")

# %% [markdown]
# The same numbers, to float32's rounding, from less memory than one array of full-size logits
# has. It is exact because softmax and loss look at one pixel at a time. A loss that must see
# *all* pixels at once cannot be cut into bands like this: dice needs its sums first (two sweeps),
# and the Lovász loss (`--loss lovasz`, made from IoU) sorts all pixels, so there, and only there,
# the large logits do exist.
#
# ## To think about
#
# **1.** Softmax first and then upsampling, or upsampling first and then softmax? Is it the same?
#
# <details><summary>Answer</summary>
#
# No: softmax is not linear. Both give probabilities that sum to one, since rows sum to one.
# Between a pixel that is sure of class A and one that is sure of class B, enlarged probabilities
# change evenly, while enlarged logits make a steep step: outlines are sharper. Training and
# prediction must do the same.
#
# </details>
#
# **2.** Shift the coarse logits of a pixel by a constant, the same for all classes. What happens
# to the enlarged softmax?
#
# <details><summary>Answer</summary>
#
# Nothing. Every enlarged pixel's logits are shifted too, by a weighted mean of its sources'
# shifts, but by the same amount for all classes, and softmax does not feel that. The band-by-band
# code uses it: it brings the maximum of the *coarse* logits to 0, and saves the search at full
# size.
#
# </details>
#
# **3.** The matrix form of nearest neighbour: what are its rows, and what would its backward be?
#
# <details><summary>Answer</summary>
#
# A single 1 in each row. The transpose adds up, in each input pixel, the gradients of all its
# copies. For features it is a fair way to enlarge, and cheap; for labels no gradient is needed.
#
# </details>
