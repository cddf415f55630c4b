"""Memory that is used again: the system zeroes each fresh page, which costs about as much as cutting the patches."""

from __future__ import annotations

import weakref
from collections import deque
from math import prod

import numpy as np

_LINE = 64  # bytes of a cache line; patches are written past the caches in whole lines


class BufferPool:
    """Lends uint8 arrays, and takes each back when no array, view or tensor refers to its memory any more.

    Lent arrays hold what their last user left there. At most `keep` idle ones are kept, also for smaller arrays. Any
    thread may acquire.

    >>> pool = BufferPool(keep=1)
    >>> first = pool.acquire((2, 3)); address = first.ctypes.data
    >>> row = first[1]
    >>> del first, row
    >>> pool.acquire((2, 3)).ctypes.data == address
    True
    """

    def __init__(self, keep: int | None) -> None:
        # A deque and no lock: memory may come back in the middle of `acquire`, when the collector runs there.
        self._idle: deque[np.ndarray] = deque(maxlen=keep)

    def __reduce__(self) -> tuple[type[BufferPool], tuple[int | None]]:
        return BufferPool, (self._idle.maxlen,)

    def acquire(self, shape: tuple[int, ...]) -> np.ndarray:
        """A contiguous uint8 array of `shape`, its first byte at the start of a cache line."""
        size = prod(shape)
        try:
            memory = self._idle.pop()
        except IndexError:  # asked first, another thread could take the last one in between
            memory = np.empty(size + _LINE, np.uint8)
        if memory.size < size + _LINE:  # batches of other patch sizes are of other sizes
            memory = np.empty(size + _LINE, np.uint8)
        start = -memory.ctypes.data % _LINE
        # Every view and tensor of a loan refers to `loan`: numpy follows bases down to the last array, and the base of
        # this one is a memoryview. Without it they would refer to `memory`, and `loan` would end at once.
        loan = np.frombuffer(memory.data[start : start + size], np.uint8)
        weakref.finalize(loan, self._idle.append, memory).atexit = False
        view = loan.reshape(shape)
        assert view.base is loan, "memory in use would be lent again"
        return view
