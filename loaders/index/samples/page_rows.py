"""A row of the index for each page of a file, where the listing of a source has one row per file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from patchnpack.loaders.imaging.header import Header
from patchnpack.loaders.imaging.pages import PageRun
from patchnpack.loaders.index.sample_table import SampleTable
from patchnpack.loaders.index.table import Index, Texts
from patchnpack.loaders.shards.sample_rule import MEMBERS

# n rows, m samples


def is_several(pages: Sequence[PageRun]) -> bool:
    """Whether a file has more than one page or frame."""
    return len(pages) > 1 or pages[0].frames > 1


def with_pages(index: Index, samples: np.ndarray, several: Mapping[int, Sequence[PageRun]]) -> Index:
    """Return an index of one shard with a row for each page of its files, and with its samples.

    Args:
        index: a row for the first page of each of n files.
        samples: int64 (m + 1,), the first file of each sample.
        several: the pages of each file that has more than one page or frame, by its row.
    """
    times = np.ones(len(index), np.int64)
    times[list(several)] = [len(pages) for pages in several.values()]
    ends = np.concatenate([[0], np.cumsum(times)])
    rows = np.repeat(np.arange(len(index)), times)
    columns: dict[str, Any] = {
        name: getattr(index, name)[rows] for name in ("offset", "nbytes", "digest", *Header._fields)
    }
    page, frames = np.zeros(len(rows), np.int32), np.ones(len(rows), np.int32)
    reasons = {int(row): index.reasons[int(rows[row])] for row in np.flatnonzero(is_given(index.reasons)[rows])}
    for first, pages in several.items():
        for row, found in enumerate(pages, int(ends[first])):
            page[row], frames[row], reasons[row] = found.page, found.frames, found.reason
            for name, value in zip(Header._fields, found.header, strict=True):
                columns[name][row] = value
    return replace(
        index,
        **columns,
        starts=np.array([0, len(rows)], np.int64),
        keys=index.keys.take(rows),
        cls=index.cls.take(rows),
        reasons=Texts.of(map(reasons.get, range(len(rows)))),
        members={name: where[rows] for name, where in index.members.items()},
        samples=SampleTable(rule=MEMBERS, starts=ends[samples], page=page, frames=frames),
    )


def files_of(samples: SampleTable) -> np.ndarray:
    """The number of the file of each row of an index that `with_pages` made, int64 (n,)."""
    return np.cumsum(samples.page == 0) - 1


def has_several(samples: SampleTable) -> np.ndarray:
    """Which rows are the first of a file of several pages or frames, bool (n,)."""
    several: np.ndarray = (samples.page == 0) & ((samples.frames > 1) | (np.append(samples.page[1:], 0) > 0))
    return several


def pages_at(index: Index, samples: SampleTable, row: int) -> list[PageRun]:
    """Return the pages of the file whose first page is in a row."""
    end = row + 1
    while end < len(index) and samples.page[end] > 0:
        end += 1
    headers = index.headers(np.arange(row, end))
    return [
        PageRun(header, index.reasons[i], int(samples.page[i]), int(samples.frames[i]))
        for i, header in enumerate(headers, row)
    ]


def is_given(texts: Texts[str | None]) -> np.ndarray:
    """Which texts are not None, bool (n,)."""
    given: np.ndarray = texts.column.is_valid().to_numpy(zero_copy_only=False)
    return given
