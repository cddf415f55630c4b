"""Per-thread decode buffers. Reused memory stays in the CPU's caches, and the system has no new pages to zero."""

from __future__ import annotations

import threading
import weakref
from math import prod

import numpy as np

_KEEP = 64 * 2**20  # bytes that a thread keeps at most: an image of 22 megapixels
_LINE = 64  # bytes of a cache line


class DecodeBuffers(threading.local):
    """Lends each thread uint8 arrays, from the same memory once nothing refers to the previous array any more.

    >>> buffers = DecodeBuffers()
    >>> first = buffers.acquire((2, 3)); address = first.ctypes.data
    >>> row = first[1]; del first
    >>> buffers.acquire((2, 3)).ctypes.data == address  # `row` is still in use
    False
    """

    def __init__(self) -> None:
        self._keep(np.empty(0, np.uint8))

    def _keep(self, memory: np.ndarray) -> None:
        self._memory, self._start = memory.data, -memory.ctypes.data % _LINE
        self._loan: weakref.ref[np.ndarray] | None = None

    def acquire(self, shape: tuple[int, ...]) -> np.ndarray:
        """A contiguous array of `shape`, with undefined contents."""
        # libjpeg-turbo bypasses the caches for rows that begin at a multiple of 32 bytes, and patchify reads the rows
        # right after. An offset of one byte misaligns nearly all rows. Pixels of four bytes are read as one word and
        # stay aligned.
        size, offset = prod(shape), 4 if shape[-1] == 4 else 1
        if len(self._memory) < size + _LINE or (self._loan is not None and self._loan() is not None):
            memory = np.empty(size + _LINE, np.uint8)
            if size > _KEEP:
                return memory[offset : offset + size].reshape(shape)
            self._keep(memory)
        # Every view keeps `loan` alive: numpy collapses bases down to the last array, whose own base is a memoryview.
        loan = np.frombuffer(self._memory, np.uint8, size, self._start + offset)
        self._loan = weakref.ref(loan)
        return loan.reshape(shape)
