"""`Texts`: a column of strings in Arrow memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar, overload

import numpy as np
import pyarrow as pa

# n strings

T = TypeVar("T", str, str | None)


class Texts(Sequence[T]):
    """A column of n strings or None in Arrow memory: a few bytes per string of overhead, where a list has 60.

    >>> Texts.of(["a", None])[1] is None
    True
    """

    def __init__(self, column: pa.LargeStringArray) -> None:
        self.column = column
        # Read without Arrow's functions: another thread may hold their locks when the process is forked.
        self._valid, offsets, text = column.buffers()
        self._first = column.offset
        self._ends = np.frombuffer(offsets, np.int64) if offsets is not None and offsets.size else np.zeros(1, np.int64)
        self._text = memoryview(text if text is not None else b"")

    def __reduce__(self) -> tuple[type[Texts[T]], tuple[pa.LargeStringArray]]:
        return type(self), (self.column,)

    @classmethod
    def of(cls, texts: Iterable[T]) -> Texts[T]:
        """A column of these strings."""
        values: list[Any] = list(texts)
        try:
            return cls(pa.array(values, pa.large_string()))
        except UnicodeEncodeError:  # names of files may hold any bytes
            data = [None if text is None else text.encode("utf-8", "surrogateescape") for text in values]
            return cls(pa.array(data, pa.large_binary()).view(pa.large_string()))

    def __len__(self) -> int:
        return len(self.column)

    @overload
    def __getitem__(self, i: int) -> T: ...
    @overload
    def __getitem__(self, i: slice) -> list[T]: ...
    def __getitem__(self, i: int | slice) -> Any:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(f"index {i} is out of range for {len(self)} strings")
        at = int(i) % len(self) + self._first
        if self._valid is not None and not self._valid[at >> 3] >> (at & 7) & 1:
            return None
        return str(self._text[int(self._ends[at]) : int(self._ends[at + 1])], "utf-8", "surrogateescape")

    def listed(self, which: np.ndarray) -> list[T]:
        """The strings at positions `which`, int64 (m,), in less time than one by one."""
        at = which + self._first
        begins, ends = self._ends[at].tolist(), self._ends[at + 1].tolist()
        text: list[Any] = [
            str(self._text[begin:end], "utf-8", "surrogateescape") for begin, end in zip(begins, ends, strict=True)
        ]
        if self._valid is not None:
            for i, j in enumerate(at.tolist()):
                if not self._valid[j >> 3] >> (j & 7) & 1:
                    text[i] = None
        return text

    def take(self, which: np.ndarray) -> Texts[T]:
        """The strings at positions `which`, int64 (m,)."""
        return Texts(self.column.take(pa.array(which)))


class TextsBuilder:
    """Collects strings for a column, a few thousand at a time, so that few exist as Python objects."""

    _CHUNK = 4096

    def __init__(self) -> None:
        self._waiting: list[str] = []
        self._done: list[pa.LargeStringArray] = []

    def add(self, text: str) -> None:
        """Append a string."""
        self._waiting.append(text)
        if len(self._waiting) == self._CHUNK:
            self._flush()

    def build(self) -> Texts[str]:
        """Return the column of all strings so far."""
        self._flush()
        return Texts(pa.concat_arrays(self._done))

    def _flush(self) -> None:
        self._done.append(Texts.of(self._waiting).column)
        self._waiting = []
