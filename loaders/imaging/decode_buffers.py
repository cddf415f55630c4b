"""Per-thread decode buffers. Reused memory stays in the CPU's caches, and the system has no new pages to zero."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import numpy as np

_KEEP = 64 * 2**20  # bytes that a thread keeps at most: an image of 22 megapixels
_LINE = 64  # bytes of a cache line
_UINT8 = np.dtype(np.uint8)

_Last = list[Any]  # memory, its size in bytes, its first cache line, a weak reference to the last array


class DecodeBuffers(threading.local):
    """Lends each thread uint8 arrays, from the same memory once nothing refers to the previous array any more.

    >>> buffers = DecodeBuffers()
    >>> first = buffers.acquire((2, 3, 3)); address = first.ctypes.data
    >>> row = first[1]; del first
    >>> buffers.acquire((2, 3, 3)).ctypes.data == address  # `row` is still in use
    False
    """

    def __init__(self) -> None:
        self._keep(bytearray())

    def _keep(self, memory: bytearray) -> None:
        start = -np.frombuffer(memory, np.uint8).ctypes.data % _LINE if memory else 0
        # A list that `acquire` changes in place: setting an attribute of a thread-local object costs a multiple.
        self._last: _Last = [memory, len(memory), start, lambda: None]

    def acquire(self, shape: tuple[int, int, int]) -> np.ndarray:
        """A contiguous array of `shape` (height, width, C), with undefined contents."""
        # libjpeg-turbo bypasses the caches for rows that begin at a multiple of 32 bytes, and patchify reads the rows
        # right after. An offset of one byte misaligns nearly all rows. Pixels of four bytes are read as one word and
        # stay aligned.
        size, offset = shape[0] * shape[1] * shape[2], 4 if shape[2] == 4 else 1
        memory, nbytes, start, loan = last = self._last
        if nbytes < size + _LINE or loan() is not None:
            if size > _KEEP:
                return np.empty(size + _LINE, np.uint8)[offset : offset + size].reshape(shape)
            self._keep(bytearray(size + _LINE))
            memory, nbytes, start, _ = last = self._last
        # Every view keeps `pixels` alive: numpy follows bases down to the last array, and its own base is a bytearray.
        pixels: np.ndarray = np.ndarray(shape, _UINT8, memory, start + offset)
        last[3] = weakref.ref(pixels)
        return pixels
