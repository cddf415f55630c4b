from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.patchnpack.cli.runs import SMALL, ran

Shards = Callable[..., str]


@pytest.fixture
def run(shards: Shards, tmp_path: Path) -> Path:
    """The checkpoint of a short run at native:resize, patch size 8."""
    ran("train", shards(), *SMALL, "--resolution=native:resize", "--epochs=1", "-o", tmp_path / "run")
    return tmp_path / "run" / "checkpoint.pt"
