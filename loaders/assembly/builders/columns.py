"""`Columns`: what a batch knows of each image before a pixel is read, and where the image goes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from patchnpack.loaders.labels.labels import LabelKind
from patchnpack.packer import Images, Packing, _kernels
from patchnpack.packer.policies.flips import flipped_axes

# B packs in the batch, L token slots in a pack, K images in a pack at most, M images in the batch


class Columns:
    """The columns of a batch, one per image, and the slots of its images.

    Args:
        images: the images of the batch, pack by pack.
        counts: the number of images in each pack.
        width, height: int32 (M,), upright size of each source in pixels.
        packing: the configuration.
        labels: shape and type of the labels, which are absent at first.

    Attributes:
        fields: arrays (B, K, ...), by the name of their field in `PackedBatch`.
        absent: for each, the value where there is no image.
        labels: (B * K, ...), the same memory as the field.
        column: int64 (M,), position of each image's column among all B * K.
        segment: int64 (M,), number of each image in its pack.
        first: int64 (M,), position of each image's first slot among all B * L.
        starts: int32 (M + 1,), tokens before each image, and in total.
        used: int64 (B,), slots that each pack uses.
    """

    def __init__(
        self,
        images: Images,
        counts: Sequence[int],
        width: np.ndarray,
        height: np.ndarray,
        packing: Packing,
        labels: LabelKind,
    ) -> None:
        M, B, K = len(images), len(counts), packing.max_images
        rows = np.full((B, K), -1, np.int64)
        grids, image_sizes, sizes = np.zeros((3, B, K, 2), np.int32)
        boxes, flipped = np.zeros((B, K, 4), np.int32), np.zeros((B, K, 2), np.bool_)
        self.column, self.segment, self.first = np.empty((3, M), np.int64)
        self.starts, self.used = np.empty(M + 1, np.int32), np.empty(B, np.int64)
        _kernels.fill_columns(
            np.array(counts, np.int64),
            packing.seq_len,
            images.row,
            images.grid,
            images.keep,
            width,
            height,
            images.box,
            images.size,
            rows,
            grids,
            image_sizes,
            boxes,
            sizes,
            self.column,
            self.segment,
            self.first,
            self.starts,
            self.used,
        )
        if images.flip is not None:
            flipped.reshape(-1, 2)[self.column] = flipped_axes(images.flip)
        self.labels = np.full((B * K, *labels.shape), labels.absent, labels.dtype)
        self.fields: dict[str, np.ndarray] = {
            "rows": rows,
            "grids": grids,
            "image_sizes": image_sizes,
            "boxes": boxes,
            "sizes": sizes,
            "flipped": flipped,
            "labels": self.labels.reshape(B, K, *labels.shape),
        }
        self.absent: dict[str, float] = {"rows": -1, "labels": labels.absent}

    def close_ranks(self, pack: int, kept: np.ndarray) -> None:
        """Keep only the columns `kept`, int (k,), of a pack, without gaps."""
        for name, array in self.fields.items():
            values = array[pack, kept].copy()
            array[pack] = self.absent.get(name, 0)
            array[pack, : len(kept)] = values
