"""Files that are whole or absent."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def make_folder_of(path: str | Path) -> None:
    """Makes the folder that a file will lie in, with those above it, where it is not there.

    Raises:
        ValueError: one of them is a file.
    """
    folder = Path(path).absolute().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"{str(path)!r} cannot be written: {str(folder)!r} is no folder; give another path") from error


def atomic_write(path: str | Path, write: Callable[[BinaryIO], object], *, private: bool = False) -> None:
    """Calls `write` with an open file that becomes `path` only once it is complete and on disk.

    A reader, or the next start after a crash, finds the old content or the new, never a part. The folder must exist.
    Only its owner may read a `private` file.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     atomic_write(Path(folder, "a.txt"), lambda file: file.write(b"whole"))
    ...     Path(folder, "a.txt").read_bytes()
    b'whole'
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with open(
            temporary, "wb", opener=lambda name, flags: os.open(name, flags, 0o600 if private else 0o666)
        ) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name itself must survive a power cut
    finally:
        os.close(folder)
