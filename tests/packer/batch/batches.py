"""Packed batches made slot by slot, for the tests of `PackedBatch`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from patchnpack.packer import PackedBatch

# B packs, L token slots per pack, K maximum images per pack, P patch size, C channels, n tokens of an image

P, C = 2, 3


@dataclass(kw_only=True)
class Drawn:
    """An image to pack, and the values that must come back."""

    key: str
    row: int
    label: Any
    grid: tuple[int, int]
    kept: list[int]
    patches: np.ndarray  # uint8 (n, P*P*C)


Packs = Sequence[Sequence[Drawn | int]]


def draw_image(number: int, gw: int, gh: int, kept: Sequence[int] | None = None, label: Any = None) -> Drawn:
    kept = list(range(gw * gh)) if kept is None else list(kept)
    pixels = np.random.default_rng(number).integers(0, 256, (len(kept), P * P * C), np.uint8)
    label = number % 7 if label is None else label
    return Drawn(key=f"image{number}", row=100 + number, label=label, grid=(gw, gh), kept=kept, patches=pixels)


def make_batch(packs: Packs, *, L: int, K: int, **fields: Any) -> PackedBatch:
    """Make a batch slot by slot. A number in a pack is the padding that a failed image leaves, in slots."""
    B = len(packs)
    patches, segment_ids, coords = np.zeros((B, L, P * P * C), np.uint8), np.zeros((B, L)), np.zeros((B, L, 2))
    grids, sizes, rows, mask = np.zeros((B, K, 2)), np.zeros((B, K, 2)), np.full((B, K), -1), np.zeros((B, K), bool)
    labels = torch.full((B, K), -100)
    keys: list[list[str]] = [[] for _ in packs]
    for b, pack in enumerate(packs):
        slot = column = 0
        for image in pack:
            if isinstance(image, int):
                slot += image
                continue
            gw, gh = image.grid
            grids[b, column], sizes[b, column] = image.grid, (gw * P, gh * P)
            rows[b, column], mask[b, column] = image.row, True
            labels[b, column] = image.label
            keys[b].append(image.key)
            column += 1
            for token, pixels in zip(image.kept, image.patches, strict=True):
                patches[b, slot], segment_ids[b, slot], coords[b, slot] = pixels, column, (token % gw, token // gw)
                slot += 1
    return PackedBatch(
        patches=torch.from_numpy(patches),
        segment_ids=torch.from_numpy(segment_ids.astype(np.int32)),
        coords=torch.from_numpy(coords.astype(np.int32)),
        grids=torch.from_numpy(grids.astype(np.int32)),
        image_sizes=torch.from_numpy(sizes.astype(np.int32)),
        image_mask=torch.from_numpy(mask),
        labels=fields.pop("labels", labels),
        rows=torch.from_numpy(rows),
        keys=keys,
        patch_size=P,
        **fields,
    )


def drawn_images(packs: Packs) -> list[Drawn]:
    return [image for pack in packs for image in pack if isinstance(image, Drawn)]


@st.composite
def pack_lists(draw: st.DrawFn) -> Packs:
    """Up to 4 packs of up to 4 images, some with dropped tokens, some failed, some packs empty."""
    packs: list[list[Drawn | int]] = []
    number = 0
    for _ in range(draw(st.integers(1, 4))):
        pack: list[Drawn | int] = []
        for _ in range(draw(st.integers(0, 4))):
            if draw(st.integers(0, 4)) == 0:
                pack.append(draw(st.integers(1, 3)))
                continue
            gw, gh = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
            kept = draw(st.sets(st.integers(0, gw * gh - 1), min_size=1))
            pack.append(draw_image(number, gw, gh, sorted(kept)))
            number += 1
        packs.append(pack)
    return packs


EXAMPLE: Packs = [[draw_image(0, 2, 1), draw_image(1, 3, 2, [0, 2, 5])], [], [draw_image(2, 1, 1)]]


def example_batch(**fields: Any) -> PackedBatch:
    return make_batch(EXAMPLE, L=8, K=3, **fields)
