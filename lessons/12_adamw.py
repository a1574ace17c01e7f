# %% [markdown]
# # 12 · AdamW: how long a step is, and who decides it
#
# | | |
# |---|---|
# | goal | write AdamW and gradient clipping, and know how long their steps are |
# | before this | lesson 0 |
# | read | 15 minutes |
# | exercises | 15 minutes |
# | computes | 4 s |

# %%
import numpy as np

from minisegnet import plots
from minisegnet.models import build_model
from minisegnet.optim import AdamW, RMSprop, clip_grad_norm
from minisegnet.optim.adamw import adamw_update_plain
from minisegnet.plots.optimizers import walks
from minisegnet.tables import ruled
from minisegnet.verify import check
from minisegnet.verify.gradcheck import relative_error

rng = np.random.default_rng(12)

# %% [markdown]
# ## Predict before you run
#
# A weight sits on a steady slope: its gradient is 1 at every step. Plain gradient descent moves it
# by one learning rate per step. A popular segmentation repository trains with RMSprop instead,
# with $\alpha = 0.99$ and momentum $0.999$.
#
# **How long is the first step, in learning rates? And how long is the step after a few thousand of
# them?** Write down two numbers. They are computed in the section "RMSprop, and what momentum adds
# up to".

# %% [markdown]
# ## Two running means
#
# Lesson by lesson you have computed $g$, the gradient of the loss with respect to every weight.
# The optimizer turns it into a step. AdamW remembers two numbers per weight: a running mean of the
# gradient, and a running mean of its square.
#
# $$m_t = \beta_1 m_{t-1} + (1 - \beta_1)\, g_t \qquad\qquad
#   v_t = \beta_2 v_{t-1} + (1 - \beta_2)\, g_t^2$$
#
# $m$ says where the gradients point on average, $\sqrt v$ how large they usually are. The step is
# one divided by the other: a long step where the gradients agree, a short one where they cancel.
#
# Both means start at 0, and that makes them too small at first. By how much? Unroll the recursion:
#
# $$m_t = (1 - \beta_1) \sum_{i=1}^{t} \beta_1^{\,t-i} g_i \qquad\text{and}\qquad
#   (1 - \beta_1) \sum_{i=1}^{t} \beta_1^{\,t-i} = 1 - \beta_1^t$$
#
# The weights of that mean add up to $1 - \beta_1^t$, not to 1. So divide by it: that is **bias
# correction**, and nothing more.

# %%
beta1, beta2 = 0.9, 0.999
for t in (1, 10, 100, 1000):
    steps = np.arange(1, t + 1)
    print(f"t = {t:>4}: the weights in m add up to {((1 - beta1) * beta1**(t - steps)).sum():.4f} "
          f"(1 - beta1^t = {1 - beta1**t:.4f}), those in v to "
          f"{((1 - beta2) * beta2**(t - steps)).sum():.4f}")

# %% [markdown]
# ## The whole step
#
# Weight decay pulls every weight towards 0. AdamW does that first and on its own, apart from the
# gradient; this is what the W stands for. In the order in which torch does it:
#
# | formula | code |
# |---|---|
# | $p \leftarrow p\,(1 - \eta \lambda)$ | `p = p * (1 - lr * weight_decay)` |
# | $m \leftarrow \beta_1 m + (1 - \beta_1)\, g$ | `m = beta1 * m + (1 - beta1) * g` |
# | $v \leftarrow \beta_2 v + (1 - \beta_2)\, g^2$ | `v = beta2 * v + (1 - beta2) * g * g` |
# | $\hat m = m / (1 - \beta_1^t),\quad \hat v = v / (1 - \beta_2^t)$ | your turn |
# | $p \leftarrow p - \eta\, \hat m / (\sqrt{\hat v} + \epsilon)$ | your turn |
#
# $t$ counts the steps from 1. $\epsilon$ keeps the division finite; it stands *outside* the root.
# $m$ and $v$ are kept as they are: the corrected ones are used for the step and thrown away.
#
# ## Exercise 12.1: one step of AdamW
#
# Write it. Return new arrays, and leave those you are given as they are.


# %% tags=["exercise-12.1"]
def adamw_step(p, g, m, v, t, lr, weight_decay, beta1=0.9, beta2=0.999, eps=1e-8):
    """Return (p, m, v) after step t, counted from 1; p, g, m, v are arrays of one shape."""
    ### BEGIN SOLUTION
    p = p * (1 - lr * weight_decay)
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    m_hat = m / (1 - beta1**t)
    v_hat = v / (1 - beta2**t)
    return p - lr * m_hat / (np.sqrt(v_hat) + eps), m, v
    ### END SOLUTION


# %% tags=["check-12.1"]
def torch_step(torch, p, g, m, v, t, lr, weight_decay):
    """The same step by torch.optim.AdamW."""
    weight = torch.nn.Parameter(p)
    weight.grad = g
    optimizer = torch.optim.AdamW([weight], lr=lr, weight_decay=weight_decay)
    optimizer.state[weight] = {"step": torch.tensor(t - 1.0), "exp_avg": m, "exp_avg_sq": v}
    optimizer.step()
    return weight.detach(), m, v


def package_step(p, g, m, v, t, lr, weight_decay):
    """The same step by the package."""
    return adamw_update_plain(p, g, m, v, t=t, lr=lr, weight_decay=weight_decay)


def uncorrected(p, g, m, v, t, lr, weight_decay):
    """A step of AdamW without bias correction."""
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    return p * (1 - lr * weight_decay) - lr * m / (np.sqrt(v) + 1e-8), m, v


def eps_inside(p, g, m, v, t, lr, weight_decay):
    """A step of AdamW with eps below the root."""
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    step = m / (1 - 0.9**t) / np.sqrt(v / (1 - 0.999**t) + 1e-8)
    return p * (1 - lr * weight_decay) - lr * step, m, v


def step_with(p, g, m, v, t, lr, weight_decay, direction):
    """A step of AdamW along `direction(m_hat, v_hat)`."""
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    step = direction(m / (1 - 0.9**t), v / (1 - 0.999**t))
    return p * (1 - lr * weight_decay) - lr * step, m, v


p, g, m = rng.standard_normal((3, 4, 5))
g[0, 0] = m[0, 0] = 0  # a weight that has had no gradient yet
v = rng.random((4, 5)) * 1e-3
v[0, 0] = 0
check("12.1", adamw_step,
      {"p": p, "g": g, "m": m, "v": v, "t": 3, "lr": 0.1, "weight_decay": 0.5},
      expected=package_step, torch=torch_step,
      slips={
          "this adds the decay to the gradient, as in Adam with L2; AdamW shrinks p on its own, "
          "before and apart from the gradient":
              lambda p, g, m, v, t, lr, weight_decay: package_step(
                  p, g + weight_decay * p, m, v, t, lr, 0.0),
          "there is no bias correction: divide m by 1 - beta1**t and v by 1 - beta2**t":
              uncorrected,
          "eps stands below the root; torch adds it to the root": eps_inside,
          "there is no weight decay: begin with p * (1 - lr * weight_decay)":
              lambda p, g, m, v, t, lr, weight_decay: package_step(p, g, m, v, t, lr, 0.0),
          "the corrected m and v are for the step only: return m and v as they are kept":
              lambda p, g, m, v, t, lr, weight_decay: (
                  package_step(p, g, m, v, t, lr, weight_decay)[0],
                  (0.9 * m + 0.1 * g) / (1 - 0.9**t),
                  (0.999 * v + 0.001 * g * g) / (1 - 0.999**t)),
          "the root is missing: m_hat / (sqrt(v_hat) + eps)":
              lambda p, g, m, v, t, lr, weight_decay: step_with(
                  p, g, m, v, t, lr, weight_decay, lambda m_hat, v_hat: m_hat / (v_hat + 1e-8)),
          "v is not corrected: divide it by 1 - beta2**t, as m by 1 - beta1**t":
              lambda p, g, m, v, t, lr, weight_decay: step_with(
                  p, g, m, v, t, lr, weight_decay, lambda m_hat, v_hat: m_hat / (
                      np.sqrt(v_hat * (1 - 0.999**t)) + 1e-8)),
          "the decay comes first, on p alone; here it shrinks the step as well":
              lambda p, g, m, v, t, lr, weight_decay: (
                  package_step(p, g, m, v, t, lr, 0.0)[0] * (1 - lr * weight_decay),
                  *package_step(p, g, m, v, t, lr, 0.0)[1:]),
          "the decay is times the rate, as the step is: 1 - lr * weight_decay":
              lambda p, g, m, v, t, lr, weight_decay: package_step(
                  p * (1 - weight_decay), g, m, v, t, lr, 0.0),
          "the steps count from 1: beta**t, not beta**(t + 1)":
              lambda p, g, m, v, t, lr, weight_decay: package_step(
                  p, g, m, v, t + 1, lr, weight_decay),
      },
      hints={"nan": "Is v the mean of g * g, so that it has a root? And where it is 0, eps keeps "
                    "the division finite.",
             "": "Follow the table from top to bottom, one line each: v is the mean of g * g, and "
                 "eps keeps the division finite where v is 0."})

# %% [markdown]
# The package keeps all weights of a model in one long buffer and walks over it in blocks that fit
# the cache, in place (`minisegnet/optim/adamw.py`). Ten steps of a whole network with random
# gradients, against the formula:

# %%
model = build_model("mini", 12, dtype="float64")
optimizer = AdamW(model, lr=0.01)
weights = optimizer.flat.data.copy()
by_formula, m, v = weights.copy(), np.zeros_like(weights), np.zeros_like(weights)
for t in range(1, 11):
    optimizer.flat.grad[:] = rng.standard_normal(weights.size)
    by_formula, m, v = adamw_update_plain(by_formula, optimizer.flat.grad, m, v, t=t, lr=0.01)
    optimizer.step()
print(f"{weights.size:,} weights, package against formula: relative error "
      f"{relative_error(optimizer.flat.data, by_formula):.1e}")

# %% [markdown]
# ## What the step does not depend on
#
# At the first step, $\hat m = g$ and $\hat v = g^2$. So the first step is
# $\eta\, g / (|g| + \epsilon)$: **the learning rate, times the sign of the gradient**, however
# large the gradient is.

# %%
rows = [("gradient", "first step, in learning rates")]
for gradient in (1e3, 1.0, 1e-3, 1e-6, 1e-8, 1e-10):
    start = np.zeros(1)
    moved, *_ = adamw_update_plain(start, np.array([gradient]), start, start, t=1, lr=1.0)
    rows.append((f"{gradient:g}", f"{-moved[0]:.4f}"))
print("\n".join(ruled(rows)))

# %% [markdown]
# A factor on the whole loss changes nothing, until the gradients come down to $\epsilon$. That has
# a consequence for this course: doubling *all* class weights, or a scalar $\alpha$ on a focal loss
# that stands alone, does nothing to AdamW, even where the loss itself does double.
#
# And without bias correction? $m$ starts at a tenth of the gradient, but $\sqrt v$ at the root of
# a thousandth, which is less. So the first steps are too *long*, and get longer at first:

# %%
rows = [("step t", "with correction", "without")]
for t in (1, 3, 10, 30, 100, 1000, 10_000):
    rows.append((str(t), f"{1.0:.2f}",
                 f"{(1 - beta1**t) / np.sqrt(1 - beta2**t):.2f}"))
print("\n".join(ruled(rows)))
print("length of the step on a steady slope, in learning rates")

# %% [markdown]
# ## Why the decay is taken out of the gradient
#
# L2 regularisation adds $\lambda p$ to the gradient. In plain gradient descent that is the same as
# weight decay. In Adam it is not, for what is added is then divided by $\sqrt v$: a weight with
# large gradients is hardly decayed at all, one with small gradients far too much. See it happen.
# Weights start at 1, their gradients are pure noise of three sizes, so that only the decay moves
# them on average:


# %%
def mean_after(scale, decoupled, steps=1000, lr=1e-3, weight_decay=0.1):
    """Return the mean of 2000 weights after `steps` of noise of size `scale`."""
    noise = np.random.default_rng(0)
    p, m, v = np.ones(2000), np.zeros(2000), np.zeros(2000)
    for t in range(1, steps + 1):
        g = scale * noise.standard_normal(p.size)
        if decoupled:
            p, m, v = adamw_update_plain(p, g, m, v, t=t, lr=lr, weight_decay=weight_decay)
        else:
            p, m, v = adamw_update_plain(p, g + weight_decay * p, m, v, t=t, lr=lr,
                                         weight_decay=0.0)
    return p.mean()


rows = [("size of the gradients", "L2 in the gradient", "decoupled")]
for scale in (10.0, 1.0, 0.01):
    rows.append((f"{scale:g}", f"{mean_after(scale, decoupled=False):.3f}",
                 f"{mean_after(scale, decoupled=True):.3f}"))
print("\n".join(ruled(rows)))
print(f"mean weight after 1000 steps; (1 - lr * weight_decay)^1000 = {(1 - 1e-4)**1000:.3f}")

# %% [markdown]
# ## Myth check: a weight decay of 1e-8
#
# A guide on aerial images sets a weight decay of $10^{-8}$ and a learning rate of
# $5 \cdot 10^{-5}$. With AdamW in float32: how many weights of `mini` does the decay change? (In
# the last column the product is computed in float64, and rounded to float32 last.)

# %%
model = build_model("mini", 12)
weights = AdamW(model).flat.data
rows = [("lr", "weight decay", "nonzero weights", "changed by a step", "rounded last")]
for lr, weight_decay in ((5e-5, 1e-8), (5e-5, 1e-2), (5e-2, 1e-2)):
    decayed = weights * (1 - lr * weight_decay)
    rounded_last = (weights.astype(np.float64) * (1 - lr * weight_decay)).astype(np.float32)
    rows.append((f"{lr:g}", f"{weight_decay:g}", *(f"{count:,}" for count in (
        np.sum(weights != 0), np.sum(decayed != weights), np.sum(rounded_last != weights)))))
print("\n".join(ruled(rows)))
below = np.nextafter(np.float32(1), np.float32(0))
print(f"the largest float32 below 1 is 1 - {1 - float(below):.1e}")

# %% [markdown]
# None. The factor $1 - 5 \cdot 10^{-13}$ is rounded to 1, in this step and in every other.
# Whatever kept that network from overfitting, it was not the decay.
#
# ## RMSprop, and what momentum adds up to
#
# RMSprop is older and has the second mean only; momentum can be added on top:
#
# $$s \leftarrow \alpha s + (1 - \alpha)\, g^2 \qquad
#   b \leftarrow \mu\, b + \frac{g}{\sqrt s + \epsilon} \qquad p \leftarrow p - \eta\, b$$
#
# Look for what is missing: $s$ has no bias correction, and $b$ is a *sum*, not a mean: there is no
# factor $1 - \mu$. On a steady slope the sum of $1 + \mu + \mu^2 + \dots$ is $1 / (1 - \mu)$.


# %%
def rmsprop_step(p, g, s, b, lr, momentum, alpha=0.99, eps=1e-8):
    """Return (p, s, b) after one step of RMSprop with momentum."""
    s = alpha * s + (1 - alpha) * g * g
    b = momentum * b + g / (np.sqrt(s) + eps)
    return p - lr * b, s, b


model = build_model("mini", 12, dtype="float64")
optimizer = RMSprop(model, lr=1e-3, momentum=0.9)
by_formula = optimizer.flat.data.copy()
s, b = np.zeros_like(by_formula), np.zeros_like(by_formula)
for _ in range(10):
    optimizer.flat.grad[:] = rng.standard_normal(by_formula.size)
    by_formula, s, b = rmsprop_step(by_formula, optimizer.flat.grad, s, b, 1e-3, 0.9)
    optimizer.step()
print(f"package against formula: relative error "
      f"{relative_error(optimizer.flat.data, by_formula):.1e}\n")

slope = {}  # label -> length of each step on a steady slope
for momentum in (0.0, 0.9, 0.99, 0.999):
    place, s, b = 0.0, 0.0, 0.0
    places = [place]
    for _ in range(8000):
        place, s, b = rmsprop_step(place, 1.0, s, b, 1.0, momentum)
        places.append(place)
    slope[f"RMSprop, momentum {momentum:g}"] = -np.diff(places)

rows = [("momentum", "step 1", "step 100", "step 1000", "step 8000", "longest")]
for label, lengths in slope.items():
    rows.append((label.split()[-1], *(f"{lengths[t - 1]:.1f}" for t in (1, 100, 1000, 8000)),
                 f"{lengths.max():.1f}"))
print("\n".join(ruled(rows)))

# %% [markdown]
# That answers the question at the top. The first step has ten learning rates, $1/\sqrt{1-\alpha}$,
# for want of bias correction. At momentum $0.999$ the steps then grow to about a **thousand**
# learning rates. A learning rate of $10^{-5}$, which looks timid, is then one of $10^{-2}$.
#
# How does that end in NaN? Half precision ends at 65504. Let a logit climb a steady slope at a
# learning rate of $10^{-3}$. It reaches that end after so many steps:

# %%
largest = float(np.finfo(np.float16).max)
for label, lengths in slope.items():
    travelled = 1e-3 * lengths.cumsum()
    steps = len(lengths) + (largest - travelled[-1]) / (1e-3 * lengths[-1])  # steady by then
    print(f"{label:<24} about {steps:>13,.0f} steps")

# %% [markdown]
# Batch norm stands in the way of it: what comes after one does not grow with the weights before
# it. A network without batch norm, or its last layer, has no such brake.
#
# ## The experiment: momentum in a bowl
#
# Slopes in training do end. Take the other extreme, a bowl with a long axis and a short one, fifty
# times as curved, turned so that neither axis is a weight's own. Turn **one knob**: the momentum.
# Everything else stays: RMSprop, $\alpha = 0.99$, $\eta = 0.01$, the start.

# %% tags=["experiment"]
turn = np.deg2rad(40)
axes = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
curvature = axes @ np.diag([1.0, 50.0]) @ axes.T  # (2, 2)
start = np.array([2.0, 0.5])

paths = {}
for label in slope:
    place, s, b = start, np.zeros(2), np.zeros(2)
    path = [place]
    for _ in range(1200):
        place, s, b = rmsprop_step(place, curvature @ place, s, b, 0.01, float(label.split()[-1]))
        path.append(place)
    paths[label] = np.array(path)

place, m, v = start, np.zeros(2), np.zeros(2)
path = [place]
for t in range(1, 1201):
    place, m, v = adamw_update_plain(place, curvature @ place, m, v, t=t, lr=0.01,
                                     weight_decay=0.0)
    path.append(place)
paths["AdamW"] = np.array(path)
slope["AdamW"] = np.ones(8000)

rows = [("", "farthest away", "last outside 0.1", "distance at the end")]
for label, path in paths.items():
    distance = np.linalg.norm(path, axis=1)
    rows.append((label, f"{distance.max():.2f}", f"step {np.flatnonzero(distance > 0.1)[-1]}",
                 f"{distance[-1]:.1e}"))
print("\n".join(ruled(rows)))
plots.show(walks(slope, paths, curvature), "12_adamw")

# %% [markdown]
# Left: the steps of the section above; AdamW's own is flat, one learning rate. Middle and right:
# the bowl. Without momentum RMSprop creeps; at $0.9$ it arrives soonest; at $0.99$ it swings; at
# $0.999$ it still runs through the floor and out on the other side when the picture ends. So
# momentum is no knob of which more is better. And no run flies off: in a bowl the slope turns
# before the sum has built up. It is steady slopes that are dangerous.
#
# (RMSprop never rests, by the way. The smaller the gradients, the smaller $\sqrt s$: down at the
# floor it still takes steps of about a learning rate. And AdamW is slow here for a reason that the
# next section shows: $v$ remembers the steep beginning for a thousand steps.)
#
# ## Clipping, and what it does to AdamW
#
# One bad batch can have a gradient a thousand times the usual one. Clipping bounds it: take *all*
# gradients of the model as one long vector, and shorten it if its norm is above a limit.
#
# $$g \leftarrow g \cdot \min\!\left(1, \frac{c}{\lVert g \rVert + 10^{-6}}\right), \qquad
#   \lVert g \rVert = \sqrt{\textstyle\sum_{\text{arrays}} \sum_i g_i^2}$$
#
# One norm for all, so that the direction stays. What is shorter than the limit is left alone.
#
# ## Exercise 12.2: clip by the global norm
#
# Write it for a layer with two arrays. Return new arrays.


# %% tags=["exercise-12.2"]
def clip_by_global_norm(dweight, dbias, max_norm):
    """Return (dweight, dbias), scaled so that their common norm is at most max_norm."""
    ### BEGIN SOLUTION
    norm = np.sqrt((dweight**2).sum() + (dbias**2).sum())
    scale = min(1.0, max_norm / (norm + 1e-6))
    return scale * dweight, scale * dbias
    ### END SOLUTION


# %% tags=["check-12.2"]
LIMITS = 1.0, 1000.0  # one below the norm, one above: values 1 and 2, and values 3 and 4


def at_both_limits(dweight, dbias):
    """Return what the answer gives at a limit below the norm, and at one above."""
    clipped = [clip_by_global_norm(dweight, dbias, limit) for limit in LIMITS]
    return None if None in clipped else (*clipped[0], *clipped[1])


def clipped_by_formula(dweight, dbias, factor=lambda norm, limit: min(1, limit / (norm + 1e-6))):
    """Return both arrays at both limits; `factor` is what they are multiplied by."""
    norm = np.sqrt((dweight**2).sum() + (dbias**2).sum())
    return [factor(norm, limit) * each for limit in LIMITS for each in (dweight, dbias)]


def clipped_by_torch(torch, dweight, dbias):
    """The same by torch.nn.utils.clip_grad_norm_."""
    results = []
    for limit in LIMITS:
        parameters = [torch.nn.Parameter(torch.zeros_like(each)) for each in (dweight, dbias)]
        for parameter, each in zip(parameters, (dweight, dbias)):
            parameter.grad = each.clone()
        torch.nn.utils.clip_grad_norm_(parameters, limit)
        results += [parameter.grad for parameter in parameters]
    return results


def each_alone(dweight, dbias):
    """Clip each array by a norm of its own."""
    return [min(1, limit / (np.linalg.norm(each) + 1e-6)) * each
            for limit in LIMITS for each in (dweight, dbias)]


check("12.2", at_both_limits,
      {"dweight": rng.standard_normal((3, 3, 2)), "dbias": 2 * rng.standard_normal(5)},
      expected=clipped_by_formula, torch=clipped_by_torch,
      slips={
          "each array is clipped by a norm of its own, which turns the direction: add up the "
          "squares of both first": each_alone,
          "the limit is above the norm here, and short gradients were made longer: the factor is "
          "at most 1":
              lambda dweight, dbias: clipped_by_formula(
                  dweight, dbias, lambda norm, limit: limit / (norm + 1e-6)),
          "the root is missing: the norm is the root of the sum of squares":
              lambda dweight, dbias: clipped_by_formula(
                  dweight, dbias, lambda norm, limit: min(1, limit / (norm**2 + 1e-6))),
          "each element is cut off at the limit, which turns the direction: one factor for all":
              lambda dweight, dbias: [np.clip(each, -limit, limit)
                                      for limit in LIMITS for each in (dweight, dbias)],
          "add 1e-6 to the norm, as torch does":
              lambda dweight, dbias: clipped_by_formula(
                  dweight, dbias, lambda norm, limit: min(1, limit / norm)),
      },
      hints={"scale": "The factor is min(1, max_norm / (norm + 1e-6)).",
             "": "One norm over both arrays, one factor for both."})

# %% [markdown]
# The package's version goes over the optimizer's one long buffer, and returns the norm before
# clipping, for the log:

# %%
optimizer.flat.grad[:] = rng.standard_normal(optimizer.flat.grad.size)
before = optimizer.flat.grad.copy()
norm = clip_grad_norm(optimizer, 1.0)
print(f"norm {norm:.3f}; package against formula: relative error "
      f"{relative_error(optimizer.flat.grad, before / (np.linalg.norm(before) + 1e-6)):.1e}")

# %% [markdown]
# Now the bad batch. AdamW divides by what gradients *usually* are, so does it need clipping at
# all? A gradient of 1 at every step, and one of 1000 at step 500:

# %%
lengths = {}
for limit in (np.inf, 1.0):
    p, m, v = np.zeros(1), np.zeros(1), np.zeros(1)
    places = [p]
    for t in range(1, 5001):
        g = np.array([1000.0 if t == 500 else 1.0])
        g = g * min(1.0, limit / (np.abs(g[0]) + 1e-6))
        p, m, v = adamw_update_plain(p, g, m, v, t=t, lr=1.0, weight_decay=0.0)
        places.append(p)
    lengths[limit] = -np.diff(np.array(places)[:, 0])
rows = [("length of step", "499", "500", "501", "600", "1000", "2000", "5000")]
for limit, text in ((np.inf, "not clipped"), (1.0, "clipped at 1")):
    rows.append((text, *(f"{lengths[limit][int(t) - 1]:.2f}" for t in rows[0][1:])))
print("\n".join(ruled(rows)))

# %% [markdown]
# The bad step itself is only a few learning rates long, and so are its next few: AdamW does bound
# it. The harm comes after. The square of the bad gradient sits in $v$, which forgets at a rate of
# $0.999$ per step, and **all steps of the next thousands are too short**. A loss that goes flat
# after a spike may mean just that. Clipping keeps the spike out of $v$.
#
# ## To think about
#
# **1.** You clip at 1, and every gradient of the run has a norm between 5 and 10. What does
# clipping do to a run with SGD, and to one with AdamW?
#
# <details><summary>Answer</summary>
#
# Every step is clipped. SGD then walks steps of one length, `lr * max_norm`: the size of the
# gradient has no say any more, and the limit has become a part of the learning rate. AdamW divides
# by the usual size anyway; a common factor would cancel. All that remains is that batches count
# alike, those with a large gradient no more than others.
#
# </details>
#
# **2.** A weight belongs to a class that occurs in one batch of a hundred. Its gradient is 1 there
# and 0 elsewhere. How long is AdamW's step for it, compared with a weight whose gradient is 1 at
# every step?
#
# <details><summary>Answer</summary>
#
# On average $m$ is $1/100$, and $v$ too, so that $\sqrt v$ is $1/10$: its steps average a tenth of
# a learning rate, although its gradient averages a hundredth. So AdamW lifts rare signals, by the
# root of their rarity. That is help, not justice.
#
# </details>
#
# **3.** The package can leave biases and batch norm out of the decay
# (`--no-decay-norm-and-bias`). Why would one want that?
#
# <details><summary>Answer</summary>
#
# Decay keeps weights small, because large ones make steep functions. A bias makes nothing steep;
# it holds, for instance, how frequent a class is, and decay pulls that towards "equally frequent".
# A batch norm's scale is what gives a channel its size at all. The effect is often small; torch's
# default decays everything.
#
# </details>
