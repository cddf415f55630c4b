"""benchmarks/lengths.py on a small table: the advice holds, and a length that beats it fails the script."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "lengths.py"


def test_no_untried_length_beats_the_advice_by_half_a_point(tmp_path: Path) -> None:
    sizes = np.random.default_rng(0).choice([200, 300, 320], (300, 2))
    (tmp_path / "few.csv").write_text("width,height\n" + "".join(f"{w},{h}\n" for w, h in sizes))
    out = tmp_path / "out.csv"
    options = ["--tables", str(tmp_path), "--shards", "none/*.tar", "--lengths", "40", "--patch-sizes", "16"]
    command = [sys.executable, str(SCRIPT), *options, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["images"] for row in rows] == ["500 of 720x960", "few"]
    assert all(0 <= float(row["regret"]) <= 0.5 and int(row["untried"]) > 20 for row in rows)
