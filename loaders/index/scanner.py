"""Scanning: from shards to an index. Headers are read and bytes are hashed; no pixel is decoded."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import numpy as np
import xxhash

from patchnpack.loaders.imaging.header import Header, header_or_reason
from patchnpack.loaders.index.table import IMAGE, Index, Texts
from patchnpack.loaders.index.without_image import WithoutImage, listed, printable
from patchnpack.loaders.remote.addresses import redact
from patchnpack.loaders.shards import parquet
from patchnpack.loaders.shards.member_names import find_member
from patchnpack.loaders.shards.opener import ShardOpener, is_parquet
from patchnpack.loaders.shards.outside import digest_outside
from patchnpack.loaders.shards.patterns import ShardNames, expand
from patchnpack.loaders.shards.tar import TarSample, read_tar

# n rows, s shards

_STAT_THREADS = 32  # concurrent requests for the versions of shards


def scan(
    source: ShardNames,
    *,
    image: str = IMAGE,
    num_threads: int | None = None,
    known: Index | None = None,
    opener: ShardOpener | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Index:
    """Make an index of all images in the shards by reading their headers.

    Args:
        source: shards by brace range, glob or list.
        image: extensions of images, separated by ";". In a sample with several, the extension listed first is used.
        num_threads: number of shards read in parallel; None is the number of CPUs.
        known: an earlier index. Its shards with unchanged path, size and version are not read again.
        opener: opens the shards; needed for remote shards with storage options.
        progress: called with (shards done, total shards).

    Raises:
        FileNotFoundError: a shard does not exist.
        ValueError: a shard cannot be read, or none of its samples has an image.
    """
    images = names_of(image)
    opener = opener or ShardOpener()
    paths = expand(source, opener)
    meta = stat_shards(paths, opener)
    if known is not None and not is_made_for(known, image):
        known = None
    numbers = {} if known is None else {path: i for i, path in enumerate(known.shards)}
    changed = changed_shards(meta, known)
    done = len(paths) - len(changed)
    scanned: dict[str, Index] = {}
    with ThreadPoolExecutor(num_threads or os.cpu_count()) as pool:
        try:
            scans = pool.map(lambda path: _scan_shard(path, meta[path], images, opener), changed)
            for path, index in zip(changed, scans, strict=True):
                scanned[path] = index
                if progress:
                    progress(done + len(scanned), len(paths))
        except BaseException:
            pool.shutdown(cancel_futures=True)  # report a bad shard at once, not after all others
            raise
    if known is not None and done == len(paths) == len(known.shards) and tuple(paths) == known.shards:
        index = known
    else:
        parts: list[Index] = []
        kept: list[int] = []  # numbers of the known shards that come next in order
        for path in paths:
            if path in scanned:
                parts += [*([known.select(kept)] if known is not None and kept else []), scanned[path]]
                kept = []
            else:
                kept.append(numbers[path])
        index = Index.concatenate([*parts, *([known.select(kept)] if known is not None and kept else [])])
    if not len(index):
        first = redact(paths[0])
        which = f"shard {first!r} holds" if len(paths) == 1 else f"the {len(paths)} shards, from {first!r} on, hold"
        raise ValueError(f"{which} no sample; give shards that hold images")
    return index


def names_of(image: str) -> list[str]:
    """The names in `image`, in order of preference: extensions or columns, spelled as they are given."""
    names = [name.strip().lstrip(".") for name in image.split(";")]
    if not any(names):
        raise ValueError(f"image is {image!r}; name the extensions of images, such as {IMAGE!r}")
    return list(filter(None, names))


def extensions_of(image: str) -> list[str]:
    """The extensions in `image`, in order of preference.

    Raises:
        ValueError: there are none.
    """
    return [name.lower() for name in names_of(image)]


def is_made_for(index: Index, image: str) -> bool:
    """Whether `image` names the images of an index. Columns of a table may differ in case only."""
    names = [names_of(image), names_of(index.image)]
    wanted, found = ([find_member(name, index.members) or name.lower() for name in given] for given in names)
    return wanted == found


def changed_shards(meta: Mapping[str, tuple[int, str]], known: Index | None) -> list[str]:
    """The shards that are not in the index `known`, or have another size or version there."""
    if known is None:
        return list(meta)
    indexed = dict(zip(known.shards, zip(known.shard_bytes.tolist(), known.versions, strict=True), strict=True))
    return [shard for shard, current in meta.items() if indexed.get(shard) != current]


def stat_shards(shards: Sequence[str], opener: ShardOpener) -> dict[str, tuple[int, str]]:
    """The current size in bytes and version of each shard."""
    with ThreadPoolExecutor(_STAT_THREADS) as pool:  # each remote shard takes a request
        return dict(zip(shards, pool.map(opener.stat, shards), strict=True))


def _read_samples(fd: int, shard: str) -> Iterator[tuple[TarSample, Callable[[str], bytes]]]:
    """Each sample of a shard, and a function from a member's name to its bytes; of a tar, the unnamed files last."""
    if is_parquet(shard):
        for sample, data in parquet.read_samples(fd, shard):
            yield sample, data.__getitem__
        return
    tar = read_tar(f"/dev/fd/{fd}", redact(shard))
    for sample in chain(tar.samples, tar.unnamed):

        def get(extension: str, sample: TarSample = sample) -> bytes:
            offset, size = sample.members[extension]
            return os.pread(fd, size, offset)

        yield sample, get


def _scan_shard(shard: str, meta: tuple[int, str], images: Sequence[str], opener: ShardOpener) -> Index:
    fd = opener.open_raw(shard, *meta)
    try:
        return _scan_file(fd, shard, meta, images)
    finally:
        os.close(fd)


def _scan_file(fd: int, shard: str, meta: tuple[int, str], images: Sequence[str]) -> Index:
    columns, cls_member = parquet.Columns("", {}), "cls"
    given, images = images, [name.lower() for name in images]
    if is_parquet(shard):
        columns = parquet.read_columns(fd, shard, given)
        images = [columns.image if name == columns.image.lower() else name for name in images]
        cls_member = next((name for name in ("cls", "label") if columns.kinds.get(name) == "txt"), "cls")
    extensions: set[str] = set()
    without = WithoutImage()
    rows: list[TarSample] = []
    ranges: list[tuple[int, int]] = []  # offset and size of each image
    headers: list[Header] = []
    reasons: list[str | None] = []
    digests: list[int] = []
    texts: list[str | None] = []
    outside = xxhash.xxh3_64()  # of a parquet file, whose rows no file holds yet
    for sample, get in _read_samples(fd, shard):
        extensions |= sample.members.keys()
        wanted = [columns.image] if columns.image else images
        extension = next((e for e in wanted if e in sample.members), None)
        if columns.image:
            for other in sample.members:
                if other != extension:
                    outside.update(get(other))
        if extension is None:
            without.add(sample)
            continue
        rows.append(sample)
        ranges.append(sample.members[extension])
        data = get(extension)
        digests.append(xxhash.xxh3_64_intdigest(data))
        header, reason = header_or_reason(data)
        headers.append(header)
        reasons.append(reason)
        has_text = cls_member in sample.members
        texts.append(get(cls_member).decode("utf-8", "replace").strip() if has_text else None)
    if not rows:
        _refuse_empty(shard, columns.image, without.samples, extensions, images)
    width, height, orientation, format, pages = np.array(headers, np.int32).reshape(len(rows), 5).T
    offset, nbytes = np.array(ranges, np.int64).reshape(len(rows), 2).T
    return Index(
        shards=(shard,),
        shard_bytes=np.array([meta[0]]),
        versions=(meta[1],),
        starts=np.array([0, len(rows)]),
        keys=Texts.of(printable(sample.key) for sample in rows),
        offset=offset.copy(),
        nbytes=nbytes.copy(),
        width=width,
        height=height,
        orientation=orientation.astype(np.uint8),
        format=format.astype(np.uint8),
        pages=pages,
        digest=np.array(digests, np.uint64),
        reasons=Texts.of(reasons),
        cls=Texts.of(texts),
        members=_member_columns(rows),
        without_image=np.array([without.samples]),
        unused_members=np.array([without.members]),
        examples=(tuple(without.names.values()),),
        outside=np.array([outside.intdigest() if columns.image else digest_outside(fd, offset, nbytes)], np.uint64),
        image=";".join(images),
        cls_member=cls_member,
        kinds=columns.kinds,
    )


def _member_columns(rows: Sequence[TarSample]) -> dict[str, np.ndarray]:
    """The column `Index.members` of these samples."""
    members: dict[str, np.ndarray] = {}
    for i, sample in enumerate(rows):
        for extension, place in sample.members.items():
            name = printable(extension)
            if name not in members:
                members[name] = np.full((len(rows), 2), -1, np.int64)
            members[name][i] = place
    return members


def _refuse_empty(shard: str, column: str, samples: int, extensions: set[str], images: Sequence[str]) -> None:
    """Raise ValueError if a shard without an image has samples."""
    if column and samples:
        raise ValueError(
            f"shard {redact(shard)!r} has no bytes in its column {column!r}, in none of {samples} rows: it may hold "
            "paths only; embed the images in it, or write tars"
        )
    if extensions:
        raise ValueError(
            f"shard {redact(shard)!r} has no image: its members end in {listed(extensions)} and "
            f"image={';'.join(images)!r} asks for {listed(images)}; name one of its extensions, or leave the shard out"
        )
