"""Convert between the weight names and shapes of timm's ViTs and those of a `NaViT`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch

from patchnpack.models import NaViTConfig
from patchnpack.weights.state_dicts import Weights, has, outline, require, side_of

# P patch size, C channels, D width, H heads, E width of a head, G side of a position table, R prefix tokens

Kind = Literal["vit", "naflexvit"]

_BLOCK = {
    "qkv": "attn.qkv",
    "q_norm": "attn.q_norm",
    "k_norm": "attn.k_norm",
    "out": "attn.proj",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
    "scale1": "ls1.gamma",
    "scale2": "ls2.gamma",
}
_POOL = {"out": "proj", "up": "mlp.fc1", "down": "mlp.fc2"}

NO_PLACE = (
    (r"^norm_pre\.", "a norm before the blocks, as in CLIP"),
    (r"^(dist_token|head_dist\.)", "DeiT's distillation token"),
    (r"^(patch_embed|embeds)\.(norm|backbone)", "a norm or a backbone network in the patch embedding"),
    (r"^rope\.|rope_freqs", "learned rope frequencies; only axial rope, which has no weights, maps"),
    (r"rel_pos|relative_position", "relative position biases"),
    (r"\.(q_proj|k_proj|v_proj|q_bias|v_bias)\b", "separate queries, keys and values, as in EVA"),
    (r"\.attn\.(norm|gate)", "a norm or a gate inside attention"),
    (r"\.mlp\.(norm|fc1_g|fc1_x|w1|w2|w3)\b", "a gate or a norm inside the MLP"),
    (r"\.gamma_[12]$", "layer scale named as in EVA and BEiT"),
    (r"^(pre_logits|fc)\.", "a layer between pooling and head"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Properties of a timm state dict that a `NaViTConfig` does not hold.

    Attributes:
        kind: the model whose names it uses.
        conv: whether the patch embedding is a convolution (D, C, P, P) rather than a matrix (D, P*P*C).
        class_token: whether the first prefix token is `cls_token`; the others are `reg_token`.
        prefix_positions: whether `pos_embed` starts with rows for the prefix tokens.
    """

    kind: Kind
    conv: bool
    class_token: bool
    prefix_positions: bool

    @property
    def stem(self) -> str:
        """Name of the patch embedding."""
        return "patch_embed.proj" if self.kind == "vit" else "embeds.proj"

    @property
    def token(self) -> str:
        """Prefix of the names of tokens and positions."""
        return "" if self.kind == "vit" else "embeds."


def layout_of(theirs: Mapping[str, torch.Tensor], grid: tuple[int, int] | None = None) -> Layout:
    """Infer the layout of a state dict from its names and shapes.

    `grid` is the (rows, columns) of `pos_embed`; None assumes a square.
    """
    kind: Kind = "naflexvit" if has(theirs, "embeds.") else "vit"
    layout = Layout(
        kind=kind,
        conv=kind == "vit" or ("embeds.proj.weight" in theirs and theirs["embeds.proj.weight"].ndim == 4),
        class_token=("cls_token" if kind == "vit" else "embeds.cls_token") in theirs,
        prefix_positions=False,
    )
    tokens = prefix_tokens(theirs, layout)
    if kind == "naflexvit" or "pos_embed" not in theirs:
        return layout
    rows = require(theirs, "pos_embed", (3,), "the position table, (1, rows, D)").shape[1]
    if grid is not None:
        extra = rows - grid[0] * grid[1]
        if extra not in (0, tokens):
            raise ValueError(
                f"pos_embed has {rows} rows, but a grid of {grid[0]}x{grid[1]} has {grid[0] * grid[1]} positions, or "
                f"{grid[0] * grid[1] + tokens} with those of {tokens} tokens; give grid=(rows, columns) of the table"
            )
        return replace(layout, prefix_positions=extra > 0)
    if not tokens:
        return layout
    alone, with_tokens = side_of(rows), side_of(rows - tokens) if rows > tokens else None
    if alone and with_tokens:
        raise ValueError(
            f"pos_embed has {rows} rows, which may be {alone}x{alone} patches, or {tokens} tokens and "
            f"{with_tokens}x{with_tokens} patches; give grid=(rows, columns)"
        )
    return replace(layout, prefix_positions=with_tokens is not None)


def prefix_tokens(theirs: Mapping[str, torch.Tensor], layout: Layout) -> int:
    """Number of class and register tokens in a state dict."""
    registers = f"{layout.token}reg_token"
    if registers not in theirs:
        return int(layout.class_token)
    return layout.class_token + require(theirs, registers, (3,), "the registers, (1, R, D)").shape[1]


def _name(name: str, config: NaViTConfig, layout: Layout) -> str:
    """The name in timm of a `NaViT` weight that has the same shape there."""
    match name.split("."):
        case ["blocks", number, part, *rest]:
            return ".".join(["blocks", number, _BLOCK.get(part, part), *rest])
        case ["pool", part, *rest]:
            return ".".join(["attn_pool", _POOL.get(part, part), *rest])
        case ["norm", part]:
            return f"fc_norm.{part}" if config.last_norm == "pooled" else name
        case ["patch_embed", part]:
            return f"{layout.stem}.{part}"
    return name


_SPECIAL = ("patch_embed.weight", "pos_embed.table", "pos_embed.x", "pos_embed.y", "prefix", "pool.query")


def lay_out(ours: Mapping[str, torch.Tensor], config: NaViTConfig, layout: Layout) -> Weights:
    """Convert weights of a `NaViT` to the names and shapes of timm."""
    theirs = {_name(name, config, layout): value for name, value in ours.items() if name not in _SPECIAL}
    patch, D = ours["patch_embed.weight"], config.width
    if layout.conv:
        patch = patch.unflatten(1, (config.patch_size, config.patch_size, -1)).permute(0, 3, 1, 2)
    theirs[f"{layout.stem}.weight"] = patch
    if "prefix" in ours:
        tokens = ours["prefix"][None]
        if layout.class_token:
            theirs[f"{layout.token}cls_token"] = tokens[:, :1]
        if tokens.shape[1] > layout.class_token:
            theirs[f"{layout.token}reg_token"] = tokens[:, layout.class_token :]
    if "pos_embed.table" in ours:
        table = ours["pos_embed.table"][None]
        if layout.kind == "vit":
            table = table.flatten(1, 2)
            if layout.prefix_positions and "prefix" in ours:
                table = torch.cat([torch.zeros_like(ours["prefix"])[None], table], 1)
        theirs[f"{layout.token}pos_embed"] = table
    for axis in "xy":
        if f"pos_embed.{axis}" in ours:
            theirs[f"{layout.token}pos_embed_{axis}"] = ours[f"pos_embed.{axis}"][None]
    if "pool.query" in ours:
        query = ours["pool.query"].flatten()
        theirs["attn_pool.latent"] = query[None, None]
        theirs["attn_pool.q.weight"] = torch.eye(D, device=query.device, dtype=query.dtype)
        theirs["attn_pool.q.bias"] = torch.zeros_like(query)
    return theirs


def take_in(theirs: Mapping[str, torch.Tensor], config: NaViTConfig, layout: Layout) -> Weights:
    """Convert weights of timm to those of a `NaViT`; the inverse of `lay_out`."""
    ours: Weights = {}
    for name in outline(config):
        if name not in _SPECIAL:
            ours[name] = theirs[_name(name, config, layout)]
    patch = theirs[f"{layout.stem}.weight"]
    ours["patch_embed.weight"] = patch.permute(0, 2, 3, 1).flatten(1) if layout.conv else patch
    tokens = [theirs[name] for part in ("cls_token", "reg_token") if (name := layout.token + part) in theirs]
    table = theirs.get(f"{layout.token}pos_embed")
    if tokens:
        prefix = torch.cat(tokens, 1)
        if table is not None and layout.prefix_positions:
            prefix, table = prefix + table[:, : prefix.shape[1]], table[:, prefix.shape[1] :]
        ours["prefix"] = prefix[0]
    if table is not None:
        ours["pos_embed.table"] = table.reshape(*config.position_shape, -1)
    for axis in "xy":
        if (name := f"{layout.token}pos_embed_{axis}") in theirs:
            ours[f"pos_embed.{axis}"] = theirs[name][0]
    if "attn_pool.latent" in theirs:
        latent, weight, bias = (theirs[f"attn_pool.{part}"].double() for part in ("latent", "q.weight", "q.bias"))
        ours["pool.query"] = (weight @ latent[0, 0] + bias).float().view(config.heads, -1)
    return ours
