from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from patchnpack.loaders import Index
from patchnpack.loaders.error_policy import ErrorPolicy
from patchnpack.loaders.order.row_filter import RowFilter
from patchnpack.loaders.order.shard_shuffle import ShardShuffle
from patchnpack.loaders.order.state import rows_digest
from patchnpack.packer.binpacking.pricing.prices import Prices
from tests.loaders.documents import PACKING, Documents


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return Documents(tmp_path_factory.mktemp("documents"), (5, 0, 7, 1)).index()


def filter_of(index: Index, where: Any = None, on_bad: Any = "sample", max_pixels: int = 10**6) -> RowFilter:
    return RowFilter.of(index, where, ErrorPolicy(on_bad=on_bad, max_pixels=max_pixels), None)


def starts_of(index: Index) -> np.ndarray:
    assert index.samples is not None
    return index.samples.starts


def test_sample_is_used_if_where_keeps_all_its_rows(index: Index) -> None:
    starts = starts_of(index)
    kept = np.ones(len(index), np.bool_)
    kept[starts[3]] = kept[starts[6] - 1] = False
    rows = filter_of(index, lambda _: kept)
    out = [*range(starts[3], starts[4]), *range(starts[5], starts[6])]
    assert np.flatnonzero(rows.filtered).tolist() == out
    assert np.flatnonzero(~rows.mask).tolist() == out
    assert np.flatnonzero(rows.heads(index)).tolist() == np.delete(starts[:-1], [3, 5]).tolist()
    assert rows.counts(index) == (2, 0, 0)


@pytest.mark.parametrize("at", [0, 1, -1])
def test_bad_row_leaves_out_its_sample_or_itself(index: Index, at: int) -> None:
    starts, sample = starts_of(index), int(np.diff(starts_of(index)).argmax())
    bad = int(starts[sample] + at if at >= 0 else starts[sample + 1] + at)
    pages = int(np.diff(starts)[sample])
    big = index.width.copy()
    big[bad] = 10**5
    damaged = replace(index, width=big)
    whole = filter_of(damaged, max_pixels=10**5)
    assert list(whole.bad) == [bad]
    assert not whole.mask[starts[sample] : starts[sample + 1]].any()
    assert whole.counts(damaged) == (0, 1, pages - 1)
    assert int(whole.heads(damaged).sum()) == len(starts) - 2
    assert whole.usable(damaged) is damaged

    alone = filter_of(damaged, on_bad="image", max_pixels=10**5)
    assert np.flatnonzero(~alone.mask).tolist() == list(alone.bad) == [bad]
    assert alone.counts(damaged) == (0, 0, 0)
    assert int(alone.heads(damaged).sum()) == len(starts) - 1
    rows = alone.usable(damaged).rows(np.flatnonzero(alone.heads(damaged)))
    assert len(rows) == len(starts) - 1
    assert rows.row.tolist() == [row for row in range(len(index)) if row != bad]
    assert rows.offsets is not None
    assert np.diff(rows.offsets)[sample] == pages - 1


def test_sample_without_a_good_row_is_lost_under_both_policies(index: Index) -> None:
    starts, sample = starts_of(index), int(np.diff(starts_of(index)).argmax())
    rows = slice(int(starts[sample]), int(starts[sample + 1]))
    big = index.width.copy()
    big[rows] = 10**5
    damaged = replace(index, width=big)
    for on_bad in ("sample", "image"):
        found = filter_of(damaged, on_bad=on_bad, max_pixels=10**5)
        assert list(found.bad) == list(range(rows.start, rows.stop))
        assert found.counts(damaged) == (0, 1, 0)
        assert found.usable(damaged) is damaged
        assert not found.heads(damaged)[rows].any()


def test_shares_of_ranks_add_up_to_all_that_is_left_out(index: Index) -> None:
    starts = starts_of(index)
    big, kept = index.width.copy(), np.ones(len(index), np.bool_)
    big[starts[1] + 1], kept[starts[4]] = 10**5, False
    damaged = replace(index, width=big)
    rows = filter_of(damaged, lambda _: kept, max_pixels=10**5)
    for world_size in (1, 2, 3, 5):
        shares = [rows.counts(damaged, rank, world_size) for rank in range(world_size)]
        assert tuple(map(sum, zip(*shares, strict=True))) == tuple(rows.counts(damaged))


@pytest.mark.parametrize("num_streams", [1, 2, 5])
@pytest.mark.parametrize("shuffle", [False, True])
def test_pass_visits_each_sample_once_and_whole(index: Index, num_streams: int, shuffle: bool) -> None:
    heads = filter_of(index).heads(index)
    one = ShardShuffle(index=index, usable=heads, seed=3, shuffle=shuffle, window=2)
    found: list[list[int]] = []
    for runs in one.streams(0, num_streams):
        for window in one.windows(runs):
            rows = one.rows(0, window)
            assert rows.offsets is not None
            assert len(rows) == one.count(window)
            found += [part.tolist() for part in np.split(rows.row, rows.offsets[1:-1])] if len(rows) else []
    starts = starts_of(index)
    expected = [list(range(low, high)) for low, high in pairwise(starts.tolist())]
    assert sorted(found) == expected
    assert (found == expected) is not shuffle
    assert one.total == len(expected)


def test_pages_cannot_be_an_error_where_all_are_used(index: Index) -> None:
    assert index.samples is not None
    members = replace(index, samples=replace(index.samples, rule="members"))
    with pytest.raises(ValueError, match=r"pages is 'error'.* sample is 'members'.*leave out one"):
        RowFilter.of(members, None, ErrorPolicy(), None, "error")
    RowFilter.of(index, None, ErrorPolicy(), None, "error")


def test_digest_of_rows_covers_the_samples(index: Index) -> None:
    assert index.samples is not None
    used = np.ones(len(index), np.bool_)
    digests = {rows_digest(index, used), rows_digest(replace(index, samples=None), used)}
    starts = np.delete(index.samples.starts, 2)
    digests.add(rows_digest(replace(index, samples=replace(index.samples, starts=starts)), used))
    for name in ("page", "frames"):
        column = getattr(index.samples, name) + 1
        digests.add(rows_digest(replace(index, samples=replace(index.samples, **{name: column})), used))
    assert len(digests) == 5


def test_no_usable_sample_is_an_error_that_counts_samples(tmp_path: Path) -> None:
    documents = Documents(tmp_path, (3,))
    documents.damage([(name, len(pages) - 1) for name, pages in documents.pages.items()], header=True)
    damaged = documents.index()
    rows = filter_of(damaged)
    with pytest.raises(ValueError, match=rf"none of the 3 samples of {len(damaged)} rows can be used: 3 are bad"):
        raise rows.none_usable(damaged)


def test_prices_are_those_of_the_lengths_of_samples(index: Index) -> None:
    packing = PACKING.replace(algorithm="priced")
    rows = filter_of(index)
    lengths = -(-index.width // 8) * -(-index.height // 8)
    sums = np.add.reduceat(lengths.astype(np.int64), starts_of(index)[:-1])
    counts = np.bincount(sums, minlength=packing.seq_len + 1)
    assert rows.decide(index, packing, 0).prices == (Prices.of_counts(counts, packing.seq_len),)
