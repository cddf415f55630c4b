"""benchmarks/packing.py on a few images: its tables are complete and plausible."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import get_args

from patchnpack.packer.binpacking.algorithms import Algorithm

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "packing.py"


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *options], capture_output=True, text=True, check=False)


def test_every_algorithm_is_in_every_table_and_none_beats_the_bound(tmp_path: Path) -> None:
    missing = str(tmp_path / "none-000000.tar")
    done = run("--quick", "--images", "3000", "--synthetic", "--out", str(tmp_path / "out.csv"), missing)
    assert done.returncode == 0, done.stderr
    assert f"{missing} is skipped" in done.stdout
    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    fill = [row for row in rows if row["table"] == "fill"]
    assert {row["images"] for row in fill} == {"300"}
    assert len({(row["input"], row["seq_len"]) for row in fill}) == 6
    for algorithm in get_args(Algorithm):
        assert sum(row["method"].split(",")[0] == algorithm for row in fill) in (6, 12), algorithm
        assert sum(row["method"] == algorithm for row in rows if row["table"] == "speed") == 2, algorithm
    peers = [row for row in fill if row["lookahead"] == ""]
    assert len(peers) >= 6
    assert all(int(row["packs"]) >= int(row["bound"]) for row in fill)
    assert all(float(row["percent_full"]) <= 100 for row in fill)
    assert any(row["table"] == "plan" for row in rows)


def test_empty_sample_is_refused() -> None:
    done = run("--quick", "--images", "9")
    assert done.returncode == 2
    assert "--images 9 leaves 0 images; give at least 10" in done.stderr
