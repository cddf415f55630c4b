"""Scanning: shards in, an index out. Headers are read and bytes hashed; no pixel is decoded."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import xxhash

from patchnpack.loaders.decode import BadImage, Header, read_header
from patchnpack.loaders.index import IMAGE, Index, Texts
from patchnpack.loaders.shards import ShardReader, Source, expand
from patchnpack.loaders.tar import TarSample, read_samples

# n rows, s shards

_NO_HEADER = Header(0, 0, 1, 0)


def scan(
    source: Source,
    *,
    image: str = IMAGE,
    num_threads: int | None = None,
    known: Index | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Index:
    """Reads the headers of every image in the shards.

    Args:
        source: shards, by brace range, glob or list.
        image: the extensions that are images, separated by ";"; of several in a sample the first listed counts.
        num_threads: shards read at a time; None is the number of CPUs.
        known: an earlier index; its shards that have not changed since (path, size, time) are not read again.
        progress: called with (shards done, shards in all).

    Raises:
        FileNotFoundError: a shard that does not exist.
        ValueError: a shard that is no whole tar, or in which no sample has an image.
    """
    images = extensions_of(image)
    paths = expand(source)
    if known is not None and extensions_of(known.image) != images:
        known = None
    numbers = {} if known is None else {path: i for i, path in enumerate(known.shards)}
    fresh = unknown(paths, known)
    done = len(paths) - len(fresh)
    scanned: dict[str, Index] = {}
    with ThreadPoolExecutor(num_threads or os.cpu_count()) as pool:
        try:
            for path, index in zip(fresh, pool.map(lambda path: _scan_shard(path, images), fresh), strict=True):
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


def unknown(paths: Sequence[str], known: Index | None) -> list[str]:
    """The shards that are not in an index, or have another size or time now."""
    if known is None:
        return list(paths)
    times = zip(known.shard_bytes.tolist(), known.shard_mtimes.tolist(), strict=True)
    stamps = dict(zip(known.shards, times, strict=True))
    return [path for path in paths if stamps.get(path) != _stamp(path)]


def _stamp(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def _scan_shard(path: str, images: Sequence[str]) -> Index:
    nbytes, mtime = _stamp(path)
    samples = read_samples(path)
    reader = ShardReader([path], [nbytes], [mtime])
    rows: list[TarSample] = []
    places: list[tuple[int, int]] = []
    headers: list[Header] = []
    reasons: list[str | None] = []
    digests: list[int] = []
    for sample in samples:
        extension = next((e for e in images if e in sample.members), None)
        if extension is None:
            continue
        rows.append(sample)
        places.append(sample.members[extension])
        data = reader.read(0, *places[-1])
        digests.append(xxhash.xxh3_64_intdigest(data))
        try:
            headers.append(read_header(data))
            reasons.append(None)
        except BadImage as error:
            headers.append(_NO_HEADER)
            reasons.append(str(error))
    extensions = {e for sample in samples for e in sample.members}
    if extensions and not rows:
        raise ValueError(
            f"shard {path!r} has no image: its members end in {_listed(extensions)} and image={';'.join(images)!r} "
            f"asks for {_listed(images)}; name one of its extensions, or leave the shard out"
        )
    members: dict[str, np.ndarray] = {}
    for i, sample in enumerate(rows):
        for extension, place in sample.members.items():
            if extension not in members:
                members[extension] = np.full((len(rows), 2), -1, np.int64)
            members[extension][i] = place
    width, height, orientation, kind = np.array(headers, np.int32).reshape(len(rows), 4).T
    return Index(
        shards=(path,),
        shard_bytes=np.array([nbytes]),
        shard_mtimes=np.array([mtime]),
        starts=np.array([0, len(rows)]),
        keys=Texts.of(sample.key for sample in rows),
        offset=np.array([offset for offset, _ in places], np.int64),
        nbytes=np.array([size for _, size in places], np.int64),
        width=width,
        height=height,
        orientation=orientation.astype(np.uint8),
        format=kind.astype(np.uint8),
        digest=np.array(digests, np.uint64),
        reasons=Texts.of(reasons),
        cls=Texts.of(_text(reader, sample.members.get("cls")) for sample in rows),
        members=members,
        without_image=np.array([len(samples) - len(rows)]),
        image=";".join(images),
    )


def _text(reader: ShardReader, place: tuple[int, int] | None) -> str | None:
    return None if place is None else reader.read(0, *place).decode("utf-8", "replace").strip()


def _listed(extensions: Sequence[str] | set[str], most: int = 10) -> str:
    # Names with dots in them make an extension of every number: a shard may have thousands.
    text = ", ".join("." + extension for extension in sorted(extensions)[:most])
    return text if len(extensions) <= most else f"{text} and {len(extensions) - most} more"
