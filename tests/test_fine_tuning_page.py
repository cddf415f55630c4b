"""The commands of docs/fine_tuning.md on photographs: weights of timm are trained, exported, and give equal logits."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import onnxruntime
import pyarrow.parquet as pq
import pytest

from patchnpack import FitTokens, PackedImageLoader, Packing
from patchnpack.weights import open_model
from tests.closeness import assert_near
from tests.test_shell_blocks import ROOT, commands, shell_blocks, smaller
from tests.timm_folders import write_timm_folders

__all__ = ["commands"]

CLOTHING = ROOT.parent / "shared" / "data" / "clothing"
VALIDATION = "validation-000000.tar"


@pytest.mark.soak
@pytest.mark.skipif(not CLOTHING.exists(), reason=f"{CLOTHING} is absent")
def test_the_page_fine_tunes_evaluates_and_exports_on_photographs(commands: Path, tmp_path: Path) -> None:
    write_timm_folders(tmp_path)
    (tmp_path / "clothing").mkdir()
    for name in (*(f"train-00000{i}.tar" for i in range(2)), VALIDATION):
        (tmp_path / "clothing" / name).symlink_to(CLOTHING / name)
    environment = {**os.environ, "PATH": str(commands), "OMP_NUM_THREADS": "1"}
    for block in shell_blocks(ROOT / "docs" / "fine_tuning.md"):
        if "benchmarks/" in block.text:
            continue
        done = subprocess.run(
            [shutil.which("bash") or "bash", "-eu", "-o", "pipefail", "-c", smaller(block.text)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=900,
        )
        print(done.stdout)
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    for trained, exported in (("tuned", "exported"), ("vit", "exported_vit")):
        tables = [pq.read_table(tmp_path / f"{name}.parquet") for name in (trained, exported)]
        assert len(tables[0]) == 341
        assert tables[0].equals(tables[1])
    model = open_model(tmp_path / "runs" / "naflex").eval()
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    packing = Packing(seq_len=512, resolution=FitTokens(64))
    for batch in PackedImageLoader(str(tmp_path / "clothing" / VALIDATION), packing, batch_size=3):
        inputs = {each.name: getattr(batch, each.name).numpy() for each in session.get_inputs()}
        assert_near(session.run(["logits"], inputs)[0], model(batch), 1e-5)
