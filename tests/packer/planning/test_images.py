"""Rows of the index and the images made of them."""

from __future__ import annotations

import numpy as np
import pytest

from patchnpack.packer import (
    Rows,
)


def test_columns_of_unequal_length_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"the columns have lengths .*'width': 2, 'height': 3"):
        Rows.of_sizes([1, 2], [1, 2, 3])


def test_of_sizes_numbers_the_rows_from_0() -> None:
    rows = Rows.of_sizes([64, 32], [16, 48])
    assert len(rows) == 2
    assert rows.offsets is None
    assert {name: (column.dtype.type, column.tolist()) for name, column in rows._columns().items()} == {
        "row": (np.int64, [0, 1]),
        "row_id": (np.uint64, [0, 1]),
        "width": (np.int32, [64, 32]),
        "height": (np.int32, [16, 48]),
    }
