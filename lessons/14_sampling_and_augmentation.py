# %% [markdown]
# # 14 · Sampling and augmentation: three ways to be rare
#
# | | |
# |---|---|
# | goal | tell rare pixels, rare images and small objects apart, and choose the cure |
# | before this | lessons 3 and 4 |
# | read | 15 minutes |
# | exercises | 15 minutes |
# | computes | 44 s |

# %%
import tempfile
from pathlib import Path

import numpy as np

from minisegnet import plots, train
from minisegnet.datasets import DataLoader, FloorPlans, make_augmentation, make_sampler
from minisegnet.datasets.transforms import check_labels, resize_mask
from minisegnet.imbalance.objects import connected_regions
from minisegnet.imbalance.weighting import ClassStatistics
from minisegnet.ops.upsample import upsample_bilinear_forward
from minisegnet.plots.augmentation import augmentations
from minisegnet.plots.sampling import met_per_epoch
from minisegnet.tables import percent, ruled
from minisegnet.training.run_folder import read_log
from minisegnet.verify import check
from minisegnet.verify.gradcheck import relative_error

rng = np.random.default_rng(14)

# %% [markdown]
# ## Predict before you run
#
# The floor plans have 12 classes. A toilet stands in very few of the plans. Instead of showing
# every plan once per epoch, a sampler does this, as many times as there are plans: draw a class,
# all 12 equally likely; then draw a plan that contains it.
#
# **How many times as many plans with a toilet does an epoch have then?** Twice, five times, twelve
# times? Write down a guess. It is computed in the section "What the samplers draw".

# %% [markdown]
# ## Three rarities
#
# "The class is rare" can mean three things, and they have different cures:
#
# - **rare pixels**: it has a small share of the pixels of the pictures that show it;
# - **rare images**: it has a small share of the pictures;
# - **small objects**: each of its objects is only a few pixels large.
#
# Measure all three. An object is a connected region of one label:

# %%
plans = FloorPlans("train")
masks = [plans[i].mask for i in range(len(plans))]
statistics = ClassStatistics.from_masks(masks, plans.num_classes)
names, K, counts = plans.class_names, plans.num_classes, statistics.counts  # (n, K)
contains = counts > 0

areas = [[] for _ in range(K)]
for mask in masks:
    for label, size in zip(*connected_regions(mask)):
        areas[label].append(size)

rows = [("class", "of all pixels", "of the images", "of the pixels where it is",
         "median object")]
for c in np.argsort(-statistics.pixels):
    where = counts[contains[:, c]]
    rows.append((names[c], percent(statistics.pixels[c] / counts.sum()),
                 percent(contains[:, c].mean()), percent(where[:, c].sum() / where.sum()),
                 f"{np.median(areas[c]):.0f} px"))
print("\n".join(ruled(rows)))

# %% [markdown]
# *Windows* have few pixels, but they are in every plan: each step of a training sees some. The
# four fixtures, in the last rows, have few pixels even where they are, **and** they are in few
# plans. And they are small: at a stride of 16, a fixture of 12 x 12 pixels fills less than one
# cell of what the network sees.
#
# | rarity | what helps | what does not |
# |---|---|---|
# | rare pixels | weights, focal, dice (lessons 4 to 6); crops around it | repeating whole images |
# | rare images | a sampler that repeats them; more such images | another loss |
# | small objects | larger input, enlarging crops, finer features | weights, repeats |
#
# Repeating a whole image repeats all its background. What is not resolved cannot be learnt,
# however much it weighs. And a loss can only speak of the pictures it is shown: weights make up
# for rare images on average, but between two batches with a toilet there are others without any,
# and the heavier the weight, the more the gradients of those few differ from all others.
#
# ## Exercise 14.1: repeat factors
#
# A published answer to rare images (Gupta and others, 2019, for more than a thousand classes). Let
# $f_c$ be the share of images that contain class $c$. A class below a threshold $t$ deserves to be
# repeated, by the root of how far it is below; an image is repeated for the neediest of its
# classes:
#
# $$r_c = \max\!\left(1, \sqrt{t / f_c}\right) \qquad r_i = \max_{c \text{ in image } i} r_c$$
#
# Write it for a table of which image contains which class. In it, every class is in some image.


# %% tags=["exercise-14.1"]
def repeat_factors(contains, threshold):
    """Return the factor of each image, (n,) float64; contains is (n, K) bool."""
    ### BEGIN SOLUTION
    share = contains.mean(axis=0)  # (K,)
    class_factors = np.maximum(1, np.sqrt(threshold / share))
    return np.where(contains, class_factors, 1).max(axis=1)
    ### END SOLUTION


# %% tags=["check-14.1"]
def factors_by(combine=np.max, rise=np.sqrt, least=1.0, axis=0):
    """Return a function as that of the exercise, with something in it exchanged."""
    def function(contains, threshold):
        share = contains.sum(axis=0) / len(contains)
        of_classes = np.maximum(least, rise(threshold / share))
        return np.array([combine(of_classes[row]) for row in contains])
    return function


table = rng.random((40, 6)) < [1, 0.8, 0.5, 0.3, 0.15, 0.1]  # which images contain which class
table[:3] = [False, False, False, True, True, False]  # some have rare classes only
table[3] = True  # and every class is in some image
check("14.1", repeat_factors, {"contains": table, "threshold": 0.45}, expected=factors_by(),
      slips={
          "there is no root: a class a hundred times below the threshold would be repeated "
          "tenfold by the root, a hundredfold like this": factors_by(rise=lambda ratio: ratio),
          "every factor is 1 here. Is the share a mean over the images, between 0 and 1, and not "
          "a number of images?": lambda contains, threshold: np.ones(len(contains)),
          "f_c is a share of the images: divide by their number":
              lambda contains, threshold: factors_by()(
                  contains, threshold * contains.sum() / len(contains)),
          "a factor below 1 would leave images out: max(1, ...)": factors_by(least=0.0),
          "an image takes the largest factor of its classes, not the smallest":
              factors_by(combine=np.min),
          "an image takes the largest factor of its classes, not their mean":
              factors_by(combine=np.mean),
          "an image takes the largest factor of its classes, not their product":
              factors_by(combine=np.prod),
          "every image got the factor of the rarest class of all: look only at the classes that "
          "it contains":
              lambda contains, threshold: np.full(len(contains), factors_by()(
                  contains, threshold).max()),
      },
      hints={"shape": "One factor per image: the largest along the classes, axis 1.",
             "": "Shares are means over the images, axis 0; an image takes the largest factor "
                 "among its own classes."})

# %% [markdown]
# The package's sampler rounds such a factor up or down by chance, so that it is right on average,
# and cuts the list to the length of an epoch. Its threshold is one half by default: in 640 images
# the 0.001 of the paper would be less than one.

# %%
sampler = make_sampler("repeat-factor", counts)
share = contains.mean(axis=0)
by_formula = np.where(contains, np.maximum(1, np.sqrt(0.5 / share)), 1).max(axis=1)
print(f"package against formula: relative error {relative_error(sampler.factors, by_formula):.1e}")
for c in np.argsort(share)[:4]:
    print(f"{names[c]:<7} in {percent(share[c])} of the images, repeated "
          f"{np.sqrt(0.5 / share[c]):.2f} times")

# %% [markdown]
# ## Augmentation: one change, two arrays
#
# A mirrored plan is a plan that nobody had to draw. But a segmentation sample is a pair, and
# whatever moves pixels must move the labels with them. Two rules:
#
# 1. **Draw the random numbers once**, and apply the same change to image and mask.
# 2. **Never average labels.** Images are resized bilinearly; half-way between black and white is
#    grey. Half-way between background (0) and bed (11) is not "5.5, so bathroom". Masks take the
#    *nearest* pixel.
#
# What happens to those who forget the second rule?

# %%
index = int(np.argmax(contains[:, names.index("bed")]))  # the first plan with a bed
mask = plans[index].mask
small = 64, 80
averaged = np.round(upsample_bilinear_forward(
    mask[None, ..., None].astype(float), small)[0][0, ..., 0]).astype(np.uint8)
right = resize_mask(mask, small)
wrong = averaged != right
print(f"averaged labels: {percent(wrong.mean())} of the pixels differ from the nearest label")
print(f"   of those that differ, {percent((~np.isin(averaged, mask))[wrong].mean())} have a label "
      f"that is nowhere in the plan")
try:
    check_labels(mask, averaged)
    print("   check_labels did not notice")
except ValueError as error:
    print(f"   check_labels: {error}")

# %% [markdown]
# The package checks after every transform that no label is new. Mind what such a check can see: an
# invented label that exists elsewhere in the picture passes. It is a net under the rule, not the
# rule.
#
# ## Exercise 14.2: resize and mirror a pair
#
# Which pixel is the nearest? (Lesson 11 has it, too.) Output pixel $i$ of $h$ has its centre at
# $(i + \tfrac12)$, which in the input of $H$ pixels is at $(i + \tfrac12)\, H / h$; the pixel
# there is its floor:
#
# $$\text{source}(i) = \left\lfloor \left(i + \tfrac12\right) \frac{H}{h} \right\rfloor$$
#
# For the image there is a function. Write the pair: resize both, then mirror both left to right if
# `mirror` is true.


# %%
def bilinear(image, size):
    """Return image (H, W, 3) resized to size (h, w)."""
    return upsample_bilinear_forward(image[None], size)[0][0]


# %% tags=["exercise-14.2"]
def resize_and_mirror(image, mask, size, mirror):
    """Return (image, mask) at size (h, w): image (H, W, 3) float64, mask (H, W) int64."""
    ### BEGIN SOLUTION
    (H, W), (h, w) = mask.shape, size
    rows = ((np.arange(h) + 0.5) * H / h).astype(int)
    columns = ((np.arange(w) + 0.5) * W / w).astype(int)
    image, mask = bilinear(image, size), mask[rows][:, columns]
    if mirror:
        image, mask = image[:, ::-1], mask[:, ::-1]
    return image, mask
    ### END SOLUTION


# %% tags=["check-14.2"]
def with_and_without_mirror(function):
    """Return (image, mask) without mirroring, then (image, mask) mirrored; None if one is."""
    def both(image, mask):
        pairs = [function(image, mask, (5, 7), mirror) for mirror in (False, True)]
        return None if None in pairs else (*pairs[0], *pairs[1])
    return both


def pair_by(nearest, turn_image=True, turn_mask=True, axis=1):
    """Return a function as that of the exercise; `nearest(length, out)` gives the sources."""
    def function(image, mask, size, mirror):
        rows, columns = (nearest(*lengths) for lengths in zip(mask.shape, size))
        image, mask = bilinear(image, size), mask[rows][:, columns]
        return (np.flip(image, axis) if mirror and turn_image else image,
                np.flip(mask, axis) if mirror and turn_mask else mask)
    return function


def centres(length, out):
    """Return the source of each of `out` pixels in a line of `length`."""
    return ((np.arange(out) + 0.5) * length / out).astype(int)


def averaged_labels(image, mask, size, mirror):
    """Resize both bilinearly, and round the labels."""
    labels = np.round(bilinear(mask[..., None].astype(float), size)[..., 0]).astype(np.int64)
    image = bilinear(image, size)
    return (image[:, ::-1], labels[:, ::-1]) if mirror else (image, labels)


def image_by_nearest(image, mask, size, mirror):
    """Take the nearest pixel of both."""
    rows, columns = (centres(*lengths) for lengths in zip(mask.shape, size))
    pair = [array[rows][:, columns] for array in (image, mask)]
    return tuple(array[:, ::-1] if mirror else array for array in pair)


def by_torch(torch, image, mask):
    """The same with torch's interpolate."""
    def resized(array, **kwargs):
        return torch.nn.functional.interpolate(array, (5, 7), **kwargs)

    image = resized(image.permute(2, 0, 1)[None], mode="bilinear", align_corners=False)
    image = image[0].permute(1, 2, 0)
    mask = resized(mask[None, None].double(), mode="nearest-exact")[0, 0].long()
    return image, mask, image.flip(1), mask.flip(1)


check("14.2", with_and_without_mirror(resize_and_mirror),
      {"image": rng.random((13, 17, 3)), "mask": rng.integers(0, 9, (13, 17))},
      expected=with_and_without_mirror(pair_by(centres)), torch=by_torch,
      slips={
          "this takes the corner of each pixel; take its centre, i + 0.5, or the mask is shifted "
          "against the image":
              with_and_without_mirror(pair_by(
                  lambda length, out: np.arange(out) * length // out)),
          "the image is mirrored and its mask is not":
              with_and_without_mirror(pair_by(centres, turn_mask=False)),
          "the mask is mirrored and its image is not":
              with_and_without_mirror(pair_by(centres, turn_image=False)),
          "this is upside down; left to right is axis 1":
              with_and_without_mirror(pair_by(centres, axis=0)),
          "labels are averaged and rounded, which invents classes: take the nearest pixel":
              with_and_without_mirror(averaged_labels),
          "this takes the pixel to the left of the centre: floor((i + 0.5) H / h), with nothing "
          "taken off":
              with_and_without_mirror(pair_by(lambda length, out: np.maximum(
                  0, (np.arange(out) + 0.5) * length / out - 0.5).astype(int))),
          "nearest neighbour is for the labels; the image is resized by bilinear(image, size)":
              with_and_without_mirror(image_by_nearest),
          "it is mirrored whether or not mirror is true":
              with_and_without_mirror(lambda image, mask, size, mirror: pair_by(centres)(
                  image, mask, size, True)),
      },
      hints={"dtype": "Labels stay integers.",
             "": "Rows and columns of the mask by the formula, mask[rows][:, columns]; then [:, "
                 "::-1] of both."})

# %% [markdown]
# ## What augmentation looks like
#
# The presets of `--augment`, on a plan with a bed. What lies beyond the picture gets the label 255
# and counts for nothing; so does what is cut out, for nobody can tell what is behind a grey box.

# %%
presets = {}
for preset in ("standard", "enhanced", "strong"):
    change = make_augmentation(preset, plans.size)
    presets[preset] = [plans[index], *(change(plans[index], np.random.default_rng(seed))
                                       for seed in range(4))]
plots.show(augmentations(presets, names, plans.palette), "14_sampling_and_augmentation_presets")

# %% [markdown]
# ## Crops around a class
#
# Large pictures are trained on in windows, and a window at random may miss what is rare. So draw
# a class, then a picture that has it, **and then a pixel of it, and put the window there** (after
# Zhu and others, 2019). How much that brings depends on how small the window is:


# %%
def window_at(mask, share, y, x):
    """Return the window of `share` of both sides around (y, x), moved in from the edge."""
    (H, W), (h, w) = mask.shape, (int(share * side) for side in mask.shape)
    top, left = np.clip(y - h // 2, 0, H - h), np.clip(x - w // 2, 0, W - w)
    return mask[top:top + h, left:left + w]


bed = names.index("bed")
rows = [("sides of the window", "at random: with a bed", "bed pixels", "around a bed: with a bed",
         "bed pixels")]
for share in (1.0, 0.5, 0.25):
    found = {"at random": [], "around": []}
    for mask in (masks[i] for i in np.flatnonzero(contains[:, bed])):
        pixels = np.argwhere(mask == bed)
        for _ in range(10):
            middle = rng.uniform(share / 2, 1 - share / 2, 2) * mask.shape
            found["at random"].append(window_at(mask, share, *middle.astype(int)) == bed)
            found["around"].append(window_at(mask, share, *rng.choice(pixels)) == bed)
    rows.append((f"{share:g}", *(text for windows in found.values() for text in (
        percent(np.mean([window.any() for window in windows])), percent(np.mean(windows))))))
print("\n".join(ruled(rows)))

# %% [markdown]
# ## What the samplers draw
#
# Turn **one knob**: the sampler. Everything else is the same: 640 windows per epoch of 64 x 80
# pixels, augmentation `standard`. Count what a network would be shown in one epoch:

# %% tags=["experiment"]
size = 64, 80
shown, shares = {}, {}
for name in ("uniform", "repeat-factor", "class-uniform", "class-crops"):
    loader = DataLoader(plans, 8, sampler=make_sampler(name, counts), num_workers=0,
                        transform=make_augmentation("standard", size))
    per_window = np.array([np.bincount(window.ravel(), minlength=256)[:K]
                           for batch in loader.batches(1) for window in batch.target])
    shown[name] = (per_window > 0).sum(axis=0)  # (K,)
    shares[name] = per_window.sum(axis=0) / per_window.sum()
plots.show(met_per_epoch(shown, shares, names), "14_sampling_and_augmentation")

rare = [names.index(fixture) for fixture in ("toilet", "sink", "stove", "bed")]
rows = [("sampler", *(f"windows with a {names[c]}" for c in rare), "pixels of the four")]
rows += [(name, *(str(shown[name][c]) for c in rare), percent(shares[name][rare].sum()))
         for name in shown]
print("\n".join(ruled(rows)))
drawn = [index for index, _ in make_sampler("class-uniform", counts).draw(
    np.random.default_rng(0))]
toilet = rare[0]
print(f"\nplans with a toilet: {contains[:, toilet].sum()} in an epoch of every plan once, "
      f"{contains[drawn, toilet].sum()} in one of class-uniform: "
      f"{contains[drawn, toilet].mean() / contains[:, toilet].mean():.1f} times as many")

# %% [markdown]
# Even a sampler that treats all classes alike does not make them alike. It draws the toilet one
# time in twelve, and now and then by chance with another class: more it cannot give. The pixels of
# the fixtures grow about as much, and stay few, since every toilet brings a whole plan along.
# Crops around the class add little here, for these windows show most of a plan. So background
# remains on top under every sampler. Sampling cures rare images; rare pixels are the loss's part.
#
# ## Does it help?
#
# Two trainings of a few epochs, as users type them, with the sampler as the only difference:

# %% tags=["experiment"]
folder = Path(tempfile.mkdtemp())
for name in ("uniform", "class-crops"):
    train.main(["--image-size", "64", "80", "--augment", "standard", "--sampler", name,
                "--epochs", "6", "--val-every", "6", "--num-workers", "0",
                "--output-dir", str(folder / name)])

# %% tags=["experiment"]
rows = [("sampler", *(f"recall of {names[c]}" for c in rare), "mean recall", "mean precision",
         "mean IoU")]
for name in ("uniform", "class-crops"):
    last = read_log(folder / name / "log.jsonl")[-1]
    recall, precision = (np.array([last[key][c] or 0 for c in rare])
                         for key in ("recall", "precision"))
    rows.append((name, *map("{:.2f}".format, recall), f"{recall.mean():.2f}",
                 f"{precision.mean():.2f}", f"{last['mean_iou']:.3f}"))
print("\n".join(ruled(rows)))

# %% [markdown]
# Several times as many of the fixtures' pixels are found. But with either sampler only a few per
# cent of what is called a fixture is one, and now far more is called one. A network that meets
# beds more than twice as often expects them more often, in validation too, where they are as rare
# as ever. That is the price of every cure that changes how often, or how heavily, a class is met:
# here mean IoU even falls a little. Whether it is worth paying depends on what a missed toilet
# costs you, and what a false one does. And six epochs are only the beginning of a training.
#
# ## To think about
#
# **1.** A class is in 5 of 10,000 images. A sampler shows each of these five 100 times per epoch.
# What will the network learn?
#
# <details><summary>Answer</summary>
#
# The five images. Repeating makes no new examples: the walls and floors around the class are
# learnt by heart along with it. Strong augmentation helps a little, a sixth image helps more. The
# root in the repeat factor is there for that reason: it holds back.
#
# </details>
#
# **2.** In floor plans, a plan that is mirrored is still a plan. Name data for which a flip, a
# change of hue or a turn by 45 degrees would be wrong.
#
# <details><summary>Answer</summary>
#
# Text and road signs may not be mirrored; a street is never upside down; where colour defines the
# class (traffic lights, stained tissue), hue is no noise. An augmentation says "this does not
# matter to the label". It has to be true.
#
# </details>
#
# **3.** Should validation pictures be drawn by the sampler as well, or be augmented?
#
# <details><summary>Answer</summary>
#
# No. Validation asks how the model does on pictures as they come. With a sampler rare classes
# would look frequent, and all scores that depend on frequencies (precision, IoU, accuracy) would
# answer another question.
#
# </details>
