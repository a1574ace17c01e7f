"""The report of a comparison: scores of a run, ranges over seeds, rare classes, the notes."""

import numpy as np
import pytest
from run_folders import record, write_run

from minisegnet.comparison_report import (
    Row,
    markdown_table,
    notes_on,
    read_run,
    scores_of,
    text_table,
)
from minisegnet.verdict import verdict

TABLE = ("mean IoU", "at best", "frequent", "rare", "active", "accuracy", "FWIoU", "seconds")
RARE = np.array([False, False, True])  # of the three classes


def test_scores_are_those_of_the_last_epoch_and_the_best(tmp_path):
    log = [record(1, (0.9, 0.6, 0.3)), record(2, (0.8, 0.4, 0.2), fw_iou=0.65),
           {"epoch": 3, "train_loss": 0.1, "seconds": 1.5}]
    run = read_run(write_run(tmp_path / "a", log=log))
    scores = scores_of(run, RARE)
    assert scores == pytest.approx({
        "mean_iou": 1.4 / 3, "best_mean_iou": 0.6, "frequent_iou": 0.6, "rare_iou": 0.2,
        "active_classes": 3, "pixel_accuracy": 0.8, "fw_iou": 0.65, "epochs": 3, "seconds": 5.5})


def test_absent_classes_count_neither_as_rare_nor_as_frequent(tmp_path):
    for iou, frequent, rare in (((0.9, 0.7, None), 0.8, np.nan), ((0.9, None, 0.2), 0.9, 0.2)):
        log = [{**record(1), "iou": iou}]
        scores = scores_of(read_run(write_run(tmp_path / "a", log=log)), RARE)
        assert (scores["frequent_iou"], scores["rare_iou"]) == pytest.approx((frequent, rare),
                                                                             nan_ok=True)


def test_the_table_shows_mean_and_range_over_the_seeds(tmp_path):
    ious = ((0.9, 0.5, 0.1), (0.9, 0.5, 0.4), (0.9, 0.5, 0.1))
    runs = [read_run(write_run(tmp_path / f"{i}", log=[record(1, iou)], loss="dice"))
            for i, iou in enumerate(ious)]
    rows = [Row("dice", runs), Row("one", runs[:1])]
    scores = {row.name: [scores_of(run, RARE) for run in row.runs] for row in rows}
    head, _, dice, one = markdown_table(rows, scores).splitlines()
    assert all(f"| {name} |" in head for name in TABLE)
    assert dice.startswith("| dice | dice | sqrt | 0.533 (0.500..0.600) |")
    assert "| 0.700 (0.700..0.700) | 0.200 (0.100..0.400) |" in dice  # frequent, rare
    assert ".." not in one and one.startswith("| one | dice | sqrt | 0.500 |")
    lines = text_table(rows, scores).splitlines()
    assert len(lines) == 4 and max(map(len, lines)) < 140
    column = lines[0].index("rare") + len("rare")
    assert [line[:column].split()[-1] for line in lines[1:]] == ["0.200", "0.100..0.400", "0.100"]


def test_a_mean_of_nothing_is_a_dash_without_a_range(tmp_path):
    runs = [read_run(write_run(tmp_path / f"{i}")) for i in range(2)]
    scores = {"a": [scores_of(run, np.zeros(3, bool)) for run in runs]}
    assert "| 0.500 (0.500..0.500) | - | 3 (3..3) |" in markdown_table([Row("a", runs)], scores)
    assert "nan" not in text_table([Row("a", runs)], scores)


@pytest.mark.parametrize("names, sentence", [
    (["pool", "sink"], "rare: mean IoU of the classes below 1 % of it (pool, sink); frequent: "),
    ([], "No class is rare; ")])
def test_the_notes_name_the_rare_classes_and_the_rule(tmp_path, names, sentence):
    row = Row("a", [read_run(write_run(tmp_path))])
    assert notes_on([row], names, "below 1 % of it")[1].startswith(sentence)


def test_what_is_true_of_several_runs_is_said_once(tmp_path):
    slow = [record(epoch, (0.3, 0.0, 0.0), train_loss=1.1, val_loss=1.1) for epoch in range(1, 9)]
    rows = [Row(name, [read_run(write_run(tmp_path / name, epochs=8, log=slow))])
            for name in ("a", "b")]
    notes = notes_on(rows, [], "")
    sentences = verdict(slow)
    assert sentences and all(f"a (seed 0), b (seed 0): {sentence}" in notes
                             for sentence in sentences)
