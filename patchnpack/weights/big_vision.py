"""Load and save weights of big_vision: ViT, NaFlex ViT, and the image towers of SigLIP and SigLIP 2."""

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

_OLD_NAMES = {  # in checkpoints from before 2022, such as AugReg
    "MultiHeadDotProductAttention_1/": f"{ATTENTION}/",
    "LayerNorm_2/": "LayerNorm_1/",
    "MlpBlock_3/": f"{MLP}/",
    "Transformer/posembed_input/pos_embedding": "pos_embedding",
    "Transformer/pos_embedding": "pos_embedding",
}
_NORM_EPS = 1e-6  # the default of flax, which big_vision keeps

NO_PLACE = (
    (r"^pre_logits/", "a tanh layer before the head, from rep_size"),
    (r"^patchln_", "a norm in the patch embedding"),
)


def from_big_vision(
    source: Source,
    *,
    pooling: str | None = None,
    grid: tuple[int, int] | None = None,
    sincos_grid: int | None = None,
    gelu: str = "tanh",
    mean: tuple[float, ...] = (0.5,),
    std: tuple[float, ...] = (0.5,),
    num_classes: int | None = None,
    drop_path: float = 0.0,
    backend: str = "auto",
    prefix: str = "",
) -> NaViT:
    """Load weights of big_vision's `vit` or `naflex_vit` into a `NaViT` with the same outputs.

    All other properties follow from names and shapes, including the number of heads.

    Args:
        source: an .npz file, or a mapping of arrays, flat ("Transformer/encoderblock_0/LayerNorm_0/scale") or nested.
            Blocks may be stacked, as `scan=True` saves them, and names may be those from before 2022. "params/",
            "opt/target/" and "img/" are removed if all names start with them.
        pooling: None infers it: attention (`pool_type="map"`) with a `MAPHead_0`, cls ("tok") with a `cls`, else mean
            ("gap"). `naflex_vit` also has "max".
        grid: (rows, columns) of the position table of a `vit`; None assumes a square. `naflex_vit` stores it.
        sincos_grid: patches per side at which a model with `posemb="sincos2d"` was trained. The file of such a model
            holds no positions; they are computed and become an ordinary table.
        gelu: "tanh", the default of `flax.linen.gelu`.
        mean, std: 0.5 is big_vision's `value_range(-1, 1)`.
        num_classes: number of outputs of a new head; None keeps the head in `source`.
        drop_path, backend: as in `NaViTConfig`.
        prefix: read only the names that start with it, such as "params/img/" of a SigLIP checkpoint.

    Returns:
        The model in evaluation mode, in float32. It resizes positions to other grids with antialiasing, as `naflex_vit`
        and SigLIP 2 do (`position_resize="bilinear"`).

    Raises:
        ValueError: a name has no counterpart, a name is missing, or a shape does not fit.

    >>> block = {"depth": 1, "qk_norm": False, "norm_eps": 1e-6, "gelu": "tanh"}
    >>> weights = to_big_vision(NaViT(NaViTConfig(num_classes=7, width=48, position="grid", **block)))
    >>> weights["Transformer/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel"].shape
    (48, 3, 16)
    >>> from_big_vision(weights).config.heads
    3
    """
    theirs = _current_names(read_weights(_flat(source) if isinstance(source, Mapping) else source, prefix))
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
            f"embedding/kernel has shape {tuple(stem.shape)}; it must hold square patches, in RGB for NaFlex"
        )
    if sincos_grid is not None:
        if "pos_embedding" in theirs:
            raise ValueError(
                f"sincos_grid is {sincos_grid}, but the state dict has pos_embedding; leave sincos_grid out"
            )
        theirs["pos_embedding"] = _sincos(sincos_grid, D)[None]
    elif "pos_embedding" not in theirs:
        raise ValueError(
            "pos_embedding is missing; for a model with posemb='sincos2d' give sincos_grid, the image size divided by "
            "the patch size, such as 14 for 224 and 16"
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
        position_grid=_fold_class_position(theirs, naflex, grid),
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
    """Convert the weights of a `NaViT` to the names and shapes of big_vision, for `np.savez(path, **weights)`.

    The big_vision model with the same sizes and `pool_type` has the same outputs. The query of attention pooling
    becomes the probe, with the identity as projection. Missing biases are 0.

    Args:
        model: a model with position "grid", gelu "tanh", norm_eps 1e-6, a last norm of the tokens, and without QK-norm,
            registers and LayerScale, which big_vision does not have.
        kind: "vit", or "naflex" for `proj/image_text/naflex_vit`, whose patch embedding is a matrix.

    Returns:
        A dict from flat names to float arrays that share no memory with the model.

    Raises:
        ValueError: big_vision has no such model; the message lists every difference.
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
        "block_norm": ("pre",),
        "qk_norm": (False,),
        "registers": (0,),
        "layer_scale": (None,),
        "scope": ("image",),
        "time": ("none",),
        **({"position_resize": ("bilinear",), "channels": (3,)} if kind == "naflex" else {}),
        "position_antialias": (True,),
        "position_align_corners": (False,),
        "position_keep_aspect": (False,),
    }
    differs = [
        f"{name} is {getattr(config, name)!r} and must be {' or '.join(map(repr, values))}"
        for name, values in wanted.items()
        if getattr(config, name) not in values
    ]
    if differs:
        raise ValueError(f"big_vision's {kind} cannot represent this model: {'; '.join(differs)}")
    theirs = lay_out(with_biases(model), config, kind == "naflex")
    return {name: value.float().cpu().numpy().copy() for name, value in theirs.items()}


def _flat(tree: Mapping[str, Any], lead: str = "") -> dict[str, Any]:
    """Flatten nested mappings; names are joined by slashes."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{lead}{name}/") if isinstance(value, Mapping) else {f"{lead}{name}": value}
    return flat


def _current_names(weights: Weights) -> Weights:
    """Remove prefixes that all names share, rename old names, and split stacked blocks."""
    for lead in ("params/", "opt/target/", "img/"):
        if all(name.startswith(lead) for name in weights):
            weights = {name.removeprefix(lead): value for name, value in weights.items()}
    current: Weights = {}
    for name, value in weights.items():
        new = name
        for old, replacement in _OLD_NAMES.items():
            new = new.replace(old, replacement)
        parts = {new: value}
        if value.ndim and (stacked := re.fullmatch(r"Transformer/encoderblock/(.+)", new)):
            parts = {f"Transformer/encoderblock_{i}/{stacked[1]}": layer for i, layer in enumerate(value)}
        if duplicates := parts.keys() & current.keys():
            raise ValueError(f"{name} is an old name of {min(duplicates)}, which exists too; leave one of them out")
        current |= parts
    return current


def _point_to_tower(weights: Weights) -> None:
    """Raise ValueError with the prefix to give if the ViT is nested in a larger model."""
    towers = [name.removesuffix("embedding/kernel") for name in weights if name.endswith("/embedding/kernel")]
    if towers and "embedding/kernel" not in weights:
        raise ValueError(
            f"the state dict holds more than a ViT, which lies under {' or '.join(towers)}; give prefix={towers[0]!r} "
            "to read only that part"
        )


def _sincos(side: int, width: int) -> torch.Tensor:
    """Compute `posemb="sincos2d"` positions (G*G, D): sines and cosines of the column, then the row (MoCo v3)."""
    if side < 1 or width % 4 or width < 8:
        raise ValueError(f"sincos_grid is {side} at width {width}; it must be at least 1, and the width 8, 12, 16 ...")
    frequencies = 10_000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4 - 1))
    angles = torch.arange(side)[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], 1)
    return torch.cat([axis.repeat(side, 1), axis.repeat_interleave(side, 0)], 1).float()


def _fold_class_position(theirs: Weights, naflex: bool, grid: tuple[int, int] | None) -> tuple[int, int]:
    """Return the shape of the position table; in old checkpoints, add the class token's position to the token."""
    table = require(theirs, "pos_embedding", (3,), "the position table, (G, G, D) in NaFlex, else (1, G*G, D)")
    shape = tuple(table.shape)
    if naflex:
        if grid not in (None, shape[:2]):
            raise ValueError(f"grid is {grid}, but pos_embedding has shape {shape}; leave grid out")
        return shape[0], shape[1]
    rows = shape[1] if shape[0] == 1 else 0
    tokens = 1 if "cls" in theirs else 0
    for extra in dict.fromkeys((0, tokens)):
        side = side_of(rows - extra)
        found = grid or (side and (side, side))
        if found and found[0] * found[1] == rows - extra:
            if extra:
                theirs["cls"], theirs["pos_embedding"] = theirs["cls"] + table[:, :1], table[:, 1:]
            return found
    wanted = "which is not a square grid" if grid is None else f"which is not a grid of {grid[0]}x{grid[1]}"
    raise ValueError(
        f"pos_embedding has shape {shape}, {wanted}; give grid=(rows, columns), the image size divided by the patch "
        "size"
    )
