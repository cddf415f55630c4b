"""Planning ahead, in a thread of its own: the training loop's thread only takes what is planned."""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Iterator

from patchnpack.loaders.assembly.builders.batch_builder import BatchBuilder
from patchnpack.loaders.assembly.decode_pool import DecodePool
from patchnpack.loaders.assembly.outcomes import LeftOut

Planned = tuple[BatchBuilder | None, LeftOut]

_IMAGES = 1024  # in a group


class PlanAhead:
    """Advances `planned` in a thread, ahead of use, and iterates over its items in order.

    The thread plans groups of batches, since each group costs a change of threads. The first group is one batch, so
    that the first batch waits for no other; from then on the groups double, up to 1,024 images. At most two groups are
    ahead.

    An error of the plan is raised after the batches before it. `close` ends the thread.
    """

    def __init__(self, planned: Iterator[Planned]) -> None:
        self._planned, self._images = planned, 1
        self._groups: queue.SimpleQueue[tuple[deque[Planned], BaseException | None]] = queue.SimpleQueue()
        self._thread = DecodePool(1, "patchnpack-plan")
        self._thread.submit(self, 2)

    def run(self, part: int) -> None:
        """Plan the next group; called in the thread."""
        group: deque[Planned] = deque()
        error: BaseException | None = None
        images = 0
        try:
            for item in self._planned:
                group.append(item)
                images += 1 if item[0] is None else max(1, item[0].num_images)
                if images >= self._images:
                    break
        except BaseException as raised:  # noqa: BLE001 - `__iter__` raises it in the training loop's thread
            error = raised
        self._images = min(2 * self._images, _IMAGES)
        self._groups.put((group, error))

    def __iter__(self) -> Iterator[Planned]:
        while True:
            group, error = self._groups.get()
            self._thread.submit(self, 1)
            while group:
                yield group.popleft()  # a builder that is kept here would keep its batch alive
            if error is not None:
                raise error

    def close(self, timeout: float | None) -> None:
        """End the thread; wait up to `timeout` seconds for the group that it is planning."""
        self._thread.close(timeout)
