"""Samples of a mixture with data sets: each image of a batch is read by its own source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from patchnpack.loaders.assembly.samples import IndexedBatchContext, IndexedSamples
from patchnpack.loaders.datasets.samples import DatasetContext, DatasetSamples
from patchnpack.loaders.errors import BadImage
from patchnpack.loaders.imaging.warnings import Warn
from patchnpack.loaders.sources.mixed_labels import MixedLabels

# k sources, M images in the batch


@dataclass(frozen=True, kw_only=True, slots=True)
class MixedContext(IndexedBatchContext):
    """The batch context of a mixture; `index` and `reader` are those of all k sources together.

    Attributes:
        labels: the labels of all sources.
        starts: int64 (k + 1,), the first row of each source.
        datasets: the context of each source that is a data set, by the number of the source.
    """

    labels: MixedLabels  # type: ignore[assignment]
    starts: np.ndarray
    datasets: dict[int, DatasetContext]

    def samples(self, rows: np.ndarray, page: np.ndarray | None = None) -> MixedSamples:
        """Return the samples of these rows of the index, int64 (M,); for `page` see `BatchContext`."""
        return MixedSamples(self, rows, page)


class MixedSamples(IndexedSamples):
    """The samples of one batch's M rows; see `Samples`. Images of a data set are those of its own samples."""

    def __init__(self, context: MixedContext, rows: np.ndarray, page: np.ndarray | None = None) -> None:
        super().__init__(context, rows, page)
        self._of: list[tuple[DatasetSamples, int] | None] = [None] * len(rows)
        self._parts: list[tuple[np.ndarray, DatasetSamples]] = []
        source = np.searchsorted(context.starts, rows, side="right") - 1
        for number, dataset in context.datasets.items():
            here = np.flatnonzero(source == number)
            if len(here):
                samples = dataset.samples(rows[here] - context.starts[number], None if page is None else page[here])
                self._parts.append((here, samples))
                for j, i in enumerate(here.tolist()):
                    self._of[i] = samples, j

    def continued(self) -> np.ndarray:
        """Return whether each image is made of the same image as the one before it in its sample, bool (M,)."""
        continued = super().continued()
        for here, samples in self._parts:
            continued[here] = samples.continued()
        return continued

    def shares(self, extension: str) -> np.ndarray:
        """Return whether each image has the same member as the one before it in its sample, bool (M,)."""
        in_shards = extension in self._context.index.members
        shares = super().shares(extension) if in_shards else np.zeros(len(self._rows), np.bool_)
        for here, samples in self._parts:
            shares[here] = samples.shares(extension)
        return shares

    def read(self, i: int) -> Any:
        """Read image i as its source does."""
        of = self._of[i]
        return super().read(i) if of is None else of[0].read(of[1])

    def decode(
        self, i: int, data: Any, size: tuple[int, int], box: tuple[int, ...] | None, strict: bool, warn: Warn
    ) -> np.ndarray:
        """Decode image i upright and resize its `box` to `size`; `warn` gets what is odd. Raises BadImage."""
        of = self._of[i]
        if of is None:
            return super().decode(i, data, size, box, strict, warn)
        return of[0].decode(of[1], data, size, box, strict, warn)

    def decode_run(
        self,
        which: range,
        data: Any,
        sizes: Sequence[tuple[int, int]],
        boxes: Sequence[tuple[int, ...] | None],
        strict: bool,
        warn: Warn,
    ) -> Iterator[np.ndarray | BadImage]:
        """Yield images that come from the same bytes or item, in order, or why one is bad; see `Samples`."""
        of = self._of[which.start]
        if of is None:
            yield from super().decode_run(which, data, sizes, boxes, strict, warn)
            return
        yield from of[0].decode_run(range(of[1], of[1] + len(which)), data, sizes, boxes, strict, warn)

    def label(self, i: int) -> Any:
        """Return the label of image i, `absent` of the mixture where it has none. Raises BadImage."""
        of = self._of[i]
        if of is None:
            return super().label(i)
        return of[0].label(of[1]) if of[0].has_labels else self._context.labels.absent

    def extra(self, i: int, extension: str) -> Any:
        """Return the value of another member of the sample, None where the sample lacks it. Raises BadImage."""
        of = self._of[i]
        return super().extra(i, extension) if of is None else of[0].extra(of[1], extension)

    def member(self, i: int, name: str) -> Any:
        """Return what a target reads: another member of the sample, None where the sample lacks it. Raises BadImage."""
        of = self._of[i]
        return super().member(i, name) if of is None else of[0].member(of[1], name)

    def file(self, i: int, path: str) -> bytes | None:
        """Return the file that a mask or a map names by its path, as its source finds it."""
        of = self._of[i]
        return super().file(i, path) if of is None else of[0].file(of[1], path)

    def orientation(self, i: int) -> int:
        """Return the EXIF orientation of image i, which was read."""
        of = self._of[i]
        return super().orientation(i) if of is None else of[0].orientation(of[1])
