from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_pictures_of_the_ideas_match_the_page(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "draw_ideas.py"), str(tmp_path)]
    drawn = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "MPLBACKEND": "agg"})
    assert drawn.returncode == 0, drawn.stderr
    page = (ROOT / "docs" / "ideas.md").read_text("utf-8")
    for name in ("lengths", "balance", "resume"):
        assert f"(images/{name}.svg)" in page
        assert (tmp_path / f"{name}.svg").read_text("utf-8").startswith("<?xml")
    # The page and the pictures state the same figures.
    assert "The library's packer wastes 15.3 %" in page
    assert "15.3% padding" in _texts(tmp_path / "lengths.svg")
    assert "slowest rank is 1.59 times the mean; balanced, 1.02" in page
    assert {"as packed: load imbalance 1.59", "balanced in windows of 256 packs: load imbalance 1.02"} <= set(
        _texts(tmp_path / "balance.svg").splitlines()
    )


def _texts(svg: Path) -> str:
    """The texts of a picture; matplotlib writes them as comments next to their outlines."""
    return "\n".join(re.findall(r"<!-- (.*?) -->", svg.read_text("utf-8")))
