from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from patchnpack import PackedBatch
from patchnpack.models import NaViT, NaViTConfig
from patchnpack.weights import from_timm, to_timm
from patchnpack.weights.timm_layout import Kind
from tests.closeness import assert_near, difference

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
TOLERANCE = 2e-5  # of the largest
OPTIONS: dict[str, dict[str, Any]] = {
    "naflexvit_factorized_map": {},
    "naflexvit_learned_bicubic_map": {},
    "naflexvit_learned_bilinear_avg": {"position_resize": "bilinear"},
    "naflexvit_learned_token_reg_qknorm": {},
    "naflexvit_rope_axial_avg": {"rope_base": 10_000.0},
    "vit_avg_fcnorm": {},
    "vit_map": {},
    "vit_token": {},
}
every_variant = pytest.mark.parametrize("variant", OPTIONS)

Pack = Callable[[list[np.ndarray]], PackedBatch]
Arrays = dict[str, np.ndarray]


def recorded(variant: str) -> tuple[Arrays, Arrays]:
    """The recorded arrays, and the state dict among them."""
    with np.load(GOLDEN / f"{variant}.npz") as arrays:
        everything = dict(arrays)
    return everything, {name[3:]: value for name, value in everything.items() if name.startswith("sd/")}


def images_of(arrays: Arrays) -> list[np.ndarray]:
    return [arrays[name] for name in sorted(arrays) if name.startswith("image")]


def load(variant: str, **changes: Any) -> NaViT:
    return from_timm(recorded(variant)[1], **({"heads": 3} | OPTIONS[variant] | changes))


def kind_of(variant: str) -> Kind:
    return "vit" if variant.startswith("vit") else "naflexvit"


@torch.no_grad()
def logits_of(model: NaViT, batch: PackedBatch) -> np.ndarray:
    """Logits (images, classes) in the order of the packed list."""
    order = batch.labels[batch.image_mask].argsort()
    logits: torch.Tensor = model(batch)[batch.image_mask][order]
    return logits.numpy()


@every_variant
def test_logits_match_timm(variant: str, pack: Pack) -> None:
    arrays, _ = recorded(variant)
    logits = logits_of(load(variant), pack(images_of(arrays)))
    print(
        f"{variant}: logits differ by {difference(logits, arrays['logits']):.1e} of the largest"
    )  # pytest -rP shows it
    assert_near(logits, arrays["logits"], TOLERANCE)


@pytest.mark.parametrize("variant", [name for name in OPTIONS if name.startswith("naflexvit")])
def test_patch_features_match_timm(variant: str, pack: Pack) -> None:
    arrays, _ = recorded(variant)
    batch = pack(images_of(arrays))
    with torch.no_grad():
        features = load(variant).features(batch)
    prefix, tokens = arrays["features"].shape[1] - 64, features.tokens.split(features.cu_seqlens.diff().tolist())
    assert len(tokens) == 4
    ours, theirs = [], []
    for place, of_image in zip(batch.labels[batch.image_mask].tolist(), tokens, strict=True):
        ours.append(of_image)
        theirs.append(arrays["features"][place, prefix : prefix + len(of_image)])
    print(f"{variant}: features differ by {difference(ours, theirs):.1e} of the largest")
    assert_near(ours, theirs, TOLERANCE)


@every_variant
def test_saved_names_and_shapes_match_the_original(variant: str, pack: Pack) -> None:
    arrays, weights = recorded(variant)
    model = load(variant)
    saved = to_timm(model, kind_of(variant))
    assert {name: tuple(value.shape) for name, value in saved.items()} == {
        name: value.shape for name, value in weights.items()
    }
    again = from_timm(saved, **({"heads": 3} | OPTIONS[variant]))
    batch = pack(images_of(arrays))
    assert_near(logits_of(again, batch), logits_of(model, batch), 1e-5)


@every_variant
def test_round_trip_with_like_restores_the_original_values(variant: str) -> None:
    _, weights = recorded(variant)
    saved = to_timm(load(variant), like=weights)
    assert list(saved.keys() ^ weights.keys()) == []
    for name, value in saved.items():
        assert difference(value, weights[name]) < 1e-5, name
        assert value.is_contiguous()


@every_variant
def test_changed_model_saved_with_like_keeps_its_outputs(variant: str, pack: Pack) -> None:
    arrays, weights = recorded(variant)
    model, batch = load(variant), pack(images_of(arrays))
    before, generator = logits_of(model, batch), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    wanted = logits_of(model, batch)
    assert difference(before, wanted) > 1e-2
    saved = to_timm(model, like=weights)
    assert_near(logits_of(from_timm(saved, **({"heads": 3} | OPTIONS[variant])), batch), wanted, 1e-5)


@pytest.mark.parametrize("variant", ["vit_avg_fcnorm", "vit_map", "vit_token"])
def test_vit_can_be_saved_as_naflexvit(variant: str, pack: Pack) -> None:
    arrays, _ = recorded(variant)
    saved = to_timm(load(variant), "naflexvit")
    assert saved["embeds.pos_embed"].shape == (1, 8, 8, 48)
    batch = pack(images_of(arrays))
    assert_near(logits_of(from_timm(saved, heads=3), batch), arrays["logits"], TOLERANCE)


def test_saved_weights_share_no_memory_with_the_model() -> None:
    model = load("vit_map")
    saved = to_timm(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for value in saved.values():
        value.fill_(7)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_prefix_token_positions_are_added_to_the_tokens(pack: Pack) -> None:
    arrays, weights = recorded("vit_token")
    rng = np.random.default_rng(0)
    weights["reg_token"] = rng.standard_normal((1, 2, 48)).astype(np.float32)
    positions = rng.standard_normal((1, 2, 48)).astype(np.float32)
    table = weights["pos_embed"]
    with_positions = weights | {"pos_embed": np.concatenate([table[:, :1], positions, table[:, 1:]], 1)}
    without = weights | {
        "cls_token": weights["cls_token"] + table[:, :1],
        "reg_token": weights["reg_token"] + positions,
        "pos_embed": table[:, 1:],
    }
    batch = pack(images_of(arrays))
    first, second = (from_timm(given, heads=3) for given in (with_positions, without))
    assert first.config.registers == 2
    assert_near(logits_of(first, batch), logits_of(second, batch), 1e-5)
    for model, original in ((first, with_positions), (second, without)):
        saved = to_timm(model, like=original)
        assert {name: tuple(value.shape) for name, value in saved.items()} == {
            name: value.shape for name, value in original.items()
        }
        assert all(difference(value, original[name]) < 1e-5 for name, value in saved.items())


def test_class_token_that_is_not_pooled_becomes_a_register(pack: Pack) -> None:
    arrays, weights = recorded("naflexvit_learned_token_reg_qknorm")
    model = from_timm(weights, pooling="mean")
    assert (model.config.pooling, model.config.registers) == ("mean", 3)
    assert to_timm(model, like=weights).keys() == weights.keys()
    assert to_timm(model, "naflexvit")["embeds.reg_token"].shape == (1, 3, 48)
    tokens = load("naflexvit_learned_token_reg_qknorm").features(pack(images_of(arrays))).tokens
    # The same bits: a class token and a register are the same kind of prefix, so every operation has the same shape.
    assert torch.equal(model.features(pack(images_of(arrays))).tokens, tokens)


def test_naflexvit_with_a_convolutional_patch_embedding_loads(pack: Pack) -> None:
    arrays, weights = recorded("naflexvit_learned_bicubic_map")
    kernel = weights["embeds.proj.weight"].reshape(48, 16, 16, 3).transpose(0, 3, 1, 2)
    model = from_timm(weights | {"embeds.proj.weight": kernel}, heads=3)
    assert_near(logits_of(model, pack(images_of(arrays))), arrays["logits"], TOLERANCE)
    assert to_timm(model, like=weights | {"embeds.proj.weight": kernel})["embeds.proj.weight"].shape == (48, 3, 16, 16)


def test_model_without_qkv_bias_and_head_loads() -> None:
    _, weights = recorded("vit_avg_fcnorm")
    weights = {name: value for name, value in weights.items() if "qkv.bias" not in name and "head" not in name}
    model = from_timm(weights, heads=3)
    assert (model.config.qkv_bias, model.config.num_classes) == (False, 0)
    assert to_timm(model).keys() == weights.keys()


def test_missing_biases_are_saved_as_zeros(pack: Pack) -> None:
    arrays, _ = recorded("vit_token")
    torch.manual_seed(0)
    config = NaViTConfig(num_classes=7, width=48, depth=2, position="grid", position_grid=8, position_resize="bicubic")
    model = NaViT(replace(config, norm_eps=1e-6)).eval()
    torch.nn.init.normal_(model.get_parameter("head.weight"))
    saved = to_timm(model)
    assert not saved["blocks.0.norm1.bias"].any()
    batch = pack(images_of(arrays))
    assert_near(logits_of(from_timm(saved), batch), logits_of(model, batch), 1e-5)


def test_num_classes_replaces_only_the_head() -> None:
    _, weights = recorded("vit_token")
    model = from_timm(weights, heads=3, num_classes=5)
    ours = model.state_dict()
    assert ours["head.weight"].shape == (5, 48)
    assert not ours["head.weight"].any()
    assert np.array_equal(ours["blocks.1.up.weight"].numpy(), weights["blocks.1.mlp.fc1.weight"])
    with pytest.raises(ValueError, match=r"head\.weight has shape \(7, 48\), expected \(5, 48\)"):
        to_timm(model, like=weights)


@every_variant
def test_each_missing_name_raises_and_is_named(variant: str) -> None:
    _, weights = recorded(variant)
    # A state dict without registers is valid. One without a class token is valid unless pooling needs the token.
    options: dict[str, Any] = {"heads": 3, "pooling": load(variant).config.pooling} | OPTIONS[variant]
    for name in weights.keys() - {"embeds.reg_token"}:
        with pytest.raises(ValueError, match=rf"{re.escape(name)}\b"):
            from_timm({other: value for other, value in weights.items() if other != name}, **options)


@every_variant
def test_each_wrong_shape_raises(variant: str) -> None:
    _, weights = recorded(variant)
    for name, value in weights.items():
        with pytest.raises(ValueError, match=r"has shape|rows|features"):
            from_timm(weights | {name: value[..., :-1]}, **({"heads": 3} | OPTIONS[variant]))


def test_wrong_shape_is_reported_with_the_expected_shape() -> None:
    _, weights = recorded("vit_token")
    weights["blocks.1.mlp.fc2.weight"] = np.zeros((48, 96), np.float32)  # as of a packed SwiGLU
    with pytest.raises(ValueError, match=r"blocks\.1\.mlp\.fc2\.weight has shape \(48, 96\), expected \(48, 192\)"):
        from_timm(weights, heads=3)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("norm_pre.weight", "CLIP"),
        ("dist_token", "distillation"),
        ("embeds.norm.weight", "in the patch embedding"),
        ("rope.freqs", "rope frequencies"),
        ("blocks.0.attn.rel_pos_bias.bias", "relative position"),
        ("blocks.0.attn.q_proj.weight", "separate"),
        ("blocks.0.attn.norm.weight", "inside attention"),
        ("blocks.0.mlp.norm.weight", "inside the MLP"),
        ("blocks.0.gamma_1", "layer scale"),
        ("pre_logits.fc.weight", "between pooling and head"),
        ("blocks.0.something.weight", "something"),
    ],
)
def test_name_without_counterpart_raises_with_the_reason(name: str, why: str) -> None:
    _, weights = recorded("vit_token")
    with pytest.raises(ValueError, match=rf"no counterpart for .*{why}"):
        from_timm(weights | {name: np.zeros(48, np.float32)}, heads=3)


@pytest.mark.parametrize(
    ("variant", "options", "message"),
    [
        ("vit_token", {"heads": None}, "width 48 do not determine the number of heads"),
        ("vit_token", {"heads": 5}, "width 48 is not a multiple of heads 5"),
        (
            "naflexvit_learned_token_reg_qknorm",
            {"heads": 4},
            "heads is 4, but QK-norm has 16 features, so there are 3 heads",
        ),
        ("naflexvit_rope_axial_avg", {"rope_base": None}, r"give rope_base, 10000\.0 in timm"),
        ("naflexvit_factorized_map", {"rope_base": 100.0}, "has embeds.pos_embed_x; leave rope_base out"),
        ("vit_map", {"rope_base": 100.0}, "has pos_embed; leave rope_base out"),
        ("vit_map", {"pooling": "cls"}, "there is no cls_token"),
        ("vit_map", {"pooling": "avg"}, "pooling is 'avg'; choose one of"),
        ("vit_map", {"pooling": "mean"}, r"no counterpart for attn_pool\.latent"),
        ("vit_map", {"gelu": "quick"}, "gelu is 'quick'; choose one of erf, tanh"),
        ("naflexvit_factorized_map", {"channels": 4}, r"embeds\.proj\.weight has shape \(48, 768\)"),
        ("vit_map", {"prefix": "visual.trunk."}, r"no name starts with 'visual\.trunk\.'; the names are pos_embed"),
    ],
)
def test_option_that_contradicts_the_weights_raises(variant: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(variant, **options)


def test_two_last_norms_raise() -> None:
    _, weights = recorded("vit_token")
    norms = {f"fc_norm.{part}": weights[f"norm.{part}"] for part in ("weight", "bias")}
    with pytest.raises(ValueError, match=r"norm\.weight and fc_norm\.weight"):
        from_timm(weights | norms, heads=3)


@pytest.mark.parametrize(
    ("variant", "name", "shape", "grid"),
    [
        ("vit_token", "pos_embed", (1, 64, 48), 8),  # only patches, although there is a class token
        ("vit_map", "pos_embed", (1, 63, 48), None),
        ("naflexvit_learned_bicubic_map", "embeds.pos_embed", (1, 8, 4, 48), (8, 4)),
        ("naflexvit_factorized_map", "embeds.pos_embed_x", (1, 4, 48), (8, 4)),
    ],
)
def test_the_shape_of_a_position_table_is_kept_and_a_number_that_is_no_square_needs_a_grid(
    variant: str, name: str, shape: tuple[int, ...], grid: Any
) -> None:
    _, weights = recorded(variant)
    given = {**weights, name: np.zeros(shape, np.float32)}
    if grid is not None:
        assert from_timm(given, heads=3).config.position_grid == grid
        return
    with pytest.raises(ValueError, match=rf"{name} has shape .*not a square grid of positions; give grid="):
        from_timm(given, heads=3)
    assert from_timm(given, heads=3, grid=(7, 9)).config.position_grid == (7, 9)


def test_ambiguous_number_of_position_rows_raises() -> None:
    _, weights = recorded("vit_token")
    tokens = {"reg_token": np.zeros((1, 4, 48), np.float32), "pos_embed": np.zeros((1, 9, 48), np.float32)}
    with pytest.raises(ValueError, match="3x3 patches, or 5 tokens and 2x2 patches"):
        from_timm(weights | tokens, heads=3)


def test_prefix_selects_names_and_ignores_others(pack: Pack) -> None:
    arrays, weights = recorded("vit_map")
    tower = {f"visual.trunk.{name}": value for name, value in weights.items()} | {"text.proj": np.zeros(3, np.float32)}
    model = from_timm(tower, heads=3, prefix="visual.trunk.")
    assert_near(logits_of(model, pack(images_of(arrays))), arrays["logits"], TOLERANCE)
    with pytest.raises(ValueError, match=r"patch_embed\.proj\.weight, .*, is missing"):
        from_timm(tower, heads=3)


@pytest.mark.parametrize("position", ["absolute", "sinusoidal", "fourier", "learned_grid", "mlp"])
def test_position_that_timm_lacks_raises(position: str) -> None:
    model = NaViT(NaViTConfig(num_classes=7, width=48, depth=1, position=position))
    with pytest.raises(ValueError, match=f"position is '{position}' .*timm's naflexvit does not have"):
        to_timm(model, "naflexvit")


def test_rope_cannot_be_saved_as_vit() -> None:
    with pytest.raises(ValueError, match=r"position is 'rope' .*timm's vit does not have; it has grid"):
        to_timm(load("naflexvit_rope_axial_avg"), "vit")


def test_gelu_option_applies_to_blocks_and_pooling(pack: Pack) -> None:
    arrays, _ = recorded("vit_map")
    batch = pack(images_of(arrays))
    exact, approximate = (logits_of(load("vit_map", gelu=gelu), batch) for gelu in ("erf", "tanh"))
    assert 1e-6 < difference(approximate, exact) < 1e-2
