"""The index: one row per image, read from headers, never from pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa

from patchnpack.loaders.files.reader import FileReader
from patchnpack.loaders.files.table import FileTable
from patchnpack.loaders.files.texts import Texts as Texts
from patchnpack.loaders.imaging.formats import OWN, PIXELS
from patchnpack.loaders.imaging.header import Header
from patchnpack.loaders.index.sample_table import SampleTable
from patchnpack.loaders.remote.addresses import redact
from patchnpack.loaders.shards.opener import ShardOpener
from patchnpack.loaders.shards.outside import Outside
from patchnpack.loaders.shards.reader import ShardReader
from patchnpack.loaders.shards.tar import IMAGE as IMAGE
from patchnpack.packer import Rows
from patchnpack.packer.text import counted

# n rows, s shards


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Index:
    """The metadata of a source's n images. Row i of every column is the same image; rows are ordered by shard.

    Attributes:
        shards: paths or addresses of the s shards.
        shard_bytes: int64 (s,), sizes of the shards.
        versions: the mtime of each local shard and the ETag of each remote one, to detect changes.
        starts: int64 (s + 1,), the first row of each shard.
        keys: key of each row's sample, as its shard or its data set names it.
        offset, nbytes: int64 (n,), byte range of the encoded image in its shard.
        width, height: int32 (n,), pixels, after EXIF orientation; 0 where the header is unreadable.
        orientation: uint8 (n,), EXIF orientation, 1 to 8.
        format: uint8 (n,), position in `patchnpack.loaders.imaging.formats.FORMATS`.
        pages: int32 (n,), pages or frames of the image; -1 where its header does not count them, as in a JPEG XL
            animation. 1 where `samples` have all of them.
        bands: int32 (n,), channels of the values that are stored; 0 where they are not read.
        dtype: uint8 (n,), type of these values, a position in `patchnpack.packer.dtypes.DTYPES`.
        digest: uint64 (n,), XXH3 of the encoded bytes.
        reasons: why each image cannot be used as 8-bit colours, None if it can. A row with a reason and a width is an
            image that only a `decode` function can read or, if `bands` is not 0, a packing that asks for its bands.
        cls: text of each sample's `cls_member`, None if absent.
        members: for each extension, int64 (n, 2), offset and nbytes of that member; (-1, -1) if absent.
        without_image: int64 (s,), samples per shard without an image, which have no row.
        unused_members: int64 (s,), members per shard that belong to no row. All members of a tar are either among
            these or, for the row of their sample, in `members`.
        examples: for each shard, names of members of samples without an image, one for each extension, at most 10.
        outside: uint64 (s,), XXH3 of each shard's bytes outside the images of its rows: labels, other members and, in
            a tar, headers.
        image: extensions of images, as given to `scan`.
        cls_member: "cls" or, in parquet shards without it, "label".
        kinds: "txt" or "json", the encoding of members whose name does not imply one; "list" for a column of lists of
            images, each of which is a row.
        files: for each shard that is a folder or a table of image files, its files; None for other shards. Offsets of
            such a shard are positions in its `FileTable`. Empty if no shard is one.
        formats: the formats that a user's readers read; row i is of one of them if `format` is at least
            `patchnpack.loaders.imaging.formats.OWN`, from which on it is a position here.
        samples: which rows are one sample; None where each row is a sample of one image, the first of its file.
    """

    shards: tuple[str, ...]
    shard_bytes: np.ndarray
    versions: tuple[str, ...]
    starts: np.ndarray
    keys: Texts[str]
    offset: np.ndarray
    nbytes: np.ndarray
    width: np.ndarray
    height: np.ndarray
    orientation: np.ndarray
    format: np.ndarray
    pages: np.ndarray
    bands: np.ndarray
    dtype: np.ndarray
    digest: np.ndarray
    reasons: Texts[str | None]
    cls: Texts[str | None]
    members: dict[str, np.ndarray]
    without_image: np.ndarray
    unused_members: np.ndarray
    examples: tuple[tuple[str, ...], ...]
    outside: np.ndarray
    image: str = IMAGE
    cls_member: str = "cls"
    kinds: dict[str, str] = field(default_factory=dict)
    files: tuple[FileTable | None, ...] = ()
    formats: tuple[str, ...] = ()
    samples: SampleTable | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def __repr__(self) -> str:
        """A few lines: shards, sizes, members, and what cannot be used."""
        bad, without = int(self.reasons.column.is_valid().sum().as_py() or 0), int(self.without_image.sum())
        images = counted(len(self), "image")
        if self.samples is not None:
            count = counted(len(self.samples), "sample")
            images = f"{counted(self.samples.images, 'image')} in {count} ({self.samples.rule})"
        return (
            f"Index of {images} in {shards_shown(self.shards)}\n"
            f"  sizes: {self._sizes_shown()}\n"
            f"  members: {', '.join(sorted(self.members)) or 'none'}\n"
            f"  {counted(bad, 'bad image')}, {counted(without, 'sample')} without an image"
        )

    def _sizes_shown(self) -> str:
        known = self.width > 0
        if not known.any():
            return "unknown"
        sides = np.sort(np.maximum(self.width[known], self.height[known]))
        pixels = self.width[known].astype(np.int64) * self.height[known] / 1e6
        return (
            f"longer side {sides[0]:,} to {sides[-1]:,} pixels, median {sides[len(sides) // 2]:,}; "
            f"{pixels.mean():.2g} megapixels on average"
        )

    @property
    def bad(self) -> dict[int, str]:
        """The rows whose image cannot be used without a `decode` function, and why."""
        return self.bad_rows(decode=False)

    def bad_rows(self, *, decode: bool) -> dict[int, str]:
        """The rows whose image cannot be used, and why; `decode` leaves out those that a `decode` function can read."""
        bad = self.reasons.column.is_valid().to_numpy(zero_copy_only=False)
        rows = np.flatnonzero(bad & (self.width == 0) if decode else bad)
        return dict(zip(rows.tolist(), self.reasons.take(rows).column.to_pylist(), strict=True))

    def shard_of(self, rows: np.ndarray | int) -> np.ndarray:
        """The shard number, int64 (m,), of each row (int64 (m,), or a single row)."""
        return np.searchsorted(self.starts, rows, side="right") - 1

    def row_id(self, rows: np.ndarray) -> np.ndarray:
        """The key, uint64 (m,), of the random draws of rows (int64 (m,)): shard number and row in the shard.

        The shard is counted by `starts`, even if the bytes have been packed into other files since.
        """
        shard = np.searchsorted(self.starts, rows, side="right") - 1
        row_id: np.ndarray = shard.astype(np.uint64) << np.uint64(32) | (rows - self.starts[shard]).astype(np.uint64)
        return row_id

    def rows(self, which: np.ndarray) -> Rows:
        """The columns that a plan needs, of the samples whose first rows are `which` (int64)."""
        if self.samples is None:
            return Rows(
                row=which,
                row_id=self.row_id(which),
                width=self.width[which],
                height=self.height[which],
                bytes_per_pixel=self._bytes_per_pixel(which, np.maximum(self.pages[which], 1)),
            )
        row, offsets = self.samples.rows_of(self.samples.sample_of(which))
        return Rows(
            row=row,
            row_id=self.row_id(row),
            width=self.width[row],
            height=self.height[row],
            page=self.samples.page[row],
            frames=self.samples.frames[row],
            offsets=offsets,
            bytes_per_pixel=self._bytes_per_pixel(row, self.samples.frames[row], self.samples.page[row]),
        )

    def _bytes_per_pixel(self, rows: np.ndarray, frames: np.ndarray, page: np.ndarray | None = None) -> np.ndarray:
        """Encoded bytes per pixel of the file of each row, float64; 0 where the bytes are pixels, or not known.

        `frames` images lie in each row, from image `page` of their file on; without it, each row is a file.
        """
        pixels = self.width[rows].astype(np.float64) * self.height[rows] * frames
        if page is not None:
            begins = (np.diff(page, prepend=0) <= 0) | (np.diff(self.offset[rows], prepend=-1) != 0)
            file = np.cumsum(begins) - 1
            pixels = np.bincount(file, pixels)[file]
        encoded: np.ndarray = self.nbytes[rows] * (self.format[rows] != PIXELS) / np.maximum(pixels, 1)
        return encoded

    def headers(self, which: np.ndarray) -> list[Header]:
        """The headers of rows `which` (int64)."""
        columns = (getattr(self, name) for name in Header._fields)
        return list(map(Header._make, zip(*(column[which].tolist() for column in columns), strict=True)))

    def reader(self, opener: ShardOpener | None = None) -> ShardReader:
        """A reader of the shards' bytes; remote shards go through the opener's cache."""
        outside = Outside(self.starts, self.offset, self.nbytes, self.outside)
        opener = (opener or ShardOpener()).with_lists(name for name, kind in self.kinds.items() if kind == "list")
        shards = self.shards, self.shard_bytes.tolist(), self.versions, opener
        if any(self.files):
            return FileReader(*shards, outside=outside, tables=self.files)
        return ShardReader(*shards, outside=outside)

    def table_of(self, shard: int) -> FileTable | None:
        """The files of a shard, given by number, that is a folder or a table of image files; None for others."""
        return self.files[shard] if self.files else None

    def place(self, row: int) -> tuple[str, int]:
        """The file that holds a row's image, its path or address, and the image's offset in it."""
        shard, offset = int(self.shard_of(row)), int(self.offset[row])
        table = self.table_of(shard)
        return (self.shards[shard], offset) if table is None else (table.file(offset), 0)

    def name_of(self, row: int) -> str:
        """What a message calls a row: its key and, in a sample of several images, which of them it is."""
        key, samples = self.keys[row], self.samples
        if samples is None:
            return key
        member, page = None if samples.member is None else samples.member[row], int(samples.page[row])
        name = key if member is None else f"{key}.{member}"
        return f"{name}, page {page + 1}" if page else name

    @property
    def other_images(self) -> int:
        """The number of members with an extension of `image` beside the one that is the image of their row."""
        members = (self.members[name] for name in self.image.split(";") if name in self.members)
        return int(sum(((where[:, 0] >= 0) & (where[:, 0] != self.offset)).sum() for where in members))

    def select(self, shards: Sequence[int]) -> Index:
        """The index of these shards, given by number, in this order."""
        which = np.array(shards, np.int64)
        rows = np.concatenate([np.arange(self.starts[i], self.starts[i + 1]) for i in which] or [np.zeros(0, np.int64)])
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, column in columns.items():
            if name in _BY_SHARD:
                columns[name] = column[which]
            elif isinstance(column, Texts):
                columns[name] = column.take(rows)
            elif isinstance(column, np.ndarray) and name != "starts":
                columns[name] = column[rows]
        columns["samples"] = None if self.samples is None else self.samples.take(rows)
        members = {extension: ranges[rows] for extension, ranges in self.members.items()}
        columns["members"] = {extension: ranges for extension, ranges in members.items() if (ranges >= 0).any()}
        columns["shards"] = tuple(self.shards[i] for i in which)
        columns["versions"] = tuple(self.versions[i] for i in which)
        columns["examples"] = tuple(self.examples[i] for i in which)
        columns["files"] = tuple(self.files[i] for i in which) if self.files else ()
        columns["starts"] = np.concatenate([[0], np.cumsum(np.diff(self.starts)[which])]).astype(np.int64)
        return Index(**columns)

    @classmethod
    def concatenate(cls, parts: Sequence[Index]) -> Index:
        """The index of all shards of all parts, in order.

        All parts must have been scanned with the same `image`. Where only some have samples of several images, each row
        of the others is a sample of one.

        Raises:
            ValueError: a member has different encodings in two shards.
        """
        joined: dict[str, Any] = {}
        formats = tuple(sorted({name for part in parts for name in part.formats}))
        parts = [part if part.formats == formats else part._with_formats(formats) for part in parts]
        for name in (f.name for f in fields(cls)):
            columns = [getattr(part, name) for part in parts]
            if isinstance(columns[0], Texts):
                joined[name] = Texts(pa.concat_arrays([texts.column for texts in columns]))
            elif isinstance(columns[0], np.ndarray):
                joined[name] = np.concatenate(columns)
        lengths = np.concatenate([np.diff(part.starts) for part in parts])
        joined["starts"] = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        members = {
            extension: np.concatenate([part.members.get(extension, np.full((len(part), 2), -1)) for part in parts])
            for extension in sorted({extension for part in parts for extension in part.members})
        }
        kinds = {member: kind for part in parts for member, kind in part.kinds.items() if member in part.members}
        for part in parts:
            for member in part.members:
                if part.kinds.get(member) != kinds.get(member):
                    raise ValueError(
                        f"member {member!r} is {part.kinds.get(member, 'bytes')} in {part.shards[0]!r} and "
                        f"{kinds.get(member, 'bytes')} in another shard; load the two kinds of shards separately"
                    )
        files = tuple(table for part in parts for table in part.files or (None,) * len(part.shards))
        rules = [part.samples.rule for part in parts if part.samples is not None]
        samples = [
            SampleTable.of_images(rules[0], np.arange(len(part) + 1)) if part.samples is None else part.samples
            for part in parts
            if rules
        ]
        return cls(
            **joined,
            files=files if any(files) else (),
            samples=SampleTable.concatenate(samples) if samples else None,
            shards=tuple(shard for part in parts for shard in part.shards),
            versions=tuple(version for part in parts for version in part.versions),
            examples=tuple(names for part in parts for names in part.examples),
            members=members,
            image=parts[0].image,
            cls_member=next((part.cls_member for part in parts if part.cls_member in part.members), "cls"),
            kinds=kinds,
            formats=formats,
        )

    def _with_formats(self, formats: tuple[str, ...]) -> Index:
        """The index with the numbers that the user's formats have among `formats`."""
        format = self.format.copy()
        own = format >= OWN
        format[own] = np.array([OWN + formats.index(name) for name in self.formats], np.uint8)[format[own] - OWN]
        return replace(self, format=format, formats=formats)


def shards_shown(shards: Sequence[str]) -> str:
    """Return the number of shards and the names of the first and the last, without secrets."""
    ends = shards if len(shards) < 3 else (shards[0], shards[-1])
    return f"{counted(len(shards), 'shard')}, {' to '.join(repr(redact(shard)) for shard in ends)}"


_BY_SHARD = ("shard_bytes", "without_image", "unused_members", "outside")
