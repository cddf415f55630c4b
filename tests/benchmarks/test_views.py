"""benchmarks/views.py on a few drawn images: both methods make every view of every picture."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

from tests.images import draw_image, encode_image, write_tar

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "views.py"


def test_views_and_ten_loaders_make_ten_images_per_picture(tmp_path: Path) -> None:
    pictures = [(f"p{i:02d}.jpg", encode_image(draw_image(90 + i, 120 - i, seed=i), "JPEG")) for i in range(12)]
    shard, out = write_tar(tmp_path / "pictures.tar", pictures), tmp_path / "views.csv"
    command = [sys.executable, str(SCRIPT), shard, "--rounds", "1", "--out", str(out)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "12 pictures of 96x114 pixels on average, 10 views each" in printed
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["views", "ten loaders"]
    assert rows[1]["times_ten_loaders"] == "1.00"
    assert all(float(row["images_per_second"]) > 0 and float(row["tokens_per_image"]) > 1 for row in rows)
