"""Samples of several images in a batch: their counts, and the batch in which a segment is a whole sample."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from patchnpack.packer.batch.objects import PackedObjects

# B packs, L token slots per pack, K maximum images, and so samples, per pack; S samples of the whole batch


def one_image_samples(image_mask: np.ndarray) -> torch.Tensor:
    """`PackedBatch.samples` of packs whose samples hold one image each, int32 (B, K)."""
    return torch.from_numpy(image_mask * np.arange(1, image_mask.shape[1] + 1, dtype=np.int32))


def count_samples(samples: np.ndarray) -> tuple[list[list[int]] | None, torch.Tensor | None]:
    """`sample_sizes` and `sample_starts` of a batch, from its `samples`, int32 (B, K).

    >>> count_samples(np.array([[1, 1, 2], [1, 0, 0]]))
    ([[2, 1], [1]], tensor([0, 2, 3, 4]))
    """
    mask = samples > 0
    first = mask.copy()
    first[:, 1:] &= samples[:, 1:] != samples[:, :-1]
    assert (first.cumsum(1)[mask] == samples[mask]).all(), "samples of a pack must be numbered 1, 2, 3 ..., in order"
    if np.count_nonzero(first) == np.count_nonzero(mask):
        return None, None
    starts = np.append(np.flatnonzero(first[mask]), mask.sum())
    sizes = np.split(np.diff(starts), np.cumsum(first.sum(1))[:-1])
    return [size.tolist() for size in sizes], torch.from_numpy(starts)


def merge_samples(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `PackedBatch.by_sample`, from those of a batch with samples of several images."""
    samples, segment_BL, sizes = fields["samples"], fields["segment_ids"].long(), fields["sample_sizes"]
    (B, K), device = samples.shape, samples.device
    number_K = torch.arange(1, K + 1, dtype=torch.int32, device=device)
    belongs_BSK = samples[:, None] == number_K[:, None]
    mask_BS, first_BS = belongs_BSK.any(-1), belongs_BSK.int().argmax(-1)
    column_BS = first_BS + K * torch.arange(B, device=device)[:, None]

    down_BK = fields["grids"][..., 1]
    above_BK = down_BK.cumsum(1) - down_BK
    above_BK = above_BK - above_BK.gather(1, first_BS.gather(1, samples.long().clamp(min=1) - 1))
    coords = fields["coords"].clone()
    coords[..., 1] += F.pad(above_BK, (1, 0)).gather(1, segment_BL).int()

    def stacked(sides: torch.Tensor) -> torch.Tensor:
        across, down = (belongs_BSK * sides[:, None, :, axis] for axis in (0, 1))
        return torch.stack([across.amax(-1), down.sum(-1, dtype=torch.int32)], -1)

    def of_first(values: torch.Tensor, absent: float) -> torch.Tensor:
        taken = values.flatten(0, 1)[column_BS]
        return taken.masked_fill(~mask_BS.view(mask_BS.shape + (1,) * (taken.ndim - 2)), absent)

    def listed(values: list[list[Any]]) -> list[list[Any]]:
        firsts = [np.cumsum([0, *counts])[:-1].tolist() for counts in sizes]
        return [[pack[i] for i in first] for pack, first in zip(values, firsts, strict=True)]

    ends = np.cumsum([0, *(count for counts in sizes for count in counts)])
    return {
        **fields,
        "segment_ids": F.pad(samples, (1, 0)).gather(1, segment_BL),
        "coords": coords,
        "grids": stacked(fields["grids"]),
        "image_sizes": stacked(fields["image_sizes"]),
        "image_mask": mask_BS,
        "labels": of_first(fields["labels"], torch.nan if fields["labels"].is_floating_point() else -100),
        "rows": of_first(fields["rows"], -1),
        "keys": listed(fields["keys"]),
        "extras": {name: listed(values) for name, values in fields["extras"].items()},
        "targets": {
            name: _merged(target, fields, above_BK * fields["patch_size"])
            if isinstance(target, PackedObjects)
            else target
            for name, target in fields["targets"].items()
        },
        **{name: of_first(fields[name], 0) for name in ("boxes", "sizes", "flipped")},
        "samples": torch.where(mask_BS, number_K, 0),
        "frames": torch.zeros_like(fields["frames"]),
        "cu_seqlens": fields["cu_seqlens"][fields["sample_starts"]],
        "lengths": np.diff(np.cumsum([0, *fields["lengths"]])[ends]).tolist(),
        "sample_sizes": None,
        "sample_starts": None,
    }


def _merged(objects: PackedObjects, fields: Mapping[str, Any], above_BK: torch.Tensor) -> PackedObjects:
    """The objects of whole samples: those of each image are moved down by the pixels `above` it in its sample."""
    device = objects.counts.device
    counts = torch.zeros_like(objects.counts)
    counts.scatter_add_(1, (fields["samples"].long() - 1).clamp(min=0), objects.counts)
    above_N = above_BK[fields["image_mask"]].to(torch.float32)
    starts = np.cumsum([0, *(count for pack in fields["sample_sizes"] for count in pack)])

    def by_sample(values: list[int]) -> list[int]:
        sums: list[int] = np.diff(np.cumsum([0, *values])[starts]).tolist()
        return sums

    def down(values: torch.Tensor | None, per_image: list[int] | None) -> torch.Tensor | None:
        if values is None or per_image is None:
            return values
        moved = values.clone()
        moved[:, 1::2] += above_N.repeat_interleave(torch.tensor(per_image, device=device), output_size=len(values))[
            :, None
        ]
        return moved

    return dataclasses.replace(
        objects,
        boxes=down(objects.boxes, objects.counts_list),
        points=down(objects.points, objects.points_list),
        counts=counts,
        counts_list=by_sample(objects.counts_list),
        points_list=None if objects.points_list is None else by_sample(objects.points_list),
    )
