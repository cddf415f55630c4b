"""Downloads into the cache: prefetching, cancelling, and processes that share one download."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from patchnpack.loaders.remote.download import cache_name, download, shard, stat
from patchnpack.loaders.remote.prefetch import Prefetcher
from patchnpack.loaders.remote.shard_cache import ShardCache, Stopped
from tests.loaders.misbehaving import Misbehaving, wait_until
from tests.loaders.remote.fetching import QUICK, noise


def test_prefetched_shards_are_downloaded_once_and_close_cancels(server: Misbehaving, tmp_path: Path) -> None:
    urls = [server.add(f"/{i}.tar", noise(100_000, i), pause_s=0.02) for i in range(4)]
    slow = server.add("/slow.tar", 1 << 30, pause_s=0.05)
    shards = [shard(stat(url, policy=QUICK), policy=QUICK) for url in [*urls, slow]]
    with Prefetcher(ShardCache(tmp_path), shards, ahead=2) as prefetcher:
        for i in range(4):
            with os.fdopen(prefetcher.acquire(shards[i].name), "rb") as file:
                assert file.read() == noise(100_000, i)
        wait_until(lambda: server.files["/slow.tar"].gets == 1)
        began = time.monotonic()
    assert time.monotonic() - began < 3
    assert [server.files[f"/{i}.tar"].gets for i in range(4)] == [1, 1, 1, 1]
    assert not list(tmp_path.glob("**/*.part"))
    assert len(list(tmp_path.glob("**/*.tar"))) == 4


def test_stop_cancels_a_download(server: Misbehaving, tmp_path: Path) -> None:
    file = stat(server.add("/slow.tar", 1 << 30, pause_s=0.02), policy=QUICK)
    stop = threading.Event()
    threading.Timer(0.1, stop.set).start()
    with pytest.raises(Stopped):
        download(file, tmp_path / "a", policy=QUICK, stop=stop)


_DOWNLOAD = """
import os, re, sys
from pathlib import Path
from patchnpack.loaders.remote.download import cache_name, download, stat
from patchnpack.loaders.remote.shard_cache import ShardCache
cache, file = ShardCache(sys.argv[1]), stat(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
Path("/proc/self/clear_refs").write_text("5")  # resets the peak
before = peak()
fd = cache.acquire(cache_name(file), lambda to: download(file, to), file.nbytes)
print(os.fstat(fd).st_size, peak() - before)
"""


def start_download(folder: Path, url: str) -> subprocess.Popen[str]:
    """Start a process that asks for the file's size, then waits for a line on stdin before it downloads the file."""
    command = [sys.executable, "-P", "-c", _DOWNLOAD, str(folder), url]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def begin(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_processes_share_one_download_and_survive_a_killed_one(server: Misbehaving, tmp_path: Path) -> None:
    large, nbytes = server.add("/large.tar", 200 << 20), 200 << 20
    slow = server.add("/slow.tar", 1 << 20, pause_s=0.2)
    killed = start_download(tmp_path, slow)
    ranks = [start_download(tmp_path, large) for _ in range(2)]
    for process in (killed, *ranks):
        assert read_line(process) == "ready"
    begin(killed)
    wait_until(lambda: any(part.stat().st_size for part in tmp_path.glob("**/*slow.tar.part")))
    killed.kill()
    killed.wait(10)
    for process in ranks:
        begin(process)
    lines = [read_line(process).split() for process in ranks]
    assert [int(size) for size, _ in lines] == [nbytes, nbytes]
    assert max(int(kilobytes) for _, kilobytes in lines) < 50_000
    assert server.files["/large.tar"].gets == 1
    for process in (killed, *ranks):
        process.communicate(timeout=10)

    server.files["/slow.tar"].pause_s = 0
    file, cache = stat(slow, policy=QUICK), ShardCache(tmp_path)
    assert not list(tmp_path.glob("**/*.part"))
    with os.fdopen(
        cache.acquire(cache_name(file), lambda to: download(file, to, policy=QUICK), file.nbytes), "rb"
    ) as got:
        assert got.read() == bytes(1 << 20)
