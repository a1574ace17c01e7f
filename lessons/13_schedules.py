# %% [markdown]
# # 13 · Schedules, warm-up, and training in two stages
#
# | | |
# |---|---|
# | goal | know what rate a run has at its end, and what a warm-up buys |
# | before this | lesson 12 |
# | read | 15 minutes |
# | exercises | 15 minutes |
# | computes | 24 s |

# %%
import math
import tempfile
import warnings
from pathlib import Path

import numpy as np

from minisegnet import plots, train
from minisegnet.datasets import DataLoader, FloorPlans, Resize
from minisegnet.losses import Criterion
from minisegnet.models import build_model
from minisegnet.optim import (
    AdamW,
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    LinearWarmup,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
    near_restart_top,
)
from minisegnet.plots.schedules import courses, rates_and_losses
from minisegnet.tables import ruled
from minisegnet.training.checkpoint import load_model
from minisegnet.training.run_folder import read_log
from minisegnet.verify import check
from minisegnet.verify.gradcheck import relative_error

rng = np.random.default_rng(13)

# %% [markdown]
# ## Predict before you run
#
# A guide trains for 150 epochs at a learning rate of $5 \cdot 10^{-5}$, with "cosine annealing
# and warm restarts": the rate falls along a cosine to nearly 0 in 20 epochs, starts again from the
# top, and takes twice as long each time.
#
# **What is the rate in the last of the 150 epochs?** Nearly nothing? Half? Nearly all of it? It is
# computed in the section "Myth check: 150 epochs".

# %% [markdown]
# ## Why the rate should fall
#
# A batch is a sample, so its gradient is the true one plus noise. Near a minimum the true gradient
# is small, and what is left is noise: the weights jitter about the minimum, the more so the larger
# the rate. A small rate jitters less, and takes for ever to arrive. So: start large, end small.
# Here are a thousand walks to the floor of the bowl $x^2/2$, from $x = 10$, every gradient with
# noise of size 1:

# %%
STEPS = 400
noise = rng.standard_normal((STEPS, 1000))
for name, rate_at in (("constant 0.5", ConstantLR(0.5)), ("constant 0.005", ConstantLR(0.005)),
                      ("cosine from 0.5 to 0", CosineAnnealingLR(0.5, STEPS))):
    x = np.full(1000, 10.0)
    for step in range(STEPS):
        x = x - rate_at(step) * (x + noise[step])
    print(f"{name:<21} distance from the floor after {STEPS} steps: {np.sqrt((x**2).mean()):.3f}")

# %% [markdown]
# ## A schedule is a function of the step
#
# In this package it is nothing else: `schedule(step)` gives the rate of a step, counted from 0.
# There is no state to save, so a resumed run cannot get it wrong. With $T$ steps in all:
#
# | schedule | rate at step $t$ |
# |---|---|
# | step | $\eta \, \gamma^{\lfloor t / s \rfloor}$: times $\gamma$ after every $s$ steps |
# | poly | $\eta \, (1 - t/T)^{0.9}$: nearly a straight line |
# | cosine | $\eta_{\min} + (\eta - \eta_{\min})\, (1 + \cos(\pi t / T)) / 2$ |
# | restarts | the cosine, over and over |
# | one-cycle | up along a cosine for 30 % of the steps, down along another to nearly 0 |
# | plateau | divided by 10 whenever the validation score has stopped getting better |
#
# The cosine starts slowly, falls fastest in the middle, and ends slowly. In code:


# %%
def half_cosine(start, end, progress):
    """Return the rate on the way from `start` to `end`; progress runs from 0 to 1."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


lr, T = 0.05, 160
steps = np.arange(T)
for name, package, formula in (
        ("cosine", CosineAnnealingLR(lr, T, 1e-3), lambda t: half_cosine(lr, 1e-3, t / T)),
        ("poly", PolynomialLR(lr, T), lambda t: lr * (1 - t / T) ** 0.9)):
    rates, by_formula = (np.array([rate(t) for t in steps]) for rate in (package, formula))
    print(f"{name}: package against formula, relative error "
          f"{relative_error(rates, by_formula):.1e}")

schedules = {
    "constant": ConstantLR(lr),
    "step": StepLR(lr, 50),
    "poly": PolynomialLR(lr, T),
    "cosine": CosineAnnealingLR(lr, T),
    "restarts": CosineAnnealingWarmRestarts(lr, 20, 2),
    "one-cycle": OneCycleLR(lr, T),
    "warm-up, then cosine": LinearWarmup(CosineAnnealingLR(lr, T - 20), 20),
    "two stages of one cycle": SequentialLR([OneCycleLR(lr / 2, 60), OneCycleLR(lr, T - 60)],
                                            [60]),
}
plots.show(courses({name: [schedule(t) for t in steps] for name, schedule in schedules.items()}),
           "13_schedules_courses")

# %% [markdown]
# The plateau is the odd one out: what it does depends on the scores of the run, not on the step
# alone. It watches, and it has a memory that a checkpoint must keep:

# %%
plateau = ReduceLROnPlateau("max", factor=0.1, patience=2)
for epoch, score in enumerate((0.10, 0.20, 0.30, 0.29, 0.30, 0.30, 0.31, 0.32), start=1):
    plateau.update(score)
    print(f"epoch {epoch}: mean IoU {score:.2f}, from now on the rate times {plateau.scale:g}")

# %% [markdown]
# ## Exercise 13.1: warm restarts
#
# The first cycle has $T_0$ steps, each further one $T_{\text{mult}}$ times as many as the one
# before. A step that is the first of a cycle has the full rate. Within a cycle of $T_i$ steps, of
# which $T_{\text{cur}}$ have passed:
#
# $$\eta_t = \eta_{\min} + (\eta - \eta_{\min})\, \frac{1 + \cos(\pi\, T_{\text{cur}} / T_i)}{2}$$
#
# Where do the cycles begin if $T_0 = 20$ and $T_{\text{mult}} = 2$? Say it aloud before you code;
# it is not 20, 40, 80.


# %% tags=["exercise-13.1"]
def restarts_lr(step, lr, T_0, T_mult, eta_min):
    """Return the learning rate, a float, at `step`, an int counted from 0."""
    ### BEGIN SOLUTION
    length = T_0
    while step >= length:
        step -= length
        length *= T_mult
    return eta_min + (lr - eta_min) * (1 + math.cos(math.pi * step / length)) / 2
    ### END SOLUTION


# %% tags=["check-13.1"]
def rates_of(function):
    """Return a function of an array of steps that collects function(step), None if one is."""
    def collect(steps):
        rates = [function(int(step)) for step in steps]
        return None if None in rates else np.array(rates)
    return collect


def torch_rates(make):
    """Return a function that collects what a torch scheduler sets at each of the steps."""
    def collect(torch, steps):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
        rates = []
        with warnings.catch_warnings():  # torch's SequentialLR uses what torch itself deprecates
            warnings.simplefilter("ignore", UserWarning)
            scheduler = make(torch.optim.lr_scheduler, optimizer)
            for _ in steps:
                rates.append(optimizer.param_groups[0]["lr"])
                optimizer.step()
                scheduler.step()
        return torch.tensor(rates, dtype=torch.float64)
    return collect


def cosine_rate(progress):
    """Return the rate of the exercise's check at this share of a cycle."""
    return half_cosine(0.3, 0.01, progress)


check("13.1", rates_of(lambda step: restarts_lr(step, 0.3, 20, 2, 0.01)),
      {"steps": np.arange(150)},
      expected=rates_of(CosineAnnealingWarmRestarts(0.3, 20, 2, 0.01)),
      torch=torch_rates(lambda s, o: s.CosineAnnealingWarmRestarts(o, 20, 2, 0.01)),
      slips={
          "every cycle has the length of the first: make it T_mult times as long each time":
              rates_of(lambda step: cosine_rate(step % 20 / 20)),
          "the cycles begin at 20, 40, 80 here; each begins where the one before ends: at 20, "
          "20 + 40, 20 + 40 + 80":
              rates_of(lambda step: cosine_rate(step / 20) if step < 20 else cosine_rate(
                  step / (20 * 2**int(math.log2(step / 20))) - 1)),
          "progress is measured from the run's beginning; count from the beginning of the cycle":
              rates_of(lambda step: cosine_rate(
                  step / (20 if step < 20 else 40 if step < 60 else 80 if step < 140 else 160))),
          "a cycle is over after T_i steps, not after T_i - 1: its last step is one short of the "
          "bottom":
              rates_of(lambda step: cosine_rate(
                  step / 19 if step < 20 else (step - 20) / 39 if step < 60
                  else (step - 60) / 79 if step < 140 else (step - 140) / 159)),
          "one cycle at most was taken off: repeat it while the step lies beyond a cycle":
              rates_of(lambda step: cosine_rate(
                  step / 20 if step < 20 else (step - 20) / 40)),
          "each cycle is T_0 longer than the one before here, not T_mult times as long":
              rates_of(lambda step: cosine_rate(
                  step / 20 if step < 20 else (step - 20) / 40 if step < 60
                  else (step - 60) / 60 if step < 120 else (step - 120) / 80)),
          "there is no restart: the cosine goes up again by itself after T_0 steps":
              rates_of(lambda step: cosine_rate(step / 20)),
          "eta_min is the floor, not a shift: the cosine spans lr - eta_min":
              rates_of(lambda step: 0.01 + half_cosine(
                  0.3, 0, CosineAnnealingWarmRestarts(0.3, 20, 2).position(step))),
      },
      hints={"places": "The first steps of the cycles are 0, 20, 60 and 140: full rate there.",
             "": "Take whole cycles off the step while it lies beyond them; the rest is T_cur."})

# %% [markdown]
# ## Myth check: 150 epochs
#
# The guide's run, by epochs counted from 0:

# %%
restarts = CosineAnnealingWarmRestarts(5e-5, 20, 2, eta_min=1e-6)
begin = [epoch for epoch in range(310) if restarts.position(epoch) == 0]
print(f"cycles begin at {begin}")
rows = [("epochs in the run", "rate in the last", "share of the top", "verdict")]
for epochs in (60, 140, 150):
    top = near_restart_top(restarts, epochs - 1)
    rate = restarts(epochs - 1)
    rows.append((str(epochs), f"{rate:.2e}", f"{rate / 5e-5:.1%}",
                 f"rather {' or '.join(map(str, top.cycle_ends))}" if top else "at the bottom"))
print("\n".join(ruled(rows)))
plots.show(courses({"restarts every 20, 40, 80, ... epochs": [restarts(t) for t in range(310)]},
                   unit="epoch", marks=(59, 139, 149)), "13_schedules_restarts")

# %% [markdown]
# So the last ten epochs undo the work of the cosine: the run ends as restless as it began. A run
# of 140 epochs is shorter and ends at the bottom. `python -m minisegnet.train` says so before it
# starts. (Keeping the best checkpoint of the run softens the blow. It does not give back the ten
# epochs.)
#
# ## Warm-up
#
# A schedule that starts at its top meets the network on its worst day. The weights are random. And
# lesson 12 found that the first step of AdamW is one learning rate for *every* weight, however
# little its gradient says. Warm-up lets the rate rise along a straight line first:
#
# $$\eta_t = \eta_0 \left(f + (1 - f)\, \frac{t}{W}\right) \quad (t < W), \qquad
#   \text{then the schedule from its own beginning}$$
#
# $W$ is the number of steps it takes, $f$ the share of the rate at which it starts, often $0.01$.
#
# ## Exercise 13.2: a warm-up in front of any schedule
#
# Write it. `schedule` is a function of the step, as all of the above. Two things are easily
# mistaken: which step the schedule sees after the warm-up, and which step has the full rate first.


# %% tags=["exercise-13.2"]
def warmed_up_lr(step, schedule, warmup_steps, start_factor):
    """Return the rate, a float, at `step` of a warm-up followed by `schedule`."""
    ### BEGIN SOLUTION
    if step >= warmup_steps:
        return schedule(step - warmup_steps)
    return schedule(0) * (start_factor + (1 - start_factor) * step / warmup_steps)
    ### END SOLUTION


# %% tags=["check-13.2"]
after = CosineAnnealingLR(0.3, 20, eta_min=0.05)


def line_to(last, start_factor=0.1):
    """Return the warm-up whose straight line reaches the top at step `last`."""
    return lambda step: after(0) * (start_factor + (1 - start_factor) * step / last)


check("13.2", rates_of(lambda step: warmed_up_lr(step, after, 8, 0.1)), {"steps": np.arange(28)},
      expected=rates_of(LinearWarmup(after, 8, 0.1)),
      torch=torch_rates(lambda s, o: s.SequentialLR(
          o, [s.LinearLR(o, 0.1, total_iters=8), s.CosineAnnealingLR(o, 20, 0.05)], [8])),
      slips={
          "the schedule goes on at the run's step after the warm-up, and its first steps are "
          "lost: give it step - warmup_steps":
              rates_of(lambda step: line_to(8)(step) if step < 8 else after(step)),
          "the line ends one step too early: the first step with the full rate is step "
          "warmup_steps":
              rates_of(lambda step: line_to(7)(step) if step < 8 else after(step - 8)),
          "the line starts at 0: it starts at start_factor times the rate":
              rates_of(lambda step: line_to(8, 0.0)(step) if step < 8 else after(step - 8)),
          "the line climbs to schedule(0), which does not move: here the schedule falls meanwhile":
              rates_of(lambda step: line_to(8)(step) / after(0) * after(step) if step < 8
                       else after(step - 8)),
          "the schedule starts falling during the warm-up, and goes on from there: it should "
          "begin after it":
              rates_of(lambda step: line_to(8)(step) / after(0) * after(step) if step < 8
                       else after(step)),
          "the line is one step ahead: at step 0 the rate is start_factor times schedule(0)":
              rates_of(lambda step: line_to(8)(step + 1) if step < 8 else after(step - 8)),
          "start_factor is a share of schedule(0), not a rate":
              rates_of(lambda step: 0.1 + (after(0) - 0.1) * step / 8 if step < 8
                       else after(step - 8)),
          "the line goes from start_factor up to 1 + start_factor: what is left to climb is "
          "1 - start_factor":
              rates_of(lambda step: after(0) * (0.1 + step / 8) if step < 8 else after(step - 8)),
      },
      hints={"": "Before warmup_steps the straight line, from there on schedule(step - "
                 "warmup_steps)."})

# %% [markdown]
# ## The experiment: the length of the warm-up
#
# Turn **one knob**: the number of warm-up steps, 0, 20 or 60, before a constant rate. And do it at
# two rates, since what warm-up is good for depends on it: at 0.05, the rate that `mini` has by
# default, and at ten times that. Everything else is the same: weights, batches, their order.

# %% tags=["experiment"]
loader = DataLoader(FloorPlans("train", length=320), 8, shuffle=True, transform=Resize((64, 80)),
                    num_workers=0)
batches = [batch for epoch in (1, 2) for batch in loader.batches(epoch)]  # 80 of them


def train_steps(schedule):
    """Return (rates, losses) of one step for each batch, from the same weights."""
    model, criterion = build_model("mini", 12, seed=0), Criterion("ce")
    optimizer = AdamW(model)
    rates, losses = [], []
    for step, batch in enumerate(batches):
        optimizer.lr = schedule(step)
        optimizer.zero_grad()
        loss, cache = criterion.forward_upsampled(model.forward_coarse(batch.images), batch.target)
        model.backward_coarse(criterion.backward_upsampled(1.0, cache))
        optimizer.step()
        rates.append(optimizer.lr)
        losses.append(float(loss))
    return np.array(rates), np.array(losses)


groups = {}
rows = [("rate", "warm-up", "highest loss", "mean of the last 20 steps")]
for lr in (0.05, 0.5):
    runs = groups[f"rate {lr:g}"] = {}
    for warmup in (0, 20, 60):
        rates, losses = train_steps(LinearWarmup(ConstantLR(lr), warmup))
        runs[f"{warmup} steps of warm-up"] = rates, losses
        rows.append((f"{lr:g}", str(warmup), f"{losses.max():.2f}", f"{losses[-20:].mean():.3f}"))
print("\n".join(ruled(rows)))
print(f"\nall 12 classes equally likely: a loss of {math.log(12):.2f}")
plots.show(rates_and_losses(groups, know_nothing=math.log(12)), "13_schedules")

# %% [markdown]
# At ten times the default rate and without warm-up, the first steps throw the network *above* the
# loss of one that finds all classes equally likely. With a warm-up, even of 20 steps, that does
# not happen, and after the long one the last steps have a lower loss than without. At the default
# rate there is nothing to prevent: the run without warm-up is ahead from the first step to the
# last. So warm-up is no law. It is the price of a high rate; pay it where the loss jumps at the
# start.
#
# ## Two stages
#
# The other way to survive the worst day is to spare what is worth keeping. A guide with 61 classes
# starts from a backbone trained elsewhere. The head on top of it is new and random, so the
# gradients that it sends down say little, and AdamW takes full steps along them: they would first
# spoil the good features. So the guide trains **the head only** for ten epochs, backbone frozen,
# and **then all** at a lower rate. Here is that, as users type it, with one epoch each. (Our
# backbone is random too, so that there is nothing to spare, and the command warns of it. What is
# to be seen is only that frozen means frozen.)

# %% tags=["experiment"]
folder = Path(tempfile.mkdtemp()) / "two_stages"
train.main(["--loss", "ce", "--class-weights", "none", "--image-size", "64", "80",
            "--freeze", "backbone", "--freeze-epochs", "1", "--freeze-lr", "0.05", "--lr", "0.02",
            "--schedule", "constant", "--epochs", "2", "--val-every", "2", "--save-every", "1",
            "--num-workers", "0", "--output-dir", str(folder)])

# %% tags=["experiment"]
records = read_log(folder / "log.jsonl")
states = [build_model("mini", 12, seed=0),
          *(load_model(folder / f"epoch_{epoch:04d}.npz")[0] for epoch in (1, 2))]


def changed(before, after, part):
    """Return in words how many numbers of the backbone, or of the rest, differ."""
    total = different = 0
    for (name, old), (_, new) in zip((*before.named_parameters(), *before.named_buffers()),
                                     (*after.named_parameters(), *after.named_buffers())):
        if name.startswith("backbone.") == (part == "backbone"):
            total, different = total + old.size, different + int((old != new).sum())
    return f"{different:,} of {total:,}"


rows = [("epoch", "rate", "changed in the backbone", "changed in the head")]
for record, before, after_epoch in zip(records, states, states[1:]):
    rows.append((str(record["epoch"]), f"{record['lr']:g}",
                 changed(before, after_epoch, "backbone"), changed(before, after_epoch, "head")))
print("\n".join(ruled(rows)))

# %% [markdown]
# Not one number of the backbone moves in the first epoch. Three things had to be seen to: its
# weights take no step, **and no weight decay**; clipping does not count its gradients; and its
# batch norms keep the running means and variances they have, for these are no weights, and a
# frozen weight would not stop them. The second stage then starts with a fresh optimizer (its $m$
# and $v$ are those of another problem) and with a schedule of its own.
#
# ## To think about
#
# **1.** A run of 40 epochs with a cosine looks promising, so you resume it for 20 more. What rate
# do they have?
#
# <details><summary>Answer</summary>
#
# That depends on what "resume" does, which is why you should look. A cosine of $T = 40$ goes *up*
# again beyond its end, so that the 20 epochs would climb back to half the rate. This package
# stretches the schedule over the new number of epochs instead: at epoch 40 the rate jumps from 0
# to that of a 60-epoch cosine, $(1 + \cos(2\pi/3))/2$, a quarter of the top. Neither is what a
# run of 60 epochs would have done. Decide on the length before you start.
#
# </details>
#
# **2.** With `--accumulate 4`, four batches make one step. What becomes of a warm-up that was
# written as "500 steps"?
#
# <details><summary>Answer</summary>
#
# It takes four times as many pictures, and may outlast a short run. Here a warm-up is given in
# epochs and turned into optimizer steps, so that it stays the same share of the run.
#
# </details>
#
# **3.** Rare classes occur in one batch of twenty. Which of the schedules treats them worst?
#
# <details><summary>Answer</summary>
#
# Whatever is learnt of them is learnt in few steps, and counts by the rate of just those. With a
# plateau the danger is another one: the score stops improving because the frequent classes are
# done, and the rate is cut before the rare ones have begun. Look at the scores per class before
# you believe a plateau.
#
# </details>
