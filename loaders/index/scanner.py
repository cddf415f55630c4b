"""Scanning: from shards to an index. Headers are read and bytes are hashed; no pixel is decoded."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import numpy as np
import xxhash

from patchnpack.loaders.imaging.header import Header
from patchnpack.loaders.imaging.pages import PageRun
from patchnpack.loaders.imaging.user_decode import ImageReader, UserFormats, find_format, user_formats
from patchnpack.loaders.index.sample_table import SampleTable
from patchnpack.loaders.index.samples.grouping import fits, with_samples
from patchnpack.loaders.index.samples.sample_images import ImageMember, all_images, all_items, first_image, pages_of
from patchnpack.loaders.index.table import IMAGE, Index, Texts
from patchnpack.loaders.index.without_image import WithoutImage, listed, printable
from patchnpack.loaders.remote.addresses import redact
from patchnpack.loaders.shards import parquet
from patchnpack.loaders.shards.keys import natural_key
from patchnpack.loaders.shards.member_names import find_member
from patchnpack.loaders.shards.opener import ShardOpener, is_parquet
from patchnpack.loaders.shards.outside import digest_outside
from patchnpack.loaders.shards.patterns import ShardNames, expand
from patchnpack.loaders.shards.sample_rule import MEMBERS, Sample, images_of, is_by_members, sample_rule
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
    sample: Sample = None,
    formats: Mapping[str, ImageReader] | None = None,
) -> Index:
    """Make an index of all images in the shards by reading their headers.

    Args:
        source: shards by brace range, glob or list.
        image: extensions of images, separated by ";". In a sample with several, the extension listed first is used.
        num_threads: number of shards read in parallel; None is the number of CPUs.
        known: an earlier index. Its shards with unchanged path, size and version are not read again.
        opener: opens the shards; needed for remote shards with storage options.
        progress: called with (shards done, total shards).
        sample: which images belong together, as for `PackedImageLoader`.
        formats: readers of formats of your own, as for `PackedImageLoader`.

    Raises:
        FileNotFoundError: a shard does not exist.
        ValueError: a shard cannot be read, none of its samples has an image, or as `with_samples`.
    """
    rule = sample_rule(sample)
    own = user_formats(formats)
    image = images_of(image, rule, [format.name for format in own])
    images = names_of(image)
    opener = opener or ShardOpener()
    paths = expand(source, opener)
    meta = stat_shards(paths, opener)
    if known is not None and not (is_made_for(known, image, own) and fits(known, rule)):
        known = None
    by_members = is_by_members(rule)
    numbers = {} if known is None else {path: i for i, path in enumerate(known.shards)}
    changed = changed_shards(meta, known)
    done = len(paths) - len(changed)
    scanned: dict[str, Index] = {}
    with ThreadPoolExecutor(num_threads or os.cpu_count()) as pool:
        try:
            scans = pool.map(lambda path: _scan_shard(path, meta[path], images, opener, by_members, own), changed)
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
        known = None if known is None else with_samples(known, rule if by_members else None)  # as new scans are
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
    return with_samples(index, rule)


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


def is_made_for(index: Index, image: str, formats: UserFormats) -> bool:
    """Whether `image` names the images of an index, and `formats` its user's formats.

    Columns of a table may differ in case only.
    """
    if not has_formats(index, formats):
        return False
    names = [names_of(image), names_of(index.image)]
    wanted, found = ([find_member(name, index.members) or name.lower() for name in given] for given in names)
    return wanted == found


def has_formats(index: Index, formats: UserFormats) -> bool:
    """Whether an index was made with these formats of the user."""
    return index.formats == tuple(format.name for format in formats)


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


def _read_samples(fd: int, shard: str, lists: Sequence[str]) -> Iterator[tuple[TarSample, Callable[[str], bytes]]]:
    """Each sample of a shard, and a function from a member's name to its bytes; of a tar, the unnamed files last."""
    if is_parquet(shard):
        for sample, data in parquet.read_samples(fd, shard, lists):
            yield sample, data.__getitem__
        return
    tar = read_tar(f"/dev/fd/{fd}", redact(shard))
    for sample in chain(tar.samples, tar.unnamed):

        def get(extension: str, sample: TarSample = sample) -> bytes:
            offset, size = sample.members[extension]
            return os.pread(fd, size, offset)

        yield sample, get


def _scan_shard(
    shard: str,
    meta: tuple[int, str],
    images: Sequence[str],
    opener: ShardOpener,
    by_members: bool,
    formats: UserFormats,
) -> Index:
    fd = opener.open_raw(shard, *meta)
    try:
        return _scan_file(fd, shard, meta, images, by_members, formats)
    finally:
        os.close(fd)


def _scan_file(
    fd: int, shard: str, meta: tuple[int, str], images: Sequence[str], by_members: bool, formats: UserFormats
) -> Index:
    columns, cls_member = parquet.Columns((), {}), "cls"
    given, images = images, [name.lower() for name in images]
    if is_parquet(shard):
        columns = parquet.read_columns(fd, shard, given, several=by_members)
        spelled = {name.lower(): name for name in columns.images}
        images = [spelled.get(name, name) for name in images]
        cls_member = next((name for name in ("cls", "label") if columns.kinds.get(name) == "txt"), "cls")
        choose = all_items(columns.images) if by_members else first_image(columns.images)
    else:
        choose = all_images(images) if by_members else first_image(images)
    extensions: set[str] = set()
    without = WithoutImage()
    rows = _Rows(formats)
    outside = xxhash.xxh3_64()  # of a parquet file, whose rows no file holds yet
    for sample, get in _read_samples(fd, shard, columns.lists):
        extensions |= sample.members.keys()
        chosen = choose(sample)
        if columns.images:
            used = {member.name for member in chosen}
            for other in sample.members:
                if other not in used:
                    outside.update(get(other))
        if not chosen:
            without.add(sample)
            continue
        has_text = cls_member in sample.members
        text = get(cls_member).decode("utf-8", "replace").strip() if has_text else None
        rows.add(sample, chosen, get, text, by_members)
    if not rows.samples:
        _refuse_empty(shard, columns.images, without.samples, extensions, images)
    headers = np.array(rows.headers, np.int32).reshape(len(rows.samples), len(Header._fields)).T
    width, height, orientation, format, pages, bands, dtype = headers
    offset, nbytes = np.array(rows.ranges, np.int64).reshape(len(rows.samples), 2).T
    return Index(
        shards=(shard,),
        shard_bytes=np.array([meta[0]]),
        versions=(meta[1],),
        starts=np.array([0, len(rows.samples)]),
        keys=Texts.of(printable(sample.key) for sample in rows.samples),
        offset=offset.copy(),
        nbytes=nbytes.copy(),
        width=width,
        height=height,
        orientation=orientation.astype(np.uint8),
        format=format.astype(np.uint8),
        pages=pages,
        bands=bands,
        dtype=dtype.astype(np.uint8),
        digest=np.array(rows.digests, np.uint64),
        reasons=Texts.of(rows.reasons),
        cls=Texts.of(rows.texts),
        members=_member_columns(rows.samples),
        without_image=np.array([without.samples]),
        unused_members=np.array([without.members]),
        examples=(tuple(without.names.values()),),
        outside=np.array([outside.intdigest() if columns.images else digest_outside(fd, offset, nbytes)], np.uint64),
        image=";".join(images),
        cls_member=cls_member,
        kinds=columns.kinds,
        formats=tuple(format.name for format in formats),
        samples=rows.table() if by_members else None,
    )


class _Rows:
    """The rows of a shard's index so far, as lists."""

    def __init__(self, formats: UserFormats) -> None:
        self._formats = formats
        self.samples: list[TarSample] = []  # of each row, with its own image as the only one
        self.ranges: list[tuple[int, int]] = []  # offset and size of each image
        self.headers: list[Header] = []
        self.reasons: list[str | None] = []
        self.digests: list[int] = []
        self.texts: list[str | None] = []
        self._starts: list[int] = []  # of each sample
        self._pages: list[PageRun] = []
        self._members: list[str | None] = []

    def add(
        self,
        sample: TarSample,
        chosen: Sequence[ImageMember],
        get: Callable[[str], bytes],
        text: str | None,
        by_members: bool,
    ) -> None:
        """Add the rows of a sample, which has these images."""
        self._starts.append(len(self.samples))
        names = {name for name, _ in chosen} if by_members else frozenset[str]()
        others = {name: place for name, place in sample.members.items() if name not in names} if by_members else {}
        for name, extension in chosen:
            place, data = sample.members[name], get(name)
            digest = xxhash.xxh3_64_intdigest(data)
            row = TarSample(sample.key, {**others, extension: place}) if by_members else sample
            for page in pages_of(data, every=by_members, own=find_format(self._formats, name)):
                self.samples.append(row)
                self.ranges.append(place)
                self.digests.append(digest)
                self.headers.append(page.header)
                self.reasons.append(page.reason)
                self.texts.append(text)
                if by_members:
                    self._pages.append(page)
                    is_alone = len(chosen) == 1 and name == extension
                    self._members.append(None if is_alone else printable(name))

    def table(self) -> SampleTable:
        """Return the samples of the rows."""
        return SampleTable(
            rule=MEMBERS,
            starts=np.array([*self._starts, len(self.samples)], np.int64),
            page=np.array([page.page for page in self._pages], np.int32),
            frames=np.array([page.frames for page in self._pages], np.int32),
            member=Texts.of(self._members) if any(self._members) else None,
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


def _refuse_empty(
    shard: str, columns: Sequence[str], samples: int, extensions: set[str], images: Sequence[str]
) -> None:
    """Raise ValueError if a shard without an image has samples."""
    if columns and samples:
        named = " or ".join(map(repr, columns))
        raise ValueError(
            f"shard {redact(shard)!r} has no bytes in its column {named}, in none of {samples} rows: it may hold paths "
            "only; embed the images in it, or write tars"
        )
    if extensions:
        inner = sorted((name for name in extensions if name.rpartition(".")[2] in images), key=natural_key)
        several = f"give sample='members' to use members such as .{inner[0]} as images, " if inner else ""
        raise ValueError(
            f"shard {redact(shard)!r} has no image: its members end in {listed(extensions)} and "
            f"image={';'.join(images)!r} asks for {listed(images)}; {several}name one of its "
            "extensions, or leave the shard out"
        )
