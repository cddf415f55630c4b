"""Remote files: list them, ask for size and version, download them whole, and upload them."""

from __future__ import annotations

import hashlib
import io
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patchnpack.loaders.remote.addresses import (
    MAGIC,
    check_address,
    expand_braces,
    is_http,
    name_of,
    redact,
    scheme_of,
    without_query,
)
from patchnpack.loaders.remote.backend import Backend, ObjectMeta
from patchnpack.loaders.remote.errors import INDEX_AGAIN, NoRange, PermanentError, TransientError
from patchnpack.loaders.remote.fsspec_file import FileSystemFile
from patchnpack.loaders.remote.object_store import STORES, StoredFile
from patchnpack.loaders.remote.prefetch import Shard
from patchnpack.loaders.remote.retry import RETRY, Attempts, Retry, retry


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file at an address, as `stat` found it.

    `version` is the ETag, else the time of the last change, else empty.
    """

    url: str
    nbytes: int
    version: str


def expand_remote(
    pattern: str, storage_options: Mapping[str, Any] | None = None, *, policy: Retry = RETRY
) -> list[str]:
    """The addresses that a pattern names: brace ranges in order, then the sorted matches of each `*`, `?` or `[...]`.

    Only a pattern with `*`, `?` or `[...]` asks the store for a listing. Whether a file exists, `stat` finds out.

    Raises:
        ValueError: braces name nothing, or an address names no file.
        FileNotFoundError: nothing matches the pattern.
        RemoteError: the listing failed, or the store has none (plain HTTP).

    >>> expand_remote("https://host/train-{000..001}.tar")
    ['https://host/train-000.tar', 'https://host/train-001.tar']
    """
    found: list[str] = []
    for url in expand_braces(pattern):
        check_address(url)
        path = without_query(url)
        if not (("*" in path) if is_http(url) else MAGIC.search(path)):
            found.append(url)
            continue
        matches = retry(url, policy, lambda attempts: _open(url, storage_options, policy).glob(attempts.deadline()))  # noqa: B023
        if not matches:
            raise FileNotFoundError(f"no file matches {redact(url)!r}; name shards that exist")
        found += matches
    return found


def stat(url: str, storage_options: Mapping[str, Any] | None = None, *, policy: Retry = RETRY) -> RemoteFile:
    """Ask the server for the size and version of a file.

    Args:
        url: http(s), s3, gs or az, read through obstore; hf and all other protocols that fsspec knows, through fsspec.
        storage_options: obstore's options of the store, with `client_options` and `credential_provider`; or fsspec's:
            key, secret, token, anon, endpoint_url, client_kwargs for s3; token for gs; account_name, account_key,
            sas_token, anon for az; headers for http.
        policy: how long to try.

    Raises:
        RemoteNotFound: the file does not exist.
        RemoteError: the server cannot be reached, or refuses.
        ValueError: the address or an option is invalid.
        ModuleNotFoundError: fsspec or obstore is not installed.
    """
    check_address(url)
    backend = retry(url, policy, lambda _: _open(url, storage_options, policy))
    meta = retry(url, policy, lambda attempts: backend.stat(attempts.deadline()))
    return RemoteFile(url, meta.nbytes, meta.version)


def download(
    file: RemoteFile,
    to: Path,
    storage_options: Mapping[str, Any] | None = None,
    *,
    policy: Retry = RETRY,
    stop: threading.Event | None = None,
) -> None:
    """Download a file to `to`, overwriting it.

    After a closed or stalled connection the download resumes at the last byte received. Every response must have the
    version and the size of `file`, and so must the result. Errors of the local disk propagate unchanged.

    Args:
        file: from `stat`.
        to: local path; after an error it may hold a part of the file.
        storage_options: as in `stat`.
        policy: how long to try.
        stop: cancels the download with `Stopped` at the next bytes received, after at most `stall_s`.

    Raises:
        RemoteNotFound: the file no longer exists.
        RemoteError: the file has changed, or the server cannot be reached, or refuses.
    """
    with open(to, "wb", buffering=0) as out:
        _fetch(file, out, storage_options, policy, stop)


def read(file: RemoteFile, storage_options: Mapping[str, Any] | None = None, *, policy: Retry = RETRY) -> bytes:
    """Return the bytes of a file, fetched as by `download`."""
    out = io.BytesIO()
    _fetch(file, out, storage_options, policy, None)
    return out.getvalue()


def list_below(
    folder: str, storage_options: Mapping[str, Any] | None = None, *, policy: Retry = RETRY
) -> list[tuple[str, int, str]]:
    """Return path (from the folder, with forward slashes), size and version of all files below a folder, sorted.

    Raises:
        RemoteError: the listing failed, or the store has none (plain HTTP).
        ValueError: the address is invalid.
    """
    folder = folder.rstrip("/")
    check_address(f"{folder}/file")
    backend = retry(folder, policy, lambda _: _open(folder, storage_options, policy))
    found = retry(folder, policy, lambda attempts: backend.below(attempts.deadline()))
    return sorted((path, meta.nbytes, meta.version) for path, meta in found)


def _fetch(
    file: RemoteFile, out: Any, storage_options: Mapping[str, Any] | None, policy: Retry, stop: threading.Event | None
) -> None:
    """Write a file's bytes to `out`, an empty binary file; see `download`."""
    backend = retry(file.url, policy, lambda _: _open(file.url, storage_options, policy))
    expected = ObjectMeta(file.nbytes, file.version)
    done = furthest = 0
    whole_only = False

    def fetch(attempts: Attempts) -> None:
        nonlocal done, furthest, whole_only
        if whole_only:
            out.seek(0)
            out.truncate()
            done = 0
        try:
            meta, pieces = backend.read(done, file.version, attempts.deadline())
        except NoRange:
            whole_only = True
            raise TransientError(
                "the connection was closed early, and the server does not support range requests"
            ) from None
        if meta != expected:
            raise PermanentError(f"the file has changed (it was {expected}; it is {meta})", INDEX_AGAIN)
        for piece in pieces:
            if done + len(piece) > file.nbytes:
                raise PermanentError(
                    f"the server sent more than the {file.nbytes} bytes that it announced", "fix the server"
                )
            _write(out, piece)
            done += len(piece)
            if done > furthest:
                furthest = done
                attempts.progress()
            attempts.deadline()
        if done < file.nbytes:
            raise TransientError(f"the server sent {done} of {file.nbytes} bytes")

    retry(file.url, policy, fetch, stop)


def put(url: str, data: Any, storage_options: Mapping[str, Any] | None = None, *, policy: Retry = RETRY) -> None:
    """Upload `data` (bytes, or the path of a local file) to `url`. Readers see the old file or the whole new one.

    Raises:
        RemoteError: the store refuses, or cannot be reached.
        ValueError: the address or an option is invalid.
    """
    check_address(url)
    backend = retry(url, policy, lambda _: _open(url, storage_options, policy))
    retry(url, policy, lambda attempts: backend.write(data, attempts.deadline()))


def shard(file: RemoteFile, storage_options: Mapping[str, Any] | None = None, *, policy: Retry = RETRY) -> Shard:
    """A remote file as a `Shard` that `Prefetcher` downloads into the cache."""

    def make(to: Path, stop: threading.Event) -> None:
        download(file, to, storage_options, policy=policy, stop=stop)

    return Shard(cache_name(file), make, file.nbytes)


def cache_name(file: RemoteFile) -> str:
    """The file's name in the cache: a hash of its full address, version and size, then its own name for people.

    >>> cache_name(RemoteFile("s3://bucket/train/a.tar", 10, '"e"'))[-6:]
    '-a.tar'
    """
    digest = hashlib.sha256("\0".join([file.url, file.version, str(file.nbytes)]).encode()).hexdigest()[:32]
    name = re.sub(r"[^A-Za-z0-9._-]", "_", name_of(file.url))
    return f"{digest}-{name[-80:]}"


def _open(url: str, options: Mapping[str, Any] | None, policy: Retry) -> Backend:
    backend = StoredFile if scheme_of(url) in STORES else FileSystemFile
    return backend(url, options or {}, policy.stall_s)


def _write(out: Any, piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[out.write(view) :]
