from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from patchnpack.models import NaViT, NaViTConfig

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.py"


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["gpu_benchmark"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_without_a_gpu_one_line_says_so(
    script: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert script.main(["--tests"]) == 0
    assert "No GPU" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0:RuntimeWarning")
def test_the_table_compares_packed_with_padded(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "SLOTS", 256)
    monkeypatch.setattr(script, "WAYS", ("packed", "+ checkpointing", "padded"))  # "+ compile" has a test of its own
    config = NaViTConfig(num_classes=2, width=24, depth=2, heads=3)
    rows = script.speed_table(config, torch.device("cpu"), images=60, steps=3, peak=1e12)
    packed, checkpointed, padded = rows
    assert packed.padding == checkpointed.padding < 0.1 < padded.padding
    assert all(row.images_per_s > 0 and row.tokens_per_s > 0 and 0 < row.mfu < 1 and 0 <= row.stall < 1 for row in rows)
    script.show(rows)
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_flops_count_weights_per_token_and_pairs_per_image(script: ModuleType) -> None:
    model = NaViT(NaViTConfig(num_classes=2, width=8, depth=1, heads=1, patch_size=2, mlp_ratio=4))
    weights = 8 * 12 + 8 * 24 + 8 * 8 + 2 * 8 * 32
    assert script.training_flops(model, [3, 5]) == 6 * weights * 8 + 12 * 8 * (9 + 25)
