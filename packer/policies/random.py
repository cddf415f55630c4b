"""Counter-based randomness.

A draw depends on its purpose and counter, never on call order, thread or process.
"""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache

import numpy as np

from patchnpack.packer import _kernels

_MASK = (1 << 64) - 1


class Purpose(IntEnum):
    """The purpose of a draw; two purposes never share one."""

    SHARD_ORDER = 1
    ROW_ORDER = 2
    TOKEN_DROP = 3
    TRANSFORM = 4
    DROP_RATE = 5
    BALANCE = 6
    RESOLUTION = 7
    PATCH_SIZE = 8
    MIXTURE = 9
    FRAMES = 10
    FLIP = 11


def counter_hash(purpose: Purpose, seed: int, epoch: int, counters: np.ndarray) -> np.ndarray:
    """Hash each of `counters` (uint64) to a uint64, keyed by purpose, seed and epoch.

    Hashes of different purposes, seeds and epochs are in effect independent. `seed` and `epoch` are any integers, taken
    modulo 2**64.

    >>> import numpy as np
    >>> rows = np.arange(3, dtype=np.uint64)
    >>> together, alone = (counter_hash(Purpose.TOKEN_DROP, 0, 0, which) for which in (rows, rows[1:]))
    >>> bool((together[1:] == alone).all())
    True
    """
    out = np.empty(len(counters), np.uint64)
    _kernels.mix_all(np.ascontiguousarray(counters, np.uint64), _base(purpose, seed, epoch), out)
    return out


@lru_cache(maxsize=64)  # planning in small steps asks for the same few again and again
def _base(purpose: Purpose, seed: int, epoch: int) -> np.uint64:
    """What `counter_hash` adds to each counter."""
    base = 0
    for word in (purpose, seed, epoch):
        base = int(_kernels.mix(np.uint64((base ^ word) + 0x9E3779B97F4A7C15 & _MASK)))
    return np.uint64(base)


def image_ids(ids: np.ndarray, page: np.ndarray, view: np.ndarray | int = 0) -> np.ndarray:
    """Identify the images of rows or samples that hold several, for `counter_hash`: uint64 (n,).

    Page 0 in view 0 keeps the given id, so an image alone draws what it draws without pages.

    Args:
        ids: uint64 (n,), `row_id` of the image's row, or of its sample's first row.
        page: int (n,), position of the image among the pages or frames of its file.
        view: int (n,) or a number, which view of the picture.

    >>> import numpy as np
    >>> image_ids(np.array([7, 7], np.uint64), np.array([0, 1])).tolist()
    [7, 9672475392221035855]
    """
    number = np.asarray(page).astype(np.uint64) | np.asarray(view).astype(np.uint64) << np.uint64(32)
    out = np.empty(len(ids), np.uint64)
    _kernels.mix_pairs(np.ascontiguousarray(ids, np.uint64), np.ascontiguousarray(number), out)
    return out
