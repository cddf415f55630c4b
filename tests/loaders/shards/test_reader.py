"""Reading byte ranges of shards: threads, forks, open files and changed shards."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from patchnpack.loaders.shards.opener import ShardOpener
from patchnpack.loaders.shards.reader import ShardReader


@pytest.fixture
def make_reader(tmp_path: Path) -> Callable[..., tuple[ShardReader, list[bytes]]]:
    def make(count: int, max_open: int = 64) -> tuple[ShardReader, list[bytes]]:
        rng = np.random.default_rng(0)
        contents = [rng.bytes(500 + i) for i in range(count)]
        paths = [tmp_path / f"{i}.tar" for i in range(count)]
        for path, data in zip(paths, contents, strict=True):
            path.write_bytes(data)
        names, sizes = [str(path) for path in paths], list(map(len, contents))
        return ShardReader(names, sizes, [""] * len(names), ShardOpener(), max_open), contents

    return make


Make = Callable[..., tuple[ShardReader, list[bytes]]]


def open_descriptors(folder: Path) -> int:
    """Open files of this process that lie in the folder."""
    count = 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            count += os.readlink(f"/proc/self/fd/{fd}").startswith(str(folder))
        except FileNotFoundError:  # the descriptor that listed the folder
            continue
    return count


needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="open files are counted in /proc")


def test_read_gives_the_requested_bytes(make_reader: Make) -> None:
    reader, contents = make_reader(2)
    assert reader.read(1, 0, 501) == contents[1]
    assert reader.read(0, 17, 40) == contents[0][17:57]
    assert reader.read(0, 500, 0) == b""


def test_range_beyond_the_end_is_an_error_with_the_shard(make_reader: Make) -> None:
    reader, _ = make_reader(1)
    with pytest.raises(OSError, match=r"shard '.*0.tar' ends at byte 500, inside a member: it has changed"):
        reader.read(0, 400, 101)


@pytest.mark.parametrize("change", [-1, 1, -500])
def test_changed_size_is_an_error_with_the_shard(change: int, make_reader: Make, tmp_path: Path) -> None:
    reader, contents = make_reader(2)
    (tmp_path / "1.tar").write_bytes((contents[1] + b"x")[: 501 + change])
    with pytest.raises(OSError, match=rf"1.tar' has {501 + change} bytes but had 501 when it was indexed"):
        reader.read(1, 0, 1)
    assert reader.read(0, 0, 500) == contents[0]


def test_missing_shard_is_an_error_with_its_name(make_reader: Make, tmp_path: Path) -> None:
    reader, _ = make_reader(2)
    (tmp_path / "1.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"1.tar"):
        reader.read(1, 0, 1)


def test_short_reads_are_continued(make_reader: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, contents = make_reader(1)
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, n, offset: pread(fd, min(n, 7), offset))
    assert reader.read(0, 3, 480) == contents[0][3:483]


@needs_proc
def test_at_most_max_open_files_are_open_and_none_afterwards(make_reader: Make, tmp_path: Path) -> None:
    before = open_descriptors(tmp_path)
    reader, contents = make_reader(10, max_open=3)
    for i in list(range(10)) * 2:
        assert reader.read(i, 0, 5) == contents[i][:5]
        assert open_descriptors(tmp_path) - before <= 3
    del reader
    assert open_descriptors(tmp_path) == before


@needs_proc
def test_threads_over_more_shards_than_max_open_read_the_right_bytes(make_reader: Make, tmp_path: Path) -> None:
    reader, contents = make_reader(12, max_open=2)
    wrong: list[object] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(400):
            shard, offset = int(rng.integers(12)), int(rng.integers(400))
            try:
                data = reader.read(shard, offset, 100)
            except OSError as error:
                wrong.append(error)
            else:
                if data != contents[shard][offset : offset + 100]:
                    wrong.append((shard, offset))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert open_descriptors(tmp_path) <= 2


@needs_proc
def test_file_stays_open_during_a_read(make_reader: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, contents = make_reader(3, max_open=1)
    pread = os.pread

    def slow(fd: int, n: int, offset: int) -> bytes:
        monkeypatch.setattr(os, "pread", pread)
        reader.read(1, 0, 1)  # evicts shard 0
        return pread(fd, n, offset)

    monkeypatch.setattr(os, "pread", slow)
    assert reader.read(0, 0, 500) == contents[0]
    assert open_descriptors(tmp_path) == 1


def test_process_forked_under_the_lock_can_read(make_reader: Make) -> None:
    reader, contents = make_reader(2)
    reader.read(0, 0, 1)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def read() -> None:
        theirs.send(reader.read(0, 0, 500))

    with reader._lock:  # as if another thread were opening a shard
        child = context.Process(target=read)
        child.start()
    try:
        assert ours.poll(20), "the child waits for a lock that is never released"
        assert ours.recv() == contents[0]
    finally:
        child.kill()
        child.join()


@needs_proc
def test_cache_limit_closes_no_local_shard(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.tar").write_bytes(bytes(600))
    names = [str(tmp_path / f"{i}.tar") for i in range(3)]
    reader = ShardReader(names, [600] * 3, [""] * 3, ShardOpener(tmp_path, cache_limit=1))
    for i in range(3):
        reader.read(i, 0, 1)
    assert open_descriptors(tmp_path) == 3
