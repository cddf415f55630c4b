"""The example of three-page documents prints the output in its docstring: nothing repeats, and nothing is lost."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "documents_to_qwen2_vl.py"

pytest.importorskip("transformers", reason="transformers is not installed; the group `frameworks` holds it")


def test_example_prints_the_output_in_its_docstring(tmp_path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(SCRIPT.read_text()))
    assert docstring is not None
    expected = [line.removeprefix("    ") for line in docstring.split("\n\n")[-1].splitlines()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    script = [sys.executable, str(SCRIPT), str(tmp_path)]
    done = subprocess.run(script, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == expected
    first, rest = (int(word) for word in expected[1].split() if word.isdecimal() and word != "0" and word != "2")
    assert f"{first + rest} documents" in expected[0]
    assert expected[-1].endswith("bit for bit: True")
