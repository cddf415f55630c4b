"""Which index a loader uses: the one that is given, one beside the shards, one in the cache, or a fresh scan."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from patchnpack.loaders.index.index_file import check_suffix, is_index, load_index, save_index
from patchnpack.loaders.index.remote_index import (
    check_addresses,
    find_beside,
    load_remote_index,
    names_index,
    save_remote_index,
)
from patchnpack.loaders.index.scanner import extensions_of, scan, stat_shards, unknown
from patchnpack.loaders.index.table import IMAGE, Index
from patchnpack.loaders.remote.addresses import redact
from patchnpack.loaders.remote.download import RemoteNotFound, is_remote, name_of
from patchnpack.loaders.shards.opener import ShardOpener
from patchnpack.loaders.shards.reader import INDEX_NAMES, ShardNames, expand

_log = logging.getLogger("patchnpack")


def open_index(
    source: ShardNames | Index,
    *,
    index: str | os.PathLike[str] | Index | None = None,
    image: str = IMAGE,
    store: ShardOpener | None = None,
    may_scan: bool = True,
    num_threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Index:
    """The index of the shards that `source` names, in that order.

    Without `index`, one that lies beside the shards (index.parquet, index.arrow) and holds them all is used; on a
    remote store a process asks once for one that is not there. Else the one that an earlier call left in the cache is
    used, where shards that have changed are read again; else they are scanned.

    Args:
        source: shards by brace range, glob or list, an index file that `save_index` wrote, or an `Index`.
        index: an index file, its address, or an `Index`, that holds these shards.
        image: the extensions that are images.
        store: how shards are opened, and where the cache is.
        may_scan: whether remote shards may be fetched in order to scan them.
        num_threads, progress: as for `scan`.

    Raises:
        FileNotFoundError: a shard or index that does not exist.
        ValueError: an index that lacks one of the shards, or was made for other extensions.
        OSError: a shard that is not what the index says.
    """
    store = store or ShardOpener()
    if isinstance(source, Index):
        return source
    if isinstance(source, str) and is_remote(source) and names_index(source):
        return checked(load_remote_index(source, store), f"index {redact(source)!r}", store)
    if isinstance(source, str | os.PathLike) and os.path.isfile(source) and is_index(os.fspath(source)):
        return checked(load_index(source), f"index {os.fspath(source)!r}", store)
    paths = expand(source, store)
    if index is not None:
        name = "the index" if isinstance(index, Index) else f"index {redact(os.fspath(index))!r}"
        found = index if isinstance(index, Index) else _load(index, store)
        if extensions_of(found.image) != extensions_of(image):
            raise ValueError(
                f"{name} was made with image={found.image!r}, this loader has {image!r}; give that, or make the "
                f"index anew: patchnpack index SHARDS --image '{image}' -o INDEX"
            )
        return checked(_of_these(found, paths, name), name, store)
    if (beside := _beside(paths, image, store)) is not None:
        return beside
    return _cached(paths, image, store, may_scan, num_threads, progress)


def update_index(
    source: ShardNames,
    path: str | os.PathLike[str] | None = None,
    *,
    image: str = IMAGE,
    store: ShardOpener | None = None,
    num_threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Path | str, Index, int]:
    """Makes an index file of shards, or brings one up to date: only new and changed shards are read.

    Shards that an existing file holds besides stay in it, unless they are gone.

    Args:
        source: shards by brace range, glob or list.
        path: the file, .parquet or .arrow, or its address; None is index.parquet beside local shards, where loaders
            look for it. They do so beside remote ones, too.
        image, store, num_threads, progress: as for `scan`.

    Returns:
        The file, what it holds now, and how many shards were read.

    Raises:
        FileNotFoundError: a shard, or the file's folder, that does not exist.
        ValueError: a shard that cannot be read, a file that is no index, or remote shards and no path.
    """
    store = store or ShardOpener()
    paths = [shard if is_remote(shard) else os.path.abspath(shard) for shard in expand(source, store)]
    if path is None and any(map(is_remote, paths)):
        raise ValueError(
            "the shards are remote; say where the index goes: patchnpack index SHARDS -o index.parquet, or "
            f"-o {redact(paths[0]).rpartition('/')[0]}/{INDEX_NAMES[0]}, beside them, where loaders look"
        )
    known: Index | None = None
    if path is not None and is_remote(os.fspath(path)):
        path = os.fspath(path)
        check_suffix(Path(name_of(path)))
        check_addresses(paths, path)
        with suppress(RemoteNotFound):
            known = load_remote_index(path, store)
    else:
        path = Path(_common_folder(paths), INDEX_NAMES[0]) if path is None else Path(os.path.abspath(path))
        if not path.parent.is_dir():
            raise FileNotFoundError(f"the folder of {str(path)!r} does not exist; make it first")
        known = load_index(path) if path.exists() else None
    named = set(map(_real, paths))
    others = [] if known is None or extensions_of(known.image) != extensions_of(image) else known.shards
    paths = [*(p for p in others if (is_remote(p) or os.path.exists(p)) and _real(p) not in named), *paths]
    read = len(unknown(stat_shards(paths, store), known))
    index = scan(paths, image=image, num_threads=num_threads, known=known, store=store, progress=progress)
    if index is not known:
        if isinstance(path, str):
            save_remote_index(index, path, store)
        else:
            save_index(index, path)
    return path, index, read


def checked(index: Index, name: str, store: ShardOpener) -> Index:
    """The index, if its shards are there and of the sizes that it says.

    A copy of a shard has a time of its own, so a time is no reason to refuse one: each image's bytes are compared with
    their digest when they are read. A remote shard is looked at when it is fetched.
    """
    for shard, nbytes in zip(index.shards, index.shard_bytes.tolist(), strict=True):
        if is_remote(shard):
            continue
        try:
            size = store.stat(shard)[0]
        except FileNotFoundError:
            raise FileNotFoundError(
                f"shard {shard!r}, which {name} holds, does not exist; name the shards that do, or make the index anew"
            ) from None
        if size != nbytes:
            raise OSError(
                f"shard {shard!r} has {size} bytes but had {nbytes} when {name} was made; bring the index up to date: "
                f"patchnpack index SHARDS -o {_file_of(name)} (only what has changed is read)"
            )
    return index


def _file_of(name: str) -> str:
    """The file in what messages call an index."""
    return name.split("'")[1] if "'" in name else "INDEX"


def _of_these(index: Index, paths: list[str], name: str) -> Index:
    numbers = {_real(shard): i for i, shard in enumerate(index.shards)}
    which = [numbers.get(_real(path), -1) for path in paths]
    if -1 in which:
        missing = [path for path, i in zip(paths, which, strict=True) if i < 0]
        raise ValueError(
            f"{name} does not hold {len(missing)} of the {len(paths)} shards, {redact(missing[0])!r} for one; add "
            f"them: patchnpack index SHARDS -o {_file_of(name)}"
        )
    return index if which == list(range(len(index.shards))) else index.select(which)


def _real(shard: str) -> str:
    return shard if is_remote(shard) else os.path.realpath(shard)


def _beside(paths: list[str], image: str, store: ShardOpener) -> Index | None:
    """The index in the folder of all shards, if there is one that holds them."""
    if all(map(is_remote, paths)):
        candidates = find_beside(paths, store)
    elif any(map(is_remote, paths)):
        return None
    else:
        files = [os.path.join(_common_folder(paths), name) for name in INDEX_NAMES]
        candidates = [(path, load_index(path)) for path in files if os.path.exists(path) and is_index(path)]
    for path, found in candidates:
        held = set(map(_real, found.shards))
        if extensions_of(found.image) == extensions_of(image) and held.issuperset(map(_real, paths)):
            name = f"index {redact(path)!r}"
            _log.info("%s is used", name)
            return checked(_of_these(found, paths, name), name, store)
        _log.info(
            "index %s is not used: it lacks shards of this source, or was made for other extensions", redact(path)
        )
    return None


def _load(path: str | os.PathLike[str], store: ShardOpener) -> Index:
    return load_remote_index(path, store) if isinstance(path, str) and is_remote(path) else load_index(path)


def _common_folder(paths: list[str]) -> str:
    return os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])


def _cached(
    paths: list[str],
    image: str,
    store: ShardOpener,
    may_scan: bool,
    num_threads: int | None,
    progress: Callable[[int, int], None] | None,
) -> Index:
    """The index that an earlier call cached, with what has changed since; cached again if anything has."""
    folder = store.folder / "indexes"
    paths = [path if is_remote(path) else os.path.abspath(path) for path in paths]  # as an index names them
    text = "\n".join([*paths, *extensions_of(image)])
    path = folder / f"{hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}.parquet"
    known = None
    if path.exists():
        try:
            known = load_index(path)
        except ValueError as error:
            _log.warning("%s; it is made anew", error)
    if not may_scan and any(map(is_remote, unknown(stat_shards(paths, store), known))):
        raise ValueError(
            f"the {len(paths)} shards, from {redact(paths[0])!r} on, are remote and have no index, and each of several "
            "ranks would fetch them all to make one; make it first: patchnpack index SHARDS -o index.parquet, and give "
            "it: index='index.parquet'; or put it beside them, -o ADDRESS/index.parquet"
        )
    index = scan(paths, image=image, num_threads=num_threads, known=known, store=store, progress=progress)
    if index is known:
        _log.info("the cached index %r is used", str(path))
    else:
        _log.info("the headers of %d shards were read; their index is cached as %r", len(paths), str(path))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save_index(index, path)
        except OSError as error:
            _log.warning("the index is not kept for the next start: %s; choose another cache_dir", error)
    return index
