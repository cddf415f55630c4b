"""The memory that a thread decodes into: used again, it lies in the caches, and the system has no page to zero."""

from __future__ import annotations

import threading
import weakref
from math import prod

import numpy as np

_KEEP = 64 * 2**20  # bytes that a thread keeps at most: an image of 22 megapixels
_LINE = 64  # bytes of a cache line


class DecodeBuffers(threading.local):
    """Lends each thread uint8 arrays, out of the same memory as soon as nothing refers to the last one any more.

    >>> scratch = DecodeBuffers()
    >>> first = scratch.acquire((2, 3)); address = first.ctypes.data
    >>> row = first[1]; del first
    >>> scratch.acquire((2, 3)).ctypes.data == address  # `row` is still in use
    False
    """

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)
        self._loan: weakref.ref[np.ndarray] | None = None

    def acquire(self, shape: tuple[int, ...]) -> np.ndarray:
        """A contiguous array of `shape`; it holds what was there before."""
        size = prod(shape)
        memory = self._memory
        if len(memory) < size + _LINE or (self._loan is not None and self._loan() is not None):
            memory = np.empty(size + _LINE, np.uint8)
            if size <= _KEEP:
                self._memory = memory
        # libjpeg-turbo writes rows that begin at a multiple of 32 bytes past the caches, out of which the patches are
        # then cut. One byte on, next to no row does; pixels of four bytes, which are read as one word, stay in place.
        start = -memory.ctypes.data % _LINE + (4 if shape[-1] == 4 else 1)
        # Every view refers to `loan`, the last array on the way down: its own base is a memoryview.
        loan = np.frombuffer(memory.data[start : start + size], np.uint8)
        if memory is self._memory:
            self._loan = weakref.ref(loan)
        return loan.reshape(shape)
