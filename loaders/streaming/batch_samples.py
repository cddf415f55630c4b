"""The samples of one batch of a stream, and the rows that a plan needs of the samples that wait."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from patchnpack.loaders.assembly.context import BatchContext
from patchnpack.loaders.errors import BadImage, BadRow
from patchnpack.loaders.imaging.decode_pages import Wanted
from patchnpack.loaders.imaging.warnings import Warn
from patchnpack.loaders.remote.addresses import redact
from patchnpack.loaders.streaming.grouping import Group
from patchnpack.loaders.streaming.pictures import Picture
from patchnpack.loaders.streaming.samples import Sample
from patchnpack.packer import Rows

# M images


def rows_of(groups: Sequence[Group], stream: int, *, several: bool = False) -> Rows:
    """Return the rows that a plan needs.

    Args:
        groups: the samples for the planner.
        stream: number of this stream among those that train together.
        several: whether groups may hold several images; a `page` is then the number of an image in its sample.
    """
    samples = [sample for group in groups for sample in group.samples]
    runs = [(sample.row, run) for sample in samples for run in sample.runs]
    row = np.array([row for row, _ in runs], np.int64)
    columns: dict[str, np.ndarray] = {
        "row": row,
        "row_id": row.astype(np.uint64) | np.uint64(stream << 32),
        "width": np.array([run.header.width for _, run in runs], np.int32),
        "height": np.array([run.header.height for _, run in runs], np.int32),
        "bytes_per_pixel": np.array([each for sample in samples for each in _bytes_per_pixel(sample, several)]),
    }
    if several:
        counts = [sum(len(sample.runs) for sample in group.samples) for group in groups]
        columns |= {
            "page": np.array([run.number for _, run in runs], np.int32),
            "frames": np.array([run.frames for _, run in runs], np.int32),
            "offsets": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        }
    return Rows(**columns)


def _bytes_per_pixel(sample: Sample, several: bool) -> list[float]:
    """Return the encoded bytes per pixel of the file of each run; 0 for a PIL image or an array."""
    pixels = [0] * len(sample.pictures)
    for run in sample.runs:
        frames = run.frames if several else max(1, run.header.pages)
        pixels[run.file] += run.header.width * run.header.height * frames
    encoded = [len(picture) if isinstance(picture, bytes) else 0 for picture in sample.pictures]
    return [encoded[run.file] / max(1, pixels[run.file]) for run in sample.runs]


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamBatchContext(BatchContext):
    """The batch context of one batch of a stream.

    Attributes:
        batch_samples: the sample of each image of the batch, in order, and the group that it is of.
        all_pages: whether all pages and frames of the files are used.
    """

    batch_samples: Sequence[tuple[Group, Sample]]
    all_pages: bool

    def samples(self, rows: np.ndarray, page: np.ndarray | None = None) -> StreamBatch:
        """Return the samples of the batch; `rows` must be theirs, in order, and `page` numbers images in samples."""
        assert [sample.row for _, sample in self.batch_samples] == rows.tolist(), (
            "the samples are not those that were planned"
        )
        return StreamBatch(self, page)


class StreamBatch:
    """The samples of one batch; see `Samples`.

    Args:
        context: where the samples wait.
        page: number of each image in its sample, int32 (M,); None where each sample is one image.
    """

    def __init__(self, context: StreamBatchContext, page: np.ndarray | None) -> None:
        samples = [sample for _, sample in context.batch_samples]
        numbers = [0] * len(samples) if page is None else page.tolist()
        runs = [sample.run_of(number) for sample, number in zip(samples, numbers, strict=True)]
        self._headers = [run.header for run in runs]
        self._files = [run.file for run in runs]
        self._pages = [run.page + number - run.number for run, number in zip(runs, numbers, strict=True)]
        self.width = np.array([header.width for header in self._headers], np.int32)
        self.height = np.array([header.height for header in self._headers], np.int32)
        self.pages = np.array([header.pages for header in self._headers], np.int32)
        self.keys = [sample.key for sample in samples]
        self.labels: np.ndarray | None = None
        self._batch_samples, self._context, self._numbers = samples, context, numbers

    def shard(self, i: int) -> str:
        """Return the shard of image i, without credentials."""
        return redact(self._batch_samples[i].shard)

    def continued(self) -> np.ndarray:
        """Return whether each image comes from the same file as the one before it, bool (M,)."""
        same: np.ndarray = self.shares("") & (np.diff(self._files, prepend=-1) == 0)
        return same

    def shares(self, extension: str) -> np.ndarray:
        """Return whether each image is of the same sample of the stream as the one before it, bool (M,)."""
        rows = [sample.row for sample in self._batch_samples]
        same: np.ndarray = np.diff(rows, prepend=-1) == 0
        return same

    def read(self, i: int) -> Picture:
        """Return the file of image i, or its pixels, as it arrived."""
        return self._batch_samples[i].pictures[self._files[i]]

    def decode(
        self, i: int, data: Any, size: tuple[int, int], box: tuple[int, ...] | None, strict: bool, warn: Warn
    ) -> np.ndarray:
        """Decode image i upright and resize its `box` to `size`; `warn` gets what is odd. Raises BadImage."""
        return self._context.pixels(self.keys[i], data, self._headers[i], size, box, strict, warn)

    def decode_run(
        self,
        which: range,
        data: Any,
        sizes: Sequence[tuple[int, int]],
        boxes: Sequence[tuple[int, ...] | None],
        strict: bool,
        warn: Warn,
    ) -> Iterator[np.ndarray | BadImage]:
        """Yield images that come from the same file, in order, or why one is bad; see `Samples`."""
        part = slice(which.start, which.stop)
        wanted = list(map(Wanted, self._pages[part], self._headers[part], sizes, boxes))
        runs = self._batch_samples[which.start].runs
        paged = sum(run.frames for run in runs if run.file == self._files[which.start]) > 1
        yield from self._context.pixels_of_pages(self.keys[which.start], data, wanted, strict, warn, paged=paged)

    def label(self, i: int) -> Any:
        """Return the label of image i's sample, the first in its group; `absent` where it has none."""
        group = self._context.batch_samples[i][0].samples
        label = next((sample.label for sample in group if sample.label is not None), None)
        return self._context.labels.absent if label is None else label

    def extra(self, i: int, extension: str) -> Any:
        """Return the value of another member of the sample."""
        return self._batch_samples[i].extras[self._context.extras.index(extension)]

    def bad_row(self, i: int, stage: str, reason: str) -> BadRow:
        """Return the record of image i, which could not be used."""
        return self._batch_samples[i].bad_row(stage, reason, self._numbers[i])
