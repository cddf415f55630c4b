"""What the two backends for remote files have in common: obstore (`object_store`) and fsspec (`fsspec_file`)."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

Options = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ObjectMeta:
    """What a server says about a file; `version` is the ETag, else the time of the last change, else empty."""

    nbytes: int
    version: str

    def __str__(self) -> str:
        return f"{self.nbytes} bytes, {self.version or 'without a version'}"


class Backend(Protocol):
    """One remote file. Each call is a single attempt that ends by `deadline`, a time of `time.monotonic`.

    Calls raise `TransientError` or `PermanentError`.
    """

    def stat(self, deadline: float) -> ObjectMeta:
        """The size and version of the file now."""
        ...

    def read(self, start: int, version: str, deadline: float) -> tuple[ObjectMeta, Iterator[bytes]]:
        """The file's metadata and its bytes from `start` on, in pieces; raises `NoRange` if the server has none."""
        ...

    def write(self, data: Any, deadline: float) -> None:
        """Upload bytes, or the local file at a `Path`."""
        ...

    def glob(self, deadline: float) -> list[str]:
        """The addresses that match this one as a pattern, sorted."""
        ...

    def below(self, deadline: float) -> list[tuple[str, ObjectMeta]]:
        """All files below this address as a folder: the path from there, and what the server says about it."""
        ...


def import_optional(module: str) -> Any:
    """Import a module of the `remote` extra, on first use.

    Raises:
        ModuleNotFoundError: the extra is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name not in (module, module.partition(".")[0]):
            raise
        raise ModuleNotFoundError(
            f"remote shards need {module}, which is not installed: pip install 'patchnpack[remote]'", name=error.name
        ) from None
