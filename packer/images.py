"""Rows of the index, and the images that a configuration makes of them: their sizes and token counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike

from patchnpack.packer.config import Packing
from patchnpack.packer.policies.random import Purpose, counter_hash
from patchnpack.packer.policies.resolution import Sizes

# n rows, M images


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """What a plan needs to know of n images, in order of arrival.

    Attributes:
        row: int64 (n,), the row in the index.
        row_id: uint64 (n,), what the row's draws are keyed by: it names the image whatever else the source holds.
        width: int32 (n,), pixels, after EXIF orientation.
        height: int32 (n,), likewise.
    """

    row: np.ndarray
    row_id: np.ndarray
    width: np.ndarray
    height: np.ndarray

    def __post_init__(self) -> None:
        # The kernels read the columns side by side, without a check of their own.
        lengths = {f.name: len(getattr(self, f.name)) for f in fields(self)}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the columns have lengths {lengths}; they must be equal")

    def __len__(self) -> int:
        return len(self.row)

    def take(self, which: np.ndarray | slice) -> Rows:
        """The rows at `which`, in that order."""
        return Rows(**{f.name: getattr(self, f.name)[which] for f in fields(self)})

    @classmethod
    def concatenate(cls, parts: Sequence[Rows]) -> Rows:
        """The rows of all parts, in order."""
        return cls(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)})

    @classmethod
    def of_sizes(cls, width: ArrayLike, height: ArrayLike) -> Rows:
        """Rows of images of which only the sizes are known, numbered from 0."""
        width, height = np.asarray(width, np.int32), np.asarray(height, np.int32)
        row = np.arange(len(width))
        return cls(row=row, row_id=row.astype(np.uint64), width=width, height=height)


@dataclass(frozen=True, kw_only=True, slots=True)
class Images:
    """M images, each with the size it is given and the tokens it keeps.

    Attributes:
        row: int64 (M,), the row in the index.
        key: uint64 (M,), what the choice of kept tokens is drawn from.
        box: int32 (M, 4), (left, top, width, height) in pixels, the part of the upright image that is used.
        size: int32 (M, 2), (width, height) in pixels that this part is resized to.
        grid: int32 (M, 2), (gw, gh); the image is centre-cropped or zero-padded from `size` to this many patches.
        keep: int32 (M,), tokens kept, from 1 to gw * gh; in a plan, with those that `fill` gave back.
    """

    row: np.ndarray
    key: np.ndarray
    box: np.ndarray
    size: np.ndarray
    grid: np.ndarray
    keep: np.ndarray

    def __len__(self) -> int:
        return len(self.row)

    def take(self, which: np.ndarray | slice) -> Images:
        """The images at `which`, in that order."""
        columns = (self.row, self.key, self.box, self.size, self.grid, self.keep)
        row, key, box, size, grid, keep = (column[which] for column in columns)
        return Images(row=row, key=key, box=box, size=size, grid=grid, keep=keep)

    @classmethod
    def concatenate(cls, parts: Sequence[Images]) -> Images:
        """The images of all parts, in order."""
        return cls(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)})


def measure(
    rows: Rows,
    packing: Packing,
    *,
    seed: int,
    epoch: int,
    images_seen: np.ndarray | None = None,
    patch_size: int | None = None,
) -> tuple[Images, np.ndarray]:
    """The size, grid and token count of each row at one patch size; and which were oversize, bool (n,).

    Each row is measured by itself: the result does not depend on which rows are asked for together. Under
    `oversize="skip"` an oversize row is given too, with as many tokens as it has.

    Args:
        rows: the images.
        packing: what a sequence looks like.
        seed, epoch: what draws are keyed by, together with each row's `row_id`.
        images_seen: int64 (n,), images seen in training before each, for schedules; 0 where it is not given.
        patch_size: P, which of the packing's sizes; None is the only one.

    Raises:
        ValueError: an image smaller than a patch, or an oversize one under `oversize="error"`.
    """
    if patch_size is None:
        (patch_size,) = packing.patch_sizes
    limit, policy, drop = packing.seq_len, packing.resolution, packing.token_drop
    draws = counter_hash(Purpose.RESOLUTION, seed, epoch, rows.row_id) if policy.draws else None
    rate_key = counter_hash(Purpose.DROP_RATE, seed, epoch, rows.row_id)

    def sized(which: np.ndarray | slice, most: np.ndarray | None) -> tuple[Sizes, np.ndarray]:
        sizes = policy.sizes(
            rows.width[which],
            rows.height[which],
            patch_size,
            packing.grid_multiple,
            keys=None if draws is None else draws[which],
            images_seen=None if images_seen is None else images_seen[which],
            limit=most,
        )
        tokens = sizes.grid.prod(1, dtype=np.int64)
        return sizes, drop.keep(tokens, rate_key[which], limit, None if images_seen is None else images_seen[which])

    sizes, keep = sized(slice(None), None)
    over = keep > limit
    if over.any() and packing.oversize == "error":
        i = int(over.argmax())
        raise ValueError(
            f"row {rows.row[i]} of {rows.width[i]}x{rows.height[i]} pixels has {keep[i]} tokens, more than seq_len "
            f"{limit} ({int(over.sum())} rows do); raise seq_len or patch_size, or choose oversize='shrink', "
            "'drop' or 'skip'"
        )
    if packing.oversize == "shrink":
        left, most = np.flatnonzero(over), sizes.grid.prod(1, dtype=np.int64)
        while len(left):  # once, but for drops that keep a larger share of a smaller image
            most[left] = np.maximum(limit, most[left] * limit // keep[left])
            shrunk, keep[left] = sized(left, most[left])
            sizes.size[left], sizes.grid[left] = shrunk.size, shrunk.grid
            left = left[keep[left] > limit]
    if packing.oversize == "drop":
        keep = np.minimum(keep, limit)
    box = sizes.box
    if box is None:
        box = np.zeros((len(rows), 4), np.int32)
        box[:, 2], box[:, 3] = rows.width, rows.height
    images = Images(
        row=rows.row,
        key=counter_hash(Purpose.TOKEN_DROP, seed, epoch, rows.row_id),
        box=box,
        size=sizes.size,
        grid=sizes.grid,
        keep=keep.astype(np.int32),
    )
    return images, over
