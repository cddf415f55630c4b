"""The decoders of imagecodecs, imported once an image needs them, and the messages that they log."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable
from typing import Any


class _Messages(threading.local):
    """What the decoders of this thread have logged.

    Attributes:
        is_decoding: whether a decoder runs for the loader; messages of other calls are not touched.
        found: the messages since they were taken.
    """

    def __init__(self) -> None:
        self.is_decoding = False
        self.found: list[str] = []


_messages = _Messages()


@functools.cache
def codec(name: str) -> Callable[..., Any]:
    """A function of imagecodecs; the first call imports imagecodecs, which takes a tenth of a second.

    Its errors are ValueErrors; those of imagecodecs are RuntimeErrors, which anything may raise. What it logs is kept
    for `take_messages`.
    """
    import imagecodecs

    function: Callable[..., Any] = getattr(imagecodecs, name)
    logger = logging.getLogger("imagecodecs")
    logger.addFilter(_keep)
    if logger.level == logging.NOTSET:  # what is counted must not depend on the level of the root logger
        logger.setLevel(logging.WARNING)

    def call(*arguments: Any, **options: Any) -> Any:
        _messages.is_decoding = True
        try:
            return function(*arguments, **options)
        except RuntimeError as error:
            raise ValueError(str(error)) from error
        finally:
            _messages.is_decoding = False

    return call


def take_messages() -> list[str]:
    """What decoders have logged in this thread since the last call."""
    taken, _messages.found = _messages.found, []
    return taken


def _keep(record: logging.LogRecord) -> bool:
    """Keep the message of a decoder that runs for the loader; return whether it is logged."""
    if _messages.is_decoding:
        _messages.found.append(record.getMessage())
    return not _messages.is_decoding and record.levelno >= logging.getLogger().getEffectiveLevel()
