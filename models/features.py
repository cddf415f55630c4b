"""Features of a `NaViT` for other heads: tokens, pooled vectors and feature maps."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from patchnpack.packer.batch.packed_batch import PackedBatch

# B packs, K maximum images per pack, T valid tokens of the batch, N images of the batch, D width


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Features:
    """The features that `NaViT.features` returns.

    Attributes:
        tokens: (T, D), the valid tokens after the last norm, in the order of `PackedBatch.token_index`.
        cu_seqlens: int32 (N + 1,), start of each image, or in scope "sample" of each sample, in `tokens`.
        pooled: (B, K, D), input of the head; 0 where there is no image, or no sample.
    """

    tokens: torch.Tensor
    cu_seqlens: torch.Tensor
    pooled: torch.Tensor


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TokenMap:
    """The tokens of one image, arranged like its patches.

    Attributes:
        features: (gh, gw, D); 0 where the token was dropped.
        mask: bool (gh, gw), True where there is a token.
    """

    features: torch.Tensor
    mask: torch.Tensor


def token_maps(tokens: torch.Tensor, batch: PackedBatch) -> list[TokenMap]:
    """Arrange token features (T, D) as one map per image, in the order of `batch.images()`.

    On a GPU this synchronises once, for the grids. Gradients pass through.

    Raises:
        ValueError: `tokens` does not have one row per valid token of the batch.
    """
    if len(tokens) != batch.num_tokens:
        raise ValueError(
            f"there are {len(tokens)} token features for a batch of {batch.num_tokens} tokens; give "
            "NaViT.features(batch).tokens, which has one row per valid token"
        )
    coords = batch.coords.flatten(0, 1)[batch.token_index].long().split(batch.lengths)
    maps = []
    for (gw, gh), image, xy in zip(
        batch.grids[batch.image_mask].tolist(), tokens.split(batch.lengths), coords, strict=True
    ):
        place = xy[:, 1] * gw + xy[:, 0]
        features = tokens.new_zeros(gh * gw, tokens.shape[1]).index_copy(0, place, image)
        mask = torch.zeros(gh * gw, dtype=torch.bool, device=tokens.device).index_fill(0, place, True)
        maps.append(TokenMap(features=features.unflatten(0, (gh, gw)), mask=mask.unflatten(0, (gh, gw))))
    return maps
