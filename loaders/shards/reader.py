"""Shards: which files a source names, and reading bytes out of them."""

from __future__ import annotations

import glob
import os
import shlex
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path

from braceexpand import braceexpand

from patchnpack.loaders.remote.addresses import redact
from patchnpack.loaders.remote.download import is_remote
from patchnpack.loaders.shards.opener import ShardOpener

ShardNames = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

PACKED_FOLDER_FILES = ("recipe.json", "manifest.json")  # a folder that holds one of them is a packed folder
INDEX_NAMES = ("index.parquet", "index.arrow")  # what an index beside its shards is called
_IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}


def expand(source: ShardNames, store: ShardOpener | None = None) -> list[str]:
    """The shards that `source` names: a path or an address, a brace range, a glob, or a list of these.

    Raises:
        ValueError: nothing named, a brace range that names nothing, or a folder of image files.
        FileNotFoundError: a shard that does not exist, or a glob without a match.

    >>> expand("train-{000..001}.tar")
    Traceback (most recent call last):
        ...
    FileNotFoundError: shard 'train-000.tar' does not exist (2 of the 2 that 'train-{000..001}.tar' names are missing...
    """
    patterns = [source] if isinstance(source, str | os.PathLike) else list(source)
    store = store or ShardOpener()
    paths = [path for pattern in patterns for path in _expand_one(os.fspath(pattern), store)]
    if not paths:
        raise ValueError("the source is an empty list; give at least one shard, such as 'train-{000000..000009}.tar'")
    seen: set[str] = set()
    for path in paths:
        if (real := path if is_remote(path) else os.path.realpath(path)) in seen:
            raise ValueError(f"shard {redact(path)!r} is named more than once; each image would be seen twice an epoch")
        seen.add(real)
    return paths


def _expand_one(pattern: str, store: ShardOpener) -> list[str]:
    if not pattern:
        raise ValueError("the source is an empty text; give at least one shard, such as 'train-{000000..000009}.tar'")
    if is_remote(pattern):
        return store.expand(pattern)
    if pattern.startswith("pipe:"):
        raise ValueError(f"{pattern!r} runs a command; shards are read at any place: name files, or use pack_stream")
    pattern = os.path.expanduser(pattern)
    if os.path.exists(pattern):
        _refuse_folder(pattern)
        return [pattern]
    try:
        paths = list(braceexpand(pattern))
    except ValueError:
        raise ValueError(f"{pattern!r} has a brace without its partner; write a range as {{000000..000009}}") from None
    if not all(paths) or any("{" in path or "}" in path for path in paths):
        raise ValueError(f"the braces in {pattern!r} name no shard; write a range as {{000000..000009}} or {{a,b}}")
    found: list[str] = []
    missing: list[str] = []
    for path in paths:
        if path.endswith(".arrow"):
            raise ValueError(
                f"{path!r} is named like an index, which stands alone as a source; name shards, and give index={path!r}"
                if os.path.exists(path) or len(paths) > 1
                else f"index {path!r} does not exist; make it with: patchnpack index SHARDS -o {path}"
            )
        if os.path.exists(path):
            found.append(path)
        elif glob.has_magic(path):
            # What `patchnpack index` leaves beside parquet shards is none of them.
            matches = sorted(match for match in glob.glob(path) if os.path.basename(match) not in INDEX_NAMES)
            if not matches:
                raise FileNotFoundError(f"no file matches {path!r}; looked from {Path.cwd()}, name shards that exist")
            found += matches
        else:
            missing.append(path)
    if missing:
        range_ = f"{len(missing)} of the {len(paths)} that {pattern!r} names are missing; " if len(paths) > 1 else ""
        raise FileNotFoundError(
            f"shard {missing[0]!r} does not exist ({range_}looked from {Path.cwd()}); correct the path or the range"
        )
    for path in found:
        _refuse_folder(path)
    return found


def _refuse_folder(path: str) -> None:
    if not os.path.isdir(path):
        return
    inside = os.listdir(path)
    if any(name in inside for name in PACKED_FOLDER_FILES):
        raise ValueError(
            f"{path!r} is a folder of packs, not a shard: PackedImageLoader({path!r}) and `patchnpack report` read it; "
            f"for other commands write shards again: patchnpack unpack {shlex.quote(path)} -o SHARDS"
        )
    for ending in ("tar", "parquet"):
        if shards := sum(name.endswith("." + ending) for name in inside):
            named = os.path.join(path, "*." + ending)
            raise ValueError(f"{path!r} is a folder of {shards} shards; name them: {named!r}")
    images = sum(os.path.splitext(name)[1].lower() in _IMAGES for name in inside)
    raise ValueError(
        f"{path!r} is a folder with {images} image files at its top, not a shard; make shards of it first: "
        f"patchnpack shard {shlex.quote(path)} -o {shlex.quote(path.rstrip(os.sep) + '-shards')}"
    )


class _File:
    """A file descriptor that is closed when the last reader has let go of it."""

    def __init__(self, fd: int, cached: bool) -> None:
        self.fd = fd
        self.cached_bytes = os.fstat(fd).st_size if cached else 0

    def __del__(self) -> None:
        os.close(self.fd)


class ShardReader:
    """Reads byte ranges of shards from any thread, with at most `max_open` files open.

    Raises OSError naming the shard, where it has changed size since it was indexed or ends too early.
    """

    def __init__(
        self,
        shards: Sequence[str],
        sizes: Sequence[int],
        versions: Sequence[str],
        store: ShardOpener,
        max_open: int = 64,
    ) -> None:
        self._shards, self._sizes, self._versions, self._max_open = shards, sizes, versions, max_open
        self.store = store
        self._begin()
        _readers.add(self)

    def _begin(self) -> None:
        self._files: OrderedDict[int, _File] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[ShardReader], tuple[object, ...]]:
        return ShardReader, (self._shards, self._sizes, self._versions, self.store, self._max_open)

    @property
    def is_remote(self) -> bool:
        """Whether any of the shards is."""
        return any(map(is_remote, self._shards))

    def prefetching(self, coming: Iterable[int], behind: int, at_start: bool) -> ShardReader:
        """A reader of its own that fetches remote shards ahead, in the order in which they will be read."""
        store = self.store.prefetching(
            ((self._shards[i], self._sizes[i], self._versions[i]) for i in coming), behind, at_start
        )
        return ShardReader(self._shards, self._sizes, self._versions, store, self._max_open)

    def read(self, shard: int, offset: int, nbytes: int) -> bytes:
        """`nbytes` bytes of the shard from `offset`."""
        file = self._open(shard)
        data = os.pread(file.fd, nbytes, offset)
        while len(data) < nbytes:  # a single read stops at 2 GiB, and may stop anywhere on a network file system
            more = os.pread(file.fd, nbytes - len(data), offset + len(data))
            if not more:
                raise OSError(
                    f"shard {redact(self._shards[shard])!r} ends at byte {offset + len(data)}, inside a member: it has "
                    "changed"
                )
            data += more
        return data

    def open(self, shard: int) -> int:
        """A descriptor, for the caller to close, of what the shard's offsets count in."""
        return self.store.open(self._shards[shard], self._sizes[shard], self._versions[shard])

    def has_changed(self, shard: int) -> bool:
        """Whether the shard was written to since it was indexed."""
        return self.store.has_changed(self._shards[shard], self._versions[shard])

    def _open(self, shard: int) -> _File:
        with self._lock:
            file = self._files.get(shard)
            if file is not None:
                self._files.move_to_end(shard)
                return file
        # Not under the lock: a remote shard may have to be fetched, and others can be read meanwhile.
        path = self._shards[shard]
        file = _File(self.store.open(path, self._sizes[shard], self._versions[shard]), self.store.is_cached(path))
        with self._lock:
            file = self._files.setdefault(shard, file)
            # A file that the cache has deleted takes its place on the disk until it is closed.
            limit = self.store.limit
            while len(self._files) > 1 and (
                len(self._files) > self._max_open
                or (limit is not None and sum(file.cached_bytes for file in self._files.values()) > limit)
            ):
                self._files.popitem(last=False)
        return file


_readers: weakref.WeakSet[ShardReader] = weakref.WeakSet()


def _begin_again() -> None:
    # A thread that held a lock when the process was forked is not there to let it go.
    for reader in list(_readers):
        reader._begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_again)
