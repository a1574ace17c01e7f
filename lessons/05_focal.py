# %% [markdown]
# # 5 · Focal loss, and why it is not class weighting
#
# | | |
# |---|---|
# | goal | derive focal loss, and tell "hard" from "rare" by the gradient |
# | before this | lessons 3 and 4 |
# | read | 15 minutes |
# | exercises | 15 minutes |
# | computes | 7 s |

# %%
import numpy as np

from minisegnet import datasets, losses, plots
from minisegnet.imbalance.gradient_ledger import gradient_ledger
from minisegnet.losses import Criterion
from minisegnet.losses.conventions import monai_focal, smp_focal
from minisegnet.models import build_model
from minisegnet.optim import AdamW
from minisegnet.optim.schedules import OneCycleLR
from minisegnet.plots.ledger import ledgers_side_by_side
from minisegnet.plots.loss_functions import loss_against_probability
from minisegnet.tables import percent, ruled
from minisegnet.verify import check
from minisegnet.verify.gradcheck import relative_error

rng = np.random.default_rng(5)

# %% [markdown]
# ## Predict before you run
#
# Focal loss has a knob, $\gamma$. At 0 it is cross-entropy; the larger it is, the less do easy
# pixels count. A network has just been initialised, and all classes are equally likely to it. Four
# rare classes own less than half a per cent of the pixels.
#
# **With which $\gamma$ is their share of the first gradient largest: 0, 1, 2 or 5?** Write down a
# guess. The answer is computed in the experiment at the end.

# %% [markdown]
# ## The loss
#
# A trained network gets most pixels right without effort: the middle of a lawn, of a wall, of a
# sheet of paper. Each of them has a small loss, but there are very many. Focal loss multiplies
# cross-entropy by a factor that is small where the true class is already probable. With $p_t$ the
# probability of the pixel's true class:
#
# $$L = \frac{1}{P} \sum_i \alpha_{y_i} \, (1 - p_t)^\gamma \, (-\log p_t)$$
#
# The factor $\alpha$, a number per class, is a class weight and nothing else; we come back to it.
# Note what stands in front: $\frac{1}{P}$. The mean is over the **number of valid pixels**, not
# over the sum of their $\alpha$ as in weighted cross-entropy (lesson 4).
#
# | formula | code |
# |---|---|
# | $\log p_t$ | `np.take_along_axis(log_softmax(logits), label[..., None], axis=-1)[..., 0]` |
# | $1 - p_t$ | `miss = -np.expm1(log_pt)` |
# | $(1 - p_t)^\gamma (-\log p_t)$ | `miss ** gamma * -log_pt` |
#
# Why `expm1`, which is $e^x - 1$? Close to $p_t = 1$ the difference `1 - np.exp(log_pt)` has lost
# all its digits, and `expm1` has kept them:


# %%
def log_softmax(logits):
    """Return the logarithms of the class probabilities, (..., K); lesson 3."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


for log_pt in (-1e-3, -1e-8, -1e-17):
    print(f"log p_t = {log_pt:7.0e}:   1 - exp gives {1 - np.exp(log_pt):.6e},   "
          f"-expm1 gives {-np.expm1(log_pt):.6e}")

# %% [markdown]
# ### Myth check: "a loss of 2.5 becomes 1.225"
#
# A guide explains focal loss by a hard pixel with cross-entropy 2.5, which focal loss with
# $\gamma = 2$ is said to turn into 1.225. The loss says what the probability is, so check it:

# %%
for ce in (2.5, -np.log(0.3)):
    p_t = np.exp(-ce)
    print(f"cross-entropy {ce:.3f} means p_t = {p_t:.3f}, and focal is "
          f"(1 - {p_t:.3f})^2 x {ce:.3f} = {(1 - p_t) ** 2 * ce:.3f}")
print(f"2.5 x 0.7^2 = {2.5 * 0.7 ** 2:.3f}")

# %% [markdown]
# The last line shows what has happened: the factor of a pixel with $p_t = 0.3$ was put on the loss
# of one with $p_t = 0.082$. Cross-entropy and probability are one number in two forms, and no
# example may choose them separately.
#
# ## Exercise 5.1: focal loss
#
# `alpha` has a number per class. Pixels with the target 255 count neither above nor below.


# %% tags=["exercise-5.1"]
def focal(logits, target, alpha, gamma):
    """Return the focal loss, a float, of logits (N, H, W, K), target (N, H, W), alpha (K,).

    gamma is a float >= 0; a pixel with the target 255 takes no part.
    """
    ### BEGIN SOLUTION
    is_valid = target != 255
    label = np.where(is_valid, target, 0)
    log_pt = np.take_along_axis(log_softmax(logits), label[..., None], axis=-1)[..., 0]
    loss = alpha[label] * (-np.expm1(log_pt)) ** gamma * -log_pt  # (N, H, W)
    return float(loss[is_valid].sum() / is_valid.sum())
    ### END SOLUTION


# %% tags=["check-5.1"]
logits = 2 * rng.standard_normal((2, 3, 4, 5))
target = rng.integers(0, 5, (2, 3, 4))
target[0, 0, :2] = target[1, 2, 3] = 255
alpha = rng.uniform(0.5, 4.0, 5)
label = target[target != 255]


def focal_of(modulation, alpha, logits, target):
    """The mean of alpha * modulation(p_t) * -log p_t: slips are other modulations, or alphas."""
    is_valid = target != 255
    label = target[is_valid]
    log_pt = log_softmax(logits)[is_valid][np.arange(label.size), label]
    return float((alpha[label] * modulation(np.exp(log_pt)) * -log_pt).mean())


check("5.1", focal, {"logits": logits, "target": target, "alpha": alpha, "gamma": 2.0},
      expected=lambda logits, target, alpha, gamma: losses.focal_forward(
          logits, target, alpha=alpha, gamma=gamma)[0],
      quantities={"P over the sum of alpha: focal's mean is over the pixels":
                  label.size / alpha[label].sum(),
                  "P over the number of all pixels": label.size / target.size,
                  "the number of valid pixels, P": label.size},
      slips={"The factor here is p_t to the power gamma, which favours easy pixels. It is 1 - p_t":
             lambda logits, target, alpha, gamma: focal_of(
                 lambda p: p ** gamma, alpha, logits, target),
             "alpha is missing: it is looked up by the label, one number per pixel":
             lambda logits, target, alpha, gamma: focal_of(
                 lambda p: (1 - p) ** gamma, np.ones(5), logits, target),
             "alpha is inside the power here: only 1 - p_t is":
             lambda logits, target, alpha, gamma: focal_of(
                 lambda p: (1 - p) ** gamma, alpha ** gamma, logits, target),
             "gamma is a factor here: it is the exponent of 1 - p_t":
             lambda logits, target, alpha, gamma: focal_of(
                 lambda p: (1 - p) * gamma, alpha, logits, target),
             "The ignored pixels count here, with the class that stands in for 255":
             lambda logits, target, alpha, gamma: losses.focal_forward(
                 logits, np.where(target == 255, 0, target), alpha=alpha, gamma=gamma)[0]},
      hints={"sign": "The logarithm of a probability is negative, a loss is not.",
             "": "alpha[y] (1 - p_t)^gamma (-log p_t), summed over the valid pixels and divided "
                 "by their number."})

# %% [markdown]
# ## Backward
#
# Write the loss of one pixel as a function of $u = \log p_t$, that is
# $\ell = -(1 - e^u)^\gamma u$. By the product rule, with $p_t = e^u$,
#
# $$\frac{d\ell}{du} = -(1 - p_t)^\gamma + \gamma \, (1 - p_t)^{\gamma - 1} \, p_t \log p_t$$
#
# And how $u = \log p_t$ depends on the logits is known from lesson 3: $\partial u / \partial z_c =
# [c = y] - p_c$. Together, for the whole mean,
#
# $$\frac{\partial L}{\partial z_{ic}} = \frac{\alpha_{y_i}}{P} \, g_i \, (p_{ic} - [c = y_i])
# \qquad g = (1 - p_t)^\gamma - \gamma \, (1 - p_t)^{\gamma - 1} \, p_t \log p_t$$
#
# This is worth a moment. **The gradient has the direction of cross-entropy's**, what the network
# said minus what is true. Focal loss only decides how loudly each pixel says it, by a factor $g$
# that depends on nothing but $p_t$: not on the class, and not on how rare it is.
#
# The formula has a flaw, though. At $p_t = 1$ and $\gamma < 1$, the power $(1-p_t)^{\gamma-1}$ is
# infinite, $\log p_t$ is 0, and a computer makes nan of it. Take out what is common:
#
# $$g = (1 - p_t)^\gamma \Big[ 1 + \gamma \, p_t \, \frac{-\log p_t}{1 - p_t} \Big]$$
#
# The fraction tends to 1 as $p_t \to 1$, so $g$ is 0 there for every $\gamma > 0$, and 1 for
# $\gamma = 0$. Where `miss` is 0 the numerator is 0 too: put any other number into the denominator
# there, and all is finite.

# %%
log_pt = np.array([-745.0, -2.5, -1e-3, 0.0])  # from hopeless to certain
p_t, miss = np.exp(log_pt), -np.expm1(log_pt)
with np.errstate(all="ignore"):
    textbook = miss ** 0.5 - 0.5 * miss ** -0.5 * p_t * log_pt
ratio = -log_pt / np.where(miss > 0, miss, 1)
stable = miss ** 0.5 * (1 + 0.5 * p_t * ratio)
print(f"gamma 0.5, textbook {textbook}\n           stable   {stable + 0.0}")

# %% [markdown]
# ## Exercise 5.2: the gradient
#
# It must be finite for every $\gamma \ge 0$, also where the network is certain, rightly or
# wrongly: the check has one pixel of each kind, and $\gamma = \frac12$. Never take the logarithm
# of a probability.


# %% tags=["exercise-5.2"]
def focal_backward(dloss, logits, target, alpha, gamma):
    """Return dlogits (N, H, W, K) of the focal loss of exercise 5.1; dloss is a float."""
    ### BEGIN SOLUTION
    is_valid = target != 255
    label = np.where(is_valid, target, 0)
    log_prob = log_softmax(logits)
    log_pt = np.take_along_axis(log_prob, label[..., None], axis=-1)[..., 0]
    miss = -np.expm1(log_pt)
    ratio = -log_pt / np.where(miss > 0, miss, 1)
    g = miss ** gamma * (1 + gamma * np.exp(log_pt) * ratio)
    factor = dloss * alpha[label] * g * is_valid / is_valid.sum()  # (N, H, W)
    onehot = np.arange(logits.shape[-1]) == target[..., None]
    return factor[..., None] * (np.exp(log_prob) - onehot)
    ### END SOLUTION


# %% tags=["check-5.2"]
hard = logits.copy()
hard[0, 1, 0] = [800.0, 0, 0, 0, 0]  # certain, and right
hard[0, 1, 1] = [0, 800.0, 0, 0, 0]  # certain, and wrong
truth = target.copy()
truth[0, 1, :2] = 0


def stable_g(p_t, log_pt, gamma):
    """The second form of g."""
    miss = -np.expm1(log_pt)
    return miss ** gamma * (1 + gamma * p_t * -log_pt / np.where(miss > 0, miss, 1))


def scaled_ce(dloss, logits, target, alpha, gamma, g, ignored=False):
    """dlogits with another factor g(p_t, log p_t, gamma), or at the ignored pixels as well."""
    is_valid = target != 255
    label = np.where(is_valid, target, 0)
    log_prob = log_softmax(logits)
    log_pt = np.take_along_axis(log_prob, label[..., None], axis=-1)[..., 0]
    factor = dloss * alpha[label] * g(np.exp(log_pt), log_pt, gamma) / is_valid.sum()
    factor = factor * (is_valid | ignored)
    return factor[..., None] * (
        np.exp(log_prob) - (np.arange(logits.shape[-1]) == target[..., None]))


check("5.2", focal_backward, {"logits": hard, "target": truth, "alpha": alpha, "gamma": 0.5},
      forward=lambda logits, target, alpha, gamma: losses.focal_forward(
          logits, target, alpha=alpha, gamma=gamma)[0],
      wrt=["logits"],
      quantities={"the number of valid pixels, P": (truth != 255).sum(),
                  "P over the sum of alpha: focal's mean is over the pixels":
                  (truth != 255).sum() / alpha[truth[truth != 255]].sum(),
                  "P over the number of all pixels": (truth != 255).mean()},
      slips={"The factor (1 - p_t)^gamma depends on the logits, too: its derivative is missing":
             lambda *args, **inputs: scaled_ce(
                 *args, **inputs, g=lambda p, log_p, gamma: (1 - p) ** gamma),
             "The second part of g has the wrong sign: minus gamma (1-p)^(gamma-1) p log p is "
             "positive":
             lambda *args, **inputs: scaled_ce(
                 *args, **inputs, g=lambda p, log_p, gamma: (1 - p) ** gamma * (
                     1 + gamma * p * log_p / np.where(p < 1, 1 - p, 1))),
             "alpha is missing: every pixel is multiplied by that of its class":
             lambda dloss, logits, target, alpha, gamma: scaled_ce(
                 dloss, logits, target, np.ones(5), gamma, stable_g),
             "An ignored pixel moves nothing: all its K numbers are 0":
             lambda dloss, logits, target, alpha, gamma: scaled_ce(
                 dloss, logits, target, alpha, gamma, stable_g, ignored=True)},
      hints={"scale": "Divide by the number of pixels that are not 255.",
             "nan": "Start from log_softmax, use the second form of g, and give the fraction "
                    "another denominator where 1 - p_t is 0.",
             "sign": "What the network said comes first: p - onehot.",
             "": "dloss * alpha[y] / P * g * (p - onehot), with g = (1 - p_t)^gamma [1 + gamma "
                 "p_t (-log p_t) / (1 - p_t)]; 0 at the ignored pixels."})

# %% [markdown]
# The package computes the same, in blocks of pixels, with gradient and loss in one pass:

# %%
big, labels = 3 * rng.standard_normal((4, 64, 80, 12)), rng.integers(0, 12, (4, 64, 80))
_, cache = losses.focal_forward(big, labels, gamma=2.0)
by_formula = scaled_ce(1.0, big, labels, np.ones(12), 2.0, g=lambda p, log_p, gamma: (
    (1 - p) ** gamma - gamma * (1 - p) ** (gamma - 1) * p * log_p))
print(f"package against formula: relative error "
      f"{relative_error(losses.focal_backward(1.0, cache), by_formula):.1e}")

plots.show(loss_against_probability((0.0, 0.5, 1.0, 2.0, 5.0), {"easy": 0.9, "hard": 0.1}),
           "05_focal_curves")

# %% [markdown]
# On the right, follow the dotted lines. At the easy pixel each step down from one curve to the
# next is what $\gamma$ takes from it, and the scale is logarithmic: it is a lot, and $\gamma = 5$
# even leaves the picture. At the hard pixel the curves lie together, and those of focal loss even
# a little *above* cross-entropy's.
#
# ## Hard is not rare
#
# "Rare classes are the hard ones, so focal loss helps them." Make a case where it is the other way
# round. A common class is hard, 990 pixels with $p_t = 0.6$; a rare one is easy, 10 pixels with
# $p_t = 0.9$:

# %%
rows = np.repeat([[0.6, 0.4], [0.1, 0.9]], (990, 10), axis=0)
two, classes = np.log(rows)[None, None], np.repeat([0, 1], (990, 10))[None, None]
for gamma in (0.0, 1.0, 2.0, 5.0):
    books = gradient_ledger(Criterion("focal", gamma=gamma), two, classes)
    share = percent(books.share_by_target[1])
    print(f"gamma {gamma:g}: the rare class has {share} of the gradient")
books = gradient_ledger(Criterion("ce", weight=np.array([1.0, 99.0])), two, classes)
print(f"cross-entropy, weights 1 and 99: {percent(books.share_by_target[1])}")

# %% [markdown]
# Focal loss takes from the easy, and these are the rare ones here. A class weight knows the class
# and not the difficulty. They are two different questions.
#
# ## The experiment: three states of a network, one knob
#
# Turn $\gamma$, and read the gradient ledger of lesson 3 in three states: a **uniform**
# prediction; one that knows only the **frequencies** of the classes; and a network after a short
# **training** with plain cross-entropy, looking at plans it has not seen. For comparison,
# cross-entropy with the square-root weights of lesson 4.


# %% tags=["experiment"]
PLANS = dict(size=(64, 80), fixture_size=6, wall=3, rare_image_share=0.2)
plans = datasets.FloorPlans("train", length=320, **PLANS)
names, K = plans.class_names, plans.num_classes
rare = np.isin(names, ("toilet", "sink", "stove", "bed"))


def train(seed=0, epochs=3, lr=0.03):
    """Return `mini`, trained on the plans with cross-entropy, ready to predict."""
    model, criterion = build_model("mini", K, seed=seed), Criterion("ce")
    loader = datasets.DataLoader(plans, 8, shuffle=True, seed=seed, num_workers=0)
    optimizer, schedule = AdamW(model, lr), OneCycleLR(lr, epochs * len(loader))
    step = 0
    for epoch in range(epochs):
        for batch in loader.batches(epoch):
            optimizer.lr = schedule(step)
            optimizer.zero_grad()
            coarse = model.forward_coarse(batch.images)
            _, cache = criterion.forward_upsampled(coarse, batch.target)
            model.backward_coarse(criterion.backward_upsampled(1.0, cache))
            optimizer.step()
            step += 1
    model.eval()
    return model


unseen = datasets.DataLoader(datasets.FloorPlans("val", length=64, **PLANS), 64, num_workers=0)
[batch] = unseen.batches()
masks = batch.target
f = np.bincount(masks.ravel(), minlength=K) / masks.size
states = {"uniform": np.zeros((*masks.shape, K), np.float32),
          "frequencies": np.tile(np.log(f).astype(np.float32), (*masks.shape, 1)),
          "trained": train().forward(batch.images)}
knobs = {f"γ = {gamma:g}": Criterion("focal", gamma=gamma) for gamma in (0.0, 1.0, 2.0, 5.0)}
knobs["ce: sqrt weights"] = Criterion("ce", weight=np.sqrt(f.max() / f))

shares = {state: {knob: gradient_ledger(criterion, logits, masks).share_by_target
                  for knob, criterion in knobs.items()} for state, logits in states.items()}
rows = [("the four fixtures' share", *knobs)]
rows += [(state, *(percent(share[rare].sum()) for share in of_state.values()))
         for state, of_state in shares.items()]
print("\n".join(ruled(rows)))
print(f"(of the pixels: {percent(f[rare].sum())})")
plots.show(ledgers_side_by_side(f, shares, names, plans.palette, rare), "05_focal")

# %% [markdown]
# The first row answers the question at the top: **all the same**. At a uniform prediction every
# pixel has $p_t = 1/K$, hence the same $g$, and a factor that is common to all changes no share.
# Weights do: that is the difference in one line.
#
# The second row: background is probable now, so a larger $\gamma$ takes from it, and all other
# classes gain, the rare ones no more than the rest. In the third, the network has learned
# something, and focal loss still moves the gradient, away from background and wall. But look where
# to: mostly to the four kinds of rooms, which look alike and are hard. The fixtures' share hardly
# changes; among all that is hard, they remain few. And the easy pixels, which focal loss is all
# about?

# %% tags=["experiment"]
logits = states["trained"]
log_pt = np.take_along_axis(log_softmax(logits), masks[..., None].astype(int), axis=-1)[..., 0]
easy = log_pt > np.log(0.9)
print(f"pixels with p_t above 0.9: {percent(easy.mean())}")
for knob, criterion in knobs.items():
    _, cache = criterion.forward(logits, masks)
    size = np.abs(criterion.backward(1.0, cache)).sum(axis=-1)
    print(f"{knob}: {percent(size[easy].sum() / size.sum())} of the gradient comes from them")

# %% [markdown]
# Most pixels are easy, and they had little to say even in cross-entropy: $p - \text{onehot}$ is
# small for them by itself. Focal loss was made for detectors that look at a hundred thousand
# places in a picture to find a few objects. With so many easy ones even a little each adds up.
# Whether that is your case, a ledger tells before any training is wasted on it.
#
# ## Myth check: "alpha 0.25, as in the paper"
#
# In the paper there are two classes, and 0.25 means: 0.25 for the object, 0.75 for the background.
# In softmax focal loss a single number multiplies every pixel alike, and only rescales the loss.
# That is without effect where the optimizer is Adam, and not without effect in a sum:

# %%
z, y = 2 * rng.standard_normal((2, 8, 8, 5)), rng.integers(0, 5, (2, 8, 8))
rows = [("", "no alpha", "alpha 0.25", "ratio")]
for title, loss in (
        ("ours: all classes alike", lambda alpha: losses.focal_forward(z, y, alpha=alpha)[0]),
        ("focal + dice", lambda alpha: losses.combined_forward(z, y, alpha=alpha)[0]),
        ("MONAI, softmax: class 0 gets 0.75", lambda alpha: monai_focal(z, y, alpha=alpha)),
        ("smp: sigmoids, one against the rest", lambda alpha: smp_focal(z, y, alpha=alpha))):
    plain, scaled = loss(None), loss(0.25)
    rows.append((title, f"{plain:.4f}", f"{scaled:.4f}", f"{scaled / plain:.3f}"))
print("\n".join(ruled(rows)))

# %% [markdown]
# One name, and the same 0.25 has three meanings. Ours is a factor on everything, which makes focal
# a quarter of what it was beside a dice that stays. MONAI's gives 0.75 to class 0 and 0.25 to all
# others, and so weighs the background *three times* as much as every other class, the opposite of
# what one wants. That of segmentation_models.pytorch (smp) asks each class for itself, yes or no,
# and 0.25 belongs to yes. Before you copy a number, look up the formula.
#
# ## To think about
#
# **1.** With $\gamma = 2$, can a pixel's gradient be larger than in cross-entropy?
#
# <details><summary>Answer</summary>
#
# Yes. $g = (1-p_t)^2 + 2 (1-p_t) \, p_t (-\log p_t)$ is above 1 for small $p_t$: at $p_t = 0.2$ it
# is $0.64 + 0.8 \cdot 0.2 \cdot 2 \cdot 1.609 = 1.155$. Focal loss is smaller than cross-entropy
# everywhere, but its slope is steeper there.
#
# </details>
#
# **2.** Your loss falls from 0.30 to 0.04 when you switch from cross-entropy to focal loss with
# $\gamma = 2$. Is the network better?
#
# <details><summary>Answer</summary>
#
# The loss does not say: it is another function, and smaller on every pixel. Two losses are never
# compared by their values. Compare IoU, precision and recall on data that neither has seen.
#
# </details>
#
# **3.** How could one have both, difficulty and rarity?
#
# <details><summary>Answer</summary>
#
# With $\alpha$ per class: the factors multiply. `--loss focal --class-weights sqrt` does that.
# Keep in mind what lesson 4 said about the denominator: this mean is over the pixels, so the size
# of $\alpha$ matters, and a batch of one class is not normalised.
#
# </details>
