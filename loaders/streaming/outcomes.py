"""Outcomes of a stream: its samples are judged in the order of their arrival, not in the order of the batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import NamedTuple

from patchnpack.loaders.assembly.builders.batch_builder import BatchBuilder
from patchnpack.loaders.assembly.outcomes import Outcomes
from patchnpack.loaders.assembly.stats import Stats
from patchnpack.loaders.error_policy import ErrorMonitor
from patchnpack.loaders.errors import BadRow
from patchnpack.loaders.streaming.grouping import Group
from patchnpack.packer import PackedBatch

# M images in the batch


class Outcome(NamedTuple):
    """What became of the images of one row.

    Attributes:
        images: number of images that were decoded, or could not be used.
        bad: the bad ones, each with its number among them.
        lost: numbers of the bad ones and of those left out with them.
        bad_samples: samples lost with this row that no batch counts.
        is_counted: whether the images were counted with their batch, and only have to be judged.
    """

    images: int = 0
    bad: Sequence[tuple[int, BadRow]] = ()
    lost: Sequence[int] = ()
    bad_samples: int = 0
    is_counted: bool = False


NOTHING = Outcome()
_GOOD = Outcome(1)


def of_bad(bad: Sequence[BadRow], left_out: int = 0, bad_samples: int = 0) -> Outcome:
    """Return the outcome of bad images and of others that are left out with them."""
    images = len(bad) + left_out
    return Outcome(images, list(enumerate(bad)), range(images), bad_samples)


class StreamOutcomes(Outcomes):
    """Counts what becomes of the samples of a stream, and judges them in the order of their rows.

    A row waits until the outcomes of all rows before it are known, so `max_consecutive` counts in order of arrival. The
    images of a batch are counted with it: a stream that resumes after the batch does not see them again.

    Args:
        stats: the totals of the stream.
        monitor: judges the images.
        on_bad: called with the rows that have been counted as bad, and the step of the last batch.
    """

    def __init__(
        self, stats: Stats, monitor: ErrorMonitor, on_bad: Callable[[Sequence[int], int], None] | None = None
    ) -> None:
        super().__init__(stats, monitor)
        self._on_bad, self._step = on_bad, -1
        self._planned: dict[int, tuple[list[int], Sequence[Group]]] = {}
        self._known: dict[int, Outcome] = {}
        self._next = 0

    def begin(self, row: int, step: int) -> None:
        """Set the row of the first sample and the step of the first batch, for a stream that resumes."""
        self._next, self._step = row, step - 1

    def expect(self, step: int, rows: list[int], groups: Sequence[Group]) -> None:
        """Note the rows of the M images of a batch, in its order, and the groups that they are of."""
        self._planned[step] = rows, groups

    def record(self, row: int, outcome: Outcome) -> None:
        """Record what became of a row.

        Raises:
            BadDataError: a limit of the error policy is reached.
        """
        self._known[row] = outcome
        while self._next in self._known:
            row, outcome = self._next, self._known.pop(self._next)
            self._next += 1
            if outcome.lost and not outcome.is_counted:
                for _, bad in outcome.bad:
                    self.add_bad(bad, 0)
                self.stats.bad_samples += outcome.bad_samples
                self.stats.left_out += len(outcome.lost) - len(outcome.bad)
                if self._on_bad is not None:
                    self._on_bad([row], self._step)
            if not outcome.lost:
                if outcome.images:
                    self.monitor.record(outcome.images, [])
            else:
                self.monitor.record(outcome.images, list(outcome.bad), list(outcome.lost))

    def judge(self, batch: PackedBatch, builder: BatchBuilder) -> None:
        """Record the outcome of each row of a batch."""
        self._step = batch.step
        self.stats.bad_samples += builder.bad_samples
        self.stats.left_out += len(builder.lost) - len(builder.bad)
        rows, groups = self._planned.pop(batch.step)
        if not builder.lost and len(rows) == len(groups):  # one image each, nearly always
            before = any(sample.bad for group in groups for sample in group.samples)
            if not before and all(len(group.samples) == 1 for group in groups):
                for row in rows:
                    self.record(row, _GOOD)
                return
        images: dict[int, list[int]] = {}
        for number, row in enumerate(rows):
            images.setdefault(row, []).append(number)
        bad, lost = dict(builder.bad), set(builder.lost)
        found = [*bad.values(), *(before for group in groups for before in group.bad_rows())]
        for each in sorted(found, key=attrgetter("row")):
            self.add_bad(each, 0)
        for group in groups:
            for sample in group.samples:
                self.record(sample.row, _of_images(images.get(sample.row, ()), bad, lost, sample.bad))


def _of_images(images: Sequence[int], bad: dict[int, BadRow], lost: set[int], before: Sequence[BadRow]) -> Outcome:
    """Return the outcome of a row with these images of a batch, and with images that were bad before it."""
    if not lost and not before:
        return Outcome(len(images))
    first = len(before)
    return Outcome(
        first + len(images),
        [*enumerate(before), *((i, bad[image]) for i, image in enumerate(images, first) if image in bad)],
        [*range(first), *(i for i, image in enumerate(images, first) if image in lost)],
        is_counted=True,
    )
