"""`Histogram`: the distributions in a report."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True, kw_only=True, slots=True)
class Histogram:
    """Counts of values in n bins; bin i holds the values from `edges[i]` to below `edges[i + 1]`.

    Attributes:
        edges: n + 1 values in ascending order.
        counts: n numbers of values.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, values: ArrayLike, edges: ArrayLike) -> Histogram:
        """Count values in bins with the given edges; values beyond them count in the first or last bin.

        >>> Histogram.of([1, 2, 2, 9], [0, 2, 4])
        Histogram(edges=(0.0, 2.0, 4.0), counts=(1, 3))
        """
        bounds = np.asarray(edges, np.float64)
        inner = np.searchsorted(bounds[1:-1], np.asarray(values), side="right")
        counts = np.bincount(inner, minlength=len(bounds) - 1)
        return cls(edges=tuple(bounds.tolist()), counts=tuple(counts.tolist()))

    @classmethod
    def of_counts(cls, values: ArrayLike, bins: int = 40) -> Histogram:
        """Count whole numbers in at most `bins` bins of equal width: 1, 2, 5, 10, 20 and so on.

        >>> Histogram.of_counts([1, 1, 3])
        Histogram(edges=(1.0, 2.0, 3.0, 4.0), counts=(2, 0, 1))
        """
        values = np.asarray(values)
        low, high = int(values.min()), int(values.max())
        widths = (step * 10**power for power in itertools.count() for step in (1, 2, 5))
        width = next(width for width in widths if high // width - low // width < bins)
        return cls.of(values, np.arange(low // width, high // width + 2) * width)
