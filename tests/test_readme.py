"""The README keeps its word: its example runs, its files and commands exist."""

import contextlib
import io
import math
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_runs_and_its_first_loss_is_ln_12():
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    losses = [float(line) for line in printed.getvalue().split()]
    assert losses[0] == pytest.approx(math.log(12), abs=0.02)
    assert losses[0] > losses[1] > losses[2]


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "data/README.md"])
def test_every_link_leads_somewhere(name):
    path = ROOT / name
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), f"{name} links to {target}"


def test_every_path_on_the_map_exists():
    table = README[README.index("## A map"):README.index("A taste of it")]
    for path in re.findall(r"^\| `([\w/.]+)`", table, re.MULTILINE):
        assert (ROOT / path).exists(), path
