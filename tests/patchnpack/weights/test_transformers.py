"""Compare with outputs that transformers 5.24.0 computed from drawn weights (tests/golden/transformers_*.npz)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from patchnpack import PackedBatch, Packing, pack_stream
from patchnpack.models import NaViT
from patchnpack.weights import from_transformers, open_model, to_timm
from tests.closeness import assert_near, difference

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
TOLERANCE = 2e-5  # of the largest
NAMES = sorted(path.stem.removeprefix("transformers_") for path in GOLDEN.glob("transformers_*.npz"))
every_model = pytest.mark.parametrize("name", NAMES)

Arrays = dict[str, np.ndarray]


def recorded(name: str) -> tuple[Arrays, Arrays, dict[str, Any]]:
    """The recorded arrays, the state dict among them, and the content of config.json."""
    with np.load(GOLDEN / f"transformers_{name}.npz") as arrays:
        everything = dict(arrays)
    weights = {key[3:]: value for key, value in everything.items() if key.startswith("sd/")}
    return everything, weights, json.loads(str(everything["config"]))


@torch.no_grad()
def outputs_of(model: NaViT, arrays: Arrays) -> np.ndarray:
    images = [(arrays[key], place) for place, key in enumerate(sorted(k for k in arrays if k.startswith("image_")))]
    batch: PackedBatch
    [batch] = pack_stream(images, Packing(seq_len=256, patch_size=8), batch_size=1, num_threads=0)
    order = batch.labels[batch.image_mask].argsort()
    outputs: torch.Tensor = model(batch)[batch.image_mask][order]
    return outputs.numpy()


@every_model
def test_outputs_match_transformers(name: str) -> None:
    arrays, weights, config = recorded(name)
    outputs = outputs_of(from_transformers(weights, config=config), arrays)
    print(f"{name}: outputs differ by {difference(outputs, arrays['outputs']):.1e} of the largest")  # pytest -rP
    assert_near(outputs, arrays["outputs"], TOLERANCE)


@every_model
def test_a_folder_of_the_hub_opens_by_its_config(name: str, tmp_path: Path) -> None:
    arrays, weights, config = recorded(name)
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_near(outputs_of(open_model(tmp_path), arrays), arrays["outputs"], TOLERANCE)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3]}))
    assert open_model(tmp_path).config.mean == (0.1, 0.2, 0.3)
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json does not exist; weights of transformers need"):
        open_model(tmp_path)


@every_model
def test_each_missing_weight_is_named(name: str) -> None:
    _, weights, config = recorded(name)
    unused = ("mask_token", "pooler", "vision_model.head" if "classifier.weight" in weights else "pooler")
    for missing in weights:
        if not any(part in missing for part in unused):
            rest = {key: value for key, value in weights.items() if key != missing}
            with pytest.raises(
                ValueError, match=r"missing|do not fit|does not fit|no counterpart|pooling|square|heads"
            ):
                from_transformers(rest, config=config)


def test_a_classifier_on_siglip_takes_the_mean_of_the_tokens() -> None:
    _, weights, config = recorded("Siglip2ForImageClassification")
    model = from_transformers(weights, config=config)
    assert (model.config.pooling, model.config.num_classes) == ("mean", 7)
    assert "embeds.pos_embed" in to_timm(model, "naflexvit")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "clip_vision_model"}, r"the model_type 'clip_vision_model', and siglip_vision_model, .* map"),
        ({"model_type": "dinov3_vit"}, r"'dinov3_vit', which does not map: its rope takes coordinates relative"),
        ({"hidden_act": "quick_gelu"}, r"hidden_act 'quick_gelu'; a NaViT has gelu,"),
        ({"num_attention_heads": 3}, r"width 32 is not a multiple of heads 3"),
    ],
)
def test_what_does_not_map_is_named(changes: dict[str, Any], message: str) -> None:
    _, weights, config = recorded("Dinov2Model")
    with pytest.raises(ValueError, match=message):
        from_transformers(weights, config=config | changes)


def test_a_gate_in_the_mlp_is_named() -> None:
    _, weights, config = recorded("Dinov2Model")
    gated = {key.replace("mlp.fc1", "mlp.weights_in"): value for key, value in weights.items()}
    with pytest.raises(
        ValueError, match=r"no counterpart for encoder\.layer\.0\.mlp\.weights_in.*a gate inside the MLP"
    ):
        from_transformers(gated, config=config)


def test_a_classifier_of_dinov2_needs_a_new_head() -> None:
    _, weights, config = recorded("Dinov2Model")
    both = weights | {"classifier.weight": np.zeros((7, 64), np.float32), "classifier.bias": np.zeros(7, np.float32)}
    with pytest.raises(ValueError, match=r"reads the class token beside the mean of the patches"):
        from_transformers(both, config=config)
    assert from_transformers(both, config=config, num_classes=3).config.num_classes == 3


def test_values_that_a_config_leaves_out_are_those_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays, weights, config = recorded("Siglip2VisionModel")
    kept: Callable[[Any], bool] = lambda key: key not in ("hidden_act", "layer_norm_eps", "num_channels")  # noqa: E731
    nested = {"model_type": "siglip2", "vision_config": {key: value for key, value in config.items() if kept(key)}}
    prefixed = {f"vision_model.{key}": value for key, value in weights.items()} | {
        "logit_scale": np.zeros(1, np.float32)
    }
    assert_near(outputs_of(from_transformers(prefixed, config=nested), arrays), arrays["outputs"], TOLERANCE)
