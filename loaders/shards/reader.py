"""Reading byte ranges of shards from any thread."""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from patchnpack.loaders.remote.addresses import is_remote, redact
from patchnpack.loaders.shards.opener import ShardOpener, is_parquet
from patchnpack.loaders.shards.outside import Outside


class _File:
    """A file descriptor that is closed when the last reference goes."""

    _close = staticmethod(os.close)  # at exit, Python empties the module before it drops the last file

    def __init__(self, fd: int, cached: bool) -> None:
        self.fd = fd
        self.cached_bytes = os.fstat(fd).st_size if cached else 0

    def __del__(self) -> None:
        self._close(self.fd)


class ShardReader:
    """Reads byte ranges of shards from any thread, with at most `max_open` files open.

    Args:
        shards: paths or addresses of the shards.
        sizes: size of each shard in bytes.
        versions: version of each shard, as in the index.
        opener: opens the shards, and holds the cache of remote ones.
        max_open: number of files to keep open.
        outside: digests of what lies outside the images. A shard whose version in the index says nothing about the file
            that was opened is compared with its digest.

    Reading raises OSError that names the shard if it has changed since it was indexed.
    """

    def __init__(
        self,
        shards: Sequence[str],
        sizes: Sequence[int],
        versions: Sequence[str],
        opener: ShardOpener,
        max_open: int = 64,
        outside: Outside | None = None,
    ) -> None:
        self._shards, self._sizes, self._versions, self._max_open = shards, sizes, versions, max_open
        self._outside = outside
        self._checked: set[int] = set()
        self.opener = opener
        self._reset()
        _readers.add(self)

    def _reset(self) -> None:
        self._files: OrderedDict[int, _File] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[ShardReader], tuple[object, ...]]:
        return ShardReader, (self._shards, self._sizes, self._versions, self.opener, self._max_open, self._outside)

    @property
    def is_remote(self) -> bool:
        """Whether any of the shards is remote."""
        return any(map(is_remote, self._shards))

    def prefetching(self, order: Iterable[int], behind: int, at_start: bool) -> ShardReader:
        """A reader that fetches remote shards ahead, in the order in which they will be read; see `Prefetcher`."""
        opener = self.opener.prefetching(
            ((self._shards[i], self._sizes[i], self._versions[i]) for i in order), behind, at_start
        )
        return ShardReader(self._shards, self._sizes, self._versions, opener, self._max_open, self._outside)

    def read(self, shard: int, offset: int, nbytes: int) -> bytes:
        """Read `nbytes` bytes of a shard from `offset`."""
        files = self._files
        try:  # without the lock: each of these two calls is atomic
            file = files[shard]
            files.move_to_end(shard)
        except KeyError:  # not open, or closed in between
            file = self._open(shard)
        data = os.pread(file.fd, nbytes, offset)
        while len(data) < nbytes:  # a read returns at most 2 GiB, and may return less on a network file system
            more = os.pread(file.fd, nbytes - len(data), offset + len(data))
            if not more:
                raise OSError(
                    f"shard {redact(self._shards[shard])!r} ends at byte {offset + len(data)}, inside a member: it has "
                    "changed since it was indexed; bring its index up to date: patchnpack index SHARDS"
                )
            data += more
        return data

    def open(self, shard: int) -> int:
        """Open the file in which the shard's offsets count; the caller closes the descriptor."""
        return self.opener.open(self._shards[shard], self._sizes[shard], self._versions[shard])

    def read_member(self, shard: int, offset: int, nbytes: int) -> bytes:
        """Read a member that has no digest in the index: those of a shard are covered by its own."""
        return self.read(shard, offset, nbytes)

    def modified(self, shard: int, offset: int) -> str | None:
        """Return what to say if the shard was written to since it was indexed; None if it was not."""
        if not self.opener.has_changed(self._shards[shard], self._versions[shard]):
            return None
        return (
            f"shard {redact(self._shards[shard])!r} was modified after it was indexed: the image at byte {offset} "
            "differs; update the index: patchnpack index SHARDS"
        )

    def _was_modified(self, shard: int, fd: int, outside: Outside) -> bool:
        """Whether the open file of a shard is not the one that was indexed, or the store has another one by now.

        A tar was compared when its index was opened, and downloads are compared with the version in the index.
        """
        path, nbytes, version = self._shards[shard], self._sizes[shard], self._versions[shard]
        if is_remote(path) and version:
            return self.opener.is_outdated(path, nbytes, version)
        # A remote shard has no version if its index was made from a local copy. A copy of a parquet file has another
        # mtime, and what is compared are its rows in the cache.
        if is_remote(path) or (is_parquet(path) and self.opener.has_changed(path, version)):
            return not outside.is_unchanged(shard, fd)
        return False

    def _open(self, shard: int) -> _File:
        with self._lock:
            file = self._files.get(shard)
            if file is not None:
                self._files.move_to_end(shard)
                return file
        # Outside the lock: fetching a remote shard must not block reads of other shards.
        path = self._shards[shard]
        file = _File(self.opener.open(path, self._sizes[shard], self._versions[shard]), self.opener.is_cached(path))
        if self._outside is not None and shard not in self._checked:
            if self._was_modified(shard, file.fd, self._outside):
                raise OSError(
                    f"shard {redact(path)!r} was modified after it was indexed: bytes outside its images, such as "
                    "labels, may differ; bring its index up to date: patchnpack index SHARDS -o INDEX"
                )
            self._checked.add(shard)
        with self._lock:
            file = self._files.setdefault(shard, file)
            # An evicted file occupies its disk space until it is closed, so open files obey the cache limit, too.
            limit = self.opener.limit
            while len(self._files) > 1 and (
                len(self._files) > self._max_open
                or (limit is not None and sum(file.cached_bytes for file in self._files.values()) > limit)
            ):
                self._files.popitem(last=False)
        return file


_readers: weakref.WeakSet[ShardReader] = weakref.WeakSet()


def _reset_readers() -> None:
    # A thread that held a lock in the parent does not exist in a forked child.
    for reader in list(_readers):
        reader._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_readers)
