# %% [markdown]
# # 4 · Class weights, and what a weighted mean divides by
#
# | | |
# |---|---|
# | goal | weigh classes knowingly: five schemes, one denominator, and a trap |
# | before this | lesson 3 |
# | read | 15 minutes |
# | exercises | 15 minutes |
# | computes | 22 s |

# %%
import numpy as np

from minisegnet import datasets, losses, plots
from minisegnet.imbalance import SCHEMES, ClassStatistics, class_weights
from minisegnet.imbalance.fingerprint import loss_floor
from minisegnet.imbalance.gradient_ledger import gradient_ledger
from minisegnet.imbalance.label_smoothing import (
    flipping_ratio,
    flipping_smoothing,
    smoothed_optimum,
)
from minisegnet.losses import Criterion
from minisegnet.losses.conventions import mmseg_cross_entropy
from minisegnet.models import build_model
from minisegnet.optim import AdamW
from minisegnet.optim.schedules import OneCycleLR
from minisegnet.plots.class_scores import class_scores
from minisegnet.plots.ledger import ledgers_side_by_side
from minisegnet.tables import number_text, percent, ruled
from minisegnet.training.evaluation import evaluate
from minisegnet.verify import check
from minisegnet.verify.gradcheck import relative_error

rng = np.random.default_rng(4)

# %% [markdown]
# ## Predict before you run
#
# You train with class weights: a pixel of the background counts a tenth, a pixel of a toilet
# counts fifty. Now a batch comes along that shows nothing but background.
#
# **How large is its gradient, compared with the same batch in a training without weights?** A
# tenth? Unchanged? Something between? Write down a guess. The answer is computed in the section
# "What the mean divides by".

# %% [markdown]
# ## How much should a pixel count?
#
# Lesson 3 ended with an account: at the start, every class owns as much of the gradient as it has
# pixels. A class weight $w_c$ multiplies the loss of every pixel of class $c$. All schemes below
# compute it from counting the masks. With $f$ a class's share of the valid pixels, $n$ its pixels,
# $m$ the images that contain it, and $\beta$ = 0.9999:
#
# | scheme | formula | idea |
# |---|---|---|
# | none | $1$ | |
# | sqrt | $\sqrt{n_\text{max} / n}$ | half way, on a log scale |
# | inverse | $1 / (K f)$ | in full: every class gets the same total |
# | median | $\text{median}(f') / f'$ | the class in the middle gets 1 |
# | enet | $1 / \ln(1.02 + f)$ | from 1.42 to 50.5, whatever the data |
# | effective | $(1 - \beta) / (1 - \beta^m)$ | more of the same adds less and less |
#
# Up to a constant factor, none, sqrt and inverse are one formula, $f^{-t}$, with the **exponent**
# $t = 0$, $\frac12$ and $1$. That exponent is the knob of this lesson.
#
# The data are small floor plans, in which one plan out of five has a toilet, one out of five a
# sink, and so on:

# %%
PLANS = dict(size=(64, 80), fixture_size=6, wall=3, rare_image_share=0.2)
plans = datasets.FloorPlans("train", length=320, **PLANS)
names, K = plans.class_names, plans.num_classes
rare = np.isin(names, ("toilet", "sink", "stove", "bed"))
statistics = ClassStatistics.from_masks((plans[i].mask for i in range(len(plans))), K)
f, n = statistics.frequency, statistics.pixels

inverse = 1 / (K * f)
sqrt = np.sqrt(n.max() / n)
for scheme, by_formula in (("inverse", inverse), ("sqrt", sqrt)):
    error = relative_error(class_weights(statistics, scheme, cap=None), by_formula)
    print(f"{scheme}: package against formula, relative error {error:.1e}")

columns = {scheme: class_weights(statistics, scheme, cap=None) for scheme in SCHEMES}
rows = [("class", "of the pixels", *SCHEMES)]
rows += [(names[c], percent(f[c]), *(f"{w[c]:.3g}" for w in columns.values()))
         for c in np.argsort(-f)]
rows += [("heaviest : lightest", "", *(f"{w.max() / w.min():.4g}" for w in columns.values()))]
print("\n" + "\n".join(ruled(rows)))

# %% [markdown]
# For the mean that torch takes, only the ratios within a column matter, as we shall see. The last
# line has the largest of each. Look how far apart the schemes are: from 1 to several hundred.
#
# A class that occurs nowhere divides by zero. Its weight should be 0, not infinity and not some
# cap: there is nothing to learn about it, and a huge number in the list does harm (further down).
#
# ## Exercise 4.1: median-frequency weights
#
# Here $f'$ is not the share of all pixels. It is counted **over the images that contain the
# class**: pixels of the class, divided by all valid pixels *of those images*. A rare object that
# is large where it occurs is then no longer rare. The median is over the classes that occur.
#
# `counts` has a row per image and a column per class. `counts > 0` says which image has which
# class, and `@` can add up rows by it.


# %% tags=["exercise-4.1"]
def median_weights(counts):
    """Return the weights (K,), float64, from the pixels per image and class, counts (I, K) int64.

    A class that is in no image has weight 0.
    """
    ### BEGIN SOLUTION
    has = counts > 0  # (I, K)
    pixels = counts.sum(axis=0)  # (K,)
    image_pixels = counts.sum(axis=1) @ has  # (K,) all pixels of the images with the class
    present = pixels > 0
    share = pixels[present] / image_pixels[present]
    weights = np.zeros(counts.shape[1])
    weights[present] = np.median(share) / share
    return weights
    ### END SOLUTION


# %% tags=["check-4.1"]
counts = rng.integers(1, 50, (6, 5)) * np.array([20, 3, 1, 1, 0])
counts[1:, 2] = 0
counts[:4, 3] = 0


def of_all_pixels(counts):
    """The slip: shares of all pixels, not of those of the images with the class."""
    pixels = counts.sum(axis=0)
    share = pixels / pixels.sum()
    return np.where(share > 0, np.median(share[share > 0]) / np.where(share > 0, share, 1), 0)


def median_of_all(counts):
    """The slip: absent classes take part in the median."""
    pixels, image_pixels = counts.sum(axis=0), counts.sum(axis=1) @ (counts > 0)
    share = pixels / np.maximum(image_pixels, 1)
    return np.where(share > 0, np.median(share) / np.where(share > 0, share, 1), 0)


def mean_of_shares(counts):
    """The slip: the share in each image with the class, averaged."""
    shares = counts / counts.sum(axis=1, keepdims=True)
    share = shares.sum(axis=0) / np.maximum((counts > 0).sum(axis=0), 1)
    return np.where(share > 0, np.median(share[share > 0]) / np.where(share > 0, share, 1), 0)


check("4.1", median_weights, {"counts": counts},
      expected=lambda counts: class_weights(ClassStatistics(counts), "median", cap=None),
      slips={"These are shares of all pixels. Divide by the pixels of the images that have the "
             "class": of_all_pixels,
             "The median is over the classes that occur: leave the absent one out of it":
                 median_of_all,
             "This is the mean of the images' shares. Add up the pixels first, then divide once":
                 mean_of_shares},
      hints={"nan": "A class without a pixel has weight 0: compute the others only.",
             "": "pixels of the class / valid pixels of the images with it; then the median of "
                 "those over each."})

# %% [markdown]
# ## What the mean divides by
#
# Weighted cross-entropy is a weighted mean. Its denominator is not the number of pixels. It is the
# sum of their weights:
#
# $$L = \frac{1}{D} \sum_i w_{y_i} \, (-\log p_i[y_i]) \qquad\qquad D = \sum_i w_{y_i}$$
#
# where the sums go over the valid pixels. In our code:


# %%
def log_softmax(logits):
    """Return the logarithms of the class probabilities, (..., K); lesson 3."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def weighted_cross_entropy(logits, target, weight):
    """Return the weighted mean over the pixels that are not 255, a float."""
    is_valid = target != 255
    label = np.where(is_valid, target, 0)
    log_prob = np.take_along_axis(log_softmax(logits), label[..., None], axis=-1)[..., 0]
    w = weight[label] * is_valid
    return float((w * -log_prob).sum() / w.sum())


logits = rng.standard_normal((2, 16, 16, K))
target = rng.choice(K, (2, 16, 16), p=f)
target[:, :8] = 255  # half of the pixels have no label
ours, _ = losses.cross_entropy_forward(logits, target, weight=inverse)
print(f"package against formula: relative error "
      f"{relative_error(weighted_cross_entropy(logits, target, inverse), ours):.1e}")

# %% [markdown]
# Two things follow from the denominator, and both surprise people. **The size of the weights does
# not matter**, only their ratios: a factor on all of them cancels. And **in a batch of one class
# the weight cancels, whatever it is**:


# %%
def size_of_gradient(target, weight):
    """Return the sum of |dL/dlogits|."""
    _, cache = losses.cross_entropy_forward(logits, target, weight=weight)
    return np.abs(losses.cross_entropy_backward(1.0, cache)).sum()


for factor in (1, 1000):
    loss = losses.cross_entropy_forward(logits, target, weight=factor * inverse)[0]
    print(f"weights times {factor:4d}: loss {loss:.6f}, "
          f"gradient {size_of_gradient(target, factor * inverse):.6f}")

only_background = np.zeros_like(target)
weight = np.full(K, 50.0)
weight[0] = 0.1
print(f"\nnothing but background, whose weight is {weight[0]}: gradient "
      f"{size_of_gradient(only_background, weight):.6f}, "
      f"without weights {size_of_gradient(only_background, None):.6f}")

# %% [markdown]
# That is the answer to the question at the top: **unchanged**. The weights of a weighted mean do
# not say how loud a class is. They say how loud it is *next to the others in its batch*. Where a
# class is in few pictures, most batches have no pixel of it, and there its weight does nothing;
# a batch that has one is dominated by it. Rare classes act in bursts.
#
# ### Myth check: "normalise the weights so that they sum to K"
#
# It is common advice. Does it change anything? Compare our mean with three other conventions. In
# this batch half of the pixels are ignored.

# %%
normalised = inverse * K / inverse.sum()
rows = [("", "as they are", "sum is K")]
for title, loss in (
        ("torch and ours: over the sum of weights", lambda w: losses.cross_entropy_forward(
            logits, target, weight=w)[0]),
        ("mmsegmentation 0.x: over all pixels", lambda w: mmseg_cross_entropy(
            logits, target, weight=w)),
        ("no mean, a sum", lambda w: losses.cross_entropy_forward(
            logits, target, weight=w)[0] * w[target[target != 255]].sum()),
        ("focal loss, weights as alpha", lambda w: losses.focal_forward(
            logits, target, alpha=w)[0])):
    rows.append((title, f"{loss(inverse):.4f}", f"{loss(normalised):.4f}"))
print("\n".join(ruled(rows)))

# %% [markdown]
# Nothing, in the mean that torch takes, and everything in the others: there the size of the
# weights is a factor on the learning signal. The same numbers in a configuration file mean two
# different things. And a mean over *all* pixels, which segmentation_models.pytorch takes as well,
# makes the step smaller where more is unlabelled.
#
# ## Label smoothing joins in
#
# Label smoothing asks for a little of every class: $1 - e$ for the true one, and a share of $e$
# for each of the $K$. Combined with weights, torch's formula is
#
# $$L = \frac{1}{D} \sum_i \Big[ (1-e)\, w_{y_i} (-\log p_i[y_i])
# + \frac{e}{K} \sum_c w_c \, (-\log p_i[c]) \Big] \qquad D = \sum_i w_{y_i}$$
#
# Look closely at the second term. The share that goes to class $c$ is priced by **$w_c$**, the
# weight of the class it goes to, and not by that of the pixel. The denominator is the same as
# before.
#
# ## Exercise 4.2: weighted, smoothed cross-entropy
#
# Begin with `weighted_cross_entropy` above; only the second term is new.


# %% tags=["exercise-4.2"]
def smoothed_cross_entropy(logits, target, weight, e):
    """Return L, a float, of logits (N, H, W, K), target (N, H, W), weight (K,), smoothing e.

    Pixels with the target 255 take no part.
    """
    ### BEGIN SOLUTION
    is_valid = target != 255
    log_prob, label = log_softmax(logits)[is_valid], target[is_valid]  # (P, K), (P,)
    own = weight[label] * -log_prob[np.arange(label.size), label]  # (P,)
    every = -log_prob @ weight  # (P,)
    K = logits.shape[-1]
    return float(((1 - e) * own + e / K * every).sum() / weight[label].sum())
    ### END SOLUTION


# %% tags=["check-4.2"]
small = rng.standard_normal((2, 3, 4, 5))
labels = rng.integers(0, 5, (2, 3, 4))
labels[0, 0, :2] = labels[1, 2, 3] = 255
weight = rng.uniform(0.5, 4.0, 5)
valid = labels[labels != 255]


def smoothed_by_a(logits, target, weight, e, price=None, rest=None):
    """L with a slip: another price of the smoothed part, or something else for 1 - e."""
    is_valid = target != 255
    log_prob, label = log_softmax(logits)[is_valid], target[is_valid]
    own = weight[label] * -log_prob[np.arange(label.size), label]
    price = weight if price is None else price(label)
    every = (-log_prob * price).sum(axis=1)
    rest = 1 - e if rest is None else rest
    return float((rest * own + e / logits.shape[-1] * every).sum() / weight[label].sum())


check("4.2", smoothed_cross_entropy,
      {"logits": small, "target": labels, "weight": weight, "e": 0.2},
      expected=lambda logits, target, weight, e: losses.cross_entropy_forward(
          logits, target, weight=weight, label_smoothing=e)[0],
      torch=lambda torch, logits, target, weight, e: torch.nn.functional.cross_entropy(
          logits.permute(0, 3, 1, 2), target, weight=weight, ignore_index=255,
          label_smoothing=e),
      quantities={"D, the sum of the valid pixels' weights": weight[valid].sum(),
                  "D over the number of valid pixels: the mean is weighted":
                      weight[valid].mean(),
                  "D over the number of all pixels": weight[valid].sum() / labels.size},
      slips={"Here the smoothed part is priced by the pixel's weight, w[y]. Class c costs w[c]":
             lambda logits, target, weight, e: smoothed_by_a(
                 logits, target, weight, e, price=lambda label: weight[label][:, None]),
             "The smoothed part has no weights here. Class c costs w[c]":
             lambda logits, target, weight, e: smoothed_by_a(
                 logits, target, weight, e, price=lambda label: np.ones(5)),
             "The true class keeps 1 - e of its weight, not all of it":
             lambda logits, target, weight, e: smoothed_by_a(
                 logits, target, weight, e, rest=1.0),
             "The K classes share e: each of them gets e/K":
             lambda logits, target, weight, e: smoothed_by_a(
                 logits, target, weight, 5 * e, rest=1 - e),
             "This divides by the sum of the K weights. D has a weight per valid pixel":
             lambda logits, target, weight, e: smoothed_by_a(logits, target, weight, e)
             * weight[target[target != 255]].sum() / weight.sum()},
      hints={"": "(1-e) w[y] (-log p[y]) plus e/K times the sum over c of w[c] (-log p[c]); "
                 "valid pixels only, above and below the line."})

# %% [markdown]
# ## Backward
#
# Collect, for one pixel, all that multiplies $-\log p[c]$ into one number $a_c$:
#
# $$a_c = (1-e)\, w_y\, [c = y] + \frac{e}{K} w_c \qquad\qquad \ell = -\sum_c a_c \log p_c$$
#
# From lesson 3 we know what each term contributes: $-\log p_c$ has the gradient $p_k - [k = c]$ at
# logit $k$. Multiply by $a_c$ and add up over $c$. The first part has $p_k$ in every term, the
# second is left over once:
#
# $$\frac{\partial \ell}{\partial z_k} = \Big(\sum_c a_c\Big) p_k - a_k$$
#
# Without smoothing and weights $a$ is the one-hot target, its sum is 1, and $p - \text{onehot}$ is
# back. In general, the pixel pulls $p$ towards $a / \sum a$. Keep that in mind.
#
# ## Exercise 4.3: the gradient


# %% tags=["exercise-4.3"]
def smoothed_cross_entropy_backward(dloss, logits, target, weight, e):
    """Return dlogits (N, H, W, K) of exercise 4.2's loss; dloss is a float."""
    ### BEGIN SOLUTION
    K = logits.shape[-1]
    is_valid = target != 255
    w = weight[np.where(is_valid, target, 0)] * is_valid  # (N, H, W)
    onehot = np.arange(K) == target[..., None]
    a = (1 - e) * w[..., None] * onehot + e / K * weight * is_valid[..., None]  # (N, H, W, K)
    dlogits = a.sum(axis=-1, keepdims=True) * np.exp(log_softmax(logits)) - a
    return dloss * dlogits / w.sum()
    ### END SOLUTION


# %% tags=["check-4.3"]
def gradient_by_a(dloss, logits, target, weight, e, price=None, total=None, ignored=False,
                  only_own=False):
    """dlogits with a slip: another price, 1 for the sum of a, ignored pixels, half of a left."""
    is_valid = target != 255
    w = weight[np.where(is_valid, target, 0)] * is_valid
    price = weight if price is None else price(w)
    own = (1 - e) * w[..., None] * (np.arange(5) == target[..., None])
    a = own + e / 5 * price * (is_valid | ignored)[..., None]
    total = a.sum(axis=-1, keepdims=True) if total is None else is_valid[..., None]
    return dloss * (total * np.exp(log_softmax(logits)) - (own if only_own else a)) / w.sum()


check("4.3", smoothed_cross_entropy_backward,
      {"logits": small, "target": labels, "weight": weight, "e": 0.2},
      forward=lambda logits, target, weight, e: losses.cross_entropy_forward(
          logits, target, weight=weight, label_smoothing=e)[0],
      wrt=["logits"],
      torch=lambda torch, logits, target, weight, e: torch.nn.functional.cross_entropy(
          logits.permute(0, 3, 1, 2), target, weight=weight, ignore_index=255,
          label_smoothing=e),
      quantities={"D, the sum of the valid pixels' weights": weight[valid].sum(),
                  "D over the number of valid pixels: the mean is weighted":
                      weight[valid].mean(),
                  "D over the number of all pixels": weight[valid].sum() / labels.size},
      slips={"p stands here without a factor. It is multiplied by the sum of a":
             lambda *args, **inputs: gradient_by_a(*args, **inputs, total=1),
             "Here the smoothed part is priced by the pixel's weight, w[y]. Class c costs w[c]":
             lambda *args, **inputs: gradient_by_a(*args, **inputs,
                                                   price=lambda w: w[..., None]),
             "An ignored pixel moves nothing: all its K numbers are 0, so a must be 0 there":
             lambda *args, **inputs: gradient_by_a(*args, **inputs, ignored=True),
             "What the true class keeps and what is shared out are both in a: subtract all of it":
             lambda *args, **inputs: gradient_by_a(*args, **inputs, only_own=True)},
      hints={"scale": "Divide by the sum of w[y] over the valid pixels.",
             "sign": "What the network said comes first: (sum a) p - a.",
             "": "a = (1-e) w[y] [c = y] + e/K w[c]; (sum of a) times p, minus a; times dloss, "
                 "divided by D."})

# %% [markdown]
# The package's gradient, on the larger batch, against the formula:

# %%
_, cache = losses.cross_entropy_forward(logits, target, weight=inverse, label_smoothing=0.1)
is_valid = target != 255
w = inverse[np.where(is_valid, target, 0)] * is_valid
a = 0.9 * w[..., None] * (np.arange(K) == target[..., None]) \
    + 0.1 / K * inverse * is_valid[..., None]
by_formula = (a.sum(axis=-1, keepdims=True) * np.exp(log_softmax(logits)) - a) / w.sum()
print(f"package against formula: relative error "
      f"{relative_error(losses.cross_entropy_backward(1.0, cache), by_formula):.1e}")

# %% [markdown]
# ## The trap
#
# A pixel pulls its probabilities towards $a / \sum a$. Imagine 34 classes. Three quarters of the
# pixels are background, one class does not occur at all, and the other 32 share the rest. Inverse
# weights; the absent class divides by zero, and a cap makes 100 of it. Smoothing 0.1, as everybody
# does. What is then the **best possible** prediction for a background pixel?

# %%
shares = np.full(34, 0.25 / 32)
shares[0], shares[33] = 0.75, 0.0
capped = np.full(34, 100.0)
capped[:33] = 1 / (34 * shares[:33])
with_zero = np.where(shares > 0, capped, 0)
for title, weight in (("absent class at the cap", capped), ("absent class at 0", with_zero)):
    best = smoothed_optimum(weight, 0, 0.1)
    print(f"{title}: best p(background) {best[0]:.3f}, best p(absent class) {best[33]:.3f}, "
          f"so it predicts class {best.argmax()}")
print(f"\nweights {capped[33] / capped[0]:.0f} : 1; at 34 classes and smoothing 0.1 the optimum "
      f"flips from {flipping_ratio(34, 0.1):.0f} : 1 on")
print(f"our {K} classes, inverse weights {inverse.max() / inverse.min():.0f} : 1: flips from "
      f"{flipping_ratio(K, 0.1):.0f} : 1 on, or from smoothing "
      f"{flipping_smoothing(K, inverse.max() / inverse.min()):.3f} on")

# %% [markdown]
# The loss is *least* when background pixels are predicted as a class that nobody has ever seen.
# Training well makes the prediction wrong. Two numbers, each reasonable by itself, did that: the
# share $\frac{e}{K}$ that the heavy class gets of every pixel, and its price. Hence weight 0 for
# absent classes; though even then the best prediction of a background pixel gives its class hardly
# a tenth.
#
# A class $r$ wins over the true class $y$ where $a_r > a_y$, which is where
# $\frac{w_r}{w_y} > 1 + K \frac{1 - e}{e}$. **Look at that number before you combine smoothing
# with weights.** The last line says that our own inverse weights are too far apart for it.
#
# ## The experiment: turn the exponent
#
# Weights $f^{-t}$, one knob. First on paper, so to speak: at a uniform prediction, which share of
# the gradient comes from the pixels of each class?

# %% tags=["experiment"]
masks = np.stack([plans[i].mask for i in range(0, len(plans), 4)])  # (80, 64, 80)
share = np.bincount(masks.ravel(), minlength=K) / masks.size
uniform = np.zeros((*masks.shape, K), np.float32)
EXPONENTS = (0.0, 0.25, 0.5, 0.75, 1.0)
shares_of = {}
for t in EXPONENTS:
    books = gradient_ledger(Criterion("ce", weight=share ** -t), uniform, masks)
    shares_of[f"t = {t:g}"] = books.share_by_target
    print(f"t = {t:4g}: background {percent(books.share_by_target[0]):>7}, the four fixtures "
          f"{percent(books.share_by_target[rare].sum())}")
plots.show(ledgers_side_by_side(share, {"uniform prediction": shares_of}, names, plans.palette,
                                rare), "04_class_weights_ledger")

# %% [markdown]
# At $t = 1$ every class has the same share, one twelfth: that is what "inverse" means. Now train.
# Three times the same network, the same pictures in the same order, the same everything; only the
# exponent differs. A short training, as long as a lesson can afford.


# %% tags=["experiment"]
def train(criterion, seed=0, epochs=6, lr=0.03):
    """Train `mini` on the plans; return its ConfusionMatrix on 128 plans it has not seen."""
    model = build_model("mini", K, seed=seed)
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
    unseen = datasets.DataLoader(datasets.FloorPlans("val", length=128, **PLANS), 16,
                                 num_workers=0)
    return evaluate(model, unseen, criterion)[1]


scores, rows = {}, [("", "mean IoU", "fixtures: IoU", "precision", "recall", "background IoU")]
for title, weight in (("t = 0, none", None), ("t = 1/2, sqrt", sqrt), ("t = 1, inverse", inverse)):
    found = train(Criterion("ce", weight=weight))
    scores[title] = {"IoU": found.iou, "precision": found.precision, "recall": found.recall}
    predicted = found.precision[rare]
    predicted = predicted[~np.isnan(predicted)]
    rows.append((title, f"{found.mean_iou_present:.3f}", f"{found.iou[rare].mean():.3f}",
                 number_text(predicted.mean() if predicted.size else float("nan")),
                 f"{found.recall[rare].mean():.3f}", f"{found.iou[0]:.3f}"))
print("\n".join(ruled(rows)))
print("(fixtures: means over toilet, sink, stove and bed; - where none is ever predicted)")
plots.show(class_scores(scores, names, f, rare), "04_class_weights")

# %% [markdown]
# Read the picture from the right. Without weights the fixtures are not predicted at all: their
# precision is not 0, it does not exist. With inverse weights a good part of their pixels is found,
# which is recall; yet nearly everything that is called a fixture is none, which is precision. So
# their IoU is not much different from what the root gives. The pixels that they wrongly take are
# missing elsewhere: look at wall, door and background. With the root the fixtures stand between,
# while the rooms, taken together, have gained in both; it has the best mean IoU of the three. So
# what a weight buys the rarest is **recall, paid for with precision**. Nobody sees the price who
# looks at recall alone.
#
# Do not read more into it than this. It is a short training on small pictures; given more epochs,
# all three move, and which exponent is best depends on the data.
#
# ## Three more myth checks
#
# **"Weights of 0.5 for the background, 5 and 8 for the rare classes."** A guide to floor plans
# prints these as what $1/(Kf)$ gives at 34 classes, with a background of three quarters of the
# pixels. **"Square-root weights from 0.226 to 11.167."** Another one prints these for an imbalance
# of 2445 : 1, and $\sqrt{n_\text{max}/n}$ beside them. Compute both:

# %%
print(f"1/(Kf) for three quarters of the pixels: {1 / (34 * 0.75):.3f}; "
      f"0.5 would be for a class with {percent(1 / (34 * 0.5))} of them")
print(f"8 beside 0.5 is {8 / 0.5:g} : 1; 8 beside the background's own would be "
      f"{8 * 34 * 0.75:.0f} : 1")
print(f"sqrt(2445 / 1) = {np.sqrt(2445):.1f}; 11.167 : 0.226 = {11.167 / 0.226:.1f} : 1")

# %% [markdown]
# In cross-entropy a common factor would cancel. The second guide's weights are off by no more than
# that: something was divided by that the text does not mention. The first one's ratios are others,
# and these are all that counts.
#
# **"A loss of 0.5 shows that it has converged."** The same floor-plan guide trains with smoothing
# 0.1 and weights. Smoothing asks for probabilities that are not 0 and 1, so that even the best
# prediction has a loss. It follows from $a$: predict $p = a / \sum a$ everywhere. (Inverse
# weights: 34 classes, 75 %, 4 % and 3 % of the pixels, the rest shared equally.)

# %%
shares = np.array([0.75, 0.04, 0.03] + [0.18 / 31] * 31)
for title, weight in (("no weights", None), ("inverse weights", 1 / (34 * shares))):
    floor = loss_floor(Criterion("ce", weight=weight, label_smoothing=0.1), shares)
    print(f"{title}: no prediction has a loss below {floor:.3f}")

# %% [markdown]
# A training that reports 0.5 there minimises something else than it says. This is a cheap test of
# any pipeline: compute the floor before you train, and see whether the loss stays above it.
# `python -m minisegnet.train` prints it before the first step.
#
# ## To think about
#
# **1.** Two people train with the same weights, batches and learning rate, one in torch, one with
# a loss divided by the number of pixels. Where do their trainings differ, if the optimizer is
# Adam?
#
# <details><summary>Answer</summary>
#
# The second one's gradient is torch's times $D / P$, the mean weight of the batch's pixels. Adam
# does not care about a constant factor, but this one changes from batch to batch: batches with
# rare pixels are louder than the others. So in the second convention the weights act across
# batches too, in the first only within one.
#
# </details>
#
# **2.** Weights help recall and cost precision. Could one have the trained network without
# weights, and only predict the rare classes more readily?
#
# <details><summary>Answer</summary>
#
# Yes: add $\tau \log (1/f_c)$ to the logits when predicting. A network that knows $p(c \mid x)$
# needs nothing else to trade precision for recall. What it cannot mend is a network whose limited
# training has learned nothing about the rare class, as above without weights, because nearly all
# of the gradient spoke of something else.
#
# </details>
