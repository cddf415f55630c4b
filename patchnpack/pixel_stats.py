"""Statistics of pixels: mean, standard deviation, extremes and percentiles of each band.

A model's `mean` and `std` come from them. They are of the images at their own size, before a loader resizes them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from patchnpack.loaders import PackedImageLoader
from patchnpack.loaders.errors import BadImage
from patchnpack.loaders.imaging.warnings import ignore
from patchnpack.loaders.process import cpu_share
from patchnpack.packer.checks import check_whole
from patchnpack.packer.dtypes import Dtype

PERCENTILES = (0.1, 1.0, 50.0, 99.0, 99.9)

_VALUES = 1 << 22  # values of float32 kept for the percentiles, of each band

# C bands, N images


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelStats:
    """Statistics of C bands, in the units of the pixels.

    Attributes:
        dtype: type of the pixels.
        images: number of images that were read.
        bad: number of images that could not be read.
        pixels: number of pixels of all images.
        mean, std: of each band, float64 (C,).
        least, most: of each band, float64 (C,).
        percentiles: float64 (C, 5), at `PERCENTILES`. Exact for whole numbers; of float32, of a sample of the pixels.
    """

    dtype: Dtype
    images: int
    bad: int
    pixels: int
    mean: np.ndarray
    std: np.ndarray
    least: np.ndarray
    most: np.ndarray
    percentiles: np.ndarray

    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """`mean` and `std` as `NaViTConfig` takes them, with six digits: of uint8, pixels are from 0 to 1.

        A band whose pixels are all equal has a std of 1.
        """
        scale = 255.0 if self.dtype == "uint8" else 1.0
        mean, std = ([float(f"{value / scale:.6g}") for value in values] for values in (self.mean, self.std))
        return tuple(mean), tuple(value or 1.0 for value in std)


def pixel_stats(loader: PackedImageLoader, *, images: int | None = None, seed: int = 0) -> PixelStats:
    """Compute the statistics of the pixels of a loader's images, each read once, without transform, crop or resize.

    Args:
        loader: the loader. Its packing says what pixels are: colours, or bands of any type.
        images: number of images to read, drawn at random; None reads all. Of a video or an animation, the first frame
            counts.
        seed: seeds the draw.

    Raises:
        ValueError: no image can be read.
    """
    if images is not None:
        check_whole("images", images)
    index, packing = loader.index, loader.packing
    rows = np.flatnonzero(loader.source.rows.mask)
    if images is not None and images < len(rows):
        rows = np.sort(np.random.default_rng(seed).choice(rows, images, replace=False))
    page = None if index.samples is None else index.samples.page[rows]
    samples = loader.context.samples(rows, page)
    sizes = list(zip(index.width[rows].tolist(), index.height[rows].tolist(), strict=True))
    per_image = max(16, _VALUES // max(1, len(rows)))

    def read(i: int) -> _Sums | None:
        try:
            found = next(iter(samples.decode_run(range(i, i + 1), samples.read(i), [sizes[i]], [None], True, ignore)))
        except BadImage:
            return None
        if isinstance(found, BadImage):
            return None
        return _Sums(found, np.random.default_rng([seed, i]), per_image)

    histogram = None if packing.dtype == "float32" else np.zeros((packing.channels, _span(packing.dtype)), np.int64)
    parts: list[_Sums] = []
    with ThreadPoolExecutor(cpu_share()) as pool:
        for part in pool.map(read, range(len(rows))):
            if part is not None:
                if histogram is not None:
                    part.add_to(histogram)
                parts.append(part)
    if not parts:
        raise ValueError(f"none of {len(rows)} images could be read, so there are no pixels to count")
    pixels = sum(part.pixels for part in parts)
    about: dict[str, Any] = {"images": len(parts), "bad": len(rows) - len(parts), "pixels": pixels}
    return PixelStats(
        dtype=packing.dtype,
        **about,
        **(_of_sums(parts) if histogram is None else _of_histogram(histogram, packing.dtype)),
    )


def _span(dtype: Dtype) -> int:
    return 256 if dtype == "uint8" else 1 << 16


class _Sums:
    """What is kept of an image: of float32 its sums and some values, of whole numbers how often each occurs."""

    def __init__(self, pixels: np.ndarray, rng: np.random.Generator, most: int) -> None:
        flat = pixels.reshape(-1, pixels.shape[2])
        self.pixels = len(flat)
        self.counts: list[tuple[np.ndarray, np.ndarray]] = []
        if flat.dtype != np.float32:
            self.counts = [np.unique(band, return_counts=True) for band in flat.T]
            return
        exact = flat.astype(np.float64)
        self.mean, self.least, self.most = exact.mean(0), exact.min(0), exact.max(0)
        self.squares = ((exact - self.mean) ** 2).sum(0)
        self.values = flat if len(flat) <= most else flat[rng.choice(len(flat), most, replace=False)]

    def add_to(self, histogram: np.ndarray) -> None:
        """Add the counts to a histogram, int64 (C, values), and forget them."""
        for band, (values, counts) in enumerate(self.counts):
            low = np.iinfo(values.dtype).min
            histogram[band, values.astype(np.int64) - low] += counts
        self.counts = []


def _of_histogram(histogram: np.ndarray, dtype: Dtype) -> dict[str, np.ndarray]:
    values = np.arange(histogram.shape[1], dtype=np.float64) + np.iinfo(dtype).min
    total = histogram[0].sum()
    mean = histogram @ values / total
    std = np.sqrt([(counts @ (values - center) ** 2) / total for counts, center in zip(histogram, mean, strict=True)])
    ends = [np.flatnonzero(counts)[[0, -1]] for counts in histogram]
    cumulative = histogram.cumsum(1)
    ranks = [max(1, math.ceil(total * each / 100)) for each in PERCENTILES]
    return {
        "mean": mean,
        "std": std,
        "least": values[[low for low, _ in ends]],
        "most": values[[high for _, high in ends]],
        "percentiles": np.array([values[np.searchsorted(band, ranks)] for band in cumulative]),
    }


def _of_sums(parts: Sequence[_Sums]) -> dict[str, Any]:
    """Combine the sums of all images (Chan, Golub, LeVeque 1979)."""
    counts = np.array([part.pixels for part in parts], np.float64)[:, None]
    means, squares = np.stack([part.mean for part in parts]), np.stack([part.squares for part in parts])
    mean = (counts * means).sum(0) / counts.sum()
    # An image counts by its pixels, however many of its values were kept.
    weights = np.concatenate([np.full(len(part.values), part.pixels / len(part.values)) for part in parts])
    kept = np.concatenate([part.values for part in parts]).astype(np.float64)
    return {
        "mean": mean,
        "std": np.sqrt((squares.sum(0) + (counts * (means - mean) ** 2).sum(0)) / counts.sum()),
        "least": np.min([part.least for part in parts], 0),
        "most": np.max([part.most for part in parts], 0),
        "percentiles": np.array([_weighted(band, weights) for band in kept.T]),
    }


def _weighted(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    order = np.argsort(values, kind="stable")
    shares = np.cumsum(weights[order]) / weights.sum()
    places = np.searchsorted(shares, np.array(PERCENTILES) / 100 * (1 - 1e-12))
    found: np.ndarray = values[order][places.clip(0, len(values) - 1)]
    return found
