"""Token drops: how many of an image's tokens are kept, drawn once an image before packing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# n images; a drop rate is the share of an image's tokens that is dropped, in [0, 1)


@dataclass(frozen=True, slots=True)
class NoDrop:
    """Every token is kept.

    >>> import numpy as np
    >>> NoDrop().keep(np.array([7]), np.zeros(1, np.uint64)).tolist()
    [7]
    """

    def keep(self, tokens: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Tokens kept (int64 (n,)) of images of `tokens` (n,), each with its own key (uint64 (n,))."""
        return tokens.astype(np.int64)


@dataclass(frozen=True, slots=True)
class ConstantDrop:
    """The same share of every image's tokens is dropped; at least one stays (NaViT, arXiv 2307.06304, section 2.2).

    Attributes:
        rate: share dropped, in [0, 1).

    >>> import numpy as np
    >>> ConstantDrop(0.25).keep(np.array([8, 1]), np.zeros(2, np.uint64)).tolist()
    [6, 1]
    """

    rate: float

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise ValueError(f"rate is {self.rate}; the share of tokens to drop must be at least 0 and below 1")

    def keep(self, tokens: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Tokens kept (int64 (n,)) of images of `tokens` (n,), each with its own key (uint64 (n,))."""
        return np.maximum(1, np.rint(tokens * (1 - self.rate))).astype(np.int64)


TokenDrop = NoDrop | ConstantDrop
