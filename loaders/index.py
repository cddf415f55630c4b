"""The index: one row an image, read from headers, never from pixels."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from patchnpack.loaders.decode import BadImage, Header, read_header
from patchnpack.loaders.shards import ShardReader, Source, expand
from patchnpack.loaders.tar import read_samples
from patchnpack.packer import Rows

# n rows, s shards

IMAGE = "jpg;jpeg;png;webp"


@dataclass(frozen=True, kw_only=True, slots=True)
class Index:
    """What is known of a source's n images. Row i of every field is the same image; rows stand shard by shard.

    Attributes:
        shards: the s shards' paths.
        shard_bytes: their sizes.
        starts: int64 (s + 1,), the first row of each shard.
        shard: int32 (n,), which shard a row is in.
        keys: the samples' keys.
        offset, nbytes: int64 (n,), where the encoded image lies in its shard.
        width, height: int32 (n,), pixels, after EXIF orientation; 0 for a bad image.
        orientation: uint8 (n,), EXIF orientation, 1 to 8.
        direct: bool (n,), whether libjpeg-turbo decodes it (PIL otherwise).
        bad: reasons of the rows whose header cannot be used.
        cls: the text of each sample's `.cls` member, None where there is none.
        members: for each extension, int64 (n, 2), offset and nbytes of that member; (-1, -1) where there is none.
        samples_without_image: samples that became no row, because none of their members is an image.
    """

    shards: tuple[str, ...]
    shard_bytes: tuple[int, ...]
    starts: np.ndarray
    shard: np.ndarray
    keys: list[str]
    offset: np.ndarray
    nbytes: np.ndarray
    width: np.ndarray
    height: np.ndarray
    orientation: np.ndarray
    direct: np.ndarray
    bad: dict[int, str]
    cls: list[str | None]
    members: dict[str, np.ndarray]
    samples_without_image: int

    def __len__(self) -> int:
        return len(self.keys)

    def rows(self, which: np.ndarray) -> Rows:
        """What a plan needs of the rows `which` (int64)."""
        shard = self.shard[which].astype(np.uint64)
        ident = shard << np.uint64(32) | (which - self.starts[self.shard[which]]).astype(np.uint64)
        return Rows(row=which, ident=ident, width=self.width[which], height=self.height[which])

    def headers(self, which: np.ndarray) -> list[Header]:
        """The headers of the rows `which` (int64)."""
        columns = (self.width, self.height, self.orientation, self.direct)
        return [Header(*header) for header in zip(*(column[which].tolist() for column in columns), strict=True)]

    def reader(self) -> ShardReader:
        """Reads bytes of the shards."""
        return ShardReader(self.shards, self.shard_bytes)


@dataclass(slots=True)
class _Row:
    key: str
    offset: int
    nbytes: int
    header: Header | str
    cls: str | None
    members: dict[str, tuple[int, int]]


@dataclass(slots=True)
class _Shard:
    nbytes: int
    rows: list[_Row]
    without_image: int
    extensions: set[str]


def _scan_shard(path: str, images: Sequence[str]) -> _Shard:
    nbytes = os.path.getsize(path)
    samples = read_samples(path)
    reader = ShardReader([path], [nbytes])
    rows: list[_Row] = []
    for sample in samples:
        extension = next((e for e in images if e in sample.members), None)
        if extension is None:
            continue
        offset, size = sample.members[extension]
        header: Header | str
        try:
            header = read_header(reader.read(0, offset, size))
        except BadImage as error:
            header = str(error)
        cls = None
        if "cls" in sample.members:
            cls = reader.read(0, *sample.members["cls"]).decode("utf-8", "replace").strip()
        rows.append(_Row(sample.key, offset, size, header, cls, sample.members))
    return _Shard(nbytes, rows, len(samples) - len(rows), {e for sample in samples for e in sample.members})


def scan(
    source: Source,
    *,
    image: str = IMAGE,
    num_threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Index:
    """Reads the headers of every image in the shards.

    Args:
        source: shards, by brace range, glob or list.
        image: the extensions that are images, separated by ";"; of several in a sample the first listed counts.
        num_threads: shards read at a time; None is the number of CPUs.
        progress: called with (shards done, shards in all).

    Raises:
        FileNotFoundError: a shard that does not exist.
        ValueError: a shard that is no whole tar, or in which no sample has an image.
    """
    images = [extension.strip().lstrip(".").lower() for extension in image.split(";")]
    paths = expand(source)
    shards: list[_Shard] = []
    with ThreadPoolExecutor(num_threads or os.cpu_count()) as pool:
        for path, shard in zip(paths, pool.map(lambda path: _scan_shard(path, images), paths), strict=True):
            if shard.extensions and not shard.rows:
                raise ValueError(
                    f"shard {path!r} has no image: its members end in {_listed(shard.extensions)} and image={image!r} "
                    f"asks for {_listed(images)}; name one of its extensions, or leave the shard out"
                )
            shards.append(shard)
            if progress:
                progress(len(shards), len(paths))
    if not any(shard.rows for shard in shards):
        raise ValueError(f"the {len(paths)} shards, from {paths[0]!r} on, hold no sample; give shards that hold images")
    return _join(paths, shards)


def _listed(extensions: Sequence[str] | set[str], most: int = 10) -> str:
    # Names with dots in them make an extension of every number: a shard may have thousands.
    text = ", ".join("." + extension for extension in sorted(extensions)[:most])
    return text if len(extensions) <= most else f"{text} and {len(extensions) - most} more"


def _join(paths: Sequence[str], shards: Sequence[_Shard]) -> Index:
    rows = [row for shard in shards for row in shard.rows]
    starts = np.concatenate([[0], np.cumsum([len(shard.rows) for shard in shards])]).astype(np.int64)
    headers = [row.header if isinstance(row.header, Header) else Header(0, 0, 1, False) for row in rows]
    members: dict[str, np.ndarray] = {}
    for i, row in enumerate(rows):
        for extension, place in row.members.items():
            if extension not in members:
                members[extension] = np.full((len(rows), 2), -1, np.int64)
            members[extension][i] = place
    return Index(
        shards=tuple(paths),
        shard_bytes=tuple(shard.nbytes for shard in shards),
        starts=starts,
        shard=np.repeat(np.arange(len(shards), dtype=np.int32), np.diff(starts)),
        keys=[row.key for row in rows],
        offset=np.array([row.offset for row in rows], np.int64),
        nbytes=np.array([row.nbytes for row in rows], np.int64),
        width=np.array([header.width for header in headers], np.int32),
        height=np.array([header.height for header in headers], np.int32),
        orientation=np.array([header.orientation for header in headers], np.uint8),
        direct=np.array([header.direct for header in headers], np.bool_),
        bad={i: row.header for i, row in enumerate(rows) if isinstance(row.header, str)},
        cls=[row.cls for row in rows],
        members=members,
        samples_without_image=sum(shard.without_image for shard in shards),
    )
