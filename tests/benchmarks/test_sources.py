"""benchmarks/sources.py on a few photographs: it measures every source and writes complete results."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
CLOTHING = Path(__file__).resolve().parents[3] / "shared" / "data" / "clothing"


@pytest.mark.skipif(not CLOTHING.is_dir(), reason="the clothing photographs are not in ../shared")
def test_every_source_is_measured_and_written(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "sources.py"), str(CLOTHING / "train-000009.tar"), "--rounds", "1"]
    done = subprocess.run([*command, "--out", str(tmp_path / "out.csv")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "out.csv").open() as file:
        rows = {row["source"]: row for row in csv.DictReader(file)}
    assert len(rows) == 11
    assert all(float(row["cpu_us_per_image"]) > 0 for row in rows.values())
    assert float(rows["shards"]["ratio"]) == 1.0
