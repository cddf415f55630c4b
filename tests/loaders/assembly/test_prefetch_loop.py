"""The batch loop hands batches out in order, counts every row once, and never outlives its iterator."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Iterator

import pytest
import torch

from patchnpack.loaders.assembly.builders.batch_builder import BatchBuilder
from patchnpack.loaders.assembly.outcomes import Outcomes
from patchnpack.loaders.assembly.prefetch_loop import run_batches
from patchnpack.loaders.assembly.stats import BatchCounts, Stats
from patchnpack.loaders.error_policy import ErrorMonitor, ErrorPolicy
from patchnpack.loaders.errors import BadDataError, BadRow, StallError
from patchnpack.packer import PackedBatch

_before: set[threading.Thread] = set()


@pytest.fixture(autouse=True)
def _threads_of_other_tests() -> None:
    """Note the threads that a test before has left: pytest keeps the traceback of one that failed, with its loader."""
    gc.collect()
    _before.clear()
    _before.update(threading.enumerate())


def library_threads() -> list[str]:
    """The threads of the library that this test has started."""
    threads = [thread for thread in threading.enumerate() if thread not in _before]
    return [thread.name for thread in threads if thread.name.startswith("patchnpack-")]


def batch_of(step: int) -> PackedBatch:
    """Return a batch of one pack with one image of one token."""
    pair = torch.ones((1, 1, 2), dtype=torch.int32)
    return PackedBatch(
        patches=torch.zeros((1, 1, 3), dtype=torch.uint8),
        segment_ids=torch.ones((1, 1), dtype=torch.int32),
        coords=pair - 1,
        grids=pair,
        image_sizes=pair,
        image_mask=torch.ones((1, 1), dtype=torch.bool),
        labels=torch.zeros((1, 1), dtype=torch.int64),
        rows=torch.full((1, 1), step),
        keys=[[str(step)]],
        extras={},
        patch_size=1,
        step=step,
        epoch=0,
        position=step + 1,
    )


class Builder:
    """Builds a batch of three parts; `gate` holds the parts back."""

    def __init__(
        self, step: int, gate: threading.Event | None = None, stall_s: float = 10.0, num_images: int = 10
    ) -> None:
        self.num_parts, self.num_images = 3, num_images
        self.bad: list[tuple[int, BadRow]] = []
        self.lost: list[int] = []
        self.bad_samples = self.without_label = self.truncated = self.multi_page = 0
        self.warnings: list[str] = []
        self.step, self.threads = step, set[str]()
        self._gate, self._stall_s = gate, stall_s
        self._left, self._lock, self._done = 3, threading.Lock(), threading.Event()

    def run(self, part: int) -> None:
        self.threads.add(threading.current_thread().name)
        if self._gate is not None:
            self._gate.wait(10)
        with self._lock:
            self._left -= 1
        if not self._left:
            self._done.set()

    @property
    def is_done(self) -> bool:
        return self._done.is_set()

    def finish(self) -> PackedBatch:
        if not self._done.wait(self._stall_s):
            raise StallError("no part was finished")
        batch = batch_of(self.step)
        self.counts = BatchCounts.of(batch)
        return batch


def outcomes_of(**policy: object) -> Outcomes:
    return Outcomes(Stats(), ErrorMonitor(ErrorPolicy(**policy)))  # type: ignore[arg-type]


def bad(row: int) -> BadRow:
    return BadRow(row=row, key=f"k{row}", shard="a.tar", offset=0, stage="header", reason="it is broken")


@pytest.mark.parametrize(("num_threads", "prefetch"), [(0, 3), (1, 1), (2, 1), (3, 4)])
def test_batches_come_in_order_and_at_most_prefetch_are_built_ahead(num_threads: int, prefetch: int) -> None:
    builders: list[Builder] = []

    def planned() -> Iterator[BatchBuilder]:
        for step in range(20):
            builders.append(Builder(step))
            yield builders[-1]

    outcomes = outcomes_of()
    batches = run_batches(planned(), outcomes, num_threads=num_threads, prefetch=prefetch)
    assert not builders
    for step, batch in enumerate(batches):
        assert batch.step == step
        assert len(builders) == min(20, step + 1 + (prefetch if num_threads else 0))
        assert outcomes.stats.batches == step + 1
    assert step == 19
    names = {name for builder in builders for name in builder.threads}
    assert all(name.startswith("patchnpack-decode") for name in names) == (num_threads > 0)
    assert library_threads() == []


def test_small_batches_are_built_further_ahead_so_that_every_thread_has_two_images() -> None:
    builders: list[Builder] = []

    def planned() -> Iterator[BatchBuilder]:
        for step in range(20):
            builders.append(Builder(step, num_images=step % 2))  # a batch without images counts as one
            yield builders[-1]

    for batch in run_batches(planned(), outcomes_of(), num_threads=4, prefetch=1):
        assert len(builders) == min(20, batch.step + 8)


@pytest.mark.parametrize(("num_threads", "plan_ahead"), [(0, False), (2, False), (2, True)])
def test_rows_left_out_are_counted_with_the_next_batch_and_the_last_ones_with_the_last(
    num_threads: int, plan_ahead: bool
) -> None:
    outcomes = outcomes_of()

    def planned() -> Iterator[BatchBuilder]:
        for step in range(4):
            outcomes.left_out.skipped["oversize"] += 1
            outcomes.left_out.bad.append((0, bad(step)))
            yield Builder(step)
        outcomes.left_out.skipped["tail"] += 5

    batches = run_batches(planned(), outcomes, num_threads=num_threads, prefetch=2, plan_ahead=plan_ahead)
    stats = outcomes.stats
    counted = [(stats.skipped["oversize"], stats.bad_images, stats.skipped["tail"]) for _ in batches]
    # Without threads nothing is planned ahead, so the tail is unknown until the iterator ends.
    assert counted == [(1, 1, 0), (2, 2, 0), (3, 3, 0), (4, 4, 5 if num_threads else 0)]
    assert stats.skipped == {"oversize": 4, "undersize": 0, "frames": 0, "where": 0, "tail": 5}


def test_rows_left_out_are_counted_without_any_batch() -> None:
    outcomes = outcomes_of()

    def planned() -> Iterator[BatchBuilder]:
        outcomes.left_out.oversize += 3
        yield from ()

    assert list(run_batches(planned(), outcomes, num_threads=1, prefetch=1)) == []
    assert outcomes.stats.oversize == 3


def test_bad_images_of_a_batch_are_counted_quarantined_and_judged(tmp_path: object) -> None:
    path = f"{tmp_path}/bad.jsonl"
    outcomes = outcomes_of(max_consecutive=2, quarantine=path)

    def planned() -> Iterator[BatchBuilder]:
        for step in range(4):
            builder = Builder(step, num_images=1)
            builder.bad = [(0, bad(step))] if step != 1 else []
            builder.lost, builder.bad_samples = [number for number, _ in builder.bad], len(builder.bad)
            yield builder

    batches = run_batches(planned(), outcomes, num_threads=2, prefetch=1)
    with pytest.raises(BadDataError, match="2 images in a row"):
        list(batches)
    assert outcomes.stats.bad_images == outcomes.stats.bad_samples == 3
    with open(path) as file:
        assert len(file.readlines()) == 3
    assert library_threads() == []


def test_stall_is_raised_without_waiting_for_the_stuck_thread() -> None:
    gate, closed = threading.Event(), list[bool]()
    builders = (Builder(step, gate, stall_s=0.2) for step in range(4))
    batches = run_batches(
        builders, outcomes_of(), num_threads=2, prefetch=1, on_close=lambda: closed.append(gate.is_set())
    )
    began = time.monotonic()
    with pytest.raises(StallError):
        next(batches)
    assert time.monotonic() - began < 5
    assert closed == [False]
    gate.set()
    while library_threads() and time.monotonic() - began < 10:
        time.sleep(0.01)
    assert library_threads() == []


@pytest.mark.parametrize("plan_ahead", [False, True])
@pytest.mark.parametrize("in_a_cycle", [False, True])
def test_forgotten_iterator_ends_its_threads(in_a_cycle: bool, plan_ahead: bool) -> None:
    closed = list[str]()
    batches = run_batches(
        (Builder(step) for step in range(100)),
        outcomes_of(),
        num_threads=2,
        prefetch=2,
        plan_ahead=plan_ahead,
        on_close=lambda: closed.append("closed"),
    )
    gc.disable()
    try:
        next(batches)
        assert len(library_threads()) == 2 + plan_ahead
        if in_a_cycle:
            cycle: list[object] = [batches]
            cycle.append(cycle)
            del cycle
        del batches
        assert closed == ([] if in_a_cycle else ["closed"])
        gc.collect()
        assert closed == ["closed"]
        assert library_threads() == []
    finally:
        gc.enable()


@pytest.mark.parametrize("plan_ahead", [False, True])
@pytest.mark.parametrize("after", [0, 1, 5])
def test_error_of_the_plan_is_raised_and_ends_the_threads(after: int, plan_ahead: bool) -> None:
    def planned() -> Iterator[BatchBuilder]:
        yield from map(Builder, range(after))
        raise ConnectionError("the source broke")

    steps = list[int]()
    batches = run_batches(planned(), outcomes_of(), num_threads=2, prefetch=1, plan_ahead=plan_ahead)
    with pytest.raises(ConnectionError, match="the source broke"):
        steps.extend(batch.step for batch in batches)
    assert steps == list(range(max(0, after - 1)))  # the batch being built when the plan failed is not handed out
    assert library_threads() == []


@pytest.mark.parametrize("plan_ahead", [False, True])
def test_batch_is_released_while_the_next_one_is_awaited(plan_ahead: bool) -> None:
    made: list[weakref.ref[torch.Tensor]] = []

    class Watched(Builder):
        def finish(self) -> PackedBatch:
            assert not any(ref() for ref in made)
            batch = super().finish()
            made.append(weakref.ref(batch.patches))
            return batch

    batches = run_batches(
        (Watched(step) for step in range(40)), outcomes_of(), num_threads=1, prefetch=1, plan_ahead=plan_ahead
    )
    while (batch := next(batches, None)) is not None:
        del batch
    assert len(made) == 40


def test_builder_is_released_with_its_batch() -> None:
    made: list[weakref.ref[Builder]] = []

    def watched(step: int) -> Builder:
        builder = Builder(step)
        made.append(weakref.ref(builder))
        return builder

    for plan_ahead in (False, True):
        made.clear()
        for batch in run_batches(
            map(watched, range(40)), outcomes_of(), num_threads=2, prefetch=1, plan_ahead=plan_ahead
        ):
            assert not any(ref() for ref in made[: batch.step + 1])
