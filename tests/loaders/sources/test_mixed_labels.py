"""Labels of a mixture, asked of the source of each row."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from patchnpack.loaders.sources.mixed_labels import MixedLabels

STARTS = np.array([0, 3, 5, 9])  # shards, a data set, shards


class Given(SimpleNamespace):
    """Labels that are `first`, `first` + 1, ... by row."""

    def known(self, rows: np.ndarray) -> np.ndarray:
        shape = (len(rows), *self.shape)
        return np.broadcast_to((self.first + rows).reshape(-1, *[1] * len(self.shape)), shape)

    def of(self, row: int) -> int:
        return int(self.first + row)


def given(first: int, **changes: Any) -> Any:
    facts = {"shape": (), "num_classes": 20, "classes": None, "has_labels": True, "is_read": False}
    return Given(first=first, **(facts | changes))


def mixed(indexed: Any, dataset: Any) -> MixedLabels:
    return MixedLabels(["web", "hub", "books"], STARTS, indexed, {1: dataset})


def test_rows_of_shards_are_those_of_the_mixture_and_rows_of_a_data_set_its_own() -> None:
    labels = mixed(given(100), given(500, num_classes=700))
    assert labels.known(np.array([8, 3, 0, 4, 5])).tolist() == [108, 500, 100, 501, 105]  # type: ignore[union-attr]
    assert labels.of(8) == 108
    assert labels.num_classes == 700


def test_sources_without_labels_have_the_absent_one() -> None:
    labels = mixed(None, given(500))
    assert labels.known(np.array([0, 4, 8])).tolist() == [-100, 501, -100]  # type: ignore[union-attr]
    assert labels.of(0) == -100
    labels = mixed(given(100, shape=(2,), num_classes=2), given(500, has_labels=False))
    known = labels.known(np.array([3, 1]))
    assert known is not None
    assert np.isnan(known[0]).all()
    assert known[1].tolist() == [101, 101]


def test_nothing_is_known_beforehand_where_a_row_has_to_be_read() -> None:
    labels = mixed(given(100), given(500, is_read=True))
    assert labels.known(np.array([0, 3])) is None
    assert labels.known(np.array([0, 8])) is not None  # no row of the data set


def test_classes_are_counted_only_where_all_sources_count_them() -> None:
    assert mixed(given(0, num_classes=None), given(0)).num_classes is None
    assert mixed(None, given(0)).num_classes == 20


def test_labels_of_different_shapes_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"source 'web' have shape \(\), those of 'hub' \(2,\)"):
        mixed(given(0), given(0, shape=(2,)))
