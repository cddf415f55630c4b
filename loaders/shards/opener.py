"""Where the bytes of shards are: local tars as they lie, remote shards and rows of parquet files in the cache."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from patchnpack.loaders.remote import download as remote
from patchnpack.loaders.remote.addresses import redact
from patchnpack.loaders.remote.download import RemoteFile, is_remote
from patchnpack.loaders.remote.prefetch import Prefetcher, Shard
from patchnpack.loaders.remote.retry import take_retry
from patchnpack.loaders.remote.shard_cache import ShardCache, default_folder
from patchnpack.loaders.shards import parquet

_AHEAD = 8  # remote shards that are brought here before they are asked for


def is_parquet(shard: str) -> bool:
    """Whether a shard is a parquet file, by its name."""
    return remote.name_of(shard).endswith(".parquet")


class _Counts:
    """Of shards lent by the cache, and of those made for it; and the versions of shards whose index tells none."""

    lent = made = 0

    def __init__(self) -> None:
        self.versions: dict[str, str] = {}


class ShardOpener:
    """Opens shards as local files, whatever they are. Any thread may ask, and it may be sent to other processes.

    Args:
        cache_dir: where remote shards and the images of parquet files are kept; None is `default_folder()`.
        cache_limit: bytes that they may take together; None is no limit.
        storage_options: of the remote stores; `retry` in it says how long to try (see `Retry`).
    """

    def __init__(
        self,
        cache_dir: str | os.PathLike[str] | None = None,
        cache_limit: int | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        if cache_limit is not None and cache_limit < 1:
            raise ValueError(f"cache_limit is {cache_limit}; it must be at least 1 byte, or None for no limit")
        self.folder = default_folder() if cache_dir is None else Path(cache_dir)
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(
                f"the cache {str(self.folder)!r} is a file; give cache_dir=, or $PATCHNPACK_CACHE, a folder"
            )
        self.limit, self._given = cache_limit, storage_options
        self._retry, self._options = take_retry(storage_options)
        self._counts = _Counts()
        self._prefetcher: Prefetcher | None = None

    def __reduce__(self) -> tuple[type[ShardOpener], tuple[Any, ...]]:
        return ShardOpener, (self.folder, self.limit, self._given)

    @cached_property
    def _cache(self) -> ShardCache:
        return ShardCache(self.folder, self.limit)

    def is_cached(self, shard: str) -> bool:
        """Whether what `open` gives lies in the cache."""
        return is_remote(shard) or is_parquet(shard)

    def expand(self, pattern: str) -> list[str]:
        """The addresses that a remote pattern names."""
        return remote.expand_remote(pattern, self._options, policy=self._retry)

    def stat(self, shard: str) -> tuple[int, str]:
        """A shard's size in bytes, and what tells its version: a local file's time, a remote one's ETag."""
        if is_remote(shard):
            file = remote.stat(shard, self._options, policy=self._retry)
            return file.nbytes, file.version
        status = os.stat(shard)
        return status.st_size, str(status.st_mtime_ns)

    def open(self, shard: str, nbytes: int, version: str) -> int:
        """A descriptor, for the caller to close, of what a shard's offsets count in.

        Raises:
            OSError: it cannot be had, or has another size than `nbytes`.
        """
        if not is_remote(shard):
            return self._open_local(shard, nbytes)
        wanted = self._shard(shard, nbytes, version)
        self._counts.lent += 1
        if self._prefetcher is not None and self._prefetcher.has(wanted.name):
            return self._prefetcher.acquire(wanted.name)
        return self._acquire(wanted)

    def open_raw(self, shard: str, nbytes: int, version: str, stop: threading.Event | None = None) -> int:
        """A descriptor of the shard's file itself, for the caller to close."""
        if is_remote(shard):
            return self._acquire(self._raw(shard, nbytes, version), stop)
        return os.open(shard, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def fetch(self, url: str) -> int:
        """A descriptor, for the caller to close, of a remote file as it is now; it is not counted among the shards."""
        file = remote.stat(url, self._options, policy=self._retry)
        return self._acquire(remote.shard(file, self._options, policy=self._retry))

    def put(self, path: Path, url: str) -> None:
        """Makes a remote file what a local one holds, whole or not at all."""
        remote.put(url, path, self._options, policy=self._retry)

    def has_changed(self, shard: str, version: str) -> bool:
        """Whether a local shard was written to since it was of that version; remote ones were compared when fetched."""
        return not is_remote(shard) and self.stat(shard)[1] != version

    def prefetching(self, shards: Iterable[tuple[str, int, str]], behind: int, at_start: bool) -> ShardOpener:
        """A store of its own that brings these remote shards (name, bytes, version) here ahead of their use."""
        return self._prefetching(ShardOpener(self.folder, self.limit, self._given), shards, behind, at_start)

    def _prefetching(
        self, store: ShardOpener, shards: Iterable[tuple[str, int, str]], behind: int, at_start: bool
    ) -> ShardOpener:
        store._counts = self._counts
        coming = (store._shard(*shard) for shard in shards if is_remote(shard[0]))
        store._prefetcher = Prefetcher(store._cache, coming, _AHEAD, behind, at_start)
        return store

    def close(self) -> None:
        """Ends prefetching."""
        if self._prefetcher is not None:
            self._prefetcher.close()

    def counts(self) -> tuple[int, int]:
        """Shards that were found in the cache, and those that were brought there."""
        return max(0, self._counts.lent - self._counts.made), self._counts.made

    def _open_local(self, shard: str, nbytes: int) -> int:
        fd = os.open(shard, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        size = os.fstat(fd).st_size
        if size == nbytes and not is_parquet(shard):
            return fd
        os.close(fd)
        if size != nbytes:
            raise OSError(
                f"shard {shard!r} has {size} bytes but had {nbytes} when it was indexed: it has changed; make a new "
                "loader, or bring its index up to date: patchnpack index SHARDS"
            )
        self._counts.lent += 1
        return self._acquire(self._shard(os.path.abspath(shard), *self.stat(shard)))

    def _acquire(self, shard: Shard, stop: threading.Event | None = None) -> int:
        stop = stop or threading.Event()
        return self._cache.acquire(shard.name, lambda path: shard.make(path, stop), shard.nbytes, stop=stop)

    def _version(self, shard: str, nbytes: int, version: str) -> str:
        """The version of a remote shard; asked for once where its index, made of a copy, tells none."""
        if version or not is_remote(shard):
            return version
        if shard not in self._counts.versions:
            size, now = self.stat(shard)
            if size != nbytes:
                raise OSError(
                    f"shard {redact(shard)!r} has {size} bytes, its index says {nbytes}; bring the index up to date: "
                    "patchnpack index SHARDS -o INDEX"
                )
            self._counts.versions[shard] = now
        return self._counts.versions[shard]

    def _raw(self, shard: str, nbytes: int, version: str) -> Shard:
        version = self._version(shard, nbytes, version)
        found = remote.shard(RemoteFile(shard, nbytes, version), self._options, policy=self._retry)
        return Shard(found.name, self._counted(found.make), found.nbytes)

    def _shard(self, shard: str, nbytes: int, version: str) -> Shard:
        """What the cache keeps of a shard: the file itself or, of a parquet file, the bytes of its rows."""
        if not is_parquet(shard):
            return self._raw(shard, nbytes, version)

        def make(to: Path, stop: threading.Event) -> None:
            fd = self.open_raw(shard, nbytes, version, stop)
            try:
                parquet.spill(fd, shard, to)
            finally:
                os.close(fd)

        version = self._version(shard, nbytes, version)
        key = hashlib.sha256("\0".join([shard, version, str(nbytes), parquet.LAYOUT]).encode()).hexdigest()[:32]
        return Shard(f"{key}-{Path(remote.name_of(shard)).stem[-60:]}.rows", self._counted(make))

    def _counted(self, make: Any) -> Any:
        def counted(to: Path, stop: threading.Event) -> None:
            self._counts.made += 1
            make(to, stop)

        return counted
