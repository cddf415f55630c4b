"""Indexes of folders of images and of tables of paths: which sources these are, and their cached indexes."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from patchnpack.loaders.files.folder import list_folder
from patchnpack.loaders.files.listing import Listing
from patchnpack.loaders.files.path_table import SUFFIXES, list_table, suffix_of
from patchnpack.loaders.imaging.user_decode import UserFormats
from patchnpack.loaders.index.files.file_scan import changed_files, scan_files
from patchnpack.loaders.index.index_file import is_index, load_index, save_index
from patchnpack.loaders.index.samples.grouping import has_members
from patchnpack.loaders.index.scanner import extensions_of, has_formats
from patchnpack.loaders.index.table import IMAGE, Index
from patchnpack.loaders.remote.addresses import is_remote, redact
from patchnpack.loaders.shards.opener import ShardOpener
from patchnpack.loaders.shards.patterns import INDEX_NAMES, is_packed_folder
from patchnpack.loaders.shards.sample_rule import MEMBERS
from patchnpack.loaders.shards.tar import IMAGE_OR_VIDEO

_LOG_EVERY_S = 10.0
_LAYOUT = "1"  # of the cached files; another one makes older files unused

_log = logging.getLogger("patchnpack")

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class TableOptions:
    """The options of a table of paths; see `open_index`."""

    path: str | None
    root: str | os.PathLike[str] | None

    def check_unused(self, source: str) -> None:
        """Raise ValueError if one is given to a source that has no use for it."""
        for name in ("path", "root"):
            if (value := getattr(self, name)) is not None:
                raise ValueError(
                    f"{name} is {value!r}, which is for tables of paths (CSV, TSV, JSONL, parquet); {source} has no "
                    f"use for it: leave {name} out"
                )


def is_folder(source: str | os.PathLike[str]) -> bool:
    """Whether a source is a folder: a local one that is not packed, or an address that names no file."""
    text = os.fspath(source)
    if is_remote(text):
        return is_packed_folder(text)  # by its looks: whether it is packed, has been found out before
    text = os.path.expanduser(text)
    return os.path.isdir(text) and not is_packed_folder(text)


def is_file_source(source: str | os.PathLike[str], path: str | None) -> bool:
    """Whether a source is a folder of images or a table of paths. With `path`, a parquet file is such a table."""
    suffix = suffix_of(os.fspath(source))
    return suffix in SUFFIXES or (path is not None and suffix == ".parquet") or is_folder(source)


def has_table(names: Iterable[str | os.PathLike[str]], path: str | None) -> bool:
    """Whether one of several sources is a table of paths."""
    return any(is_file_source(name, path) and not is_folder(name) for name in names)


def file_source_name(source: str | os.PathLike[str]) -> str:
    """The name of the source's shard in an index: an absolute path, or an address."""
    text = os.fspath(source)
    return text.rstrip("/") if is_remote(text) else os.path.abspath(os.path.expanduser(text))


def list_source(
    source: str | os.PathLike[str],
    *,
    image: str,
    path: str | None,
    root: str | None,
    opener: ShardOpener,
    by_members: bool = False,
) -> Listing:
    """List the files of a folder of images or of a table of paths; `by_members` also reads lists of paths.

    Raises:
        FileNotFoundError, ValueError: as `list_folder` and `list_table`.
    """
    name = file_source_name(source)
    if is_folder(source):
        if root is not None:
            raise ValueError(f"root is {root!r}, but {redact(name)!r} is a folder of images; leave root out")
        listing = list_folder(name, os.fspath(source), image, extensions_of(image), opener)
        return replace(listing, samples=np.arange(len(listing.number) + 1)) if by_members else listing
    if not image.endswith((IMAGE, IMAGE_OR_VIDEO)):  # a user's formats stand before
        raise ValueError(f"image is {image!r}, but {redact(name)!r} is a table of paths; name their column with path=")
    if root is not None:
        root = file_source_name(root)
        if not is_remote(root) and not os.path.isdir(root):
            raise FileNotFoundError(f"root {root!r} is no folder; name the folder from which the paths count")
    return replace(list_table(name, path, root, opener, lists=by_members), image=image)


def open_file_source(
    source: str | os.PathLike[str],
    *,
    image: str,
    formats: UserFormats,
    by_members: bool,
    path: str | None,
    root: str | None,
    opener: ShardOpener,
    may_scan: bool,
    num_threads: int | None,
    progress: Progress | None,
) -> Index:
    """The index of a folder or a table of paths; new and changed files are read, and the cache is brought up to date.

    Raises:
        FileNotFoundError, OSError: a file cannot be read.
        ValueError: as `list_source`; or files are remote and would have to be read on every rank.
    """
    listing = list_source(source, image=image, path=path, root=root, opener=opener, by_members=by_members)
    file = _cache_file(listing, path, opener, formats)
    known = _beside(listing, formats) or _load(file)
    changed = len(changed_files(listing, known))
    if not may_scan and changed and (is_remote(listing.root) or any(map(is_remote, listing.paths[:1]))):
        raise ValueError(
            f"{changed} files of {redact(listing.name)!r} are remote and not in an index, and each rank would read all "
            "of them; make the index first: patchnpack index SOURCE -o index.parquet, and give index='index.parquet'"
        )
    began = time.monotonic()
    index = scan_files(listing, known, opener, num_threads, progress or _Logger(listing.name), formats)
    if changed:
        _log.info(
            "read the headers of %d files in %.1f s; the index of %r is cached as %r",
            *(changed, time.monotonic() - began, redact(listing.name), str(file)),
        )
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            save_index(index, file)
        except OSError as error:
            _log.warning("the index cannot be cached: %s; choose another cache_dir", error)
    return index


def _cache_file(listing: Listing, path: str | None, opener: ShardOpener, formats: UserFormats) -> Path:
    text = "\n".join(["files", _LAYOUT, listing.name, listing.root, path or "", listing.image])
    text += "" if listing.samples is None else f"\nsample={MEMBERS}"
    text += "".join(f"\nformat={format.version}" for format in formats)
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return opener.folder / "indexes" / f"{digest}.arrow"  # mapped into memory, which processes share


def _beside(listing: Listing, formats: UserFormats) -> Index | None:
    """The index in a local folder of images that `patchnpack index FOLDER` wrote."""
    if is_remote(listing.name) or not os.path.isdir(listing.name):
        return None
    for name in INDEX_NAMES:
        file = os.path.join(listing.name, name)
        if os.path.exists(file) and is_index(file):
            with suppress(ValueError):
                found = load_index(file)
                is_as_wide = has_members(found) == (listing.samples is not None)
                if found.shards == (listing.name,) and is_as_wide and has_formats(found, formats):
                    return found
    return None


def _load(file: Path) -> Index | None:
    if not file.exists():
        return None
    try:
        return load_index(file)
    except ValueError as error:
        _log.warning("%s; reading the files again", error)
        return None


class _Logger:
    """Logs the progress of reading headers every few seconds."""

    def __init__(self, name: str) -> None:
        self._name, self._began = redact(name), time.monotonic()
        self._next = self._began + _LOG_EVERY_S

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _LOG_EVERY_S
            _log.info("reading the headers of %r: %d of %d files", self._name, done, total)
