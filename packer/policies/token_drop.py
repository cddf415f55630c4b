"""Token drops: how many tokens each image keeps, decided once per image before packing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from patchnpack.packer.checks import check_real, check_whole
from patchnpack.packer.policies import _draws

# n images; a drop rate is the share of an image's tokens that is dropped, in [0, 1)


class _Drawn(NamedTuple):
    """The images whose drop rates are drawn: the arguments of `TokenDrop.rates`."""

    tokens: np.ndarray
    keys: np.ndarray
    seq_len: int
    images_seen: np.ndarray | None
    bytes_per_pixel: np.ndarray | None


class TokenDrop(ABC):
    """A policy that chooses the drop rate of each image, and so its number of kept tokens."""

    __slots__ = ()

    needs_bytes: ClassVar[bool] = False
    """Whether the rates follow the encoded bytes of the images."""

    def rates(
        self,
        tokens: np.ndarray,
        keys: np.ndarray,
        seq_len: int,
        images_seen: np.ndarray | None = None,
        bytes_per_pixel: np.ndarray | None = None,
    ) -> np.ndarray:
        """Drop rate of each image, float64 (n,); each depends on its own image alone.

        Args:
            tokens: (n,), tokens before dropping.
            keys: uint64 (n,), keys of each image's random draw.
            seq_len: L, token slots per pack.
            images_seen: int64 (n,), images seen in training before each; 0 by default.
            bytes_per_pixel: float64 (n,), encoded bytes per pixel of each; for drops with `needs_bytes`.

        Raises:
            ValueError: the drop needs `bytes_per_pixel`, and it is None.
        """
        return self._rates(_Drawn(tokens, keys, seq_len, images_seen, bytes_per_pixel))

    @abstractmethod
    def _rates(self, images: _Drawn) -> np.ndarray:
        """See `rates`."""

    @property
    def cap(self) -> int | None:
        """The most tokens that an image may keep, by the policy's own words; None where it names no number.

        `Packing.fill` gives no token back beyond it.
        """
        return None

    def keep(
        self,
        tokens: np.ndarray,
        keys: np.ndarray,
        seq_len: int,
        images_seen: np.ndarray | None = None,
        bytes_per_pixel: np.ndarray | None = None,
    ) -> np.ndarray:
        """Tokens that each image keeps, int64 (n,), at least 1. The arguments are those of `rates`."""
        kept: np.ndarray = tokens * (1 - self.rates(tokens, keys, seq_len, images_seen, bytes_per_pixel))
        whole: np.ndarray = np.maximum(1, np.rint(kept)).astype(np.int64)
        return whole


@dataclass(frozen=True, slots=True)
class NoDrop(TokenDrop):
    """Keep every token.

    >>> import numpy as np
    >>> NoDrop().keep(np.array([7]), np.zeros(1, np.uint64), 1024).tolist()
    [7]
    """

    def _rates(self, images: _Drawn) -> np.ndarray:
        return np.zeros(len(images.tokens))


@dataclass(frozen=True, slots=True)
class ConstantDrop(TokenDrop):
    """Drop the same share of every image's tokens; at least one stays.

    See NaViT, arXiv 2307.06304, section 2.2.

    ```
    rate 0.25, 8 tokens      |0.2345.7|      6 stay, in raster order
    ```

    Attributes:
        rate: share of tokens dropped, in [0, 1).

    >>> import numpy as np
    >>> ConstantDrop(0.25).keep(np.array([8, 1]), np.zeros(2, np.uint64), 1024).tolist()
    [6, 1]
    """

    rate: float

    def __post_init__(self) -> None:
        check_real("rate", self.rate, "the share of tokens to drop, at least 0 and below 1")
        if not 0 <= self.rate < 1:
            raise ValueError(f"rate is {self.rate}; the share of tokens to drop must be at least 0 and below 1")

    def _rates(self, images: _Drawn) -> np.ndarray:
        return np.full(len(images.tokens), float(self.rate))


@dataclass(frozen=True, slots=True)
class BetaDrop(TokenDrop):
    """Each image draws its own rate: d = u max, u ~ Beta(7 m / 3, 7 (1 - m) / 3), m = mean / max.

    The variance of u is 0.3 m (1 - m), and the mean rate is `mean` (NaViT, arXiv 2307.06304).

    ```
    mean 0.5, max 0.8, 8 tokens each      |0.2.4567| |..2....7| |.1.3.56.|      rates 0.25, 0.75, 0.5
    ```

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
        for name in ("mean", "max"):
            check_real(name, getattr(self, name), "a drop rate above 0 and below 1")
        if not 0 < self.mean < self.max < 1:
            raise ValueError(
                f"mean is {self.mean} and max is {self.max}; it must be 0 < mean < max < 1 (one rate for all images is "
                "ConstantDrop)"
            )

    def _rates(self, images: _Drawn) -> np.ndarray:
        m = self.mean / self.max
        u = np.empty(len(images.keys))
        _draws.beta(images.keys, 7 * m / 3, 7 * (1 - m) / 3, u)
        return u * self.max


@dataclass(frozen=True, slots=True)
class ResolutionDrop(TokenDrop):
    """Drop more tokens of larger images.

    The rate is a truncated normal whose mean grows linearly with the token count.

    The mean is `low` at 0 tokens and `high` at `seq_len` tokens and above; rates lie within [0, 1) (NaViT, arXiv
    2307.06304).

    ```
    low 0, high 0.8, L = 16      4 tokens |0.23|      16 tokens |..2........b....|      mean rates 0.2 and 0.8
    ```

    Attributes:
        low, high: mean rates of the smallest and the largest images, in [0, 1).
        std: standard deviation of the normal before truncation, above 0 and at most 1.

    >>> import numpy as np
    >>> keys = np.arange(3, dtype=np.uint64)
    >>> ResolutionDrop(low=0.1, high=0.7, std=0.02).keep(np.array([10, 512, 1024]), keys, 1024).tolist()
    [9, 307, 307]
    """

    low: float
    high: float
    std: float = 0.02

    def __post_init__(self) -> None:
        for name in ("low", "high", "std"):
            check_real(name, getattr(self, name), "a share from 0 to 1")
        for name in ("low", "high"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; a mean rate must be at least 0 and below 1")
        if not 0 < self.std <= 1:
            raise ValueError(f"std is {self.std}; it must be above 0 and at most 1")

    def _rates(self, images: _Drawn) -> np.ndarray:
        mean = self.low + (self.high - self.low) * np.minimum(images.tokens / images.seq_len, 1)
        rate = np.empty(len(images.keys))
        _draws.truncated_normal(images.keys, mean, self.std, 0.0, 1.0, rate)
        return rate


@dataclass(frozen=True, slots=True)
class ComplexityDrop(TokenDrop):
    """Drop fewer tokens of images with more detail, judged by their encoded bytes per pixel.

    An encoder spends bytes where there is something to see, and the index knows them without decoding. The rate falls
    linearly in the logarithm of the bytes per pixel, from `high` at `simple` and below to `low` at `detailed` and
    above. All images of a sample have the rate of their mean. Bytes per pixel depend on the encoder, so use it for
    images of one format and quality. See NaViT, arXiv 2307.06304, section 2.2, for drop rates that differ per image.

    ```
    low 0.2, high 0.8      a plain wall, 0.05 bytes |..2..5..|      0.16 |0.2.4..7|      a crowd, 0.5 |0123.567|
    ```

    Attributes:
        low: rate of detailed images, at least 0 and below `high`.
        high: rate of simple images, below 1.
        simple, detailed: encoded bytes per pixel at which the rate is `high` and `low`. The defaults suit JPEG
            photographs.

    >>> import numpy as np
    >>> drop, keys = ComplexityDrop(low=0.2, high=0.8), np.zeros(4, np.uint64)
    >>> drop.keep(np.full(4, 100), keys, 1024, bytes_per_pixel=np.array([0.01, 0.05, 0.158, 0.6])).tolist()
    [20, 20, 50, 80]
    """

    needs_bytes: ClassVar[bool] = True

    low: float
    high: float
    simple: float = 0.05
    detailed: float = 0.5

    def __post_init__(self) -> None:
        for name in ("low", "high", "simple", "detailed"):
            check_real(name, getattr(self, name))
        if not 0 <= self.low < self.high < 1:
            raise ValueError(
                f"low is {self.low} and high is {self.high}; they are the rates of detailed and of simple images, so "
                "it must be 0 <= low < high < 1 (one rate for all images is ConstantDrop)"
            )
        if not 0 < self.simple < self.detailed < float("inf"):
            raise ValueError(
                f"simple is {self.simple} and detailed is {self.detailed}; they are encoded bytes per pixel, so it "
                "must be 0 < simple < detailed"
            )

    def _rates(self, images: _Drawn) -> np.ndarray:
        if images.bytes_per_pixel is None:
            raise ValueError(f"{self} needs the encoded bytes per pixel of each image; give bytes_per_pixel")
        detail = np.log(images.bytes_per_pixel / self.simple) / np.log(self.detailed / self.simple)
        rates: np.ndarray = self.high + (self.low - self.high) * np.clip(detail, 0, 1)
        return rates


@dataclass(frozen=True, slots=True)
class DropToTokens(TokenDrop):
    """Keep at most s0 tokens of each image: the keep rate is min(1, s0 / s).

    `Packing.fill` gives none of the others back.

    ```
    4 tokens      |012| keeps all 3, |.1.3.56.| keeps 4 of 8
    ```

    Attributes:
        tokens: s0, maximum tokens kept.

    >>> import numpy as np
    >>> DropToTokens(64).keep(np.array([49, 64, 500]), np.zeros(3, np.uint64), 1024).tolist()
    [49, 64, 64]
    """

    tokens: int

    def __post_init__(self) -> None:
        check_whole("tokens", self.tokens)

    @property
    def cap(self) -> int:
        """s0."""
        return self.tokens

    def _rates(self, images: _Drawn) -> np.ndarray:
        return 1 - np.minimum(1, self.tokens / images.tokens)


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduledDrop(TokenDrop):
    """Multiply another drop's rates by a factor that goes from `start` to `end` during training.

    The factor is start + (end - start) / (1 + exp((midpoint - n) / tau)), where n is the number of images seen: epoch
    times rows, plus the image's position in the epoch. Falling rates work best (NaViT, arXiv 2307.06304).

    ```
    factor  1.0 |-----.__                       start=1, end=0, midpoint=500_000, tau=60_000
            0.5 |         `.
            0.0 |            `--.______         the full drop at first, none at the end
                0     250k     500k     750k
    ```

    Attributes:
        drop: the drop whose rates are multiplied.
        start, end: factors long before and long after the midpoint, from 0 to 1.
        midpoint: images seen when the factor is halfway, at least 0.
        tau: width of the transition in images, above 0; 76 % of it lies between midpoint - 2 tau and midpoint + 2 tau.

    >>> import numpy as np
    >>> fall = ScheduledDrop(drop=ConstantDrop(0.8), start=1, end=0.25, midpoint=1000, tau=100)
    >>> fall.rates(np.full(3, 10), np.zeros(3, np.uint64), 1024, np.array([0, 1000, 2000])).round(3).tolist()
    [0.8, 0.5, 0.2]
    """

    drop: TokenDrop
    start: float
    end: float
    midpoint: float
    tau: float

    def __post_init__(self) -> None:
        kinds = (NoDrop, ConstantDrop, BetaDrop, ResolutionDrop, ComplexityDrop, DropToTokens)
        if not isinstance(self.drop, kinds):
            raise ValueError(
                f"drop is {self.drop!r}; it must be one of {', '.join(t.__name__ + '(...)' for t in kinds)}"
            )
        for name in ("start", "end", "midpoint", "tau"):
            check_real(name, getattr(self, name))
        for name in ("start", "end"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; a factor of the drop's rates must be from 0 to 1")
        if not 0 <= self.midpoint < float("inf"):
            raise ValueError(f"midpoint is {self.midpoint}; it must be a number of images, at least 0")
        if not 0 < self.tau < float("inf"):
            raise ValueError(f"tau is {self.tau}; it must be a number of images above 0")

    @property
    def cap(self) -> int | None:
        """That of the drop. Where the factor lets an image keep more, its own count is the cap."""
        return self.drop.cap

    @property
    def needs_bytes(self) -> bool:  # type: ignore[override]  # a class variable of the others
        """That of the drop."""
        return self.drop.needs_bytes

    def factors(self, images_seen: np.ndarray) -> np.ndarray:
        """The factor after `images_seen` (n,) images, float64 (n,)."""
        # The sigmoid as a tanh, which does not overflow.
        done = (1 + np.tanh((images_seen - self.midpoint) / (2 * self.tau))) / 2
        return self.start + (self.end - self.start) * done

    def _rates(self, images: _Drawn) -> np.ndarray:
        seen = np.zeros(len(images.tokens), np.int64) if images.images_seen is None else images.images_seen
        scaled: np.ndarray = self.drop._rates(images) * self.factors(seen)
        return scaled
