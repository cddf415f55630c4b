"""`SampleTable`: which rows of an index are one sample, and which page or frames of its file each row holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from patchnpack.loaders.files.texts import Texts
from patchnpack.packer.planning.images import ranges_of

# n rows, m samples

_PREFIX = "sample."


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleTable:
    """The samples of an index whose samples may hold several images. A sample's rows are neighbours, in one shard.

    A row holds one image, or all frames of a video or an animation, which have one size.

    Attributes:
        rule: what makes a sample, as given to `sample=`: "members", "key:REGEX", or the name of a function.
        starts: int64 (m + 1,), the first row of each sample.
        page: int32 (n,), position of the row's first image among the pages or frames of its file.
        frames: int32 (n,), images of the row, at least 1.
        member: for each row, which member of its sample is its image, such as "p2.jpg"; None where the sample has one
            image, and as a whole where no sample has several.
        unused: bool (n,), rows that are left out of their samples; None for no such row.
    """

    rule: str
    starts: np.ndarray
    page: np.ndarray
    frames: np.ndarray
    member: Texts[str | None] | None = None
    unused: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.starts) - 1

    @classmethod
    def of_images(cls, rule: str, starts: np.ndarray) -> SampleTable:
        """The samples that begin at these rows, int64 (m + 1,), where each row is the first image of its file."""
        n = int(starts[-1])
        return cls(rule=rule, starts=starts, page=np.zeros(n, np.int32), frames=np.ones(n, np.int32))

    @property
    def images(self) -> int:
        """The number of images, frames included."""
        return int(self.frames.sum(dtype=np.int64))

    def sample_of(self, rows: np.ndarray) -> np.ndarray:
        """The sample, int64 (k,), of each row (int64 (k,))."""
        return np.searchsorted(self.starts, rows, side="right") - 1

    def first_of(self, rows: np.ndarray) -> np.ndarray:
        """The first row, int64 (k,), of the sample of each row (int64 (k,))."""
        first: np.ndarray = self.starts[self.sample_of(rows)]
        return first

    def rows_of(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The used rows of samples (int64 (k,)), sample by sample, and the offsets of each, int64 (k + 1,)."""
        rows, offsets = ranges_of(self.starts, samples)
        if self.unused is None:
            return rows, offsets
        used = ~self.unused[rows]
        return rows[used], np.concatenate([[0], np.cumsum(used)]).astype(np.int64)[offsets]

    def all_of(self, mask: np.ndarray) -> np.ndarray:
        """Whether a mask of rows, bool (n,), holds all rows of each sample, bool (m,)."""
        return np.logical_and.reduceat(mask, self.starts[:-1]) if len(self) else np.zeros(0, np.bool_)

    def any_of(self, mask: np.ndarray) -> np.ndarray:
        """Whether a mask of rows, bool (n,), holds any row of each sample, bool (m,)."""
        return np.logical_or.reduceat(mask, self.starts[:-1]) if len(self) else np.zeros(0, np.bool_)

    def heads(self, which: np.ndarray) -> np.ndarray:
        """The first rows of samples, given as bool (m,), as a mask of all rows, bool (n,)."""
        heads = np.zeros(len(self.page), np.bool_)
        heads[self.starts[:-1]] = which
        return heads

    def take(self, rows: np.ndarray) -> SampleTable:
        """The table of these rows, int64 (k,), which are whole samples."""
        sample = self.sample_of(rows)
        first = np.flatnonzero(np.diff(sample, prepend=-1))
        starts = np.append(first, len(rows)).astype(np.int64)
        member = None if self.member is None else self.member.take(rows)
        unused = None if self.unused is None else self.unused[rows]
        return SampleTable(
            rule=self.rule,
            starts=starts,
            page=self.page[rows],
            frames=self.frames[rows],
            member=member,
            unused=unused,
        )

    @classmethod
    def concatenate(cls, parts: Sequence[SampleTable]) -> SampleTable:
        """The samples of all parts, in order; the rule names those of all parts."""
        assert all(part.unused is None for part in parts), "rows are left out once all parts are joined"
        rows = np.cumsum([0, *(part.starts[-1] for part in parts)])
        starts = [part.starts[:-1] + first for part, first in zip(parts, rows[:-1], strict=True)]
        names = [
            pa.nulls(len(part.page), pa.large_string()) if part.member is None else part.member.column for part in parts
        ]
        return cls(
            rule=", ".join(dict.fromkeys(part.rule for part in parts)),
            starts=np.concatenate([*starts, rows[-1:]]).astype(np.int64),
            page=np.concatenate([part.page for part in parts]),
            frames=np.concatenate([part.frames for part in parts]),
            member=None if all(part.member is None for part in parts) else Texts(pa.concat_arrays(names)),
        )

    def columns(self) -> dict[str, pa.Array]:
        """The columns of an index file, one value per row."""
        begins = np.zeros(len(self.page), np.bool_)
        begins[self.starts[:-1]] = True
        columns = {"begins": pa.array(begins), "page": pa.array(self.page), "frames": pa.array(self.frames)}
        if self.member is not None:
            columns["member"] = self.member.column
        return {_PREFIX + name: column for name, column in columns.items()}

    @classmethod
    def of_columns(cls, rule: str, column: Callable[[str], pa.Array], names: Sequence[str]) -> SampleTable:
        """The table whose `columns` an index file holds; `column` returns one of those that it `names`."""
        begins = column(_PREFIX + "begins").to_numpy(zero_copy_only=False)
        page, frames = (column(_PREFIX + name).to_numpy(zero_copy_only=False) for name in ("page", "frames"))
        return cls(
            rule=rule,
            starts=np.append(np.flatnonzero(begins), len(begins)).astype(np.int64),
            page=page,
            frames=frames,
            member=Texts(column(_PREFIX + "member")) if _PREFIX + "member" in names else None,
        )
