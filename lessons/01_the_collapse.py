# %% [markdown]
# # 1 · The collapse, and its fingerprint
#
# | | |
# |---|---|
# | goal | see a model learn nothing but background, and prove that it did |
# | before this | lesson 0 |
# | read | 15 minutes |
# | exercises | 15 minutes |
# | computes | 25 s |

# %%
import json
import tempfile
from pathlib import Path

import numpy as np

from minisegnet import audit, datasets, plots, train
from minisegnet.datasets.transforms import normalize
from minisegnet.imbalance.fingerprint import information, know_nothing, resembles
from minisegnet.metrics import ConfusionMatrix
from minisegnet.tables import percent, ruled
from minisegnet.training.evaluation import predict_batch
from minisegnet.training.trained_model import load_checked
from minisegnet.verify import check
from minisegnet.verify.gradcheck import relative_error

rng = np.random.default_rng(1)

# %% [markdown]
# ## Predict before you run
#
# We train a small network on floor plans with plain cross-entropy: 12 classes, 640 plans, the
# usual optimizer, a cautious learning rate. After the first pass over the plans the loss on plans
# it has never seen is well below where it began, and about seven pixels in ten are right.
#
# **How many of the 12 classes has the network found by then? And after three passes?** Write down
# two numbers. The answer is computed in the next section.
#
# ## The training
#
# This is the command as you would type it, `python -m minisegnet.train --loss ce ...`, called from
# Python. The learning rate is a hundredth of the command's default: we want to see the beginning
# in slow motion. Before it starts, the command prints what somebody would score who never looks
# at the pictures.

# %% tags=["experiment"]
folder = Path(tempfile.mkdtemp())
SETTINGS = ["--loss", "ce", "--class-weights", "none", "--image-size", "64", "80", "--epochs", "3",
            "--schedule", "constant", "--save-every", "1", "--num-workers", "0"]
train.main([*SETTINGS, "--lr", "0.0005", "--output-dir", str(folder / "cautious")])

# %% [markdown]
# Every run leaves a log, one line per epoch. Let us read it: the loss, the pixel accuracy (the
# share of pixels that are right), the mean IoU, and the *active* classes, those with an IoU above
# 0.01. The IoU of a class is
#
# $$\text{IoU}_c = \frac{\text{pixels that are } c \text{ and called } c}
#                       {\text{pixels that are } c \text{ or called } c}$$
#
# It is 1 if the class is found exactly, and 0 if it is never found. Lesson 2 takes it apart.


# %% tags=["experiment"]
def log_of(run):
    """Return the log of a run folder, a dict per epoch."""
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def found(record, names):
    """Return the names of the active classes of an epoch."""
    return [name for name, iou in zip(names, record["iou"]) if iou is not None and iou > 0.01]


names = datasets.FloorPlans.class_names
print(f"before training: loss {np.log(len(names)):.3f}, all classes alike")
rows = [("epoch", "loss", "accuracy", "mean IoU", "active classes")]
rows += [(str(r["epoch"]), f"{r['val_loss']:.3f}", f"{r['pixel_accuracy']:.3f}",
          f"{r['mean_iou']:.3f}", f"{r['active_classes']} of {len(names)}: "
          f"{', '.join(found(r, names))}") for r in log_of(folder / "cautious")]
print("\n".join(ruled(rows, left=0)))

# %% [markdown]
# After the first epoch the loss is much lower, the accuracy respectable, and the network has found
# **one** class: it paints every plan with background. Two epochs later it has found wall as well,
# and there is still no door, no room and no toilet. This is **the collapse**, the disease that
# this course is about.
#
# ## How does one prove a collapse?
#
# "It predicts only background" is quickly said, and often wrong, as you will see. A proof compares
# the model with predictors that never look at a picture. Call such a predictor *blind*: it calls
# a pixel class $c$ with probability $q_c$, whatever is there. Let $f_c$ be the share of class $c$
# in the truth. Being blind means that the call is independent of the truth, so
#
# | of all pixels | share | why |
# |---|---|---|
# | are $c$ and called $c$: hits | $f_c\, q_c$ | independent: multiply |
# | are $c$ or called $c$: union | $f_c + q_c - f_c\, q_c$ | both, less what was counted twice |
#
# $$\text{accuracy} = \sum_c f_c\, q_c \qquad\qquad
#   \text{IoU}_c = \frac{f_c\, q_c}{f_c + q_c - f_c\, q_c}$$
#
# | blind predictor | $q$ | accuracy | $\text{IoU}_c$ |
# |---|---|---|---|
# | always class $k$ | $q_k = 1$ | $f_k$ | $f_k$ for $c = k$, else 0 |
# | uniform guessing | $1/K$ | $1/K$ | $f_c / (1 + (K-1) f_c)$ |
# | guessing by class share | $f_c$ | $\sum_c f_c^2$ | $f_c / (2 - f_c)$ |
#
# ## Exercise 1.1: the scores of the laziest predictor
#
# It says class $k$, everywhere. Which accuracy, which IoU of each class, which mean IoU over all
# $K$ classes does it get? All classes occur in the truth.


# %% tags=["exercise-1.1"]
def scores_of_constant(f, k):
    """Return (accuracy, IoU per class, mean IoU) of predicting class k at every pixel.

    f are the shares of the classes in the truth, (K,) float64, all above 0, sum 1; k is an int.
    Returned are a float, an array (K,) and a float.
    """
    ### BEGIN SOLUTION
    iou = np.zeros_like(f)
    iou[k] = f[k]
    return f[k], iou, f[k] / len(f)
    ### END SOLUTION


# %% tags=["check-1.1"]
truth_pixels = rng.integers(50, 5000, 7)


def confusion_of_blind(truth, called):
    """The ConfusionMatrix of calls (K,) that do not depend on the truth (K,), both counts."""
    confusion = ConfusionMatrix(len(truth))
    confusion.matrix[...] = np.outer(truth, called)
    return confusion


def counted(f, k):
    """The expected scores, counted in a confusion matrix."""
    confusion = confusion_of_blind(truth_pixels, np.arange(len(f)) == k)
    return confusion.pixel_accuracy, confusion.iou, confusion.mean_iou_present


check("1.1", scores_of_constant, {"f": truth_pixels / truth_pixels.sum(), "k": 2},
      expected=counted,
      hints={"nan": "The union of any other class is at least its truth: 0 over something is 0.",
             "": "All pixels are called k: its hits are its pixels, and its union is everything."},
      slips={
          "1 / K is the accuracy of uniform guessing":
              lambda f, k: (1 / len(f), *counted(f, k)[1:]),
          "only class k is ever hit: all others have an IoU of 0":
              lambda f, k: (f[k], f, np.nan),
          "that is its recall: nothing of class k is missed, but the IoU also counts the "
          "pixels that are called k and are not":
              lambda f, k: (f[k], np.eye(len(f))[k], np.nan),
          "the IoU of class k is not 1: take the mean of the IoUs that you have returned":
              lambda f, k: (*counted(f, k)[:2], 1 / len(f)),
          "that is the IoU of class k: the mean is over all K classes, the others count with 0":
              lambda f, k: (*counted(f, k)[:2], f[k])})

# %% [markdown]
# Keep two things. **For a constant predictor accuracy and IoU of its class are the same number.**
# And its mean IoU is $f_k / K$: with 12 classes and a background of 72 % it is 0.06, whatever else
# happens.
#
# ## Exercise 1.2: any blind predictor
#
# The table above in one function. Classes may be called never ($q_c = 0$).


# %% tags=["exercise-1.2"]
def blind_iou(f, q):
    """Return the IoU per class, (K,), of a predictor that calls any pixel c with probability q[c].

    f and q are (K,) float64, each with sum 1: shares in the truth (all above 0), and of the calls.
    """
    ### BEGIN SOLUTION
    hits = f * q
    return hits / (f + q - hits)
    ### END SOLUTION


# %% tags=["check-1.2"]
called_pixels = rng.integers(0, 900, 7)
called_pixels[4] = 0

check("1.2", blind_iou, {"f": truth_pixels / truth_pixels.sum(),
                         "q": called_pixels / called_pixels.sum()},
      expected=lambda f, q: confusion_of_blind(truth_pixels, called_pixels).iou,
      hints={"": "Hits f q over the union f + q - f q."},
      slips={
          "the hits are in f and in q, and so twice in f + q: take them away once":
              lambda f, q: f * q / (f + q),
          "hits over truth, f q / f, is the recall: IoU divides by the union":
              lambda f, q: q,
          "that is Dice, 2 f q / (f + q): IoU divides the hits by the union":
              lambda f, q: 2 * f * q / (f + q),
          "min(f, q) is the most that could be hit; who is blind hits f times q":
              lambda f, q: np.minimum(f, q) / (f + q - np.minimum(f, q)),
          "f / (2 - f) is right for q = f only: here q is something else":
              lambda f, q: f / (2 - f),
          "f / (1 + (K - 1) f) is right for q = 1 / K only: here q is something else":
              lambda f, q: f / (1 + (len(f) - 1) * f)})

# %% [markdown]
# The package does this for a whole data set in `minisegnet.imbalance.fingerprint`. It prints such
# a table before each training. Here it is for 64 of the plans that the network is scored on, and
# beside it our formula:

# %%
plans = datasets.FloorPlans("val")
samples = [plans[i] for i in range(64)]
truth = np.stack([sample.mask for sample in samples])  # (64, 128, 160)
class_names = plans.class_names
pixels = np.bincount(truth.ravel(), minlength=len(class_names))
baselines = know_nothing(pixels, class_names)
rows = [("knows nothing of the pictures", "accuracy", "mean IoU", "formula against package")]
f = pixels / pixels.sum()
for baseline in baselines:
    q = baseline.predicted
    inline = f * q / (f + q - f * q)
    rows.append((baseline.name, f"{baseline.pixel_accuracy:.4f}", f"{baseline.mean_iou:.4f}",
                 f"{relative_error(inline, baseline.iou):.0e}"))
print("\n".join(ruled(rows)))

# %% [markdown]
# A high accuracy for nothing at all, and three mean IoUs near the floor. So an accuracy means
# nothing without the first row beside it, and **a model near one of these rows is under suspicion
# of having learned nothing**.
#
# ## Is ours blind?
#
# Suspicion is no proof: a model could have the same mean IoU by finding one rare class and missing
# background. `resembles` looks at the whole confusion matrix. It calls a
# model blind if its calls tell next to nothing about the truth (less than 1 % of the uncertainty)
# and no class has an IoU noticeably above that of guessing with the same shares.


# %% tags=["experiment"]
def predictions_of(checkpoint, samples):
    """Return the predictions (N, H, W) of a checkpoint for the samples."""
    model, meta = load_checked(checkpoint)
    shrink = datasets.Resize(meta["image_size"], resize_mask=False)
    images = normalize(np.stack([shrink(sample, None).image for sample in samples]))
    size = samples[0].mask.shape
    return np.concatenate([predict_batch(model, images[i:i + 16], size)
                           for i in range(0, len(images), 16)])


def judged(checkpoint):
    """Return (predictions, ConfusionMatrix) of a checkpoint on the plans, and print a verdict."""
    predicted = predictions_of(checkpoint, samples)
    confusion = ConfusionMatrix(len(class_names))
    confusion.update(truth, predicted)
    blind = resembles(confusion, baselines)
    print(f"{checkpoint.parent.name}, {checkpoint.stem}: accuracy "
          f"{confusion.pixel_accuracy:.3f}, mean IoU {confusion.mean_iou_present:.3f}, knows "
          f"{percent(information(confusion.matrix))} of the truth\n    -> "
          + (f"cannot be told from {blind.name}" if blind else "not blind"))
    return predicted, confusion


first, first_confusion = judged(folder / "cautious" / "epoch_0001.npz")
last, last_confusion = judged(folder / "cautious" / "epoch_0003.npz")

# %% [markdown]
# So after one epoch the network *is* the laziest predictor, proven. After three it is not: it has
# learned what is inside the house and what is outside, and nothing of what is rare.
#
# ## The experiment: one knob, the learning rate
#
# Is it only a matter of patience? Turn one knob, the learning rate, to 40 times as much. Three
# epochs, and everything else as before.

# %% tags=["experiment"]
train.main([*SETTINGS, "--lr", "0.02", "--output-dir", str(folder / "brisk")])

# %% tags=["experiment"]
brisk, brisk_confusion = judged(folder / "brisk" / "epoch_0003.npz")
order = np.argsort(-pixels)
rows = [("class", "of the pixels", "1 epoch", "3 epochs", "3 epochs, rate x 40")]
rows += [(class_names[c], percent(f[c]), *(f"{confusion.iou[c]:.3f}" for confusion in (
    first_confusion, last_confusion, brisk_confusion))) for c in order]
print("\n".join(ruled(rows)))

fixtures = [class_names.index(name) for name in ("bed", "stove", "sink", "toilet")]
shown = plots.pictures_with(samples, fixtures, 3)
at = [next(i for i, sample in enumerate(samples) if sample is each) for each in shown]
titles = ("after 1 epoch", "after 3 epochs", "3 epochs, rate x 40")
plots.show(plots.side_by_side(
    shown, dict(zip(titles, (first[at], last[at], brisk[at]))),
    dict(zip(titles, (c.iou for c in (first_confusion, last_confusion, brisk_confusion)))),
    class_names, plans.palette), "01_the_collapse")

# %% [markdown]
# The classes come in the order of their frequency, more or less: background, then walls, then
# openings and floors. A larger rate hurries them on. The four fixtures, together far less than a
# hundredth of the pixels, stay at an IoU of 0 or next to it all the same, and the accuracy hardly
# notices. A much longer training brings them, too, in the end (the README has figures). So the
# collapse is a stage, and imbalance makes it long. The question of this course is how to get out
# of it sooner: with weights (lesson 4), with other losses (5 and 6), with other ways of choosing
# pictures.
#
# ## Myth check: "it predicts only background"
#
# A guide on floor plans (34 classes) starts from a model with an accuracy of 0.424, an IoU of
# 0.727 for background and 0 for all else, and says: it predicts only background. You know that
# then accuracy and IoU would be equal. They are not. So what *does* follow?
#
# All right pixels are background, so the hits are $h = $ accuracy, and $\text{IoU} = h / u$ gives
# the union $u$. The truth lies between: all hits are in it, and it is in the union. And pixels
# outside the union are neither background nor called so: they are called other classes, and since
# no other class is ever hit, all of them wrongly.
#
# ## Exercise 1.3: the detective
#
# Write that down. The inputs hold the figures of several such models.


# %% tags=["exercise-1.3"]
def what_follows(accuracy, iou):
    """Return (least, most, wrong), each (M,), for M models that hit one class only.

    accuracy and iou (of the class that is hit) are (M,) float64, accuracy <= iou. least and most:
    the bounds of the share of that class in the truth. wrong: the share of the pixels outside the
    union of truth and calls of the class.
    """
    ### BEGIN SOLUTION
    union = accuracy / iou
    return accuracy, union, 1 - union
    ### END SOLUTION


# %% tags=["check-1.3"]
hits, extra, elsewhere = rng.integers(100, 900, (3, 5))

check("1.3", what_follows,
      {"accuracy": hits / (hits + extra + elsewhere), "iou": hits / (hits + extra)},
      expected=lambda accuracy, iou: (hits / (hits + extra + elsewhere),
                                      (hits + extra) / (hits + extra + elsewhere),
                                      elsewhere / (hits + extra + elsewhere)),
      hints={"": "IoU = hits / union, and the hits are the accuracy: union = accuracy / IoU."},
      slips={
          "the union is accuracy / IoU: you have multiplied":
              lambda accuracy, iou: (accuracy, accuracy * iou, 1 - accuracy * iou),
          "that is wrong, too, but inside the union: wanted is what lies outside":
              lambda accuracy, iou: (accuracy, accuracy / iou, accuracy / iou - accuracy),
          "1 - accuracy is all that is wrong, also inside the union":
              lambda accuracy, iou: (accuracy, accuracy / iou, 1 - accuracy),
          "that is the IoU: the share of the class in the truth is at most its union":
              lambda accuracy, iou: (accuracy, iou, 1 - iou)})

# %% [markdown]
# The command `python -m minisegnet.audit` does this kind of work for any published figures:

# %%
audit.main(["--classes", "34", "--accuracy", "0.424", "--iou", "0=0.727", "rest=0",
            "--claim", "constant=0"])

# %% [markdown]
# A good two fifths of the pixels are called something that is *always* wrong. Even who guesses
# blindly hits now and then, unless the classes called do not occur at all. So look at the label
# list and at the metric first; if one of them is wrong, no class weight will help.
#
# ## Myth check: "stuck at 2.7 %, so it predicts class 0"
#
# Another guide (37 classes) meets a mean IoU of 2.7 % and concludes that class 0 is predicted
# everywhere. Its own printout says: 32.6 % of all pixels are of class 0, 13.6 % are ignored.

# %%
of_valid = 0.326 / (1 - 0.136)
print(f"class 0 among the pixels that count: f = {percent(of_valid)}")
print(f"mean IoU of always predicting it: f / 37 = {percent(of_valid / 37)}")
print(f"mean class accuracy of any constant predictor: 1 / 37 = {percent(1 / 37)}\n")
audit.main(["--classes", "37", "--mean-iou", "2.7%", "--share-of-all", "0=32.6%",
            "--ignored", "13.6%", "--claim", "constant=0"])

# %% [markdown]
# The number was right and its name was wrong: it is the mean class *accuracy*, the mean share of
# each class that is found. A constant predictor finds all of one class and nothing of the others.
#
# ## Myth check: "30 % by pure statistics"
#
# A third guide (61 classes, the most frequent with 2445 samples, the rarest with 1) says that
# always predicting the most frequent class gives 30 % accuracy. The number of all samples is not
# given, but the weight of the rarest class is, 517.066, computed as $N / (K \cdot 1)$:

# %%
N = round(517.066 * 61)
print(f"{N:,} samples; always the most frequent: {percent(2445 / N)}")
print(f"for 30 % that class would need {0.3 * N:,.0f} samples")

# %% [markdown]
# Before you say that a score is good, or bad, compute what it costs to know nothing.
#
# ## To think about
#
# **1.** In the first epoch the loss fell a lot, while the network learned one class. What did it
# learn that the loss rewards so much?
#
# <details><summary>Answer</summary>
#
# The class frequencies. Whoever knows them and nothing else has a loss of
# $-\sum_c f_c \log f_c$, the entropy of the class shares, and that is far below $\log K$ if one
# class dominates. A bias in the last layer is enough for it. Lesson 3 shows what it does to the
# gradient.
#
# </details>
#
# **2.** Which blind predictor has the highest accuracy? And can it have the highest mean IoU?
#
# <details><summary>Answer</summary>
#
# Accuracy is $\sum_c f_c q_c$, a weighted mean of the $f_c$: it is largest if all the weight is on
# the most frequent class. For the mean IoU the constant predictor and guessing by share are near
# each other (compare the rows above), and neither is always ahead: constants win if one class
# dominates, guessing if many classes are alike, since then each gets a little.
#
# </details>
#
# **3.** A model calls every wall "door" and every door "wall", and is right elsewhere. Is it
# blind?
#
# <details><summary>Answer</summary>
#
# No. Its IoUs of wall and door are 0, but its calls tell the truth, under other names. That is a
# mixed-up label list. `resembles` measures information and not IoU alone, so it is not fooled.
#
# </details>
