"""Load and save weights of timm's `VisionTransformer` and `NaFlexVit`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
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
from patchnpack.weights.timm_layout import NO_PLACE, Kind, Layout, lay_out, layout_of, prefix_tokens, take_in

# P patch size, C channels, D width, H heads, E width of a head, G side of a position table, R prefix tokens


def from_timm(
    source: Source,
    *,
    heads: int | None = None,
    pooling: str | None = None,
    rope_base: float | None = None,
    position_resize: str = "bicubic",
    patch_resize: str = "bicubic",
    gelu: str = "erf",
    norm_eps: float = 1e-6,
    channels: int = 3,
    mean: tuple[float, ...] = (0.5,),
    std: tuple[float, ...] = (0.5,),
    num_classes: int | None = None,
    drop_path: float = 0.0,
    backend: str = "auto",
    prefix: str = "",
) -> NaViT:
    """Load weights of timm's `VisionTransformer` or `NaFlexVit` into a `NaViT` with the same outputs.

    Width, depth, patch size, position table, class token, registers, biases, QK-norm, LayerScale, the last norm and the
    head follow from names and shapes. The other arguments must match the options of the timm model, because a state
    dict does not hold them.

    Args:
        source: a mapping of tensors or numpy arrays, or a file: .safetensors (needs the package of that name), .npz, or
            torch's .pth, .pt and .bin, read with `weights_only=True`, which executes no code.
        heads: attention heads; required unless the model has QK-norm. Most timm models have 64 features per head.
        pooling: "attention" (timm's "map"), "mean" ("avg"), "max" or "cls" ("token"). None infers it: attention with
            `attn_pool` weights, mean with `fc_norm`, cls with a class token, else mean.
        rope_base: `rope_temperature` of a `NaFlexVit(rope_type="axial")`, 10,000 in timm; None means no rope.
        position_resize: `pos_embed_interp_mode`, "bicubic" or "bilinear" (SigLIP 2); factorised tables are linear.
        patch_resize: how to embed patches of other sizes; the default matches `resample_patch_embed`.
        gelu: "erf", or "tanh" for `act_layer="gelu_tanh"` (SigLIP 2 in NaFlexVit).
        norm_eps: epsilon of every norm.
        channels: channels per pixel, if the patch embedding is a matrix.
        mean, std: normalisation from `pretrained_cfg`: 0.5 for most of Google's ViTs, SigLIP and NaFlexVit; DeiT,
            DINOv2 and CLIP use other values.
        num_classes: number of outputs of a new head; None keeps the head in `source`.
        drop_path, backend: as in `NaViTConfig`.
        prefix: read only the names that start with it, such as "visual.trunk.".

    Returns:
        The model in evaluation mode, in float32. Positions of the class token and the registers are added to the
        tokens, and the latent query of attention pooling is projected, because neither depends on the image.

    Raises:
        ValueError: a name has no counterpart, a name is missing, a shape does not fit, or an argument is missing.

    >>> model = NaViT(NaViTConfig(num_classes=7, width=48, depth=1, position="grid", pooling="cls"))
    >>> weights = to_timm(model)
    >>> weights["pos_embed"].shape
    torch.Size([1, 257, 48])
    >>> from_timm({name: value for name, value in weights.items() if name != "norm.bias"}, heads=3)
    Traceback (most recent call last):
    ValueError: the state dict does not fit: norm.bias is missing
    """
    theirs = read_weights(source, prefix)
    refuse(theirs, NO_PLACE)
    layout = layout_of(theirs)
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
        heads=_heads(theirs, width, heads),
        patch_size=patch_size,
        patch_resize=patch_resize,
        channels=channels,
        mlp_ratio=mlp_ratio(len(hidden), width),
        **_position(theirs, layout, rope_base),
        position_resize=position_resize,
        registers=prefix_tokens(theirs, layout) - (pooling == "cls"),
        pooling=pooling,
        last_norm=_last_norm(theirs),
        bias=True,
        qkv_bias=any(re.fullmatch(r"blocks\.\d+\.attn\.qkv\.bias", name) for name in theirs),
        layer_scale=1e-5 if any(name.endswith(".ls1.gamma") for name in theirs) else None,
        gelu=gelu,
        norm_eps=norm_eps,
        qk_norm=any(".q_norm." in name for name in theirs if name.startswith("blocks.")),
        drop_path=drop_path,
        mean=mean,
        std=std,
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
        layout = layout_of(original)
    supported = {"grid"} if layout.kind == "vit" else {"grid", "fractional", "rope"}
    if config.position not in supported or (config.position == "fractional" and config.combine != "add"):
        raise ValueError(
            f"position is {config.position!r} ({config.combine!r}), which timm's {layout.kind} does not have; it has "
            f"{', '.join(sorted(supported))}" + (" (fractional only added)" if "fractional" in supported else "")
        )
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


def _position(theirs: Mapping[str, torch.Tensor], layout: Layout, rope_base: float | None) -> dict[str, Any]:
    table, column, row = (f"{layout.token}pos_embed{axis}" for axis in ("", "_x", "_y"))
    learned = [name for name in (table, column, row) if name in theirs]
    if rope_base is not None:
        if learned or layout.kind == "vit":
            reason = f"has {learned[0]}" if learned else "is of a VisionTransformer, which has no rope"
            raise ValueError(f"rope_base is {rope_base}, but the state dict {reason}; leave rope_base out")
        return {"position": "rope", "rope_base": rope_base}
    if table in theirs:
        shape = tuple(require(theirs, table, (3,) if layout.kind == "vit" else (4,), "the position table").shape)
        tokens = prefix_tokens(theirs, layout) if layout.prefix_positions else 0
        side = side_of(shape[1] - tokens) if layout.kind == "vit" else shape[1] if shape[1] == shape[2] else None
        if side is None:
            raise ValueError(
                f"{table} has shape {shape}, which is not a square grid of positions; only square grids map"
            )
        return {"position": "grid", "position_grid": side}
    if learned:
        meaning = "a position table of one axis, (1, G, D)"
        lengths = [require(theirs, name, (3,), meaning).shape[1] for name in (row, column)]
        if lengths[0] != lengths[1]:
            raise ValueError(f"{row} and {column} have {lengths[0]} and {lengths[1]} rows; the numbers must be equal")
        return {"position": "fractional", "position_grid": lengths[0]}
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
