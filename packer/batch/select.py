"""Selected images of a batch: the batch in which the others are padding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from patchnpack.packer.batch.samples import count_samples

# B packs, L token slots per pack, K maximum images per pack, N images of the whole batch


def select_images(fields: Mapping[str, Any], mask: torch.Tensor) -> dict[str, Any]:
    """The fields of `PackedBatch.select`, from those of a batch and bool (B, K)."""
    image_mask = fields["image_mask"]
    device, (B, K) = image_mask.device, image_mask.shape
    if mask.shape != image_mask.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"mask is {str(mask.dtype).removeprefix('torch.')} {tuple(mask.shape)}; it must be bool {(B, K)}, one "
            "value per column of the batch, such as batch.frames == 0"
        )
    kept_BK = mask.to(device) & image_mask
    place_BK = kept_BK.int().argsort(dim=1, descending=True, stable=True)  # columns close ranks, in order
    valid_BK = kept_BK.gather(1, place_BK)
    number_BK = torch.where(kept_BK, kept_BK.cumsum(1), 0).int()
    segment_ids = F.pad(number_BK, (1, 0)).gather(1, fields["segment_ids"].long())
    padding = segment_ids[..., None] == 0

    def columns(name: str, absent: float) -> torch.Tensor:
        values: torch.Tensor = fields[name]
        tail = (1,) * (values.ndim - 2)
        taken = values.gather(1, place_BK.view(B, K, *tail).expand(B, K, *values.shape[2:]))
        return taken.masked_fill(~valid_BK.view(B, K, *tail), absent)

    samples = columns("samples", 0)
    changes = valid_BK & (samples != F.pad(samples[:, :-1], (1, 0)))
    samples = torch.where(valid_BK, changes.cumsum(1), 0).int()

    kept, present = kept_BK.cpu().numpy(), image_mask.cpu().numpy()
    lengths = np.array(fields["lengths"], np.int64)
    kept_N = kept[present]
    tokens = torch.from_numpy(np.flatnonzero(np.repeat(kept_N, lengths))).to(device)
    sizes, starts = count_samples(samples.cpu().numpy())

    def listed(values: list[list[Any]]) -> list[list[Any]]:
        return [[pack[j] for j in np.flatnonzero(row)] for pack, row in zip(values, kept, strict=True)]

    return {
        **fields,
        "patches": fields["patches"].masked_fill(padding, 0),
        "segment_ids": segment_ids,
        "coords": fields["coords"].masked_fill(padding, 0),
        "grids": columns("grids", 0),
        "image_sizes": columns("image_sizes", 0),
        "image_mask": valid_BK,
        "labels": columns("labels", torch.nan if fields["labels"].is_floating_point() else -100),
        "rows": columns("rows", -1),
        "samples": samples,
        "frames": columns("frames", 0),
        "keys": listed(fields["keys"]),
        "extras": {name: listed(values) for name, values in fields["extras"].items()},
        "cu_seqlens": torch.from_numpy(np.append(0, lengths[kept_N].cumsum()).astype(np.int32)).to(device),
        "token_index": fields["token_index"][tokens],
        "lengths": lengths[kept_N].tolist(),
        "sample_sizes": sizes,
        "sample_starts": None if starts is None else starts.to(device),
        "seqlen_bound": 0,
    }
