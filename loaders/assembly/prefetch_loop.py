"""The prefetch loop: submits batches to the decoding threads ahead of use, waits, counts, and hands them out in order.

It serves shards, packed folders and streams alike:

```
 builders --(planning thread)--> submit --> decoding threads    at most `prefetch` batches ahead of the one in use
 in flight: [k, k+1, ... k+prefetch] --finish k--> count k --> yield k
```
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from patchnpack.loaders.assembly.builders.batch_builder import BatchBuilder
from patchnpack.loaders.assembly.decode_pool import CallerThread, DecodePool
from patchnpack.loaders.assembly.outcomes import LeftOut, Outcomes
from patchnpack.loaders.assembly.plan_ahead import PlanAhead, Planned
from patchnpack.loaders.assembly.stats import Ticker
from patchnpack.loaders.errors import StallError
from patchnpack.packer import PackedBatch

_IMAGES_PER_THREAD = 2  # minimum in flight: threads would idle if batches hold few images


def run_batches(
    builders: Iterator[BatchBuilder],
    outcomes: Outcomes,
    *,
    num_threads: int,
    prefetch: int,
    plan_ahead: bool = False,
    on_batch: Callable[[PackedBatch], None] | None = None,
    on_close: Callable[[], None] | None = None,
) -> Iterator[PackedBatch]:
    """Run the builders on `num_threads` threads and yield their batches in order.

    Nothing here or in the arguments refers to this generator. A forgotten iterator therefore closes at once, and its
    threads end.

    Args:
        builders: the batches to build. Advancing it plans the next batch and notes in `outcomes.left_out` the rows that
            the plan leaves out; they are counted with that batch, once it is handed out.
        outcomes: counts batches and rows.
        num_threads: decoding threads; with 0 the caller's thread builds each batch when it asks for it.
        prefetch: batches that the threads build ahead of the one in use; more where these hold less than two images
            per thread.
        plan_ahead: advance `builders` in a thread of its own instead of the caller's.
        on_batch: called with each batch as it is counted, before it is handed out.
        on_close: called when the iterator ends, before the threads are joined, to end what they may be waiting for.

    Raises:
        StallError: no image was finished for `stall_s` seconds. The stuck thread is not waited for.
    """
    threads = DecodePool(num_threads) if num_threads else CallerThread()
    ahead, least_images = prefetch if num_threads else 0, _IMAGES_PER_THREAD * num_threads
    noted = _with_left_out(builders, outcomes)
    planner = PlanAhead(noted) if plan_ahead else None
    planned = noted if planner is None else iter(planner)
    in_flight: deque[tuple[BatchBuilder, LeftOut]] = deque()
    ticker = Ticker(outcomes.stats)
    tail: LeftOut | None = None  # rows left out after the last batch; None until the plan has ended
    timeout: float | None = None
    try:
        began = time.perf_counter()
        while True:
            asked = time.perf_counter()
            while tail is None and (len(in_flight) <= ahead or _images(in_flight) < least_images):
                following, left_out = next(planned)
                if following is None:
                    tail = left_out
                else:
                    threads.submit(following, following.num_parts)
                    in_flight.append((following, left_out))
                del following
            if not in_flight:
                break
            builder, left_out = in_flight.popleft()
            batch = builder.finish()
            now = time.perf_counter()
            outcomes.count_left_out(left_out)
            if on_batch is not None:
                on_batch(batch)
            outcomes.count_batch(batch, builder, waited=now - asked, ran=now - began)
            if not in_flight and tail is not None:  # the last batch: no later one can count these rows
                outcomes.count_left_out(tail.take())
            began = now
            ticker.tick(sum(other.is_done for other, _ in in_flight), len(in_flight))
            del builder
            yield batch
            del batch
        if tail is not None:
            outcomes.count_left_out(tail)
    except StallError:
        timeout = 0.0
        raise
    finally:
        if on_close is not None:
            on_close()
        if planner is not None:
            planner.close(timeout)
        threads.close(timeout)


def _images(in_flight: Iterable[tuple[BatchBuilder, LeftOut]]) -> int:
    return sum(max(1, builder.num_images) for builder, _ in in_flight)


def _with_left_out(builders: Iterator[BatchBuilder], outcomes: Outcomes) -> Iterator[Planned]:
    """Yield each builder with the rows that were left out since the one before it, then None with the last rows."""

    def taken(builder: BatchBuilder) -> Planned:
        return builder, outcomes.left_out.take()

    yield from map(taken, builders)  # `map` keeps no reference to a builder, which would keep its batch alive
    yield None, outcomes.left_out.take()
