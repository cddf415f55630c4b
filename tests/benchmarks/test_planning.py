"""benchmarks/planning.py and planning_time.py on a few images: their assertions hold and their results are complete."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from patchnpack.packer.binpacking.algorithms import CHOICES

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def run(script: str, out: Path, *options: str) -> list[dict[str, str]]:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *options, "--out", str(out)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with out.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("patch_sizes", ["16", "16,32"])
def test_planning_covers_every_row_once(patch_sizes: str, tmp_path: Path) -> None:
    (row,) = run("planning.py", tmp_path / "out.csv", "--rows", "200000", "--patch-sizes", patch_sizes)
    assert int(row["rows"]) == 200_000
    assert float(row["percent_full"]) > 98
    assert 100 < int(row["resident_mb"]) < 1024


def test_every_setting_is_planned_with_every_algorithm(tmp_path: Path) -> None:
    rows = run("planning_time.py", tmp_path / "out.csv", "--images", "3000")
    assert len(rows) == 9 * 4
    assert {row["algorithm"] for row in rows} == {"auto", *CHOICES}
    assert all(float(row["percent_full"]) > 80 for row in rows)
