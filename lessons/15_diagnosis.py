# %% [markdown]
# # 15 · Break it, and diagnose it
#
# | | |
# |---|---|
# | goal | tell from measurements, not from guesses, why a training fails |
# | before this | lessons 1, 2 and 12 |
# | read | 15 minutes |
# | exercises | 15 minutes |
# | computes | 37 s |

# %%
import math
import tempfile
from itertools import permutations
from pathlib import Path

import numpy as np

from minisegnet import datasets, plots
from minisegnet.diagnosis import Evidence, diagnose, read_evidence, report_lines
from minisegnet.lab.data import write_data
from minisegnet.lab.runs import Job, run_job
from minisegnet.losses import Criterion
from minisegnet.metrics import ConfusionMatrix
from minisegnet.models import build_model
from minisegnet.optim import AdamW
from minisegnet.plots.comparison import compared_curves
from minisegnet.tables import percent, ruled
from minisegnet.training.movement import Movement
from minisegnet.verify import check
from minisegnet.verify.gradcheck import relative_error

# %% [markdown]
# A segmentation network almost never crashes. It trains, the loss falls, and the result is
# useless, because a label is off by one, a picture was mirrored without its mask, or a rate is a
# hundred times too large. Staring at the architecture does not help. What helps is what a doctor
# does: measure the vital signs first, then form a suspicion, then make the one test that can
# refute it.
#
# ## Predict before you run
#
# Three networks are trained on the same floor plans. One is healthy. In one, all *training*
# labels are one too high (somebody counted from 1, and the last class became the first). In one,
# half of the training pictures are mirrored and their masks are not. **In which of the three
# does the training loss fall?** And from the curves of training and validation loss alone, could
# you tell which is which?
#
# ## Vital sign 1: the loss before the first step
#
# A network that knows nothing should believe nothing: with $K$ classes about $1/K$ each, and a
# cross-entropy of about $\ln K$. A loss far above says that the logits start too large; one far
# below, that weights were loaded which know the labels, or that ignored pixels count as hits.

# %%
plans = datasets.FloorPlans("train", length=4)
batch = next(datasets.DataLoader(plans, 4, transform=datasets.Resize((64, 80))).batches())
K = plans.num_classes
model, criterion = build_model("mini", K, seed=15), Criterion("ce")
loss, _ = criterion.forward_upsampled(model.forward_coarse(batch.images), batch.target)
print(f"first loss {float(loss):.3f}, ln {K} = {math.log(K):.3f}")

# %% [markdown]
# ## Vital sign 2: do the weights move, and how far?
#
# Not the size of the gradient counts but the size of the *step*, compared with the weights that
# it changes. By millionths of the weights it takes a million steps to get anywhere; a step
# larger than the weights forgets all that was there. The package measures the same after a step
# (`Movement`, which `--debug` asks now and then):

# %%
for lr in (1e-7, 1e-2, 1e2):
    model = build_model("mini", K, seed=15)
    optimizer = AdamW(model, lr, weight_decay=0.0)
    movement = Movement(model, optimizer.flat)
    before = optimizer.flat.data.copy()
    movement.before_update()
    loss, cache = criterion.forward_upsampled(model.forward_coarse(batch.images), batch.target)
    model.backward_coarse(criterion.backward_upsampled(1.0, cache))
    optimizer.step()
    ratio = np.linalg.norm(optimizer.flat.data - before) / np.linalg.norm(before)
    error = relative_error(movement.update(0).ratio, ratio)
    print(f"rate {lr:g}: the first step is {ratio:.1e} of the weights; package against formula: "
          f"relative error {error:.1e}")

# %% [markdown]
# ## Vital sign 3: can it learn four pictures by heart?
#
# If a network cannot overfit one batch, more data will not help. If it can, the forward and
# backward passes, the loss and the optimizer are probably fine, and the fault lies in the data or
# in the validation. (`python -m minisegnet.train --overfit-one-batch` does this with your
# settings.)

# %%
model = build_model("mini", K, seed=15)
optimizer = AdamW(model, 1e-2, weight_decay=0.0)
for step in range(81):
    optimizer.zero_grad()
    loss, cache = criterion.forward_upsampled(model.forward_coarse(batch.images), batch.target)
    model.backward_coarse(criterion.backward_upsampled(1.0, cache))
    optimizer.step()
    if step % 20 == 0:
        print(f"step {step:2d}: loss {float(loss):.3f}")

# %% [markdown]
# ## Exercise 15.1: is it still looking at the picture?
#
# A collapsed network gives the same answer everywhere. Measure it per batch: how many classes does
# the prediction hold, how many the truth, and what share of the valid pixels goes to the class
# that is predicted most? One class where the truth holds several is a collapse; fewer than half of
# them is worth a warning.


# %% tags=["exercise-15.1"]
def diversity(prediction, target):
    """Return (classes predicted, classes in the truth, share of the most predicted class).

    Over the pixels of target (N, H, W) that are not 255; two ints and a float.
    """
    ### BEGIN SOLUTION
    is_valid = target != 255
    predicted = np.bincount(prediction[is_valid])
    return (np.count_nonzero(predicted), len(np.unique(target[is_valid])),
            float(predicted.max() / predicted.sum()))
    ### END SOLUTION


# %% tags=["check-15.1"]
rng = np.random.default_rng(15)
target = rng.choice([0, 0, 0, 2, 5], (2, 6, 7))
prediction = np.where(rng.random(target.shape) < 0.7, 0, target)
prediction[1, 5, :3] = 3  # which is nowhere in the truth
target[0, :2], prediction[0, :2] = 255, 7  # what is predicted where nobody knows does not count


def counted(prediction, target):
    confusion = ConfusionMatrix(8)
    confusion.update(target, prediction)
    _, truth, predicted = confusion.counts
    return (np.count_nonzero(predicted), np.count_nonzero(truth),
            float(predicted.max() / predicted.sum()))


def with_ignored(prediction, target):
    return (len(np.unique(prediction)), len(np.unique(target)),
            float(np.bincount(prediction.ravel()).max() / prediction.size))


def share_of_all(prediction, target):
    return (*counted(prediction, target)[:2],
            float(np.bincount(prediction[target != 255]).max() / target.size))


check("15.1", diversity, {"prediction": prediction, "target": target}, expected=counted,
      slips={"pixels with target 255 are counted: leave them out of both arrays": with_ignored,
             "the share is of the valid pixels, not of all": share_of_all,
             "first the classes of the prediction, then those of the truth":
             lambda prediction, target: (*counted(prediction, target)[1::-1],
                                         counted(prediction, target)[2]),
             "bincount has a place for every number up to the largest: count those that are not 0":
             lambda prediction, target: (
                 len(np.bincount(prediction[target != 255])),
                 *counted(prediction, target)[1:]),
             "ignored pixels that are set to 0 count as class 0: select, do not multiply":
             lambda prediction, target: counted(
                 *(np.where(target != 255, each, 0) for each in (prediction, target))),
             "that is the accuracy. Which class is predicted most, and how often, right or wrong?":
             lambda prediction, target: (
                 *counted(prediction, target)[:2],
                 float((prediction == target)[target != 255].mean())),
             "that is the largest class of the truth: look at the prediction":
             lambda prediction, target: (*counted(prediction, target)[:2],
                                         counted(target, target)[2])},
      hints={"": "Select with target != 255 first; np.unique and np.bincount do the rest."})

# %% [markdown]
# ## Exercise 15.2: right shapes, wrong names
#
# A network may see everything and *call* it wrongly, because training and validation number the
# classes differently. Its accuracy is as low as that of a network that sees nothing. The confusion
# matrix tells them apart: rename every *predicted* class (column) to the true class (row) that it
# covers most often, and compute the accuracy of the renamed prediction. If it is far above the
# accuracy as it stands, suspect the label map, not the network.


# %% tags=["exercise-15.2"]
def renamed_accuracy(matrix):
    """Return (accuracy, accuracy after renaming) of a confusion matrix (K, K), two floats.

    Rows are the truth, columns the prediction.
    """
    ### BEGIN SOLUTION
    total = matrix.sum()
    return float(np.trace(matrix) / total), float(matrix.max(axis=0).sum() / total)
    ### END SOLUTION


# %% tags=["check-15.2"]
seen = rng.integers(0, 6, (5, 5)) + np.diag(rng.integers(40, 90, 5))
shifted = np.roll(seen, 1, axis=1)  # every class is called by the name of the next
shifted[1, 4], shifted[3, 4] = 95, 5  # but for one, which is taken for another


def by_pixels(matrix):
    truth, prediction = (np.repeat(index.ravel(), matrix.ravel())
                         for index in np.indices(matrix.shape))
    name_of = [np.bincount(truth[prediction == c], minlength=1).argmax()
               for c in range(len(matrix))]
    return (float((truth == prediction).mean()),
            float((truth == np.take(name_of, prediction)).mean()))


check("15.2", renamed_accuracy, {"matrix": shifted}, expected=by_pixels,
      slips={"you rename the truth: take the best row of every column, not the best column of "
             "every row": lambda matrix: (float(np.trace(matrix) / matrix.sum()),
                                          float(matrix.max(axis=1).sum() / matrix.sum())),
             "these are numbers of pixels: divide by the sum of the matrix": lambda matrix: (
                 float(np.trace(matrix)), float(matrix.max(axis=0).sum())),
             "here no two columns get the same row. Take the largest of each column by itself":
             lambda matrix: (by_pixels(matrix)[0], float(max(
                 matrix[order, range(5)].sum()
                 for order in permutations(range(5))) / matrix.sum())),
             "that is a mean over the columns: a column with more pixels counts more":
             lambda matrix: (by_pixels(matrix)[0], float(
                 (matrix.max(axis=0) / matrix.sum(axis=0)).mean())),
             "first the accuracy as it stands, then after renaming":
             lambda matrix: by_pixels(matrix)[::-1]},
      hints={"": "The diagonal over the sum; then the largest number of each column, summed, over "
                 "the sum."})

# %% [markdown]
# ## The experiment: three patients, one knob
#
# The knob is the fault. Three trainings, alike but for that, named A, B and C. **Do not read on
# below the picture before you have said which is which.**

# %% tags=["experiment"]
folder = Path(tempfile.mkdtemp())
write_data(folder / "data", 15)
# Who is who is drawn by lot; "combined" is the healthy one, named after its loss.
lot = np.random.default_rng(2).permutation(["combined", "shifted-labels", "image-flipped-alone"])
PATIENTS = dict(zip("ABC", lot.tolist()))
verdicts = {name: run_job(Job(fault, fault == "combined", folder / name, folder / "data", 15))
            for name, fault in PATIENTS.items()}
evidence = {name: read_evidence(folder / name) for name in PATIENTS}
logs = {name: [each.log] for name, each in evidence.items()}

rows = [("patient", "first train loss", "last", "last validation loss", "last mean IoU")]
for name, (log,) in logs.items():
    last = log[-1]
    rows.append((name, f"{log[0]['train_loss']:.3f}", f"{last['train_loss']:.3f}",
                 f"{last['val_loss']:.3f}", f"{last['mean_iou']:.3f}"))
print("\n".join(ruled(rows)))
plots.show(compared_curves(logs, []), "15_diagnosis")

# %% [markdown]
# In all three the training loss falls. That is what makes these faults cruel: a network learns
# whatever it is shown. Where the labels are wrong *consistently*, it gets further than where they
# contradict each other, and fails as soon as anybody looks with other eyes: training falls low,
# validation stays high, and a longer training will not close the gap. Where they contradict each
# other, both losses stop half-way, side by side, as those of a network that is too small do. So
# the curves raise a suspicion. They do not prove it.
#
# Now what `python -m minisegnet.diagnose RUN` says. It has not been told what we broke: it
# compares labels with mask files, mirrors pictures and looks whether their masks then fit
# better, probes the loss, counts what moves.

# %% tags=["experiment"]
for name in PATIENTS:
    print(f"== patient {name}")
    print("\n".join(report_lines(evidence[name], verdicts[name].findings)), "\n")

# %% [markdown]
# And the test of exercise 15.2, on the confusion matrix that each run has left behind:

# %% tags=["experiment"]
rows = [("patient", "accuracy", "after renaming")]
rows += [(name, *map(percent, by_pixels(evidence[name].confusion.astype(int))))
         for name in PATIENTS]
print("\n".join(ruled(rows)))

# %% [markdown]
# The patient whose labels were shifted has seen a lot, and has been given no credit for it. The
# other two gain little by new names.
#
# ## Myth check: "hardly a pixel is right, so it predicts only background"
#
# A low score invites a story. Test the story: a network that always predicts class 0 has an
# accuracy equal to the share of class 0, an IoU of the same size, and 0 for all others. Take the
# matrix of exercise 15.2, whose network sees nearly everything and calls it by other names. The
# package's diagnosis gets the same matrix, and nothing else:

# %%
accuracy, renamed = by_pixels(shifted)
truth, predicted = (shifted.sum(axis=axis) / shifted.sum() for axis in (1, 0))
print(f"always class 0 would have an accuracy of {percent(truth[0])}; here it is "
      f"{percent(accuracy)}, and {percent(renamed)} after renaming")
print(f"the most frequent prediction covers {percent(predicted.max())} of the pixels: no constant")
finding = diagnose(Evidence(Path("."), start={"class_names": list("abcde")},
                            validations=[{"confusion": shifted.tolist()}]))[0]
print(f"the package: {finding.title}\n{finding.evidence}")

# %% [markdown]
# ## To think about
#
# **1.** The validation loss is lower than the training loss from the first epoch on. Is that a
# fault?
#
# <details><summary>Answer</summary>
#
# Not by itself. Augmentation and dropout make the training pictures harder, and the training loss
# is averaged over an epoch in which the network was still worse. It is a fault if neither explains
# it: look for validation pictures that are in the training set.
#
# </details>
#
# **2.** Why does the diagnosis measure the *step* relative to the weights, and not the gradient?
#
# <details><summary>Answer</summary>
#
# Adam divides the gradient by its own size: a gradient of 1e-4 and one of 1e3 lead to the same
# step. (Only far below does its $\varepsilon$ of 1e-8 make a difference.) What reaches the weights
# is decided by the rate. And a step of 0.1 is nothing to weights of
# 100 and everything to weights of 0.01.
#
# </details>
#
# **3.** You find one fault and mend it. Are you done?
#
# <details><summary>Answer</summary>
#
# You know when the vital signs are normal and the prediction you wrote down *before* the next run
# comes true. Two faults can hide each other: wrong labels in training and the same wrong labels in
# validation look healthy to every number on the screen. Only pictures, looked at by a person, find
# that one.
#
# </details>
