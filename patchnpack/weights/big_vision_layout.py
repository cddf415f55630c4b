"""Convert between the weight names and shapes of big_vision's ViTs and those of a `NaViT`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from patchnpack.models import NaViTConfig
from patchnpack.weights.state_dicts import Weights, outline

# P patch size, C channels, D width, H heads, E width of a head, G side of the position table

ATTENTION, MLP, POOL = "MultiHeadDotProductAttention_0", "MlpBlock_0", "MAPHead_0"
_PARTS = {
    "norm1": ["LayerNorm_0"],
    "qkv": [f"{ATTENTION}/query", f"{ATTENTION}/key", f"{ATTENTION}/value"],
    "kv": [f"{ATTENTION}/key", f"{ATTENTION}/value"],
    "out": [f"{ATTENTION}/out"],
    "norm": ["LayerNorm_0"],
    "norm2": ["LayerNorm_1"],
    "up": [f"{MLP}/Dense_0"],
    "down": [f"{MLP}/Dense_1"],
}
_SPECIAL = ("patch_embed.weight", "pos_embed.table", "prefix", "pool.query")


def _modules(name: str) -> list[str]:
    """The names in big_vision of a `NaViT` module; big_vision separates queries, keys and values."""
    match name.split("."):
        case ["blocks", number, part]:
            return [f"Transformer/encoderblock_{number}/{theirs}" for theirs in _PARTS[part]]
        case ["pool", part]:
            return [f"{POOL}/{theirs}" for theirs in _PARTS[part]]
    return [{"norm": "Transformer/encoder_norm", "patch_embed": "embedding"}.get(name, name)]


def _plain(ours: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, str, list[str]]]:
    """Yield each weight of a module with the last part of the module's name and its names in big_vision."""
    for name, value in ours.items():
        if name not in _SPECIAL:
            module, leaf = name.rsplit(".", 1)
            leaf = "bias" if leaf == "bias" else "kernel" if value.ndim == 2 else "scale"
            yield name, module.rsplit(".", 1)[-1], [f"{theirs}/{leaf}" for theirs in _modules(module)]


def lay_out(ours: Mapping[str, torch.Tensor], config: NaViTConfig, naflex: bool) -> Weights:
    """Convert weights of a `NaViT` to the names and shapes of big_vision."""
    D, H, P = config.width, config.heads, config.patch_size
    theirs: Weights = {}
    for name, part, names in _plain(ours):
        for their_name, value in zip(names, ours[name].chunk(len(names)), strict=True):
            value = value.T if value.ndim == 2 else value
            if part in ("qkv", "kv"):
                value = value.unflatten(-1, (H, -1))
            elif part == "out" and value.ndim == 2:
                value = value.unflatten(0, (H, -1))
            theirs[their_name] = value
    patch = ours["patch_embed.weight"].T
    theirs["embedding/kernel"] = patch if naflex else patch.unflatten(0, (P, P, -1))
    table = ours["pos_embed.table"]
    theirs["pos_embedding"] = table if naflex else table.flatten(0, 1)[None]
    if "prefix" in ours:
        theirs["cls"] = ours["prefix"][None]
    if "pool.query" in ours:
        query = ours["pool.query"]
        theirs[f"{POOL}/probe"] = query.flatten()[None, None]
        identity = torch.eye(D, device=query.device, dtype=query.dtype)
        theirs[f"{POOL}/{ATTENTION}/query/kernel"] = identity.unflatten(1, (H, -1))
        theirs[f"{POOL}/{ATTENTION}/query/bias"] = torch.zeros_like(query)
    return theirs


def take_in(theirs: Mapping[str, torch.Tensor], config: NaViTConfig) -> Weights:
    """Convert weights of big_vision to those of a `NaViT`; the inverse of `lay_out`."""
    D, ours, shapes = config.width, {}, outline(config)
    for name, _, names in _plain(shapes):
        inputs = shapes[name].shape[1:]  # one dimension for a matrix, none for biases and norms
        parts = [theirs[part].reshape(*inputs, -1) for part in names]
        ours[name] = torch.cat([part.T if part.ndim == 2 else part for part in parts])
    ours["patch_embed.weight"] = theirs["embedding/kernel"].reshape(-1, D).T
    ours["pos_embed.table"] = theirs["pos_embedding"].reshape(*config.position_shape, D)
    if "cls" in theirs:
        ours["prefix"] = theirs["cls"][0]
    if f"{POOL}/probe" in theirs:
        probe, kernel, bias = (
            theirs[f"{POOL}/{part}"].double()
            for part in ("probe", f"{ATTENTION}/query/kernel", f"{ATTENTION}/query/bias")
        )
        ours["pool.query"] = (torch.einsum("d,dhe->he", probe[0, 0], kernel) + bias).float()
    return ours
