"""Pictures of how far scores can be trusted."""

import numpy as np
import pytest

from minisegnet.plots.resampling import resampled_scores


@pytest.mark.parametrize("shift", [-0.2, 0.0, 0.2])
def test_two_runs_and_their_difference(rng, shift):
    first = rng.normal(0.5, 0.1, 500)
    second = first + shift + rng.normal(0, 0.01, 500)
    figure = resampled_scores({"plain": first, "weighted": second}, "mean IoU")
    apart, paired = figure.axes
    assert [text.get_text() for text in apart.get_legend().get_texts()] == ["plain", "weighted"]
    assert paired.get_xlabel() == "mean IoU: weighted minus plain"
    low, high, zero = (line.get_xdata()[0] for line in paired.lines)
    assert low < shift < high and zero == 0
    assert high - low < 0.06  # paired: what the runs share is not in it


def test_the_bars_hold_every_resample(rng):
    scores = {"a": rng.normal(size=300), "b": rng.normal(size=300)}
    apart, paired = resampled_scores(scores, "score").axes
    assert sum(bar.get_height() for bar in apart.patches) == 600
    assert sum(bar.get_height() for bar in paired.patches) == 300
    assert np.isfinite(paired.get_xlim()).all()
