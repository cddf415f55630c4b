"""What the readers of remote files have in common: facts, the two kinds of failure, and addresses without secrets."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Options = Mapping[str, Any]

MAGIC = re.compile(r"[*?[]")
CHANGED = "make a new index of it, or a new loader"


class TransientError(Exception):
    """What failed may work when tried again."""

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(what)
        self.remedy = remedy


class PermanentError(Exception):
    """Trying again would not help."""

    def __init__(self, what: str, remedy: str, *, missing: bool = False, status: int | None = None) -> None:
        super().__init__(what)
        self.remedy, self.missing, self.status = remedy, missing, status


class NoRange(Exception):
    """The server sends whole files only."""


@dataclass(frozen=True, slots=True)
class ObjectMeta:
    """What a server says of a file; version is its ETag, else when it was last changed, else empty."""

    nbytes: int
    version: str

    def __str__(self) -> str:
        return f"{self.nbytes} bytes, {self.version or 'without a version'}"


def scheme_of(address: str) -> str:
    """The protocol of an address."""
    return address.partition("://")[0].lower()


def redact(address: str) -> str:
    """The address without what may be a secret: user and password, query and fragment.

    >>> redact("https://me:word@host/a.tar?X-Amz-Signature=0a1b")
    'https://host/a.tar?...'
    """
    address = re.sub(r"(?<=://)[^/?#]*:[^/?#]*@", "", address)
    if scheme_of(address) in ("http", "https"):
        address = re.sub(r"(?<=://)[^/?#]*@", "", address)
        return re.sub(r"[?#].*", "?...", address, flags=re.DOTALL)
    return re.sub(r"\?[\w.-]+=.*", "?...", address, flags=re.DOTALL)


def import_optional(module: str) -> Any:
    """A module of the extra that remote shards need; nothing imports it before they are asked for."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name not in (module, module.partition(".")[0]):
            raise
        raise ModuleNotFoundError(
            f"remote shards need {module}, which is not installed: pip install 'patchnpack[remote]'", name=error.name
        ) from None
