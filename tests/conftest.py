"""Shared fixtures: a seeded generator, torch as an oracle, and the real pictures if present."""

import os
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def torch():
    """PyTorch, as an oracle. Missing: skip, or fail where MINISEGNET_REQUIRE_TORCH=1."""
    if os.environ.get("MINISEGNET_REQUIRE_TORCH") == "1":
        import torch
        return torch
    return pytest.importorskip("torch", reason="PyTorch, the oracle, is not installed")


@pytest.fixture(scope="session")
def camvid_root():
    """The folder with CamVid's train/ and val/; skip where the pictures are absent."""
    root = Path(os.environ.get("MINISEGNET_CAMVID", "data/CamVid"))
    if not (root / "train").is_dir():
        pytest.skip(f"no CamVid pictures in {root} (set MINISEGNET_CAMVID)")
    return root
