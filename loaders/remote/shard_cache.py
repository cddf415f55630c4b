"""The shard cache: named files on local disk, made once for all processes of a machine, kept under a size limit."""

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

# A folder of its own: eviction deletes files, and must never meet any that this cache has not made.
_FOLDER = "patchnpack-shards"
_PART = ".part"
_POLL_S = 0.02
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Stopped(Exception):
    """What was under way has been called off by its caller."""


def default_folder() -> Path:
    """$PATCHNPACK_CACHE, else patchnpack in $XDG_CACHE_HOME, else in ~/.cache."""
    if given := os.environ.get("PATCHNPACK_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "patchnpack"


class ShardCache:
    """Files made once and lent as open descriptors, shared by the threads and the processes of a machine.

    A file appears whole or not at all. Beyond `limit` the least recently lent go; one that is open elsewhere stays
    readable until it is closed. Files under way count as what has been written of them.

    Args:
        folder: where; the files lie in a folder of the cache's own inside it. Made where there is none.
        limit: bytes that the files may take together; None is no limit.

    Raises:
        ValueError: a limit below 1.
        OSError: the folder cannot be made.

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
        self._remove_dead()

    def acquire(self, name: str, make: Make, nbytes: int | None = None, *, stop: threading.Event | None = None) -> int:
        """A descriptor of the file `name`, open for reading; the caller closes it.

        Where the file is absent, `make(path)` writes it, in place, into the empty file at `path`: once, whoever else of
        this machine asks meanwhile, and they wait. When it raises, nothing is left behind and the next one tries.

        Args:
            name: the file's name in the cache; it must say all that the bytes depend on.
            make: writes the file.
            nbytes: the size it will have; room is made before, and another size is refused.
            stop: once set, waiting for somebody else's `make` ends.

        Raises:
            ValueError: a name that is no file name, or a file larger than the cache's limit.
            OSError: the disk is full and nothing is left to evict, or `make` wrote another size.
            Stopped: `stop` was set.
        """
        if not name or name != os.path.basename(name) or name.startswith(".") or name.endswith(_PART):
            raise ValueError(f"{name!r} cannot name a cached file; give a plain file name without a leading dot")
        self._check_fits(name, nbytes)
        part = self.folder / (name + _PART)
        while True:
            if (lent := self._open(name, nbytes)) is not None:
                return lent
            claim = _claim(part, stop)
            if claim is None:
                continue  # its maker has just finished or failed
            try:
                lent = self._open(name, nbytes)
                return lent if lent is not None else self._make(name, part, make, nbytes)
            finally:
                _release(claim, part)

    def _check_fits(self, name: str, nbytes: int | None) -> None:
        if nbytes is not None and self.limit is not None and nbytes > self.limit:
            raise ValueError(
                f"shard {name!r} has {nbytes} bytes and the cache may hold {self.limit}; give a cache_limit= that "
                "holds several shards, or None"
            )

    def _open(self, name: str, nbytes: int | None) -> int | None:
        path = self.folder / name
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        if nbytes is not None and os.fstat(fd).st_size != nbytes:  # somebody cut or wrote to it
            os.close(fd)
            path.unlink(missing_ok=True)
            return None
        now = time.time_ns()  # left to itself, utime takes a clock too coarse to tell two loans apart
        with suppress(PermissionError):  # another user's file: it will look older than it is
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
                raise OSError(f"{size} bytes were written of shard {name!r}, which has {nbytes}; it was not kept")
            self._check_fits(name, size)
            os.fsync(fd)
            os.rename(part, self.folder / name)
        except BaseException:
            os.close(fd)
            raise
        self._evict(keep=name)
        return fd

    def _full(self, number: int, name: str, nbytes: int | None) -> OSError:
        need = "the bytes" if nbytes is None else f"the {nbytes} bytes"
        text = f"no room for {need} of shard {name!r}, and nothing left to evict; give cache_dir= on a larger disk"
        return OSError(number, text, str(self.folder))

    def _evict(self, room: int = 0, keep: str = "") -> None:
        """Deletes what was lent longest ago until `room` more bytes are inside the limit; `keep` stays."""
        if self.limit is None:
            return
        self._remove_dead()
        files, under_way = self._files()
        excess = sum(size for _, size, _ in files) + under_way + room - self.limit
        self._delete(files, excess, keep)

    def _free(self, nbytes: int | None) -> bool:
        """Deletes what was lent longest ago until `nbytes` (None: all) were freed; whether anything was."""
        self._remove_dead()
        files, _ = self._files()
        return self._delete(files, sum(size for _, size, _ in files) + 1 if nbytes is None else nbytes, "")

    def _files(self) -> tuple[list[tuple[int, int, str]], int]:
        """(time of last use, bytes, name) of each file, oldest first, and the bytes of those under way."""
        files, under_way = [], 0
        with os.scandir(self.folder) as entries:
            for entry in entries:
                try:
                    stat = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if entry.name.endswith(_PART):
                    under_way += stat.st_size
                else:
                    files.append((stat.st_mtime_ns, stat.st_size, entry.name))
        return sorted(files), under_way

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

    def _remove_dead(self) -> None:
        """Deletes what processes that died have left: files under way that nobody holds the lock of."""
        for part in self.folder.glob("*" + _PART):
            try:
                fd = os.open(part, os.O_RDWR | os.O_CLOEXEC)
            except (FileNotFoundError, PermissionError):
                continue
            if _lock(fd):
                _release(fd, part)
            else:
                os.close(fd)


# The file under way is its own lock. Whoever holds it may write, rename or delete it; the lock ends with its process. A
# lock on a file that no longer lies at its path is worth nothing: it was published or deleted while we waited.


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lies_at(fd: int, path: Path) -> bool:
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(fd), there)


def _claim(part: Path, stop: threading.Event | None) -> int | None:
    """Waits for the right to write `part` and empties it; None where it has gone meanwhile."""
    fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        while not _lock(fd):
            if stop is not None and stop.is_set():
                raise Stopped(f"called off while waiting for {part.name}")
            time.sleep(_POLL_S)
        if mine := _lies_at(fd, part):
            os.ftruncate(fd, 0)
    except BaseException:
        os.close(fd)
        raise
    if not mine:
        os.close(fd)
    return fd if mine else None


def _release(claim: int, part: Path) -> None:
    try:
        if _lies_at(claim, part):
            part.unlink()
        fcntl.flock(claim, fcntl.LOCK_UN)  # a process forked meanwhile holds the same lock
    finally:
        os.close(claim)
