"""Rows of the index, and the images made of them: their sizes and token counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from patchnpack.packer.config import Packing
from patchnpack.packer.policies.random import Purpose, counter_hash
from patchnpack.packer.policies.resolution import Sizes

# n rows, M images


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """The columns of the index that a plan needs, for n samples in order of arrival, with m rows.

    Without `offsets`, each row is a sample of one image: m = n. With it, sample i has the rows `offsets[i]` to
    `offsets[i + 1]`, and each row holds one or more images.

    Attributes:
        row: int64 (m,), row in the index.
        row_id: uint64 (m,), key of the row's random draws; it identifies the image whatever else the source holds.
        width: int32 (m,), width in pixels, after EXIF orientation.
        height: int32 (m,), height in pixels, after EXIF orientation.
        page: int32 (m,), position of the row's first image in its file; None with `offsets` None.
        frames: int32 (m,), number of the row's images, which follow each other in its file; None with `offsets` None.
        offsets: int64 (n + 1,), first row of each sample; None where each row is a sample of one image.
    """

    row: np.ndarray
    row_id: np.ndarray
    width: np.ndarray
    height: np.ndarray
    page: np.ndarray | None = None
    frames: np.ndarray | None = None
    offsets: np.ndarray | None = None

    def __post_init__(self) -> None:
        # The kernels read the columns together and do not check their lengths.
        lengths = {name: len(column) for name, column in self._columns().items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the columns have lengths {lengths}; they must be equal")
        assert (self.page is None) == (self.frames is None) == (self.offsets is None)

    def __len__(self) -> int:
        return len(self.row) if self.offsets is None else len(self.offsets) - 1

    def take(self, which: np.ndarray | slice) -> Rows:
        """The samples at `which`, in that order."""
        if self.offsets is None:
            return Rows(**{name: column[which] for name, column in self._columns().items()})
        rows, offsets = ranges_of(self.offsets, which)
        return Rows(**{name: column[rows] for name, column in self._columns().items()}, offsets=offsets)

    def _columns(self) -> dict[str, np.ndarray]:
        columns = ((f.name, getattr(self, f.name)) for f in fields(self) if f.name != "offsets")
        return {name: column for name, column in columns if column is not None}

    @classmethod
    def concatenate(cls, parts: Sequence[Rows]) -> Rows:
        """The samples of all parts, in order."""
        columns = {name: np.concatenate([part._columns()[name] for part in parts]) for name in parts[0]._columns()}
        if parts[0].offsets is None:
            return cls(**columns)
        counts = np.concatenate([np.diff(part.offsets) for part in parts if part.offsets is not None])
        return cls(**columns, offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))

    @classmethod
    def of_sizes(cls, width: ArrayLike, height: ArrayLike) -> Rows:
        """Rows numbered from 0, of images whose sizes alone are known."""
        width, height = np.asarray(width, np.int32), np.asarray(height, np.int32)
        row = np.arange(len(width))
        return cls(row=row, row_id=row.astype(np.uint64), width=width, height=height)


def ranges_of(offsets: np.ndarray, which: np.ndarray | slice) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the items in the ranges `which` of `offsets`, int64, range by range, and the new offsets.

    >>> ranges_of(np.array([0, 2, 3, 6]), np.array([2, 0]))
    (array([3, 4, 5, 0, 1]), array([0, 3, 5]))
    """
    first, counts = offsets[:-1][which], np.diff(offsets)[which]
    ends = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return np.repeat(first - ends[:-1], counts) + np.arange(ends[-1]), ends


@dataclass(frozen=True, kw_only=True, slots=True)
class Images:
    """M images, each with its size and its number of kept tokens. The images of a sample are neighbours, in order.

    Attributes:
        row: int64 (M,), row in the index.
        key: uint64 (M,), key of the draw of kept tokens.
        box: int32 (M, 4), (left, top, width, height) in pixels of the part of the upright image that is used.
        size: int32 (M, 2), (width, height) in pixels that this part is resized to.
        grid: int32 (M, 2), (gw, gh); the image is centre-cropped or zero-padded from `size` to this many patches.
        keep: int32 (M,), tokens kept, from 1 to gw * gh; in a plan, including those that `fill` gave back.
        page: int32 (M,), position of the image among the pages or frames of its file; None where all are 0.
        frame: int32 (M,), the image's place in its sample: a sample begins with each 0; None where all are 0.
    """

    row: np.ndarray
    key: np.ndarray
    box: np.ndarray
    size: np.ndarray
    grid: np.ndarray
    keep: np.ndarray
    page: np.ndarray | None = None
    frame: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.row)

    def take(self, which: np.ndarray | slice) -> Images:
        """The images at `which`, in that order."""
        columns = (self.row, self.key, self.box, self.size, self.grid, self.keep)
        row, key, box, size, grid, keep = (column[which] for column in columns)
        page, frame = (None if column is None else column[which] for column in (self.page, self.frame))
        return Images(row=row, key=key, box=box, size=size, grid=grid, keep=keep, page=page, frame=frame)

    def sample_offsets(self) -> np.ndarray:
        """Offset of each sample's first image, int64 (m + 1,)."""
        if self.frame is None:
            return np.arange(len(self) + 1)
        return np.append(np.flatnonzero(self.frame == 0), len(self)).astype(np.int64)

    @classmethod
    def concatenate(cls, parts: Sequence[Images]) -> Images:
        """The images of all parts, in order."""
        columns = {f.name: [getattr(part, f.name) for part in parts] for f in fields(cls)}
        for name in ("page", "frame"):
            if all(column is None for column in columns[name]):
                del columns[name]
            else:
                columns[name] = [
                    np.zeros(len(part), np.int32) if column is None else column
                    for part, column in zip(parts, columns[name], strict=True)
                ]
        return cls(**{name: np.concatenate(column) for name, column in columns.items()})


class Measured(NamedTuple):
    """n rows measured at one patch size.

    Attributes:
        images: the image of each row, whether it is skipped or not.
        oversize: bool (n,), rows of more than `seq_len` tokens, except those skipped as undersize.
        undersize: bool (n,), rows smaller than a patch of the packing's largest size.
    """

    images: Images
    oversize: np.ndarray
    undersize: np.ndarray

    def skipped(self, packing: Packing) -> np.ndarray:
        """Which rows the packing skips, bool (n,)."""
        skipped = np.zeros(len(self.images), np.bool_)
        if packing.oversize == "skip":
            skipped |= self.oversize
        if packing.undersize == "skip":
            skipped |= self.undersize
        return skipped


def measure(
    rows: Rows,
    packing: Packing,
    *,
    seed: int,
    epoch: int,
    images_seen: np.ndarray | None = None,
    patch_size: int | None = None,
) -> Measured:
    """Measure each row at one patch size: its image, and whether it is too large or too small.

    Each row's result depends on that row alone. Rows that are skipped are included, an oversize one with all its
    tokens.

    Args:
        rows: the images.
        packing: the configuration.
        seed, epoch: keys of the random draws, together with each row's `row_id`.
        images_seen: int64 (n,), images seen in training before each, for schedules; 0 by default.
        patch_size: P, one of the packing's sizes; None takes the only one.

    Raises:
        ValueError: an oversize image under `oversize="error"`, or an undersize one under `undersize="error"`.
    """
    if patch_size is None:
        (patch_size,) = packing.patch_sizes
    limit, policy, drop = packing.seq_len, packing.resolution, packing.token_drop
    undersize = policy.undersize(rows.width, rows.height, max(packing.patch_sizes) * packing.grid_multiple)
    if packing.undersize == "error" and undersize.any():
        _refuse_undersize(rows, undersize, packing)
    draws = counter_hash(Purpose.RESOLUTION, seed, epoch, rows.row_id) if policy.draws else None
    rate_key = counter_hash(Purpose.DROP_RATE, seed, epoch, rows.row_id)

    def sized(which: np.ndarray | slice, max_tokens: np.ndarray | None) -> tuple[Sizes, np.ndarray]:
        sizes = policy.sizes(
            rows.width[which],
            rows.height[which],
            patch_size,
            packing.grid_multiple,
            keys=None if draws is None else draws[which],
            images_seen=None if images_seen is None else images_seen[which],
            limit=max_tokens,
        )
        tokens = sizes.grid.prod(1, dtype=np.int64)
        return sizes, drop.keep(tokens, rate_key[which], limit, None if images_seen is None else images_seen[which])

    sizes, keep = sized(slice(None), None)
    over = keep > limit
    if packing.undersize == "skip":
        over &= ~undersize
    if over.any() and packing.oversize == "error":
        i = int(over.argmax())
        raise ValueError(
            f"row {rows.row[i]} of {rows.width[i]}x{rows.height[i]} pixels has {keep[i]} tokens, more than seq_len "
            f"{limit} ({int(over.sum())} rows do); raise seq_len or patch_size, or choose oversize='shrink', "
            "'drop' or 'skip'"
        )
    if packing.oversize == "shrink":
        left, max_tokens = np.flatnonzero(over), sizes.grid.prod(1, dtype=np.int64)
        while len(left):  # one pass, except for drops that keep a larger share of a smaller image
            max_tokens[left] = np.maximum(limit, max_tokens[left] * limit // keep[left])
            shrunk, keep[left] = sized(left, max_tokens[left])
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
    return Measured(images, over, undersize)


def _refuse_undersize(rows: Rows, undersize: np.ndarray, packing: Packing) -> None:
    """Raise ValueError for the first undersize row."""
    i, multiple = int(undersize.argmax()), packing.grid_multiple
    unit = max(packing.patch_sizes) * multiple
    what = "a patch" if multiple == 1 else f"grid_multiple {multiple} x {multiple} patches"
    raise ValueError(
        f"row {rows.row[i]} of {rows.width[i]}x{rows.height[i]} pixels is smaller than {what} of "
        f"{unit}x{unit} ({int(undersize.sum())} of {len(rows)} rows are); use a smaller patch_size, or choose "
        "undersize='pad' or 'skip'"
    )
