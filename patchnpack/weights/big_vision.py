"""Weights of big_vision: its ViT and NaFlex ViT, and the image towers of SigLIP and SigLIP 2, as npz files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch

from patchnpack.models import NaViT, NaViTConfig
from patchnpack.weights.big_vision_layout import ATTENTION, MLP, POOL, lay_out, take_in
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

# P patch size, C channels, D width, H heads, E width of a head, G side of the position table

_OLD_NAMES = {  # of checkpoints from before 2022, among them those of AugReg
    "MultiHeadDotProductAttention_1/": f"{ATTENTION}/",
    "LayerNorm_2/": "LayerNorm_1/",
    "MlpBlock_3/": f"{MLP}/",
    "Transformer/posembed_input/pos_embedding": "pos_embedding",
    "Transformer/pos_embedding": "pos_embedding",
}
_NORM_EPS = 1e-6  # flax's default, which big_vision keeps

NO_PLACE = (
    (r"^pre_logits/", "a tanh layer before the head, of rep_size"),
    (r"^patchln_", "a norm in the patch embedding"),
)


def from_big_vision(
    source: Source,
    *,
    pooling: str | None = None,
    sincos_grid: int | None = None,
    gelu: str = "tanh",
    mean: tuple[float, ...] = (0.5,),
    std: tuple[float, ...] = (0.5,),
    num_classes: int | None = None,
    drop_path: float = 0.0,
    backend: str = "auto",
    prefix: str = "",
) -> NaViT:
    """A `NaViT` with the weights of big_vision's `vit` or `naflex_vit`, and so with its outputs.

    Everything but the arguments follows from names and shapes, heads included.

    Args:
        source: an .npz file, or a mapping of arrays, flat ("Transformer/encoderblock_0/LayerNorm_0/scale") or nested.
            Blocks may be stacked, as `scan=True` leaves them, and names may be those from before 2022. "params/",
            "opt/target/" and "img/" come off where all names start with them.
        pooling: None is attention (`pool_type="map"`) where there is a `MAPHead_0`, cls ("tok") where there is a `cls`,
            else mean ("gap"); "max" is one of `naflex_vit`'s.
        sincos_grid: patches a side that a model with `posemb="sincos2d"` was trained at. Such a model has no positions
            in its file; they are computed, and are a table like others from then on.
        gelu: "tanh", which `flax.linen.gelu` computes by default.
        mean, std: 0.5 is big_vision's `value_range(-1, 1)`.
        num_classes: gives the model a new head of so many outputs in place of the one in `source`; None keeps that.
        drop_path, backend: as in `NaViTConfig`.
        prefix: of the names to take, such as "params/img/" of a SigLIP checkpoint; others are left alone.

    Returns:
        The model in evaluation mode, in float32. Positions are resized to other grids with antialias, as in
        `naflex_vit` and SigLIP 2 (`position_resize="bilinear"`).

    Raises:
        ValueError: names that have no place, names that are missing, shapes that do not fit.

    >>> block = {"depth": 1, "qk_norm": False, "norm_eps": 1e-6, "gelu": "tanh"}
    >>> weights = to_big_vision(NaViT(NaViTConfig(num_classes=7, width=48, position="grid", **block)))
    >>> weights["Transformer/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel"].shape
    (48, 3, 16)
    >>> from_big_vision(weights).config.heads
    3
    """
    theirs = _names_of_today(read_weights(_flat(source) if isinstance(source, Mapping) else source, prefix))
    _point_to_tower(theirs)
    refuse(theirs, NO_PLACE)
    stem = require(theirs, "embedding/kernel", (2, 4), "the patch embedding, (P, P, C, D) or (P*P*3, D)")
    first = "Transformer/encoderblock_0"
    D, heads, _ = require(theirs, f"{first}/{ATTENTION}/query/kernel", (3,), "the first queries, (D, H, E)").shape
    hidden = require(theirs, f"{first}/{MLP}/Dense_0/kernel", (2,), "an MLP's first matrix, (D, hidden)")
    naflex = stem.ndim == 2
    channels, P = (3, side_of(len(stem) // 3)) if naflex else (stem.shape[2], stem.shape[0])
    if P is None or stem.shape[:-1].numel() != P * P * channels:
        raise ValueError(
            f"embedding/kernel has shape {tuple(stem.shape)}; it must hold square patches, of RGB in NaFlex"
        )
    if sincos_grid is not None:
        if "pos_embedding" in theirs:
            raise ValueError(f"sincos_grid is {sincos_grid}, but the state dict has a pos_embedding; leave it out")
        theirs["pos_embedding"] = _sincos(sincos_grid, D)[None]
    elif "pos_embedding" not in theirs:
        raise ValueError(
            "pos_embedding is missing; for a model with posemb='sincos2d' give sincos_grid, its image size over its "
            "patch size, such as 14 for 224 and 16"
        )
    if pooling is None:
        pooling = "attention" if has(theirs, f"{POOL}/") else "cls" if "cls" in theirs else "mean"
    head = has(theirs, "head/") and require(theirs, "head/kernel", (2,), "the head, (D, classes)")
    config = NaViTConfig(
        num_classes=0 if head is False else head.shape[1],
        width=D,
        depth=depth_of(theirs, r"Transformer/encoderblock_(\d+)/"),
        heads=heads,
        patch_size=P,
        channels=channels,
        mlp_ratio=mlp_ratio(hidden.shape[1], D),
        position="grid",
        position_grid=_fold_class_position(theirs, naflex),
        pooling=pooling,
        bias=True,
        gelu=gelu,
        norm_eps=_NORM_EPS,
        qk_norm=False,
        drop_path=drop_path,
        mean=mean,
        std=std,
        backend=backend,
    )
    check_fit(theirs, lay_out(outline(config), config, naflex))
    weights = take_in(theirs, config)
    return build(config if num_classes is None else replace(config, num_classes=num_classes), weights, num_classes)


def to_big_vision(model: NaViT, kind: Literal["vit", "naflex"] = "vit") -> dict[str, np.ndarray]:
    """The weights of a `NaViT` under the names and in the shapes of big_vision, for `np.savez(path, **weights)`.

    Its model, made with the same sizes and `pool_type`, then gives the same outputs. The query of attention pooling
    becomes the probe, with the identity as projection. Biases that the model is without are 0.

    Args:
        model: with what big_vision has: position "grid", gelu "tanh", norm_eps 1e-6, a last norm of the tokens, and no
            QK-norm, registers or LayerScale.
        kind: "vit", or "naflex" for `proj/image_text/naflex_vit`, whose patch embedding is a matrix.

    Returns:
        Flat names to float arrays, not shared with the model.

    Raises:
        ValueError: big_vision has no such model; everything that differs is named.
    """
    if kind not in ("vit", "naflex"):
        raise ValueError(f"kind is {kind!r}; choose 'vit' or 'naflex'")
    config = model.config
    wanted: dict[str, tuple[Any, ...]] = {
        "position": ("grid",),
        "pooling": ("attention", "mean", "cls") if kind == "vit" else ("attention", "mean", "max"),
        "gelu": ("tanh",),
        "norm_eps": (_NORM_EPS,),
        "last_norm": ("tokens",),
        "qk_norm": (False,),
        "registers": (0,),
        "layer_scale": (None,),
        **({"position_resize": ("bilinear",), "channels": (3,)} if kind == "naflex" else {}),
    }
    differs = [
        f"{name} is {getattr(config, name)!r}, there {' or '.join(map(repr, values))}"
        for name, values in wanted.items()
        if getattr(config, name) not in values
    ]
    if differs:
        raise ValueError(f"big_vision's {kind} has no such model: {'; '.join(differs)}")
    theirs = lay_out(with_biases(model), config, kind == "naflex")
    return {name: value.float().cpu().numpy().copy() for name, value in theirs.items()}


def _flat(tree: Mapping[str, Any], lead: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{lead}{name}/") if isinstance(value, Mapping) else {f"{lead}{name}": value}
    return flat


def _names_of_today(weights: Weights) -> Weights:
    """Without what all names start with, under today's names, and with stacked blocks taken apart."""
    for lead in ("params/", "opt/target/", "img/"):
        if all(name.startswith(lead) for name in weights):
            weights = {name.removeprefix(lead): value for name, value in weights.items()}
    today: Weights = {}
    for name, value in weights.items():
        new = name
        for old, replacement in _OLD_NAMES.items():
            new = new.replace(old, replacement)
        parts = {new: value}
        if value.ndim and (stacked := re.fullmatch(r"Transformer/encoderblock/(.+)", new)):
            parts = {f"Transformer/encoderblock_{i}/{stacked[1]}": layer for i, layer in enumerate(value)}
        if twice := parts.keys() & today.keys():
            raise ValueError(f"{name} is another name of {min(twice)}, which is there too; leave one of them out")
        today |= parts
    return today


def _point_to_tower(weights: Weights) -> None:
    towers = [name.removesuffix("embedding/kernel") for name in weights if name.endswith("/embedding/kernel")]
    if towers and "embedding/kernel" not in weights:
        raise ValueError(
            f"the state dict holds more than a ViT; there is one under {', '.join(towers)}: give prefix={towers[0]!r}, "
            "and the rest is left alone"
        )


def _sincos(side: int, width: int) -> torch.Tensor:
    """Fixed positions (G*G, D) of `posemb="sincos2d"`: sines and cosines of the column, then of the row (MoCo v3)."""
    if side < 1 or width % 4 or width < 8:
        raise ValueError(f"sincos_grid is {side} at width {width}; it must be at least 1, at a width of 8, 12, 16 ...")
    frequencies = 10_000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4 - 1))
    angles = torch.arange(side)[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], 1)
    return torch.cat([axis.repeat(side, 1), axis.repeat_interleave(side, 0)], 1).float()


def _fold_class_position(theirs: Weights, naflex: bool) -> int:
    """The side of the position table. A position of the class token, in old checkpoints, is added to that token."""
    table = require(theirs, "pos_embedding", (3,), "the position table, (G, G, D) in NaFlex, else (1, G*G, D)")
    rows = table.shape[:2].numel()
    side = side_of(rows)
    if side is None and "cls" in theirs and not naflex:
        side = side_of(rows - 1)
        theirs["cls"], theirs["pos_embedding"] = theirs["cls"] + table[:, :1], table[:, 1:]
    if side is None or (naflex and table.shape[0] != side):
        raise ValueError(f"pos_embedding has shape {tuple(table.shape)}, which is no square grid; only square ones map")
    return side
