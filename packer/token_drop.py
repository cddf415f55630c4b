"""Token drops: how many of an image's tokens are kept, drawn once an image before packing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from patchnpack.packer import _draws
from patchnpack.packer.checks import check_whole

# n images; a drop rate is the share of an image's tokens that is dropped, in [0, 1)


def _keep(tokens: np.ndarray, rate: np.ndarray | float) -> np.ndarray:
    return np.maximum(1, np.rint(tokens * (1 - rate))).astype(np.int64)


@dataclass(frozen=True, slots=True)
class NoDrop:
    """Every token is kept.

    >>> import numpy as np
    >>> NoDrop().keep(np.array([7]), np.zeros(1, np.uint64), 1024).tolist()
    [7]
    """

    def keep(self, tokens: np.ndarray, keys: np.ndarray, seq_len: int) -> np.ndarray:
        """Tokens kept (int64 (n,)) of images of `tokens` (n,), each with its own key (uint64 (n,))."""
        return tokens.astype(np.int64)


@dataclass(frozen=True, slots=True)
class ConstantDrop:
    """The same share of every image's tokens is dropped; at least one stays (NaViT, arXiv 2307.06304, section 2.2).

    Attributes:
        rate: share dropped, in [0, 1).

    >>> import numpy as np
    >>> ConstantDrop(0.25).keep(np.array([8, 1]), np.zeros(2, np.uint64), 1024).tolist()
    [6, 1]
    """

    rate: float

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise ValueError(f"rate is {self.rate}; the share of tokens to drop must be at least 0 and below 1")

    def keep(self, tokens: np.ndarray, keys: np.ndarray, seq_len: int) -> np.ndarray:
        """Tokens kept (int64 (n,)) of images of `tokens` (n,), each with its own key (uint64 (n,))."""
        return _keep(tokens, self.rate)


@dataclass(frozen=True, slots=True)
class BetaDrop:
    """Each image draws its own rate: d = u max, u ~ Beta(7 m / 3, 7 (1 - m) / 3), m = mean / max.

    The variance of u is 0.3 m (1 - m), and the mean rate is `mean` (NaViT, arXiv 2307.06304).

    Attributes:
        mean: mean rate, above 0 and below `max`.
        max: the largest rate, below 1.

    >>> import numpy as np
    >>> keys = np.arange(4, dtype=np.uint64)
    >>> BetaDrop(mean=0.5, max=0.8).keep(np.full(4, 100), keys, 1024).tolist()
    [56, 50, 45, 23]
    """

    mean: float
    max: float

    def __post_init__(self) -> None:
        if not 0 < self.mean < self.max < 1:
            raise ValueError(
                f"mean is {self.mean} and max is {self.max}; it must be 0 < mean < max < 1 (one rate for all images is "
                "ConstantDrop)"
            )

    def keep(self, tokens: np.ndarray, keys: np.ndarray, seq_len: int) -> np.ndarray:
        """Tokens kept (int64 (n,)) of images of `tokens` (n,), each with its own key (uint64 (n,))."""
        m = self.mean / self.max
        u = np.empty(len(keys))
        _draws.beta(keys, 7 * m / 3, 7 * (1 - m) / 3, u)
        return _keep(tokens, u * self.max)


@dataclass(frozen=True, slots=True)
class ResolutionDrop:
    """Larger images lose more: rates are normal with a mean that grows linearly with the token count, within [0, 1).

    The mean is `low` at 0 tokens and `high` at `seq_len` tokens and above (NaViT, arXiv 2307.06304).

    Attributes:
        low, high: mean rate of the smallest and of the largest images, in [0, 1).
        std: of the normal distribution before it is truncated, above 0 and at most 1.

    >>> import numpy as np
    >>> keys = np.arange(3, dtype=np.uint64)
    >>> ResolutionDrop(low=0.1, high=0.7, std=0.02).keep(np.array([10, 512, 1024]), keys, 1024).tolist()
    [9, 307, 307]
    """

    low: float
    high: float
    std: float = 0.02

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; a mean rate must be at least 0 and below 1")
        if not 0 < self.std <= 1:
            raise ValueError(f"std is {self.std}; it must be above 0 and at most 1")

    def keep(self, tokens: np.ndarray, keys: np.ndarray, seq_len: int) -> np.ndarray:
        """Tokens kept (int64 (n,)) of images of `tokens` (n,), each with its own key (uint64 (n,))."""
        mean = self.low + (self.high - self.low) * np.minimum(tokens / seq_len, 1)
        rate = np.empty(len(keys))
        _draws.truncated_normal(keys, mean, self.std, 0.0, 1.0, rate)
        return _keep(tokens, rate)


@dataclass(frozen=True, slots=True)
class DropToTokens:
    """At most so many tokens of each image are kept: the keep rate is min(1, s0 / s).

    Attributes:
        tokens: s0, tokens kept at most.

    >>> import numpy as np
    >>> DropToTokens(64).keep(np.array([49, 64, 500]), np.zeros(3, np.uint64), 1024).tolist()
    [49, 64, 64]
    """

    tokens: int

    def __post_init__(self) -> None:
        check_whole("tokens", self.tokens)

    def keep(self, tokens: np.ndarray, keys: np.ndarray, seq_len: int) -> np.ndarray:
        """Tokens kept (int64 (n,)) of images of `tokens` (n,), each with its own key (uint64 (n,))."""
        kept: np.ndarray = np.minimum(tokens, self.tokens).astype(np.int64)
        return kept


TokenDrop = NoDrop | ConstantDrop | BetaDrop | ResolutionDrop | DropToTokens
