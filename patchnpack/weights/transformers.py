"""Load weights of the vision transformers in Hugging Face transformers: SigLIP, SigLIP 2, DINOv2 and ViT."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from patchnpack.models import NaViT
from patchnpack.weights.state_dicts import (
    Source,
    Weights,
    depth_of,
    has,
    read_json,
    read_weights,
    refuse,
    require,
    side_of,
)
from patchnpack.weights.timm import from_timm

# P patch size, C channels, D width, G side of the position table

_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_NO_ANTIALIAS = {"position_resize": "bicubic", "position_antialias": False}
# Each model_type, with the options of a `NaViT` that its config.json does not state.
_TYPES: dict[str, dict[str, Any]] = {
    "siglip_vision_model": _NO_ANTIALIAS,
    "siglip2_vision_model": {"position_resize": "bilinear"},
    "dinov2": _NO_ANTIALIAS | _IMAGENET,
    "dinov2_with_registers": _IMAGENET,
    "vit": _NO_ANTIALIAS,
}
_REFUSED = {"dinov3_vit": "its rope takes coordinates relative to the sides of the image, and a NaViT's takes patches"}
# What transformers assumes where a config.json leaves it out, as that of a model with a text tower may.
_ASSUMED: dict[str, Any] = {"num_attention_heads": 12, "layer_norm_eps": 1e-6, "num_channels": 3}
_GELUS = {"gelu": "erf", "gelu_pytorch_tanh": "tanh", "gelu_new": "tanh"}

NO_PLACE = (
    (r"mlp\.(weights_in|weights_out|gate_proj)", "a gate inside the MLP"),
    (r"^(text_model|logit_)", "the text tower"),
)
# Names in transformers, of today's state dicts and of files, and what timm calls them.
_NAMES = (
    (r"^(vision_model|vit|dinov2|dinov2_with_registers)\.", ""),
    (r"^(encoder\.)?layers?\.", "blocks."),
    (r"(layernorm_before|layer_norm1)\.", "norm1."),
    (r"(layernorm_after|layer_norm2)\.", "norm2."),
    (r"(attention\.attention|self_attn|attention)\.(q|k|v)(uery|ey|alue|_proj)\.", r"attn.\2."),
    (r"(attention\.output\.dense|self_attn\.out_proj|attention\.o_proj)\.", "attn.proj."),
    (r"intermediate\.dense\.", "mlp.fc1."),
    (r"(?<=\d\.)output\.dense\.", "mlp.fc2."),
    (r"layer_scale([12])\.lambda1$", r"ls\1.gamma"),
    (r"^(post_)?layernorm\.", "norm."),
    (r"^embeddings\.(patch_embeddings\.projection|patch_embedding)\.", "patch_embed.proj."),
    (r"^embeddings\.(position_embeddings|position_embedding\.weight)$", "pos_embed"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^head\.attention\.out_proj\.", "attn_pool.proj."),
    (r"^head\.attention\.in_proj_", "attn_pool.qkv."),
    (r"^head\.layernorm\.", "attn_pool.norm."),
    (r"^head\.probe$", "attn_pool.latent"),
    (r"^head\.mlp\.", "attn_pool.mlp."),
    (r"^classifier\.", "head."),
)
_UNUSED = re.compile(r"embeddings\.(mask_token|position_ids)$|^(\w+\.)?pooler\.")  # by features and logits


def from_transformers(
    source: Source,
    *,
    config: Mapping[str, Any] | str | Path | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    num_classes: int | None = None,
    drop_path: float = 0.0,
    backend: str = "auto",
) -> NaViT:
    """Load weights of a vision transformer of transformers into a `NaViT` with the same outputs.

    `SiglipVisionModel`, `Siglip2VisionModel`, `Dinov2Model`, `Dinov2WithRegistersModel` and `ViTModel` map, and the
    image classifiers on SigLIP and ViT. The pooled features are the pooled output of SigLIP's head, and the class token
    after the last norm elsewhere. The mask token and the pooler of `ViTModel` are not read.

    Args:
        source: a file, such as model.safetensors, or a state dict.
        config: the content of config.json, or its path; None looks beside the file of weights. Mean and std are those
            of a preprocessor_config.json beside it.
        mean, std: normalisation; None without a preprocessor_config.json is ImageNet's for DINOv2, else 0.5.
        num_classes: number of outputs of a new head; None keeps the head in `source`, if it has one.
        drop_path, backend: as in `NaViTConfig`.

    Returns:
        The model in evaluation mode, in float32.

    Raises:
        ValueError: the kind of model does not map, a name has no counterpart or is missing, or a shape does not fit.

    >>> from_transformers({}, config={"model_type": "dinov3_vit"})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: config.json has the model_type 'dinov3_vit', which does not map: ...
    """
    about, beside = _config(source, config)
    kind = str(about.get("model_type"))
    if kind not in _TYPES:
        reason = f"which does not map: {_REFUSED[kind]}" if kind in _REFUSED else f"and {', '.join(_TYPES)} map"
        raise ValueError(f"config.json has the model_type {kind!r}, {reason}")
    about = _ASSUMED | {"hidden_act": "gelu_pytorch_tanh" if "siglip" in kind else "gelu"} | about
    if about["hidden_act"] not in _GELUS:
        raise ValueError(f"config.json has hidden_act {about['hidden_act']!r}; a NaViT has {', '.join(_GELUS)}")
    theirs = read_weights(source)
    if has(theirs, "vision_model."):  # beside the text tower
        theirs = {name: value for name, value in theirs.items() if name.startswith(("vision_model.", "classifier."))}
    refuse(theirs, NO_PLACE)
    weights, grid = _as_timm(theirs, kind, num_classes)
    options = _TYPES[kind] | {key: value for key, value in beside.items() if value}
    options |= {key: tuple(value) for key, value in (("mean", mean), ("std", std)) if value is not None}
    return from_timm(
        weights,
        heads=int(about["num_attention_heads"]),
        grid=None if has(weights, "embeds.") else grid,
        gelu=_GELUS[about["hidden_act"]],
        norm_eps=float(about["layer_norm_eps"]),
        channels=int(about["num_channels"]),
        num_classes=num_classes,
        drop_path=drop_path,
        backend=backend,
        timm_config={},
        **options,
    )


def _config(source: Source, config: Mapping[str, Any] | str | Path | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the vision part of config.json, and mean and std of preprocessor_config.json."""
    about, beside = config, dict[str, Any]()
    if not isinstance(config, Mapping):
        if config is None and isinstance(source, Mapping):
            raise ValueError("weights of transformers do not state the model; give config=, the content of config.json")
        path = Path(source).parent / "config.json" if config is None else Path(config)  # type: ignore[arg-type]
        if not path.exists():
            raise FileNotFoundError(
                f"{path} does not exist; weights of transformers need their config.json beside them"
            )
        about, processor = read_json(path), path.parent / "preprocessor_config.json"
        found = read_json(processor) if processor.exists() else {}
        beside = {key: tuple(found.get(f"image_{key}") or ()) for key in ("mean", "std")}
    assert isinstance(about, Mapping)
    inner = about.get("vision_config")
    if isinstance(inner, Mapping):
        kind = str(about.get("model_type"))
        about = {"model_type": f"{kind}_vision_model", **inner}
    return dict(about), beside


def _as_timm(theirs: Weights, kind: str, num_classes: int | None) -> tuple[Weights, tuple[int, int]]:
    """Rename weights as in timm, join queries, keys and values; also return the grid of the position table."""
    named: Weights = {}
    for name, value in theirs.items():
        if not _UNUSED.search(name):
            for pattern, new in _NAMES:
                name = re.sub(pattern, new, name)
            named[name] = value
    for i in range(depth_of(named, r"blocks\.(\d+)\.")):
        _join(named, f"blocks.{i}.attn.")
    for part in ("weight", "bias"):
        if (joined := named.pop(f"attn_pool.qkv.{part}", None)) is not None:
            named[f"attn_pool.q.{part}"], named[f"attn_pool.kv.{part}"] = joined.tensor_split([len(joined) // 3])
    _keep_head(named, kind, num_classes)
    table = require(named, "pos_embed", (2, 3), "the position table")
    table = table[None] if table.ndim == 2 else table
    if kind == "dinov2_with_registers":
        require(named, "reg_token", (3,), "the registers, (1, R, D)")
    if "cls_token" in named:
        named["cls_token"], table = named["cls_token"] + table[:, :1], table[:, 1:]
        if "reg_token" in named and not named["reg_token"].numel():
            del named["reg_token"]
    side = side_of(table.shape[1])
    if side is None:
        raise ValueError(f"the position table has {table.shape[1]} entries, which is not a square grid")
    named["pos_embed"] = table
    if require(named, "patch_embed.proj.weight", (2, 4), "the patch embedding").ndim == 2:  # as in NaFlexVit
        named = {re.sub(r"^patch_embed\.|^(?=pos_embed)", "embeds.", name): value for name, value in named.items()}
        named["embeds.pos_embed"] = table.unflatten(1, (side, side))
    return named, (side, side)


def _join(named: Weights, attention: str) -> None:
    for part in ("weight", "bias"):
        parts = [f"{attention}{letter}.{part}" for letter in "qkv"]
        if all(name in named for name in parts):
            named[f"{attention}qkv.{part}"] = torch.cat([named.pop(name) for name in parts])


def _keep_head(named: Weights, kind: str, num_classes: int | None) -> None:
    """Leave out what the head of the model makes unused."""
    if "head.weight" not in named:
        return
    if "siglip" in kind:  # the classifiers take the mean of the tokens, not the pooled output
        for name in [name for name in named if name.startswith("attn_pool.")]:
            del named[name]
    elif named["head.weight"].shape[1] == 2 * require(named, "norm.weight", (1,), "the last norm, (D,)").shape[0]:
        if num_classes is None:
            raise ValueError(
                "the classifier reads the class token beside the mean of the patches, which a NaViT does not; give "
                "num_classes for a new head"
            )
        del named["head.weight"]
        named.pop("head.bias", None)
