from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

DEMO = Path(__file__).resolve().parents[2] / "examples" / "demo.py"


def test_demo_runs_its_commands_and_writes_the_promised_files(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    script = [sys.executable, str(DEMO), "--folder", str(folder), "--epochs", "1", "--images", "24"]
    done = subprocess.run(script, capture_output=True, text=True, check=True)
    commands = [line.split()[2] for line in done.stdout.splitlines() if line.startswith("$ patchnpack ")]
    assert commands == ["report", "show", "train", "train"]
    for name in ("packs.png", "classes.txt", "native/checkpoint.pt", "square/checkpoint.pt"):
        assert (folder / name).stat().st_size > 0, name
    assert "patchnpack report 'SHARDS'" in done.stdout.splitlines()[-1]


def test_demo_on_a_busy_machine_names_the_variable_that_limits_threads() -> None:
    hint_if_busy = runpy.run_path(str(DEMO))["hint_if_busy"]
    assert "load 4.0 on 2 CPUs): if training is slow, set OMP_NUM_THREADS=1" in hint_if_busy(4.0, 2, None)
    assert hint_if_busy(4.0, 2, "1") == ""
    assert hint_if_busy(0.4, 2, None) == ""
