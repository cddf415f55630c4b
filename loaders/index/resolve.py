"""Choosing a loader's index: the given one, one beside the shards, one in the cache, or a new scan."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby

from patchnpack.loaders.imaging.user_decode import ImageReader, UserFormats, in_order, user_formats
from patchnpack.loaders.index.files.file_sources import (
    TableOptions,
    file_source_name,
    is_file_source,
    is_folder,
    open_file_source,
)
from patchnpack.loaders.index.index_file import is_index, load_index, save_index
from patchnpack.loaders.index.remote_index import (
    find_beside,
    load_remote_index,
    names_index,
)
from patchnpack.loaders.index.samples.grouping import check_rule, fits, warn_of_unread_pages, with_samples
from patchnpack.loaders.index.scanner import changed_shards, extensions_of, is_made_for, scan, stat_shards
from patchnpack.loaders.index.table import IMAGE, Index
from patchnpack.loaders.index.without_image import warn_without_image
from patchnpack.loaders.remote.addresses import is_remote, name_of, redact
from patchnpack.loaders.shards.names import names_of
from patchnpack.loaders.shards.opener import ShardOpener, is_parquet
from patchnpack.loaders.shards.outside import Outside
from patchnpack.loaders.shards.patterns import INDEX_NAMES, ShardNames, expand
from patchnpack.loaders.shards.sample_rule import MEMBERS, Sample, SampleRule, images_of, is_by_members, sample_rule
from patchnpack.packer.files import absent

_CHECK_THREADS = 16  # shards compared at a time

_log = logging.getLogger("patchnpack")


def open_index(
    source: ShardNames | Index,
    *,
    index: str | os.PathLike[str] | Index | None = None,
    image: str = IMAGE,
    sample: Sample = None,
    path: str | None = None,
    root: str | os.PathLike[str] | None = None,
    opener: ShardOpener | None = None,
    may_scan: bool = True,
    num_threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    formats: Mapping[str, ImageReader] | None = None,
) -> Index:
    """The index of the images that `source` names, in that order.

    Without `index`, the first of these: an index beside the shards (index.parquet or index.arrow) that holds all of
    them, the cached index of an earlier call with changed shards scanned again, or a new scan. On a remote store, a
    process looks for an index beside the shards only once. Of a folder of images or a table of paths, files with
    another size or time than in the cached index are read again.

    Args:
        source: shards by brace range, glob or list; folders of images; tables of paths (CSV, TSV, JSONL or, with
            `path`, parquet); an index file that `save_index` wrote; or an `Index`.
        index: an index file, its address, or an `Index`, that holds these shards.
        image: extensions of images, separated by ";".
        sample: which images belong together, as for `PackedImageLoader`.
        path: the column of paths in a table; None is the only one with a usual name, such as "path" or "file_name".
        root: the folder from which the paths in a table count; None is the table's own.
        opener: opens the shards, and holds the cache.
        may_scan: whether remote shards may be downloaded to scan them.
        num_threads, progress: as for `scan`.
        formats: readers of formats of your own, as for `PackedImageLoader`.

    Raises:
        FileNotFoundError: a shard or the index does not exist.
        ValueError: the index lacks one of the shards, or was made for other extensions or another rule for samples;
            or the rows of a sample are not neighbours in one shard.
        OSError: a shard differs from its entry in the index.
    """
    rule = sample_rule(sample)
    own = user_formats(formats)
    request = _Request(
        image=images_of(image, rule, [format.name for format in own]),
        formats=own,
        rule=rule,
        table=TableOptions(path, root),
        opener=opener or ShardOpener(),
        may_scan=may_scan,
        num_threads=num_threads,
        progress=progress,
    )
    found = _opened(source, index, request)
    warn_without_image(found, _title(found))
    warn_of_unread_pages(found)
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class _Request:
    """The arguments of `open_index` except the source and the index."""

    image: str
    formats: UserFormats
    rule: SampleRule | None
    table: TableOptions
    opener: ShardOpener
    may_scan: bool
    num_threads: int | None
    progress: Callable[[int, int], None] | None

    @property
    def scanned_by(self) -> Sample:
        """The rule that decides which rows there are; other rules join rows of an index."""
        return MEMBERS if is_by_members(self.rule) else None


def _opened(source: ShardNames | Index, index: str | os.PathLike[str] | Index | None, request: _Request) -> Index:
    table, opener, rule = request.table, request.opener, request.rule
    if (own := _own_index(source, request)) is not None:
        table.check_unused("an index")
        check_rule(own[0], rule, own[1], is_source=True)
        _check_formats(own[0], own[1], request)
        return own[0] if rule is None else with_samples(own[0], rule)
    assert not isinstance(source, Index)
    names = names_of(source)
    has_files = any(is_file_source(name, table.path) for name in names)
    if not has_files:
        table.check_unused("a shard")
    elif index is None:
        return with_samples(_with_files(names, request), rule)
    paths = [file_source_name(names[0])] if has_files and len(names) == 1 else expand(names, opener)
    if index is not None:
        name = "the index" if isinstance(index, Index) else f"index {redact(os.fspath(index))!r}"
        found = index if isinstance(index, Index) else _load(index, opener)
        check_rule(found, rule, name, is_source=False)
        _check_formats(found, name, request)
        if not is_made_for(found, request.image, request.formats):
            raise ValueError(
                f"{name} was made with image={found.image!r}, but this loader has image={request.image!r}; give the "
                f"same extensions, or make the index again: patchnpack index SHARDS --image '{request.image}' -o INDEX"
            )
        return with_samples(checked(_select(found, paths, name), name, opener), rule)
    return with_samples(_of_shards(paths, request), rule)


def _check_formats(index: Index, name: str, request: _Request) -> None:
    """Raise ValueError unless an index was made with the user's formats that are given."""
    in_order(request.formats, index.formats)
    for format in request.formats:
        if format.name not in index.formats:
            raise ValueError(
                f"{name} was made without a reader of {format.name!r}, which formats= gives; make it again with this "
                "reader: update_index(..., formats=) or scan(..., formats=)"
            )


def _own_index(source: ShardNames | Index, request: _Request) -> tuple[Index, str] | None:
    """The index that the source itself is, checked, and its name; None where the source is something else."""
    opener = request.opener
    if isinstance(source, Index):
        return checked(source, "the index", opener, may_lack_shards=True), "the index"
    if request.table.path is None and isinstance(source, str) and is_remote(source) and names_index(source):
        name = f"index {redact(source)!r}"
        return checked(load_remote_index(source, opener), name, opener), name
    if isinstance(source, str | os.PathLike) and os.path.isfile(source) and is_index(os.fspath(source)):
        name = f"index {os.fspath(source)!r}"
        return checked(load_index(source), name, opener), name
    return None


def _of_shards(paths: list[str], request: _Request) -> Index:
    """The index of shards without one that was given: beside them, in the cache, or new."""
    beside = _beside(paths, request)
    return _cached(paths, request) if beside is None else beside


def _with_files(names: Sequence[str | os.PathLike[str]], request: _Request) -> Index:
    """The index of folders, tables of paths and shards, in their order."""
    given, parts = request.table, list[Index]()
    root = None if given.root is None else os.fspath(given.root)
    if all(map(is_folder, names)):
        given.check_unused("a folder of images")
    for is_file, group in groupby(names, lambda name: is_file_source(name, given.path)):
        if not is_file:
            part = _of_shards(expand(list(group), request.opener), request)
            parts.append(part if is_by_members(request.rule) else with_samples(part, None))
            continue
        for name in group:
            is_table = not is_folder(name)
            parts.append(
                open_file_source(
                    name,
                    image=request.image,
                    formats=request.formats,
                    by_members=is_by_members(request.rule),
                    path=given.path if is_table else None,
                    root=root if is_table else None,
                    opener=request.opener,
                    may_scan=request.may_scan,
                    num_threads=request.num_threads,
                    progress=request.progress,
                )
            )
    seen: set[str] = set()
    for part in parts:
        for shard in part.shards:
            if (real := real_path(shard)) in seen:
                raise ValueError(f"{redact(shard)!r} is named more than once; name each source once")
            seen.add(real)
    return parts[0] if len(parts) == 1 else Index.concatenate(parts)


def checked(index: Index, name: str, opener: ShardOpener, *, may_lack_shards: bool = False) -> Index:
    """Return the index after checking that its local shards exist and are the files that were indexed.

    A shard with the size and the mtime in the index is. A copy has another mtime: of such a tar, the bytes outside the
    images are compared with their digest, and the cache remembers the result. The bytes of each image are compared with
    their digest when they are read. A parquet shard with another mtime is compared when its rows are first read, a
    remote shard when it is fetched.

    Args:
        index: the index.
        name: its name, for messages.
        opener: holds the cache.
        may_lack_shards: accept shards that do not exist, since planning does not need them.

    Raises:
        FileNotFoundError: a shard does not exist.
        OSError: a shard has another size, or was modified.
    """
    copies: dict[int, tuple[int, str]] = {}  # size and version of each tar with another mtime, by number
    for i, (shard, nbytes) in enumerate(zip(index.shards, index.shard_bytes.tolist(), strict=True)):
        if (table := index.table_of(i)) is not None:  # each file is compared when it is read
            if not (is_remote(table.root) or may_lack_shards or os.path.isdir(table.root)):
                raise FileNotFoundError(
                    f"folder {table.root!r} of {name} does not exist; name the folder that does, or make the index "
                    f"again: patchnpack index FOLDER -o {_file_of(name)}"
                )
            continue
        if is_remote(shard):
            continue
        try:
            size, version = opener.stat(shard)
        except FileNotFoundError:
            if may_lack_shards:
                continue
            raise FileNotFoundError(
                f"shard {shard!r} of {name} {absent(shard)}; name the shards that do, or make the index again: "
                f"patchnpack index SHARDS -o {_file_of(name)}"
            ) from None
        if size != nbytes:
            raise OSError(
                f"shard {shard!r} has {size} bytes but had {nbytes} when {name} was made; bring the index up to date: "
                f"patchnpack index SHARDS -o {_file_of(name)} (only changed shards are read)"
            )
        if version != index.versions[i] and not is_parquet(shard):
            copies[i] = size, version
    if copies:
        _check_copies(index, copies, name, opener)
    return index


def _check_copies(index: Index, copies: dict[int, tuple[int, str]], name: str, opener: ShardOpener) -> None:
    """Raise OSError if a tar is no copy of the shard that was indexed. The cache remembers copies."""
    text = "\n".join(
        f"{os.path.realpath(index.shards[i])} {size} {version} {index.outside[i]}"
        for i, (size, version) in copies.items()
    )
    done = opener.folder / "copies" / hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    if done.exists():
        return
    outside = Outside(index.starts, index.offset, index.nbytes, index.outside)

    def is_copy(i: int) -> bool:
        fd = opener.open(index.shards[i], *copies[i])
        try:
            return outside.is_unchanged(i, fd)
        finally:
            os.close(fd)

    with ThreadPoolExecutor(_CHECK_THREADS) as pool:
        modified = [i for i, same in zip(copies, pool.map(is_copy, copies), strict=True) if not same]
    if modified:
        count = f" ({len(modified)} of {len(index.shards)} shards were)" if len(index.shards) > 1 else ""
        raise OSError(
            f"shard {index.shards[modified[0]]!r} was modified after {name} was made{count}: bytes outside its images, "
            f"such as labels, differ; bring the index up to date: patchnpack index SHARDS -o {_file_of(name)} (only "
            "changed shards are read)"
        )
    with suppress(OSError):
        done.parent.mkdir(parents=True, exist_ok=True)
        done.touch()


def _file_of(name: str) -> str:
    """The file name in the name of an index for error messages."""
    return name.split("'")[1] if "'" in name else "INDEX"


def _select(index: Index, paths: list[str], name: str) -> Index:
    numbers = {real_path(shard): i for i, shard in enumerate(index.shards)}
    which = [numbers.get(real_path(path), -1) for path in paths]
    if -1 in which:
        missing = [path for path, i in zip(paths, which, strict=True) if i < 0]
        raise ValueError(
            f"{name} lacks {len(missing)} of the {len(paths)} shards, such as {redact(missing[0])!r}; add "
            f"them: patchnpack index SHARDS -o {_file_of(name)}"
        )
    return index if which == list(range(len(index.shards))) else index.select(which)


def _title(index: Index) -> str:
    """The name of a source for a warning: its first and last shards."""
    first, last = redact(index.shards[0]), name_of(index.shards[-1])
    return first if len(index.shards) == 1 else f"{first} to {last} ({len(index.shards):,} shards)"


def real_path(shard: str) -> str:
    """The path of a shard without links; an address as it is."""
    return shard if is_remote(shard) else os.path.realpath(shard)


def _beside(paths: list[str], request: _Request) -> Index | None:
    """The index in the common folder of the shards, if one holds them all."""
    if all(map(is_remote, paths)):
        candidates = find_beside(paths, request.opener)
    elif any(map(is_remote, paths)):
        return None
    else:
        files = [os.path.join(common_folder(paths), name) for name in INDEX_NAMES]
        candidates = [(path, load_index(path)) for path in files if os.path.exists(path) and is_index(path)]
    for path, found in candidates:
        indexed = set(map(real_path, found.shards))
        is_made = is_made_for(found, request.image, request.formats) and fits(found, request.rule)
        if is_made and indexed.issuperset(map(real_path, paths)):
            name = f"index {redact(path)!r}"
            _log.info("using %s", name)
            return checked(_select(found, paths, name), name, request.opener)
        _log.info(
            "ignoring index %s: it lacks shards of this source, or was made with another image= or sample=",
            redact(path),
        )
    return None


def _load(path: str | os.PathLike[str], opener: ShardOpener) -> Index:
    return load_remote_index(path, opener) if isinstance(path, str) and is_remote(path) else load_index(path)


def common_folder(paths: list[str]) -> str:
    """The folder that all paths lie below."""
    return os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])


def _cached(paths: list[str], request: _Request) -> Index:
    """The cached index of an earlier call, with changed shards scanned again, or a new one; saved if it changed."""
    opener, by = request.opener, request.scanned_by
    folder = opener.folder / "indexes"
    paths = [path if is_remote(path) else os.path.abspath(path) for path in paths]  # as an index names them
    versions = [f"format={format.version}" for format in request.formats]
    text = "\n".join([*paths, *extensions_of(request.image), *([f"sample={by}"] if by else []), *versions])
    path = folder / f"{hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}.parquet"
    known = None
    if path.exists():
        try:
            known = load_index(path)
        except ValueError as error:
            _log.warning("%s; scanning the shards again", error)
    if not request.may_scan and any(map(is_remote, changed_shards(stat_shards(paths, opener), known))):
        raise ValueError(
            f"the {len(paths)} shards, from {redact(paths[0])!r} on, are remote and have no index, and each rank would "
            "download all of them to make one; make it first: patchnpack index SHARDS -o index.parquet, and give "
            "index='index.parquet', or upload it beside the shards with -o ADDRESS/index.parquet"
        )
    index = scan(
        paths,
        image=request.image,
        num_threads=request.num_threads,
        known=known,
        opener=opener,
        progress=request.progress,
        sample=by,
        formats={format.name: format.reader for format in request.formats},
    )
    if index is known:
        _log.info("using the cached index %r", str(path))
    else:
        _log.info("scanned the headers of %d shards; their index is cached as %r", len(paths), str(path))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save_index(index, path)
        except OSError as error:
            _log.warning("the index cannot be cached: %s; choose another cache_dir", error)
    return index
