"""The index: one row an image, read from headers, never from pixels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar, overload

import numpy as np
import pyarrow as pa

from patchnpack.loaders.imaging.header import Header
from patchnpack.loaders.shards.opener import ShardOpener
from patchnpack.loaders.shards.reader import ShardReader
from patchnpack.loaders.shards.tar import IMAGE as IMAGE
from patchnpack.packer import Rows

# n rows, s shards


T = TypeVar("T", str, str | None)


class Texts(Sequence[T]):
    """A column of n texts, or None, in Arrow's memory: a few bytes more than the letters, where a list takes 60.

    >>> Texts.of(["a", None])[1] is None
    True
    """

    def __init__(self, column: pa.LargeStringArray) -> None:
        self.column = column
        # Read without Arrow's functions, whose locks another thread may hold when a process is forked.
        self._valid, offsets, letters = column.buffers()
        self._first = column.offset
        self._ends = np.frombuffer(offsets, np.int64) if offsets is not None and offsets.size else np.zeros(1, np.int64)
        self._letters = memoryview(letters if letters is not None else b"")

    def __reduce__(self) -> tuple[type[Texts[T]], tuple[pa.LargeStringArray]]:
        return type(self), (self.column,)

    @classmethod
    def of(cls, texts: Iterable[T]) -> Texts[T]:
        """A column of these texts."""
        return cls(pa.array(texts, pa.large_string()))

    def __len__(self) -> int:
        return len(self.column)

    @overload
    def __getitem__(self, i: int) -> T: ...
    @overload
    def __getitem__(self, i: slice) -> list[T]: ...
    def __getitem__(self, i: int | slice) -> Any:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(f"text {i} of {len(self)}")
        at = int(i) % len(self) + self._first
        if self._valid is not None and not self._valid[at >> 3] >> (at & 7) & 1:
            return None
        return str(self._letters[int(self._ends[at]) : int(self._ends[at + 1])], "utf-8")

    def take(self, which: np.ndarray) -> Texts[T]:
        """The texts at `which`, int64 (m,)."""
        return Texts(self.column.take(pa.array(which)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Index:
    """What is known of a source's n images. Row i of every field is the same image; rows stand shard by shard.

    Attributes:
        shards: the s shards' paths.
        shard_bytes: int64 (s,), their sizes.
        versions: what tells whether a shard has changed: when a local one was last written to, a remote one's ETag.
        starts: int64 (s + 1,), the first row of each shard.
        keys: the samples' keys.
        offset, nbytes: int64 (n,), where the encoded image lies in its shard.
        width, height: int32 (n,), pixels, after EXIF orientation; 0 where the header does not tell.
        orientation: uint8 (n,), EXIF orientation, 1 to 8.
        format: uint8 (n,), which of `patchnpack.loaders.imaging.formats.FORMATS` the file is.
        digest: uint64 (n,), XXH3 of the encoded bytes.
        reasons: why a row's image cannot be used, None where it can. One that has a width all the same is of a kind
            that only a `decode` function reads.
        cls: the text of each sample's `cls_member`, None where there is none.
        members: for each extension, int64 (n, 2), offset and nbytes of that member; (-1, -1) where there is none.
        without_image: int64 (s,), samples that became no row, because none of their members is an image.
        image: the extensions that count as images, as `scan` was given them.
        cls_member: "cls" or, in parquet shards without it, "label".
        kinds: how members are read whose name does not tell, "txt" or "json".
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
    digest: np.ndarray
    reasons: Texts[str | None]
    cls: Texts[str | None]
    members: dict[str, np.ndarray]
    without_image: np.ndarray
    image: str = IMAGE
    cls_member: str = "cls"
    kinds: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def bad(self) -> dict[int, str]:
        """The rows whose image cannot be used without a `decode` function, and why."""
        return self.bad_rows(decode=False)

    def bad_rows(self, *, decode: bool) -> dict[int, str]:
        """The rows whose image cannot be used, and why; with `decode`, those of a kind that is not read are none."""
        bad = self.reasons.column.is_valid().to_numpy(zero_copy_only=False)
        rows = np.flatnonzero(bad & (self.width == 0) if decode else bad)
        return dict(zip(rows.tolist(), self.reasons.take(rows).column.to_pylist(), strict=True))

    def shard_of(self, rows: np.ndarray | int) -> np.ndarray:
        """The shard, int64 (m,), that each of the rows (int64 (m,), or a single one) is in."""
        return np.searchsorted(self.starts, rows, side="right") - 1

    def rows(self, which: np.ndarray) -> Rows:
        """What a plan needs of the rows `which` (int64)."""
        shard = self.shard_of(which)
        row_id = shard.astype(np.uint64) << np.uint64(32) | (which - self.starts[shard]).astype(np.uint64)
        return Rows(row=which, row_id=row_id, width=self.width[which], height=self.height[which])

    def headers(self, which: np.ndarray) -> list[Header]:
        """The headers of the rows `which` (int64)."""
        columns = (self.width, self.height, self.orientation, self.format)
        return [Header(*header) for header in zip(*(column[which].tolist() for column in columns), strict=True)]

    def reader(self, store: ShardOpener | None = None) -> ShardReader:
        """Reads bytes of the shards, remote ones through a store's cache."""
        return ShardReader(self.shards, self.shard_bytes.tolist(), self.versions, store or ShardOpener())

    def select(self, shards: Sequence[int]) -> Index:
        """The rows of these shards, by number and in this order."""
        which = np.array(shards, np.int64)
        rows = np.concatenate([np.arange(self.starts[i], self.starts[i + 1]) for i in which] or [np.zeros(0, np.int64)])
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, column in parts.items():
            if name in _BY_SHARD:
                parts[name] = column[which]
            elif isinstance(column, Texts):
                parts[name] = column.take(rows)
            elif isinstance(column, np.ndarray) and name != "starts":
                parts[name] = column[rows]
        members = {extension: where[rows] for extension, where in self.members.items()}
        parts["members"] = {extension: where for extension, where in members.items() if (where >= 0).any()}
        parts["shards"] = tuple(self.shards[i] for i in which)
        parts["versions"] = tuple(self.versions[i] for i in which)
        parts["starts"] = np.concatenate([[0], np.cumsum(np.diff(self.starts)[which])]).astype(np.int64)
        return Index(**parts)

    @classmethod
    def concatenate(cls, parts: Sequence[Index]) -> Index:
        """All shards of all parts, in order. They were scanned with the same `image`."""
        joined: dict[str, Any] = {}
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
                        f"{kinds.get(member, 'bytes')} in another shard; load the two kinds of shards apart"
                    )
        return cls(
            **joined,
            shards=tuple(shard for part in parts for shard in part.shards),
            versions=tuple(version for part in parts for version in part.versions),
            members=members,
            image=parts[0].image,
            cls_member=next((part.cls_member for part in parts if part.cls_member in part.members), "cls"),
            kinds=kinds,
        )


_BY_SHARD = ("shard_bytes", "without_image")
