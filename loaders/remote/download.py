"""Remote shards: which there are, how long and which version each is, and bringing one here whole."""

from __future__ import annotations

import hashlib
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from braceexpand import braceexpand

from patchnpack.loaders.remote.addresses import (
    CHANGED,
    MAGIC,
    NoRange,
    ObjectMeta,
    PermanentError,
    TransientError,
    redact,
    scheme_of,
)
from patchnpack.loaders.remote.fsspec_file import FileSystemFile
from patchnpack.loaders.remote.object_store import STORES, StoredFile
from patchnpack.loaders.remote.prefetch import Shard
from patchnpack.loaders.remote.retry import RETRY as RETRY
from patchnpack.loaders.remote.retry import Retry as Retry
from patchnpack.loaders.remote.shard_cache import Stopped

T = TypeVar("T")


class RemoteError(OSError):
    """A remote file could not be had: its address, what happened, in how many attempts and seconds, and the remedy.

    `lasting` says that trying again would not have helped.
    """

    lasting = False


class RemoteNotFound(RemoteError, FileNotFoundError):
    """There is no such remote file."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file at an address as it was when `stat` asked. version is its ETag, else when it was last changed, else ""."""

    url: str
    nbytes: int
    version: str


def is_remote(address: str) -> bool:
    """Whether this is an address and no local path.

    >>> is_remote("s3://bucket/a.tar"), is_remote("shards/a.tar")
    (True, False)
    """
    return "://" in address


def expand_remote(
    pattern: str, storage_options: Mapping[str, Any] | None = None, *, policy: Retry = RETRY
) -> list[str]:
    """The addresses that `pattern` names: brace ranges in their order, then for each `*`, `?` or `[...]` what a listing
    has, sorted. Without these nothing is asked for, and `stat` finds out whether the file is there.

    Raises:
        ValueError: braces that name nothing, or an address without a file in it.
        FileNotFoundError: a pattern that nothing matches.
        RemoteError: http has no listing, or listing failed.

    >>> expand_remote("https://host/train-{000..001}.tar")
    ['https://host/train-000.tar', 'https://host/train-001.tar']
    """
    try:
        urls = list(braceexpand(pattern))
    except ValueError:
        raise ValueError(
            f"{redact(pattern)!r} has a brace without its partner; write a range as {{000000..000009}}"
        ) from None
    if any("{" in url or "}" in url for url in urls):
        raise ValueError(
            f"the braces in {redact(pattern)!r} name no shard; write a range as {{000000..000009}} or {{a,b}}"
        )
    found: list[str] = []
    for url in urls:
        _check_address(url)
        http = url.lower().startswith(("http://", "https://"))
        path = re.split(r"[?#]", url, maxsplit=1)[0] if http else url
        if not (("*" in path) if http else MAGIC.search(path)):
            found.append(url)
            continue
        matches = retry(url, policy, lambda tries: _open(url, storage_options, policy).glob(tries.until()))  # noqa: B023
        if not matches:
            raise FileNotFoundError(f"no file matches {redact(url)!r}; name shards that exist")
        found += matches
    return found


def _check_address(url: str) -> None:
    scheme, _, rest = url.partition("://")
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        raise ValueError(
            f"{redact(url)!r} is no address of one file; write one as https://host/path or s3://bucket/path"
        )
    if scheme.lower() == "file":
        raise ValueError(f"{redact(url)!r} is a local file; give its path without file://")
    path = re.split(r"[?#]", rest, maxsplit=1)[0] if scheme.lower() in ("http", "https") else rest
    if path.endswith("/") or "/" not in path:
        raise ValueError(f"{redact(url)!r} names no file; name one, or several with a brace range or a *")


def stat(url: str, storage_options: Mapping[str, Any] | None = None, *, policy: Retry = RETRY) -> RemoteFile:
    """Asks how long the file at `url` is, and which version of it is there.

    Args:
        url: http(s), s3, gs or az, read by obstore; hf and every other protocol that fsspec knows, by fsspec.
        storage_options: obstore's options of the store, with `client_options` and `credential_provider`; or fsspec's:
            key, secret, token, anon, endpoint_url, client_kwargs for s3; token for gs; account_name, account_key,
            sas_token, anon for az; headers for http.
        policy: how long to try.

    Raises:
        RemoteNotFound: no such file.
        RemoteError: it cannot be had, or not in time.
        ValueError: an address or an option that cannot be.
        ModuleNotFoundError: fsspec or obstore is not installed.
    """
    _check_address(url)
    remote = retry(url, policy, lambda _: _open(url, storage_options, policy))
    facts = retry(url, policy, lambda tries: remote.stat(tries.until()))
    return RemoteFile(url, facts.nbytes, facts.version)


def download(
    file: RemoteFile,
    to: Path,
    storage_options: Mapping[str, Any] | None = None,
    *,
    policy: Retry = RETRY,
    stop: threading.Event | None = None,
) -> None:
    """Writes the file to `to`, in pieces as they come; what `to` held is lost.

    A connection that closes early or stands still is taken up where it ended. Every answer must be of the version and
    the length that `file` says, and so must what was written. Disk errors are raised as they are.

    Args:
        file: from `stat`.
        to: where; on an error something unfinished may lie there.
        storage_options: as in `stat`.
        policy: how long to try.
        stop: once set, the download ends with `Stopped` as soon as bytes come, at the latest after `stall_s`.

    Raises:
        RemoteNotFound: the file has gone.
        RemoteError: it has changed, or cannot be had, or not in time.
    """
    remote = retry(file.url, policy, lambda _: _open(file.url, storage_options, policy))
    known = ObjectMeta(file.nbytes, file.version)
    with open(to, "wb", buffering=0) as out:
        done = furthest = 0
        whole = False  # whether the server sends whole files only

        def fetch(tries: _Tries) -> None:
            nonlocal done, furthest, whole
            if whole:
                _rewind(out)
                done = 0
            try:
                facts, pieces = remote.read(done, file.version, tries.until())
            except NoRange:
                whole = True
                raise TransientError("the server sends whole files only, and the connection was closed early") from None
            if facts != known:
                raise PermanentError(f"the file has changed (it was {known}; it is {facts})", CHANGED)
            for piece in pieces:
                if done + len(piece) > file.nbytes:
                    raise PermanentError(
                        f"the server sent more than the {file.nbytes} bytes it told", "repair the server"
                    )
                _write(out, piece)
                done += len(piece)
                if done > furthest:
                    furthest = done
                    tries.failures = 0
                tries.until()
            if done < file.nbytes:
                raise TransientError(f"the server ended after {done} of {file.nbytes} bytes")

        retry(file.url, policy, fetch, stop)


def put(url: str, data: Any, storage_options: Mapping[str, Any] | None = None, *, policy: Retry = RETRY) -> None:
    """Makes `data`, bytes or a local file, the file at `url`: a reader finds what was there before, or all of it.

    Raises:
        RemoteError: the store does not take it, or not in time.
        ValueError: an address or an option that cannot be.
    """
    _check_address(url)
    remote = retry(url, policy, lambda _: _open(url, storage_options, policy))
    retry(url, policy, lambda tries: remote.write(data, tries.until()))


def shard(file: RemoteFile, storage_options: Mapping[str, Any] | None = None, *, policy: Retry = RETRY) -> Shard:
    """The file as what a `Prefetcher` brings into the cache."""

    def make(to: Path, stop: threading.Event) -> None:
        download(file, to, storage_options, policy=policy, stop=stop)

    return Shard(cache_name(file), make, file.nbytes)


def name_of(address: str) -> str:
    """The file's own name, of an address or a path.

    >>> name_of("https://host/a.tar?X-Amz-Signature=0a1b"), name_of("shards/what?.tar")
    ('a.tar', 'what?.tar')
    """
    return PurePosixPath(re.split(r"[?#]", address, maxsplit=1)[0] if is_remote(address) else address).name


def cache_name(file: RemoteFile) -> str:
    """The file's name in the cache: a hash of its full address and version, and its own name for people.

    >>> cache_name(RemoteFile("s3://bucket/train/a.tar", 10, '"e"'))[-6:]
    '-a.tar'
    """
    digest = hashlib.sha256("\0".join([file.url, file.version, str(file.nbytes)]).encode()).hexdigest()[:32]
    name = re.sub(r"[^A-Za-z0-9._-]", "_", name_of(file.url))
    return f"{digest}-{name[-80:]}"


def _open(url: str, options: Mapping[str, Any] | None, policy: Retry) -> StoredFile | FileSystemFile:
    reader = StoredFile if scheme_of(url) in STORES else FileSystemFile
    return reader(url, options or {}, policy.stall_s)


def _rewind(out: Any) -> None:
    out.seek(0)
    out.truncate()


def _write(out: Any, piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[out.write(view) :]


class _Tries:
    """Counts the attempts at one file against its policy."""

    def __init__(self, url: str, policy: Retry, stop: threading.Event | None) -> None:
        self._url, self._policy = url, policy
        self._stop = stop or threading.Event()
        self._began = time.monotonic()
        self._deadline = self._began + policy.deadline_s
        self.attempts = self.failures = 0
        self._last = ""

    def until(self) -> float:
        """The time of the deadline, which has not come yet."""
        if self._stop.is_set():
            raise Stopped(f"{redact(self._url)}: called off")
        if time.monotonic() >= self._deadline:
            raise self.given_up(TransientError(self._last or "it takes too long"))
        return self._deadline

    def failed(self, error: TransientError) -> None:
        """Pauses before the next attempt, or gives up."""
        self.failures += 1
        self._last = str(error)
        if self.failures >= self._policy.attempts:
            raise self.given_up(error)
        most = min(self._policy.max_pause_s, self._policy.pause_s * 2 ** (self.failures - 1))
        pause = most * random.uniform(0.5, 1)
        if time.monotonic() + pause >= self._deadline:
            raise self.given_up(error)
        self._stop.wait(pause)

    def given_up(self, error: TransientError | PermanentError) -> RemoteError:
        remedy = error.remedy or f"try again later, or allow more: storage_options={{'retry': ...}}, now {self._policy}"
        kind = RemoteNotFound if isinstance(error, PermanentError) and error.missing else RemoteError
        attempts = f"{self.attempts} attempt{'s'[: self.attempts != 1]}"
        seconds = time.monotonic() - self._began
        raised = kind(f"{redact(self._url)}: {error} ({attempts} in {seconds:.1f} s); {remedy}")
        raised.lasting = isinstance(error, PermanentError)
        return raised


def retry(url: str, policy: Retry, act: Callable[[_Tries], T], stop: threading.Event | None = None) -> T:
    """What `act` returns, tried again while what fails may pass."""
    tries = _Tries(url, policy, stop)
    while True:
        tries.attempts += 1
        try:
            return act(tries)
        except TransientError as error:
            failed = error
        except PermanentError as error:
            raise tries.given_up(error) from None
        tries.failed(failed)
