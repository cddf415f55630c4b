"""Scanning: shards in, an index out. Headers are read and bytes hashed; no pixel is decoded."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import xxhash

from patchnpack.loaders.errors import BadImage
from patchnpack.loaders.imaging.header import Header, UnsupportedImage, read_header
from patchnpack.loaders.index.table import IMAGE, Index, Texts
from patchnpack.loaders.remote.addresses import redact
from patchnpack.loaders.shards import parquet
from patchnpack.loaders.shards.opener import ShardOpener, is_parquet
from patchnpack.loaders.shards.reader import Source, expand
from patchnpack.loaders.shards.tar import TarSample, read_samples

# n rows, s shards

_NO_HEADER = Header(0, 0, 1, 0)
_ASKED_AT_ONCE = 32


def scan(
    source: Source,
    *,
    image: str = IMAGE,
    num_threads: int | None = None,
    known: Index | None = None,
    store: ShardOpener | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Index:
    """Reads the headers of every image in the shards.

    Args:
        source: shards, by brace range, glob or list.
        image: the extensions that are images, separated by ";"; of several in a sample the first listed counts.
        num_threads: shards read at a time; None is the number of CPUs.
        known: an earlier index; its shards that have not changed since (path, size, version) are not read again.
        store: how shards are opened; needed for remote ones with options.
        progress: called with (shards done, shards in all).

    Raises:
        FileNotFoundError: a shard that does not exist.
        ValueError: a shard that is no whole tar, or in which no sample has an image.
    """
    images = extensions_of(image)
    store = store or ShardOpener()
    paths = expand(source, store)
    facts = stat_shards(paths, store)
    if known is not None and extensions_of(known.image) != images:
        known = None
    numbers = {} if known is None else {path: i for i, path in enumerate(known.shards)}
    fresh = unknown(facts, known)
    done = len(paths) - len(fresh)
    scanned: dict[str, Index] = {}
    with ThreadPoolExecutor(num_threads or os.cpu_count()) as pool:
        try:
            scans = pool.map(lambda path: _scan_shard(path, facts[path], images, store), fresh)
            for path, index in zip(fresh, scans, strict=True):
                scanned[path] = index
                if progress:
                    progress(done + len(scanned), len(paths))
        except BaseException:
            pool.shutdown(cancel_futures=True)  # a bad shard is told at once, not after the last one
            raise
    if known is not None and done == len(paths) == len(known.shards) and tuple(paths) == known.shards:
        index = known
    else:
        parts: list[Index] = []
        kept: list[int] = []  # numbers of known shards that come next
        for path in paths:
            if path in scanned:
                parts += [*([known.select(kept)] if known is not None and kept else []), scanned[path]]
                kept = []
            else:
                kept.append(numbers[path])
        index = Index.concatenate([*parts, *([known.select(kept)] if known is not None and kept else [])])
    if not len(index):
        raise ValueError(f"the {len(paths)} shards, from {paths[0]!r} on, hold no sample; give shards that hold images")
    return index


def extensions_of(image: str) -> list[str]:
    """The extensions that `image` names, the first of which counts most."""
    return [extension.strip().lstrip(".").lower() for extension in image.split(";")]


def unknown(facts: Mapping[str, tuple[int, str]], known: Index | None) -> list[str]:
    """The shards that are not in an index, or have another size or version now."""
    if known is None:
        return list(facts)
    then = dict(zip(known.shards, zip(known.shard_bytes.tolist(), known.versions, strict=True), strict=True))
    return [shard for shard, now in facts.items() if then.get(shard) != now]


def stat_shards(shards: Sequence[str], store: ShardOpener) -> dict[str, tuple[int, str]]:
    """The size in bytes and the version of each shard, as they are now."""
    with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:  # remote shards are asked for one by one
        return dict(zip(shards, pool.map(store.stat, shards), strict=True))


def _samples(
    shard: str, nbytes: int, version: str, images: Sequence[str], store: ShardOpener
) -> Iterator[tuple[TarSample, Callable[[str], bytes]]]:
    """Each sample, and what gives the bytes of its members."""
    fd = store.open_raw(shard, nbytes, version)
    try:
        if is_parquet(shard):
            for sample, data in parquet.read_samples(fd, shard):
                yield sample, data.__getitem__
            return
        for sample in read_samples(f"/dev/fd/{fd}", redact(shard)):

            def get(extension: str, sample: TarSample = sample) -> bytes:
                offset, size = sample.members[extension]
                return os.pread(fd, size, offset)

            yield sample, get
    finally:
        os.close(fd)


def _scan_shard(shard: str, facts: tuple[int, str], images: Sequence[str], store: ShardOpener) -> Index:
    extensions: set[str] = set()
    columns = parquet.Columns("", {})
    cls_member = "cls"
    if is_parquet(shard):
        fd = store.open_raw(shard, *facts)
        try:
            columns = parquet.read_columns(fd, shard, images)
        finally:
            os.close(fd)
        cls_member = next((name for name in ("cls", "label") if columns.kinds.get(name) == "txt"), "cls")
    rows: list[TarSample] = []
    places: list[tuple[int, int]] = []
    headers: list[Header] = []
    reasons: list[str | None] = []
    digests: list[int] = []
    texts: list[str | None] = []
    samples = 0
    for sample, get in _samples(shard, *facts, images, store):
        samples += 1
        extensions |= sample.members.keys()
        named = [columns.image] if columns.image else images
        extension = next((e for e in named if e in sample.members), None)
        if extension is None:
            continue
        rows.append(sample)
        places.append(sample.members[extension])
        data = get(extension)
        digests.append(xxhash.xxh3_64_intdigest(data))
        try:
            headers.append(read_header(data))
            reasons.append(None)
        except ValueError as error:
            raise ValueError(f"image {sample.key!r} in shard {redact(shard)!r}: {error}") from None
        except BadImage as error:
            headers.append(error.header if isinstance(error, UnsupportedImage) else _NO_HEADER)
            reasons.append(str(error))
        has_text = cls_member in sample.members
        texts.append(get(cls_member).decode("utf-8", "replace").strip() if has_text else None)
    if columns.image and samples and not rows:
        raise ValueError(
            f"shard {redact(shard)!r} has no bytes in its column {columns.image!r}, in none of {samples} rows: it may "
            "hold paths alone; embed the images in it, or write tars"
        )
    if extensions and not rows:
        raise ValueError(
            f"shard {redact(shard)!r} has no image: its members end in {_listed(extensions)} and "
            f"image={';'.join(images)!r} asks for {_listed(images)}; name one of its extensions, or leave the shard out"
        )
    members: dict[str, np.ndarray] = {}
    for i, sample in enumerate(rows):
        for extension, place in sample.members.items():
            if extension not in members:
                members[extension] = np.full((len(rows), 2), -1, np.int64)
            members[extension][i] = place
    width, height, orientation, kind = np.array(headers, np.int32).reshape(len(rows), 4).T
    return Index(
        shards=(shard,),
        shard_bytes=np.array([facts[0]]),
        versions=(facts[1],),
        starts=np.array([0, len(rows)]),
        keys=Texts.of(sample.key.encode("utf-8", "backslashreplace").decode() for sample in rows),
        offset=np.array([offset for offset, _ in places], np.int64),
        nbytes=np.array([size for _, size in places], np.int64),
        width=width,
        height=height,
        orientation=orientation.astype(np.uint8),
        format=kind.astype(np.uint8),
        digest=np.array(digests, np.uint64),
        reasons=Texts.of(reasons),
        cls=Texts.of(texts),
        members=members,
        without_image=np.array([samples - len(rows)]),
        image=";".join(images),
        cls_member=cls_member,
        kinds=columns.kinds,
    )


def _listed(extensions: Sequence[str] | set[str], most: int = 10) -> str:
    # Names with dots in them make an extension of every number: a shard may have thousands.
    text = ", ".join("." + extension for extension in sorted(extensions)[:most])
    return text if len(extensions) <= most else f"{text} and {len(extensions) - most} more"
