"""The ledger of a run: what is recorded and when, what a resumed run keeps, what is drawn."""

import json
import signal

import numpy as np
import pytest
from checks import benchmark_module, frozen
from loss_cases import random_batch
from PIL import Image

from minisegnet import train
from minisegnet.errors import run_command
from minisegnet.imbalance.gradient_ledger import gradient_ledger
from minisegnet.losses import Criterion
from minisegnet.ops.upsample import upsample_bilinear_forward
from minisegnet.training.ledger_log import LedgerLog, steps_between_records
from minisegnet.training.run_folder import read_log
from minisegnet.training.trainer import Trainer

NAMES = ("ground", "house", "pool", "car")
K = len(NAMES)
kill_and_resume = benchmark_module("kill_and_resume")


@pytest.fixture
def batch(rng):
    """Coarse logits (2, 4, 5, K) and a target (2, 16, 20) for them."""
    coarse, _ = random_batch(rng, shape=(2, 4, 5), num_classes=K, dtype=np.float32)
    _, target = random_batch(rng, shape=(2, 16, 20), num_classes=K, target_dtype=np.uint8)
    return coarse, target


def records_in(folder):
    return read_log(folder / "ledger.jsonl")


def test_records_each_nth_step_from_the_first_on(tmp_path, batch):
    log = LedgerLog(tmp_path, NAMES, every=4)
    for step in range(10):
        log.observe(step, *batch, Criterion("ce"))
    assert [each["step"] for each in records_in(tmp_path)] == [0, 4, 8]


@pytest.mark.parametrize("criterion", [Criterion("ce"), Criterion("combined", ignore_index=1)],
                         ids=lambda criterion: criterion.name)
def test_a_record_holds_the_books_of_the_enlarged_logits(tmp_path, batch, criterion):
    coarse, target = frozen(*batch)  # an observer that writes into them would fail
    LedgerLog(tmp_path, NAMES, every=1).observe(7, coarse, np.where(target == 255, 1, target),
                                                criterion)
    target = np.where(target == 255, 1, target)
    logits, _ = upsample_bilinear_forward(coarse, target.shape[1:])
    expected = gradient_ledger(criterion, logits, target)
    [found] = records_in(tmp_path)
    pixels = [int(np.sum(target == c)) for c in range(K)]
    if criterion.ignore_index == 1:
        pixels[1] = 0
    assert found == {
        "step": 7, "loss": criterion.name, "value": expected.loss, "total": expected.total,
        "pixels": pixels, "by_target": expected.share_by_target.tolist(),
        "by_logit": expected.share_by_logit.tolist()}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the loss says that there is nothing
def test_a_batch_of_ignored_pixels_is_a_record_of_zeros_that_can_be_drawn(tmp_path, batch):
    log = LedgerLog(tmp_path, NAMES, every=1)
    log.observe(0, batch[0], np.full_like(batch[1], 255), Criterion("focal"))
    [found] = records_in(tmp_path)
    assert found["pixels"] == [0] * K and found["by_target"] == found["by_logit"] == [0.0] * K
    log.draw()
    assert (tmp_path / "ledger.png").exists()


def test_restore_drops_what_comes_again_and_a_line_that_was_cut_off(tmp_path, batch):
    log = LedgerLog(tmp_path, NAMES, every=10)
    log.restore(0)  # a run killed before its first record: nothing to mend
    for step in (0, 10, 10, 20, 30):
        log.observe(step, *batch, Criterion("ce"))
    kept = (tmp_path / "ledger.jsonl").read_bytes().splitlines(keepends=True)[:3]
    with open(tmp_path / "ledger.jsonl", "ab") as file:
        file.write(b'{"step": null}\n[4]\n{"step": 4, "loss"')
    log.restore(20)
    assert (tmp_path / "ledger.jsonl").read_bytes() == b"".join(kept)
    log.restore(0)
    assert (tmp_path / "ledger.jsonl").read_bytes() == b""


def test_draws_a_png_and_nothing_without_a_record(tmp_path, batch):
    log = LedgerLog(tmp_path, NAMES, every=1)
    log.draw()
    assert not list(tmp_path.iterdir())
    log.observe(0, *batch, Criterion("ce"))
    log.draw()
    with Image.open(tmp_path / "ledger.png") as image:
        assert image.format == "PNG" and min(image.size) > 300


def test_records_at_most_eight_times_an_epoch_and_each_tenth_step():
    for steps_per_epoch in (1, 5, 80, 300, 10_000):
        every = steps_between_records(steps_per_epoch)
        assert every >= 10 and steps_per_epoch / every < 9
    assert steps_between_records(800) == 100


def test_refuses_to_record_every_0_steps(tmp_path):
    with pytest.raises(ValueError, match="every is 0"):
        LedgerLog(tmp_path, NAMES, 0)


# ---------------------------------------------------------------- in training


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    kill_and_resume.make_pictures(root)
    return ("--data", root, *kill_and_resume.FLAGS)


@pytest.fixture
def each_third_step(monkeypatch):
    monkeypatch.setattr(train, "steps_between_records", lambda steps: 3)
    monkeypatch.setattr(train, "draw_results", lambda *arguments: None)


def run(*flags):
    return run_command(train.main, [str(flag) for flag in flags])


def test_a_run_with_a_ledger_is_bit_for_bit_the_run_without(flags, tmp_path, each_third_step):
    assert run(*flags, "--output-dir", tmp_path / "without") == 0
    assert run(*flags, "--output-dir", tmp_path / "with", "--ledger") == 0
    found, expected = (kill_and_resume.state(tmp_path / name) for name in ("with", "without"))
    for name, value in found.items():
        if name.endswith("/meta"):
            del value["config"]["ledger"], expected[name]["config"]["ledger"]  # as was asked for
    assert found == expected
    assert not (tmp_path / "without" / "ledger.jsonl").exists()
    assert (tmp_path / "with" / "ledger.png").exists()
    steps = [each["step"] for each in records_in(tmp_path / "with")]
    assert steps == [0, 0, 3, 6, 6, 9, 9, 12, 12, 15]  # of two batches, but of one at the end


def test_a_resumed_run_has_the_ledger_of_an_unbroken_one(flags, tmp_path, each_third_step,
                                                         monkeypatch):
    assert run(*flags, "--output-dir", tmp_path / "unbroken", "--ledger") == 0
    step, steps = Trainer.train_step, []

    def struck(self, *arguments):
        steps.append(1)
        if len(steps) == 7:
            signal.raise_signal(signal.SIGINT)
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "train_step", struck)
    assert run(*flags, "--output-dir", tmp_path / "broken", "--ledger") == 130
    with open(tmp_path / "broken" / "ledger.jsonl", "a") as file:
        file.write(json.dumps({"step": 9}) + "\n")  # of a step that was not saved
    assert run("--resume", tmp_path / "broken") == 0
    assert (tmp_path / "broken" / "ledger.jsonl").read_bytes() \
        == (tmp_path / "unbroken" / "ledger.jsonl").read_bytes()
