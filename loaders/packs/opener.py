"""`PackOpener`: opens the files of a packed folder, remote ones through the cache, and checks what it fetches."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from patchnpack.loaders.packs.arrow_file import digest_of
from patchnpack.loaders.remote import download as remote
from patchnpack.loaders.remote.addresses import name_of, redact
from patchnpack.loaders.remote.prefetch import Shard
from patchnpack.loaders.shards.opener import ShardOpener

NOT_AS_WRITTEN = (
    "is not what the manifest says: it is damaged, or of other packs; see patchnpack verify, and copy or pack the "
    "folder again"
)


class PackOpener(ShardOpener):
    """Opens the files of a packed folder, whose digests are their versions.

    The store is not asked for the version of a remote file: the fetched bytes must have the digest of the manifest.
    """

    def __reduce__(self) -> tuple[type[PackOpener], tuple[Any, ...]]:
        return PackOpener, (self.folder, self.limit, self._given)

    def with_lists(self, lists: Iterable[str]) -> ShardOpener:
        """This opener: parts are Arrow files, which are read as they are."""
        return self

    def prefetching(self, shards: Any, behind: int, at_start: bool) -> ShardOpener:
        """Return an opener of the same kind that fetches files ahead; see `ShardOpener.prefetching`."""
        return self._prefetching(PackOpener(self.folder, self.limit, self._given), shards, behind, at_start)

    def has_changed(self, shard: str, version: str) -> bool:
        """Return False: the digest of each image says more than the time of a file."""
        return False

    def _raw(self, shard: str, nbytes: int, version: str) -> Shard:
        def make(to: Path, stop: threading.Event) -> None:
            file = remote.stat(shard, self._options, policy=self._retry)
            if file.nbytes == nbytes:
                remote.download(file, to, self._options, policy=self._retry, stop=stop)
            if file.nbytes != nbytes or digest_of(to.read_bytes()) != version:
                raise OSError(f"{redact(shard)} {NOT_AS_WRITTEN}")

        return Shard(f"{version}-{name_of(shard)}", self._counted(make), nbytes)
