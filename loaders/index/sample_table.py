"""`SampleTable`: which rows of an index are one sample, and which page or frames of its file each row holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from patchnpack.packer.images import ranges_of

# n rows, m samples


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleTable:
    """The samples of an index whose samples may hold several images. A sample's rows are neighbours, in one shard.

    A row holds one image, or all frames of a video or an animation, which have one size.

    Attributes:
        rule: what makes a sample, as given to `sample=`: "members", "key:REGEX", or the name of a function.
        starts: int64 (m + 1,), the first row of each sample.
        page: int32 (n,), position of the row's first image among the pages or frames of its file.
        frames: int32 (n,), images of the row, at least 1.
    """

    rule: str
    starts: np.ndarray
    page: np.ndarray
    frames: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def sample_of(self, rows: np.ndarray) -> np.ndarray:
        """The sample, int64 (k,), of each row (int64 (k,))."""
        return np.searchsorted(self.starts, rows, side="right") - 1

    def rows_of(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows of samples (int64 (k,)), sample by sample, and the offsets of each, int64 (k + 1,)."""
        return ranges_of(self.starts, samples)

    def take(self, rows: np.ndarray) -> SampleTable:
        """The table of these rows, int64 (k,), which are whole samples."""
        sample = self.sample_of(rows)
        first = np.flatnonzero(np.diff(sample, prepend=-1))
        starts = np.append(first, len(rows)).astype(np.int64)
        return SampleTable(rule=self.rule, starts=starts, page=self.page[rows], frames=self.frames[rows])

    @classmethod
    def concatenate(cls, parts: Sequence[SampleTable]) -> SampleTable:
        """The samples of all parts, in order; the first names the rule."""
        rows = np.cumsum([0, *(part.starts[-1] for part in parts)])
        starts = [part.starts[:-1] + first for part, first in zip(parts, rows[:-1], strict=True)]
        return cls(
            rule=parts[0].rule,
            starts=np.concatenate([*starts, rows[-1:]]).astype(np.int64),
            page=np.concatenate([part.page for part in parts]),
            frames=np.concatenate([part.frames for part in parts]),
        )
