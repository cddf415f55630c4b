"""Outcomes of a stream: its samples are judged in the order of their arrival, not in the order of the batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from patchnpack.loaders.assembly.batch_builder import BatchBuilder
from patchnpack.loaders.assembly.outcomes import Outcomes
from patchnpack.loaders.assembly.stats import Stats
from patchnpack.loaders.error_policy import ErrorMonitor
from patchnpack.loaders.errors import BadRow
from patchnpack.packer import PackedBatch


class StreamOutcomes(Outcomes):
    """Counts and judges the samples of a stream in the order of their rows.

    A row waits until the outcomes of all rows before it are known, so `max_consecutive` counts in order of arrival.

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
        self._known: dict[int, BadRow | bool] = {}
        self._next = 0

    def begin(self, row: int, step: int) -> None:
        """Set the row of the first sample and the step of the first batch, for a stream that resumes."""
        self._next, self._step = row, step - 1

    def record(self, row: int, outcome: BadRow | bool) -> None:
        """Record what became of a row: the record of a bad image, True for a good image, False for a row left out.

        Raises:
            BadDataError: a limit of the error policy is reached.
        """
        self._known[row] = outcome
        while self._next in self._known:
            outcome = self._known.pop(self._next)
            self._next += 1
            if isinstance(outcome, BadRow):
                self.add_bad(outcome, 0)
                self.stats.bad_samples += 1
                if self._on_bad is not None:
                    self._on_bad([outcome.row], self._step)
                self.monitor.record(1, [(0, outcome)])
            elif outcome:
                self.monitor.record(1, [])

    def judge(self, batch: PackedBatch, builder: BatchBuilder) -> None:
        """Record the outcome of each image of a batch."""
        self._step = batch.step
        for row in batch.rows[batch.image_mask].tolist():
            self.record(row, True)
        for _, bad in builder.bad:
            self.record(bad.row, bad)
