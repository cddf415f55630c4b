"""Load and save weights of timm's `VisionTransformer` and `NaFlexVit`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from patchnpack.models import NaViT, NaViTConfig
from patchnpack.weights.state_dicts import (
    Source,
    Weights,
    build,
    check_fit,
    depth_of,
    has,
    mlp_ratio,
    outline,
    read_weights,
    refuse,
    require,
    side_of,
    with_biases,
)
from patchnpack.weights.timm_config import timm_options
from patchnpack.weights.timm_layout import NO_PLACE, Kind, Layout, lay_out, layout_of, prefix_tokens, take_in

# P patch size, C channels, D width, H heads, E width of a head, G side of a position table, R prefix tokens


def from_timm(
    source: Source,
    *,
    heads: int | None = None,
    pooling: str | None = None,
    grid: tuple[int, int] | None = None,
    rope_base: float | None = None,
    position_resize: str | None = None,
    position_antialias: bool | None = None,
    position_align_corners: bool | None = None,
    position_keep_aspect: bool | None = None,
    patch_resize: str = "bicubic",
    block_norm: str | None = None,
    gelu: str | None = None,
    norm_eps: float = 1e-6,
    channels: int = 3,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    num_classes: int | None = None,
    drop_path: float = 0.0,
    backend: str = "auto",
    prefix: str = "",
    timm_config: Mapping[str, Any] | str | Path | None = None,
) -> NaViT:
    """Load weights of timm's `VisionTransformer` or `NaFlexVit` into a `NaViT` with the same outputs.

    Width, depth, patch size, position table, class token, registers, biases, QK-norm, LayerScale, the last norm and the
    head follow from names and shapes. The other arguments must match the options of the timm model, because a state
    dict does not hold them. Arguments that are None are read from timm's config.json, if there is one.

    Args:
        source: a mapping of tensors or numpy arrays, or a file: .safetensors (needs the package of that name), .npz, or
            torch's .pth, .pt and .bin, read with `weights_only=True`, which executes no code.
        heads: attention heads; required unless the model has QK-norm. Most timm models have 64 features per head.
        pooling: "attention" (timm's "map"), "mean" ("avg"), "max" or "cls" ("token"). None infers it: attention with
            `attn_pool` weights, mean with `fc_norm`, cls with a class token, else mean.
        grid: (rows, columns) of the position table of a `VisionTransformer`: the image size divided by the patch size.
            None takes it from the config if the number of positions agrees, and else assumes a square.
        rope_base: `rope_temperature` of a `NaFlexVit(rope_type="axial")`, 10,000 in timm; None means no rope.
        position_resize: `pos_embed_interp_mode`, "bicubic" (None) or "bilinear" (SigLIP 2); factorised tables are
            linear.
        position_antialias, position_align_corners, position_keep_aspect: `pos_embed_antialias` (None: True),
            `pos_embed_align_corners` and `pos_embed_ar_preserving` (None: False) of a `NaFlexVit`. For
            `pos_embed_use_grid_sample=True` give `position_antialias=False`.
        patch_resize: how to embed patches of other sizes; the default matches `resample_patch_embed`.
        block_norm: "pre" (None), or "res_post" for `block_fn=ResPostBlock`.
        gelu: "erf" (None), or "tanh" for `act_layer="gelu_tanh"` (SigLIP 2 in NaFlexVit).
        norm_eps: epsilon of every norm.
        channels: channels per pixel, if the patch embedding is a matrix.
        mean, std: normalisation from `pretrained_cfg`; None is 0.5 without a config, right for most of Google's ViTs,
            SigLIP and NaFlexVit; DeiT, DINOv2 and CLIP use other values.
        num_classes: number of outputs of a new head; None keeps the head in `source`.
        drop_path, backend: as in `NaViTConfig`.
        prefix: read only the names that start with it, such as "visual.trunk.".
        timm_config: the content of a config.json that timm wrote, with `architecture` and `model_args`, or its path.
            None looks beside the file of weights; {} ignores it. Arguments of this function take precedence.

    Returns:
        The model in evaluation mode, in float32. Positions of the class token and the registers are added to the
        tokens, and the latent query of attention pooling is projected, because neither depends on the image.

    Raises:
        ValueError: a name has no counterpart, a name is missing, a shape does not fit, an argument is missing, or the
            config has an option that does not map.

    >>> model = NaViT(NaViTConfig(num_classes=7, width=48, depth=1, position="grid", pooling="cls"))
    >>> weights = to_timm(model)
    >>> weights["pos_embed"].shape
    torch.Size([1, 257, 48])
    >>> from_timm({name: value for name, value in weights.items() if name != "norm.bias"}, heads=3)
    Traceback (most recent call last):
    ValueError: the state dict does not fit: norm.bias is missing
    """
    theirs, found = read_weights(source, prefix), timm_options(source, timm_config)
    refuse(theirs, NO_PLACE)

    def option(name: str, given: Any, default: Any = None) -> Any:
        return found.get(name, default) if given is None else given

    layout = layout_of(theirs, grid := grid or _grid_of(theirs, found.get("image")))
    meaning = "the patch embedding, (D, C, P, P), or in NaFlexVit (D, P*P*C)"
    stem = require(theirs, f"{layout.stem}.weight", (4,) if layout.conv else (2,), meaning)
    hidden = require(theirs, "blocks.0.mlp.fc1.weight", (2,), "an MLP's first matrix, (hidden, D)")
    width = stem.shape[0]
    if layout.conv:
        channels = stem.shape[1]
    patch_size = side_of(stem[0].numel() // channels)
    if patch_size is None or stem[0].numel() % channels or (layout.conv and stem.shape[2] != stem.shape[3]):
        raise ValueError(
            f"{layout.stem}.weight has shape {tuple(stem.shape)}, which does not hold square patches of {channels} "
            "channels; give channels, or weights with square patches"
        )
    pooling = option("pooling", pooling)
    if pooling is None:
        from_class = layout.class_token and not has(theirs, "fc_norm.")
        pooling = "attention" if has(theirs, "attn_pool.") else "cls" if from_class else "mean"
    if pooling == "cls" and not layout.class_token:
        raise ValueError(f"pooling is 'cls', but there is no {layout.token}cls_token; choose 'mean' or 'max'")
    head = has(theirs, "head.") and require(theirs, "head.weight", (2,), "the head, (classes, D)")
    config = NaViTConfig(
        num_classes=0 if head is False else len(head),
        width=width,
        depth=depth_of(theirs, r"blocks\.(\d+)\."),
        heads=_heads(theirs, width, option("heads", heads)),
        patch_size=patch_size,
        patch_resize=patch_resize,
        channels=channels,
        mlp_ratio=mlp_ratio(len(hidden), width),
        **_position(theirs, layout, option("rope_base", rope_base), grid),
        position_resize=option("position_resize", position_resize, "bicubic"),
        position_antialias=option("position_antialias", position_antialias, True),
        position_align_corners=option("position_align_corners", position_align_corners, False),
        position_keep_aspect=option("position_keep_aspect", position_keep_aspect, False),
        registers=prefix_tokens(theirs, layout) - (pooling == "cls"),
        pooling=pooling,
        block_norm=option("block_norm", block_norm, "pre"),
        last_norm=_last_norm(theirs),
        bias=True,
        qkv_bias=any(re.fullmatch(r"blocks\.\d+\.attn\.qkv\.bias", name) for name in theirs),
        layer_scale=1e-5 if any(name.endswith(".ls1.gamma") for name in theirs) else None,
        gelu=option("gelu", gelu, "erf"),
        norm_eps=norm_eps,
        qk_norm=any(".q_norm." in name for name in theirs if name.startswith("blocks.")),
        drop_path=drop_path,
        mean=option("mean", mean, (0.5,)),
        std=option("std", std, (0.5,)),
        backend=backend,
    )
    check_fit(theirs, lay_out(outline(config), config, layout))
    weights = take_in(theirs, config, layout)
    if num_classes is not None:
        config = replace(config, num_classes=num_classes)
    return build(config, weights, num_classes)


def to_timm(model: NaViT, kind: Kind = "vit", *, like: Source | None = None) -> Weights:
    """Convert the weights of a `NaViT` to the names and shapes of timm, for its `load_state_dict`.

    The timm model has the same outputs if it is created with the options that `from_timm` takes.

    Args:
        model: a model with position "grid"; "naflexvit" also supports "fractional" (added) and "rope".
        kind: "vit" for `VisionTransformer`, "naflexvit" for `NaFlexVit`.
        like: a state dict of the timm model, such as the one that `from_timm` read. It determines `kind`, which tokens
            and positions exist, and how to split sums: the position of the class token and the latent query keep
            their values from it. Without it, the position of the class token is 0 and the latent query is the
            projected one, with the identity as projection. The target is then a
            `VisionTransformer(no_embed_class=False)`, or a `NaFlexVit(embed_proj_type="linear")` whose only prefix
            tokens are a pooled class token and registers.

    Returns:
        A dict of contiguous float tensors that share no memory with the model. Missing biases are 0.

    Raises:
        ValueError: timm has no such model, or `like` has other names or shapes.

    >>> model = NaViT(NaViTConfig(num_classes=7, width=48, depth=1, position="rope", qk_norm=False))
    >>> sorted(name for name in to_timm(model, "naflexvit") if name.startswith("embeds"))
    ['embeds.proj.bias', 'embeds.proj.weight']
    """
    config = model.config
    if like is None:
        if kind not in ("vit", "naflexvit"):
            raise ValueError(f"kind is {kind!r}; choose 'vit' or 'naflexvit'")
        layout = Layout(
            kind=kind, conv=kind == "vit", class_token=config.pooling == "cls", prefix_positions=kind == "vit"
        )
    else:
        original = read_weights(like)
        layout = layout_of(original, config.position_shape if "pos_embed" in original else None)
    if (config.scope, config.time) != ("image", "none"):
        raise ValueError(
            f"scope is {config.scope!r} and time is {config.time!r}, but timm's models take single images; export a "
            "model of scope 'image' and time 'none'"
        )
    supported = {"grid"} if layout.kind == "vit" else {"grid", "fractional", "rope"}
    combine = config.combine(config.positions[0])
    if config.position not in supported or (config.position == "fractional" and combine != "add"):
        raise ValueError(
            f"position is {config.position!r} ({combine!r}), which timm's {layout.kind} does not have; it has "
            f"{', '.join(sorted(supported))}" + (" (fractional only added)" if "fractional" in supported else "")
        )
    plain = {"position_antialias": True, "position_align_corners": False, "position_keep_aspect": False}
    for name, value in plain.items() if layout.kind == "vit" else ():
        if getattr(config, name) != value:
            raise ValueError(f"{name} is {not value}, which timm's VisionTransformer does not have; use 'naflexvit'")
    if config.block_norm == "res_post" and config.layer_scale is not None:
        raise ValueError("block_norm is 'res_post' with layer_scale, which timm's ResPostBlock does not have")
    theirs = lay_out(with_biases(model), config, layout)
    if like is not None:
        check_fit(original, theirs)
        _split_sums(theirs, original, layout)
    return {name: value.clone(memory_format=torch.contiguous_format) for name, value in theirs.items()}


def _split_sums(theirs: Weights, original: Weights, layout: Layout) -> None:
    """Split sums as in `original`: positions of prefix tokens, and the projected latent query."""
    if layout.prefix_positions and (tokens := prefix_tokens(original, layout)):
        positions = original["pos_embed"][:, :tokens].to(theirs["pos_embed"])
        theirs["pos_embed"] = torch.cat([positions, theirs["pos_embed"][:, tokens:]], 1)
        if layout.class_token:
            theirs["cls_token"] = theirs["cls_token"] - positions[:, :1]
        if "reg_token" in theirs:
            theirs["reg_token"] = theirs["reg_token"] - positions[:, layout.class_token :]
    if "attn_pool.latent" in theirs:
        query = theirs["attn_pool.latent"].double()[0, 0]
        for name in ("attn_pool.latent", "attn_pool.q.weight"):
            theirs[name] = original[name].to(theirs[name])
        projected = theirs["attn_pool.q.weight"].double() @ theirs["attn_pool.latent"].double()[0, 0]
        theirs["attn_pool.q.bias"] = (query - projected).to(theirs["attn_pool.q.bias"])


def _grid_of(theirs: Mapping[str, torch.Tensor], image: tuple[int, int] | None) -> tuple[int, int] | None:
    """Rows and columns of positions for images of (h, w) pixels; None if the table has another number."""
    table, stem = theirs.get("pos_embed"), theirs.get("patch_embed.proj.weight")
    if image is None or table is None or stem is None or table.ndim != 3 or stem.ndim != 4:
        return None
    grid = image[0] // stem.shape[2], image[1] // stem.shape[3]
    layout = layout_of({name: value for name, value in theirs.items() if name != "pos_embed"})
    return grid if table.shape[1] - grid[0] * grid[1] in (0, prefix_tokens(theirs, layout)) else None


def _position(
    theirs: Mapping[str, torch.Tensor], layout: Layout, rope_base: float | None, grid: tuple[int, int] | None
) -> dict[str, Any]:
    table, column, row = (f"{layout.token}pos_embed{axis}" for axis in ("", "_x", "_y"))
    learned = [name for name in (table, column, row) if name in theirs]
    if grid is not None and "pos_embed" not in theirs:
        raise ValueError(f"grid is {grid}, but only pos_embed of a VisionTransformer needs it; leave grid out")
    if rope_base is not None:
        if learned or layout.kind == "vit":
            reason = f"has {learned[0]}" if learned else "is of a VisionTransformer, which has no rope"
            raise ValueError(f"rope_base is {rope_base}, but the state dict {reason}; leave rope_base out")
        return {"position": "rope", "rope_base": rope_base}
    if table in theirs:
        shape = tuple(require(theirs, table, (3,) if layout.kind == "vit" else (4,), "the position table").shape)
        if layout.kind == "naflexvit":
            return {"position": "grid", "position_grid": shape[1:3]}
        rows = shape[1] - (prefix_tokens(theirs, layout) if layout.prefix_positions else 0)
        side = side_of(rows)
        if grid is None and side is None:
            raise ValueError(
                f"{table} has shape {shape}, which is not a square grid of positions; give grid=(rows, columns), the "
                "image size divided by the patch size"
            )
        return {"position": "grid", "position_grid": grid or side}
    if learned:
        meaning = "a position table of one axis, (1, G, D)"
        return {
            "position": "fractional",
            "position_grid": tuple(require(theirs, name, (3,), meaning).shape[1] for name in (row, column)),
        }
    raise ValueError(
        f"{table}, {row} and {column} are missing; for NaFlexVit(rope_type='axial') give rope_base, 10000.0 in timm. "
        "Models without positions do not map"
    )


def _heads(theirs: Mapping[str, torch.Tensor], width: int, heads: int | None) -> int:
    norm = theirs.get("blocks.0.attn.q_norm.weight")
    if norm is None:
        if heads is None:
            usual = f", usually {width // 64} (64 features per head)" if width % 64 == 0 else ""
            raise ValueError(f"weights of width {width} do not determine the number of heads; give heads{usual}")
        return heads
    inferred = width // max(norm.numel(), 1)
    if heads not in (None, inferred):
        raise ValueError(
            f"heads is {heads}, but QK-norm has {norm.numel()} features, so there are {inferred} heads; leave heads out"
        )
    return inferred


def _last_norm(theirs: Mapping[str, torch.Tensor]) -> str:
    if has(theirs, "norm.") and has(theirs, "fc_norm."):
        raise ValueError(
            "the state dict has both norm.weight and fc_norm.weight, as older NaFlexVit models do for 'avg'; "
            "a NaViT has only one last norm, of the tokens or of the pooled vector"
        )
    return "pooled" if has(theirs, "fc_norm.") else "tokens" if has(theirs, "norm.") else "none"
