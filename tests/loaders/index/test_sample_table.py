"""`SampleTable`: its rows, its parts and its columns in index files."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchnpack.loaders import Index, load_index, save_index, scan
from patchnpack.loaders.index.sample_table import SampleTable
from patchnpack.loaders.index.table import Texts
from patchnpack.loaders.order.state import rows_digest
from tests.loaders.index.samples.rows import write_documents, write_rows

SAMPLES = st.lists(st.lists(st.booleans(), min_size=1, max_size=4), min_size=1, max_size=6)  # rows, and which are used


def table_of(samples: list[list[bool]]) -> SampleTable:
    """Samples of these rows, of which those of False are left out."""
    flags = [flag for sample in samples for flag in sample]
    return SampleTable(
        rule="members",
        starts=np.cumsum([0, *map(len, samples)]).astype(np.int64),
        page=np.arange(len(flags), dtype=np.int32),
        frames=np.arange(1, len(flags) + 1, dtype=np.int32),
        member=Texts.of([f"{row}.png" for row in range(len(flags))]),
        unused=~np.array(flags),
    )


def lists_of(samples: list[list[bool]]) -> list[list[int]]:
    """The rows of each sample."""
    rows = iter(range(100))
    return [[next(rows) for _ in sample] for sample in samples]


@given(SAMPLES, st.data())
def test_rows_of_samples_are_their_used_rows(samples: list[list[bool]], data: st.DataObject) -> None:
    table, lists = table_of(samples), lists_of(samples)
    flags = [flag for sample in samples for flag in sample]
    which = data.draw(st.lists(st.integers(0, len(samples) - 1), max_size=5))
    rows, offsets = table.rows_of(np.array(which, np.int64))
    cut = [rows[first:end].tolist() for first, end in itertools.pairwise(offsets)]
    assert cut == [[row for row in lists[sample] if flags[row]] for sample in which]
    all_rows = np.arange(len(flags))
    assert table.sample_of(all_rows).tolist() == [i for i, sample in enumerate(samples) for _ in sample]
    assert table.first_of(all_rows).tolist() == [rows[0] for rows in lists for _ in rows]
    assert table.all_of(np.array(flags)).tolist() == [all(sample) for sample in samples]
    assert table.any_of(np.array(flags)).tolist() == [any(sample) for sample in samples]
    first = [row in {rows[0] for rows, used in zip(lists, map(any, samples), strict=True) if used} for row in all_rows]
    assert table.heads(table.any_of(np.array(flags))).tolist() == first


@given(SAMPLES, st.data())
def test_taken_samples_keep_what_their_rows_hold(samples: list[list[bool]], data: st.DataObject) -> None:
    table, lists = table_of(samples), lists_of(samples)
    which = data.draw(st.permutations(range(len(samples))))[: data.draw(st.integers(1, len(samples)))]
    rows = [row for sample in which for row in lists[sample]]
    taken = table.take(np.array(rows, np.int64))
    assert taken.starts.tolist() == np.cumsum([0, *(len(lists[sample]) for sample in which)]).tolist()
    assert (taken.page.tolist(), taken.frames.tolist()) == (rows, [row + 1 for row in rows])
    assert list(taken.member or []) == [f"{row}.png" for row in rows]
    assert taken.unused is not None
    assert table.unused is not None
    assert taken.unused.tolist() == table.unused[rows].tolist()


def members_of(index: Index) -> list[str | None]:
    assert index.samples is not None
    return [None] * len(index) if index.samples.member is None else list(index.samples.member)


@pytest.mark.parametrize("name", ["index.parquet", "index.arrow"])
def test_index_file_holds_the_samples(name: str, tmp_path: Path) -> None:
    shards = [write_documents(tmp_path / f"{i}.tar", {f"a{i}": [2, 1, 10], f"b{i}": [1]}) for i in range(2)]
    index = scan(shards, sample="members")
    save_index(index, tmp_path / name)
    loaded = load_index(tmp_path / name)
    assert index.samples is not None
    assert loaded.samples is not None
    for column in ("starts", "page", "frames"):
        ours, theirs = getattr(index.samples, column), getattr(loaded.samples, column)
        assert (ours.dtype, ours.tolist()) == (theirs.dtype, theirs.tolist())
    assert (loaded.samples.rule, members_of(loaded)) == ("members", members_of(index))


def test_digest_of_a_state_depends_on_the_samples(tmp_path: Path) -> None:
    index = scan(write_documents(tmp_path / "a.tar", {"a": [1, 2], "b": [1, 2]}), sample="members")
    usable = np.ones(4, np.bool_)
    other = replace(index, samples=SampleTable.of_images("members", np.array([0, 1, 4])))
    assert len({rows_digest(made, usable) for made in (index, other, replace(index, samples=None))}) == 3


def test_concatenated_rows_without_samples_are_samples_of_one(tmp_path: Path) -> None:
    members = scan(write_documents(tmp_path / "b.tar", {"a": [1, 2], "b": [1]}), sample="members")
    plain = scan(write_rows(tmp_path / "a.tar", [f"{name}_{page}" for name in "abc" for page in range(3)]))
    joined = Index.concatenate([plain.select([0]), members])
    assert joined.samples is not None
    assert joined.samples.starts.tolist() == [*range(9), 9, 11, 12]
    assert joined.samples.frames.tolist() == [1] * 12
    assert joined.name_of(0) == "a_0"
    assert joined.name_of(10) == "a.p2.jpg"
    back = joined.select([1])
    assert back.samples is not None
    assert (back.samples.starts.tolist(), list(back.samples.member or [])) == (
        [0, 2, 3],
        ["p1.jpg", "p2.jpg", "p1.jpg"],
    )
