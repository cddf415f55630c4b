"""`RowFilter`: which rows of an index a loader uses, and why it leaves out the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from patchnpack.loaders.errors import ErrorPolicy
from patchnpack.loaders.imaging.user_decode import Decode
from patchnpack.loaders.index.table import Index
from patchnpack.loaders.order.first_invalid_row import naming_first_invalid_row
from patchnpack.loaders.order.order import chunks
from patchnpack.packer import Packing
from patchnpack.packer.binpacking.pack_lengths import SAMPLE
from patchnpack.packer.images import Images, measure
from patchnpack.packer.plan import decide_algorithm

Where = Callable[[Index], np.ndarray]


@dataclass(frozen=True, slots=True)
class RowFilter:
    """The rows of an index of n rows that are used.

    Attributes:
        mask: bool (n,), the rows that are used.
        filtered: bool (n,), the rows that `where` leaves out.
        bad: (stage, reason) of each other row that is not used, by row.
    """

    mask: np.ndarray
    filtered: np.ndarray
    bad: dict[int, tuple[str, str]]

    @classmethod
    def of(cls, index: Index, where: Where | None, limits: ErrorPolicy, decode: Decode | None) -> RowFilter:
        """Return the filter of the rows that `where` keeps, without those that have bad headers or exceed the limits.

        Raises:
            ValueError: `where` does not return one bool per row.
        """
        mask = _kept(where, index)
        bad = {row: why for row, why in _bad_rows(index, limits, decode).items() if mask[row]}
        filtered = ~mask
        mask[list(bad)] = False
        return cls(mask, filtered, bad)

    def with_algorithm(self, index: Index, packing: Packing, seed: int) -> Packing:
        """Return `packing` with the algorithm that "auto" stands for, decided by the first rows that are used.

        Raises:
            ValueError: no row is left, or `packing` can neither place nor skip an image.
        """
        found = 0
        first: list[list[Images]] = [[] for _ in packing.patch_sizes]
        for rows in chunks(self.mask):
            images, fits = [], np.ones(len(rows), np.bool_)
            for size in packing.patch_sizes:
                chunk = index.rows(rows)
                with naming_first_invalid_row(index, chunk, packing, seed=seed, epoch=0):
                    measured, over = measure(chunk, packing, seed=seed, epoch=0, patch_size=size)
                images.append(measured)
                if packing.oversize == "skip":
                    fits &= ~over
            chosen = np.flatnonzero(fits)[: SAMPLE - found]
            found += len(chosen)
            for sample, measured in zip(first, images, strict=True):
                sample.append(measured.take(chosen))
        if not found:
            raise ValueError(
                f"none of the {len(index)} images can be used: {len(self.bad)} are bad, "
                f"{int(self.filtered.sum())} filtered out by where, the others oversize; correct the shards, where or "
                "packing"
            )
        return packing.replace(algorithm=decide_algorithm(packing, [Images.concatenate(sample) for sample in first]))


def _bad_rows(index: Index, policy: ErrorPolicy, decode: Decode | None) -> dict[int, tuple[str, str]]:
    """Return (stage, reason) of each row that has a bad header or exceeds the policy's limits."""
    bad = {row: ("header", reason) for row, reason in index.bad_rows(decode=decode is not None).items()}
    for rows in chunks(np.ones(len(index), np.bool_)):
        pixels, nbytes = index.width[rows].astype(np.int64) * index.height[rows], index.nbytes[rows]
        for i in np.flatnonzero((pixels > policy.max_pixels) | (nbytes > policy.max_bytes)).tolist():
            reason = policy.beyond(int(pixels[i]), int(nbytes[i])) or ""
            bad.setdefault(int(rows[i]), ("limit", reason))
    return dict(sorted(bad.items()))


def _kept(where: Where | None, index: Index) -> np.ndarray:
    if where is None:
        return np.ones(len(index), np.bool_)
    mask = np.array(where(index))  # a copy: the caller may keep the array
    if mask.shape != (len(index),) or mask.dtype != np.bool_:
        raise ValueError(
            f"where returned {mask.dtype} {mask.shape}; it must return bool ({len(index)},), one value per row"
        )
    return mask
