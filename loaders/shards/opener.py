"""Opening shards as local files: local tars directly, remote shards and parquet rows through the cache."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from patchnpack.loaders.remote import download as remote
from patchnpack.loaders.remote.addresses import is_remote, name_of, redact
from patchnpack.loaders.remote.download import RemoteFile
from patchnpack.loaders.remote.errors import RemoteError
from patchnpack.loaders.remote.prefetch import Prefetcher, Shard
from patchnpack.loaders.remote.retry import take_retry
from patchnpack.loaders.remote.shard_cache import ShardCache, default_folder
from patchnpack.loaders.shards import parquet

_ASK_S = 10.0  # seconds that the store has to answer before cached shards are used as they are
_AHEAD = 8  # remote shards fetched ahead of their use

_log = logging.getLogger("patchnpack")


def is_parquet(shard: str) -> bool:
    """Whether a shard is a parquet file, by its name."""
    return name_of(shard).endswith(".parquet")


class _CacheState:
    """State shared by the openers of a loader.

    Attributes:
        acquired: shards acquired from the cache.
        made: shards made for the cache.
        versions: versions asked for, of shards whose index has none.
        fresh: remote shards downloaded by this process, which are those that the store has.
        is_offline: whether the store did not answer when it was asked for a version.
    """

    acquired = made = 0
    is_offline = False

    def __init__(self) -> None:
        self.versions: dict[str, str] = {}
        self.fresh: set[str] = set()


class ShardOpener:
    """Opens local, remote and parquet shards as local files. Thread-safe, and can be pickled.

    Args:
        cache_dir: folder for remote shards and for the rows of parquet files; None is `default_folder()`.
        cache_limit: total bytes of the cached files; None is no limit.
        storage_options: options of the remote store; `retry` in them sets how long to try (see `Retry`).
        lists: columns of parquet files whose lists hold images, each with a byte range of its own.

    Raises:
        ValueError: `cache_dir` is a file, `cache_limit` is below 1, or `retry` is invalid.
    """

    def __init__(
        self,
        cache_dir: str | os.PathLike[str] | None = None,
        cache_limit: int | None = None,
        storage_options: Mapping[str, Any] | None = None,
        lists: Iterable[str] = (),
    ) -> None:
        if cache_limit is not None and cache_limit < 1:
            raise ValueError(f"cache_limit is {cache_limit}; it must be at least 1 byte, or None for no limit")
        self.folder = default_folder() if cache_dir is None else Path(cache_dir)
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(
                f"the cache {str(self.folder)!r} is a file; set cache_dir= or $PATCHNPACK_CACHE to a folder"
            )
        self.limit, self._given, self._lists = cache_limit, storage_options, tuple(lists)
        self._retry, self._options = take_retry(storage_options)
        self._state = _CacheState()
        self._prefetcher: Prefetcher | None = None

    def __reduce__(self) -> tuple[type[ShardOpener], tuple[Any, ...]]:
        return ShardOpener, (self.folder, self.limit, self._given, self._lists)

    @cached_property
    def _cache(self) -> ShardCache:
        return ShardCache(self.folder, self.limit)

    def with_lists(self, lists: Iterable[str]) -> ShardOpener:
        """An opener that shares the state of this one, with other columns of lists of images."""
        opener = ShardOpener(self.folder, self.limit, self._given, lists)
        opener._state = self._state
        return opener

    def is_cached(self, shard: str) -> bool:
        """Whether `open` reads the shard from the cache."""
        return is_remote(shard) or is_parquet(shard)

    def expand(self, pattern: str) -> list[str]:
        """The addresses that a remote pattern names."""
        return remote.expand_remote(pattern, self._options, policy=self._retry)

    def stat(self, shard: str) -> tuple[int, str]:
        """A shard's size in bytes and its version: the mtime of a local file, the ETag of a remote one."""
        if is_remote(shard):
            file = remote.stat(shard, self._options, policy=self._retry)
            return file.nbytes, file.version
        status = os.stat(shard)
        return status.st_size, str(status.st_mtime_ns)

    def open(self, shard: str, nbytes: int, version: str) -> int:
        """Open the file in which a shard's offsets count; the caller closes the descriptor.

        Raises:
            OSError: the shard cannot be read, or its size is not `nbytes`.
        """
        if not is_remote(shard):
            return self._open_local(shard, nbytes)
        wanted = self._shard(shard, nbytes, version)
        self._state.acquired += 1
        if self._prefetcher is not None and self._prefetcher.has(wanted.name):
            return self._prefetcher.acquire(wanted.name)
        return self._acquire(wanted)

    def open_raw(self, shard: str, nbytes: int, version: str, stop: threading.Event | None = None) -> int:
        """Open the shard's own file, a parquet file as such; the caller closes the descriptor."""
        if is_remote(shard):
            return self._acquire(self._raw(shard, nbytes, version), stop)
        return os.open(shard, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def fetch(self, url: str) -> int:
        """Open the current version of a remote file that is not a shard; the caller closes the descriptor."""
        file = remote.stat(url, self._options, policy=self._retry)
        return self._acquire(remote.shard(file, self._options, policy=self._retry))

    def read_file(self, url: str, nbytes: int, version: str) -> bytes:
        """Read a whole remote file, without the cache. Raises RemoteError if it has another size or version."""
        return remote.read(RemoteFile(url, nbytes, version), self._options, policy=self._retry)

    def list_files(self, folder: str) -> list[tuple[str, int, str]]:
        """Path, size and version of all files below a remote folder."""
        return remote.list_below(folder, self._options, policy=self._retry)

    def put(self, path: Path, url: str) -> None:
        """Upload a local file. Readers see the old remote file or the whole new one."""
        remote.put(url, path, self._options, policy=self._retry)

    def has_changed(self, shard: str, version: str) -> bool:
        """Whether a local shard has another version now; remote shards are compared when they are fetched."""
        return not is_remote(shard) and self.stat(shard)[1] != version

    def is_outdated(self, shard: str, nbytes: int, version: str) -> bool:
        """Whether the store has another version of a remote shard than the cache; takes one request per cached shard.

        False if the store does not answer: cached shards can be used offline.
        """
        if shard in self._state.fresh or self._state.is_offline:
            return False
        policy = replace(self._retry, attempts=1, deadline_s=min(self._retry.deadline_s, _ASK_S))
        try:
            file = remote.stat(shard, self._options, policy=policy)
        except RemoteError as error:
            self._state.is_offline = True
            _log.info("cached shards are used without asking the store for their versions: %s", error)
            return False
        return (file.nbytes, file.version) != (nbytes, version)

    def prefetching(self, shards: Iterable[tuple[str, int, str]], behind: int, at_start: bool) -> ShardOpener:
        """An opener that fetches the remote ones of these shards (name, bytes, version) ahead; see `Prefetcher`."""
        return self._prefetching(self.with_lists(self._lists), shards, behind, at_start)

    def _prefetching(
        self, opener: ShardOpener, shards: Iterable[tuple[str, int, str]], behind: int, at_start: bool
    ) -> ShardOpener:
        opener._state = self._state
        remote_shards = (opener._shard(*shard) for shard in shards if is_remote(shard[0]))
        opener._prefetcher = Prefetcher(opener._cache, remote_shards, _AHEAD, behind, at_start)
        return opener

    def close(self) -> None:
        """End prefetching."""
        if self._prefetcher is not None:
            self._prefetcher.close()

    def counts(self) -> tuple[int, int]:
        """Cache hits and misses, in shards."""
        return max(0, self._state.acquired - self._state.made), self._state.made

    def _open_local(self, shard: str, nbytes: int) -> int:
        fd = os.open(shard, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        size = os.fstat(fd).st_size
        if size == nbytes and not is_parquet(shard):
            return fd
        os.close(fd)
        if size != nbytes:
            raise OSError(
                f"shard {shard!r} has {size} bytes but had {nbytes} when it was indexed: it has changed; create a new "
                "loader, or bring its index up to date: patchnpack index SHARDS"
            )
        self._state.acquired += 1
        return self._acquire(self._shard(os.path.abspath(shard), *self.stat(shard)))

    def _acquire(self, shard: Shard, stop: threading.Event | None = None) -> int:
        stop = stop or threading.Event()
        return self._cache.acquire(shard.name, lambda path: shard.make(path, stop), shard.nbytes, stop=stop)

    def _version(self, shard: str, nbytes: int, version: str) -> str:
        """The version of a shard; asked for once if the index has none, because it was made from local copies."""
        if version or not is_remote(shard):
            return version
        if shard not in self._state.versions:
            size, current = self.stat(shard)
            if size != nbytes:
                raise OSError(
                    f"shard {redact(shard)!r} has {size} bytes, its index says {nbytes}; bring the index up to date: "
                    "patchnpack index SHARDS -o INDEX"
                )
            self._state.versions[shard] = current
        return self._state.versions[shard]

    def _raw(self, shard: str, nbytes: int, version: str) -> Shard:
        version = self._version(shard, nbytes, version)
        found = remote.shard(RemoteFile(shard, nbytes, version), self._options, policy=self._retry)
        return Shard(found.name, self._counted(found.make, shard), found.nbytes)

    def _shard(self, shard: str, nbytes: int, version: str) -> Shard:
        """What the cache keeps of a shard: the file itself or, for a parquet file, the bytes of its rows."""
        if not is_parquet(shard):
            return self._raw(shard, nbytes, version)

        def make(to: Path, stop: threading.Event) -> None:
            fd = self.open_raw(shard, nbytes, version, stop)
            try:
                parquet.spill(fd, shard, to, self._lists)
            finally:
                os.close(fd)

        version = self._version(shard, nbytes, version)
        text = "\0".join([shard, version, str(nbytes), parquet.LAYOUT, *self._lists])
        key = hashlib.sha256(text.encode()).hexdigest()[:32]
        return Shard(f"{key}-{Path(name_of(shard)).stem[-60:]}.rows", self._counted(make))

    def _counted(self, make: Any, shard: str = "") -> Any:
        def counted(to: Path, stop: threading.Event) -> None:
            self._state.made += 1
            make(to, stop)
            self._state.fresh.add(shard)

        return counted
