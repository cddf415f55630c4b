"""Rows of the index, and the images made of them: their sizes and token counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike

# n samples, m rows, M images

_COLUMNS = ("row", "key", "box", "size", "grid", "keep")  # of `Images`, which are never None


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
        bytes_per_pixel: float64 (m,), encoded bytes per pixel of the row's file, 0 where they are not known; None where
            none are.
    """

    row: np.ndarray
    row_id: np.ndarray
    width: np.ndarray
    height: np.ndarray
    page: np.ndarray | None = None
    frames: np.ndarray | None = None
    offsets: np.ndarray | None = None
    bytes_per_pixel: np.ndarray | None = None

    def __post_init__(self) -> None:
        # The kernels read the columns together and do not check their lengths.
        n = len(self.row)
        if not n == len(self.row_id) == len(self.width) == len(self.height) or any(
            each is not None and len(each) != n for each in (self.page, self.frames, self.bytes_per_pixel)
        ):
            lengths = {name: len(column) for name, column in self._columns().items()}
            raise ValueError(f"the columns have lengths {lengths}; they must be equal")
        assert (self.page is None) == (self.frames is None) == (self.offsets is None)

    def __len__(self) -> int:
        return len(self.row) if self.offsets is None else len(self.offsets) - 1

    @property
    def first(self) -> np.ndarray | slice:
        """Position of each sample's first row: its row and `row_id` stand for the sample."""
        return slice(None) if self.offsets is None else self.offsets[:-1]

    def complexity(self) -> np.ndarray:
        """Encoded bytes per pixel of each sample, the mean over its images, float64 (n,); 0 where one is not known."""
        each = self.bytes_per_pixel
        if each is None:
            return np.zeros(len(self))
        if self.offsets is None or not len(self):
            return each[: len(self)]
        assert self.frames is not None
        known = np.minimum.reduceat(each, self.offsets[:-1]) > 0
        total = np.add.reduceat(each * self.frames, self.offsets[:-1])
        mean: np.ndarray = known * total / np.add.reduceat(self.frames, self.offsets[:-1])
        return mean

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


def sums_between(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Sums of `values` between neighbouring `offsets`, int64."""
    ends = np.zeros(len(values) + 1, np.int64)
    np.cumsum(values, out=ends[1:])
    sums: np.ndarray = np.diff(ends[offsets])
    return sums


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

    def take_samples(self, which: np.ndarray | slice) -> Images:
        """The images of the samples at `which`, in that order."""
        return self.take(which if self.frame is None else ranges_of(self.sample_offsets(), which)[0])

    @property
    def num_samples(self) -> int:
        """Number of samples."""
        return len(self) if self.frame is None else int(np.count_nonzero(self.frame == 0))

    def sample_sums(self, values: np.ndarray) -> np.ndarray:
        """Sum of `values` (M,) over the images of each sample; `values` itself where each image is a sample."""
        return values if self.frame is None else sums_between(values, self.sample_offsets())

    def sample_counts(self) -> np.ndarray | None:
        """Number of images of each sample, int64; None where each image is a sample."""
        return None if self.frame is None else np.diff(self.sample_offsets())

    def sample_offsets(self) -> np.ndarray:
        """Offset of each sample's first image, int64 (n + 1,)."""
        if self.frame is None:
            return np.arange(len(self) + 1)
        return np.append(np.flatnonzero(self.frame == 0), len(self)).astype(np.int64)

    @classmethod
    def concatenate(cls, parts: Sequence[Images]) -> Images:
        """The images of all parts, in order."""
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS}
        for name in ("page", "frame"):
            found = [getattr(part, name) for part in parts]
            if any(column is not None for column in found):
                columns[name] = np.concatenate(
                    [
                        np.zeros(len(part), np.int32) if column is None else column
                        for part, column in zip(parts, found, strict=True)
                    ]
                )
        return cls(**columns)
