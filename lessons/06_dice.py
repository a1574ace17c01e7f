# %% [markdown]
# # 6 · Dice, and what it does not optimise
#
# | | |
# |---|---|
# | goal | derive dice loss and its gradient, and see where it stalls |
# | before this | lessons 2 to 5 |
# | read | 15 minutes |
# | exercises | 15 minutes |
# | computes | 24 s |

# %%
import numpy as np

from minisegnet import datasets, losses, plots
from minisegnet.imbalance.fingerprint import stall_value
from minisegnet.imbalance.gradient_ledger import gradient_ledger
from minisegnet.losses import Criterion
from minisegnet.losses.conventions import unet_dice
from minisegnet.models import build_model
from minisegnet.optim import AdamW
from minisegnet.optim.schedules import OneCycleLR
from minisegnet.plots.class_scores import class_scores
from minisegnet.plots.ledger import ledgers_side_by_side
from minisegnet.tables import percent, ruled
from minisegnet.training.evaluation import evaluate
from minisegnet.verify import check
from minisegnet.verify.gradcheck import relative_error

rng = np.random.default_rng(6)

# %% [markdown]
# ## Predict before you run
#
# Two networks, two classes. The IoUs of the first are 0.5 and 0.5, those of the second 0.9 and
# 0.12. Mean IoU is 0.50 and 0.51: it prefers the second.
#
# **Which of the two does the mean Dice score prefer?** It has the same hits, misses and false
# alarms to count. Write down a guess. The answer is computed in the section "Dice is not IoU".

# %% [markdown]
# ## A score for overlap, made soft
#
# The losses so far are sums over pixels. Dice looks at a class as a whole. Let $I$ be the pixels
# where prediction and truth agree on the class, $S$ those that are predicted, and $T$ those that
# are true. Twice the overlap, over the sum of the two sizes:
#
# $$D = \frac{2 I}{S + T}$$
#
# It is 1 for a perfect prediction, and 0 without any overlap. To train with it, replace the yes or
# no of a prediction by its probability. With $p = \text{softmax}(z)$ and the one-hot target $t$,
# summed over all valid pixels **of the whole batch**:
#
# $$I_c = \sum_i p_{ic} t_{ic} \qquad S_c = \sum_i p_{ic} \qquad T_c = \sum_i t_{ic} \qquad
# D_c = \frac{2 I_c + s}{S_c + T_c + s} \qquad L = 1 - \frac{1}{n} \sum_c D_c$$
#
# Two choices are hidden in it. The smoothing $s$, 1 here, keeps the fraction away from zero over
# zero. And the mean runs over the $n$ classes that are **present** in the batch, $T_c > 0$. A
# class that is not there has no overlap to gain.
#
# | formula | code |
# |---|---|
# | $p$, 0 where the target is 255 | `probs = softmax(logits) * (target != 255)[..., None]` |
# | $t$, 0 where the target is 255 | `onehot = np.arange(K) == target[..., None]` |
# | $I_c$ | `(probs * onehot).sum(axis=(0, 1, 2))` |


# %%
def softmax(logits):
    """Return the class probabilities, (..., K)."""
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)


# %% [markdown]
# ## Exercise 6.1: soft dice
#
# Pixels with the target 255 take part in none of the three sums. The trap is $S$: such pixels have
# probabilities, too.


# %% tags=["exercise-6.1"]
def dice_loss(logits, target, s):
    """Return the dice loss, a float, of logits (N, H, W, K) against target (N, H, W).

    The mean is over the classes that are present in the batch.
    """
    ### BEGIN SOLUTION
    onehot = np.arange(logits.shape[-1]) == target[..., None]
    probs = softmax(logits) * (target != 255)[..., None]
    intersection = (probs * onehot).sum(axis=(0, 1, 2))  # (K,)
    predicted, true = probs.sum(axis=(0, 1, 2)), onehot.sum(axis=(0, 1, 2))
    dice = (2 * intersection + s) / (predicted + true + s)
    return float(1 - dice[true > 0].mean())
    ### END SOLUTION


# %% tags=["check-6.1"]
logits = 2 * rng.standard_normal((2, 3, 4, 5))
target = rng.integers(0, 4, (2, 3, 4))  # class 4 is absent
target[0, 0, :2] = target[1, 2, 3] = 255


def dice_with(logits, target, s, *, classes=None, ignored=False, per_image=False, factor=2,
              is_iou=False, pooled=False):
    """The dice loss, or one of its slips."""
    onehot = np.arange(logits.shape[-1]) == target[..., None]
    probs = softmax(logits) * ((target != 255)[..., None] | ignored)
    axes = (1, 2) if per_image else (0, 1, 2)
    both, predicted, true = ((a.sum(axis=axes)) for a in (probs * onehot, probs, onehot))
    if pooled:
        return float(1 - (2 * both.sum() + s) / (predicted.sum() + true.sum() + s))
    dice = (factor * both + s) / (predicted + true + s)
    if is_iou:
        dice = (both + s) / (predicted + true - both + s)
    return float(1 - dice[true > 0 if classes is None else np.full(true.shape, True)].mean())


check("6.1", dice_loss, {"logits": logits, "target": target, "s": 1.0},
      expected=lambda logits, target, s: losses.dice_forward(logits, target, smooth=s)[0],
      slips={"Absent classes are in the mean here. Average those with T > 0":
             lambda **inputs: dice_with(**inputs, classes="all"),
             "Ignored pixels are in S: their probabilities must not count either":
             lambda **inputs: dice_with(**inputs, ignored=True),
             "The sums here are per image. Sum over the whole batch, then divide":
             lambda **inputs: dice_with(**inputs, per_image=True),
             "It is twice the intersection: without the 2 a perfect prediction has dice 0.5":
             lambda **inputs: dice_with(**inputs, factor=1),
             "This is the mean of the scores. The loss is 1 minus it":
             lambda **inputs: 1 - dice_with(**inputs),
             "The scores are added up, not averaged over the n classes present":
             lambda **inputs: 1 - 4 * (1 - dice_with(**inputs)),
             "The sum is over the n classes present, so it is divided by n and not by K":
             lambda **inputs: 1 - 4 / 5 * (1 - dice_with(**inputs)),
             "This is soft IoU: in S + T the overlap counts twice, as it does above the line":
             lambda **inputs: dice_with(**inputs, is_iou=True),
             "The classes are summed up before the division: each has a score of its own":
             lambda **inputs: dice_with(**inputs, pooled=True)},
      hints={"nan": "Average the classes with T > 0 only.",
             "": "I, S and T per class over all valid pixels of the batch; then "
                 "1 - mean of (2 I + s) / (S + T + s) over the classes with T > 0."})

# %% [markdown]
# ## Backward
#
# In two steps. First from the loss to the probabilities. A class that is averaged has
# $U_c = S_c + T_c + s$ below the fraction line, and the quotient rule gives
#
# $$\frac{\partial L}{\partial I_c} = -\frac{1}{n} \cdot \frac{2}{U_c} \qquad
# \frac{\partial L}{\partial S_c} = \frac{1}{n} \cdot \frac{2 I_c + s}{U_c^2} \qquad
# \frac{\partial L}{\partial p_{ic}} = \frac{\partial L}{\partial S_c}
# + t_{ic} \frac{\partial L}{\partial I_c}$$
#
# while a class that is not averaged has 0. In words: every bit of probability for class $c$ costs
# a little, and where $c$ is true it also earns, more than it costs.
#
# Then through the softmax. From $\partial p_c / \partial z_k = p_c ([c = k] - p_k)$,
#
# $$\frac{\partial L}{\partial z_{ik}} = \sum_c \frac{\partial L}{\partial p_{ic}} \,
# p_{ic} ([c = k] - p_{ik})
# = p_{ik} \Big( \frac{\partial L}{\partial p_{ik}}
# - \sum_c p_{ic} \frac{\partial L}{\partial p_{ic}} \Big)$$
#
# Cross-entropy had no factor $p$ left in its gradient: the logarithm's $1/p$ had cancelled it.
# Dice has no logarithm. Remember this factor.
#
# ## Exercise 6.2: the gradient


# %% tags=["exercise-6.2"]
def dice_backward(dloss, logits, target, s):
    """Return dlogits (N, H, W, K) of exercise 6.1's loss; dloss is a float."""
    ### BEGIN SOLUTION
    onehot = np.arange(logits.shape[-1]) == target[..., None]
    probs = softmax(logits) * (target != 255)[..., None]
    intersection = (probs * onehot).sum(axis=(0, 1, 2))
    predicted, true = probs.sum(axis=(0, 1, 2)), onehot.sum(axis=(0, 1, 2))
    U = predicted + true + s
    share = dloss * (true > 0) / (true > 0).sum()  # (K,) 1/n, or 0
    dintersection = -share * 2 / U
    dpredicted = share * (2 * intersection + s) / U ** 2
    dprobs = dpredicted + onehot * dintersection
    return probs * (dprobs - (probs * dprobs).sum(axis=-1, keepdims=True))
    ### END SOLUTION


# %% tags=["check-6.2"]
def gradient_with(dloss, logits, target, s, *, average_all=False, constant_size=False,
                  without_softmax=False, one_term=False, ignored=False, diagonal=False):
    """dlogits of dice, or one of its slips."""
    onehot = np.arange(logits.shape[-1]) == target[..., None]
    probs = softmax(logits) * ((target != 255)[..., None] | ignored)
    both, predicted, true = ((a.sum(axis=(0, 1, 2))) for a in (probs * onehot, probs, onehot))
    U = predicted + true + s
    averaged = (true > 0) | average_all
    share = dloss * averaged / averaged.sum()
    dprobs = share * ((2 * both + s) / U ** 2 * (not constant_size) - 2 * onehot / U)
    if without_softmax:
        return dprobs * (target != 255)[..., None]
    if diagonal:
        return probs * (1 - probs) * dprobs
    return probs * (dprobs - (not one_term) * (probs * dprobs).sum(axis=-1, keepdims=True))


check("6.2", dice_backward, {"logits": logits, "target": target, "s": 1.0},
      forward=lambda logits, target, s: losses.dice_forward(logits, target, smooth=s)[0],
      wrt=["logits"],
      quantities={"the number of classes present, n": 4.0, "K over n": 5 / 4},
      slips={"Absent classes are averaged here: they have no gradient, and n does not count them":
             lambda *args, **inputs: gradient_with(*args, **inputs, average_all=True),
             "S depends on the probabilities, too: dL/dS is missing":
             lambda *args, **inputs: gradient_with(*args, **inputs, constant_size=True),
             "This is the gradient of the probabilities. It must go on through the softmax":
             lambda *args, **inputs: gradient_with(*args, **inputs, without_softmax=True),
             "The softmax has a second part: every logit moves the others' probabilities, too":
             lambda *args, **inputs: gradient_with(*args, **inputs, one_term=True),
             "p (1 - p) is the logit's effect on its own class only: the others' move, too":
             lambda *args, **inputs: gradient_with(*args, **inputs, diagonal=True),
             "Ignored pixels are in S: set their probabilities to 0 before the sums":
             lambda *args, **inputs: gradient_with(*args, **inputs, ignored=True)},
      hints={"sign": "More overlap is less loss: dL/dI is negative.",
             "scale": "Each class in the mean has the share 1/n, the others 0.",
             "": "dL/dp = dL/dS + t dL/dI, then p (dL/dp - sum of p dL/dp)."})

# %% [markdown]
# The package's gradient against the formula; and a property that is worth a test in every project:
# **whatever the network says at ignored pixels changes nothing**, neither loss nor gradient.

# %%
K = 12
big, labels = 2 * rng.standard_normal((4, 32, 40, K)), rng.integers(0, K - 1, (4, 32, 40))
labels[:, :4] = 255
loss, cache = losses.dice_forward(big, labels)
dbig = losses.dice_backward(1.0, cache)
print(f"package against formula: relative error "
      f"{relative_error(dbig, gradient_with(1.0, big, labels, 1.0)):.1e}")

elsewhere = big.copy()
elsewhere[labels == 255] = 100 * rng.standard_normal((np.count_nonzero(labels == 255), K))
loss_elsewhere, cache = losses.dice_forward(elsewhere, labels)
print(f"other logits where ignored: loss differs by {abs(loss_elsewhere - loss)}, gradient by "
      f"{np.abs(losses.dice_backward(1.0, cache) - dbig).max()}")

# %% [markdown]
# ## Sure and wrong: where dice stalls
#
# On imbalanced data a network often predicts background everywhere at first, and is sure of it.
# Let the logit of the background be $t$ and all others 0; the larger $t$, the surer. How much does
# each loss say then?

# %%
PLANS = dict(size=(64, 80), fixture_size=6, wall=3, rare_image_share=0.2)
some = datasets.FloorPlans("train", length=24, **PLANS)
masks = np.stack([some[i].mask for i in range(len(some))])  # (24, 64, 80)
names, rare = some.class_names, np.isin(some.class_names, ("toilet", "sink", "stove", "bed"))
pixels = np.bincount(masks.ravel(), minlength=K)
f = pixels / pixels.sum()

rows = [("t", "p(background)", "ce", "its gradient", "dice", "its gradient")]
for t in (0.0, 2.0, 4.0, 8.0, 16.0):
    z = np.zeros((*masks.shape, K))
    z[..., 0] = t
    row = [f"{t:g}", f"{softmax(z[0, 0, 0])[0]:.6f}"]
    for name in ("ce", "dice"):
        books = gradient_ledger(Criterion(name), z, masks)
        row += [f"{books.loss:.4f}", f"{books.total:.1e}"]
    rows.append(row)
print("\n".join(ruled(rows)))
print(f"\n1 - 1/K = {1 - 1 / K:.4f}, 1 - D/K with the dice D of the background = "
      f"{stall_value(Criterion('dice'), pixels):.4f}")

# %% [markdown]
# There is the factor $p$ again. A class whose probability has gone to zero gets no gradient from
# dice: **sure and wrong is silent**. Cross-entropy is loudest exactly there; what is left of its
# gradient at the bottom of the table comes from the wrong pixels alone. The value at which dice
# stays is no accident either: one class of $K$ has a good score, all others none, hence about
# $1 - 1/K$. If your dice loss does not move from there, it is not broken. It sees one class.
#
# That is the reason for adding the two: cross-entropy (or focal) to get a class off the ground,
# dice to count every class alike once it is.
#
# ## Other people's dice
#
# The same name stands for quite different numbers. segmentation_models.pytorch takes the mean over
# all $K$ classes and counts an absent one as perfect (the "absent = 1" of lesson 2), so that a
# small loss may mean that few classes were there. And this is the multi-class dice of a UNet
# repository that has been copied very often:

# %%
p_true = np.take_along_axis(softmax(big), np.where(labels == 255, 0, labels)[..., None], axis=-1)
print(f"the well-known UNet repository: {unet_dice(big, labels):.6f}, "
      f"1 - mean(p_true) = {1 - p_true[..., 0][labels != 255].mean():.6f}")

# %% [markdown]
# It sums pixels *and classes* in one go. Then $S$ and $T$ are both the number of pixels, and what
# is left is one minus the mean probability of the true class: a pixel counts like any other, and
# no class is balanced at all.
#
# ## Does dice balance the classes?
#
# "Every class counts the same, so dice is for imbalance." Ask the ledger: at a uniform prediction,
# at one that knows the frequencies $f$, and at one that exaggerates them.

# %%
three_states = {"uniform": np.zeros(K), "frequencies": np.log(f), "exaggerated": 2 * np.log(f)}
criteria = {"ce": Criterion("ce"), "dice": Criterion("dice"),
            "ce + dice": Criterion("combined", gamma=0.0),
            "ce: inverse weights": Criterion("ce", weight=1 / f)}
shares, rows = {}, [("share of the four fixtures", *criteria, "total of ce / dice")]
for state, z in three_states.items():
    z = np.tile(z, (*masks.shape, 1))
    books = {name: gradient_ledger(criterion, z, masks) for name, criterion in criteria.items()}
    shares[state] = {name: each.share_by_target for name, each in books.items()}
    rows.append((state, *(percent(share[rare].sum()) for share in shares[state].values()),
                 f"{books['ce'].total / books['dice'].total:.1f}"))
print("\n".join(ruled(rows)))
print(f"(of the pixels: {percent(f[rare].sum())})")
plots.show(ledgers_side_by_side(f, shares, names, some.palette, rare), "06_dice_ledger")

# %% [markdown]
# A little, at first: at a uniform prediction the fixtures have several times their share of the
# pixels. With inverse weights they would have a third of it all. Then look at the second row. At
# the frequencies dice's gradient *is* cross-entropy's, divided by $n$: the $1/T_c$ that favours
# rare classes meets the factor $p = f_c$, and they cancel. (With $s = 0$ exactly; question 1.)
# Where the network goes further, dice gives up on the rare classes first.
#
# The last column matters for sums. Dice's gradient is much smaller than cross-entropy's; at the
# frequencies by the factor $n$, since it is a mean over $n$ classes. In `ce + dice` the ledger is
# nearly that of cross-entropy alone.
#
# ## The experiment: how much dice?
#
# So turn this one knob: $\text{CE} + \lambda \cdot \text{dice}$, no class weights, with $\lambda$
# of 0, 1 and 12, which makes up for the twelve classes of the mean. Everything else is as in
# lesson 4.


# %% tags=["experiment"]
plans = datasets.FloorPlans("train", length=320, **PLANS)


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


scores, rows = {}, [("", "mean IoU", "rooms: IoU", "wall: IoU", "fixtures: IoU")]
rooms = np.isin(names, ("living room", "kitchen", "bathroom", "bedroom"))
for share in (0.0, 1.0, 12.0):
    found = train(Criterion("combined", gamma=0.0, lambda_dice=share))  # gamma 0: focal is CE
    scores[f"λ = {share:g}"] = {"IoU": found.iou, "precision": found.precision,
                                "recall": found.recall}
    rows.append((f"λ = {share:g}", f"{found.mean_iou_present:.3f}",
                 f"{found.iou[rooms].mean():.3f}", f"{found.iou[names.index('wall')]:.3f}",
                 f"{found.iou[rare].mean():.3f}"))
print("\n".join(ruled(rows)))
plots.show(class_scores(scores, names, f, rare), "06_dice")

# %% [markdown]
# With more dice, the four kinds of rooms come out much better: they look alike, and have a few per
# cent of the pixels each. But nothing of this reached the fixtures. They are not found with any
# $\lambda$, whereas class weights found some of them in lesson 4, in as short a training. To count
# every class alike in the *score* is not the same as to give every class a voice in the
# *gradient*. So dice and class weights are not two cures for one illness. What `python -m
# minisegnet.train` does unless told otherwise takes both: `--loss combined --class-weights sqrt`.
#
# ## Dice is not IoU
#
# "Dice is the overlap, so it optimises IoU." For one class, the two are one number in two forms,
# $D = 2J / (1 + J)$ with $J$ the IoU; what is better for one is better for the other. But a mean
# of curved functions is not a function of the mean:

# %%
rows = [("IoU of the two classes", "mean IoU", "mean Dice")]
for iou in (np.array([0.5, 0.5]), np.array([0.9, 0.12])):
    rows.append((f"{iou[0]:g}, {iou[1]:g}", f"{iou.mean():.3f}",
                 f"{(2 * iou / (1 + iou)).mean():.3f}"))
print("\n".join(ruled(rows)))

# %% [markdown]
# That is the answer to the question at the top: **mean Dice prefers the first**, clearly, where
# mean IoU slightly prefers the second. Dice is generous to what is middling and adds little to
# what is good already. If two models are close, say which mean you went by, and look at the
# classes.
#
# ## To think about
#
# **1.** Why are dice's and cross-entropy's gradients the same, up to $n$, where the network
# predicts the class frequencies at every pixel? Take $s = 0$.
#
# <details><summary>Answer</summary>
#
# With $p_{ic} = f_c$ at all $P$ pixels: $S_c = T_c = P f_c$ and $I_c = P f_c^2$. Then
# $\partial L / \partial S_c = \frac{1}{n} \cdot 2 P f_c^2 / (2 P f_c)^2 = 1 / (2 n P)$, the same
# for every class: the softmax takes it out. What is left is
# $\partial L / \partial I_c = -1 / (n P f_c)$ for the true class, and
# $p_k (t_k \, \partial L / \partial I_k - p_y \, \partial L / \partial I_y)
# = (f_k - t_k) / (n P)$. Cross-entropy has $(p_k - t_k) / P$.
#
# </details>
#
# **2.** A batch holds a single pixel of a toilet. What does $s = 1$ do to its dice score, and what
# would $s = 100$ do?
#
# <details><summary>Answer</summary>
#
# With $T = 1$ and $p$ on that pixel alone, $D = (2p + 1) / (p + 2)$: from 0.5 to 1, so half of
# what there is to gain is given away. With $s = 100$ it is from 0.99 to 1, and the class is as
# good as switched off. For a class with thousands of pixels both are nothing. Smoothing is a
# matter of sizes in pixels, and it hits the small ones.
#
# </details>
#
# **3.** Why is a batch of 16 not the same for dice as two batches of 8 whose gradients are added?
#
# <details><summary>Answer</summary>
#
# Dice is no sum over pixels: the sums are inside a fraction, and the classes that are present
# differ. Gradient accumulation therefore gives another loss, which here is the mean of the dice of
# the parts. For cross-entropy it can be made exact (count the pixels of all parts first).
#
# </details>
