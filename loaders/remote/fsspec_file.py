"""Remote files that obstore does not reach, hf:// among them, through fsspec."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from patchnpack.loaders.remote.addresses import (
    CHANGED,
    ObjectMeta,
    Options,
    PermanentError,
    TransientError,
    import_optional,
    scheme_of,
)

T = TypeVar("T")

_PIECE = 8 << 20


class FileSystemFile:
    """A file of a file system of fsspec."""

    def __init__(self, url: str, options: Options, stall_s: float) -> None:
        self._stall_s = stall_s
        fsspec = import_optional("fsspec")
        try:
            self._system, self._path = fsspec.core.url_to_fs(url, **options)
        except ImportError as error:
            package = "huggingface_hub" if scheme_of(url) == "hf" else "the package that it names"
            raise PermanentError(f"{scheme_of(url)}:// cannot be read ({error})", f"pip install {package}") from None
        except ValueError as error:
            if "Protocol not known" not in str(error):
                raise
            raise PermanentError(
                f"no file system is known for {scheme_of(url)}://", "use http(s), s3, gs, az, hf or one known to fsspec"
            ) from None
        except OSError as error:  # some connect at once
            raise TransientError(f"connecting failed with {type(error).__name__}") from None

        # What reads by opening a file would read ahead, and throw that away after each piece.
        self._as_it_is = {} if self._system.async_impl else {"cache_type": "none"}

    def stat(self, until: float) -> ObjectMeta:
        info = self._within(until, lambda: self._system.info(self._path))
        if info.get("type") == "directory":
            raise PermanentError("this is a folder", "name its shards, with a * or a brace range")
        if info.get("size") is None:
            raise PermanentError("the server does not say how long the file is", "serve it with a Content-Length")
        return ObjectMeta(int(info["size"]), next((str(info[name]) for name in _VERSIONS if info.get(name)), ""))

    def read(self, start: int, version: str, until: float) -> tuple[ObjectMeta, Iterator[bytes]]:
        facts = self.stat(until)
        return facts, self._pieces(start, facts, until)

    def _pieces(self, start: int, facts: ObjectMeta, until: float) -> Iterator[bytes]:
        while start < facts.nbytes:
            begin, end = start, min(start + _PIECE, facts.nbytes)
            piece = self._within(until, lambda: self._system.cat_file(self._path, begin, end, **self._as_it_is))  # noqa: B023
            if not piece:
                return
            start += len(piece)
            if start == facts.nbytes:  # there is no If-Match here: the version is asked for again at the end
                self._system.invalidate_cache()
                if (now := self.stat(until)) != facts:
                    raise PermanentError(f"the file changed while it was read (it was {facts}; it is {now})", CHANGED)
            yield piece

    def write(self, data: Any, until: float) -> None:
        """Puts bytes, or a local file, there."""
        if isinstance(data, Path):
            self._within(until, lambda: self._system.put_file(str(data), self._path), until - time.monotonic())
        else:
            self._within(until, lambda: self._system.pipe_file(self._path, bytes(data)))
        self._system.invalidate_cache()

    def glob(self, until: float) -> list[str]:
        names = self._within(until, lambda: self._system.glob(self._path))
        return sorted(self._system.unstrip_protocol(name) for name in names)

    def _within(self, until: float, call: Callable[[], T], stall_s: float | None = None) -> T:
        """The call's result; a file system of fsspec has no common way to limit the time a call takes."""
        stall_s = self._stall_s if stall_s is None else stall_s
        result: list[T] = []
        failed: list[BaseException] = []

        def run() -> None:
            try:
                result.append(call())
            except BaseException as error:  # noqa: BLE001 - looked at below, in the thread that waits
                failed.append(error)

        thread = threading.Thread(target=run, name="patchnpack-fsspec", daemon=True)
        thread.start()
        thread.join(max(0.0, min(stall_s, until - time.monotonic())))
        if result:
            return result[0]
        if not failed:
            raise TransientError(f"nothing came for {stall_s:g} s, or the deadline passed")
        error = failed[0]
        if isinstance(error, FileNotFoundError):
            raise PermanentError("no such file", "correct the address", missing=True) from None
        if isinstance(error, PermissionError):
            raise PermanentError("access was refused", "give credentials in storage_options") from None
        if isinstance(error, Exception) and not isinstance(error, TypeError | ValueError | NotImplementedError):
            raise TransientError(f"the file system failed with {type(error).__name__}") from None
        raise error


# What the file systems of fsspec call the thing that changes with a file's bytes.
_VERSIONS = (
    "ETag", "etag", "e_tag", "sha256", "blob_id", "md5Hash", "content_md5", "version_id", "generation", "mtime",
    "last_modified", "LastModified", "updated", "created",
)  # fmt: skip
