"""Which classes are rare: the share of the training pixels, and what holds where it is no help."""

import numpy as np
import pytest

from minisegnet.imbalance.rarity import rare_classes


@pytest.mark.parametrize("pixels, rare, rule", [
    ([985, 8, 7], [False, True, True], "below 1 %"),  # of all training pixels
    ([900, 100, 0], [False, False, True], "below 1 %"),
    ([95, 5], [False, True], "below 25 %"),  # nothing below 1 %: below half an even share
    ([50, 30, 20], [False, False, False], "no class"),
    (200 * [7], 200 * [False], "no class"),  # all of them are below 1 %
    (200 * [7] + [1], 200 * [False] + [True], "below 0.249 %")])
def test_rare_is_a_share_of_the_training_pixels(pixels, rare, rule):
    found, words = rare_classes(np.array(pixels))
    assert found.tolist() == rare and rule in words
