"""Index files of shards, folders of images and tables of paths: making one, or bringing one up to date."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from patchnpack.loaders.imaging.user_decode import ImageReader, UserFormats, user_formats
from patchnpack.loaders.index.files.file_scan import changed_files, scan_files
from patchnpack.loaders.index.files.file_sources import (
    TableOptions,
    file_source_name,
    is_file_source,
    is_folder,
    list_source,
)
from patchnpack.loaders.index.index_file import check_suffix, load_index, save_index
from patchnpack.loaders.index.remote_index import check_addresses, load_remote_index, save_remote_index
from patchnpack.loaders.index.resolve import common_folder, real_path
from patchnpack.loaders.index.samples.grouping import fits, with_samples
from patchnpack.loaders.index.scanner import changed_shards, has_formats, is_made_for, scan, stat_shards
from patchnpack.loaders.index.table import IMAGE, Index
from patchnpack.loaders.remote.addresses import is_remote, name_of, redact
from patchnpack.loaders.remote.errors import RemoteNotFound
from patchnpack.loaders.shards.names import names_of
from patchnpack.loaders.shards.opener import ShardOpener
from patchnpack.loaders.shards.patterns import INDEX_NAMES, ShardNames, expand
from patchnpack.loaders.shards.sample_rule import Sample, SampleRule, images_of, is_by_members, sample_rule


def update_index(
    source: ShardNames,
    path: str | os.PathLike[str] | None = None,
    *,
    image: str = IMAGE,
    column: str | None = None,
    root: str | os.PathLike[str] | None = None,
    opener: ShardOpener | None = None,
    num_threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    sample: Sample = None,
    formats: Mapping[str, ImageReader] | None = None,
) -> tuple[Path | str, Index, int]:
    """Make an index file, or bring one up to date. Only new and changed shards are read.

    Other shards of an existing index file stay in it if they still exist.

    Args:
        source: shards by brace range, glob or list; or a folder of images, or a table of paths.
        path: path or address of the index file, .parquet or .arrow. None is index.parquet beside local shards, or in
            a local folder of images. Loaders find an index of that name beside local and remote shards.
        column, root: of a table of paths, as `path` and `root` for `open_index`.
        image, opener, num_threads, progress, sample, formats: as for `scan`.

    Returns:
        The path or address of the file, its index, and the number of shards (or image files) read.

    Raises:
        FileNotFoundError: a shard, or the folder of the file, does not exist.
        ValueError: a shard cannot be read, the file is not an index, or the shards are remote and `path` is None.
    """
    opener, rule = opener or ShardOpener(), sample_rule(sample)
    own = user_formats(formats)
    image = images_of(image, rule, [format.name for format in own])
    given = TableOptions(column, root)
    names = names_of(source)
    if any(is_file_source(name, column) for name in names):
        return _update_files(names, path, image, given, opener, num_threads, progress, rule, own)
    given.check_unused("a shard")
    paths = [shard if is_remote(shard) else os.path.abspath(shard) for shard in expand(names, opener)]
    if path is None and any(map(is_remote, paths)):
        raise ValueError(
            "the shards are remote, so the index needs a path: patchnpack index SHARDS -o index.parquet, or, where "
            f"loaders find it: -o {redact(paths[0]).rpartition('/')[0]}/{INDEX_NAMES[0]}"
        )
    known: Index | None = None
    if path is not None and is_remote(os.fspath(path)):
        path = os.fspath(path)
        check_suffix(Path(name_of(path)))
        check_addresses(paths, path)
        with suppress(RemoteNotFound):
            known = load_remote_index(path, opener)
    else:
        path = Path(common_folder(paths), INDEX_NAMES[0]) if path is None else Path(os.path.abspath(path))
        if not path.parent.is_dir():
            raise FileNotFoundError(f"the folder of {str(path)!r} does not exist; create it first")
        known = load_index(path) if path.exists() else None
    if known is not None and any(known.files):
        raise ValueError(f"index {redact(os.fspath(path))!r} is of {known.shards[0]!r}; give another file: -o INDEX")
    named = set(map(real_path, paths))
    if known is not None and not (is_made_for(known, image, own) and fits(known, rule)):
        known = None
    others = () if known is None else known.shards
    paths = [*(p for p in others if (is_remote(p) or os.path.exists(p)) and real_path(p) not in named), *paths]
    read = len(changed_shards(stat_shards(paths, opener), known))
    index = scan(
        paths,
        image=image,
        num_threads=num_threads,
        known=known,
        opener=opener,
        progress=progress,
        sample=sample,
        formats=formats,
    )
    if index is not known:
        if isinstance(path, str):
            save_remote_index(index, path, opener)
        else:
            save_index(index, path)
    return path, index, read


def _update_files(
    names: Sequence[str | os.PathLike[str]],
    path: str | os.PathLike[str] | None,
    image: str,
    given: TableOptions,
    opener: ShardOpener,
    num_threads: int | None,
    progress: Callable[[int, int], None] | None,
    rule: SampleRule | None,
    formats: UserFormats,
) -> tuple[Path | str, Index, int]:
    """Make or update the index file of a folder of images or a table of paths; see `update_index`."""
    name = file_source_name(names[0])
    if len(names) > 1:
        raise ValueError(f"{redact(name)!r} is one of {len(names)} sources; make the index of each by itself")
    if path is None:
        if is_remote(name) or not is_folder(name):
            raise ValueError(f"give the index of {redact(name)!r} a path: patchnpack index ... -o index.parquet")
        path = os.path.join(name, INDEX_NAMES[0])
    is_there = is_remote(os.fspath(path))
    path = os.fspath(path) if is_there else Path(os.path.abspath(path))
    check_suffix(Path(name_of(os.fspath(path))))
    root = None if given.root is None else os.fspath(given.root)
    listing = list_source(name, image=image, path=given.path, root=root, opener=opener, by_members=is_by_members(rule))
    known: Index | None = None
    if isinstance(path, Path):
        known = load_index(path) if path.exists() else None
    else:
        with suppress(RemoteNotFound):
            known = load_remote_index(path, opener)
    if known is not None and known.shards != (name,):
        raise ValueError(f"index {redact(os.fspath(path))!r} is of {redact(known.shards[0])!r}; give another file: -o")
    if known is not None and not (fits(known, rule) and has_formats(known, formats)):
        known = None
    read = len(changed_files(listing, known))
    index = with_samples(scan_files(listing, known, opener, num_threads, progress, formats), rule)
    if isinstance(path, Path):
        save_index(index, path)
    else:
        save_remote_index(index, path, opener)
    return path, index, read
