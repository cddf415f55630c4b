"""`FileReader`: reads shards, some of which are folders or tables of files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import xxhash

from patchnpack.loaders.files.table import FileTable
from patchnpack.loaders.remote.addresses import is_remote
from patchnpack.loaders.shards.opener import ShardOpener
from patchnpack.loaders.shards.outside import Outside
from patchnpack.loaders.shards.reader import ShardReader


class FileReader(ShardReader):
    """A `ShardReader` for which some shards are tables of files: each read of one opens, reads and closes a file.

    Args:
        shards, sizes, versions, opener, max_open, outside: as for `ShardReader`.
        tables: the files of each shard; None for a shard that is a single file.
    """

    def __init__(
        self,
        shards: Sequence[str],
        sizes: Sequence[int],
        versions: Sequence[str],
        opener: ShardOpener,
        max_open: int = 64,
        outside: Outside | None = None,
        tables: Sequence[FileTable | None] = (),
    ) -> None:
        super().__init__(shards, sizes, versions, opener, max_open, outside)
        self._tables = tables

    def __reduce__(self) -> tuple[type[FileReader], tuple[object, ...]]:
        return FileReader, (*super().__reduce__()[1], self._tables)

    @property
    def is_remote(self) -> bool:
        """Whether shards are fetched whole: any of those that are single files is remote."""
        return any(table is None and is_remote(shard) for shard, table in zip(self._shards, self._tables, strict=True))

    def prefetching(self, order: Iterable[int], behind: int, at_start: bool) -> FileReader:
        """A reader that fetches remote shards ahead, in the order in which they will be read; see `Prefetcher`."""
        single = (i for i in order if self._tables[i] is None)
        opener = super().prefetching(single, behind, at_start).opener
        return FileReader(
            *(self._shards, self._sizes, self._versions, opener, self._max_open),
            outside=self._outside,
            tables=self._tables,
        )

    def read(self, shard: int, offset: int, nbytes: int) -> bytes:
        """Read `nbytes` bytes of a shard from `offset`; of a table of files, the whole file of that number.

        Raises:
            OSError: a file has changed since it was indexed. An image's bytes are for the caller to compare.
        """
        table = self._tables[shard]
        return super().read(shard, offset, nbytes) if table is None else table.read(offset, nbytes, self.opener)

    def read_member(self, shard: int, offset: int, nbytes: int) -> bytes:
        """Read a member that has no digest in the index, and compare a file with the digest in its table."""
        table = self._tables[shard]
        data = self.read(shard, offset, nbytes)
        if table is None or offset >= len(table):
            return data
        return table.checked(offset, data, xxhash.xxh3_64_intdigest)

    def modified(self, shard: int, offset: int) -> str | None:
        """Return what to say if the file that holds byte `offset` of a shard was modified; None if it was not."""
        table = self._tables[shard]
        return super().modified(shard, offset) if table is None else table.modified(offset, self.opener)
