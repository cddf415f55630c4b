"""The index of a data set: sizes that are given, cached, or read in one pass over the headers of its images."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from patchnpack.loaders.datasets.items import Items
from patchnpack.loaders.datasets.pictures import check_colors
from patchnpack.loaders.errors import BadImage
from patchnpack.loaders.imaging.formats import PIXELS
from patchnpack.loaders.imaging.header import Header, header_or_reason
from patchnpack.loaders.imaging.pages import PageRun
from patchnpack.loaders.imaging.user_decode import UserFormats, own_format
from patchnpack.loaders.index.index_file import load_index, save_index
from patchnpack.loaders.index.samples.page_rows import files_of, is_several, with_pages
from patchnpack.loaders.index.samples.sample_images import pages_of
from patchnpack.loaders.index.table import Index, Texts
from patchnpack.loaders.shards.sample_rule import MEMBERS

# n images

_BLOCK = 64  # images that a thread reads before it takes others
_LOG_EVERY_S = 10.0
_MAX_SIDE = 1 << 30
_LAYOUT = "1"  # of what is cached; another one makes older entries unused

_log = logging.getLogger("patchnpack")

Fingerprint = str | Callable[[Any], str] | None


def index_of(
    items: Items,
    *,
    sizes: Any,
    fingerprint: str | None,
    folder: Path,
    num_threads: int,
    progress: Callable[[int, int], None] | None = None,
    by_members: bool = False,
    values: bool = False,
    formats: UserFormats = (),
) -> Index:
    """Return the index of a data set's n images, in one virtual shard.

    Args:
        items: the images.
        sizes: (width, height) of each image in pixels, upright, (n, 2); None reads them.
        fingerprint: a text that changes with the data, under which the sizes are cached; None does not cache.
        folder: the folder of cached indexes.
        num_threads: threads that read.
        progress: called with (images done, n).
        by_members: whether the images of a row are one sample, with all pages or frames of each.
        values: whether arrays may hold other values than 8-bit colours.
        formats: the user's formats.

    Raises:
        OSError, RuntimeError, ValueError: as `Items.read`.
        ValueError: `sizes` has another shape, or a size below 1.
    """
    columns = _Columns(len(items), by_members, values, formats)
    if sizes is not None:
        given = _checked(sizes, len(items))
        columns.width[:], columns.height[:], columns.format[:] = given[:, 0], given[:, 1], PIXELS
        return columns.index(items)
    if fingerprint is None:
        if progress is None:
            progress = _Logger(items)
        index = _read(items, columns, num_threads, progress)
        _log.warning(
            "read the sizes of the %d images of the %s, which has no fingerprint, so the next start reads them again; "
            "give "
            "fingerprint=, a text that changes with the data, to cache them, or sizes=",
            *(len(items), items.name),
        )
        return index
    path = folder / f"{_digest(items, fingerprint, by_members, formats)}.parquet"
    if path.exists():
        with suppress(ValueError):  # damaged, or of another version
            cached = load_index(path)
            _log.info("using the cached sizes %r", str(path))
            keys = items.keys if cached.samples is None else items.keys.take(files_of(cached.samples))
            return replace(cached, shards=(items.name,), keys=keys)
    index = _read(items, columns, num_threads, progress if progress is not None else _Logger(items))
    _log.info("read the sizes of %d images; they are cached as %r", len(items), str(path))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_index(index, path)
    except OSError as error:
        _log.warning("the sizes cannot be cached: %s; choose another cache_dir", error)
    return index


def fingerprint_of(given: Any, items: Items, fingerprint: Fingerprint) -> str | None:
    """Return a text that changes with the data: `fingerprint`, or what the data sets say; None where one says nothing.

    Raises:
        ValueError: `fingerprint` is neither a text nor a function that returns one.
    """
    if fingerprint is not None:
        found = fingerprint(given) if callable(fingerprint) else fingerprint
        if not found or type(found) is not str:
            raise ValueError(
                f"fingerprint is {found!r}; it must be a text that changes with the data, or a function from the data "
                "set to such a text"
            )
        return found
    texts = [adapter.fingerprint() for adapter in items.adapters]
    return None if None in texts else "\n".join(map(str, texts))


def _digest(items: Items, fingerprint: str, by_members: bool, formats: UserFormats) -> str:
    """Return a digest of which images of which data are read."""
    rows = xxhash.xxh3_128()
    for column in (items.adapter, items.row, items.number):
        rows.update(np.ascontiguousarray(column).data)
    images = [adapter.image for adapter in items.adapters]
    versions = [format.version for format in formats]
    text = "\n".join(["data set", _LAYOUT, fingerprint, *images, rows.hexdigest(), *[MEMBERS] * by_members, *versions])
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _checked(sizes: Any, n: int) -> np.ndarray:
    try:
        array = np.asarray(sizes)
    except ValueError as error:  # rows of unequal length
        raise ValueError(f"sizes is no array ({error}); give (width, height) of each image, shape ({n}, 2)") from None
    if array.shape != (n, 2) or array.dtype.kind not in "iu":
        raise ValueError(
            f"sizes is {array.dtype} {array.shape}; it must hold whole numbers ({n}, 2): width and height in pixels of "
            "each image of the data set, in order"
        )
    bad = np.flatnonzero(((array < 1) | (array > _MAX_SIDE)).any(1))
    if len(bad):
        raise ValueError(
            f"sizes[{bad[0]}] is {array[bad[0]].tolist()}; width and height must be from 1 to {_MAX_SIDE} pixels"
        )
    return array.astype(np.int32)


class _Columns:
    """The columns of the index, filled by threads: a row is written by one of them."""

    def __init__(self, n: int, by_members: bool, values: bool, formats: UserFormats) -> None:
        self._by_members, self._values, self._formats = by_members, values, formats
        self._several: dict[int, list[PageRun]] = {}  # of the files with several pages or frames, where all are used
        self.nbytes, self.digest = np.zeros(n, np.int64), np.zeros(n, np.uint64)
        self.width, self.height = np.zeros(n, np.int32), np.zeros(n, np.int32)
        self.orientation, self.format = np.ones(n, np.uint8), np.zeros(n, np.uint8)
        self.pages, self.bands = np.ones(n, np.int32), np.full(n, 3, np.int32)
        self.dtype = np.zeros(n, np.uint8)
        self.reasons: dict[int, str] = {}

    def fill(self, i: int, items: Items) -> None:
        """Read the header of image i."""
        try:
            image, _ = items.read(i)
        except BadImage as error:
            self.reasons[i] = str(error)
            return
        if isinstance(image, bytes):
            self.nbytes[i], self.digest[i] = len(image), xxhash.xxh3_64_intdigest(image)
            pages = pages_of(image, every=self._by_members, own=own_format(self._formats, image))
            if is_several(pages):
                self._several[i] = pages
            header, reason, *_ = pages[0]
        else:
            if not self._values:
                check_colors(image, items.describe(i))
            header, reason = header_or_reason(image, values=self._values)
        if reason is not None:
            self.reasons[i] = reason
        for name, value in zip(Header._fields, header, strict=True):
            getattr(self, name)[i] = value

    def index(self, items: Items) -> Index:
        """Return the index with these columns."""
        n = len(items)
        index = Index(
            shards=(items.name,),
            shard_bytes=np.array([int(self.nbytes.sum())]),
            versions=("",),
            starts=np.array([0, n]),
            keys=items.keys,
            offset=np.full(n, -1, np.int64),
            nbytes=self.nbytes,
            width=self.width,
            height=self.height,
            orientation=self.orientation,
            format=self.format,
            pages=self.pages,
            bands=self.bands,
            dtype=self.dtype,
            digest=self.digest,
            reasons=Texts.of(map(self.reasons.get, range(n))),
            cls=Texts.of([None] * n),
            members={},
            without_image=np.array([items.empty if self._by_members else 0]),
            unused_members=np.zeros(1, np.int64),
            examples=((),),
            outside=np.zeros(1, np.uint64),
            formats=tuple(format.name for format in self._formats),
        )
        return with_pages(index, items.starts, self._several) if self._by_members else index


def _read(items: Items, columns: _Columns, num_threads: int, progress: Callable[[int, int], None]) -> Index:
    """Read the header of each image, in threads, `_BLOCK` images at a time."""
    n = len(items)

    def read(first: int) -> int:
        block = range(first, min(first + _BLOCK, n))
        for i in block:
            columns.fill(i, items)
        return len(block)

    done = 0
    with ThreadPoolExecutor(num_threads, "patchnpack-sizes") as pool:
        try:
            for count in pool.map(read, range(0, n, _BLOCK)):
                done += count
                progress(done, n)
        except BaseException:
            pool.shutdown(cancel_futures=True)  # report a bad row at once, not after all others
            raise
    return columns.index(items)


class _Logger:
    """Logs the progress of a pass every few seconds."""

    def __init__(self, items: Items) -> None:
        self._name, self._began = items.name, time.monotonic()
        self._next = self._began + _LOG_EVERY_S

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _LOG_EVERY_S
            rate = done / (now - self._began)
            _log.info("reading the sizes of the %s: %d of %d images, %.0f images/s", self._name, done, total, rate)
