# %% [markdown]
# # 0 · The house, and how to trust a gradient
#
# | | |
# |---|---|
# | goal | find your way in the package, and check any backward pass by yourself |
# | before this | the chain rule, NumPy arrays |
# | read | 15 minutes |
# | exercises | 15 minutes |
# | computes | 3 s |

# %%
import numpy as np

from minisegnet import losses, ops, plots
from minisegnet.layers import BatchNorm2d
from minisegnet.models import build_model
from minisegnet.plots.gradient_check import error_over_step
from minisegnet.tables import ruled
from minisegnet.verify import check
from minisegnet.verify.exercises import judge
from minisegnet.verify.gradcheck import numeric_gradient, relative_error

rng = np.random.default_rng(0)

# %% [markdown]
# ## Predict before you run
#
# You have written a backward pass, and you want to know whether it is right. So you nudge an input
# by a small step $h$, see by how much the output changes, and divide by the step. The smaller the
# step, the closer this comes to the derivative: so says the definition.
#
# **Which step gives the most accurate answer in float64: $10^{-2}$, $10^{-5}$, $10^{-8}$ or
# $10^{-12}$?** And what would you choose in float32? Write down both. The answer is computed in
# "The experiment".

# %% [markdown]
# ## A tour of the house
#
# There is no autograd here. Every operation is a pair of plain functions, `<op>_forward` and
# `<op>_backward`. The forward returns its result and a *cache*: what the backward will need.

# %%
x = rng.standard_normal((2, 4, 5, 3))  # N pictures, H rows, W columns, C channels
weight = rng.standard_normal((3, 3, 3, 6))  # KH, KW, C in, OC out
out, cache = ops.conv2d_forward(x, weight, padding=1)
print("out", out.shape, "  cache:", ", ".join(cache._fields))

dout = rng.standard_normal(out.shape)  # the gradient of the loss with respect to `out`
dx, dweight, dbias = ops.conv2d_backward(dout, cache)
print("dx", dx.shape, "  dweight", dweight.shape, "  dbias:", dbias)

# %% [markdown]
# Three habits hold everywhere:
#
# - **NHWC**: pictures are (N, H, W, C), channels last. Labels are (N, H, W), logits (N, H, W, K).
# - **Names**: the gradient of `weight` is `dweight`, and it has the shape of `weight`. What comes
#   from above is `dout`.
# - **dtype**: code follows the dtype of its input. float32 to train, float64 to check.
#
# A *layer* holds the parameters of an op, keeps its cache, and adds the gradients up in `grads`.
# A *model* is a tree of layers, and its backward is its forward read upside down.

# %%
layer = BatchNorm2d(3).astype(np.float64)
layer.forward(x)
layer.backward(rng.standard_normal(x.shape))
print("params:", {name: array.shape for name, array in layer.params.items()})
print("grads:", {name: np.round(array, 2).tolist() for name, array in layer.grads.items()})

model = build_model("mini", num_classes=12)
pictures = rng.standard_normal((2, 32, 40, 3)).astype(np.float32)
labels = rng.integers(0, 12, (2, 32, 40))
loss, cache = losses.cross_entropy_forward(model.forward(pictures), labels)
model.backward(losses.cross_entropy_backward(1.0, cache))
gradients = dict(model.named_gradients())
print(f"mini: {model.num_parameters:,} parameters in {len(gradients)} arrays, loss {loss:.3f}")
print("the first and the last:", *[list(gradients)[i] for i in (0, -1)])

# %% [markdown]
# | where | what |
# |---|---|
# | `minisegnet/ops/` | the ops; `conv2d.py` for NumPy, `conv2d.cu` beside it for a GPU |
# | `minisegnet/losses/` | cross-entropy, focal, dice and others: pairs of functions again |
# | `minisegnet/layers.py`, `blocks.py`, `models/` | what holds parameters, up to whole networks |
# | `minisegnet/optim/` | AdamW and others, learning-rate schedules |
# | `minisegnet/metrics.py` | the scores (lesson 2) |
# | `minisegnet/imbalance/` | the subject of this course |
# | `minisegnet/verify/` | what judges your exercises; `python -m minisegnet.verify` checks all |
# | `python -m minisegnet.train` | trains; `--help` shows what can be turned |

# %% [markdown]
# ## The derivation: two-sided is better than one-sided
#
# Taylor's theorem says how far a difference is from the derivative. One-sided:
#
# $$\frac{f(x + h) - f(x)}{h} = f'(x) + \frac{h}{2} f''(x) + \dots$$
#
# Two-sided, $f''$ drops out: its term in $f(x \pm h)$ is the same on both sides. The first error
# left is much smaller:
#
# $$\frac{f(x + h) - f(x - h)}{2h} = f'(x) + \frac{h^2}{6} f'''(x) + \dots$$
#
# So halve the step and the error shrinks to a quarter. But a computer rounds: $f(x \pm h)$ has a
# relative error of about $\varepsilon$ ($1.1 \cdot 10^{-16}$ in float64, $6 \cdot 10^{-8}$ in
# float32), and dividing by $2h$ blows it up to about $\varepsilon / h$, which *grows* as the step
# shrinks.
#
# Most functions here have many outputs. One number is made of them by a weighted sum with the
# upstream gradient, $L = \sum_i u_i f_i(x)$, since its gradient is what `backward(dout=u)`
# returns. Then every element of $x$ is moved in turn.
#
# | formula | code |
# |---|---|
# | $f(x + h e_j) - f(x - h e_j)$ | `change = f(x + h * e) - f(x - h * e)` |
# | $\sum_i u_i\, [\dots]_i / 2h$ | `(upstream * change).sum() / (2 * h)` |
#
# ## Exercise 0.1: a gradient without calculus
#
# Write it for an `x` of any shape. `np.ndindex(x.shape)` goes through all indices. Leave `x`
# itself as it is. Then run the cell below it, which checks your answer; in notebooks its code is
# folded away, for it knows the usual slips.


# %% tags=["exercise-0.1"]
def central_differences(f, x, upstream, h):
    """Return the gradient of sum(upstream * f(x)) with respect to x, shaped as x.

    x is a float64 array of any shape, f(x) an array shaped as upstream, h the step, a float.
    """
    ### BEGIN SOLUTION
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        e = np.zeros_like(x)
        e[index] = 1
        change = f(x + h * e) - f(x - h * e)
        gradient[index] = (upstream * change).sum() / (2 * h)
    return gradient
    ### END SOLUTION


# %% tags=["check-0.1"]
def total_per_row(x):
    """A function whose outputs have another shape than its input: (3, 4) to (3,)."""
    return np.sin(x).sum(axis=1) ** 2


def one_sided(f, x, upstream, h):
    """The slip that the check below looks for."""
    return np.array([[(upstream * (f(x + h * e) - f(x))).sum() / h for e in row]
                     for row in np.eye(x.size).reshape(*x.shape, *x.shape)])


check("0.1", central_differences,
      {"f": total_per_row, "x": rng.standard_normal((3, 4)), "upstream": rng.standard_normal(3),
       "h": 1e-4},
      expected=lambda f, x, upstream, h: numeric_gradient(f, x, upstream, step=h), limit=1e-7,
      hints={"": "Move one element of x by h in both directions, multiply the change of f by "
                 "upstream, sum, divide by 2h."},
      slips={
          "twice the right answer: from x - h to x + h it is a way of 2h":
              lambda f, x, upstream, h: 2 * numeric_gradient(f, x, upstream, step=h),
          "these are one-sided differences: take f(x + h) - f(x - h)": one_sided,
          "the upstream gradient is not used: weigh the changes of the outputs with it":
              lambda f, x, upstream, h: numeric_gradient(f, x, np.ones_like(upstream), step=h),
          "all elements of x are moved at once: nudge one at a time":
              lambda f, x, upstream, h: np.full(x.shape, (
                  upstream * (f(x + h) - f(x - h))).sum() / (2 * h))})

# %% [markdown]
# The package's own is `minisegnet.verify.gradcheck.numeric_gradient`. Here it is at work on the
# convolution above, and here is the number by which two gradients are compared: the length of the
# difference over the length of the expected one.

# %%
numeric = numeric_gradient(lambda w: ops.conv2d_forward(x, w, padding=1)[0], weight, dout)
print(f"dweight of the convolution against central differences: "
      f"relative error {relative_error(dweight, numeric):.1e}")
by_hand = np.linalg.norm(dweight - numeric) / np.linalg.norm(numeric)
print(f"the same, inline: {by_hand:.1e}")

# %% [markdown]
# Why *relative*? A gradient of size $10^{-9}$ that is wrong throughout is only $10^{-9}$ away from
# the right one. An absolute tolerance would wave it through.
#
# ## The experiment: one knob, the step
#
# The function is the sigmoid $s(x)$, whose derivative $s(1 - s)$ is known. We take its differences
# at 200 random places with steps from $10^{-1}$ to $10^{-13}$, and draw the relative error: once
# one-sided, once two-sided; once in float64, once in float32.

# %%
steps = 10.0 ** np.arange(-1, -13.25, -0.25)
places = rng.standard_normal(200)


def sigmoid(x):
    """The package's: its result has the dtype of x."""
    return ops.sigmoid_forward(x)[0]


def difference_errors(dtype, two_sided):
    """Return the relative error of the differences of the sigmoid at each of `steps`."""
    z = places.astype(dtype)
    truth = sigmoid(z.astype(np.float64)) * (1 - sigmoid(z.astype(np.float64)))
    errors = []
    for h in steps.astype(dtype):
        ahead, behind = (z + h, z - h) if two_sided else (z + h, z)
        width = 2 * h if two_sided else h
        errors.append(relative_error((sigmoid(ahead) - sigmoid(behind)) / width, truth))
    return np.array(errors)


curves = {f"{sides}, {dtype.__name__}": difference_errors(dtype, sides == "two-sided")
          for dtype in (np.float64, np.float32) for sides in ("two-sided", "one-sided")}
rows = [("differences", "best step", "relative error there")]
rows += [(label, f"{steps[errors.argmin()]:.0e}", f"{errors.min():.0e}")
         for label, errors in curves.items()]
print("\n".join(ruled(rows)))
rows = [("two-sided, step", "error in float64", "error in float32")]
for h in (1e-2, 1e-5, 1e-8, 1e-12):
    i = np.abs(steps - h).argmin()
    rows.append((f"{h:.0e}", *(f"{curves[f'two-sided, {dtype}'][i]:.0e}"
                               for dtype in ("float64", "float32"))))
print("\n" + "\n".join(ruled(rows)))

plots.show(error_over_step(steps, curves, marked={"the package's step": 1e-5}),
           "00_gradient_check")

# %% [markdown]
# Every curve is a V. On its right arm the step is too coarse, and Taylor's error falls with $h$
# (one-sided) or $h^2$ (two-sided: twice as steep). On its left arm the step is too fine: hardly
# any digit of $f(x + h) - f(x - h)$ is left, and rounding rules. The bottom is where both are
# alike: $h^2 \approx \varepsilon / h$, so $h \approx \varepsilon^{1/3}$.
#
# In float32 the V is cut off high up. Its best step is a thousand times as large, it leaves a
# handful of digits for a function as tame as this one, and with the step that suits float64
# hardly two. (Where the curves run flat at 1, `x + h` is rounded to `x`, and the difference is
# 0.) A small wrong term would drown in this. That is why gradients are **checked in float64 and
# trained in float32**: the same code runs in both, since it follows the dtype of its input.

# %%
for dtype in (np.float64, np.float32):
    eps = np.finfo(dtype).eps / 2
    print(f"{dtype.__name__}: eps {eps:.1e}, its cube root {eps ** (1 / 3):.0e}")

# %% [markdown]
# ## Exercise 0.2: your first backward pass
#
# Batch norm ends by giving every channel a scale and a shift: `out = weight * x + bias`, with `x`
# (N, H, W, C) and one number per channel in `weight` and `bias` (C,). Each of these numbers acts
# on every pixel of its channel. So nudging it changes many outputs, and its gradient is a *sum*:
#
# $$\frac{\partial L}{\partial \text{weight}_c}
#   = \sum_{n,h,w} \text{dout}_{nhwc} \; x_{nhwc}$$
#
# What are $\partial L / \partial x_{nhwc}$ and $\partial L / \partial \text{bias}_c$?
#
# **What is copied on the way forward is summed on the way back**: you will need this sentence in
# nearly every lesson.


# %% tags=["exercise-0.2"]
def scale_and_shift_backward(dout, x, weight, bias):
    """Return (dx, dweight, dbias) of out = weight * x + bias.

    dout and x are (N, H, W, C), weight and bias (C,); each gradient is shaped as its array.
    """
    ### BEGIN SOLUTION
    dx = weight * dout
    dweight = (dout * x).sum(axis=(0, 1, 2))
    dbias = dout.sum(axis=(0, 1, 2))
    return dx, dweight, dbias
    ### END SOLUTION


# %% tags=["check-0.2"]
check("0.2", scale_and_shift_backward,
      {"x": rng.standard_normal((2, 3, 4, 5)), "weight": rng.standard_normal(5),
       "bias": rng.standard_normal(5)},
      forward=lambda x, weight, bias: weight * x + bias,
      torch=lambda torch, x, weight, bias: weight * x + bias,
      hints={"scale": "The gradient of a sum is a sum, not a mean.",
             "sum": "One number per channel: sum over N, H and W, without keepdims.",
             "shape": "One number per channel: sum over N, H and W.",
             "": "dx passes through the factor weight; weight and bias collect from all pixels."})

# %% [markdown]
# ## How `check` answers
#
# It says **TODO** while the exercise raises NotImplementedError or returns nothing, **PASS** with
# the error it found, or **FAIL** with the worst element, yours beside the right one, and often
# with a guess at what happened. It draws a *random* upstream gradient, takes central differences
# in float64, and asks torch as well where torch is installed. It never stops the notebook.
#
# Here it judges four answers to the same question, what is the gradient of $\sin x$:

# %%
answers = {
    "nothing": lambda dout, x: None,
    "-cos": lambda dout, x: -dout * np.cos(x),
    "no dout": lambda dout, x: np.cos(x),
    "right": lambda dout, x: dout * np.cos(x),
}
for name, answer in answers.items():
    result = judge(name, answer, {"x": rng.standard_normal((2, 3))}, forward=lambda x: np.sin(x))
    print(f"{name:8} {result.verdict}  {' '.join(result.lines)}"
          + f"\n{'':14}hint: {result.hint}" * bool(result.hint))

# %% [markdown]
# ## An upstream gradient of ones proves nothing
#
# Many people check a backward pass with `out.sum()`, which is an upstream gradient of all ones.
# Take batch normalisation without scale and shift, $\hat x = (x - \mu) / \sigma$ with mean and
# deviation of each channel. Its backward is (lesson 9 derives it)
#
# $$dx = \frac{1}{\sigma} \bigl( dout - \text{mean}(dout) - \hat x \;\text{mean}(dout \cdot \hat x)
# \bigr)$$
#
# We plant a mistake: the last term is forgotten.

# %%
weight, bias = np.ones(3), np.zeros(3)
AXES = (0, 1, 2)


def normalise(x):
    """Batch norm in training without scale and shift, (N, H, W, C)."""
    return ops.batch_norm_forward(x, weight, bias, np.zeros(3), np.ones(3), training=True)[0]


def package_backward(dout, x):
    """The package's gradient with respect to x."""
    _, cache, _, _ = ops.batch_norm_forward(x, weight, bias, np.zeros(3), np.ones(3),
                                            training=True)
    return ops.batch_norm_backward(dout, cache)[0]


def right_backward(dout, x):
    """The formula above."""
    inv_std = 1 / np.sqrt(x.var(axis=AXES) + 1e-5)
    xhat = (x - x.mean(axis=AXES)) * inv_std
    return inv_std * (dout - dout.mean(axis=AXES) - xhat * (dout * xhat).mean(axis=AXES))


def wrong_backward(dout, x):
    """The last term is forgotten."""
    return (dout - dout.mean(axis=AXES)) / np.sqrt(x.var(axis=AXES) + 1e-5)


def zero_backward(dout, x):
    """Somebody has not even begun."""
    return np.zeros_like(x)


upstreams = {"ones": np.ones_like(x), "random": rng.standard_normal(x.shape)}
rows = [("largest difference from central differences", *upstreams)]
for name, backward in {"package": package_backward, "formula": right_backward,
                       "last term forgotten": wrong_backward, "all zeros": zero_backward}.items():
    rows.append((name, *(f"{np.abs(backward(u, x) - numeric_gradient(normalise, x, u)).max():.0e}"
                         for u in upstreams.values())))
print("\n".join(ruled(rows)))

# %% [markdown]
# With ones, all four pass, even the one that returns nothing but zeros. The outputs of a
# normalisation have mean 0 whatever you do to `x`; their sum cannot change, so the gradient of the
# sum *is* zero. Softmax has the same blind spot: its probabilities always sum to 1.

# %%
z = rng.standard_normal((6, 4))


def softmax(z):
    """Probabilities (..., K)."""
    exp = np.exp(z - z.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)


def softmax_backward(dout, z):
    """p * (dout - sum over classes of p * dout)."""
    p = softmax(z)
    return p * (dout - (p * dout).sum(axis=-1, keepdims=True))


def wrong_softmax_backward(dout, z):
    """The plain mean of dout in place of the mean that is weighted with p."""
    return softmax(z) * (dout - dout.mean(axis=-1, keepdims=True))


for name, backward in (("right", softmax_backward), ("wrong", wrong_softmax_backward)):
    differences = [np.abs(backward(u, z) - numeric_gradient(softmax, z, u)).max()
                   for u in (np.ones_like(z), rng.standard_normal(z.shape))]
    print("softmax, {}: ones {:.0e}, random {:.0e}".format(name, *differences))

# %% [markdown]
# A check that cannot fail looks just like a check of correct code. So: **random upstream,
# always**, and once in a while break your code on purpose and see the check complain.
#
# ## Gradients that are zero by mathematics
#
# A batch norm adds a bias. A linear map follows, say a 1x1 convolution, and then another batch
# norm. The bias shifts a channel by a constant; the linear map makes other constants of it; the
# second batch norm takes every channel's mean away. **The bias has no effect at all**, and its
# true gradient is 0. What the computer finds is rounding noise:

# %%
mix = rng.standard_normal((1, 1, 3, 3))  # a 1x1 convolution


def two_norms(x, weight, bias):
    """Batch norm with weight and bias, a 1x1 convolution, batch norm."""
    out = ops.batch_norm_forward(x, weight, bias, np.zeros(3), np.ones(3), training=True)[0]
    return normalise(ops.conv2d_forward(out, mix)[0])


def two_norms_backward(dout, x, weight, bias):
    """Return (dx, dweight, dbias): the forward read upside down."""
    out, norm_cache, _, _ = ops.batch_norm_forward(x, weight, bias, np.zeros(3), np.ones(3),
                                                   training=True)
    mixed, conv_cache = ops.conv2d_forward(out, mix)
    dout, _, _ = ops.conv2d_backward(package_backward(dout, mixed), conv_cache)
    return ops.batch_norm_backward(dout, norm_cache)


dout = rng.standard_normal(x.shape)
point = {"x": x, "weight": rng.standard_normal(3), "bias": rng.standard_normal(3)}
rows = [("gradient", "length", "length by differences", "relative error")]
for name, gradient in zip(point, two_norms_backward(dout, **point)):
    numeric = numeric_gradient(lambda moved: two_norms(**{**point, name: moved}), point[name],
                               dout)
    rows.append((f"d{name}", f"{np.linalg.norm(gradient):.1e}", f"{np.linalg.norm(numeric):.1e}",
                 f"{relative_error(gradient, numeric):.0e}"))
print("\n".join(ruled(rows)))

# %% [markdown]
# The relative error of `dbias` compares noise with noise: it is large, and it means nothing. Judge
# such a gradient by its size beside the others of the same pass. Real networks have such biases,
# wherever a block ends in a batch norm without activation and the next one begins with a 1x1
# convolution and a batch norm. (For the same reason a convolution in front of a batch norm has no
# bias here: it would have no effect.)

# %%
light = build_model("deeplab_light", num_classes=12, dtype="float64")
labels = rng.integers(0, 12, (2, 48, 48))
_, cache = losses.cross_entropy_forward(light.forward(rng.standard_normal((2, 48, 48, 3))), labels)
light.backward(losses.cross_entropy_backward(1.0, cache))
lengths = {name: np.linalg.norm(gradient) for name, gradient in light.named_gradients()}
total = np.linalg.norm(list(lengths.values()))
zero = [name for name, length in lengths.items() if length < 1e-12 * total]
print(f"{len(zero)} of {len(lengths)} gradients are zero but for rounding:")
print("\n".join(f"  {name}  {lengths[name]:.0e}" for name in (zero[0], zero[-1])))
others = [length for name, length in lengths.items() if name not in zero]
print(f"  the smallest of the others: {min(others):.0e}; all together: {total:.1f}")

# %% [markdown]
# ## To think about
#
# **1.** You check the ReLU, $\max(x, 0)$, at random places with $h = 10^{-5}$. Nearly always all
# is well, but now and then one element is off by about a half. Is the backward pass wrong?
#
# <details><summary>Answer</summary>
#
# Probably not. The ReLU has a kink at 0. If $|x| < h$, the two-sided difference looks at both
# sides of the kink and returns something between the two slopes. Draw other inputs, or keep them
# away from the kink: a check is only good where the function is smooth.
#
# </details>
#
# **2.** Central differences need two forward passes for each element of `x`. The network `mini`
# has more than a hundred thousand parameters. How can a whole network be checked in two passes?
#
# <details><summary>Answer</summary>
#
# Move all parameters at once along one random direction $v$: the slope of the loss along $v$ must
# be $\sum_j g_j v_j$, with $g$ the gradient that your backward pass returns. One number checks a
# little of everything; if it fails, go on layer by layer. `numeric_slope` in
# `minisegnet/verify/gradcheck.py` does it.
#
# </details>
#
# **3.** Dropout draws random numbers in its forward pass. What happens to a gradient check?
#
# <details><summary>Answer</summary>
#
# $f(x + h)$ and $f(x - h)$ would drop different elements, and the difference divided by $2h$
# would be enormous. Draw the mask once, or give both calls a random generator with the same seed.
#
# </details>
