"""The prefetch loop: submits batches to the decoding threads ahead of use, waits, counts, and hands them out in order.

It serves shards, packed folders and streams alike:

```
 builders --submit--> decoding threads       at most `prefetch` batches ahead of the one in use
 in flight: [k, k+1, ... k+prefetch] --finish k--> count k --> yield k
```
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice

from patchnpack.loaders.assembly.batch_builder import BatchBuilder
from patchnpack.loaders.assembly.decode_pool import CallerThread, DecodePool
from patchnpack.loaders.assembly.outcomes import LeftOut, Outcomes
from patchnpack.loaders.assembly.stats import Ticker
from patchnpack.loaders.errors import StallError
from patchnpack.packer import PackedBatch


def run_batches(
    builders: Iterator[BatchBuilder],
    outcomes: Outcomes,
    *,
    num_threads: int,
    prefetch: int,
    on_batch: Callable[[PackedBatch], None] | None = None,
    on_close: Callable[[], None] | None = None,
) -> Iterator[PackedBatch]:
    """Run the builders on `num_threads` threads and yield their batches in order.

    Nothing here or in the arguments refers to this generator. A forgotten iterator therefore closes at once, and its
    threads end.

    Args:
        builders: the batches to build. Advancing it plans the next batch and notes in `outcomes.left_out` the rows that
            the plan leaves out; they are counted with the next batch that is handed out.
        outcomes: counts batches and rows.
        num_threads: decoding threads; with 0 the caller's thread builds each batch when it asks for it.
        prefetch: batches that the threads build ahead of the one in use.
        on_batch: called with each batch as it is counted, before it is handed out.
        on_close: called when the iterator ends, before the threads are joined, to end what they may be waiting for.

    Raises:
        StallError: no image was finished for `stall_s` seconds. The stuck thread is not waited for.
    """
    threads = DecodePool(num_threads) if num_threads else CallerThread()
    ahead = prefetch if num_threads else 0
    in_flight: deque[tuple[BatchBuilder, LeftOut]] = deque()
    ticker = Ticker(outcomes.stats)
    timeout: float | None = None
    try:
        began = time.perf_counter()
        while True:
            asked = time.perf_counter()
            for builder in islice(builders, ahead + 1 - len(in_flight)):
                threads.submit(builder, builder.num_parts)
                in_flight.append((builder, outcomes.left_out.take()))
            if not in_flight:
                break
            builder, left_out = in_flight.popleft()
            batch = builder.finish()
            now = time.perf_counter()
            outcomes.count_left_out(left_out)
            if on_batch is not None:
                on_batch(batch)
            outcomes.count_batch(batch, builder, waited=now - asked, ran=now - began)
            if not in_flight:  # the last batch: no later one can count these rows
                outcomes.count_left_out(outcomes.left_out.take())
            began = now
            ticker.tick(sum(other.is_done for other, _ in in_flight), len(in_flight))
            del builder
            yield batch
            del batch
        outcomes.count_left_out(outcomes.left_out.take())
    except StallError:
        timeout = 0.0
        raise
    finally:
        if on_close is not None:
            on_close()
        threads.close(timeout)
