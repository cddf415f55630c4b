"""The examples for training frameworks print exactly the output in their docstrings.

The output shows that each epoch has each image once, and that a run resumed mid-epoch ends with the same weights.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
NEEDS = {
    "stateful_dataloader": "torchdata",
    "with_accelerate": "accelerate",
    "with_lightning": "lightning",
    "with_trainer": "transformers",
}


def _expected(script: Path) -> list[str]:
    """The indented lines at the end of a script's docstring."""
    docstring = ast.get_docstring(ast.parse(script.read_text()))
    assert docstring is not None
    *_, intro, lines = docstring.split("\n\n")
    assert "Expected" in intro
    return [line.removeprefix("    ") for line in lines.splitlines()]


@pytest.mark.parametrize("name", NEEDS)
def test_example_prints_the_output_in_its_docstring(name: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"{NEEDS[name]} is not installed; the group `frameworks` holds it")
    if name == "with_trainer" and importlib.util.find_spec("accelerate") is None:
        pytest.skip("accelerate is not installed, which Trainer needs; the group `frameworks` holds it")
    script = EXAMPLES / f"{name}.py"
    assert len(script.read_text().splitlines()) < 80
    launcher = TORCHRUN if name == "with_accelerate" else []
    done = subprocess.run(
        [sys.executable, *launcher, str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    expected = _expected(script)
    assert done.stdout.splitlines()[-len(expected) :] == expected
    assert expected[-1].endswith("same weights bit for bit: True")
