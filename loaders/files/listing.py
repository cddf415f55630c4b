"""`Listing`: which files a folder or a table of paths names, before any of them is read."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike

from patchnpack.loaders.files.table import resolve
from patchnpack.loaders.files.texts import Texts, TextsBuilder
from patchnpack.loaders.remote.addresses import is_remote, redact
from patchnpack.loaders.shards.opener import ShardOpener

# n rows, f files

_THREADS = 16  # concurrent requests for sizes
_BLOCK = 512  # files whose size one thread asks for


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """The n images of a source, and its f files. Positions are those of `FileTable`.

    Attributes:
        name: the folder or the table, an absolute path or an address.
        root: the folder from which relative paths count.
        paths, nbytes, versions: of the files, as in `FileTable`.
        keys: key of each image.
        number: int64 (n,), the file of each image.
        members: for each member, int64 (n, 2), position and nbytes; (-1, -1) if absent.
        kinds: "txt" or "json", the encoding of members whose name does not imply one.
        values: the bytes of members that lie in no file of their own.
        image: extensions of images.
        without_image: samples without an image.
        unused: files that belong to no image, hidden ones too.
        examples: names of samples without an image.
        samples: int64 (m + 1,), the first image of each sample; None where each image is one and has one page.
    """

    name: str
    root: str
    paths: Texts[str]
    nbytes: np.ndarray
    versions: Texts[str]
    keys: Texts[str]
    number: np.ndarray
    members: dict[str, np.ndarray]
    kinds: dict[str, str]
    values: pa.Buffer
    image: str
    without_image: int
    unused: int
    examples: tuple[str, ...]
    samples: np.ndarray | None = None


def stat_files(root: str, paths: Texts[str], opener: ShardOpener, name: str) -> tuple[np.ndarray, Texts[str]]:
    """Return size and version of each file: int64 (f,), and the mtime of a local one, the ETag of a remote one.

    Raises:
        FileNotFoundError: files do not exist.
        ValueError: a path is not a file.
    """
    nbytes = np.zeros(len(paths), np.int64)
    missing: list[str] = []

    def ask(first: int) -> list[str]:
        versions: list[str] = []
        for i, path in enumerate(paths[first : first + _BLOCK], first):
            file = resolve(root, path)
            try:
                nbytes[i], version = _stat(file, opener)
            except FileNotFoundError:
                missing.append(file)
                version = ""
            versions.append(version)
        return versions

    built = TextsBuilder()
    remote = is_remote(root) or any(is_remote(path) for path in paths[:1])
    with ThreadPoolExecutor(_THREADS if remote else min(_THREADS, os.cpu_count() or 1)) as pool:
        for versions in pool.map(ask, range(0, len(paths), _BLOCK)):
            for version in versions:
                built.add(version)
    if missing:
        raise FileNotFoundError(
            f"{redact(missing[0])!r} does not exist ({len(missing)} of the {len(paths)} files in {redact(name)!r} are "
            "missing); correct the paths, or give the folder that they count from: root="
        )
    return nbytes, built.build()


def _stat(file: str, opener: ShardOpener) -> tuple[int, str]:
    if is_remote(file):
        return opener.stat(file)
    about = os.stat(file)
    if not stat.S_ISREG(about.st_mode):
        kind = "a folder" if stat.S_ISDIR(about.st_mode) else "a pipe, socket or device"
        raise ValueError(f"{file!r} is {kind}; name a file")
    return about.st_size, str(about.st_mtime_ns)


class Values:
    """Collects the bytes of members that lie in no file; equal ones are stored once, as far as they are few."""

    _DISTINCT = 1 << 16

    def __init__(self) -> None:
        self._out = pa.BufferOutputStream()
        self._size = 0
        self._known: dict[bytes, int] = {}

    def add(self, data: bytes) -> int:
        """Return the position of the bytes among the values."""
        if (at := self._known.get(data)) is not None:
            return at
        at, self._size = self._size, self._size + len(data)
        self._out.write(data)
        if len(self._known) < self._DISTINCT:
            self._known[data] = at
        return at

    def build(self) -> pa.Buffer:
        """Return all values."""
        return self._out.getvalue()


def positions(rows: ArrayLike, where: ArrayLike, sizes: ArrayLike, n: int) -> np.ndarray:
    """Return a column of members, int64 (n, 2), (-1, -1) except for these rows."""
    column = np.full((n, 2), -1, np.int64)
    column[np.asarray(rows, np.int64)] = np.stack([np.asarray(where, np.int64), np.asarray(sizes, np.int64)], 1)
    return column
