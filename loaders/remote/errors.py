"""Errors of remote files: what users see, and the internal ones that say whether a retry can help."""

from __future__ import annotations

INDEX_AGAIN = "update the index, or create a new loader"  # the remedy for a file that has changed


class RemoteError(OSError):
    """A remote file cannot be read or written: its address, the reason, attempts and seconds, and the remedy.

    `permanent` says that a retry would not have helped.
    """

    permanent = False


class RemoteNotFound(RemoteError, FileNotFoundError):
    """The remote file does not exist."""


class TransientError(Exception):
    """A failure after which a retry may succeed; `remedy` is for the message once retries end."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.remedy = remedy


class PermanentError(Exception):
    """A failure that a retry would repeat; `missing` says that the file does not exist, `status` is of HTTP."""

    def __init__(self, reason: str, remedy: str, *, missing: bool = False, status: int | None = None) -> None:
        super().__init__(reason)
        self.remedy, self.missing, self.status = remedy, missing, status


class NoRange(Exception):
    """The server does not support range requests."""
