from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from patchnpack import PackedBatch
from patchnpack.models import NaViT, NaViTConfig
from patchnpack.trainer import save_checkpoint
from patchnpack.weights import export_model, open_model, to_big_vision, to_timm
from patchnpack.weights.export import check_export
from patchnpack.weights.files import with_config
from patchnpack.weights.timm_config import timm_options

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
Pack = Callable[[list[np.ndarray]], PackedBatch]

SMALL: dict[str, Any] = {"num_classes": 5, "width": 48, "depth": 2, "heads": 3, "norm_eps": 1e-6, "position": "grid"}
PLAIN: dict[str, Any] = SMALL | {"qk_norm": False, "gelu": "tanh", "position_grid": 6}


def drawn(**fields: Any) -> NaViT:
    """A model whose weights are all of order 1."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = NaViT(NaViTConfig(**fields))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


def images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (h * 16, w * 16, 3), dtype=np.uint8) for h, w in ((6, 6), (3, 5), (8, 2))]


@torch.no_grad()
def logits_of(model: NaViT, batch: PackedBatch) -> torch.Tensor:
    logits: torch.Tensor = model(batch)
    return logits


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
def test_weights_of_timm_open_from_every_kind_of_file(suffix: str, tmp_path: Path, pack: Pack) -> None:
    model, path = drawn(**PLAIN | {"gelu": "erf"}), tmp_path / f"model{suffix}"
    weights = to_timm(model, "naflexvit")
    (save_file if suffix == ".safetensors" else torch.save)(weights, path)
    with pytest.raises(ValueError, match="do not determine the number of heads; give heads"):
        open_model(path)
    batch = pack(images())
    assert torch.equal(
        logits_of(open_model(path, {"heads": 3, "position_resize": "bilinear"}), batch), logits_of(model, batch)
    )


def test_weights_nested_in_a_training_checkpoint_open(tmp_path: Path) -> None:
    weights = to_timm(drawn(**PLAIN), "naflexvit")
    torch.save({"epoch": 3, "state_dict": weights, "args": {"lr": 0.1}}, tmp_path / "model.pth")
    assert open_model(tmp_path / "model.pth", {"heads": 3}).config.width == 48


def test_a_tower_is_found_under_its_prefix(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = drawn(**PLAIN | {"num_classes": 0})
    arrays = {f"params/img/{name}": value for name, value in to_big_vision(model).items()}
    arrays_and_more: dict[str, Any] = arrays | {"params/t": np.zeros(1, np.float32)}
    np.savez(tmp_path / "siglip.npz", **arrays_and_more)
    assert open_model(tmp_path / "siglip.npz").config == model.config.__class__(
        **{
            **{f: getattr(model.config, f) for f in model.config.__dataclass_fields__},
            "bias": True,
            "position_grid": (6, 6),
        }
    )
    assert f"reads the {len(arrays)} names under 'params/img/', and not the 1 others" in caplog.text
    trunk = {f"visual.trunk.{name}": value for name, value in to_timm(drawn(**PLAIN), "naflexvit").items()}
    save_file(trunk | {"logit_scale": torch.zeros(1)}, tmp_path / "clip.safetensors")
    assert open_model(tmp_path / "clip.safetensors", {"heads": 3}).config.heads == 3


def test_sincos_positions_are_computed_from_position_grid(tmp_path: Path) -> None:
    arrays = to_big_vision(drawn(**PLAIN))
    del arrays["pos_embedding"]
    np.savez(tmp_path / "vit.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="give sincos_grid"):
        open_model(tmp_path / "vit.npz")
    assert open_model(tmp_path / "vit.npz", {"position_grid": 7}).config.position_shape == (7, 7)


def test_a_rectangular_table_opens_with_its_grid(tmp_path: Path) -> None:
    model = drawn(**PLAIN | {"position_grid": (4, 6), "pooling": "mean"})
    save_file(to_timm(model), tmp_path / "vit.safetensors")
    fields = {"heads": 3, "position_grid": (4, 6)}
    assert open_model(tmp_path / "vit.safetensors", fields).config.position_shape == (4, 6)


def test_a_checkpoint_opens_and_fields_must_agree(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, drawn(**PLAIN))
    changed = open_model(tmp_path, {"drop_path": 0.2, "backend": "split", "width": 48, "mean": (0.5, 0.5, 0.5)}).config
    assert (changed.drop_path, changed.backend) == (0.2, "split")
    for field, message in (({"width": 96}, "width is 96, but .* has 48"), ({"position_grid": 7}, "is 7, but .* has 6")):
        with pytest.raises(ValueError, match=message + "; leave it out, or give other weights"):
            open_model(path, field)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.safetensors", "weights .*absent.safetensors.* do not exist; give a checkpoint.pt"),
        ("absent.pt", "checkpoint .*absent.pt.* does not exist"),
        (".", "holds none of checkpoint.pt, model.safetensors, pytorch_model.bin"),
        ("names.pth", r"does not hold weights of timm, big_vision or transformers.*its names are a, b"),
        ("names.pt", r"is not a patchnpack checkpoint|does not hold weights"),
        ("text.pth", r"cannot be read as plain arrays"),
        ("text.md", r"ends in '\.md'"),
    ],
)
def test_what_is_no_weights_is_named(name: str, message: str, tmp_path: Path) -> None:
    for kind in ("pth", "pt"):
        torch.save({"a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / f"names.{kind}")
    for text in ("text.pth", "text.md"):
        (tmp_path / text).write_text("no weights")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_model(tmp_path / name)


def test_a_head_of_other_classes_is_new_and_the_rest_stays() -> None:
    model = drawn(**PLAIN)
    new = with_config(model, num_classes=2)
    assert not new.get_parameter("head.weight").any()
    same = with_config(model, drop_path=0.5)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))
    assert torch.equal(new.get_parameter("blocks.0.qkv.weight"), model.get_parameter("blocks.0.qkv.weight"))


EXPORTED: list[tuple[str, dict[str, Any]]] = [
    ("vit", {"pooling": "cls", "registers": 2, "bias": True, "position_grid": (6, 5)}),
    ("vit", {"pooling": "mean", "last_norm": "pooled", "layer_scale": 1e-5, "position_grid": (6, 5)}),
    ("vit", {"pooling": "mean", "block_norm": "res_post", "position_grid": (6, 5), "position_resize": "bicubic"}),
    ("naflex", {"registers": 1, "gelu": "tanh"}),
    ("naflex", {"pooling": "max", "position_antialias": False, "position_align_corners": True}),
    ("naflex", {"position": "rope", "rope_base": 100.0, "pooling": "mean", "last_norm": "pooled"}),
    ("naflex", {"position": "fractional", "position_keep_aspect": True, "mean": (0.4, 0.5, 0.6)}),
    ("naflex", {"position_resize": "bicubic", "num_classes": 0, "qkv_bias": False, "bias": True}),
]


@pytest.mark.parametrize(("kind", "fields"), EXPORTED, ids=str)
def test_what_is_exported_for_timm_opens_with_equal_outputs(
    kind: str, fields: dict[str, Any], tmp_path: Path, pack: Pack
) -> None:
    model, path = drawn(**SMALL | fields), tmp_path / "out" / "model.safetensors"
    export_model(model, path, "timm", kind=kind)
    batch = pack([images()[0][:, :80]] if kind == "vit" else images())
    again = open_model(path.parent)
    torch.testing.assert_close(logits_of(again, batch), logits_of(model, batch), rtol=1e-6, atol=1e-6)
    about = json.loads((path.parent / "config.json").read_text())
    assert timm_options({}, about)["heads"] == 3
    export_model(model, path.with_suffix(".pth"), "timm", kind=kind)  # over the config.json of an export


@pytest.mark.parametrize("kind", ["vit", "naflex"])
def test_what_is_exported_for_big_vision_opens_with_equal_outputs(kind: str, tmp_path: Path, pack: Pack) -> None:
    model = drawn(**PLAIN)
    export_model(model, tmp_path / "model.npz", "big_vision", kind=kind)
    batch = pack(images())
    again = logits_of(open_model(tmp_path / "model.npz"), batch)
    torch.testing.assert_close(again, logits_of(model, batch), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "format", "kind", "message"),
    [
        ({"norm_eps": 1e-5}, "timm", "naflex", "norm_eps is 1e-05, and that of timm's models is 1e-06; train with"),
        ({"position": "mlp"}, "timm", "naflex", "position is 'mlp' .* which timm's naflexvit does not have"),
        ({"position": "rope"}, "timm", "vit", "position is 'rope' .* which timm's vit does not have"),
        ({"block_norm": "res_post"}, "timm", "naflex", "which only kind 'vit' has in a config.json of timm"),
        ({"qk_norm": True}, "big_vision", "naflex", "qk_norm is True and must be False"),
        (
            {"position": ("grid", "mlp")},
            "timm",
            "naflex",
            r"position is \('grid', 'mlp'\) .* timm's naflexvit does not",
        ),
        ({"position": ("grid", "rope")}, "big_vision", "naflex", r"position is \('grid', 'rope'\) and must be 'grid'"),
        ({}, "keras", "naflex", "the format is 'keras'; choose 'timm', 'big_vision' or 'onnx'"),
        ({}, "onnx", "vit", "kind is 'vit', which an ONNX file does not have"),
        ({}, "timm", "both", "kind is 'both'; choose 'naflex' or 'vit'"),
    ],
)
def test_what_cannot_be_exported_is_refused(fields: dict[str, Any], format: str, kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_export(drawn(**PLAIN | fields), format, kind=kind)


def test_an_export_replaces_no_other_config_and_needs_its_suffix(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ValueError, match=r"config\.json is of another model; give an output file in another folder"):
        export_model(drawn(**PLAIN), tmp_path / "model.pth", "timm")
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    with pytest.raises(ValueError, match=re.escape("for big_vision it must end in .npz")):
        export_model(drawn(**PLAIN), tmp_path / "model.pth", "big_vision")


def test_a_recorded_model_of_timm_is_exported_as_it_was(tmp_path: Path, pack: Pack) -> None:
    with np.load(GOLDEN / "naflexvit_learned_token_reg_qknorm.npz") as arrays:
        weights = {name[3:]: torch.from_numpy(arrays[name]) for name in arrays.files if name.startswith("sd/")}
    save_file(weights, tmp_path / "model.safetensors")
    model = open_model(tmp_path / "model.safetensors")
    export_model(model, tmp_path / "again" / "model.safetensors", "timm")
    batch = pack(images())
    assert torch.equal(logits_of(open_model(tmp_path / "again"), batch), logits_of(model, batch))
