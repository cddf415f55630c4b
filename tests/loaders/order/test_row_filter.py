from __future__ import annotations

import numpy as np
import pytest

from patchnpack.loaders import ErrorPolicy, Index, PackedImageLoader
from patchnpack.loaders.order.row_filter import RowFilter
from patchnpack.packer import Packing, PatchSizes
from patchnpack.packer.binpacking.algorithms import CHOICES
from patchnpack.packer.binpacking.pricing.prices import Prices
from patchnpack.packer.planning.measure import measure

PACKING = Packing(seq_len=64, patch_size=8, max_images=7)


def test_rows_over_the_limits_are_bad_unless_where_leaves_them_out(index: Index) -> None:
    pixels = index.width.astype(np.int64) * index.height
    limit = int(np.median(pixels))
    found = RowFilter.of(index, lambda index: np.arange(len(index)) % 2 == 0, ErrorPolicy(max_pixels=limit), None)
    even = np.arange(len(index)) % 2 == 0
    assert found.filtered.tolist() == (~even).tolist()
    assert found.mask.tolist() == (even & (pixels <= limit)).tolist()
    assert list(found.bad) == np.flatnonzero(even & (pixels > limit)).tolist()
    assert {stage for stage, _ in found.bad.values()} == {"limit"}


def test_auto_and_prices_are_decided_and_other_algorithms_stay(index: Index) -> None:
    rows = RowFilter.of(index, None, ErrorPolicy(), None)
    assert rows.decide(index, PACKING, 0).algorithm in CHOICES
    assert rows.decide(index, PACKING.replace(algorithm="best_fit"), 0) == PACKING.replace(algorithm="best_fit")
    own = PACKING.replace(algorithm="priced", prices=(Prices((3, 9), (100, 600)),))
    assert rows.decide(index, own, 0) == own, "prices that are given stay"


def test_prices_come_from_every_row_that_is_used_as_often_as_it_comes(index: Index) -> None:
    priced = PACKING.replace(algorithm="priced", oversize="skip", seq_len=30)
    images, over, *_ = measure(index.rows(np.arange(len(index))), priced, seed=0, epoch=0)
    assert 0 < over.sum() < 30
    rows = RowFilter.of(index, None, ErrorPolicy(), None)
    assert rows.decide(index, priced, 0).prices == (Prices.of_counts(np.bincount(images.keep[~over]), 30),)
    often = rows.decide(index, priced, 0, lambda numbers: 1 + 99 * (numbers % 2)).prices
    counts = np.bincount(images.keep[~over], 1 + 99 * (np.arange(len(index)) % 2)[~over])
    assert often == (Prices.of_counts(counts.astype(int), 30),)


def test_each_patch_size_has_its_own_prices(index: Index) -> None:
    rows = RowFilter.of(index, None, ErrorPolicy(), None)
    several = PACKING.replace(algorithm="priced", patch_size=PatchSizes((4, 8)))
    prices = rows.decide(index, several, 0).prices
    assert prices == tuple(
        rows.decide(index, several.replace(patch_size=size), 0).prices[0]  # type: ignore[index]
        for size in (4, 8)
    )


def test_where_chooses_rows_by_what_the_index_knows(index: Index) -> None:
    loader = PackedImageLoader(
        index, PACKING, batch_size=2, where=lambda index: np.array([key.endswith("3") for key in index.keys])
    )
    expected = [key for key in index.keys if key.endswith("3")]
    assert sorted(key for batch in loader for keys in batch.keys for key in keys) == expected
    assert loader.stats()["skipped"] == {
        "oversize": 0,
        "undersize": 0,
        "frames": 0,
        "where": 60 - len(expected),
        "tail": 0,
    }


@pytest.mark.parametrize("result", [[0, 1, 2], np.ones(60), np.ones(59, np.bool_), True])
def test_where_that_returns_no_mask_is_refused(result: object, index: Index) -> None:
    with pytest.raises(ValueError, match=r"where returned .*; it must return bool \(60,\), one value per row"):
        PackedImageLoader(index, PACKING, batch_size=2, where=lambda index: result)  # type: ignore[arg-type,return-value]
