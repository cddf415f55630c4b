"""Options of timm's models that leave no trace in their weights, read from config.json or given as arguments."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from patchnpack import PackedBatch, Packing, pack_stream
from patchnpack.models import NaViT, NaViTConfig
from patchnpack.weights import from_big_vision, from_timm, to_big_vision, to_timm
from tests.closeness import assert_near, difference

SMALL: dict[str, Any] = {
    "num_classes": 3,
    "width": 24,
    "depth": 1,
    "heads": 3,
    "patch_size": 8,
    "qk_norm": False,
    "norm_eps": 1e-6,
}
HEADS = {"num_heads": 3}
SHAPES = [(5, 7), (9, 4), (3, 14)]  # (gh, gw) of the images of a NaFlexVit
# For each case: kind, architecture, model_args in timm, the arguments of from_timm that mean the same, fields of the
# NaViT whose state dict has the same names, and the logits of each image that timm 1.0.31 computed (torch 2.13.0, CPU).
CASES: dict[str, tuple[Any, str, dict[str, Any], dict[str, Any], dict[str, Any], list[list[float]]]] = {
    "rectangular table, class token": (
        "vit",
        "vit_base_patch16_224",
        {"img_size": [32, 128]},
        {"grid": (4, 16)},
        {"pooling": "cls", "position_grid": (4, 16)},
        [[0.4538, 0.4888, -0.0765]],
    ),
    "rectangular table, no token": (
        "vit",
        "vit_base_patch16_gap_224",
        {"img_size": [128, 32], "class_token": False},
        {"grid": (16, 4), "pooling": "mean"},
        {"pooling": "mean", "last_norm": "pooled", "position_grid": (16, 4)},
        [[0.4326, -0.5319, -0.7148]],
    ),
    "ResPostBlock": (
        "vit",
        "vit_base_patch16_rpn_224",
        {"img_size": [48, 48], "class_token": False},
        {"block_norm": "res_post", "pooling": "mean"},
        {"pooling": "mean", "last_norm": "pooled", "block_norm": "res_post"},
        [[0.6459, -1.5607, -0.8256]],
    ),
    "rectangular table, NaFlex": (
        "naflexvit",
        "naflexvit_base_patch16_map",
        {"pos_embed_grid_size": [4, 16]},
        {},
        {"position_grid": (4, 16)},
        [[1.5774, 0.7255, 2.351], [1.6655, 0.6519, 2.372], [1.6296, 0.6251, 2.4932]],
    ),
    "rectangular tables, factorised": (
        "naflexvit",
        "naflexvit_base_patch16_map",
        {"pos_embed": "factorized", "pos_embed_grid_size": [5, 9]},
        {},
        {"position": "fractional", "position_grid": (5, 9)},
        [[-2.6535, 0.2977, 0.3759], [-2.617, -0.0125, 0.3018], [-2.7585, 0.0818, 0.6013]],
    ),
    "without antialias": (
        "naflexvit",
        "naflexvit_base_patch16_map",
        {"pos_embed_antialias": False},
        {"position_antialias": False},
        {},
        [[0.8339, 0.9596, 0.3076], [1.0372, 0.8925, 0.7099], [0.8532, 0.7402, 0.3993]],
    ),
    "aligned corners": (
        "naflexvit",
        "naflexvit_base_patch16_map",
        {"pos_embed_antialias": False, "pos_embed_align_corners": True, "pos_embed_interp_mode": "bilinear"},
        {"position_antialias": False, "position_align_corners": True, "position_resize": "bilinear"},
        {},
        [[0.7895, 0.9078, 0.3944], [0.9749, 0.8991, 0.5996], [0.8575, 0.6971, 0.3398]],
    ),
    "grid_sample": (
        "naflexvit",
        "naflexvit_base_patch16_map",
        {"pos_embed_use_grid_sample": True},
        {"position_antialias": False},
        {},
        [[0.8339, 0.9596, 0.3076], [1.0372, 0.8925, 0.7099], [0.8532, 0.7402, 0.3993]],
    ),
    "aspect kept": (
        "naflexvit",
        "naflexvit_base_patch16_map",
        {"pos_embed_ar_preserving": True},
        {"position_keep_aspect": True},
        {},
        [[0.9496, 1.0221, 0.3936], [0.9478, 0.8621, 0.6287], [0.8929, 0.6425, 0.672]],
    ),
    "aspect kept, factorised": (
        "naflexvit",
        "naflexvit_base_patch16_parfac_gap",
        {"pos_embed": "factorized"},
        {"position_keep_aspect": True, "pooling": "mean"},
        {"position": "fractional", "pooling": "mean", "last_norm": "pooled"},
        [[2.048, 1.848, -1.5019], [2.3291, 1.917, -1.3145], [1.9071, 1.4951, -1.658]],
    ),
}
every_case = pytest.mark.parametrize("name", CASES)


def weights_of(name: str) -> dict[str, np.ndarray]:
    """Drawn weights with the names and shapes of the case."""
    kind, _, _, _, fields, _ = CASES[name]
    position = {"position": "grid", "position_grid": 6, "pooling": "attention"}
    outline = to_timm(NaViT(NaViTConfig(**SMALL | position | fields)), kind)
    rng = np.random.default_rng(0)
    drawn = {}
    for weight in sorted(outline):
        shape = tuple(outline[weight].shape)
        values = rng.standard_normal(shape)
        if weight.endswith(("proj.weight", "qkv.weight", "fc1.weight", "fc2.weight", "head.weight", "kv.weight")):
            values *= np.prod(shape[1:]) ** -0.5
        drawn[weight] = (1 + 0.2 * values if "norm" in weight else values).astype(np.float32)
    return drawn


def images_of(name: str) -> list[np.ndarray]:
    kind, _, arguments, _, _, _ = CASES[name]
    sizes = [tuple(arguments["img_size"])] if kind == "vit" else [(8 * gh, 8 * gw) for gh, gw in SHAPES]
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def config_of(name: str) -> dict[str, Any]:
    _, architecture, arguments, _, fields, _ = CASES[name]
    pool = {"attention": "map", "mean": "avg", "cls": "token"}[fields.get("pooling", "attention")]
    return {"architecture": architecture, "global_pool": pool, "model_args": HEADS | arguments}


def pack(images: list[np.ndarray]) -> PackedBatch:
    samples = [(image, place) for place, image in enumerate(images)]
    [batch] = pack_stream(samples, Packing(seq_len=256, patch_size=8), batch_size=1, num_threads=0)
    return batch


@torch.no_grad()
def logits_of(model: NaViT, images: list[np.ndarray]) -> torch.Tensor:
    batch = pack(images)
    order = batch.labels[batch.image_mask].argsort()
    logits: torch.Tensor = model(batch)[batch.image_mask][order]
    return logits


@every_case
def test_logits_equal_those_that_timm_computed(name: str) -> None:
    given, config = CASES[name][3], config_of(name)
    expected = torch.tensor(CASES[name][-1])
    read = from_timm(weights_of(name), timm_config=config)
    told = from_timm(weights_of(name), heads=3, **given)
    for model in (read, told):
        assert_near(logits_of(model, images_of(name)), expected, 1e-4)  # recorded to four places
    assert read.config == told.config


@every_case
def test_without_the_option_the_outputs_differ_or_loading_fails(name: str) -> None:
    given = {key: value for key, value in CASES[name][3].items() if key == "pooling"}
    if given == CASES[name][3]:  # the weights themselves show this one
        return
    try:
        plain = from_timm(weights_of(name), heads=3, **given)
    except ValueError:
        return
    assert difference(logits_of(plain, images_of(name)), torch.tensor(CASES[name][-1])) > 0.01


@every_case
def test_a_round_trip_keeps_outputs_and_values(name: str) -> None:
    weights = weights_of(name)
    model = from_timm(weights, timm_config=config_of(name))
    saved = to_timm(model, like=weights)
    assert all(difference(saved[weight], weights[weight]) < 1e-5 for weight in weights)
    again = from_timm(to_timm(model, CASES[name][0]), timm_config=config_of(name))
    assert_near(logits_of(again, images_of(name)), logits_of(model, images_of(name)), 1e-5)


def test_the_config_beside_the_weights_is_read_and_one_of_another_library_is_not(tmp_path: Path) -> None:
    name, weights = "aspect kept", tmp_path / "model.pth"
    torch.save({key: torch.from_numpy(value) for key, value in weights_of(name).items()}, weights)
    with pytest.raises(ValueError, match="give heads"):
        from_timm(weights)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "architectures": ["ViTModel"]}))
    with pytest.raises(ValueError, match="give heads"):
        from_timm(weights)
    about = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_size": [3, 48, 48]}
    (tmp_path / "config.json").write_text(json.dumps(config_of(name) | {"pretrained_cfg": about}))
    model = from_timm(weights)
    assert model.config.position_keep_aspect
    assert (model.config.mean, model.config.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert not from_timm(weights, heads=3, timm_config={}).config.position_keep_aspect
    assert from_timm(weights, position_keep_aspect=False, mean=(0.5,)).config.mean == (0.5, 0.5, 0.5)
    assert from_timm(weights, timm_config=tmp_path / "config.json").config == model.config
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        from_timm(weights)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="has no 'architecture'"):
        from_timm(weights, timm_config=tmp_path / "config.json")


@pytest.mark.parametrize(
    ("architecture", "fields"),
    [
        ("vit_base_patch16_rpn_224", {"block_norm": "res_post"}),
        ("naflexvit_base_patch16_par_gap.e300_s576_in1k", {"position_keep_aspect": True}),
        ("naflexvit_base_patch16_siglip.v2_webli", {"gelu": "tanh", "position_resize": "bilinear"}),
        ("naflexvit_large_patch16_radio_v3", {"position_antialias": False, "position_align_corners": False}),
        ("naflexvit_huge_patch16_radio_v3", {"position_align_corners": True, "position_resize": "bilinear"}),
        ("vit_so400m_patch16_siglip_384", {"gelu": "tanh"}),
        ("vit_base_patch16_siglip_224", {"gelu": "erf", "position_resize": "bicubic", "block_norm": "pre"}),
    ],
)
def test_an_architecture_determines_its_options(architecture: str, fields: dict[str, Any]) -> None:
    config = from_timm(weights_of("aspect kept"), heads=3, timm_config={"architecture": architecture}).config
    assert {field: getattr(config, field) for field in fields} == fields


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pool_include_prefix": True}, "pool_include_prefix=True, which a NaViT does not have; what maps is False"),
        ({"global_pool": "avgmax"}, "global_pool='avgmax', which a NaViT does not have; it has 'map', 'avg'"),
        ({"act_layer": "silu"}, "act_layer='silu', which a NaViT does not have"),
        ({"block_fn": "ParallelScalingBlock"}, "block_fn='ParallelScalingBlock'"),
        ({"rope_type": "dinov3"}, "rope_type='dinov3', which a NaViT does not have; what maps is '', 'none', 'axial'"),
        ({"rope_ref_feat_shape": [14, 14]}, "rope_ref_feat_shape.*what maps is none"),
        ({"attn_pool_num_heads": 4}, "attn_pool_num_heads=4 and num_heads=3; in a NaViT they are equal"),
        ({"patchify_channels_last": False}, "patchify_channels_last=False"),
        ({"pos_embed_interp_mode": "nearest"}, "pos_embed_interp_mode='nearest'"),
        ({"pos_embed_align_corners": True}, "needs position 'grid' and position_antialias=False"),
        ({"hyperbolic": True}, r"an option that from_timm does not know.*timm_config=\{\}"),
    ],
)
def test_an_option_that_does_not_map_is_refused(arguments: dict[str, Any], message: str) -> None:
    config = {"architecture": "naflexvit_base_patch16_map", "model_args": HEADS | arguments}
    with pytest.raises(ValueError, match=message):
        from_timm(weights_of("aspect kept"), timm_config=config)


def test_quickgelu_is_refused_by_the_name_of_the_architecture() -> None:
    with pytest.raises(ValueError, match="vit_base_patch32_clip_quickgelu_224, with QuickGELU"):
        from_timm(weights_of("aspect kept"), timm_config={"architecture": "vit_base_patch32_clip_quickgelu_224"})


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ((4, 4), r"pos_embed has 65 rows, but a grid of 4x4 has 16 positions, or 17 with those of 1 tokens"),
        ((13, 5), None),
    ],
)
def test_a_grid_must_have_the_rows_of_the_table(grid: tuple[int, int], message: str | None) -> None:
    weights = weights_of("rectangular table, class token")
    if message is None:  # 65 rows may also be 13x5 positions and a token without one
        assert from_timm(weights, heads=3, grid=grid).config.position_grid == grid
        return
    with pytest.raises(ValueError, match=message):
        from_timm(weights, heads=3, grid=grid)


def test_a_grid_resolves_an_ambiguous_number_of_rows() -> None:
    weights = weights_of("rectangular table, class token")
    tokens = {"reg_token": np.zeros((1, 4, 24), np.float32), "pos_embed": np.zeros((1, 9, 24), np.float32)}
    assert from_timm(weights | tokens, heads=3, grid=(2, 2)).config.position_grid == 2
    assert from_timm(weights | tokens, heads=3, grid=(3, 3)).config.position_grid == 3


def test_an_image_size_that_does_not_match_the_table_is_not_used() -> None:
    weights = weights_of("rectangular table, class token")
    config = {"architecture": "vit_base_patch16_224", "model_args": HEADS, "input_size": [3, 224, 224]}
    assert from_timm(weights, timm_config=config).config.position_grid == 8


@pytest.mark.parametrize("how", [{"mode": "bilinear"}, {"mode": "bicubic"}])
@pytest.mark.parametrize("align_corners", [False, True])
def test_a_resized_table_gives_the_logits_of_a_table_resized_by_torch(how: dict[str, str], align_corners: bool) -> None:
    weights = weights_of("without antialias")
    model = from_timm(
        weights,
        heads=3,
        position_resize=how["mode"],
        position_antialias=False,
        position_align_corners=align_corners,
    )
    table = torch.from_numpy(weights["embeds.pos_embed"]).permute(0, 3, 1, 2)
    for image in images_of("without antialias"):
        size = (image.shape[0] // 8, image.shape[1] // 8)
        resized = F.interpolate(table, size=size, mode=how["mode"], align_corners=align_corners).permute(0, 2, 3, 1)
        exact = from_timm(weights | {"embeds.pos_embed": resized.numpy()}, heads=3)
        assert_near(logits_of(model, [image]), logits_of(exact, [image]), 1e-5)


def test_a_rectangular_table_of_big_vision_maps() -> None:
    fields: dict[str, Any] = {"position": "grid", "gelu": "tanh", "bias": True}
    torch.manual_seed(0)
    model = NaViT(NaViTConfig(**SMALL | fields, position_grid=(4, 16))).eval()
    torch.nn.init.normal_(model.get_parameter("head.weight"))
    weights, images = to_big_vision(model), images_of("without antialias")
    assert weights["pos_embedding"].shape == (1, 64, 24)
    again = from_big_vision(weights, grid=(4, 16))
    assert again.config.position_grid == (4, 16)
    assert_near(logits_of(again, images), logits_of(model, images), 1e-5)
    assert from_big_vision(weights).config.position_grid == 8, "without the grid, a square is assumed"
    with pytest.raises(ValueError, match=r"not a grid of 5x13; give grid="):
        from_big_vision(weights, grid=(5, 13))
    naflex = from_big_vision(to_big_vision(model, "naflex"))
    assert naflex.config.position_grid == (4, 16)
    assert_near(logits_of(naflex, images), logits_of(model, images), 1e-5)


@pytest.mark.parametrize(
    ("fields", "save", "message"),
    [
        ({"position_antialias": False}, lambda model: to_timm(model), "position_antialias is False.*use 'naflexvit'"),
        ({"position_keep_aspect": True}, lambda model: to_timm(model), "position_keep_aspect is True"),
        ({"scope": "sample"}, lambda model: to_timm(model, "naflexvit"), "scope is 'sample' and time is 'none'"),
        ({"time": "learned"}, lambda model: to_timm(model), "time is 'learned', but timm's models take single images"),
        ({"scope": "sample"}, lambda model: to_big_vision(model), "scope is 'sample' and must be 'image'"),
        ({"block_norm": "res_post", "layer_scale": 1.0}, lambda model: to_timm(model), "ResPostBlock does not have"),
        ({"block_norm": "res_post"}, to_big_vision, "block_norm is 'res_post' and must be 'pre'"),
        ({"position_antialias": False}, to_big_vision, "position_antialias is False and must be True"),
    ],
)
def test_an_option_that_the_other_library_lacks_is_not_lost_in_saving(
    fields: dict[str, Any], save: Callable[[NaViT], Any], message: str
) -> None:
    plain: dict[str, Any] = {"position": "grid", "gelu": "tanh", "bias": True}
    with pytest.raises(ValueError, match=message):
        save(NaViT(NaViTConfig(**SMALL | plain | fields)))
