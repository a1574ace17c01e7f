# %% [markdown]
# # 9 · Batch norm, and the gradient that goes through a mean
#
# | | |
# |---|---|
# | goal | derive batch norm's backward pass, and know when its statistics betray you |
# | before this | lessons 0 to 2 and 7 |
# | read | 15 minutes |
# | exercises | 15 minutes |
# | computes | 4 s |

# %%
import numpy as np

from minisegnet import datasets, ops, plots
from minisegnet.datasets.transforms import normalize as normalize_image
from minisegnet.layers import Dropout, freeze_batch_norm
from minisegnet.losses import Criterion
from minisegnet.losses.criterion import WholeBatch
from minisegnet.models import build_model
from minisegnet.models.aspp import ASPP
from minisegnet.plots.batch_norm import gradient_that_passes, variance_formulas
from minisegnet.tables import ruled
from minisegnet.verify import check
from minisegnet.verify.gradcheck import relative_error

rng = np.random.default_rng(9)

# %% [markdown]
# ## Predict before you run
#
# A batch norm is in training. Its upstream gradient `dout` arrives, and somebody adds 1 to it at
# every pixel of every channel.
#
# **How does `dx`, the gradient that batch norm passes on, change?** By 1 everywhere? By something
# that depends on the channel? Write down a guess. The answer is computed in the section "What the
# two terms do".

# %% [markdown]
# ## Forward
#
# Batch norm looks at one channel at a time. Let $x_1, \dots, x_n$ be all its values in the batch:
# $n = N \cdot H \cdot W$ of them, every pixel of every picture.
#
# | formula | code |
# |---|---|
# | $m = \frac{1}{n} \sum_i x_i$ | `mean = x.mean(axis=(0, 1, 2))` |
# | $v = \frac{1}{n} \sum_i (x_i - m)^2$ | `var = ((x - mean) ** 2).mean(axis=(0, 1, 2))` |
# | $s = 1 / \sqrt{v + \varepsilon}$ | `inv_std = 1 / np.sqrt(var + eps)` |
# | $\hat x_i = (x_i - m) \, s$ | `xhat = (x - mean) * inv_std` |
# | $y_i = w \, \hat x_i + b$ | `weight * xhat + bias` |
#
# The channels stand last, so vectors of length $C$ meet the right axis by themselves.


# %%
def normalize(x, eps=1e-5):
    """Return xhat (N, H, W, C), and mean, var and inv_std (C,) of the batch."""
    mean = x.mean(axis=(0, 1, 2))
    var = ((x - mean) ** 2).mean(axis=(0, 1, 2))
    inv_std = 1 / np.sqrt(var + eps)
    return (x - mean) * inv_std, mean, var, inv_std


def batch_norm(x, weight, bias):
    """Return the output of batch norm in training, (N, H, W, C)."""
    return weight * normalize(x)[0] + bias


x = 3 + 2 * rng.standard_normal((2, 4, 5, 3))
weight, bias = rng.uniform(0.5, 2, 3), rng.standard_normal(3)
start = np.zeros(3), np.ones(3)  # the running mean and variance, as they begin
out, cache, *running = ops.batch_norm_forward(x, weight, bias, *start, training=True)
print(f"package against formula: relative error "
      f"{relative_error(out, batch_norm(x, weight, bias)):.1e}")
xhat, mean, var, inv_std = normalize(x)
print(f"mean of xhat     {xhat.mean(axis=(0, 1, 2)).round(6)}")
print(f"variance of xhat {xhat.var(axis=(0, 1, 2)).round(6)}")

# %% [markdown]
# The mean is 0 and the variance nearly 1: it is $v / (v + \varepsilon)$.
#
# ## Two variances
#
# A picture to be predicted comes alone, and its answer must not depend on its neighbours in a
# batch. So batch norm has a second mode. While it trains it keeps *running statistics*, and in
# evaluation it uses these in place of the batch's own:
#
# $$\text{running} \leftarrow (1 - \mu) \, \text{running} + \mu \, \text{batch}, \qquad \mu = 0.1$$
#
# with $\mu$ the `momentum`: the share of the *new* batch (elsewhere the word means the share of
# the old). The running variance begins at 1, the running mean at 0.
#
# Which variance goes in? The $v$ from above describes these $n$ values exactly, and to normalise
# them it is the right one. But as an estimate for all the pictures it is a little too small: the
# mean $m$ has been fitted to these values. The correction is the well-known factor
# $\frac{n}{n - 1}$. As in torch, **the biased variance normalises, the unbiased one goes into the
# running statistics**.
#
# ## Exercise 9.1: the running statistics


# %% tags=["exercise-9.1"]
def updated_statistics(x, running_mean, running_var, momentum):
    """Return the new running mean and the new running variance, (C,) each.

    x (N, H, W, C); running_mean and running_var (C,), which are to stay as they are; momentum is
    a float, the share of the new batch.
    """
    ### BEGIN SOLUTION
    _, mean, var, _ = normalize(x)
    n = x.size / x.shape[-1]
    unbiased = var * n / (n - 1)
    return ((1 - momentum) * running_mean + momentum * mean,
            (1 - momentum) * running_var + momentum * unbiased)
    ### END SOLUTION


# %% tags=["check-9.1"]
small = 1 + rng.standard_normal((2, 2, 3, 3))
running_mean, running_var = rng.standard_normal(3), rng.uniform(0.5, 2, 3)


def running_statistics(torch, x, running_mean, running_var, momentum):
    torch.nn.functional.batch_norm(x.permute(0, 3, 1, 2), running_mean, running_var,
                                   training=True, momentum=momentum)
    return running_mean, running_var  # torch has changed them in place


def with_count(count):
    """Return the slip that takes another number of values for n."""
    def slip(x, running_mean, running_var, momentum):
        unbiased = x.var(axis=(0, 1, 2)) * count(x) / (count(x) - 1)
        return running_mean, (1 - momentum) * running_var + momentum * unbiased
    return slip


check("9.1", updated_statistics, {"x": small, "running_mean": running_mean,
                                  "running_var": running_var, "momentum": 0.3},
      expected=lambda x, running_mean, running_var, momentum: ops.batch_norm_forward(
          x, np.ones(3), np.zeros(3), running_mean, running_var, training=True,
          momentum=momentum)[2:],
      torch=running_statistics,
      slips={"momentum is the share of the new batch, not of the old statistics":
             lambda x, running_mean, running_var, momentum: ops.batch_norm_forward(
                 x, np.ones(3), np.zeros(3), running_mean, running_var, training=True,
                 momentum=1 - momentum)[2:],
             "this is the biased variance: the running one takes n / (n - 1) times it":
             lambda x, running_mean, running_var, momentum: (
                 running_mean, (1 - momentum) * running_var + momentum * x.var(axis=(0, 1, 2))),
             "n is the number of values of one channel, N * H * W, not x.size":
             with_count(lambda x: x.size),
             "n is the number of values of one channel in the whole batch, N * H * W, not those "
             "of one picture": with_count(lambda x: x[0, ..., 0].size),
             "n is the number of values of one channel, N * H * W, not the number of pictures":
             with_count(len),
             "the factor is upside down: n / (n - 1) is more than 1":
             lambda x, running_mean, running_var, momentum: (
                 running_mean, (1 - momentum) * running_var + momentum * x.var(axis=(0, 1, 2))
                 * (x[..., 0].size - 1) / x[..., 0].size),
             "a running variance takes the variance of the batch, not the deviation":
             lambda x, running_mean, running_var, momentum: (
                 running_mean, (1 - momentum) * running_var
                 + momentum * x.std(axis=(0, 1, 2), ddof=1))},
      hints={"named": "",
             "": "(1 - momentum) * old + momentum * new, for the mean and for the unbiased "
                 "variance."})

# %% [markdown]
# How long do the running statistics remember that they began at 0 and 1? After $k$ batches a
# share of $(1 - \mu)^k$ of the beginning is left:

# %%
for momentum in (0.1, 0.01):
    batches = int(np.ceil(np.log(0.01) / np.log(1 - momentum)))
    print(f"momentum {momentum:g}: {batches} batches until less than 1 % of the beginning is left")

# %% [markdown]
# The second one is MobileNetV3's own value. A run shorter than that is evaluated with statistics
# that are partly made up: train looks fine, validation is nonsense, and no weight is to blame.
#
# ## Backward: weight and bias
#
# $y_i = w \hat x_i + b$ is linear in $w$ and in $b$, and each of them had a hand in all $n$ values
# of the channel. What was copied on the way forward is summed on the way back.
#
# ## Exercise 9.2: dweight and dbias
#
# `normalize(x)` from above gives you $\hat x$.


# %% tags=["exercise-9.2"]
def parameter_gradients(dout, x, weight, bias):
    """Return dweight and dbias, (C,) each, of batch norm in training.

    dout and x are (N, H, W, C), weight and bias (C,).
    """
    ### BEGIN SOLUTION
    xhat = normalize(x)[0]
    return (dout * xhat).sum(axis=(0, 1, 2)), dout.sum(axis=(0, 1, 2))
    ### END SOLUTION


# %% tags=["check-9.2"]
small_weight, small_bias = rng.uniform(0.5, 2, 3), rng.standard_normal(3)


def package_forward(x, weight, bias):
    return ops.batch_norm_forward(x, weight, bias, *start, training=True)[0]


def torch_forward(torch, x, weight, bias):
    out = torch.nn.functional.batch_norm(x.permute(0, 3, 1, 2), None, None, weight, bias,
                                         training=True)
    return out.permute(0, 2, 3, 1)


check("9.2", parameter_gradients, {"x": small, "weight": small_weight, "bias": small_bias},
      forward=package_forward, wrt=("weight", "bias"), torch=torch_forward,
      quantities={"n, the number of values of a channel": small[..., 0].size},
      slips={"weight was multiplied by xhat, not by x": lambda dout, x, weight, bias: (
                 (dout * x).sum(axis=(0, 1, 2)), dout.sum(axis=(0, 1, 2))),
             "xhat is (x - mean) * inv_std: the inv_std is missing":
             lambda dout, x, weight, bias: (
                 (dout * (x - x.mean(axis=(0, 1, 2)))).sum(axis=(0, 1, 2)),
                 dout.sum(axis=(0, 1, 2))),
             "weight has no place in its own gradient: y = w xhat + b is linear in w":
             lambda dout, x, weight, bias: (
                 (dout * weight * normalize(x)[0]).sum(axis=(0, 1, 2)),
                 dout.sum(axis=(0, 1, 2))),
             "dweight comes first, dbias second": lambda dout, x, weight, bias: (
                 dout.sum(axis=(0, 1, 2)), (dout * normalize(x)[0]).sum(axis=(0, 1, 2)))},
      hints={"named": "",
             "scale": "Sum over the pixels: there is no mean in y = w xhat + b.",
             "": "dweight sums dout * xhat over the first three axes, dbias sums dout."})

# %% [markdown]
# ## Backward: the input
#
# Now the interesting one. A pixel $x_j$ reaches the output in three ways: directly, through the
# mean, and through the variance. And through the mean and the variance it reaches *all* outputs
# of its channel. So let us see how $\hat x_i = (x_i - m) \, s$ moves when $x_j$ does, one factor
# at a time, with $[i = j]$ for 1 if they are the same pixel and else 0:
#
# $$\frac{\partial m}{\partial x_j} = \frac{1}{n} \qquad\qquad
# \frac{\partial v}{\partial x_j} = \frac{2}{n} (x_j - m) \qquad\qquad
# \frac{\partial s}{\partial v} = -\tfrac12 (v + \varepsilon)^{-3/2} = -\tfrac12 s^3$$
#
# (In the second one $m$ moves as well, but it contributes $-\frac{2}{n^2} \sum_i (x_i - m) = 0$.)
# The product rule puts them together:
#
# $$\frac{\partial \hat x_i}{\partial x_j}
# = s \Big( [i = j] - \frac1n \Big) - \frac12 s^3 \cdot \frac2n (x_i - m)(x_j - m)
# = s \Big( [i = j] - \frac1n - \frac1n \hat x_i \hat x_j \Big)$$
#
# Every output brings its upstream gradient $d_i$ (`dout`) times $w$. The sum over the outputs is
#
# $$\boxed{\; \frac{\partial L}{\partial x_j}
# = w \, s \, \Big( d_j - \frac1n \sum_i d_i - \hat x_j \, \frac1n \sum_i d_i \hat x_i \Big) \;}$$
#
# **The gradient itself, minus its mean, minus $\hat x$ times the mean of its product with
# $\hat x$.** Both sums have been met already: they are `dbias` and `dweight`.
#
# ## Exercise 9.3: the gradient of the input


# %% tags=["exercise-9.3"]
def input_gradient(dout, x, weight):
    """Return dx (N, H, W, C) of batch norm in training; dout (N, H, W, C), weight (C,)."""
    ### BEGIN SOLUTION
    xhat, _, _, inv_std = normalize(x)
    mean_of_dout = dout.mean(axis=(0, 1, 2))
    mean_of_product = (dout * xhat).mean(axis=(0, 1, 2))
    return weight * inv_std * (dout - mean_of_dout - xhat * mean_of_product)
    ### END SOLUTION


# %% tags=["check-9.3"]
def without(terms):
    """Return the slip that forgets one or both of the terms."""
    def slip(dout, x, weight):
        xhat, _, _, inv_std = normalize(x)
        dx = dout.copy()
        dx -= 0 if "mean" in terms else dout.mean(axis=(0, 1, 2))
        dx -= 0 if "variance" in terms else xhat * (dout * xhat).mean(axis=(0, 1, 2))
        return weight * inv_std * dx
    return slip


check("9.3", input_gradient, {"x": small, "weight": small_weight},
      forward=lambda x, weight: package_forward(x, weight, small_bias), wrt=("x",),
      torch=lambda torch, x, weight: torch_forward(torch, x, weight,
                                                   torch.from_numpy(small_bias)),
      slips={"this treats mean and variance as constants, as evaluation does: in training x "
             "also acts through both": without("mean and variance"),
             "the way through the mean is missing: take the mean of dout away": without("mean"),
             "the way through the variance is missing: xhat times the mean of dout * xhat":
             without("variance"),
             "both terms are means over the n values of the channel, not sums":
             lambda dout, x, weight: weight * normalize(x)[3] * (
                 dout - dout.sum(axis=(0, 1, 2))
                 - normalize(x)[0] * (dout * normalize(x)[0]).sum(axis=(0, 1, 2))),
             "the mean of dout * xhat goes back to each pixel by its own xhat: a factor is "
             "missing":
             lambda dout, x, weight: weight * normalize(x)[3] * (
                 dout - dout.mean(axis=(0, 1, 2)) - (dout * normalize(x)[0]).mean(axis=(0, 1, 2))),
             "the means are over the whole batch, all three axes, not over each picture":
             lambda dout, x, weight: weight * normalize(x)[3] * (
                 dout - dout.mean(axis=(1, 2), keepdims=True) - normalize(x)[0]
                 * (dout * normalize(x)[0]).mean(axis=(1, 2), keepdims=True))},
      hints={"named": "",
             "offset": "Both terms are means over the n values of the channel, not sums.",
             "ratio": "What has one value per channel: weight and inv_std.",
             "": "weight * inv_std * (dout - mean of dout - xhat * mean of dout * xhat), the "
                 "means over the first three axes."})

# %% [markdown]
# The package's function goes over the pixels in blocks, and in CUDA in two kernels: the two sums
# first, then `dx`. The numbers are those of the formula:

# %%
dout = rng.standard_normal(x.shape)
dx, dweight, dbias = ops.batch_norm_backward(dout, cache)
n = x[..., 0].size
by_formula = weight * inv_std * (dout - dbias / n - xhat * dweight / n)
print(f"package against formula: relative error {relative_error(dx, by_formula):.1e}")

# %% [markdown]
# ## What the two terms do
#
# Back to the question at the top. Add 1 to the upstream gradient at every pixel; and then, in
# a second try, add $\hat x$:

# %%
for name, added in (("1", np.ones_like(dout)), ("xhat", xhat), ("noise", dout[::-1])):
    moved, _, _ = ops.batch_norm_backward(dout + added, cache)
    print(f"dout + {name:5}  dx changes by {relative_error(moved, dx):.1e} of its size")

# %% [markdown]
# **Nothing changes** but rounding for the first, and next to nothing for the second: a share of
# $\varepsilon / (v + \varepsilon)$ of what was added gets through. It must be so. Add a constant
# to all of a channel's values, and batch norm takes it out again; multiply their distances from
# the mean by 3, and batch norm divides by 3. What the output does not feel, the input gets no
# gradient for. The two terms remove exactly these two directions.
#
# Two consequences meet you in practice. A bias in front of a batch norm has a gradient of zero,
# so the convolutions that stand there are built without a bias. And a gradient check with
# `dout = 1` is blind: the right answer is 0, which many a wrong formula gives as well. That is why
# every check of this course draws `dout` at random.
#
# ## How many values are enough?
#
# Two directions out of $n$ are lost, so a random gradient keeps the share $(n - 2) / n$ of its
# square. For $n$ in the thousands that is all of it. Turn the number of values per channel down:

# %% tags=["experiment"]
values = (2, 3, 4, 8, 16, 64, 512)
shares = []
for n in values:
    C = 20_000 // n
    many = rng.standard_normal((n, 1, 1, C))
    _, cache_of_n, *_ = ops.batch_norm_forward(many, np.ones(C), np.zeros(C), np.zeros(C),
                                               np.ones(C), training=True)
    upstream = rng.standard_normal(many.shape)
    passed = ops.batch_norm_backward(upstream, cache_of_n)[0] / cache_of_n.inv_std
    shares.append((passed ** 2).sum() / (upstream ** 2).sum())
    print(f"n = {n:3}: {shares[-1]:.4f} of the squared gradient passes, (n - 2) / n = "
          f"{(n - 2) / n:.4f}")
plots.show(gradient_that_passes(values, shares), "09_batch_norm_values")

# %% [markdown]
# **With two values nothing passes** (but for $\varepsilon$). And forward it is no better: of two
# values the larger becomes $+1$ and the smaller $-1$, however far apart they were. With one value
# there is no variance at all, and $n / (n - 1)$ divides by zero. The package refuses it, as torch
# does:

# %%
try:
    ops.batch_norm_forward(np.ones((1, 1, 1, 3)), weight, bias, *start, training=True)
except ValueError as error:
    print(error)
two = np.array([[3.0, 5.0, -7.0], [3.5, -1.0, 100.0]]).reshape(2, 1, 1, 3)
print(f"xhat of two values:\n{normalize(two)[0].reshape(2, 3).round(4)}")

# %% [markdown]
# Where would a map have so few values? In ASPP (lesson 10) one branch averages each picture to a
# single pixel, and normalises that: $n$ is the batch size. Here is the gradient of that branch's
# convolution, for batches of several sizes:

# %%
rows = [("batch", "1x1 branch", "image pooling branch")]
for N in (2, 3, 4, 8):
    aspp = ASPP(32, 16, (2, 4), dropout=0.0, rng=np.random.default_rng(N), momentum=0.1)
    aspp.astype("float64")
    features = rng.standard_normal((N, 8, 10, 32)) + rng.standard_normal((N, 1, 1, 32))
    out = aspp.forward(features)
    aspp.backward(rng.standard_normal(out.shape))
    gradients = dict(aspp.named_gradients())
    rows.append((str(N), *(f"{np.linalg.norm(gradients[f'{name}.conv.weight']):.3g}"
                           for name in ("pointwise", "pooled"))))
print("\n".join(ruled(rows)))

# %% [markdown]
# At batch 2 the branch runs and costs time, and its convolution hardly learns: what is left has
# slipped through $\varepsilon$. (Adam of lesson 12, which divides a gradient by its size, takes
# steps of the usual length along this remainder. That moves the weights; it teaches them nothing.)
#
# ## Two modes, two backward passes
#
# In evaluation mean and variance are constants. Both terms fall away, and with them the
# dependence on the rest of the batch: $dx = w \, s \, d$.

# %%
_, eval_cache, *_ = ops.batch_norm_forward(x, weight, bias, *running, training=False)
dx_eval, _, _ = ops.batch_norm_backward(dout, eval_cache)
_, running_var = running
print(f"evaluation against w s dout: relative error "
      f"{relative_error(dx_eval, weight / np.sqrt(running_var + 1e-5) * dout):.1e}")

# %% [markdown]
# **Frozen batch norm** is this mode while everything else trains: `--freeze-batch-norm all`. It
# is the cure where batches are too small for statistics, and where a pretrained network is
# fine-tuned. Weight and bias go on learning. It takes running statistics that fit the data, so a
# network that starts from scratch has no use for it.
#
# ## A claim, put to the test: "four batches of 2 are a batch of 8"
#
# Memory is short, so gradients of small batches are added up before a step is taken
# (`--accumulate 4`). It is often said that this equals the large batch. Here are the gradients of
# all parameters of a new `mini`, 8 floor plans at once against the same 8 in parts. Dropout is
# off, everything is float64, cross-entropy divides by the pixels of all 8 plans, and dice takes
# the mean of the parts:

# %%
plans = datasets.FloorPlans("train", length=8)
K = plans.num_classes
samples = [plans[i] for i in range(8)]
images = np.stack([normalize_image(sample.image[::2, ::2]) for sample in samples]).astype(float)
target = np.stack([sample.mask[::2, ::2] for sample in samples])


def gradient_in_parts(size, is_frozen, loss):
    """Return all parameters' gradients as one vector, from batches of `size` pictures."""
    model = build_model("mini", K, dtype="float64")
    for _, layer in model.named_layers():
        if isinstance(layer, Dropout):
            layer.p = 0
    freeze_batch_norm(model, is_frozen)
    criterion = Criterion(loss)
    whole = WholeBatch(np.bincount(target.ravel(), minlength=K), 8 // size)
    for start in range(0, 8, size):
        part = slice(start, start + size)
        coarse = model.forward_coarse(images[part])
        _, cache = criterion.forward_upsampled(coarse, target[part],
                                               whole=whole if size < 8 else None)
        model.backward_coarse(criterion.backward_upsampled(1.0, cache))
    return np.concatenate([gradient.ravel() for _, gradient in model.named_gradients()])


rows = [("loss", "batch norm", "2 batches of 4", "4 batches of 2")]
for loss in ("ce", "dice"):
    for is_frozen in (True, False):
        at_once = gradient_in_parts(8, is_frozen, loss)
        rows.append((loss, "frozen" if is_frozen else "of the batch",
                     *(f"{relative_error(gradient_in_parts(size, is_frozen, loss), at_once):.1e}"
                       for size in (4, 2))))
print("\n".join(ruled(rows, left=2)))

# %% [markdown]
# The numbers are relative differences of the whole gradient. Cross-entropy is a sum over pixels:
# with frozen statistics the parts add up to the large batch, to the last digit. With the batch's
# own statistics they do not, since each part is normalised by itself. And dice is no sum over
# pixels, so its parts never add up (lesson 6). The claim needs both conditions: a loss that is a
# sum, *and* no batch statistics.
#
# ## The experiment: two formulas for one variance
#
# Every statistics book has $v = \overline{x^2} - \bar x^2$. It needs one pass over the data
# where ours, the mean of $(x - m)^2$, needs two. On paper they are equal. Turn one knob, the mean
# of the channel as a multiple of its deviation, and compute in float32, as training does:


# %% tags=["experiment"]
def one_pass(x):
    """Return the variance as E[x^2] - E[x]^2."""
    return (x * x).mean() - x.mean() ** 2


def two_passes(x):
    """Return the variance as E[(x - E[x])^2]."""
    return ((x - x.mean()) ** 2).mean()


ratios, draws = 10.0 ** np.arange(6), 12
formulas = {"one pass, E[x²] - E[x]²": one_pass, "two passes, E[(x - E[x])²]": two_passes}
errors = {name: np.empty((len(ratios), draws)) for name in formulas}
deviations = {name: np.empty((len(ratios), draws)) for name in formulas}
for i, ratio in enumerate(ratios):
    for draw in range(draws):
        values = (ratio + rng.standard_normal(4096)).astype(np.float32)
        true = values.astype(np.float64).var()
        for name, formula in formulas.items():
            found = formula(values)
            errors[name][i, draw] = abs(found / true - 1)
            with np.errstate(invalid="ignore"):
                normalized = (values - values.mean()) / np.sqrt(found + np.float32(1e-5))
            deviations[name][i, draw] = normalized.std(dtype=float)
rows = [("mean / deviation", "one pass", "two passes", "negative")]
for ratio, one, two, of_one in zip(ratios, *errors.values(), next(iter(deviations.values()))):
    rows.append((f"{ratio:g}", f"{np.median(one):.1e}", f"{np.median(two):.1e}",
                 f"{np.isnan(of_one).sum()} of {draws}"))
print("\n".join(ruled(rows)))
plots.show(variance_formulas(ratios, errors, deviations), "09_batch_norm")

# %% [markdown]
# The columns are the medians of the relative errors, and how often the one-pass formula gave less
# than $-\varepsilon$. float32 carries about 7 digits. At a mean of 1000 deviations $x^2$ is near
# a million while the variance is 1: the six leading digits of both terms are the same, and
# cancel. What is left is the rounding. Beyond that the variance is noise; where it is negative,
# the root is nan, and one step later so are the weights. Where it is 0, $\varepsilon$ alone is
# left, and the output explodes. The two-pass formula subtracts *before* it squares. It costs a
# second pass over the data, and `ops/batch_norm.py` pays it.
#
# ## To think about
#
# **1.** In a convolution followed by a batch norm, all weights are multiplied by 10. What happens
# to the output, and what to the gradient of these weights?
#
# <details><summary>Answer</summary>
#
# The output stays as it is (but for $\varepsilon$): batch norm divides by a deviation that is 10
# times as large. So the gradient of the weights is a *tenth*, since a step of the same size now
# moves the output only a tenth as far. Large weights learn slowly here; weight decay, which
# shrinks them, acts on the speed of learning and not on the function.
#
# </details>
#
# **2.** A floor plan is mostly white background. Whose statistics are those of a batch norm's
# channel?
#
# <details><summary>Answer</summary>
#
# Those of the background, by its share of the pixels. A rare class is normalised by a mean and a
# deviation in which it has hardly a say. Batch norm centres channels and not classes: whatever is
# unequal among the classes remains so, and is the business of the loss.
#
# </details>
#
# **3.** Training is fine, validation is nonsense, and with batch statistics in validation it is
# fine as well. Name three things to look at.
#
# <details><summary>Answer</summary>
#
# The number of steps against the momentum (the table above). The batch size: the statistics of
# tiny batches are noisy, and their running mean follows. And whether training and validation
# pictures are prepared alike: running statistics belong to the pictures they were taken from.
#
# </details>
