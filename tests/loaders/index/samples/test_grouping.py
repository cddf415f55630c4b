"""Samples of several rows by their keys, and indexes that were made with one rule and asked for with another."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchnpack.loaders import Index, open_index, save_index, scan, update_index
from patchnpack.loaders.imaging.header import Header
from patchnpack.loaders.index.samples.grouping import with_samples
from patchnpack.loaders.shards.opener import ShardOpener
from patchnpack.loaders.shards.sample_rule import sample_rule
from tests.loaders.index.samples.rows import write_documents, write_rows

BY_KEY = r"key:(.+)_\d+"
KEYS = [f"{name}_{page}" for name in "abc" for page in range(3)]


def starts_of(index: Index) -> list[int]:
    assert index.samples is not None
    starts: list[int] = index.samples.starts.tolist()
    return starts


@pytest.fixture
def shard(tmp_path: Path) -> str:
    return write_rows(tmp_path / "a.tar", KEYS)


@pytest.fixture
def opener(tmp_path: Path) -> ShardOpener:
    return ShardOpener(tmp_path / "cache")


def test_neighbouring_rows_with_one_group_are_a_sample(shard: str, opener: ShardOpener) -> None:
    index = open_index(shard, sample=BY_KEY, opener=opener)
    assert starts_of(index) == [0, 3, 6, 9]
    assert list(index.keys) == KEYS
    assert starts_of(open_index(shard, sample=lambda key: key[0], opener=opener)) == [0, 3, 6, 9]
    rows = index.rows(np.array([3, 0]))
    assert rows.row.tolist() == [3, 4, 5, 0, 1, 2]
    assert rows.offsets is not None
    assert rows.offsets.tolist() == [0, 3, 6]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(0, 11))
def test_rows_are_cut_where_the_group_changes_or_a_group_that_returns_is_named(groups: list[int], cut: int) -> None:
    """Against itertools: the runs of equal groups, each in one shard, none of whose names occurs twice."""
    keys = [f"{'abcd'[group]}_{row}" for row, group in enumerate(groups)]
    index = index_of(keys, cut=min(cut, len(keys)))
    begins = [row for row in range(len(keys)) if row in (0, index.starts[1]) or groups[row] != groups[row - 1]]
    names = [groups[row] for row in begins]
    if len(set(names)) < len(names):
        with pytest.raises(ValueError, match="returns"):
            with_samples(index, sample_rule(BY_KEY))
    else:
        assert starts_of(with_samples(index, sample_rule(BY_KEY))) == [*begins, len(keys)]


def index_of(keys: list[str], cut: int) -> Index:
    """An index with these keys in two shards, without files."""
    from patchnpack.loaders.index.table import Texts

    n = len(keys)
    zeros = np.zeros(n, np.int64)
    by_row: dict[str, Any] = dict.fromkeys(("offset", "nbytes", *Header._fields, "digest"), zeros)
    by_shard: dict[str, Any] = dict.fromkeys(
        ("shard_bytes", "without_image", "unused_members", "outside"), np.zeros(2, np.int64)
    )
    return Index(
        shards=("a.tar", "b.tar"),
        versions=("", ""),
        starts=np.array([0, cut, n]),
        keys=Texts.of(keys),
        reasons=Texts.of([None] * n),
        cls=Texts.of([None] * n),
        members={},
        examples=((), ()),
        **by_row,
        **by_shard,
    )


def test_group_that_returns_after_other_rows_names_both_rows(tmp_path: Path, opener: ShardOpener) -> None:
    shard = write_rows(tmp_path / "a.tar", ["a_1", "b_1", "a_2"])
    with pytest.raises(
        ValueError, match=re.escape(f"sample 'a' (sample='{BY_KEY}') returns after other rows")
    ) as error:
        open_index(shard, sample=BY_KEY, opener=opener)
    for part in (
        "key 'a_2' in row 2",
        "key 'a_1' in row 0",
        repr(shard),
        "'a.1.jpg', 'a.2.jpg', and give sample='members'",
    ):
        assert part in str(error.value)


def test_group_over_two_shards_names_both_shards(tmp_path: Path, opener: ShardOpener) -> None:
    first = write_rows(tmp_path / "0.tar", ["a_1", "b_1"])
    second = write_rows(tmp_path / "1.tar", ["b_2", "c_1"])
    with pytest.raises(ValueError, match=r"sample 'b' .* returns in another shard than row 1, of .*0\.tar.*1\.tar"):
        open_index([first, second], sample=BY_KEY, opener=opener)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (
            "key:(x)",
            "sample is 'key:(x)', which matches none of the 9 keys: the first without a match is key 'a_0' of row 0",
        ),
        ("key:([ab])_.", "matches only 6 of the 9 keys: the first without a match is key 'c_0' of row 6 in"),
        (lambda key: None, "has a name for none of the 9 keys"),
    ],
)
def test_keys_without_a_match_are_counted_and_named(sample: Any, message: str, shard: str, opener: ShardOpener) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        open_index(shard, sample=sample, opener=opener)


def test_groups_need_no_other_scan(shard: str, opener: ShardOpener, monkeypatch: pytest.MonkeyPatch) -> None:
    save_index(scan(shard), Path(shard).parent / "index.parquet")
    monkeypatch.setattr("patchnpack.loaders.index.scanner._scan_shard", None)
    assert starts_of(open_index(shard, sample=BY_KEY, opener=opener)) == [0, 3, 6, 9]
    assert starts_of(open_index(scan_free(shard), sample=BY_KEY, opener=opener)) == [0, 3, 6, 9]
    assert open_index(shard, opener=opener).samples is None


def scan_free(shard: str) -> Index:
    return open_index(Path(shard).parent / "index.parquet")


def test_cached_scans_serve_all_rules_by_key(shard: str, opener: ShardOpener, monkeypatch: pytest.MonkeyPatch) -> None:
    open_index(shard, opener=opener)
    monkeypatch.setattr("patchnpack.loaders.index.scanner._scan_shard", None)
    assert starts_of(open_index(shard, sample=BY_KEY, opener=opener)) == [0, 3, 6, 9]
    assert open_index(shard, opener=opener).samples is None


def test_members_are_cached_by_themselves(tmp_path: Path, opener: ShardOpener, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = write_documents(tmp_path / "a.tar", {"a": [1, 2], "b": [1]})
    both = open_index(shard, sample="members", opener=opener), open_index(shard, opener=opener, image="p1.jpg")
    assert [len(index) for index in both] == [3, 2]
    monkeypatch.setattr("patchnpack.loaders.index.scanner._scan_shard", None)
    again = open_index(shard, sample="members", opener=opener)
    assert starts_of(again) == [0, 2, 3]
    assert open_index(shard, opener=opener, image="p1.jpg").samples is None


def test_index_beside_shards_is_used_for_its_own_rule_only(
    tmp_path: Path, opener: ShardOpener, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = write_documents(tmp_path / "a.tar", {"a": [1, 2], "b": [1]})
    update_index(shard, sample="members")
    assert open_index(shard, image="p1.jpg", opener=opener).samples is None
    monkeypatch.setattr("patchnpack.loaders.index.scanner._scan_shard", None)
    assert starts_of(open_index(shard, sample="members", opener=opener)) == [0, 2, 3]


@pytest.mark.parametrize(
    ("made", "asked"), [("members", None), ("members", BY_KEY), (BY_KEY, "key:(.).*"), (BY_KEY, None)]
)
def test_index_made_with_another_rule_is_refused(
    made: str, asked: str | None, shard: str, opener: ShardOpener, tmp_path: Path
) -> None:
    update_index(shard, tmp_path / "made.parquet", sample=made)
    with pytest.raises(ValueError, match=re.escape(f"was made with sample='{made}', and sample is ")) as error:
        open_index(shard, index=tmp_path / "made.parquet", sample=asked, opener=opener)
    assert f"give sample='{made}', or make it again: patchnpack index SHARDS" in str(error.value)


def test_ungrouped_index_has_no_further_members(shard: str, opener: ShardOpener, tmp_path: Path) -> None:
    save_index(scan(shard), tmp_path / "plain.parquet")
    with pytest.raises(
        ValueError,
        match=r"made without a rule for samples, and sample is 'members'.*: patchnpack index SHARDS --sample 'members'",
    ):
        open_index(shard, index=tmp_path / "plain.parquet", sample="members", opener=opener)
    with pytest.raises(ValueError, match=r"made without a rule"):
        open_index(scan(shard), sample="members")


def test_index_as_source_keeps_its_samples(shard: str, tmp_path: Path) -> None:
    update_index(shard, tmp_path / "made.parquet", sample=BY_KEY)
    index = open_index(tmp_path / "made.parquet")
    assert starts_of(index) == [0, 3, 6, 9]
    assert open_index(index) is index
    assert open_index(index, sample=BY_KEY) is index
    with pytest.raises(ValueError, match=r"the index was made with sample='key:.*leave sample= out, or make it again"):
        open_index(index, sample="members")


def test_update_reads_changed_shards_only_and_groups_all(tmp_path: Path) -> None:
    first, path = write_rows(tmp_path / "0.tar", ["a_1", "a_2"]), tmp_path / "index.parquet"
    assert update_index(first, path, sample=BY_KEY)[2] == 1
    second = write_rows(tmp_path / "1.tar", ["b_1", "b_2", "c_1"])
    _, index, read = update_index(second, path, sample=BY_KEY)
    assert (read, starts_of(index)) == (1, [0, 2, 4, 5])
    _, index, read = update_index([first, second], path)
    assert (read, index.samples) == (0, None)
    assert open_index(path).samples is None


def test_update_of_members_keeps_the_samples_of_unchanged_shards(tmp_path: Path) -> None:
    path = tmp_path / "index.arrow"
    shards = [write_documents(tmp_path / f"{i}.tar", {f"a{i}": [2, 1], f"b{i}": [1]}) for i in range(2)]
    update_index(shards, path, sample="members")
    shards[0] = write_documents(tmp_path / "0.tar", {"a0": [3, 1, 2]})
    _, index, read = update_index(shards, path, sample="members")
    assert (read, starts_of(index), index.width.tolist()) == (1, [0, 3, 5, 6], [11, 12, 13, 11, 12, 11])
    _, index, read = update_index(shards, path, image="p1.jpg")
    assert (read, index.samples) == (2, None)


def test_folder_groups_files_by_their_paths(tmp_path: Path, opener: ShardOpener) -> None:
    from tests.loaders.index.samples.rows import jpeg

    for number, name in enumerate(["a/1.jpg", "a/2.jpg", "b/c/1.jpg"]):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(jpeg(10 + number, 20))
    index = open_index(tmp_path / "in", sample="key:(.+)/[^/]+", opener=opener)
    assert (list(index.keys), starts_of(index)) == (["a/1", "a/2", "b/c/1"], [0, 2, 3])
    assert starts_of(open_index(tmp_path / "in", sample="members", opener=opener)) == [0, 1, 2, 3]
    assert open_index(tmp_path / "in", opener=opener).samples is None


def test_rows_out_of_the_order_of_their_numbers_are_warned_of(
    tmp_path: Path, opener: ShardOpener, caplog: pytest.LogCaptureFixture
) -> None:
    keys = [*(f"a_{page}" for page in (1, 10, 11, 2, 9)), "b_2", "b_10", *(f"c_{page}" for page in (3, 1))]
    shard = write_rows(tmp_path / "disordered.tar", keys)
    index = open_index(shard, sample=BY_KEY, opener=opener)
    assert starts_of(index) == [0, 5, 7, 9]
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith("the images of 2 samples are not in the order of the numbers in their keys: ")
    assert f"the first is 'a_2', after 'a_11', in '{shard}'" in warning
    caplog.clear()
    ordered = write_rows(tmp_path / "ordered.tar", ["a_9", "a_10", "b_1", "b_02", "cover_0", "x12y3_0", "x12y3_1"])
    assert starts_of(open_index(ordered, sample=BY_KEY, opener=opener)) == [0, 2, 4, 5, 7]
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
