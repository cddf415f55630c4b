"""An index on a remote store, beside its shards or anywhere else: found, fetched through the cache, and put there."""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from patchnpack.loaders.index.index_file import is_index, read_index, save_index
from patchnpack.loaders.index.table import Index
from patchnpack.loaders.remote.addresses import redact, scheme_of
from patchnpack.loaders.remote.download import RemoteError, RemoteNotFound, name_of
from patchnpack.loaders.shards.opener import ShardOpener
from patchnpack.loaders.shards.reader import INDEX_NAMES

_log = logging.getLogger("patchnpack")

_absent: set[str] = set()  # addresses at which this process has found no index: asked for once


def names_index(address: str) -> bool:
    """Whether an address is that of an index, by its name: other parquet files hold images.

    >>> names_index("s3://bucket/train/index.parquet"), names_index("s3://bucket/train/part-0.parquet")
    (True, False)
    """
    name = name_of(address)
    return name in INDEX_NAMES or name.endswith(".arrow")


def common_folder(addresses: Sequence[str]) -> str | None:
    """The folder that all addresses lie in or below, None where they have none in common.

    >>> common_folder(["s3://bucket/a/b/0.tar", "s3://bucket/a/1.tar"])
    's3://bucket/a'
    """
    folders = [_path(address).split("/")[:-1] for address in addresses]
    common = [parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, zip(*folders, strict=False))]
    return "/".join(common) if len(common) > 2 else None


def find_beside(addresses: Sequence[str], store: ShardOpener) -> list[tuple[str, Index]]:
    """The indexes that lie in the common folder of remote shards, with their addresses.

    A store that refuses to say whether there is one (many answer 403 for what does not exist) is taken to have none,
    and the log says so.

    Raises:
        RemoteError: the store cannot be reached.
    """
    folder = common_folder(addresses)
    found = []
    for url in [f"{folder}/{name}" for name in INDEX_NAMES] if folder else []:
        if url in _absent:
            continue
        try:
            index = _fetch(url, store)
        except RemoteNotFound:
            _absent.add(url)
            continue
        except RemoteError as error:
            if not error.permanent:
                raise
            _log.info("no index is looked for beside the shards: %s", error)
            break
        if index is not None:
            found.append((url, index))
    return found


def load_remote_index(url: str, store: ShardOpener) -> Index:
    """Reads the index at an address.

    Raises:
        RemoteError: it cannot be had.
        ValueError: it is no index, of another version, or damaged.
    """
    index = _fetch(url, store)
    if index is None:
        raise ValueError(f"{redact(url)!r} is no index of shards; make one: patchnpack index SHARDS -o {redact(url)}")
    return index


def save_remote_index(index: Index, url: str, store: ShardOpener) -> None:
    """Puts an index at an address, whole or not at all; shards in its folder, or below, are named from there.

    Raises:
        ValueError: an address that does not end in .parquet or .arrow, or shards whose own addresses hold secrets.
        RemoteError: the store does not take it.
    """
    check_addresses(index.shards, url)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name_of(url))
        save_index(index, path, home=_path(url).rpartition("/")[0])
        store.put(path, url)
    _absent.discard(url)


def check_addresses(shards: Sequence[str], url: str) -> None:
    """ValueError where an index of these shards at an address would publish passwords or signatures."""
    secret = next((shard for shard in shards if redact(shard) != shard), None)
    if secret is not None:
        raise ValueError(
            f"the address of shard {redact(secret)!r} holds what may be a secret, and an index at {redact(url)!r} "
            "would tell it to all who read that; write the index to a local file: -o index.parquet"
        )


def _fetch(url: str, store: ShardOpener) -> Index | None:
    """The index at an address, None where something else lies there."""
    fd = store.fetch(url)
    try:
        file = f"/dev/fd/{fd}"
        ending = Path(name_of(url)).suffix
        return read_index(file, redact(url), ending, _path(url).rpartition("/")[0]) if is_index(file, ending) else None
    finally:
        os.close(fd)


def _path(address: str) -> str:
    return re.split(r"[?#]", address, maxsplit=1)[0] if scheme_of(address) in ("http", "https") else address
