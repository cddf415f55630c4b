from __future__ import annotations

import numpy as np
import pytest

from patchnpack.loaders import ErrorPolicy, Index, PackedImageLoader
from patchnpack.loaders.order.row_filter import RowFilter
from patchnpack.packer import Packing

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


def test_auto_is_decided_and_other_algorithms_stay(index: Index) -> None:
    rows = RowFilter.of(index, None, ErrorPolicy(), None)
    assert rows.with_algorithm(index, PACKING, 0).algorithm in ("largest_fit", "subset_sum")
    assert rows.with_algorithm(index, PACKING.replace(algorithm="best_fit"), 0).algorithm == "best_fit"


def test_where_chooses_rows_by_what_the_index_knows(index: Index) -> None:
    loader = PackedImageLoader(
        index, PACKING, batch_size=2, where=lambda index: np.array([key.endswith("3") for key in index.keys])
    )
    expected = [key for key in index.keys if key.endswith("3")]
    assert sorted(key for batch in loader for keys in batch.keys for key in keys) == expected
    assert loader.stats()["skipped"] == {"oversize": 0, "where": 60 - len(expected), "tail": 0}


@pytest.mark.parametrize("result", [[0, 1, 2], np.ones(60), np.ones(59, np.bool_), True])
def test_where_that_returns_no_mask_is_refused(result: object, index: Index) -> None:
    with pytest.raises(ValueError, match=r"where returned .*; it must return bool \(60,\), one value per row"):
        PackedImageLoader(index, PACKING, batch_size=2, where=lambda index: result)  # type: ignore[arg-type,return-value]
