"""Samplers: which images make up an epoch, against classes that only few images contain.

`draw(rng)` returns an epoch as a list of (index, focus), as many as there are images, so that
steps per epoch and with them the schedule of the learning rate are the same for all. `focus` is
the class to crop around, or None. All samplers are built from `counts`, (n, K): the pixels of each
class in each of the n images, as `ClassStatistics.counts` has them.
"""

import numpy as np

SAMPLERS = ("uniform", "class-uniform", "repeat-factor", "class-crops")


class UniformSampler:
    """Every image once, in random order."""

    has_focus = False

    def __init__(self, counts):
        self.contains = np.asarray(counts) > 0  # (n, K) bool

    def __len__(self):
        return len(self.contains)

    def draw(self, rng):
        return [(int(index), None) for index in rng.permutation(len(self))]

    def report(self, drawn):
        """Return what an epoch `drawn` consists of, as plain numbers.

        `distinct_images` is how many of the images occur in it, `most_often` how often the most
        frequent of them, and `images_per_class` how many of those drawn contain each class.
        """
        indices = [index for index, _ in drawn]
        times = np.bincount(indices, minlength=len(self))
        return {
            "distinct_images": int((times > 0).sum()),
            "most_often": int(times.max()),
            "images_per_class": (times @ self.contains).tolist(),
        }


class ClassUniformSampler(UniformSampler):
    """Draw a class, all that occur being equally likely, then an image that contains it."""

    def __init__(self, counts):
        super().__init__(counts)
        self.classes = np.flatnonzero(self.contains.any(axis=0))  # those that occur
        if not self.classes.size:
            raise ValueError("no image contains any class; there is nothing to draw")
        self.images_with = {int(c): np.flatnonzero(self.contains[:, c]) for c in self.classes}

    def draw(self, rng):
        return [(index, None) for index, _ in self._draw_pairs(rng)]

    def _draw_pairs(self, rng):
        """Return [(index, class)], one for each place in the epoch."""
        classes = rng.choice(self.classes, len(self)).tolist()
        return [(int(rng.choice(self.images_with[c])), c) for c in classes]


class ClassCropSampler(ClassUniformSampler):
    """As `ClassUniformSampler`, and the crop is centred on a random pixel of the class drawn.

    So the class fills more of the window than of its image, which matters where it is small: an
    image with one small object is drawn often, but a random crop of it mostly misses the object.
    (After the class-uniform crops of Zhu et al. 2019, who centre them on centroids of a class.)
    """

    has_focus = True

    def draw(self, rng):
        return self._draw_pairs(rng)


class RepeatFactorSampler(UniformSampler):
    """Repeat images with rare classes (Gupta et al. 2019, section 4.2).

    With f_c the share of images that contain class c, class c has r_c = max(1, sqrt(t / f_c)) and
    an image the largest r_c of its classes. Each epoch has an image r times, a fraction being
    rounded up with just that probability; the list is shuffled, and its first n make the epoch.
    It always has n, since r >= 1; what falls off the end is chance, so the shares stay those of r.

    `threshold` is t, the share of images below which a class counts as rare. The paper's 0.001
    suits its 100,000 images; in a few hundred, one image is already more. Here it is a half.
    """

    def __init__(self, counts, threshold=0.5):
        super().__init__(counts)
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold {threshold} must be above 0 and at most 1")
        share = self.contains.mean(axis=0)  # (K,)
        # A class that never occurs is in no image, whatever factor it has.
        class_factors = np.maximum(1, np.sqrt(threshold / np.where(share > 0, share, 1)))
        self.factors = np.where(self.contains, class_factors, 1).max(axis=1)  # (n,)

    def draw(self, rng):
        times = np.floor(self.factors + rng.random(len(self))).astype(int)
        repeated = np.repeat(np.arange(len(self)), times)
        return [(int(index), None) for index in rng.permutation(repeated)[:len(self)]]


def make_sampler(name, counts):
    """Return the sampler called `name`, one of `SAMPLERS`, for `counts` (n, K)."""
    kinds = dict(zip(SAMPLERS, (UniformSampler, ClassUniformSampler, RepeatFactorSampler,
                                ClassCropSampler)))
    if name not in kinds:
        raise ValueError(f"sampler {name!r} is not one of {', '.join(SAMPLERS)}")
    return kinds[name](counts)
