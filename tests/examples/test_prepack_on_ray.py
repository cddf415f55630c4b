from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "prepack_on_ray.py"


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray, of the extra [ray], is not installed")
def test_packs_are_written_on_a_cluster_and_read_back(tmp_path: Path) -> None:
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    script = [sys.executable, str(SCRIPT), "--folder", str(tmp_path)]
    done = subprocess.run(script, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    expected = [line.strip() for line in SCRIPT.read_text("utf-8").split('"""')[1].strip().splitlines()[-2:]]
    assert done.stdout.splitlines()[-2:] == expected
