"""Lengths that depend on no data: the index of a batch's tokens and images, padded for CUDA graphs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from patchnpack.packer.checks import check_whole

# B packs, L token slots per pack, K maximum images per pack


def pad_index(fields: Mapping[str, Any], max_images: int | None, max_tokens: int | None) -> dict[str, Any]:
    """The fields of `PackedBatch.padded`, from those of a batch; None is B*K images, or B*L tokens."""
    (B, L), K = fields["segment_ids"].shape, fields["image_mask"].shape[1]
    if fields["seqlen_bound"]:
        raise ValueError("the batch is padded already; call padded() on the batch that the loader yields")
    images, tokens = B * K if max_images is None else max_images, B * L if max_tokens is None else max_tokens
    held = len(fields["lengths"]), sum(fields["lengths"])
    for name, value, least in zip(("max_images", "max_tokens"), (images, tokens), held, strict=True):
        check_whole(name, value)
        if value < least:
            raise ValueError(f"{name} is {value}, but the batch holds {least}; give at least {least}, or None")
    starts = fields["sample_starts"]
    return dict(fields) | {
        "cu_seqlens": _repeat_last(fields["cu_seqlens"], images + 1),
        "token_index": F.pad(fields["token_index"], (0, tokens - held[1])),
        "sample_starts": None if starts is None else _repeat_last(starts, images + 1),
        "seqlen_bound": min(L, tokens),
    }


def _repeat_last(offsets: torch.Tensor, length: int) -> torch.Tensor:
    return torch.cat([offsets, offsets[-1:].expand(length - len(offsets))])
