"""benchmarks/planning.py and filling.py on a few images: their assertions hold and their results are complete."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from patchnpack.packer.config import Fill

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


def test_every_fill_is_measured_and_respects_its_limits(tmp_path: Path) -> None:
    rows = run("filling.py", tmp_path / "out.csv", "--images", "3000")
    assert {row["fill"] for row in rows} == set(get_args(Fill))
    for row in rows:
        assert 50 < float(row["percent_full"]) <= 100
        assert float(row["largest_change"]) <= (0.0501 if row["fill"] == "rescale" else 0)
        assert (float(row["percent_of_tokens_lost"]) > 0) <= (row["fill"] == "trim")
        if "BetaDrop" in row["input"]:
            assert abs(float(row["drawn_rate"]) - 0.5) < 0.02
