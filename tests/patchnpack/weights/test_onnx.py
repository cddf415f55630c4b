"""ONNX files, run by onnxruntime on batches of other shapes than the one they were traced with."""

from __future__ import annotations

import builtins
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from patchnpack import PackedBatch, Packing, pack_stream
from patchnpack.models import NaViT, NaViTConfig
from patchnpack.weights import export_model
from patchnpack.weights.onnx import onnx_inputs, to_onnx
from tests.closeness import assert_near

MODELS: dict[str, dict[str, Any]] = {
    "table and MLP, attention pooling": {"position": ("learned_grid", "mlp")},
    "grid and rope, class token, registers": {"position": ("grid", "rope"), "pooling": "cls", "registers": 2},
    "samples, learned frames, mean": {"scope": "sample", "time": "learned", "pooling": "mean", "num_classes": 0},
    "samples, rotated frames, max": {"scope": "sample", "time": "rope", "pooling": "max", "position": "fractional"},
}


def built(**fields: Any) -> NaViT:
    """A model whose weights are all of order 1."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = NaViT(NaViTConfig(**{"num_classes": 5, "width": 24, "depth": 1, "heads": 3, "patch_size": 4} | fields))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def batch_of(packs: int, seq_len: int, max_images: int) -> PackedBatch:
    """Random images in packs, two to a sample."""
    rng = np.random.default_rng(packs)
    samples = [
        (rng.integers(0, 256, (*rng.integers(3, 18, 2), 3), dtype=np.uint8), 0) for _ in range(packs * max_images)
    ]
    packing = Packing(seq_len=seq_len, patch_size=4, max_images=max_images)
    batch = next(iter(pack_stream(samples, packing, batch_size=packs)))
    number = batch.samples - 1
    return dataclasses.replace(batch, samples=number // 2 + 1, frames=torch.where(number >= 0, number % 2, 0))


@pytest.mark.parametrize("name", MODELS)
def test_an_onnx_file_gives_the_logits_of_any_number_of_packs_slots_and_images(name: str, tmp_path: Path) -> None:
    model = built(**MODELS[name]).train()
    export_model(model, tmp_path / "out" / "model.onnx", "onnx")
    assert model.training, "the model was left in evaluation mode"
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_inputs()] == onnx_inputs(model)
    for shape in ((3, 60, 7), (2, 41, 2), (1, 25, 5)):
        batch = batch_of(*shape)
        assert (*batch.segment_ids.shape, batch.grids.shape[1]) == shape
        inputs = {each: getattr(batch, each).numpy() for each in onnx_inputs(model)}
        (logits,) = session.run(["logits"], inputs)
        assert_near(logits, model.eval()(batch), 1e-5)


@pytest.mark.parametrize("missing", ["onnx", "onnxscript"])
def test_a_missing_package_is_named_with_its_extra(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == missing or (name == "onnxscript" and missing == "onnx"):
            raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)
        return found(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModuleNotFoundError, match=rf"needs {missing}, .* pip install 'patchnpack\[onnx\]'"):
        export_model(built(), tmp_path / "new" / "model.onnx", "onnx")
    assert not (tmp_path / "new").exists()


def test_weights_beyond_the_size_of_an_onnx_file_are_refused() -> None:
    with torch.device("meta"):
        model = NaViT(NaViTConfig(num_classes=0, width=4096, depth=3, heads=32))
    with pytest.raises(ValueError, match=r"take 3,[\d,]+ bytes, .* less than 2,147,483,648; convert the model to bf"):
        to_onnx(model)
