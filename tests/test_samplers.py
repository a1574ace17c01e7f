"""Samplers: how often each image is drawn, against hand-worked numbers and simple bounds."""

import numpy as np
import pytest

from minisegnet.datasets.samplers import (
    SAMPLERS,
    ClassCropSampler,
    ClassUniformSampler,
    RepeatFactorSampler,
    UniformSampler,
    make_sampler,
)


@pytest.fixture
def counts():
    """100 images: class 0 in all, 1 in twenty, 2 in image 7 only, 3 in none; 99 is all ignored."""
    counts = np.zeros((100, 4), np.int64)
    counts[:99, 0] = 1000
    counts[:20, 1] = 50
    counts[7, 2] = 1
    return counts


def times_drawn(sampler, epochs=1, seed=0):
    """How often each image is drawn, on average per epoch."""
    rng = np.random.default_rng(seed)
    drawn = [index for _ in range(epochs) for index, _ in sampler.draw(rng)]
    return np.bincount(drawn, minlength=len(sampler)) / epochs


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_epoch_is_as_long_as_the_data_set_and_repeats_with_its_seed(name, counts):
    sampler = make_sampler(name, counts)
    assert len(sampler) == 100
    first, again, other = (sampler.draw(np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert len(first) == len(other) == 100
    assert all(type(index) is int and 0 <= index < 100 for index, _ in first)


def test_uniform_is_a_permutation(counts):
    drawn = UniformSampler(counts).draw(np.random.default_rng([5, 2]))
    assert [i for i, _ in drawn] == np.random.default_rng([5, 2]).permutation(100).tolist()
    assert {focus for _, focus in drawn} == {None}


def test_class_uniform_gives_each_class_that_occurs_the_same_share(counts):
    times = times_drawn(ClassUniformSampler(counts), epochs=200)
    third = 100 / 3
    # Image 7 is drawn for class 2 always, for class 1 a twentieth, for class 0 a 99th of the time.
    assert abs(times[7] - third * (1 + 1 / 20 + 1 / 99)) < 1
    assert abs(np.delete(times, 7)[:19].mean() - third * (1 / 20 + 1 / 99)) < 0.05
    assert abs(times[20:99].mean() - third / 99) < 0.02
    assert times[99] == 0


def test_class_crops_draw_as_class_uniform_and_say_for_which_class(counts):
    sampler = ClassCropSampler(counts)
    drawn = [pair for seed in range(50) for pair in sampler.draw(np.random.default_rng(seed))]
    assert all(counts[index, focus] > 0 for index, focus in drawn)
    shares = np.bincount([focus for _, focus in drawn], minlength=4) / len(drawn)
    assert abs(shares[:3] - 1 / 3).max() < 0.02 and shares[3] == 0
    assert type(drawn[0][1]) is int
    plain = ClassUniformSampler(counts).draw(np.random.default_rng(3))
    assert [i for i, _ in plain] == [i for i, _ in sampler.draw(np.random.default_rng(3))]
    assert {focus for _, focus in plain} == {None}


def test_repeat_factors_are_those_worked_by_hand():
    contains = np.array([[1, 1, 0, 0],
                         [1, 0, 1, 0],
                         [1, 0, 1, 0],
                         [1, 0, 0, 0],
                         [0, 0, 0, 0],
                         [1, 0, 1, 0],
                         [1, 0, 1, 0],
                         [1, 1, 1, 0]])
    # Shares 7/8, 2/8, 5/8, 0: factors of the classes 1, sqrt(0.5 / 0.25), 1 and none.
    root = np.sqrt(2)
    np.testing.assert_allclose(RepeatFactorSampler(contains).factors,
                               [root, 1, 1, 1, 1, 1, 1, root], rtol=1e-15)
    np.testing.assert_allclose(RepeatFactorSampler(contains, threshold=1).factors,
                               [2] + 2 * [np.sqrt(8 / 5)] + [np.sqrt(8 / 7), 1]
                               + 2 * [np.sqrt(8 / 5)] + [2], rtol=1e-15)
    assert (RepeatFactorSampler(contains, threshold=0.2).factors == 1).all()


def test_images_are_drawn_in_proportion_to_their_repeat_factors(counts):
    sampler = RepeatFactorSampler(counts)
    assert sampler.factors[7] == np.sqrt(0.5 / 0.01) and sampler.factors[99] == 1
    times = times_drawn(sampler, epochs=400)
    expected = 100 * sampler.factors / sampler.factors.sum()
    assert abs(times[7] / expected[7] - 1) < 0.03
    for group in (np.r_[0:7, 8:20], np.r_[20:100]):
        assert abs(times[group].mean() / expected[group].mean() - 1) < 0.03
    assert abs(times / expected - 1).max() < 0.25


def test_a_fraction_of_a_repeat_factor_is_rounded_anew_every_epoch():
    """Two images of factor sqrt(2) and six of 1: an epoch before trimming has 8, 9 or 10."""
    contains = np.zeros((8, 2))
    contains[:2, 1] = 1
    sampler = RepeatFactorSampler(contains)
    lengths = []

    class Spy:
        """Answers as a generator does, and notes how many images there were to trim."""

        def __init__(self, seed):
            self.rng = np.random.default_rng(seed)

        def random(self, n):
            return self.rng.random(n)

        def permutation(self, repeated):
            lengths.append(len(repeated))
            return self.rng.permutation(repeated)

    for seed in range(300):
        assert len(sampler.draw(Spy(seed))) == 8
    p = np.sqrt(2) - 1
    shares = np.bincount(lengths, minlength=11)[8:] / 300
    assert abs(shares - [(1 - p) ** 2, 2 * p * (1 - p), p ** 2]).max() < 0.07


def test_where_no_class_is_rare_every_image_comes_once():
    times = times_drawn(RepeatFactorSampler(np.ones((30, 3))))
    assert (times == 1).all()


def test_a_report_counts_images_repeats_and_classes(counts):
    drawn = [(7, 2), (7, None), (7, 0), (3, 1), (50, 0), (99, None)]
    report = UniformSampler(counts).report(drawn)
    assert report == {"distinct_images": 4, "most_often": 3, "images_per_class": [5, 4, 3, 0]}
    assert all(type(n) is int for n in report["images_per_class"])


def test_nothing_to_draw_for_is_refused():
    for kind in (ClassUniformSampler, ClassCropSampler):
        with pytest.raises(ValueError, match="no image contains any class"):
            kind(np.zeros((4, 3)))


@pytest.mark.parametrize("threshold", [0, -1, 1.5])
def test_a_threshold_that_is_no_share_is_refused(threshold):
    with pytest.raises(ValueError, match="at most 1"):
        RepeatFactorSampler(np.ones((4, 3)), threshold)


def test_an_unknown_sampler_is_refused(counts):
    with pytest.raises(ValueError, match="'rare' is not one of uniform, class-uniform"):
        make_sampler("rare", counts)
