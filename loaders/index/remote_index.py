"""Index files on remote stores: finding one beside its shards, loading through the cache, and saving."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from patchnpack.loaders.index.index_file import is_index, read_index, save_index
from patchnpack.loaders.index.table import Index
from patchnpack.loaders.remote.addresses import name_of, redact, without_query
from patchnpack.loaders.remote.errors import RemoteError, RemoteNotFound
from patchnpack.loaders.shards.opener import ShardOpener
from patchnpack.loaders.shards.patterns import INDEX_NAMES

_log = logging.getLogger("patchnpack")

_absent: set[str] = set()  # addresses where this process has found no index, which are not asked for again


def names_index(address: str) -> bool:
    """Whether an address names an index, judged by its file name: any other parquet file is a shard.

    >>> names_index("s3://bucket/train/index.parquet"), names_index("s3://bucket/train/part-0.parquet")
    (True, False)
    """
    name = name_of(address)
    return name in INDEX_NAMES or name.endswith(".arrow")


def common_folder(addresses: Sequence[str]) -> str | None:
    """The deepest folder that holds all addresses; None if they share none.

    >>> common_folder(["s3://bucket/a/b/0.tar", "s3://bucket/a/1.tar"])
    's3://bucket/a'
    """
    folders = [without_query(address).split("/")[:-1] for address in addresses]
    common = [parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, zip(*folders, strict=False))]
    return "/".join(common) if len(common) > 2 else None


def find_beside(addresses: Sequence[str], opener: ShardOpener) -> list[tuple[str, Index]]:
    """The indexes in the common folder of remote shards, with their addresses.

    A store that refuses the request counts as having no index, with a line in the log: many stores answer 403 for a
    file that does not exist.

    Raises:
        RemoteError: the store cannot be reached.
    """
    folder = common_folder(addresses)
    found = []
    for url in [f"{folder}/{name}" for name in INDEX_NAMES] if folder else []:
        if url in _absent:
            continue
        try:
            index = _fetch(url, opener)
        except RemoteNotFound:
            _absent.add(url)
            continue
        except RemoteError as error:
            if not error.permanent:
                raise
            _log.info("the search for an index beside the shards is skipped: %s", error)
            break
        if index is not None:
            found.append((url, index))
    return found


def load_remote_index(url: str, opener: ShardOpener) -> Index:
    """Read the index at an address.

    Raises:
        RemoteError: the file cannot be read.
        ValueError: the file is not an index, has another version, or is damaged.
    """
    index = _fetch(url, opener)
    if index is None:
        raise ValueError(
            f"{redact(url)!r} is not an index of shards; make one: patchnpack index SHARDS -o {redact(url)}"
        )
    return index


def save_remote_index(index: Index, url: str, opener: ShardOpener) -> None:
    """Upload an index, whole or not at all. Shards in its folder or below are stored as relative paths.

    Raises:
        ValueError: the address does not end in .parquet or .arrow, or an address of a shard holds a secret.
        RemoteError: the store refuses, or cannot be reached.
    """
    check_addresses(index.shards, url)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name_of(url))
        save_index(index, path, home=without_query(url).rpartition("/")[0])
        opener.put(path, url)
    _absent.discard(url)


def check_addresses(shards: Sequence[str], url: str) -> None:
    """Raise ValueError if an index of these shards would publish passwords or signatures at `url`."""
    secret = next((shard for shard in shards if redact(shard) != shard), None)
    if secret is not None:
        raise ValueError(
            f"the address of shard {redact(secret)!r} may hold a secret, and an index at {redact(url)!r} would publish "
            "it; write the index to a local file: -o index.parquet"
        )


def _fetch(url: str, opener: ShardOpener) -> Index | None:
    """The index at an address, None if the file is something else."""
    fd = opener.fetch(url)
    try:
        file = f"/dev/fd/{fd}"
        suffix = Path(name_of(url)).suffix
        if not is_index(file, suffix):
            return None
        return read_index(file, redact(url), suffix, without_query(url).rpartition("/")[0])
    finally:
        os.close(fd)
