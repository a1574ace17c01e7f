"""The report of an evaluation: numbers worked by hand, frequent classes apart from rare ones."""

import numpy as np
import pytest

from minisegnet.calibration import Calibration
from minisegnet.evaluation_report import class_table, report_of, summary
from minisegnet.metrics import ConfusionMatrix
from minisegnet.training.evaluation import Scores


def scores_of(matrices):
    """Return `Scores` of images that were counted already."""
    confusion = ConfusionMatrix(len(matrices[0]))
    counts = []
    for matrix in matrices:
        one = ConfusionMatrix(len(matrix))
        one.matrix += np.asarray(matrix)
        counts.append(one.counts)
        confusion.matrix += one.matrix
    calibration = Calibration(len(matrices[0]))
    calibration.update(np.zeros(2, int), np.eye(len(matrices[0]))[[0, 1]])
    return Scores(confusion, np.stack(counts), calibration)


BY_HAND = [[[4, 1, 0, 0], [1, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
           [[1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]]


def test_the_table_shows_numbers_worked_by_hand():
    # Pooled: [[5, 1, 0, 0], [1, 2, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    report = report_of(scores_of(BY_HAND), "abcd", np.array([900, 94, 5, 1]), resamples=0)
    lines = [line.split() for line in class_table(report).splitlines()]
    assert lines[2] == "a 0.714 0.833 0.833 0.833 6 6 90.000%".split()
    assert lines[3] == "b 0.400 0.571 0.500 0.667 3 4 9.400%".split()
    assert lines[4] == "= mean of 2 frequent 0.557 0.702 0.667 0.750".split()
    assert lines[5] == "c 0.000 0.000 - 0.000 1 0 0.500%".split()
    assert lines[6] == "d - - - - 0 0 0.100%".split()
    assert lines[7] == "= mean of 2 rare 0.000 0.000 - 0.000".split()
    text = " ".join(" ".join(summary(report)).split())
    for words in ("mean IoU 0.3714 over the 3 classes present; 0.2786 over all 4 (absent: d)",
                  "mean Dice 0.4683", "FWIoU 0.5486", "pixel accuracy 0.7000",
                  "mean class accuracy 0.5000", "rare below 1 %"):
        assert words in text
    assert report["images_with_class"].tolist() == [2, 1, 1, 0]


def test_means_of_a_group_are_over_its_present_classes():
    report = report_of(scores_of(BY_HAND), "abcd", np.array([900, 5, 94, 1]), resamples=0)
    assert report["groups"]["frequent"]["classes"] == ["a", "c"]
    assert report["groups"]["frequent"]["mean_iou"] == pytest.approx(5 / 14)
    assert report["groups"]["rare"]["mean_iou"] == pytest.approx(2 / 5)


def test_where_no_class_is_rare_there_is_no_line_for_them():
    report = report_of(scores_of(BY_HAND), "abcd", np.array([30, 25, 25, 20]), resamples=0)
    table = class_table(report)
    assert "mean of 4 frequent" in table and "rare" not in table
    assert np.isnan(report["groups"]["rare"]["mean_iou"])
    assert "rare no class" in " ".join(" ".join(summary(report)).split())
