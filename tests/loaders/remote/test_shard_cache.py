from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from patchnpack.loaders.remote import shard_cache
from patchnpack.loaders.remote.shard_cache import ShardCache, Stopped, default_folder
from tests.loaders.misbehaving import wait_until

Make = Callable[[Path], None]


def bytes_of(fd: int) -> bytes:
    with os.fdopen(fd, "rb") as file:
        return file.read()


def writes(data: bytes) -> Make:
    def make(path: Path) -> None:
        path.write_bytes(data)

    return make


def python(script: str, *arguments: str) -> subprocess.Popen[bytes]:
    """Start a process that imports the module alone, because importing the package takes seconds."""
    alone = {**os.environ, "PYTHONPATH": str(Path(shard_cache.__file__).parent)}
    return subprocess.Popen([sys.executable, "-P", "-c", script, *arguments], env=alone)


def never(path: Path) -> None:
    raise AssertionError(f"{path} was made a second time")


def files_in(cache: ShardCache) -> list[str]:
    return sorted(os.listdir(cache.folder))


def fill(cache: ShardCache, *names: str, nbytes: int = 100) -> None:
    for name in names:
        assert bytes_of(cache.acquire(name, writes(bytes(nbytes)))) == bytes(nbytes)


def test_file_is_made_once_then_read_from_disk(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path)
    assert bytes_of(cache.acquire("a.tar", writes(b"one"))) == b"one"
    assert bytes_of(cache.acquire("a.tar", never)) == b"one"
    assert bytes_of(ShardCache(tmp_path).acquire("a.tar", never, 3)) == b"one"
    assert files_in(cache) == ["a.tar"]


def test_concurrent_threads_make_a_file_once(tmp_path: Path) -> None:
    made: list[str] = []

    def make(path: Path) -> None:
        made.append(path.name)
        time.sleep(0.1)
        path.write_bytes(b"x" * 1000)

    caches = [ShardCache(tmp_path), ShardCache(tmp_path)]
    with ThreadPoolExecutor(16) as pool:
        got = list(pool.map(lambda i: bytes_of(caches[i % 2].acquire(f"{i % 3}.tar", make, 1000)), range(48)))
    assert got == [b"x" * 1000] * 48
    assert sorted(made) == ["0.tar.part", "1.tar.part", "2.tar.part"]


def test_concurrent_processes_make_each_file_once(tmp_path: Path) -> None:
    script = """
import os, sys, time
from pathlib import Path
from shard_cache import ShardCache
cache, log = ShardCache(sys.argv[1], limit=10_000), sys.argv[2]
def make(path):
    with open(log, "a") as file:
        file.write(path.name + chr(10))
    time.sleep(0.02)
    path.write_bytes(path.name.encode())
for i in range(20):
    fd = cache.acquire(f"{i}", make)
    assert os.read(fd, 100) == f"{i}.part".encode()
    os.close(fd)
"""
    log = tmp_path / "log"
    running = [python(script, str(tmp_path / "cache"), str(log)) for _ in range(3)]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    assert sorted(log.read_text().split()) == sorted(f"{i}.part" for i in range(20))


def test_file_is_whole_or_absent(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path)
    half, go = threading.Event(), threading.Event()

    def make(path: Path) -> None:
        with open(path, "wb") as file:
            file.write(b"1234")
            file.flush()
            half.set()
            go.wait(10)
            file.write(b"5678")

    with ThreadPoolExecutor(1) as pool:
        lent = pool.submit(cache.acquire, "a", make)
        half.wait(10)
        assert files_in(cache) == ["a.part"]
        go.set()
        assert bytes_of(lent.result()) == b"12345678"
    assert files_in(cache) == ["a"]


def test_error_in_make_propagates_and_leaves_nothing(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path)

    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("no more")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="no more"):
            cache.acquire("a", fail)
        assert files_in(cache) == []
    assert bytes_of(cache.acquire("a", writes(b"whole"))) == b"whole"


def test_waiting_threads_try_after_a_failure(tmp_path: Path) -> None:
    cache, begun, go = ShardCache(tmp_path), threading.Event(), threading.Event()

    def fail(path: Path) -> None:
        begun.set()
        go.wait(10)
        raise RuntimeError("no more")

    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(cache.acquire, "a", fail)
        begun.wait(10)
        others = [pool.submit(cache.acquire, "a", writes(b"whole")) for _ in range(2)]
        time.sleep(0.05)
        go.set()
        assert [bytes_of(other.result()) for other in others] == [b"whole", b"whole"]
        with pytest.raises(RuntimeError):
            first.result()


def test_least_recently_acquired_file_is_evicted_first(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, limit=300)
    fill(cache, "a", "b", "c")
    os.close(cache.acquire("a", never))
    fill(cache, "d")
    assert files_in(cache) == ["a", "c", "d"]
    os.close(cache.acquire("c", never))
    fill(cache, "e")
    assert files_in(cache) == ["c", "d", "e"]
    fill(cache, "f", nbytes=250)
    assert files_in(cache) == ["f"]


def test_known_size_evicts_before_the_file_is_made(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, limit=300)
    fill(cache, "a", "b", "c")
    there: list[list[str]] = []

    def make(path: Path) -> None:
        there.append(files_in(cache))
        path.write_bytes(bytes(150))

    os.close(cache.acquire("d", make, 150))
    assert there == [["c", "d.part"]]


def test_evicted_file_stays_readable_while_open(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, limit=150)
    fd = cache.acquire("a", writes(b"a" * 100))
    fill(cache, "b")
    assert files_in(cache) == ["b"]
    assert bytes_of(fd) == b"a" * 100


def test_file_larger_than_the_limit_is_refused_before_it_is_made(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, limit=100)
    fill(cache, "a")
    message = r"shard 'b' has 101 bytes, more than the cache's limit of 100; give a cache_limit="
    with pytest.raises(ValueError, match=message):
        cache.acquire("b", never, 101)
    with pytest.raises(ValueError, match=message):
        cache.acquire("b", writes(bytes(101)))
    assert "b" not in files_in(cache)


def test_unexpected_size_is_refused(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path)
    with pytest.raises(OSError, match="shard 'a' has 5 bytes, but 4 were written"):
        cache.acquire("a", writes(b"1234"), 5)
    assert files_in(cache) == []


def test_truncated_cached_file_is_made_again(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path)
    os.close(cache.acquire("a", writes(b"12345"), 5))
    os.truncate(cache.folder / "a", 3)
    assert bytes_of(cache.acquire("a", writes(b"12345"), 5)) == b"12345"


def test_full_disk_evicts_all_then_names_the_folder(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path)
    fill(cache, "a", "b", "c")
    tries: list[list[str]] = []

    def full_until_one_is_left(path: Path) -> None:
        there = files_in(cache)
        tries.append(there)
        path.write_bytes(b"half")
        if len(there) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        path.write_bytes(bytes(100))

    os.close(cache.acquire("d", full_until_one_is_left, 100))
    assert tries == [["a", "b", "c", "d.part"], ["b", "c", "d.part"], ["c", "d.part"]]

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(
        OSError, match=r"no room for the 100 bytes of shard 'e'.*cache_dir=.*patchnpack-shards"
    ) as raised:
        cache.acquire("e", full, 100)
    assert raised.value.errno == errno.ENOSPC
    assert files_in(cache) == []


def test_other_disk_errors_evict_nothing(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path)
    fill(cache, "a")

    def broken(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        cache.acquire("b", broken)
    assert files_in(cache) == ["a"]


def test_killed_process_leaves_the_cache_usable(tmp_path: Path) -> None:
    script = """
import sys, time
from shard_cache import ShardCache
def make(path):
    path.write_bytes(b"half")
    time.sleep(60)
ShardCache(sys.argv[1]).acquire("a", make)
"""
    process = python(script, str(tmp_path))
    part = tmp_path / "patchnpack-shards" / "a.part"
    wait_until(lambda: part.exists() and part.stat().st_size == 4, 30)
    living = ShardCache(tmp_path)
    assert files_in(living) == ["a.part"]  # still being written, so it is not removed as stale
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    assert bytes_of(living.acquire("a", writes(b"whole"))) == b"whole"

    part.write_bytes(b"half")
    assert files_in(ShardCache(tmp_path)) == ["a"]


def test_waiting_for_another_thread_can_be_cancelled(tmp_path: Path) -> None:
    cache, begun, go, stop = ShardCache(tmp_path), threading.Event(), threading.Event(), threading.Event()

    def make(path: Path) -> None:
        begun.set()
        go.wait(10)
        path.write_bytes(b"whole")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.acquire, "a", make)
        begun.wait(10)
        second = pool.submit(cache.acquire, "a", never, stop=stop)
        time.sleep(0.05)
        stop.set()
        with pytest.raises(Stopped):
            second.result(5)
        go.set()
        assert bytes_of(first.result()) == b"whole"


def test_nothing_outside_its_own_folder_is_evicted(tmp_path: Path) -> None:
    (tmp_path / "mine.tar").write_bytes(bytes(1000))
    cache = ShardCache(tmp_path, limit=100)
    fill(cache, "a", "b")
    assert (tmp_path / "mine.tar").exists()
    assert files_in(cache) == ["b"]


@pytest.mark.parametrize("name", ["", "a/b", "../a", ".a", "a.part"])
def test_invalid_file_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot name a cached file"):
        ShardCache(tmp_path).acquire(name, never)


def test_limit_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cache_limit is 0; it must be at least 1 byte"):
        ShardCache(tmp_path, limit=0)


def test_many_threads_under_a_small_limit_always_read_the_right_bytes(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, limit=350)

    def ask(i: int) -> bool:
        name = str(i * 7 % 10)
        return bytes_of(cache.acquire(name, writes(name.encode() * 100), 100)) == name.encode() * 100

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(400)))
    fill(cache, "last")
    assert sum(os.stat(cache.folder / name).st_size for name in files_in(cache)) <= 350


def test_default_folder_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATCHNPACK_CACHE", "/given")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert default_folder() == Path("/given")
    monkeypatch.delenv("PATCHNPACK_CACHE")
    assert default_folder() == Path("/xdg/patchnpack")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == Path.home() / ".cache" / "patchnpack"
