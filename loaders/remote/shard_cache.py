"""The shard cache: named files on local disk, made once per machine and kept under a size limit."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

Make = Callable[[Path], None]

# The cache has a folder of its own, because eviction must delete no file that the cache has not made.
_FOLDER = "patchnpack-shards"
_PART = ".part"
_POLL_S = 0.02
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Stopped(Exception):
    """The caller has cancelled the work in progress."""


def default_folder() -> Path:
    """The default cache folder: $PATCHNPACK_CACHE, else `patchnpack` in $XDG_CACHE_HOME, else in ~/.cache."""
    if given := os.environ.get("PATCHNPACK_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "patchnpack"


class ShardCache:
    """Files made once and opened for reading, shared by the threads and processes of a machine.

    A file is whole or absent. Above `limit`, the least recently acquired files are evicted; an evicted file stays
    readable where it is open. A file in progress counts with the bytes written so far.

    Args:
        folder: the cache makes a folder of its own inside this one, which is created if absent.
        limit: total bytes of the files; None is no limit.

    Raises:
        ValueError: the limit is below 1.
        OSError: the folder cannot be created.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     cache = ShardCache(folder, limit=1000)
    ...     fd = cache.acquire("a.tar", lambda path: path.write_bytes(b"bytes"))
    ...     os.read(fd, 10)
    ...     os.close(fd)
    b'bytes'
    """

    def __init__(self, folder: str | os.PathLike[str], limit: int | None = None) -> None:
        if limit is not None and limit < 1:
            raise ValueError(f"cache_limit is {limit}; it must be at least 1 byte, or None for no limit")
        self.folder = Path(folder).expanduser() / _FOLDER
        self.limit = limit
        self.folder.mkdir(parents=True, exist_ok=True)
        self._remove_stale()

    def acquire(self, name: str, make: Make, nbytes: int | None = None, *, stop: threading.Event | None = None) -> int:
        """Open the file `name` for reading and return its descriptor; the caller closes it.

        If the file is absent, `make(path)` writes it into the empty file at `path`. One thread of the machine makes it
        while all others wait. If `make` raises, nothing is left behind, and the next caller tries.

        Args:
            name: the file's name in the cache; it must encode all that the bytes depend on.
            make: writes the file.
            nbytes: the expected size. The cache evicts before it makes the file, and refuses another size.
            stop: cancels waiting for another thread's `make`.

        Raises:
            ValueError: `name` is not a file name, or the file is larger than the cache's limit.
            OSError: the disk is full and nothing is left to evict, or `make` wrote another size.
            Stopped: `stop` was set.
        """
        if not name or name != os.path.basename(name) or name.startswith(".") or name.endswith(_PART):
            raise ValueError(f"{name!r} cannot name a cached file; use a plain file name without a leading dot")
        self._check_fits(name, nbytes)
        part = self.folder / (name + _PART)
        while True:
            if (fd := self._open(name, nbytes)) is not None:
                return fd
            claim = _claim(part, stop)
            if claim is None:
                continue  # the thread that made it has just finished or failed
            try:
                fd = self._open(name, nbytes)
                return fd if fd is not None else self._make(name, part, make, nbytes)
            finally:
                _release(claim, part)

    def _check_fits(self, name: str, nbytes: int | None) -> None:
        if nbytes is not None and self.limit is not None and nbytes > self.limit:
            raise ValueError(
                f"shard {name!r} has {nbytes} bytes, more than the cache's limit of {self.limit}; give a cache_limit= "
                "that holds several shards, or None"
            )

    def _open(self, name: str, nbytes: int | None) -> int | None:
        path = self.folder / name
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        if nbytes is not None and os.fstat(fd).st_size != nbytes:  # truncated or overwritten by another program
            os.close(fd)
            path.unlink(missing_ok=True)
            return None
        now = time.time_ns()  # utime's own clock is too coarse to order two calls
        with suppress(PermissionError):  # another user's file keeps its old time
            os.utime(fd, ns=(now, now))
        return fd

    def _make(self, name: str, part: Path, make: Make, nbytes: int | None) -> int:
        self._evict(nbytes or 0)
        while True:
            try:
                make(part)
                fd = os.open(part, os.O_RDONLY | os.O_CLOEXEC)
                break
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                os.truncate(part, 0)
                if not self._free(nbytes):
                    raise self._full(error.errno, name, nbytes) from error
        try:
            size = os.fstat(fd).st_size
            if nbytes is not None and size != nbytes:
                raise OSError(f"shard {name!r} has {nbytes} bytes, but {size} were written; the file was deleted")
            self._check_fits(name, size)
            os.fsync(fd)
            os.rename(part, self.folder / name)
        except BaseException:
            os.close(fd)
            raise
        self._evict(keep=name)
        return fd

    def _full(self, number: int, name: str, nbytes: int | None) -> OSError:
        size = "the bytes" if nbytes is None else f"the {nbytes} bytes"
        text = f"no room for {size} of shard {name!r}, and nothing left to evict; give cache_dir= on a larger disk"
        return OSError(number, text, str(self.folder))

    def _evict(self, room: int = 0, keep: str = "") -> None:
        """Delete the least recently acquired files, except `keep`, until `room` more bytes fit under the limit."""
        if self.limit is None:
            return
        self._remove_stale()
        files, in_progress = self._files()
        excess = sum(size for _, size, _ in files) + in_progress + room - self.limit
        self._delete(files, excess, keep)

    def _free(self, nbytes: int | None) -> bool:
        """Delete the least recently acquired files until `nbytes` are freed (None: all); whether any was deleted."""
        self._remove_stale()
        files, _ = self._files()
        return self._delete(files, sum(size for _, size, _ in files) + 1 if nbytes is None else nbytes, "")

    def _files(self) -> tuple[list[tuple[int, int, str]], int]:
        """(time of last use, bytes, name) of each file, oldest first, and the total bytes of files in progress."""
        files, in_progress = [], 0
        with os.scandir(self.folder) as entries:
            for entry in entries:
                try:
                    stat = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if entry.name.endswith(_PART):
                    in_progress += stat.st_size
                else:
                    files.append((stat.st_mtime_ns, stat.st_size, entry.name))
        return sorted(files), in_progress

    def _delete(self, files: list[tuple[int, int, str]], excess: int, keep: str) -> bool:
        deleted = False
        for _, size, name in files:
            if excess <= 0:
                break
            if name != keep:
                (self.folder / name).unlink(missing_ok=True)
                excess -= size
                deleted = True
        return deleted

    def _remove_stale(self) -> None:
        """Delete what dead processes have left: files in progress whose lock is free."""
        for part in self.folder.glob("*" + _PART):
            try:
                fd = os.open(part, os.O_RDWR | os.O_CLOEXEC)
            except (FileNotFoundError, PermissionError):
                continue
            if _lock(fd):
                _release(fd, part)
            else:
                os.close(fd)


# A file in progress is its own lock. Its holder may write, rename or delete the file, and the lock ends with the
# holder's process. A lock on a file that is no longer at its path is void: the file was published or deleted meanwhile.


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(fd: int, path: Path) -> bool:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(fd), found)


def _claim(part: Path, stop: threading.Event | None) -> int | None:
    """Wait for the lock on `part` and empty the file; None if the file is gone by then."""
    fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        while not _lock(fd):
            if stop is not None and stop.is_set():
                raise Stopped(f"cancelled while waiting for {part.name}")
            time.sleep(_POLL_S)
        if valid := _is_at(fd, part):
            os.ftruncate(fd, 0)
    except BaseException:
        os.close(fd)
        raise
    if not valid:
        os.close(fd)
    return fd if valid else None


def _release(claim: int, part: Path) -> None:
    try:
        if _is_at(claim, part):
            part.unlink()
        fcntl.flock(claim, fcntl.LOCK_UN)  # a process forked meanwhile shares the lock
    finally:
        os.close(claim)
