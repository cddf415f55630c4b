"""examples/cka.py: linear CKA has its known values, layers are pooled per image, and the script runs."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from patchnpack import PackedImageLoader, Packing
from patchnpack.models import NaViT, NaViTConfig

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
# With PYTHONSAFEPATH set, a script does not find shapes.py next to it.
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(EXAMPLES), os.environ.get("PYTHONPATH")]))}


@pytest.fixture
def cka(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delitem(sys.modules, "shapes", raising=False)
    spec = importlib.util.spec_from_file_location("cka", EXAMPLES / "cka.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("shapes", None)  # other tests expect larger images


def test_cka_is_invariant_to_rotation_scale_and_shift_and_near_zero_for_independent_data(cka) -> None:  # type: ignore[no-untyped-def]
    draws = torch.Generator().manual_seed(0)
    x, other = torch.randn(2000, 6, generator=draws), torch.randn(2000, 3, generator=draws)
    rotation, _ = torch.linalg.qr(torch.randn(6, 6, generator=draws))
    assert cka.linear_cka(x, 5 * x @ rotation + 3) == pytest.approx(1, abs=1e-6)
    assert cka.linear_cka(x, x * torch.tensor([100.0, 1, 1, 1, 1, 1])) < 0.6
    assert cka.linear_cka(x + 9, other + 9) < 0.01


def test_layers_are_token_means_per_image_in_index_order(cka, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    cka.shapes.draw_shapes(tmp_path, 9, 3)
    torch.manual_seed(0)
    model = NaViT(NaViTConfig(num_classes=3, width=24, depth=2, heads=1, pooling="mean", last_norm="none")).eval()
    loader = PackedImageLoader(f"{tmp_path}/train-*.tar", Packing(seq_len=256), batch_size=2, shuffle=True, label="cls")
    found = cka.layers(model, loader)
    assert found.shape == (2, 9, 24)
    expected = torch.zeros(9, 24)
    with torch.no_grad():
        for batch in loader:
            expected[batch.rows[batch.image_mask]] = model.features(batch).pooled[batch.image_mask]
    torch.testing.assert_close(found[-1], expected)
    assert not any(block._forward_hooks for block in model.blocks)


def test_script_prints_one_line_per_model_and_writes_its_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib, of the extra `report`, is not installed")
    picture = tmp_path / "cka.png"
    script = [sys.executable, str(EXAMPLES / "cka.py"), "--images", "12", "--epochs", "1", "--picture", str(picture)]
    lines = subprocess.run(script, check=True, capture_output=True, text=True, env=ENVIRONMENT).stdout.splitlines()
    (random, single) = (line for line in lines if ", mean " in line)
    for line, name in ((random, "random sizes"), (single, "16 only")):
        assert line.startswith(name)
        accuracies, similarities = line[13:].split("8-16")
        assert len(accuracies.split()) == 3
        pairs = [float(part.split()[-1]) for part in f"8-16{similarities}".split(", ")]
        assert pairs[3] == pytest.approx(sum(pairs[:3]) / 3, abs=2e-3)
        assert all(0 <= value <= 1 for value in pairs)
    assert picture.stat().st_size > 5000
