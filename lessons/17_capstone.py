# %% [markdown]
# # 17 · Capstone: real street scenes
#
# | | |
# |---|---|
# | goal | go through a real project once: look, weigh, train, score, and doubt the score |
# | before this | lessons 2, 4 and 14 |
# | read | 15 minutes |
# | exercises | 15 minutes |
# | computes | 39 s |

# %%
import os
import tempfile
from pathlib import Path

import numpy as np

from minisegnet import analyze, datasets, plots, train
from minisegnet.metrics import ConfusionMatrix, bootstrap_iou, divide, expected_maximum
from minisegnet.plots.resampling import resampled_scores
from minisegnet.tables import percent, ruled
from minisegnet.training.checkpoint import load_model
from minisegnet.training.evaluation import predict_batch, score
from minisegnet.verify import check
from minisegnet.verify.gradcheck import relative_error

# %% [markdown]
# CamVid is a set of pictures taken from a car driving through Cambridge, every pixel labelled:
# 11 classes, and a twelfth label for what nobody wanted to decide. It is small enough for a laptop
# and unfair enough for this course. Get it in the layout of the SegNet tutorial (folders `train`,
# `trainannot`, `val`, `valannot`), and put it at `data/CamVid`, or say where it is in the
# environment variable `MINISEGNET_CAMVID`. Without it, the cells that need pictures say so and go
# on; both exercises work without.

# %%
DATA = Path(os.environ.get("MINISEGNET_CAMVID", "data/CamVid"))
has_pictures = (DATA / "train").is_dir() and (DATA / "val").is_dir()
if not has_pictures:
    print(f"no CamVid pictures in {DATA}: what needs them is left out")

# %% [markdown]
# ## Predict before you run
#
# Two networks are about to be trained, briefly, on small pictures: one with plain cross-entropy,
# one with class weights. **Which of the two will have the higher pixel accuracy, which the higher
# mean IoU? And would you bet that the better one is still better on another 101 pictures of the
# same streets?**
#
# ## 1. Look before you train
#
# What `python -m minisegnet.analyze --data ...` prints, from the masks alone. Read it as a doctor
# reads a chart: which classes are rare, which are small, what differs between training and
# validation?

# %% tags=["experiment"]
work = Path(tempfile.mkdtemp())
if has_pictures:
    analyze.main(["--data", str(DATA), "--output-dir", str(work / "analysis")])

# %% [markdown]
# ## 2. One knob: the class weights
#
# Everything else stays as it is: network, schedule, seed, pictures, budget. We take the weights
# `enet` of the table above, $1 / \ln(1.02 + f)$ with $f$ a class's share of the pixels (lesson 4);
# their `max : min` is close to that of `sqrt`. The validation is done once, at the end.

# %% tags=["experiment"]
SCHEMES = ("none", "enet")
COMMON = ["--data", str(DATA), "--loss", "ce", "--image-size", "90", "120", "--epochs", "4",
          "--val-every", "4", "--num-workers", "1"]
if has_pictures:
    for scheme in SCHEMES:
        train.main([*COMMON, "--class-weights", scheme, "--output-dir", str(work / scheme)])

# %% [markdown]
# ## 3. Score both on the same pictures
#
# `score` keeps the counts of every picture apart: hits, pixels in truth, pixels predicted, per
# class. Pooled they give the table; apart they will tell how much to trust it.

# %% tags=["experiment"]
if has_pictures:
    val = datasets.CamVid(DATA, "val")
    names, K = val.class_names, val.num_classes
    # The network sees small pictures and is scored on masks at their own size.
    loader = datasets.DataLoader(val, 8, transform=datasets.Resize((90, 120), resize_mask=False))
    models = {scheme: load_model(work / scheme / "best.npz")[0] for scheme in SCHEMES}
    scores = {scheme: score([(model, (90, 120))], {(90, 120): loader})
              for scheme, model in models.items()}

    pixels = scores["none"].confusion.counts[1]
    rows = [("class", "of the pixels", *(f"IoU {scheme}" for scheme in SCHEMES))]
    rows += [(names[c], percent(pixels[c] / pixels.sum()),
              *(f"{scores[scheme].confusion.iou[c]:.3f}" for scheme in SCHEMES))
             for c in np.argsort(-pixels)]
    rows += [(label, "", *(f"{getattr(scores[scheme].confusion, key):.3f}" for scheme in SCHEMES))
             for label, key in (("mean IoU", "mean_iou_present"),
                                ("pixel accuracy", "pixel_accuracy"))]
    print("\n".join(ruled(rows)))

# %% [markdown]
# Compare the two columns with your guess. Then look at the rows, not at the means: which classes
# pay for which?

# %% tags=["experiment"]
if has_pictures:
    rare = np.argsort(pixels)[:4]  # the four classes with the fewest pixels
    samples = plots.pictures_with(val, rare, 3, apart=10)
    predicted = {}
    for scheme, model in models.items():
        images = np.stack([datasets.Resize((90, 120))(sample, None).image for sample in samples])
        batch = next(datasets.DataLoader(
            [sample._replace(image=image) for sample, image in zip(samples, images)],
            len(samples)).batches())
        predicted[f"weights: {scheme}"] = predict_batch(model, batch.images,
                                                        batch.target.shape[1:])
    iou = {f"weights: {scheme}": scores[scheme].confusion.iou for scheme in SCHEMES}
    plots.show(plots.side_by_side(samples, predicted, iou, names, val.palette),
               "17_capstone_predictions")

# %% [markdown]
# Where the weighted network loses, the pictures often say why: it has begun to look for the rare
# classes, and sees them in too many places. That is a stage on the way, and four epochs are a
# short way. Recall comes first, precision later; a verdict on the weights takes a longer training,
# for both.
#
# ## 4. Doubt the score
#
# The 101 validation pictures are a sample. On 101 others the mean IoU would have been another
# number; how different? Others are dear (and the test pictures are kept for the end). But there
# is a trick that needs none, the **bootstrap**: draw 101 pictures *from these, with
# replacement*, so that some come twice and some not at all, pool them, and score. Do it a
# thousand times, and the spread of the thousand scores says how much the choice of pictures
# matters (Efron and Tibshirani, 1993).
#
# ## Exercise 17.1: one score per resample
#
# You have a confusion matrix for each of $I$ pictures (rows truth, columns prediction) and $R$
# draws, each a list of $I$ picture numbers. For every draw add up the matrices, and return the
# mean IoU over the classes that are in truth or prediction *of this draw*.


# %% tags=["exercise-17.1"]
def resampled_mean_iou(matrices, draws):
    """Return the mean IoUs (R,) of matrices (I, K, K), pooled over draws (R, I) of numbers."""
    ### BEGIN SOLUTION
    scores = np.empty(len(draws))
    for r, draw in enumerate(draws):
        pooled = matrices[draw].sum(axis=0)
        hits = np.diagonal(pooled)
        union = pooled.sum(axis=0) + pooled.sum(axis=1) - hits
        scores[r] = (hits[union > 0] / union[union > 0]).mean()
    return scores
    ### END SOLUTION


# %% tags=["check-17.1"]
rng = np.random.default_rng(17)
matrices = rng.integers(0, 30, (6, 4, 4))
matrices[1:, 3], matrices[1:, :, 3] = 0, 0  # class 3 is true in the first picture only
matrices[5, 0, 3] = 7  # and predicted, wrongly, in the last one as well
draws = rng.integers(6, size=(8, 6))
draws[:3] = [0] * 6, [1, 1, 2, 3, 4, 4], [1, 1, 2, 3, 4, 5]


def pooled_score(matrices, draw):
    confusion = ConfusionMatrix(matrices.shape[1])
    confusion.matrix[...] = matrices[draw].sum(axis=0)
    return confusion


def hits_over_both(confusion):
    hits, truth, predicted = confusion.counts
    return divide(hits, truth + predicted)


check("17.1", resampled_mean_iou, {"matrices": matrices, "draws": draws},
      expected=lambda matrices, draws: np.array([
          pooled_score(matrices, draw).mean_iou_present for draw in draws]),
      slips={
          "a class that a draw has nowhere has no IoU there: leave it out of that draw's mean, "
          "neither 0 nor nan": lambda matrices, draws: np.array([
              pooled_score(matrices, draw).mean_iou_all for draw in draws]),
          "that is the mean of the pictures' own scores: pool the matrices first, divide once":
              lambda matrices, draws: np.array([np.mean([
                  pooled_score(matrices, [i]).mean_iou_present for i in draw]) for draw in draws]),
          "that is dice; IoU divides by the union": lambda matrices, draws: np.array([
              pooled_score(matrices, draw).mean_dice_present for draw in draws]),
          "a class that is predicted and not in the truth counts as well: its IoU is 0":
              lambda matrices, draws: np.array([np.mean(
                  pooled_score(matrices, draw).iou[matrices[draw].sum(axis=(0, 2)) > 0])
                  for draw in draws]),
          "a picture that was drawn twice counts twice": lambda matrices, draws: np.array([
              pooled_score(matrices, np.unique(draw)).mean_iou_present for draw in draws]),
          "row + column counts the hits twice: the union has them once": lambda matrices, draws:
              np.array([np.nanmean(hits_over_both(pooled_score(matrices, draw)))
                        for draw in draws]),
          "that is the accuracy: hits of all classes over all pixels": lambda matrices, draws:
              np.array([pooled_score(matrices, draw).pixel_accuracy for draw in draws])},
      hints={"nan": "A class that is nowhere in a draw divides 0 by 0: leave it out of the mean.",
             "": "Sum the drawn matrices, then hits / (row + column - hits), then the mean over "
                 "the classes whose union is not 0."})

# %% [markdown]
# ## Exercise 17.2: is the second one better?
#
# Two intervals that overlap do *not* mean that two networks cannot be told apart. Both were scored
# on the same pictures: a draw of hard pictures is hard for both. So compare them draw by draw, and
# look at the spread of the *difference*.
#
# You have the scores of two networks on the same $R$ draws. Return the interval that holds the
# middle 95 % of the differences, second minus first.


# %% tags=["exercise-17.2"]
def difference_interval(first, second):
    """Return (2,): the 2.5 % and 97.5 % quantiles of second - first, both (R,), draw by draw."""
    ### BEGIN SOLUTION
    return np.quantile(second - first, [0.025, 0.975])
    ### END SOLUTION


# %% tags=["check-17.2"]
hardness = rng.normal(0.5, 0.05, 400)
first, second = hardness + rng.normal(0, 0.01, 400), hardness + rng.normal(0.02, 0.01, 400)

check("17.2", difference_interval, {"first": first, "second": second},
      expected=lambda first, second: -np.quantile(first - second, [0.975, 0.025]),
      slips={
          "those are quantiles of each network by itself: what they share, the hard draws, has "
          "not been taken out. Subtract first": lambda first, second: np.quantile(
              second, [0.025, 0.975]) - np.quantile(first, [0.025, 0.975]),
          "second minus first, not first minus second": lambda first, second: np.quantile(
              first - second, [0.025, 0.975]),
          "95 % in the middle leaves 2.5 % on either side": lambda first, second: np.quantile(
              second - first, [0.05, 0.95]),
          "np.percentile takes per cents: 2.5 and 97.5": lambda first, second: np.percentile(
              second - first, [0.025, 0.975]),
          "sorting takes the pairs apart: subtract draw by draw, as they are":
              lambda first, second: np.quantile(
                  np.sort(second) - np.sort(first), [0.025, 0.975]),
          "this takes the differences for a bell curve. The quantiles need no such belief":
              lambda first, second: (second - first).mean() + np.array([-1.96, 1.96])
              * (second - first).std(),
          "this is an interval for the mean of the draws: more draws would shrink it, and more "
          "draws are no more pictures": lambda first, second: (second - first).mean() + np.array(
              [-1.96, 1.96]) * (second - first).std() / np.sqrt(first.size)},
      hints={"named": "",
             "": "np.quantile of the R differences, at 0.025 and 0.975: one array of two."})

# %% [markdown]
# ## The experiment, doubted
#
# For IoU no whole matrices are needed, only the hits and the sums of rows and columns of each
# picture, and how often it was drawn. Then all draws are one product. The package does the same
# (`bootstrap_iou`, which `python -m minisegnet.evaluate` prints as an interval):


# %%
def resample(counts, draws):
    """Return the mean IoU (R,) of hits, truth and predicted (I, 3, K), pooled over each draw."""
    times = np.stack([np.bincount(draw, minlength=len(counts)) for draw in draws])  # (R, I)
    hits, truth, predicted = np.moveaxis(np.tensordot(times, counts, 1), 1, 0)  # (R, K) each
    return np.nanmean(divide(hits, truth + predicted - hits), axis=1)


counts = np.stack([pooled_score(matrices, [i]).counts for i in range(len(matrices))])  # (I, 3, K)
rng = np.random.default_rng(0)  # as the package begins
interval = np.quantile(resample(counts, rng.integers(6, size=(1000, 6))), [0.025, 0.975])
print(f"package against formula: relative error "
      f"{relative_error(bootstrap_iou(counts)[0], interval):.1e}")

# %% [markdown]
# A thousand resamples of the two networks from above, on the same draws:

# %% tags=["experiment"]
if has_pictures:
    rng = np.random.default_rng(0)
    draws = rng.integers(len(val), size=(1000, len(val)))
    resampled = {f"weights: {scheme}": resample(scores[scheme].counts, draws)
                 for scheme in SCHEMES}
else:
    rng = np.random.default_rng(0)
    hard = rng.normal(0.4, 0.03, 1000)
    print("without the pictures: two networks that differ by 0.02, and draws that differ by more")
    resampled = {"first": hard + rng.normal(0, 0.01, 1000),
                 "second": hard + rng.normal(0.02, 0.01, 1000)}
for title, values in resampled.items():
    low, high = np.quantile(values, [0.025, 0.975])
    print(f"{title:<14} mean IoU in [{low:.3f}, {high:.3f}]")
one, other = resampled.values()
low, high = np.quantile(other - one, [0.025, 0.975])
print(f"the second less the first in [{low:+.3f}, {high:+.3f}], above 0 in "
      f"{percent((other > one).mean())} of the draws")
plots.show(resampled_scores(resampled, "mean IoU"), "17_capstone")

# %% [markdown]
# What this interval does *not* know: another seed. Both networks were trained once, and training
# again with another seed gives another network; `python -m minisegnet.compare --seeds 3` trains
# each several times. It is too narrow as well where pictures resemble each other, as the frames of
# a film do; CamVid's pictures are such frames.
#
# ## Myth check: "we kept the epoch with the best test score"
#
# A guide recommends to evaluate all checkpoints on the test set and to keep the best. Suppose 100
# checkpoints are *equally good*, and their scores differ by luck alone. How lucky is the best?

# %%
luck = np.random.default_rng(100).standard_normal((20_000, 100)).max(axis=1)
print(f"the best of 100 equal checkpoints is {luck.mean():.2f} standard deviations above the "
      f"truth on average (exactly: {expected_maximum(100):.2f})")

# %% [markdown]
# That is why the checkpoint is chosen on the validation pictures, why the test pictures are looked
# at once, and why everything on this page was measured on validation and is called so.
#
# ## Your turn
#
# Without exercise numbers, and without an end: make it better, and say by how much.
#
# * `--augment standard`, `--image-size 180 240`, `--model deeplab_light --lr 2e-3`, `--epochs 40`
# * `--loss combined`, `--loss focal --class-weights enet`, `--sampler repeat-factor`
# * `--debug --ledger`, then `python -m minisegnet.diagnose RUN`
# * `python -m minisegnet.evaluate RUN --tta`, and the same with `--all`
#
# Change one thing at a time, write down what you expect before each run, and keep the runs that
# disappointed: they are the result, too.
#
# ## To think about
#
# **1.** A class with 300 pixels in all of validation has an IoU of 0.6 in one run and 0.4 in the
# next. What would you report?
#
# <details><summary>Answer</summary>
#
# Its interval, or how many pictures it is in: with so few, a handful of pictures decide. A mean
# over classes gives this noise the same say as the road's millions of pixels, which is why two
# runs may swap places in mean IoU without any class that you care about having changed.
#
# </details>
#
# **2.** The accuracy fell and the mean IoU rose. Which of the two networks is better?
#
# <details><summary>Answer</summary>
#
# Better for what? A network that guides a car must find the rare bicyclist; one that measures how
# much of a city is road needs the accuracy. The number to optimise is a decision about the world,
# and no library makes it for you.
#
# </details>
