from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "ranks.py"


@pytest.mark.parametrize("streams", [1, 2])
def test_many_ranks_cover_each_row_once_within_a_gigabyte(streams: int, tmp_path: Path) -> None:
    options = ["--ranks", "16", "--shards", "300", "--images", "100", "--streams", str(streams)]
    out = tmp_path / "ranks.csv"
    subprocess.run([sys.executable, str(SCRIPT), *options, "--out", str(out)], check=True, capture_output=True)
    with out.open() as file:
        (row,) = csv.DictReader(file)
    assert int(row["steps"]) * 16 * 8 >= int(row["packs"]) > 30_000 / 20
    assert float(row["peak_gb"]) < 1


@pytest.mark.soak
def test_a_thousand_ranks_over_a_hundred_million_images(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(SCRIPT), "--out", str(tmp_path / "ranks.csv")], check=True)
