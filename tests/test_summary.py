"""The summary command: totals that add up, known counts, and refusals in one line."""

import pytest

from minisegnet import summary
from minisegnet.errors import run_command
from minisegnet.models import MODEL_NAMES
from minisegnet.summary import summarize

SMALL = {"image_size": (32, 48), "batch_size": 2}


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_every_row_is_the_sum_of_the_rows_below_it(name):
    rows = summarize(name, 5, **SMALL)
    for i, row in enumerate(rows):
        below = []
        for later in rows[i + 1:]:
            if later.depth <= row.depth:
                break
            below.append(later)
        if below:
            children = [each for each in below if each.depth == min(b.depth for b in below)]
            assert row.multiply_adds == sum(each.multiply_adds for each in children)
            own = row.kept - sum(each.kept for each in children)
            # Only squeeze-and-excite keeps something of its own: its input, and the gate.
            assert own == 0 or (row.kind == "SqueezeExcite" and own >= 0)
            assert row.parameters == sum(each.parameters for each in children)


def test_rows_come_in_the_order_in_which_the_layers_run():
    rows = summarize("deeplab_light", 5, **SMALL)
    assert [row.name for row in rows if row.depth == 1] == [
        "backbone", "aspp", "upsample_to_mid", "mid_project", "concatenate_mid", "stage1",
        "upsample_to_low", "low_project", "concatenate_low", "stage2", "classifier", "upsample"]
    assert rows[0].shape == rows[-1].shape == (2, 32, 48, 5)


def test_multiply_adds_of_known_layers():
    rows = {row.name: row for row in summarize("deeplab_light", 5, **SMALL)}
    # 16x24 outputs, 3x3 kernel, 3 -> 16 channels; classifier: 8x12 outputs, 128 -> 5
    assert rows["features.0"].multiply_adds == 16 * 24 * 9 * 3 * 16
    assert rows["classifier"].multiply_adds == 8 * 12 * 128 * 5
    # stage2: depthwise 3x3 on 160 channels, then 160 -> 128
    assert rows["stage2"].multiply_adds == 8 * 12 * (9 * 160 + 160 * 128)
    assert rows["atrous.rate12"].kind == "ConvNormActivation 3x3 dilation 12"


def test_kept_memory_counts_each_array_once():
    rows = {row.name: row for row in summarize("mini", 5, **SMALL)}
    images = 2 * 32 * 48 * 3 * 4
    stem = 2 * 16 * 24 * 16 * 4
    # The stem keeps the images, its convolution's output for the norm (with the norm's mean and
    # deviation, two vectors of 16), and the norm's output for the activation.
    assert rows["features.0"].kept == images + 2 * stem + 2 * 16 * 4
    # The classifier's input is the output of the ReLU before it, which is kept there.
    assert rows["classifier"].kept == 0


def test_a_batch_of_one_can_be_summarized():
    one, two = summarize("mini", 5, (32, 48), 1), summarize("mini", 5, (32, 48), 2)
    assert one[0].shape == (1, 32, 48, 5)
    assert one[0].multiply_adds == two[0].multiply_adds


def test_the_command_prints_parameters_work_and_memory(capsys):
    arguments = ["deeplab_light", "--image-size", "64", "48", "--batch-size", "2"]
    assert run_command(summary.main, arguments) == 0
    out = capsys.readouterr().out
    assert "2,517,493, 9.60 MiB in float32" in out
    assert "(2, 64, 48, 21)" in out
    assert "MFLOPs for one image forward: 2 x" in out
    lines = out.splitlines()
    width = len(lines[1])
    assert all(len(line) == width for line in lines[:lines.index("")])
    assert "BatchNorm2d" not in out  # blocks, not their insides

    assert run_command(summary.main, [*arguments, "--depth", "5"]) == 0
    deep = capsys.readouterr().out
    assert "Conv2d 3x3 dilation 12" in deep and "Hardswish" in deep


def test_mini_has_the_twelve_classes_of_the_floor_plans_by_default(capsys):
    arguments = ["mini", "--image-size", "32", "32", "--batch-size", "1"]
    assert run_command(summary.main, arguments) == 0
    out = capsys.readouterr().out
    assert "111,852" in out and "(1, 32, 32, 12)" in out


@pytest.mark.parametrize("arguments, message", [
    (["resnet"], "invalid choice: 'resnet'"),
    ([], "MODEL"),
    (["mini", "--num-classes", "1"], "'1' is not a whole number >= 2"),
    (["mini", "--batch-size", "0"], "--batch-size"),
    (["mini", "--image-size", "32"], "--image-size"),
    (["mini", "--image-size", "-1", "8"], "--image-size|-1"),
])
def test_mistakes_are_one_line_and_exit_code_2(capsys, arguments, message):
    assert run_command(summary.main, arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert any(part in err for part in message.split("|"))


def test_too_large_a_picture_is_a_clear_line(capsys, monkeypatch):
    def out_of_memory(*args):
        raise MemoryError("Unable to allocate 4 TiB")

    monkeypatch.setattr(summary, "summarize", out_of_memory)
    assert run_command(summary.main, ["mini"]) == 2
    assert "smaller --image-size or --batch-size" in capsys.readouterr().err
