from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable

from patchnpack.loaders.assembly.decode_pool import DecodePool


class Work:
    """Records which parts ran, in which threads; each waits for `gate`."""

    def __init__(self) -> None:
        self.parts: list[int] = []
        self.threads: set[str] = set()
        self.gate = threading.Event()

    def run(self, part: int) -> None:
        self.gate.wait(10)
        self.parts.append(part)
        self.threads.add(threading.current_thread().name)


def decoding_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("patchnpack-decode")]


def wait_until(fact: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not fact():
        assert time.monotonic() < end, "it never became true"
        time.sleep(0.005)


def test_every_part_runs_once() -> None:
    pool, work = DecodePool(3), Work()
    work.gate.set()
    pool.submit(work, 100)
    wait_until(lambda: len(work.parts) == 100)
    pool.close()
    assert sorted(work.parts) == list(range(100))


def test_one_thread_runs_parts_in_order() -> None:
    pool, first, second = DecodePool(1), Work(), Work()
    first.parts = second.parts
    second.gate.set()
    pool.submit(first, 3)
    pool.submit(second, 2)
    first.gate.set()
    wait_until(lambda: len(second.parts) == 5)
    pool.close()
    assert second.parts == [0, 1, 2, 0, 1]


def test_close_ends_every_thread_and_drops_parts_that_have_not_started() -> None:
    assert not decoding_threads()
    pool, work = DecodePool(2), Work()
    assert decoding_threads() == ["patchnpack-decode-0", "patchnpack-decode-1"]
    pool.submit(work, 50)
    threading.Timer(0.05, work.gate.set).start()
    pool.close()
    assert not decoding_threads()
    assert len(work.parts) <= 2


def test_close_works_without_work_and_twice() -> None:
    pool = DecodePool(2)
    pool.close()
    pool.close()
    assert not decoding_threads()


def test_idle_threads_keep_no_batch_alive() -> None:
    pool, work = DecodePool(2), Work()
    work.gate.set()
    pool.submit(work, 4)
    parts, ref = work.parts, weakref.ref(work)
    del work
    wait_until(lambda: len(parts) == 4)
    wait_until(lambda: ref() is None)
    pool.close()


def test_pool_can_be_closed_by_one_of_its_own_threads() -> None:
    """The garbage collector may run in such a thread and find a forgotten iterator."""

    class Closing:
        error: BaseException | None = None
        done = threading.Event()

        def run(self, part: int) -> None:
            try:
                pool.close()
            except RuntimeError as error:
                self.error = error
            self.done.set()

    pool, work = DecodePool(3), Closing()
    pool.submit(work, 1)
    assert work.done.wait(10)
    assert work.error is None
    wait_until(lambda: not decoding_threads())
