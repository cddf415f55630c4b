"""`PackedImage` and `PackedSample`: an image, and the images of a sample, taken out of a pack."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from patchnpack.packer.geometry import Geometry

# P patch size, C channels


@dataclass(eq=False, frozen=True, slots=True, repr=False)
class PackedImage:
    """One image extracted from a pack.

    Attributes:
        key: the sample's name in its shard.
        label: int, or a float32 tensor (D,) for soft targets; -100 or NaN without a label.
        grid: (gw, gh), patches across and down, before any token was dropped.
        coords: int32 (n, 2), the (x, y) of each kept token in the grid.
        patches: (n, P*P*C), the kept tokens' pixels in row, column, channel order, of the batch's type.
        patch_size: P, in pixels.
        sample: number of the image's sample in the batch, from 0.
        frame: the image's place in its sample, from 0.
        geometry: where the pixels of its source come to lie.
    """

    key: str
    label: int | torch.Tensor
    grid: tuple[int, int]
    coords: torch.Tensor
    patches: torch.Tensor
    patch_size: int
    sample: int = 0
    frame: int = 0
    geometry: Geometry | None = None

    def __repr__(self) -> str:
        (gw, gh), label = self.grid, self.label
        shown = f"tensor of {tuple(label.shape)}" if isinstance(label, torch.Tensor) else label
        return (
            f"PackedImage(key={self.key!r}, label={shown}, grid={gw}x{gh}, patch_size={self.patch_size}, "
            f"{len(self.coords)} of {gw * gh} tokens)"
        )

    def pixels(self) -> np.ndarray:
        """The image (gh*P, gw*P, C), of its patches' type, assembled from these; dropped patches are 0."""
        P, (gw, gh) = self.patch_size, self.grid
        patches = self.patches.cpu().numpy()
        canvas = np.zeros((gh, gw, P, P, patches.shape[1] // (P * P)), patches.dtype)
        x, y = self.coords.cpu().numpy().T
        canvas[y, x] = patches.reshape(len(x), P, P, -1)
        return canvas.transpose(0, 2, 1, 3, 4).reshape(gh * P, gw * P, -1)


@dataclass(eq=False, frozen=True, slots=True)
class PackedSample:
    """The images of one sample, extracted from a pack.

    Attributes:
        images: at least one, in order; each knows its `frame`.
    """

    images: tuple[PackedImage, ...]

    @property
    def key(self) -> str:
        """The key of the first image."""
        return self.images[0].key

    @property
    def label(self) -> int | torch.Tensor:
        """The sample's label, which each of its images carries."""
        return self.images[0].label


class Images(Protocol):
    """What this module needs of a `PackedBatch`."""

    patches: torch.Tensor
    coords: torch.Tensor
    grids: torch.Tensor
    image_sizes: torch.Tensor
    image_mask: torch.Tensor
    boxes: torch.Tensor
    sizes: torch.Tensor
    flipped: torch.Tensor
    frames: torch.Tensor
    labels: torch.Tensor
    token_index: torch.Tensor
    keys: list[list[str]]
    lengths: list[int]
    patch_size: int

    def geometries(self) -> list[Geometry]: ...
    def sample_numbers(self) -> np.ndarray: ...


def geometries_of(batch: Images) -> list[Geometry]:
    """Return where the pixels of each of the N sources come to lie; see `PackedBatch.geometries`."""
    mask = batch.image_mask
    columns = (batch.image_sizes, batch.boxes, batch.sizes, batch.flipped, batch.grids)
    rows = zip(*(column[mask].tolist() for column in columns), strict=True)
    return [Geometry(*(tuple(column) for column in row), batch.patch_size) for row in rows]  # type: ignore[arg-type, call-arg]


def walk_images(batch: Images) -> Iterator[PackedImage]:
    """Yield the images of a batch, pack by pack; see `PackedBatch.images`."""
    ends, samples = np.cumsum(batch.lengths), batch.sample_numbers()
    flat_coords, flat_patches = batch.coords.flatten(0, 1), batch.patches.flatten(0, 1)
    columns, frames = batch.image_mask.nonzero().tolist(), batch.frames[batch.image_mask].tolist()
    geometries = batch.geometries()
    for i, ((b, j), end, length) in enumerate(zip(columns, ends, batch.lengths, strict=True)):
        slots, label = batch.token_index[end - length : end], batch.labels[b, j]
        yield PackedImage(
            key=batch.keys[b][j],
            label=label if batch.labels.ndim == 3 else int(label),
            grid=geometries[i].grid,
            coords=flat_coords[slots],
            patches=flat_patches[slots],
            patch_size=batch.patch_size,
            sample=int(samples[i]),
            frame=frames[i],
            geometry=geometries[i],
        )
