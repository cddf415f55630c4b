"""Scanning the files of a folder or a table of paths: from a `Listing` to an index. No pixel is decoded."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from patchnpack.loaders.files.listing import Listing
from patchnpack.loaders.files.table import FileTable
from patchnpack.loaders.imaging.header import Header
from patchnpack.loaders.imaging.pages import PageRun
from patchnpack.loaders.imaging.user_decode import UserFormats, find_format
from patchnpack.loaders.index.samples.page_rows import has_several, is_given, is_several, pages_at, with_pages
from patchnpack.loaders.index.samples.sample_images import pages_of
from patchnpack.loaders.index.table import Index, Texts
from patchnpack.loaders.remote.addresses import is_remote
from patchnpack.loaders.shards.opener import ShardOpener

# n rows, f files

_BLOCK = 64  # files that a thread reads before it takes others
_REMOTE_THREADS = 32

Progress = Callable[[int, int], None]


def changed_files(listing: Listing, known: Index | None) -> np.ndarray:
    """Return the numbers, int64, of the listed files that are not in the index `known`, or have changed since."""
    return np.flatnonzero(_known_files(listing, known) < 0)


def scan_files(
    listing: Listing,
    known: Index | None,
    opener: ShardOpener,
    num_threads: int | None,
    progress: Progress | None,
    formats: UserFormats = (),
) -> Index:
    """Make the index of listed files, in one virtual shard.

    Args:
        listing: the files.
        known: an earlier index of the same folder or table, whose files with unchanged path, size and version are not
            read again.
        opener: reads remote files.
        num_threads: files read in parallel; None is the number of CPUs, and 32 for remote files.
        progress: called with (files done, f).
        formats: the user's formats, with which `known` was made, too.

    Raises:
        OSError: a file cannot be read, or changes meanwhile.
    """
    old = _known_files(listing, known)
    columns = _Columns(listing, opener, formats)
    if known is not None:
        columns.copy(known, old)
    changed = np.flatnonzero(old < 0)
    done, total = len(old) - len(changed), len(old)
    threads = num_threads or (_REMOTE_THREADS if is_remote(listing.root) else os.cpu_count())
    with ThreadPoolExecutor(threads, "patchnpack-headers") as pool:
        blocks = (changed[first : first + _BLOCK] for first in range(0, len(changed), _BLOCK))
        try:
            for count in pool.map(columns.fill, blocks):
                done += count
                if progress is not None:
                    progress(done, total)
        except BaseException:
            pool.shutdown(cancel_futures=True)  # report a bad file at once, not after all others
            raise
    return columns.index()


def _known_files(listing: Listing, known: Index | None) -> np.ndarray:
    """Return the number in `known` of each listed file that is unchanged, int64 (f,); -1 for the others."""
    table = None if known is None or len(known.shards) != 1 else known.table_of(0)
    if table is None:
        return np.full(len(listing.paths), -1, np.int64)
    found = pc.index_in(_binary(listing.paths), value_set=_binary(table.paths))
    old: np.ndarray = pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    here = np.flatnonzero(old >= 0)
    versions = table.versions.take(old[here]).column
    same = pc.equal(listing.versions.take(here).column, versions).to_numpy(zero_copy_only=False)
    same = same & (listing.nbytes[here] == table.nbytes[old[here]]) & (pc.binary_length(versions).to_numpy() > 0)
    old[here[~same]] = -1
    return old


def _binary(texts: Texts[str]) -> pa.Array:
    return texts.column.view(pa.large_binary())  # paths may hold bytes that are not UTF-8


class _Columns:
    """What headers say of each file, filled by threads: a file is written by one of them."""

    def __init__(self, listing: Listing, opener: ShardOpener, formats: UserFormats) -> None:
        f = len(listing.paths)
        self._listing, self._opener, self._formats = listing, opener, formats
        self.digest = np.zeros(f, np.uint64)
        self.width, self.height = np.zeros(f, np.int32), np.zeros(f, np.int32)
        self.orientation, self.format = np.ones(f, np.uint8), np.zeros(f, np.uint8)
        self.pages, self.bands = np.ones(f, np.int32), np.zeros(f, np.int32)
        self.dtype = np.zeros(f, np.uint8)
        self.reasons: dict[int, str] = {}
        self._several: dict[int, list[PageRun]] = {}  # of the files with several pages or frames, where all are used
        self._is_image = np.zeros(f, np.bool_)
        self._is_image[listing.number] = True
        self.texts: dict[int, str] = {}  # of the files with a class
        self._is_class = np.zeros(f, np.bool_)
        self._is_class[_class_files(listing.members, f)] = True
        self._table = FileTable(
            root=listing.root,
            paths=listing.paths,
            nbytes=listing.nbytes,
            versions=listing.versions,
            digest=self.digest,
            values=listing.values,
        )

    def copy(self, known: Index, old: np.ndarray) -> None:
        """Copy what is known of unchanged files; `old` is of `_known_files`."""
        table = known.table_of(0)
        if table is None:
            return
        here = np.flatnonzero(old >= 0)
        self.digest[here] = table.digest[old[here]]
        row_of = np.full(len(table), -1, np.int64)
        row_of[known.offset[::-1]] = np.arange(len(known))[::-1]  # the first page of a file of several
        rows = row_of[old[here]]
        here, rows = here[rows >= 0], rows[rows >= 0]
        for name in Header._fields:
            getattr(self, name)[here] = getattr(known, name)[rows]
        for i in np.flatnonzero(is_given(known.reasons)[rows]).tolist():
            self.reasons[int(here[i])] = str(known.reasons[int(rows[i])])
        if known.samples is not None:
            for at in np.flatnonzero(has_several(known.samples)[rows]).tolist():
                self._several[int(here[at])] = pages_at(known, known.samples, int(rows[at]))
        unread = np.ones(len(old), np.bool_)
        unread[here] = False
        old[self._is_image & unread] = -1  # a file that was only a member has no header
        texts = _class_texts(known, len(table))
        for i in np.flatnonzero(self._is_class & (old >= 0)).tolist():
            text = texts.get(int(old[i]))
            if text is None:
                old[i] = -1
            else:
                self.texts[i] = text

    def fill(self, numbers: np.ndarray) -> int:
        """Read these files."""
        for number in numbers.tolist():
            data = self._table.read(number, int(self._listing.nbytes[number]), self._opener)
            self.digest[number] = xxhash.xxh3_64_intdigest(data)
            if self._is_class[number]:
                self.texts[number] = data.decode("utf-8", "replace").strip()
            if self._is_image[number]:
                self._read_header(number, data)
        return len(numbers)

    def _read_header(self, number: int, data: bytes) -> None:
        own = find_format(self._formats, self._table.file(number)) if self._formats else None
        pages = pages_of(data, every=self._listing.samples is not None, own=own)
        if is_several(pages):
            self._several[number] = pages
        if pages[0].reason is not None:
            self.reasons[number] = pages[0].reason
        for name, value in zip(Header._fields, pages[0].header, strict=True):
            getattr(self, name)[number] = value

    def index(self) -> Index:
        """Return the index with these columns."""
        listing, table = self._listing, self._table
        n, number = len(listing.number), listing.number
        reasons = {i: self.reasons.get(int(number[i])) for i in _rows_of(self.reasons, number)}
        index = Index(
            shards=(listing.name,),
            shard_bytes=np.array([int(listing.nbytes.sum()) + listing.values.size], np.int64),
            versions=("",),
            starts=np.array([0, n], np.int64),
            keys=listing.keys,
            offset=number,
            nbytes=listing.nbytes[number],
            width=self.width[number],
            height=self.height[number],
            orientation=self.orientation[number],
            format=self.format[number],
            pages=self.pages[number],
            bands=self.bands[number],
            dtype=self.dtype[number],
            digest=self.digest[number],
            reasons=Texts.of(map(reasons.get, range(n))),
            cls=self._cls(),
            members=listing.members,
            without_image=np.array([listing.without_image], np.int64),
            unused_members=np.array([listing.unused], np.int64),
            examples=(listing.examples,),
            outside=np.array([self._outside()], np.uint64),
            image=listing.image,
            # A list in a table is no text that the index could hold.
            cls_member=next(name for name in ("cls", "label", "_") if listing.kinds.get(name) != "json"),
            kinds=listing.kinds,
            files=(table,),
            formats=tuple(format.name for format in self._formats),
        )
        if listing.samples is None:
            return index
        rows = np.flatnonzero(np.isin(number, list(self._several))).tolist()
        return with_pages(index, listing.samples, {row: self._several[int(number[row])] for row in rows})

    def _cls(self) -> Texts[str | None]:
        """Return the text of each row's .cls file."""
        if not self.texts:
            return Texts(pa.nulls(len(self._listing.number), pa.large_string()))
        return Texts.of(map(self.texts.get, self._listing.members["cls"][:, 0].tolist()))

    def _outside(self) -> int:
        """Return a digest of everything but the images: members in files of their own, values, and whose they are."""
        digest = xxhash.xxh3_64(self.digest[~self._is_image].tobytes())
        digest.update(memoryview(self._listing.values))
        for name, where in sorted(self._listing.members.items()):
            digest.update(name.encode("utf-8", "surrogateescape"))
            digest.update(np.ascontiguousarray(where).data)
        return digest.intdigest()


def _class_files(members: dict[str, np.ndarray], files: int) -> np.ndarray:
    """Return the numbers of the .cls files."""
    where = members["cls"][:, 0] if "cls" in members else np.zeros(0, np.int64)
    return where[(where >= 0) & (where < files)]


def _class_texts(known: Index, files: int) -> dict[int, str]:
    """Return the text of each .cls file of an index, by the number of the file."""
    if not len(_class_files(known.members, files)):
        return {}
    where = known.members["cls"][:, 0].tolist()
    return {at: text for at, text in zip(where, known.cls[:], strict=True) if text is not None and 0 <= at < files}


def _rows_of(reasons: dict[int, str], number: np.ndarray) -> list[int]:
    """Return the rows whose files have a reason."""
    return np.flatnonzero(np.isin(number, np.fromiter(reasons, np.int64, len(reasons)))).tolist()
