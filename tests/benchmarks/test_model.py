from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DRAW = "import sys; from shapes import draw_shapes; draw_shapes(sys.argv[1], 24, 6, images_per_shard=24)"


@pytest.mark.soak
@pytest.mark.parametrize("precision", ["float32"])
def test_packed_and_padded_agree_and_every_option_is_timed(precision: str, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", DRAW, str(tmp_path)], check=True, cwd=ROOT / "examples")
    shards, out = str(next(tmp_path.glob("train-*.tar"))), tmp_path / "model.csv"
    script = [sys.executable, str(ROOT / "benchmarks" / "model.py"), "--shards", shards, "--out", str(out)]
    options = ["--images", "24", "--rounds", "1", "--precision", precision]
    subprocess.run([*script, *options], check=True, capture_output=True)  # the script asserts that the logits are equal
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows[:2]] == ["packed", "padded"]
    assert float(rows[1]["slots"]) > float(rows[0]["slots"])
    assert {"grid", "rope", "cls", "dense backend"} <= {row["method"] for row in rows}
