from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_every_run_is_printed_and_written(tmp_path: Path) -> None:
    shapes = [sys.executable, str(EXAMPLES / "shapes.py"), str(tmp_path), "--images", "12", "--validation", "6"]
    subprocess.run(shapes, check=True)
    small = ["--epochs", "1", "--seeds", "1", "--tokens", "16", "--width", "24", "--depth", "1"]
    script = [sys.executable, str(EXAMPLES / "native_vs_square.py")]
    data = [f"{tmp_path}/train-*.tar", f"{tmp_path}/validation-*.tar"]
    done = subprocess.run(
        [*script, *data, *small, "--out", str(tmp_path / "out.csv")], check=True, capture_output=True, text=True
    )
    lines = done.stdout.splitlines()
    assert [line.split(" seed 0: accuracy ")[0] for line in lines[:2]] == ["native", "square"]
    assert lines[2].startswith("native   mean 0.")
    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["resolution"], row["seed"]) for row in rows] == [("native", "0"), ("square", "0")]


def test_number_of_tokens_that_is_not_a_square_is_refused() -> None:
    script = [sys.executable, str(EXAMPLES / "native_vs_square.py"), "a.tar", "b.tar", "--tokens", "50"]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--tokens 50 is not a square number; use 49 or 64" in done.stderr
