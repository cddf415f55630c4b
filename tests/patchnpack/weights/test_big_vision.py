"""Compare with big_vision's architecture, which this file reimplements in numpy and float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from patchnpack import PackedBatch
from patchnpack.models import NaViT, NaViTConfig
from patchnpack.weights import from_big_vision, from_timm, to_big_vision
from tests.closeness import assert_near, difference
from tests.images import cut_patches

# P patch size, D width, H heads, E width of a head, G side of the position table, M hidden width, T tokens

P, D, H, E, G, M, DEPTH, CLASSES = 16, 48, 3, 16, 6, 96, 2, 7
TOLERANCE = 2e-5  # of the largest
BLOCK = "Transformer/encoderblock_{}/"

Arrays = dict[str, np.ndarray]
Gelu = Callable[[np.ndarray], np.ndarray]
Pack = Callable[[list[np.ndarray]], PackedBatch]
poolings = pytest.mark.parametrize("pool_type", ["map", "gap", "tok"])


def draw(pool_type: str, naflex: bool = False) -> Arrays:
    """Weights of a small model, of order 1 where a mistake must show."""
    rng = np.random.default_rng(0)
    weights: Arrays = {}

    def matrix(name: str, inputs: int, *shape: int, bias: tuple[int, ...]) -> None:
        weights[f"{name}/kernel"] = rng.standard_normal(shape) / math.sqrt(inputs)
        weights[f"{name}/bias"] = 0.3 * rng.standard_normal(bias)

    def norm(name: str) -> None:
        weights[f"{name}/scale"] = 1 + 0.2 * rng.standard_normal(D)
        weights[f"{name}/bias"] = 0.3 * rng.standard_normal(D)

    def attention(name: str) -> None:
        for part in ("query", "key", "value"):
            matrix(f"{name}/{part}", D, D, H, E, bias=(H, E))
        matrix(f"{name}/out", D, H, E, D, bias=(D,))

    def mlp(name: str) -> None:
        matrix(f"{name}/Dense_0", D, D, M, bias=(M,))
        matrix(f"{name}/Dense_1", M, M, D, bias=(D,))

    matrix("embedding", P * P, *((P * P * 3, D) if naflex else (P, P, 3, D)), bias=(D,))
    weights["pos_embedding"] = rng.standard_normal((G, G, D) if naflex else (1, G * G, D))
    for i in range(DEPTH):
        norm(BLOCK.format(i) + "LayerNorm_0")
        attention(BLOCK.format(i) + "MultiHeadDotProductAttention_0")
        norm(BLOCK.format(i) + "LayerNorm_1")
        mlp(BLOCK.format(i) + "MlpBlock_0")
    norm("Transformer/encoder_norm")
    if pool_type == "tok":
        weights["cls"] = rng.standard_normal((1, 1, D))
    if pool_type == "map":
        weights["MAPHead_0/probe"] = rng.standard_normal((1, 1, D))
        attention("MAPHead_0/MultiHeadDotProductAttention_0")
        norm("MAPHead_0/LayerNorm_0")
        mlp("MAPHead_0/MlpBlock_0")
    matrix("head", D, D, CLASSES, bias=(CLASSES,))
    return {name: value.astype(np.float32) for name, value in weights.items()}


def layer_norm(x: np.ndarray, w: Arrays, name: str) -> np.ndarray:
    x = x - x.mean(-1, keepdims=True)
    return np.asarray(x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * w[f"{name}/scale"] + w[f"{name}/bias"])


def attend(queries: np.ndarray, x: np.ndarray, w: Arrays, name: str) -> np.ndarray:
    q, k, v = (
        np.einsum("td,dhe->hte", source, w[f"{name}/{part}/kernel"]) + w[f"{name}/{part}/bias"][:, None]
        for part, source in (("query", queries), ("key", x), ("value", x))
    )
    scores = np.einsum("hqe,hke->hqk", q, k) / math.sqrt(E)
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = np.einsum("hqk,hke->qhe", scores / scores.sum(-1, keepdims=True), v)
    return np.asarray(np.einsum("qhe,hed->qd", mixed, w[f"{name}/out/kernel"]) + w[f"{name}/out/bias"])


def tanh_gelu(x: np.ndarray) -> np.ndarray:
    return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))


def exact_gelu(x: np.ndarray) -> np.ndarray:
    return np.asarray(0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))))


def perceptron(x: np.ndarray, w: Arrays, name: str, gelu: Gelu) -> np.ndarray:
    x = x @ w[f"{name}/Dense_0/kernel"] + w[f"{name}/Dense_0/bias"]
    return np.asarray(gelu(x) @ w[f"{name}/Dense_1/kernel"] + w[f"{name}/Dense_1/bias"])


def positions(weights: Arrays, gh: int, gw: int) -> np.ndarray:
    """(gh*gw, D): the table as it is, or in NaFlex resized with antialias."""
    side = math.isqrt(weights["pos_embedding"].size // D)
    table = weights["pos_embedding"].astype(np.float64).reshape(side, side, D)
    if (gh, gw) != (side, side):
        planes = torch.from_numpy(table).permute(2, 0, 1)[None]
        resized = F.interpolate(planes, (gh, gw), mode="bilinear", align_corners=False, antialias=True)
        table = resized[0].permute(1, 2, 0).numpy()
    return table.reshape(gh * gw, D)


def forward(weights: Arrays, image: np.ndarray, pool_type: str, gelu: Gelu = tanh_gelu) -> np.ndarray:
    """Logits of big_vision's model for one uint8 image (height, width, 3), from weights under today's names."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    gh, gw = image.shape[0] // P, image.shape[1] // P
    patches = cut_patches(image / 255 * 2 - 1, P)
    x = patches @ w["embedding/kernel"].reshape(-1, D) + w["embedding/bias"]
    if "pos_embedding" in w:
        x = x + positions(weights, gh, gw)
    if pool_type == "tok":
        x = np.concatenate([w["cls"][0], x])
    for i in range(DEPTH):
        block = BLOCK.format(i)
        y = layer_norm(x, w, block + "LayerNorm_0")
        x = x + attend(y, y, w, block + "MultiHeadDotProductAttention_0")
        x = x + perceptron(layer_norm(x, w, block + "LayerNorm_1"), w, block + "MlpBlock_0", gelu)
    x = layer_norm(x, w, "Transformer/encoder_norm")
    if pool_type == "map":
        pooled = attend(w["MAPHead_0/probe"][0], x, w, "MAPHead_0/MultiHeadDotProductAttention_0")
        pooled = pooled + perceptron(layer_norm(pooled, w, "MAPHead_0/LayerNorm_0"), w, "MAPHead_0/MlpBlock_0", gelu)
    else:
        pooled = {"tok": x[:1], "max": x.max(0, keepdims=True), "gap": x.mean(0, keepdims=True)}[pool_type]
    return np.asarray((pooled @ w["head/kernel"] + w["head/bias"])[0])


def images(*grids: tuple[int, int]) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (gh * P, gw * P, 3), dtype=np.uint8) for gh, gw in grids]


SQUARE = images((G, G), (G, G))
VARIED = images((4, 7), (9, 5), (G, G), (3, 11), (12, 2))


@torch.no_grad()
def logits_of(model: NaViT, batch: PackedBatch) -> np.ndarray:
    """(images, classes). The same weights and batch give the same bits: the operations have equal shapes and order."""
    order = batch.labels[batch.image_mask].argsort()
    logits: torch.Tensor = model(batch)[batch.image_mask][order]
    return logits.numpy()


def wanted_of(weights: Arrays, pool_type: str, given: list[np.ndarray]) -> np.ndarray:
    return np.stack([forward(weights, image, pool_type) for image in given])


@poolings
def test_outputs_match_the_reference_architecture(pool_type: str, pack: Pack) -> None:
    weights = draw(pool_type)
    model = from_big_vision(weights)
    assert (model.config.heads, model.config.depth, model.config.mlp_ratio) == (H, DEPTH, M / D)
    logits, wanted = logits_of(model, pack(SQUARE)), wanted_of(weights, pool_type, SQUARE)
    print(f"vit, {pool_type}: logits differ by {difference(logits, wanted):.1e} of the largest")  # pytest -rP shows it
    assert_near(logits, wanted, TOLERANCE)


@pytest.mark.parametrize("pool_type", ["map", "gap", "max"])
def test_outputs_at_any_grid_match_naflex(pool_type: str, pack: Pack) -> None:
    weights = draw(pool_type, naflex=True)
    model = from_big_vision(weights, pooling="max" if pool_type == "max" else None)
    logits, wanted = logits_of(model, pack(VARIED)), wanted_of(weights, pool_type, VARIED)
    print(f"naflex_vit, {pool_type}: logits differ by {difference(logits, wanted):.1e} of the largest")
    assert_near(logits, wanted, TOLERANCE)
    assert to_big_vision(model, "naflex").keys() == weights.keys()


def test_exact_gelu_changes_the_outputs(pack: Pack) -> None:
    weights = draw("map")
    wanted = wanted_of(weights, "map", SQUARE)
    assert difference(logits_of(from_big_vision(weights, gelu="erf"), pack(SQUARE)), wanted) > TOLERANCE


@poolings
def test_round_trip_restores_the_weights(pool_type: str, pack: Pack) -> None:
    weights = draw(pool_type)
    saved = to_big_vision(from_big_vision(weights))
    assert {name: value.shape for name, value in saved.items()} == {
        name: value.shape for name, value in weights.items()
    }
    projected = {"MAPHead_0/probe"} | {
        f"MAPHead_0/MultiHeadDotProductAttention_0/query/{x}" for x in ("kernel", "bias")
    }
    assert all(np.array_equal(saved[name], value) for name, value in weights.items() if name not in projected)
    assert_near(wanted_of(saved, pool_type, SQUARE), wanted_of(weights, pool_type, SQUARE), 1e-5)
    assert_near(logits_of(from_big_vision(saved), pack(SQUARE)), wanted_of(weights, pool_type, SQUARE), TOLERANCE)


@pytest.mark.parametrize(("variant", "pool_type"), [("vit_map", "map"), ("vit_token", "tok")])
def test_timm_model_can_be_saved_for_big_vision(variant: str, pool_type: str, pack: Pack) -> None:
    with np.load(Path(__file__).resolve().parents[2] / "golden" / f"{variant}.npz") as arrays:
        weights = {name[3:]: arrays[name] for name in arrays.files if name.startswith("sd/")}
        image, logits = arrays["image"], arrays["logits"]
    model = from_timm(weights, heads=3, gelu="tanh")
    saved = to_big_vision(model)
    assert_near(forward(saved, image, pool_type, exact_gelu), logits[0], TOLERANCE)  # also checks `forward`
    assert_near(logits_of(model, pack([image]))[0], forward(saved, image, pool_type), TOLERANCE)
    assert_near(logits_of(from_big_vision(saved), pack([image]))[0], forward(saved, image, pool_type), TOLERANCE)


def test_npz_file_round_trips(tmp_path: Path, pack: Pack) -> None:
    weights = draw("gap")
    model = from_big_vision(weights)
    np.savez(tmp_path / "model.npz", **to_big_vision(model))  # type: ignore[arg-type]
    assert np.array_equal(
        logits_of(from_big_vision(tmp_path / "model.npz"), pack(SQUARE)), logits_of(model, pack(SQUARE))
    )


def test_stacked_blocks_are_split(pack: Pack) -> None:
    weights = draw("map")
    stacked = {name: value for name, value in weights.items() if "encoderblock_" not in name}
    for name in weights:
        if name.startswith(BLOCK.format(0)):
            part = name.removeprefix(BLOCK.format(0))
            layers = [weights[BLOCK.format(i) + part] for i in range(DEPTH)]
            stacked[f"Transformer/encoderblock/{part}"] = np.stack(layers)
    assert np.array_equal(
        logits_of(from_big_vision(stacked), pack(SQUARE)), logits_of(from_big_vision(weights), pack(SQUARE))
    )


def test_old_names_load_and_the_class_position_is_added(pack: Pack) -> None:
    weights = draw("tok")
    rng = np.random.default_rng(2)
    place = rng.standard_normal((1, 1, D)).astype(np.float32)
    old: Arrays = {}
    for name, value in weights.items():
        for new, old_name in (
            ("MultiHeadDotProductAttention_0", "MultiHeadDotProductAttention_1"),
            ("LayerNorm_1", "LayerNorm_2"),
            ("MlpBlock_0", "MlpBlock_3"),
        ):
            name = name.replace(new, old_name)
        old[f"opt/target/{name}"] = value
    table = old.pop("opt/target/pos_embedding")
    old["opt/target/Transformer/posembed_input/pos_embedding"] = np.concatenate([place, table], 1)
    wanted = wanted_of(weights | {"cls": weights["cls"] + place}, "tok", SQUARE)
    assert_near(logits_of(from_big_vision(old), pack(SQUARE)), wanted, TOLERANCE)


def test_old_and_new_name_of_one_weight_raise() -> None:
    weights = draw("gap")
    old = {"Transformer/encoderblock_0/MlpBlock_3/Dense_0/bias": np.zeros(M, np.float32)}
    with pytest.raises(ValueError, match="MlpBlock_3/Dense_0/bias is an old name of"):
        from_big_vision(weights | old)


def test_siglip_image_tower_loads(pack: Pack) -> None:
    weights = draw("map")
    wanted = wanted_of(weights, "map", SQUARE)
    tower = {f"params/img/{name}": value for name, value in weights.items()}
    assert_near(logits_of(from_big_vision(tower), pack(SQUARE)), wanted, TOLERANCE)
    both = tower | {"params/txt/head/bias": np.zeros(3, np.float32), "params/t": np.zeros(1, np.float32)}
    with pytest.raises(ValueError, match="under img/; give prefix='img/'"):
        from_big_vision({name.removeprefix("params/"): value for name, value in both.items()})
    assert_near(logits_of(from_big_vision(both, prefix="params/img/"), pack(SQUARE)), wanted, TOLERANCE)


def test_suggested_prefix_for_a_larger_checkpoint_works() -> None:
    both: dict[str, Any] = {f"params/img/{name}": value for name, value in draw("map").items()}
    both["opt/count"] = np.zeros(1, np.float32)
    with pytest.raises(ValueError, match="give prefix='params/img/'"):
        from_big_vision(both)
    from_big_vision(both, prefix="params/img/")


def test_nested_parameters_load(pack: Pack) -> None:
    weights = draw("gap")
    tree: dict[str, Any] = {}
    for name, value in weights.items():
        *folders, leaf = name.split("/")
        inner: dict[str, Any] = tree
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[leaf] = value
    assert np.array_equal(
        logits_of(from_big_vision({"params": tree}), pack(SQUARE)), logits_of(from_big_vision(weights), pack(SQUARE))
    )


def test_sincos_positions_are_computed_from_the_grid(pack: Pack) -> None:
    weights = draw("gap")
    del weights["pos_embedding"]
    with pytest.raises(ValueError, match="give sincos_grid"):
        from_big_vision(weights)
    y, x = np.mgrid[:G, :G]
    omega = 1 / 10_000 ** (np.arange(D // 4) / (D // 4 - 1))
    angles_x, angles_y = x.reshape(-1, 1) * omega, y.reshape(-1, 1) * omega
    table = np.concatenate([np.sin(angles_x), np.cos(angles_x), np.sin(angles_y), np.cos(angles_y)], 1)
    wanted = wanted_of(weights | {"pos_embedding": table[None]}, "gap", SQUARE)
    assert_near(logits_of(from_big_vision(weights, sincos_grid=G), pack(SQUARE)), wanted, TOLERANCE)
    with pytest.raises(ValueError, match="has pos_embedding"):
        from_big_vision(draw("gap"), sincos_grid=G)


@pytest.mark.parametrize(("pool_type", "naflex"), [("map", False), ("tok", False), ("gap", True)])
def test_each_missing_name_raises_and_is_named(pool_type: str, naflex: bool) -> None:
    weights = draw(pool_type, naflex)
    for name in weights:
        given = {other: value for other, value in weights.items() if other != name}
        with pytest.raises(ValueError, match=f"{name}|pooling"):
            from_big_vision(given, pooling={"map": "attention", "tok": "cls", "gap": "mean"}[pool_type])


@poolings
def test_each_wrong_shape_raises(pool_type: str) -> None:
    weights = draw(pool_type)
    for name, value in weights.items():
        with pytest.raises(ValueError, match=r"has shape|not a multiple"):
            from_big_vision(weights | {name: value[..., :-1]})


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("pre_logits/kernel", "tanh layer before the head"),
        ("patchln_pre/scale", "norm in the patch embedding"),
        ("Transformer/encoderblock_0/something", "encoderblock_0/something"),
        ("txt/Embed_0/embedding", "txt/Embed_0/embedding"),
        ("cls", "cls"),
    ],
)
def test_name_without_counterpart_raises_and_is_named(name: str, why: str) -> None:
    with pytest.raises(ValueError, match=rf"no counterpart for .*{why}"):
        from_big_vision(draw("gap") | {name: np.zeros((1, 1, D), np.float32)}, pooling="mean")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gelu": "erf"}, "gelu is 'erf' and must be 'tanh'"),
        ({"norm_eps": 1e-5}, "norm_eps is 1e-05 and must be 1e-06"),
        ({"qk_norm": True}, "qk_norm is True and must be False"),
        ({"registers": 2}, "registers is 2 and must be 0"),
        ({"layer_scale": 1e-5}, "layer_scale is 1e-05 and must be None"),
        ({"last_norm": "pooled"}, "last_norm is 'pooled' and must be 'tokens'"),
        ({"position": "rope"}, "position is 'rope' and must be 'grid'"),
        ({"pooling": "max"}, "pooling is 'max' and must be 'attention' or 'mean' or 'cls'"),
    ],
)
def test_option_that_big_vision_lacks_raises_and_is_named(changes: dict[str, Any], message: str) -> None:
    fields: dict[str, Any] = {"position": "grid", "gelu": "tanh", "norm_eps": 1e-6, "qk_norm": False} | changes
    with pytest.raises(ValueError, match=message):
        to_big_vision(NaViT(NaViTConfig(num_classes=7, width=48, depth=1, **fields)))


def test_num_classes_replaces_only_the_head() -> None:
    model = from_big_vision(draw("gap"), num_classes=3)
    assert model.get_parameter("head.weight").shape == (3, D)
    assert not model.get_parameter("head.weight").any()
