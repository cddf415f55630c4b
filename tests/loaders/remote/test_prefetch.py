from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from patchnpack.loaders.remote.prefetch import Prefetcher, Shard
from patchnpack.loaders.remote.shard_cache import ShardCache
from tests.loaders.misbehaving import wait_until


class Makes:
    """Shards "0", "1", ... of 100 bytes. `made` lists the made ones, `gates` block some and `errors` fail some."""

    def __init__(self, count: int) -> None:
        self.made: list[str] = []
        self.gates: dict[str, threading.Event] = {}
        self.errors: dict[str, Exception] = {}
        self.shards = [Shard(f"{i:x}", self._make(f"{i:x}"), 100) for i in range(count)]

    def _make(self, name: str) -> Callable[[Path, threading.Event], None]:
        def make(path: Path, stop: threading.Event) -> None:
            self.made.append(name)
            while name in self.gates and not self.gates[name].wait(0.01):
                if stop.is_set():
                    raise InterruptedError("cancelled")
            if name in self.errors:
                raise self.errors[name]
            path.write_bytes(name.encode() * 100)

        return make


def bytes_of(fd: int) -> bytes:
    with os.fdopen(fd, "rb") as file:
        return file.read()


@pytest.fixture(autouse=True)
def _check_leftovers(tmp_path: Path) -> Iterator[None]:
    before, fds = threading.active_count(), len(os.listdir("/proc/self/fd"))
    yield
    assert threading.active_count() <= before  # a thread of an earlier test may end only now
    assert len(os.listdir("/proc/self/fd")) == fds
    assert not list(tmp_path.glob("**/*.part"))


def test_following_shards_are_fetched_ahead(tmp_path: Path) -> None:
    makes = Makes(10)
    with Prefetcher(ShardCache(tmp_path), makes.shards, ahead=2) as prefetcher:
        wait_until(lambda: len(makes.made) == 2)
        time.sleep(0.05)
        assert sorted(makes.made) == ["0", "1"]
        assert bytes_of(prefetcher.acquire("0")) == b"0" * 100
        wait_until(lambda: len(makes.made) == 3)
        assert bytes_of(prefetcher.acquire("4")) == b"4" * 100
        wait_until(lambda: len(makes.made) == 7)
        time.sleep(0.05)
    assert sorted(makes.made) == ["0", "1", "2", "3", "4", "5", "6"]


def test_acquire_waits_for_a_shard_in_flight(tmp_path: Path) -> None:
    makes = Makes(2)
    makes.gates["0"] = threading.Event()
    with Prefetcher(ShardCache(tmp_path), makes.shards) as prefetcher, ThreadPoolExecutor(2) as pool:
        wait_until(lambda: "0" in makes.made)
        asked = [pool.submit(prefetcher.acquire, "0") for _ in range(2)]
        time.sleep(0.05)
        assert not any(ask.done() for ask in asked)
        makes.gates["0"].set()
        assert [bytes_of(ask.result(5)) for ask in asked] == [b"0" * 100] * 2
    assert sorted(makes.made) == ["0", "1"]


@pytest.mark.parametrize("ahead", [0, 1, 2, 5])
@pytest.mark.parametrize("limit", [None, 200])
def test_readers_in_any_order_get_the_right_bytes(ahead: int, limit: int | None, tmp_path: Path) -> None:
    makes = Makes(12)
    order = [i * 5 % 12 for i in range(12)]
    with Prefetcher(ShardCache(tmp_path, limit), makes.shards, ahead) as prefetcher, ThreadPoolExecutor(3) as pool:
        got = list(pool.map(lambda i: bytes_of(prefetcher.acquire(f"{i:x}")), order))
    assert got == [f"{i:x}".encode() * 100 for i in order]
    if limit is None:
        assert sorted(makes.made) == list("0123456789ab")


def test_shard_evicted_before_use_is_not_fetched_again(tmp_path: Path) -> None:
    makes = Makes(4)
    with Prefetcher(ShardCache(tmp_path, limit=100), makes.shards, ahead=4) as prefetcher:
        wait_until(lambda: len(makes.made) == 4)
        assert [bytes_of(prefetcher.acquire(str(i))) for i in range(4)] == [str(i).encode() * 100 for i in range(4)]
    assert sorted(makes.made) == ["0", "1", "2", "3"]


def test_acquire_raises_the_error_once_and_then_retries(tmp_path: Path) -> None:
    makes = Makes(3)
    makes.errors["1"] = RuntimeError("no more of 1")
    with Prefetcher(ShardCache(tmp_path), makes.shards, ahead=2) as prefetcher:
        wait_until(lambda: "1" in makes.made)
        assert bytes_of(prefetcher.acquire("0")) == b"0" * 100
        with pytest.raises(RuntimeError, match="no more of 1"):
            prefetcher.acquire("1")
        assert makes.made.count("1") == 1
        del makes.errors["1"]
        assert bytes_of(prefetcher.acquire("1")) == b"1" * 100
        assert bytes_of(prefetcher.acquire("2")) == b"2" * 100


def test_shard_can_be_acquired_again(tmp_path: Path) -> None:
    makes = Makes(1)
    with Prefetcher(ShardCache(tmp_path), [*makes.shards, *makes.shards]) as prefetcher:
        assert [bytes_of(prefetcher.acquire("0")) for _ in range(3)] == [b"0" * 100] * 3
    assert makes.made == ["0"]


def test_close_cancels_shards_in_flight_and_waiting_readers(tmp_path: Path) -> None:
    makes = Makes(5)
    makes.gates = {"0": threading.Event(), "1": threading.Event()}
    prefetcher = Prefetcher(ShardCache(tmp_path), makes.shards)
    wait_until(lambda: len(makes.made) == 2)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(prefetcher.acquire, "0")
        time.sleep(0.02)
        prefetcher.close()
        with pytest.raises(ValueError, match="after its prefetcher was closed"):
            asked.result(5)
    prefetcher.close()
    assert len(makes.made) == 2
    with pytest.raises(ValueError, match="after its prefetcher was closed"):
        prefetcher.acquire("3")


def test_unknown_names_and_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ahead is -1; it must be at least 0"):
        Prefetcher(ShardCache(tmp_path), [], -1)
    with Prefetcher(ShardCache(tmp_path), Makes(1).shards) as prefetcher, pytest.raises(KeyError):
        prefetcher.acquire("9")
