from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "webdataset_pipeline.py"


def test_every_image_appears_once_per_epoch(tmp_path: Path) -> None:
    script = [sys.executable, str(SCRIPT), "--folder", str(tmp_path), "--epochs", "2", "--images", "24"]
    done = subprocess.run(script, capture_output=True, text=True, check=True)
    found = [
        re.fullmatch(r"epoch (\d): 24 images, \d+\.\d% padding, loss \d\.\d+", line)
        for line in done.stdout.splitlines()
    ]
    assert [match and match[1] for match in found] == ["0", "1"]
