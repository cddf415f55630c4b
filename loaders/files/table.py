"""`FileTable`: the files of one folder, or of one table of paths, and how they are read."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from patchnpack.loaders.errors import BadImage
from patchnpack.loaders.files.texts import Texts
from patchnpack.loaders.remote.addresses import is_remote, redact
from patchnpack.loaders.remote.errors import RemoteNotFound
from patchnpack.loaders.shards.opener import ShardOpener

# f files

REMEDY = "make a new loader, which reads what has changed, or bring an index file up to date with `patchnpack index`"


@dataclass(frozen=True, kw_only=True)
class FileTable:
    """The f files of a source, and the values of a table's columns.

    A position below f is the number of a file, and from f on, a byte of `values`, counted from f.

    Attributes:
        root: the folder from which relative paths count: an absolute path, or an address.
        paths: f paths below the root, with forward slashes; or absolute paths and addresses.
        nbytes: int64 (f,), sizes of the files.
        versions: of each file: the mtime in nanoseconds of a local one, the ETag of a remote one.
        digest: uint64 (f,), XXH3 of the bytes of each file.
        values: the bytes of members that lie in no file of their own.
    """

    root: str
    paths: Texts[str]
    nbytes: np.ndarray
    versions: Texts[str]
    digest: np.ndarray
    values: pa.Buffer

    def __len__(self) -> int:
        return len(self.paths)

    def file(self, number: int) -> str:
        """Return the path or the address of a file."""
        return resolve(self.root, self.paths[number])

    @cached_property
    def _values(self) -> memoryview:
        return memoryview(self.values)

    def read(self, position: int, nbytes: int, opener: ShardOpener) -> bytes:
        """Return the bytes of a file, or of a value.

        Raises:
            OSError: the file is gone, or has another size.
        """
        number = position - len(self.paths)
        if number >= 0:
            return bytes(self._values[number : number + nbytes])
        path = self.file(position)
        if is_remote(path):
            return self._read_remote(position, path, nbytes, opener)
        try:
            fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except FileNotFoundError:
            raise FileNotFoundError(f"{path!r} is gone since it was indexed; restore it, or {REMEDY}") from None
        try:
            data = os.read(fd, nbytes + 1)
            while len(data) < nbytes:  # a read returns at most 2 GiB, and less on some network file systems
                more = os.read(fd, nbytes + 1 - len(data))
                if not more:
                    break
                data += more
            if len(data) != nbytes:
                raise OSError(
                    f"{path!r} has {os.fstat(fd).st_size} bytes but had {nbytes} when it was indexed; {REMEDY}"
                )
        finally:
            os.close(fd)
        return data

    def read_beside(self, position: int, path: str, opener: ShardOpener) -> bytes:
        """Return the bytes of a file that is not in the table, named as the file at `position` is.

        Paths count from the root. Absolute paths and addresses elsewhere are read only if that file lies there, too.

        Raises:
            BadImage: the path leads out of the root.
            OSError: the file cannot be read.
        """
        below = posixpath.normpath(path)
        full = path if is_remote(path) else resolve(self.root, below)
        may_be_anywhere = self.file(position) == self.paths[position]
        if below.startswith("../") or not (may_be_anywhere or full.startswith(self.root.rstrip("/") + "/")):
            raise BadImage(f"{redact(path)!r} leads out of {redact(self.root)!r}")
        nbytes, version = opener.stat(full)
        if is_remote(full):
            return opener.read_file(full, nbytes, version)
        with open(full, "rb") as file:
            return file.read()

    def _read_remote(self, number: int, path: str, nbytes: int, opener: ShardOpener) -> bytes:
        try:
            return opener.read_file(path, nbytes, self.versions[number])
        except RemoteNotFound as error:
            raise RemoteNotFound(f"{redact(path)!r} is gone since it was indexed ({error}); {REMEDY}") from error

    def modified(self, number: int, opener: ShardOpener) -> str | None:
        """Return what to say of a file that was modified since it was indexed; None if it was not.

        Remote files are compared when they are read.
        """
        path = self.file(number)
        if is_remote(path) or opener.stat(path)[1] == self.versions[number]:
            return None
        return f"{path!r} was modified after it was indexed, and its bytes differ; {REMEDY}"

    def checked(self, number: int, data: bytes, digest: Callable[[bytes], int]) -> bytes:
        """Return the bytes of a file. Raises OSError if they are not those that were indexed."""
        if digest(data) != int(self.digest[number]):
            raise OSError(f"{redact(self.file(number))!r} was modified after it was indexed; {REMEDY}")
        return data


def resolve(root: str, path: str) -> str:
    """Return the path or the address of a file below a root; an address and an absolute path stand for themselves.

    >>> resolve("/data", "a/b.jpg"), resolve("s3://bucket", "a.jpg"), resolve("/data", "/b.jpg")
    ('/data/a/b.jpg', 's3://bucket/a.jpg', '/b.jpg')
    """
    if path.startswith("/") or is_remote(path):
        return path
    return f"{root}/{path}" if root != "/" else f"/{path}"
