"""Output folders, local or in an object store. Each file in them is whole or absent."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from patchnpack.loaders.remote import download as remote
from patchnpack.loaders.remote.addresses import check_not_file, is_http, is_remote, name_of, redact
from patchnpack.loaders.remote.errors import RemoteNotFound
from patchnpack.loaders.remote.retry import take_retry
from patchnpack.packer.files import atomic_write

_TEMPORARY = (".", ".tmp")  # prefix and suffix of the unfinished files of `atomic_write`


class Folder(Protocol):
    """Files by name; a name is a file or a file in one sub-folder.

    Attributes:
        address: path or address of the folder, without a trailing slash.
    """

    address: str

    def write(self, name: str, data: Any) -> None:
        """Replace the file's content by `data`; on OSError the old content stays."""
        ...

    def read(self, name: str) -> bytes | None:
        """The file's content, None if the file is absent."""
        ...

    def names(self, under: str, suffix: str) -> list[str]:
        """The sorted names, without folder, of the files in the sub-folder `under` that end in `suffix`."""
        ...

    def sweep(self, under: str) -> None:
        """Delete what interrupted writers have left in the sub-folder `under`."""
        ...


def open_folder(address: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> Folder:
    """The folder at a path or an address; it may not exist yet."""
    text = os.fspath(address).rstrip("/")
    if not text:
        raise ValueError(f"the folder is {os.fspath(address)!r}; name a folder, such as packed/train")
    check_not_file(text)
    return RemoteFolder(text, storage_options) if is_remote(text) else LocalFolder(os.path.expanduser(text))


class LocalFolder:
    """A folder on a local or shared file system."""

    def __init__(self, address: str) -> None:
        self.address = address

    def write(self, name: str, data: Any) -> None:
        path = Path(self.address, name)
        try:
            _make_folder(path.parent)
            atomic_write(path, lambda file: file.write(data))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise OSError(
                error.errno,
                f"no room for {str(path)!r} ({len(memoryview(data))} bytes): {error.strerror}. Finished files "
                "are kept: make room and run the same command again",
            ) from error

    def read(self, name: str) -> bytes | None:
        try:
            return Path(self.address, name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def names(self, under: str, suffix: str) -> list[str]:
        try:
            return sorted(
                name
                for name in os.listdir(os.path.join(self.address, under))
                if name.endswith(suffix) and not _is_temporary(name)
            )
        except (FileNotFoundError, NotADirectoryError):
            return []

    def sweep(self, under: str) -> None:
        folder = Path(self.address, under)
        for name in os.listdir(folder) if folder.is_dir() else ():
            if _is_temporary(name):
                (folder / name).unlink(missing_ok=True)


class RemoteFolder:
    """A prefix in an object store, or a folder of an fsspec file system."""

    def __init__(self, address: str, options: Mapping[str, Any] | None) -> None:
        self.address = address
        self._retry, self._options = take_retry(options)

    def write(self, name: str, data: Any) -> None:
        remote.put(f"{self.address}/{name}", data, self._options, policy=self._retry)

    def read(self, name: str) -> bytes | None:
        try:
            file = remote.stat(f"{self.address}/{name}", self._options, policy=self._retry)
            with tempfile.TemporaryDirectory() as folder:
                remote.download(file, Path(folder, "file"), self._options, policy=self._retry)
                return Path(folder, "file").read_bytes()
        except RemoteNotFound:
            return None

    def names(self, under: str, suffix: str) -> list[str]:
        try:
            pattern = "/".join(filter(None, [self.address, under, "*" + suffix]))
            found = remote.expand_remote(pattern, self._options, policy=self._retry)
        except FileNotFoundError:
            return []
        return [name_of(address) for address in found]

    def sweep(self, under: str) -> None:
        """Do nothing: an interrupted put leaves nothing behind."""


def check_writable(folder: Folder) -> None:
    """Raise ValueError if the folder cannot be written to."""
    if is_http(folder.address):
        raise ValueError(f"{redact(folder.address)!r} is a web server; write to a local folder, s3, gs, az or hf")
    if isinstance(folder, LocalFolder) and os.path.exists(folder.address) and not os.path.isdir(folder.address):
        raise ValueError(f"{folder.address!r} is a file; name a folder for the packs")


def _make_folder(path: Path) -> None:
    if path.is_dir():
        return
    _make_folder(path.parent)
    path.mkdir(exist_ok=True)
    parent = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def _is_temporary(name: str) -> bool:
    return name.startswith(_TEMPORARY[0]) and name.endswith(_TEMPORARY[1])
