"""Remote files through fsspec: hf:// and every protocol that obstore does not read."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from patchnpack.loaders.remote.addresses import scheme_of
from patchnpack.loaders.remote.backend import ObjectMeta, Options, import_optional
from patchnpack.loaders.remote.errors import INDEX_AGAIN, PermanentError, TransientError

T = TypeVar("T")

_PIECE = 8 << 20  # bytes per read

# The metadata fields in which fsspec's file systems report a version, the most reliable first.
_VERSION_FIELDS = (
    "ETag", "etag", "e_tag", "sha256", "blob_id", "md5Hash", "content_md5", "version_id", "generation", "mtime",
    "last_modified", "LastModified", "updated", "created",
)  # fmt: skip


class FileSystemFile:
    """A file of an fsspec file system: the `Backend` for all protocols but those of `STORES`."""

    def __init__(self, url: str, options: Options, stall_s: float) -> None:
        self._stall_s = stall_s
        fsspec = import_optional("fsspec")
        try:
            self._system, self._path = fsspec.core.url_to_fs(url, **options)
        except ImportError as error:
            package = "huggingface_hub" if scheme_of(url) == "hf" else "the package named here"
            raise PermanentError(f"{scheme_of(url)}:// cannot be read ({error})", f"pip install {package}") from None
        except ValueError as error:
            if "Protocol not known" not in str(error):
                raise
            raise PermanentError(
                f"the protocol {scheme_of(url)}:// is unknown", "use http(s), s3, gs, az, hf or one known to fsspec"
            ) from None
        except OSError as error:  # some file systems connect when they are created
            raise TransientError(f"connecting failed with {type(error).__name__}") from None

        # A synchronous file system opens the file for each piece, and would discard what it had read ahead.
        self._read_options = {} if self._system.async_impl else {"cache_type": "none"}

    def stat(self, deadline: float) -> ObjectMeta:
        info = self._within(deadline, lambda: self._system.info(self._path))
        if info.get("type") == "directory":
            raise PermanentError("this is a folder", "name its shards with a * or a brace range")
        if info.get("size") is None:
            raise PermanentError("the server does not report the file's size", "serve it with a Content-Length header")
        return _object_meta(info)

    def read(self, start: int, version: str, deadline: float) -> tuple[ObjectMeta, Iterator[bytes]]:
        meta = self.stat(deadline)
        return meta, self._pieces(start, meta, deadline)

    def _pieces(self, start: int, meta: ObjectMeta, deadline: float) -> Iterator[bytes]:
        while start < meta.nbytes:
            begin, end = start, min(start + _PIECE, meta.nbytes)
            piece = self._within(deadline, lambda: self._system.cat_file(self._path, begin, end, **self._read_options))  # noqa: B023
            if not piece:
                return
            start += len(piece)
            if start == meta.nbytes:  # fsspec has no If-Match, so the version is compared again at the end
                self._system.invalidate_cache()
                if (now := self.stat(deadline)) != meta:
                    raise PermanentError(
                        f"the file has changed during the download (it was {meta}; it is {now})", INDEX_AGAIN
                    )
            yield piece

    def write(self, data: Any, deadline: float) -> None:
        if isinstance(data, Path):
            self._within(deadline, lambda: self._system.put_file(str(data), self._path), deadline - time.monotonic())
        else:
            self._within(deadline, lambda: self._system.pipe_file(self._path, bytes(data)))
        self._system.invalidate_cache()

    def glob(self, deadline: float) -> list[str]:
        names = self._within(deadline, lambda: self._system.glob(self._path))
        return sorted(self._system.unstrip_protocol(name) for name in names)

    def below(self, deadline: float) -> list[tuple[str, ObjectMeta]]:
        self._system.invalidate_cache()
        found = self._within(deadline, lambda: self._system.find(self._path, detail=True))
        start = len(self._path.rstrip("/")) + 1
        return [(name[start:], _object_meta(info)) for name, info in found.items() if info.get("size") is not None]

    def _within(self, deadline: float, call: Callable[[], T], stall_s: float | None = None) -> T:
        """The result of `call` from a thread that is abandoned after `stall_s`; fsspec has no common timeout."""
        stall_s = self._stall_s if stall_s is None else stall_s
        result: list[T] = []
        failure: list[BaseException] = []

        def run() -> None:
            try:
                result.append(call())
            except BaseException as error:  # noqa: BLE001 - handled below, in the calling thread
                failure.append(error)

        thread = threading.Thread(target=run, name="patchnpack-fsspec", daemon=True)
        thread.start()
        thread.join(max(0.0, min(stall_s, deadline - time.monotonic())))
        if result:
            return result[0]
        if not failure:
            raise TransientError(f"no bytes for {stall_s:g} s, or the deadline has passed")
        error = failure[0]
        if isinstance(error, FileNotFoundError):
            raise PermanentError("no such file", "correct the address", missing=True) from None
        if isinstance(error, PermissionError):
            raise PermanentError("access was denied", "give credentials in storage_options") from None
        if isinstance(error, Exception) and not isinstance(error, TypeError | ValueError | NotImplementedError):
            raise TransientError(f"the file system failed with {type(error).__name__}") from None
        raise error


def _object_meta(info: Any) -> ObjectMeta:
    value = next((info[name] for name in _VERSION_FIELDS if info.get(name)), "")
    # Some listings give a time as a number of seconds, where the file's own entry has a datetime.
    return ObjectMeta(int(info["size"]), str(value.timestamp() if isinstance(value, datetime) else value))
