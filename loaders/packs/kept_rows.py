"""The rows of a source that an image store keeps: those of whole samples, each file once."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from patchnpack.loaders.index.table import Index
from patchnpack.packer import Images, Plan
from patchnpack.packer.planning.images import ranges_of

# N packs, M images in them, m rows of their samples


class KeptRows(NamedTuple):
    """The m rows of the samples of N packs, pack by pack and sample by sample.

    Attributes:
        rows: int64 (m,).
        ends: int32 (N + 1,), the first row of each pack, then m.
        file: int64 (m,), position in `rows` of the first row of the same file: its own, except for further pages.
    """

    rows: np.ndarray
    ends: np.ndarray
    file: np.ndarray

    @property
    def files(self) -> np.ndarray:
        """The rows that bring bytes, int64."""
        files: np.ndarray = self.rows[self.file == np.arange(len(self.rows))]
        return files


def kept_rows(plan: Plan, index: Index) -> KeptRows:
    """Return the rows of all samples in a plan, those included whose images the plan does not use.

    A later epoch may use other frames of a sample, and an unpacked sample is whole, except for bad images.
    """
    images = plan.images
    rows, ends = images.row, plan.offsets
    if images.frame is not None:
        begins = images.frame == 0
        rows, ends = rows[begins], np.concatenate([[0], np.cumsum(begins)])[ends]
    if index.samples is None:
        return KeptRows(rows, ends.astype(np.int32), np.arange(len(rows)))
    samples = index.samples
    rows, offsets = ranges_of(samples.starts, samples.sample_of(rows))
    file = np.cumsum(samples.page[rows] == 0)  # a number for each file
    if samples.unused is not None:
        used = ~samples.unused[rows]
        rows, file, offsets = rows[used], file[used], np.concatenate([[0], np.cumsum(used)])[offsets]
    begins = np.diff(file, prepend=0) > 0
    first = np.maximum.accumulate(np.where(begins, np.arange(len(rows)), 0))
    return KeptRows(rows, offsets[ends].astype(np.int32), first)


def positions_in(kept: KeptRows, images: Images, ends: np.ndarray) -> np.ndarray:
    """Return the position of each image's row among those of its pack, int32 (M,); `ends` are the packs' images."""
    packs = np.repeat(np.arange(len(ends) - 1), np.diff(ends))
    pack_of = np.repeat(np.arange(len(kept.ends) - 1), np.diff(kept.ends))
    order = np.lexsort([kept.rows, pack_of])
    span = int(kept.rows.max(initial=0)) + 1
    place = np.searchsorted(pack_of[order] * span + kept.rows[order], packs * span + images.row)
    positions: np.ndarray = (order[place] - kept.ends[packs]).astype(np.int32)
    return positions
