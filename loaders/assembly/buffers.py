"""Reused memory: the system zeroes each new page, which costs about as much as cutting the patches."""

from __future__ import annotations

import weakref
from collections import deque
from math import prod

import numpy as np

_LINE = 64  # bytes of a cache line; patches bypass the caches in whole lines


class BufferPool:
    """Lends uint8 arrays and takes each back once no array, view or tensor refers to its memory.

    An array holds what its last user left in it. At most `keep` idle buffers are kept, and a larger one may serve a
    smaller array. Any thread may acquire.

    >>> pool = BufferPool(keep=1)
    >>> first = pool.acquire((2, 3)); address = first.ctypes.data
    >>> row = first[1]
    >>> del first, row
    >>> pool.acquire((2, 3)).ctypes.data == address
    True
    """

    def __init__(self, keep: int | None) -> None:
        # A deque instead of a lock: the garbage collector may return memory in the middle of `acquire`.
        self._idle: deque[np.ndarray] = deque(maxlen=keep)
        self._lent: dict[int, _Loan] = {}

    def __reduce__(self) -> tuple[type[BufferPool], tuple[int | None]]:
        return BufferPool, (self._idle.maxlen,)

    def acquire(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return a contiguous uint8 array of `shape` whose first byte starts a cache line."""
        size = prod(shape)
        try:
            memory = self._idle.pop()
        except IndexError:  # checking first would let another thread take the last buffer in between
            memory = np.empty(size + _LINE, np.uint8)
        if memory.size < size + _LINE:  # the size depends on the patch size of the batch
            memory = np.empty(size + _LINE, np.uint8)
        # Every view and tensor of the array refers to `loan`: numpy follows bases down to the last array, and the base
        # of `loan` is a memoryview. Without the memoryview they would refer to `memory`, and `loan` would die at once.
        loan = np.frombuffer(memory.data, np.uint8, size, -memory.ctypes.data % _LINE)
        lent = _Loan(loan, self._take_back)
        lent.memory = memory
        self._lent[id(lent)] = lent
        view = loan.reshape(shape)
        assert view.base is loan, "memory in use would be lent a second time"
        return view

    def _take_back(self, lent: _Loan) -> None:
        del self._lent[id(lent)]
        self._idle.append(lent.memory)


class _Loan(weakref.ref[np.ndarray]):
    """Refers to an array that was lent, and to its memory. Cheaper than `weakref.finalize`."""

    __slots__ = ("memory",)
    memory: np.ndarray
