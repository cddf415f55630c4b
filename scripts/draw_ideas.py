"""Draw the pictures of docs/ideas.md from the library's own output.

    python scripts/draw_ideas.py [OUT]

This writes `lengths.svg`, `balance.svg` and `resume.svg` into OUT (default: docs/images). The token counts follow the
distribution of ImageNet at patch size 16; see `imagenet_like`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from patchnpack import Packing
from patchnpack.packer import Rows, pack_lengths, plan
from patchnpack.packer.binpacking.balance import balanced_order, load_imbalance

ROOT = Path(__file__).resolve().parents[1]
COLOURS = [
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#d55e00",
    "#f0e442",
    "#999999",
]  # distinguishable with colour blindness
PADDING: dict[str, Any] = {"facecolor": "white", "edgecolor": "#bbbbbb", "hatch": "////", "linewidth": 0.5}


def imagenet_like(rng: np.random.Generator, images: int) -> np.ndarray:
    """Draw token counts with the shape of ImageNet's at native size and patch 16, int64 (images,).

    Of 1,000 photographs, half have 768 tokens (500x375). The others are grids with an area lognormal with mean 650 and
    sigma 1.15, and an aspect ratio of 1, 4/3 or 3/2, in either orientation. There are 173 distinct counts, from 20 to
    15,000. The 1,000 are resampled.
    """
    aspects = np.array([1, 4 / 3, 3 / 4, 3 / 2, 2 / 3])
    while True:
        area = rng.lognormal(np.log(650) - 1.15**2 / 2, 1.15, 600)
        aspect = rng.choice(aspects, 600)
        tokens = (np.rint(np.sqrt(area * aspect)) * np.rint(np.sqrt(area / aspect))).astype(np.int64)
        tokens = tokens[(tokens >= 20) & (tokens <= 15_000)][:500]
        photographs = np.concatenate([np.full(500, 768), tokens])
        if len(photographs) == 1000 and len(np.unique(photographs)) == 173:
            return rng.choice(photographs, images)


def draw_lengths() -> Figure:
    """Draw token counts, and packs of 1,024 and 4,096 slots with and without `rescale`."""
    counts = imagenet_like(np.random.default_rng(1), 100_000)
    figure, (top, *rows) = plt.subplots(4, 1, figsize=(8, 6.4), height_ratios=[2.2, 1, 1, 1], layout="constrained")
    top.hist(np.minimum(counts, 2000), bins=np.arange(0, 2033, 32), color=COLOURS[0], weights=np.full(100_000, 1e-3))
    top.set(xlabel="tokens per image at native resolution, patch size 16 (last bar: 2,000 or more)", xlim=(0, 2010))
    top.set_ylabel("% of images")
    top.annotate("half of the images have 768", (784, 45), (860, 42), color="#333333")
    sides = np.random.default_rng(0)
    for axis, (L, fill) in zip(rows, [(1024, "none"), (4096, "none"), (1024, "rescale")], strict=True):
        _draw_packs(axis, counts, L, fill, sides)
    rows[-1].set_xlabel("packs in order of output")
    return figure


def _draw_packs(axis: Axes, counts: np.ndarray, L: int, fill: str, rng: np.random.Generator) -> None:
    # Approximate each count by the grid of a 4:3 photograph.
    width = np.maximum(1, np.rint(np.sqrt(counts * 4 / 3)))
    height = np.maximum(1, np.rint(counts / width))
    made = plan(Rows.of_sizes(16 * width, 16 * height), Packing(seq_len=L, fill=fill, balance=0))  # type: ignore[arg-type]
    padding = 1 - made.tokens().sum() / (len(made) * L)
    for i in range(60):
        bottom = 0
        for j, tokens in enumerate(made.pack(5000 * 1024 // L + i).keep.tolist()):
            look: dict[str, Any] = {"facecolor": COLOURS[j % len(COLOURS)], "edgecolor": "white", "linewidth": 0.4}
            axis.add_patch(Rectangle((i, bottom / L), 0.9, tokens / L, **look))
            bottom += tokens
        axis.add_patch(Rectangle((i, bottom / L), 0.9, 1 - bottom / L, **PADDING))
    axis.set(xlim=(-0.2, 60.1), ylim=(0, 1), xticks=[], yticks=[])
    filled = f"fill {fill!r}, " if fill != "none" else ""
    axis.set_title(f"{L:,} slots: {filled}{padding:.1%} padding", loc="left", fontsize=10)
    axis.spines[:].set_visible(False)


def draw_balance() -> Figure:
    """Draw the attention cost of the packs of eight ranks per step, as packed and balanced."""
    counts = np.minimum(imagenet_like(np.random.default_rng(2), 20_000), 16_384)
    order, offsets = pack_lengths(counts, 16_384)
    cost = np.add.reduceat(counts[order].astype(float) ** 2, offsets[:-1])[:512]
    drawn = np.random.default_rng(3).random(256 // 8)
    balanced = np.concatenate([part[balanced_order(part, 8, drawn)] for part in cost.reshape(2, 256)])
    figure, axes = plt.subplots(2, 1, figsize=(8, 4.4), sharex=True, sharey=True, layout="constrained")
    names = ("as packed", "balanced in windows of 256 packs")
    for axis, values, name in zip(axes, (cost, balanced), names, strict=True):
        steps = values[: 8 * 48].reshape(-1, 8) / cost.mean()
        axis.vlines(np.arange(48), steps.mean(1), steps.max(1), color="#bbbbbb", linewidth=4)
        for rank in range(8):
            axis.plot(np.arange(48), steps[:, rank], ".", color=COLOURS[rank], markersize=4)
        axis.set_title(f"{name}: load imbalance {load_imbalance(values, 8):.2f}", loc="left", fontsize=10)
        axis.set_ylabel("attention cost")
    axes[-1].set_xlabel("step (dot: pack of a rank; grey bar: waiting time of the other ranks)")
    return figure


def draw_resume() -> Figure:
    """Draw the packs of an epoch in order, consumed by two ranks and, after a resume, by four."""
    figure, axis = plt.subplots(figsize=(8, 1.7), layout="constrained")
    saved = 12
    for pack in range(32):
        ranks = 2 if pack < saved else 4
        axis.add_patch(Rectangle((pack, 0), 0.92, 1, facecolor=COLOURS[pack % ranks], alpha=0.9))
        axis.text(pack + 0.46, 0.5, str(pack), ha="center", va="center", color="white", fontsize=8)
    for start, step in [*((4 * i, 4) for i in range(3)), *((saved + 8 * i, 8) for i in range(3))]:
        last = min(start + step, 32)
        axis.plot([start + 0.05, last - 0.13], [-0.2, -0.2], color="#333333", linewidth=1)
        axis.text((start + last) / 2, -0.55, "a step", ha="center", fontsize=7, color="#333333")
    axis.axvline(saved - 0.04, color="#333333", linewidth=1.5, ymin=0.1)
    axis.text(saved - 0.2, 1.25, "2 ranks, 2 packs each", ha="right", fontsize=9)
    axis.text(saved + 0.2, 1.25, 'state {"position": 12} loaded on 4 ranks, 2 packs each', ha="left", fontsize=9)
    axis.set(xlim=(-0.2, 32.2), ylim=(-0.8, 1.7))
    axis.axis("off")
    return figure


def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images"
    mpl.rcParams |= {"svg.hashsalt": "patchnpack", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    for name, draw in (("lengths", draw_lengths), ("balance", draw_balance), ("resume", draw_resume)):
        figure = draw()
        figure.savefig(out / f"{name}.svg", metadata={"Date": None})
        plt.close(figure)
        print(out / f"{name}.svg")


if __name__ == "__main__":
    main()
