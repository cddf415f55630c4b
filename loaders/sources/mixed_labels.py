"""Labels of a mixture with data sets: each row asks the labels of its own source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from patchnpack.loaders.datasets.labels import ItemLabels
from patchnpack.loaders.labels.labels import LabelKind, Labels

# k sources, m rows, D values in a target


class MixedLabels(LabelKind):
    """The labels of a mixture of k sources; for `num_classes` and `classes` see `Labels`.

    Args:
        names: names of the sources.
        starts: int64 (k + 1,), the first row of each source.
        indexed: labels of all rows that are not of data sets, by row of the mixture; None where they have no label.
        datasets: labels of each data set, by its own rows, at the number of its source; other sources have none.

    Raises:
        ValueError: the labels of two sources differ in shape.
    """

    def __init__(
        self,
        names: Sequence[str],
        starts: np.ndarray,
        indexed: Labels | None,
        datasets: Mapping[int, ItemLabels],
    ) -> None:
        self._starts, self._indexed, self._datasets = starts, indexed, datasets
        given: dict[str, Labels | ItemLabels] = {}
        for number, name in enumerate(names):
            labels = datasets.get(number, indexed)
            if labels is not None and self._has_labels(number):
                given[name] = labels
        shapes = {name: labels.shape for name, labels in given.items()}
        first = next(iter(shapes), "")
        for name, shape in shapes.items():
            if shape != shapes[first]:
                raise ValueError(
                    f"labels of source {first!r} have shape {shapes[first]}, those of {name!r} {shape}; all labels of "
                    "a mixture must have the same shape: name others with label={source: label}"
                )
        super().__init__(shapes.get(first, ()))
        counts = [labels.num_classes for labels in given.values()]
        known = [count for count in counts if count is not None]
        self.num_classes = max(known) if known and len(known) == len(counts) else None
        self.classes = next((labels.classes for labels in given.values() if labels.classes), None)

    def _has_labels(self, source: int) -> bool:
        return self._datasets[source].has_labels if source in self._datasets else self._indexed is not None

    def known(self, rows: np.ndarray) -> np.ndarray | None:
        """Return the labels of rows, (m,) or (m, D), where all are known before anything is read; else None."""
        source = np.searchsorted(self._starts, rows, side="right") - 1
        found = np.full((len(rows), *self.shape), self.absent)
        for number in np.unique(source).tolist():
            if not self._has_labels(number):
                continue
            here = source == number
            labels = self._datasets.get(number)
            if labels is None:
                assert self._indexed is not None
                values = self._indexed.known(rows[here])
            else:
                values = None if labels.is_read else labels.known(rows[here] - self._starts[number])
            if values is None:
                return None
            found[here] = values
        return found

    def of(self, row: int) -> object:
        """Return the label of a row that is not of a data set, `absent` where it has none."""
        return self.absent if self._indexed is None else self._indexed.of(row)
