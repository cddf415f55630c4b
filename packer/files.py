"""Files: atomic writes, in which a file is complete or absent, and why a path cannot be read or written."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def make_folder_of(path: str | Path) -> None:
    """Make the parent folder of a file, and its parents, where they do not exist.

    Raises:
        ValueError: a parent is a file.
    """
    folder = Path(path).absolute().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(
            f"{str(path)!r} cannot be written: {str(folder)!r} is not a folder; give another path"
        ) from error


def absent(path: str) -> str:
    """Return "does not exist", or where a dangling link points.

    >>> absent("train-000.tar")
    'does not exist'
    """
    for part in (path, *map(str, Path(path).parents)):
        if os.path.islink(part) and not os.path.exists(part):
            its = "is a link" if part == path else f"is below {part!r}, a link"
            return f"{its} to {os.readlink(part)!r}, which does not exist"
    return "does not exist"


def atomic_write(path: str | Path, write: Callable[[BinaryIO], object], *, private: bool = False) -> None:
    """Call `write` with an open file that replaces `path` only once it is complete and on disk.

    Readers, also after a crash, find either the old content or the new, never a part. The folder must exist. A
    `private` file is readable by its owner only.

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
        os.fsync(folder)  # the rename itself must survive a power cut
    finally:
        os.close(folder)
