# %% [markdown]
# # 3 · Softmax cross-entropy, and who owns its gradient
#
# | | |
# |---|---|
# | goal | derive the gradient of softmax cross-entropy, see whose pixels it comes from |
# | before this | lessons 0 and 2 |
# | read | 10 minutes |
# | exercises | 15 minutes |
# | computes | 3 s |

# %%
import numpy as np

from minisegnet import datasets, losses, plots
from minisegnet.imbalance.gradient_ledger import gradient_ledger
from minisegnet.losses import Criterion
from minisegnet.plots.ledger import ledgers_side_by_side
from minisegnet.tables import percent, ruled
from minisegnet.verify import check
from minisegnet.verify.gradcheck import relative_error

rng = np.random.default_rng(3)

# %% [markdown]
# ## Predict before you run
#
# A network has just been initialised: all 12 classes of a floor plan are equally likely to it, at
# every pixel. Most pixels are background. Toilets, sinks, stoves and beds are small, and few plans
# have any.
#
# **Which share of the first gradient comes from the pixels of those four classes?** Less than
# their share of the pixels, because the frequent classes shout them down? More, because the
# network is more surprised by what is rare? Write down a guess. The answer is computed in the
# section "Who owns the gradient?".

# %% [markdown]
# ## From logits to a loss
#
# For one pixel the network gives $K$ numbers $z_1, \dots, z_K$, the *logits*. Softmax makes
# probabilities of them, and cross-entropy asks how surprising the true class $y$ was:
#
# $$p_c = \frac{e^{z_c}}{\sum_k e^{z_k}} \qquad\qquad \ell = -\log p_y$$
#
# Two things can go wrong in code. $e^{z}$ overflows at $z = 710$ in float64, and at 89 in float32.
# And if $p_y$ has been rounded to 0, its logarithm is $-\infty$. Both are cured on paper: subtract
# $m = \max_k z_k$ from every logit, which changes no probability, and never take the logarithm of
# a probability at all:
#
# $$\log p_c = (z_c - m) - \log \sum_k e^{z_k - m}$$
#
# | formula | code |
# |---|---|
# | $z_c - m$ | `shifted = logits - logits.max(axis=-1, keepdims=True)` |
# | $\log p_c$ | `shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))` |


# %%
def log_softmax(logits):
    """Return the logarithms of the class probabilities, (..., K)."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def naive(logits):
    """The same on paper, and not the same in floating point."""
    exp = np.exp(logits)
    return np.log(exp / exp.sum(axis=-1, keepdims=True))


with np.errstate(all="ignore"):
    for z in ([2.0, 0.0], [100.0, 0.0], [1000.0, 0.0]):
        z = np.array(z, np.float32)
        print(f"logits {z}   naive {naive(z)}   with the shift {log_softmax(z)}")

# %% [markdown]
# ## Exercise 3.1: the mean over the pixels that count
#
# Masks mark pixels that nobody labelled with the value 255. They take no part in the loss, and
# they are not counted in the mean either:
#
# $$L = \frac{1}{P} \sum_{i:\, y_i \ne 255} -\log p_i[y_i], \qquad P = \text{their number}$$
#
# Write it. `np.take_along_axis(array, index[..., None], axis=-1)[..., 0]` picks one element per
# pixel; an index of 255 would be out of range, so it needs a stand-in first.


# %% tags=["exercise-3.1"]
def cross_entropy(logits, target):
    """Return the mean cross-entropy of logits (N, H, W, K) against target (N, H, W), a float.

    target is int, 0 .. K-1, or 255 where the pixel takes no part.
    """
    ### BEGIN SOLUTION
    is_valid = target != 255
    label = np.where(is_valid, target, 0)
    log_prob = np.take_along_axis(log_softmax(logits), label[..., None], axis=-1)[..., 0]
    return float(-log_prob[is_valid].sum() / is_valid.sum())
    ### END SOLUTION


# %% tags=["check-3.1"]
logits = rng.standard_normal((2, 3, 4, 5))
target = rng.integers(0, 5, (2, 3, 4))
target[0, 0, :2] = target[1, 2, 3] = 255

check("3.1", cross_entropy, {"logits": logits, "target": target},
      expected=lambda logits, target: losses.cross_entropy_forward(logits, target)[0],
      torch=lambda torch, logits, target: torch.nn.functional.cross_entropy(
          logits.permute(0, 3, 1, 2), target, ignore_index=255),
      quantities={"the number of valid pixels, P": (target != 255).sum(),
                  "P over the number of all pixels": (target != 255).mean()},
      slips={"the logarithm is missing: this is the mean of -p, not of -log p":
             lambda logits, target: -np.exp(log_softmax(logits))[np.arange(5) == target[
                 ..., None]].mean(),
             "these are the logits as they came: take log_softmax of them first":
             lambda logits, target: -logits[np.arange(5) == target[..., None]].mean(),
             "the ignored pixels are in the mean, with the class that stands in for 255":
             lambda logits, target: losses.cross_entropy_forward(
                 logits, np.where(target == 255, 0, target))[0]},
      hints={"shape": "The mean is a single number.",
             "": "Pick the true class of log_softmax(logits) with take_along_axis, keep the valid "
                 "pixels, then average. P is the number of pixels that are not 255."})

# %% [markdown]
# ## Backward
#
# How does $\ell = -\log p_y = -z_y + \log \sum_k e^{z_k}$ change with each logit? The first part
# contributes $-1$ to the true class's logit. The second has a derivative with a familiar face:
#
# $$\frac{\partial}{\partial z_c} \log \sum_k e^{z_k} = \frac{e^{z_c}}{\sum_k e^{z_k}} = p_c
# \qquad\Longrightarrow\qquad \frac{\partial \ell}{\partial z_c} = p_c - [c = y]$$
#
# **What the network said, minus what is true.** Each of the valid pixels has the factor $1/P$ from
# the mean, an ignored one has no gradient at all, and the whole is multiplied by `dloss`, the
# gradient of whatever comes after the loss (1 in a plain training; a loss scale or the factor of a
# sum of losses otherwise).
#
# ## Exercise 3.2: the gradient
#
# Write the backward pass. `np.arange(K) == target[..., None]` is the one-hot target, for free: 255
# equals no class.


# %% tags=["exercise-3.2"]
def cross_entropy_backward(dloss, logits, target):
    """Return dlogits (N, H, W, K) of `cross_entropy`; dloss is a float, target as there."""
    ### BEGIN SOLUTION
    K = logits.shape[-1]
    is_valid = target != 255
    onehot = np.arange(K) == target[..., None]
    dlogits = np.exp(log_softmax(logits)) - onehot
    dlogits[~is_valid] = 0
    return dloss * dlogits / is_valid.sum()
    ### END SOLUTION


# %% tags=["check-3.2"]
check("3.2", cross_entropy_backward, {"logits": logits, "target": target},
      forward=lambda logits, target: losses.cross_entropy_forward(logits, target)[0],
      torch=lambda torch, logits, target: torch.nn.functional.cross_entropy(
          logits.permute(0, 3, 1, 2), target, ignore_index=255),
      quantities={"the number of valid pixels, P": (target != 255).sum(),
                  "P over the number of all pixels": (target != 255).mean()},
      hints={"scale": "The mean is over the pixels that are not 255.",
             "sign": "What the network said comes first: p - onehot.",
             "": "p_c - [c = y] with p = exp(log_softmax(logits)), times dloss, divided by P; 0 "
                 "at the ignored pixels."},
      slips={"an ignored pixel moves nothing: all its K numbers are 0":
             lambda dloss, logits, target: dloss * (
                 np.exp(log_softmax(logits)) - (np.arange(5) == target[..., None]))
             / (target != 255).sum(),
             "the true class is not alone: raising another class's logit costs p_c":
             lambda dloss, logits, target: dloss * (
                 np.exp(log_softmax(logits)) - 1) * (np.arange(5) == target[..., None])
             / (target != 255).sum()})

# %% [markdown]
# The package's function is `losses.cross_entropy_backward`. It goes over the pixels in blocks that
# fit the cache and computes loss and gradient in one pass; the numbers are those of the formula:

# %%
K = 12
big = rng.standard_normal((4, 64, 80, K))
labels = rng.integers(0, K, (4, 64, 80))
_, cache = losses.cross_entropy_forward(big, labels)
by_formula = (np.exp(log_softmax(big)) - (np.arange(K) == labels[..., None])) / labels.size
print(f"package against formula: relative error "
      f"{relative_error(losses.cross_entropy_backward(1.0, cache), by_formula):.1e}")

# %% [markdown]
# One property is worth remembering: the $K$ numbers of a pixel add up to zero, since both $p$ and
# the one-hot target add up to one. What a pixel gives to one logit, it takes from the others.

# %%
print(f"largest sum over the classes of a pixel: {np.abs(by_formula.sum(axis=-1)).max():.1e}")

# %% [markdown]
# ## Who owns the gradient?
#
# The gradient is all that a network ever learns from. So book it: take $|\partial L/\partial z|$
# at every pixel, and add it up by the class *of the pixel*. That is the **gradient ledger**.
# Before training all classes are equally likely, $p_c = 1/K$, so every pixel contributes the same
# amount, $2(K-1)/K$ over $P$, whatever its class:

# %%
plans = datasets.FloorPlans("train", length=48, rare_image_share=0.1)
target = np.stack([plans[i].mask[::2, ::2] for i in range(len(plans))])  # (48, 64, 80)
names, K = plans.class_names, plans.num_classes
pixels = np.bincount(target.ravel(), minlength=K) / target.size
rare = np.isin(names, ("toilet", "sink", "stove", "bed"))

uniform = np.zeros((*target.shape, K))
ledger = gradient_ledger(Criterion("ce"), uniform, target)
order = np.argsort(-pixels)
rows = [("class", "of the pixels", "of the gradient")]
rows += [(names[c], percent(pixels[c]), percent(ledger.share_by_target[c])) for c in order]
print("\n".join(ruled(rows)))
print(f"\nthe four fixtures: {percent(pixels[rare].sum())} of the pixels, "
      f"{percent(ledger.share_by_target[rare].sum())} of the gradient")

# %% [markdown]
# That is the answer to the question at the top: **exactly their share of the pixels**. Rarity
# surprises nobody who believes everything equally likely.
#
# ## The experiment: learn the class frequencies, and nothing else
#
# What a network learns first is how frequent the classes are; a bias in the last layer is enough
# for that. Turn this one knob: let the logits be $z_c = t \log f_c$ with $f_c$ the share of class
# $c$. At $t = 0$ all classes are equally likely, at $t = 1$ the network knows the frequencies, and
# beyond it exaggerates them. It has not looked at a single picture.

# %% tags=["experiment"]
shares = {}
for t in (0.0, 0.5, 1.0, 2.0):
    logits_of_t = np.broadcast_to(t * np.log(pixels), (*target.shape, K)).copy()
    books = gradient_ledger(Criterion("ce"), logits_of_t, target)
    shares[f"t = {t:g}"] = books.share_by_target
    print(f"t = {t:g}: loss {books.loss:.3f}, the four fixtures have "
          f"{percent(books.share_by_target[rare].sum())} of the gradient")

plots.show(ledgers_side_by_side(pixels, {"logits t log f": shares}, names, plans.palette, rare),
           "03_cross_entropy")

# %% [markdown]
# From $t = 0$ to $1$ two things happen at once. The loss falls, by a lot, although the network is
# blind. And the share of the rare pixels in the gradient *grows*, because they are now surprising:
# background is nearly right and has little left to say. Whoever exaggerates, $t = 2$, pays with a
# larger loss. But look at the right-hand side of the picture: all classes other than background
# gain by nearly the same factor, walls as much as toilets. Cross-entropy turns to what is *not
# background*, and not to what is rare. Between "a larger share" and "enough to be found" lie the
# factors that the next lessons turn: class weights (4), focal loss (5), dice (6).
#
# ## To think about
#
# **1.** The gradient of one pixel is $p - \text{onehot}$. How large can the sum of its absolute
# values get, and when?
#
# <details><summary>Answer</summary>
#
# It is $2(1 - p_y)$: the true class has $1 - p_y$, and the others together have as much. So it is
# never above 2, reached where the network is sure and wrong. No pixel can shout louder than that:
# cross-entropy without weights is deaf to *how much* a class matters.
#
# </details>
#
# **2.** Why is the mean taken over the valid pixels, and not over all?
#
# <details><summary>Answer</summary>
#
# Else the size of the gradient, and with it that of the step, would depend on how much of a
# picture somebody left unlabelled. Some libraries do divide by all pixels; lesson 4 compares.
#
# </details>
#
# **3.** A gradient check that feeds `dloss = 1` passes for a backward pass that ignores `dloss`.
# Where would the bug show?
#
# <details><summary>Answer</summary>
#
# In every sum of losses (`0.5 * ce + dice`), in gradient accumulation, and under a loss scale:
# wherever the loss is not the end of the computation. The check above uses a random number.
#
# </details>
