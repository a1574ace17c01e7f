# %% [markdown]
# # 2 · Every metric from one matrix
#
# | | |
# |---|---|
# | goal | derive all usual scores from one confusion matrix, and know what each hides |
# | before this | lesson 1 |
# | read | 12 minutes |
# | exercises | 18 minutes |
# | computes | 1 s |

# %%
import numpy as np

from minisegnet import audit, datasets, plots
from minisegnet.metrics import ConfusionMatrix
from minisegnet.plots.knob import Panel, over_a_knob
from minisegnet.tables import number_text, percent, ruled
from minisegnet.verify import check
from minisegnet.verify.gradcheck import relative_error

rng = np.random.default_rng(2)

# %% [markdown]
# ## Predict before you run
#
# Take a perfect prediction of floor plans, 128 pixels high and 160 wide, and shift it by two
# pixels down and two to the right. Everything is found, everything has its right name, and all of
# it is a little off.
#
# **What is the pixel accuracy now? And what is the IoU of a stove, a square of about 12 pixels?**
# Write down two numbers. The answers are computed in "The experiment".
#
# ## One matrix
#
# Take all pixels of a data set that count, and note for each the true class and the called one.
# The confusion matrix $M$ has one row per true class and one column per called class; $M_{ij}$
# counts the pixels of class $i$ that are called $j$. Everything else follows from three vectors:
#
# | | formula | code |
# |---|---|---|
# | hits of class $c$ | $h_c = M_{cc}$ | `hits = np.diag(M)` |
# | true pixels | $t_c = \sum_j M_{cj}$ | `truth = M.sum(axis=1)` |
# | called pixels | $q_c = \sum_i M_{ic}$ | `called = M.sum(axis=0)` |
#
# How is it counted without a loop over the pixels? Number the cells of the matrix row by row: the
# pair $(i, j)$ has the number $i K + j$. So every pixel becomes one number, and
# `np.bincount(numbers, minlength=K * K)` counts how often each occurs.
#
# Two traps are waiting. Masks are uint8, and in uint8 $19 \cdot 20$ is not 380: it wraps round at
# 256. And the label 255 says "nobody knows": such a pixel is neither right nor wrong, and takes
# no part.
#
# ## Exercise 2.1: the confusion matrix


# %% tags=["exercise-2.1"]
def confusion_matrix(target, prediction, K):
    """Return the confusion matrix (K, K) int64: row the true class, column the called one.

    target and prediction are (N, H, W) uint8; pixels with target 255 are left out.
    """
    ### BEGIN SOLUTION
    counts = target != 255
    cell = target[counts].astype(np.int64) * K + prediction[counts]
    return np.bincount(cell, minlength=K * K).reshape(K, K)
    ### END SOLUTION


# %% tags=["check-2.1"]
def counted(target, prediction, K):
    """The package's matrix."""
    confusion = ConfusionMatrix(K)
    confusion.update(target, prediction)
    return confusion.matrix


target = rng.integers(0, 19, (2, 30, 40)).astype(np.uint8)
prediction = np.where(rng.random(target.shape) < 0.6, target, rng.integers(0, 18, target.shape))
prediction = prediction.astype(np.uint8)
target[0, :4] = target[1, 7:9, 5] = 255

check("2.1", confusion_matrix, {"target": target, "prediction": prediction, "K": 20},
      expected=counted,
      hints={"transposed": "Rows are the truth: the true class is multiplied by K.",
             "": "Keep the pixels whose target is not 255, number their cells, count the numbers "
                 "with minlength=K * K."},
      slips={
          "with arrays as indices += 1 adds 1 to a cell once, however often it occurs: bincount":
              lambda target, prediction, K: np.minimum(counted(target, prediction, K), 1),
          "uint8 wraps round at 256: convert to int64 before you multiply by K":
              lambda target, prediction, K: np.bincount(
                  (target * np.uint8(K) + prediction)[target != 255],
                  minlength=K * K).reshape(K, K),
          "the ignored pixels are counted as class 0: leave them out":
              lambda target, prediction, K: counted(np.where(target == 255, 0, target),
                                                    prediction, K),
          "the ignored pixels are counted as the last class: leave them out":
              lambda target, prediction, K: counted(np.where(target == 255, K - 1, target),
                                                    prediction, K)})

# %% [markdown]
# ## Scores of one class
#
# Of class $c$ we have hits $h$, true pixels $t$ and called pixels $q$. The union of truth and
# calls has $t + q - h$ pixels, for the hits are in both.
#
# | score | formula | asks |
# |---|---|---|
# | recall | $h / t$ | how much of the class is found? |
# | precision | $h / q$ | how much of what is called so is right? |
# | IoU | $h / (t + q - h)$ | both at once |
# | Dice (F1) | $2h / (t + q)$ | both at once, more kindly |
#
# **Dice and IoU say the same about one class**: divide above and below by $t + q - h$, and
#
# $$\text{Dice} = \frac{2\, \text{IoU}}{1 + \text{IoU}} \qquad\qquad
#   \text{IoU} = \frac{\text{Dice}}{2 - \text{Dice}}$$
#
# So Dice is never below IoU, and ranks models alike on one class. On the *means* over classes this
# is no longer so: the curve is bent, so the mean of the Dices is not the Dice of the mean.
#
# And a class that is nowhere, neither in the truth nor called? Then $0/0$: the question does not
# arise. It has no IoU. Not 0, for the model made no mistake; not 1, for it did nothing well
# either. NumPy's word for this is `nan`.
#
# ## Exercise 2.2: IoU and Dice per class
#
# Absent classes get `nan`. `np.divide(a, b, out=np.full(b.shape, np.nan), where=b != 0)` divides
# where it can, and warns of nothing.


# %% tags=["exercise-2.2"]
def iou_and_dice(M):
    """Return (IoU, Dice) per class, two (K,) float64, of a confusion matrix M (K, K) int64.

    Rows are the truth; classes in neither truth nor prediction have nan.
    """
    ### BEGIN SOLUTION
    hits, truth, called = np.diag(M), M.sum(axis=1), M.sum(axis=0)
    union, both = truth + called - hits, truth + called
    iou = np.divide(hits, union, out=np.full(union.shape, np.nan), where=union != 0)
    dice = np.divide(2 * hits, both, out=np.full(both.shape, np.nan), where=both != 0)
    return iou, dice
    ### END SOLUTION


# %% tags=["check-2.2"]
M = rng.integers(1, 60, (6, 6)) + np.diag(rng.integers(100, 400, 6))
M[:, 4] = 0  # class 4 is never called: its IoU is 0
M[2] = M[:, 2] = 0  # class 2 is nowhere


def package_scores(M):
    """The package's ConfusionMatrix with these counts."""
    confusion = ConfusionMatrix(len(M))
    confusion.matrix[...] = M
    return confusion


check("2.2", iou_and_dice, {"M": M},
      expected=lambda M: (package_scores(M).iou, package_scores(M).dice),
      hints={"nan": "Only a class in neither truth nor prediction is nan; one that is never "
                    "called has 0 over something.",
             "": "hits over truth + called - hits; twice the hits over truth + called."},
      slips={
          "the hits are in the truth and in the calls: take them away once from the union":
              lambda M: (package_scores(M).dice / 2, package_scores(M).dice),
          "that is the recall: what is called so and is not must count as well":
              lambda M: (package_scores(M).recall, package_scores(M).dice),
          "Dice counts the hits twice above the line as well: they are in the truth and in the "
          "calls": lambda M: (package_scores(M).iou, package_scores(M).dice / 2),
          "an absent class has no score, and you gave it 0: let it be nan":
              lambda M: tuple(map(np.nan_to_num, (package_scores(M).iou,
                                                  package_scores(M).dice))),
          "an absent class has no score, and you gave it 1: let it be nan":
              lambda M: tuple(np.nan_to_num(each, nan=1.0) for each in (
                  package_scores(M).iou, package_scores(M).dice))})

# %% [markdown]
# ## One number for all classes
#
# | score | formula | weight of a class |
# |---|---|---|
# | pixel accuracy | $\sum_c h_c \,/ \sum_c t_c$ | its pixels |
# | frequency-weighted IoU | $\sum_c f_c\, \text{IoU}_c$ with $f_c = t_c / \sum t$ | its pixels |
# | mean IoU | mean of $\text{IoU}_c$ over the classes with one | all alike |
#
# The first two belong to whoever is frequent. With a background of 72 % they are mostly a
# statement about background. The mean IoU gives a toilet the same voice as the background; that
# is why people use it under imbalance.
#
# But a mean over *which* classes? A paper that has 20 classes, of which 3 do not occur in its
# pictures, may divide by 17 or by 20. Both are done. So the package names both: `mean_iou_present`
# is over the classes in truth or prediction, `mean_iou_all` divides the same sum by $K$.
#
# ## Exercise 2.3: the means


# %% tags=["exercise-2.3"]
def summary(M):
    """Return (pixel accuracy, FWIoU, mean IoU present, mean IoU all), four floats.

    M is a confusion matrix (K, K) int64 with rows the truth; some classes may be absent.
    "present": over the classes in truth or prediction. "all": absent classes add 0, K divides.
    """
    ### BEGIN SOLUTION
    hits, truth, called = np.diag(M), M.sum(axis=1), M.sum(axis=0)
    union = truth + called - hits
    present = union > 0
    iou = hits[present] / union[present]
    accuracy = hits.sum() / M.sum()
    fw_iou = (truth[present] * iou).sum() / truth.sum()
    return accuracy, fw_iou, iou.mean(), iou.sum() / len(M)
    ### END SOLUTION


# %% tags=["check-2.3"]
def expected_summary(M):
    """The package's four numbers."""
    scores = package_scores(M)
    return (scores.pixel_accuracy, scores.fw_iou, scores.mean_iou_present, scores.mean_iou_all)


check("2.3", summary, {"M": M}, expected=expected_summary,
      quantities={"K over the number of classes present": 6 / 5,
                  "the number of classes present over that of classes ever hit: one that is "
                  "never called has the IoU 0, and counts": 5 / 4,
                  "the number of pixels": M.sum(),
                  "the number of classes present": 5, "the number of classes, K": 6},
      hints={"nan": "One nan in a sum makes all of it nan: leave the absent class out first.",
             "": "Compare yours with the table, one after the other."},
      slips={
          "the first is the mean recall: accuracy is all hits over all pixels":
              lambda M: (package_scores(M).mean_class_accuracy, *expected_summary(M)[1:]),
          "FWIoU weighs with the shares of the truth, not of the calls":
              lambda M: (expected_summary(M)[0],
                         np.nansum(M.sum(axis=0) * package_scores(M).iou) / M.sum(),
                         *expected_summary(M)[2:])})

# %% [markdown]
# Ours against the package, on the matrix of the exercise, written out once more:

# %%
hits, in_truth, called = np.diag(M), M.sum(axis=1), M.sum(axis=0)
with np.errstate(invalid="ignore"):
    inline = hits / (in_truth + called - hits)
scores = package_scores(M)
print("IoU per class:", " ".join(number_text(value) for value in inline))
print(f"against the package: relative error {relative_error(inline, scores.iou):.0e}")
print(f"mean over the present {scores.mean_iou_present:.3f}, over all {scores.mean_iou_all:.3f}")

# %% [markdown]
# ## The experiment: one knob, a shift
#
# Now the perfect prediction of the question at the top. We shift it by $d$ pixels down and to the
# right, and look at all scores of the same matrix.

# %%
plans = datasets.FloorPlans("val", length=48, rare_image_share=0.5)
truth = np.stack([plans[i].mask for i in range(len(plans))])  # (48, 128, 160)
names, K = plans.class_names, plans.num_classes


def shifted(masks, d):
    """Return masks (N, H, W) moved by d pixels down and right; what comes in is background."""
    moved = np.zeros_like(masks)
    moved[:, d:, d:] = masks[:, :masks.shape[1] - d, :masks.shape[2] - d]
    return moved


SHOWN = ("background", "wall", "window", "stove")
shifts = range(9)
of_shift = []
for d in shifts:
    confusion = ConfusionMatrix(K)
    confusion.update(truth, shifted(truth, d))
    of_shift.append(confusion)

columns = {"accuracy": "pixel_accuracy", "FWIoU": "fw_iou", "mean Dice": "mean_dice_present",
           "mean IoU": "mean_iou_present"}
rows = [("shift", *columns, *(f"IoU {name}" for name in SHOWN))]
for d, confusion in zip(shifts, of_shift):
    rows.append((f"{d} px", *(f"{getattr(confusion, key):.3f}" for key in columns.values()),
                 *(f"{confusion.iou[names.index(name)]:.3f}" for name in SHOWN)))
print("\n".join(ruled(rows)))
means = {label: [getattr(confusion, key) for confusion in of_shift]
         for label, key in columns.items()}
per_class = {names[c]: [confusion.iou[c] for confusion in of_shift] for c in np.argsort(
    -np.bincount(truth.ravel(), minlength=K), kind="stable")}
plots.show(over_a_knob("shift in pixels, down and right", shifts, [
    Panel("one number for all classes", "score", means),
    Panel("IoU per class, most frequent first", "IoU", per_class)]), "02_metrics")

# %% [markdown]
# Two pixels off, and most of the accuracy is still there, while a stove has lost nearly half of
# its IoU. Of a square with side $s$ the two share $o = (s - d)^2$ pixels, and the IoU is
# $o / (2 s^2 - o)$. Thin things, walls and windows, lose even more.

# %%
s, d = 12, 2
overlap = (s - d) ** 2
print(f"a square of {s} px, shifted by {d}: IoU {overlap / (2 * s * s - overlap):.3f}")

# %% [markdown]
# So a low IoU of a small class may be no more than a sloppy border, and a high accuracy may hide
# that nothing small is found at all. Read the scores per class before you read a mean.
#
# ## Pooled, or per image?
#
# There are two ways to average. *Pooled*: add up the matrices of all pictures, then divide once.
# *Per image*: compute the mean IoU of each picture, then average those. The prediction is shifted
# by two pixels again, and once more with all toilets missed in half of the pictures.

# %%
toilet = names.index("toilet")
missed = shifted(truth, 2)
missed[::2][missed[::2] == toilet] = names.index("bathroom")
rows = [("prediction", "pooled", "per image", "per image, absent = 0", "per image, absent = 1")]
for label, predicted in (("shifted by 2 px", shifted(truth, 2)),
                         ("and half of the toilets missed", missed)):
    pooled, per_image = ConfusionMatrix(K), []
    pooled.update(truth, predicted)
    for each_truth, each in zip(truth, predicted):
        confusion = ConfusionMatrix(K)
        confusion.update(each_truth, each)
        per_image.append(confusion.iou)
    per_image = np.array(per_image)  # (48, K), nan where absent
    rows.append((label, f"{pooled.mean_iou_present:.4f}",
                 f"{np.mean([np.nanmean(iou) for iou in per_image]):.4f}",
                 *(f"{np.nan_to_num(per_image, nan=value).mean():.4f}" for value in (0.0, 1.0))))
print("\n".join(ruled(rows)))

# %% [markdown]
# The same predictions, four "mean IoUs", and no two can be compared. Per image, a class has a say
# only in the pictures that have it, and a single toilet of few pixels weighs there as much as the
# whole background. Pooled, all pixels of a class are one large object. In this course scores are
# pooled, unless something else is said.
#
# ## Myth check: "where IoU is nan, put 0"
#
# A guide does that to be rid of the warnings. Watch two matrices: one of a good model whose
# pictures happen to lack two of four classes, and one of a loop that never counted a pixel.

# %%
good = package_scores(np.array([[8, 1, 0, 0], [0, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]))
for label, confusion in (("good, two classes absent", good), ("empty", ConfusionMatrix(4))):
    print(f"{label}: nan -> 0 gives {np.nan_to_num(confusion.iou).mean():.3f}; "
          f"over the present {number_text(confusion.mean_iou_present)}, "
          f"over all {number_text(confusion.mean_iou_all)}")

# %% [markdown]
# For the first, the 0 is the mean over all classes without saying so. For the second it hides a
# bug: a mean IoU of 0 looks like a bad model, and there was no data at all.
#
# ## Myth check: "mean IoU 72.73, mean Dice 39.80"
#
# Another guide prints both of one model. You know that Dice is never below IoU, class by class, so
# the mean cannot be either. And by how much can it be above? The curve is bent downwards, so the
# mean of the Dices is at most the Dice of the mean, $2m / (1 + m)$.

# %%
m = 0.7273
print(f"mean Dice lies between {percent(m)} and {percent(2 * m / (1 + m))}\n")
audit.main(["--mean-iou", "72.73", "--mean-dice", "39.80", "--percent"])

# %% [markdown]
# These two numbers are not of one matrix over the same classes: different data, different classes,
# or a bug in one of them. Such a check takes a minute, and needs no access to the model.
#
# ## To think about
#
# **1.** The IoU of a class is 0.5. What is its Dice, and how low can its recall be?
#
# <details><summary>Answer</summary>
#
# Dice is $2 \cdot 0.5 / 1.5$, two thirds: it follows from the IoU. The recall does not, but it has
# a bound. The union is at least the truth, so $h / t$ is at least the IoU: half of the class is
# found, or more. The same holds for precision; and if one of them is 0.5, the other is 1.
#
# </details>
#
# **2.** The frequency-weighted IoU is never above the pixel accuracy. Why?
#
# <details><summary>Answer</summary>
#
# The accuracy is $\sum_c f_c \cdot \text{recall}_c$. The IoU of a class is never above its recall,
# for its union is at least the truth. So term by term FWIoU is the smaller.
#
# </details>
#
# **3.** You remove a class from the list since "the model never finds it anyway", and the mean IoU
# goes up. Has the model become better?
#
# <details><summary>Answer</summary>
#
# No. The sum is the same and the divisor is smaller. Whoever compares means must say over which
# classes. It is also the reason why "mean over the present" can rise by a lot on a test set in
# which the hard classes happen not to occur.
#
# </details>
