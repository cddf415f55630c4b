from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from patchnpack.packer.analysis.histogram import Histogram


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=50), st.integers(1, 60))
def test_each_whole_number_is_counted_in_its_bin(values: list[int], bins: int) -> None:
    found = Histogram.of_counts(values, bins)
    edges = np.array(found.edges)
    assert len(found.counts) == len(edges) - 1 <= bins
    assert len(set(np.diff(edges).tolist())) == 1
    expected = [sum(low <= value < high for value in values) for low, high in itertools.pairwise(edges)]
    assert list(found.counts) == expected
    assert sum(expected) == len(values)


def test_values_beyond_the_edges_are_counted_in_the_outermost_bins() -> None:
    assert Histogram.of([-5, 0.5, 1, 99], [0, 1, 2]).counts == (2, 2)
