"""benchmarks/sweep.py on a few rows: the sweep agrees with the plans, and the results are complete."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "sweep.py"


def test_sweep_agrees_with_the_plans(tmp_path: Path) -> None:
    out, page = tmp_path / "out.csv", tmp_path / "page.html"
    options = ["--rows", "5000", "--plans", "--out", str(out), "--html", str(page)]
    done = subprocess.run([sys.executable, str(SCRIPT), *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with out.open() as file:
        (row,) = csv.DictReader(file)
    assert int(row["rows"]) == 5000
    assert int(row["settings"]) >= 21  # three powers of two at least
    assert float(row["counting_us_per_batch"]) > 0
    assert page.read_text().startswith("<!doctype html>")
