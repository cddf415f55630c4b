"""`PackedBatch`: the batch that a training loop receives, B packs of L token slots as tensors."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from patchnpack.packer import _kernels
from patchnpack.packer.batch import export
from patchnpack.packer.batch.normalize import normalize
from patchnpack.packer.batch.packed_image import PackedImage, PackedSample
from patchnpack.packer.batch.samples import count_samples, merge_samples, one_image_samples
from patchnpack.packer.batch.select import select_images
from patchnpack.packer.checks import check_whole
from patchnpack.packer.text import counted, floor_percent

# B packs in the batch, L token slots per pack, K maximum images per pack,
# P patch size, C channels; of the whole batch: T valid tokens, N images, S samples

_NONE = torch.empty(0, dtype=torch.int32)


@dataclass(eq=False, kw_only=True, slots=True, repr=False)
class PackedBatch:
    """B packs of L token slots, each holding at most K images (NaViT, arXiv 2307.06304, section 2.1).

    ```
    segment_ids  1 1 1 1 1 1 2 2 2 2 3 3 3 3 3 0      one pack, L = 16: three images and one slot of padding
    coords       (0,0) (1,0) (2,0) (0,1) ...          (x, y) in each image's own grid
    column j     of grids, labels, keys, ...          belongs to the image of segment j + 1
    ```

    Attributes:
        patches: (B, L, P*P*C), pixels in row, column, channel order; padding is 0. uint8, or the `dtype` of `Packing`.
        segment_ids: int32 (B, L), 1..K; 0 is padding. An image's tokens are contiguous and in raster order.
        coords: int32 (B, L, 2), (x, y) of each token in its image's grid.
        grids: int32 (B, K, 2), (gw, gh) before dropping; 0 where there is no image.
        image_sizes: int32 (B, K, 2), (width, height) of the source in pixels, after EXIF orientation.
        image_mask: bool (B, K), True where there is an image.
        labels: int64 (B, K), or float32 (B, K, D); -100, or NaN, without a label.
        rows: int64 (B, K), row in the index; -1 where there is no image.
        samples: int32 (B, K), number of each image's sample in its pack, 1, 2, 3 ...; 0 where there is no image. A
            sample's images are neighbours. Without it, each image is a sample.
        frames: int32 (B, K), each image's place in its sample, from 0.
        keys: the images' keys, one list per pack.
        extras: for each requested member, the images' values, one list per pack.
        patch_size: P, in pixels.
        step: number of batches before this one in the epoch.
        epoch: number of the epoch.
        position: packs of the epoch consumed, over all ranks, once this batch has been used.
        scaled_decode: whether JPEGs that shrink at least twofold were decoded at a lower scale.
        cu_seqlens: int32 (N + 1,), start of each image in the flat order of valid tokens.
        token_index: int64 (T,), position of each valid token in the flattened (B*L) slots.
        lengths: tokens of each of the N images, as Python ints.
        sample_sizes: number of images of each sample, one list per pack; None where each sample is one image.
        sample_starts: int64 (S + 1,), first image of each sample in the flat order of images, then N; None likewise.
        seqlen_bound: of a batch that `padded` returned, the largest possible number of tokens of an image; else 0.

    `cu_seqlens`, `lengths`, `max_seqlen`, `attention_mask()` and `labels` are those of images; those of samples are the
    ones of `by_sample()`.
    """

    patches: torch.Tensor
    segment_ids: torch.Tensor
    coords: torch.Tensor
    grids: torch.Tensor
    image_sizes: torch.Tensor
    image_mask: torch.Tensor
    labels: torch.Tensor
    rows: torch.Tensor
    keys: list[list[str]]
    extras: dict[str, list[list[Any]]] = field(default_factory=dict)
    patch_size: int
    step: int = 0
    epoch: int = 0
    position: int = 0
    scaled_decode: bool = False
    samples: torch.Tensor = _NONE  # filled in if empty
    frames: torch.Tensor = _NONE
    cu_seqlens: torch.Tensor = field(init=False, repr=False)
    token_index: torch.Tensor = field(init=False, repr=False)
    lengths: list[int] = field(init=False, repr=False)
    sample_sizes: list[list[int]] | None = field(init=False, repr=False)
    sample_starts: torch.Tensor | None = field(init=False, repr=False)
    seqlen_bound: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        # Counted once, on the host: on a GPU each of these counts would synchronise.
        mask = self.image_mask.numpy()
        token_index = np.empty(self.segment_ids.numel(), np.int64)
        cu_seqlens = np.empty(int(mask.sum()) + 1, np.int32)
        tokens, images = _kernels.find_tokens(self.segment_ids.numpy(), token_index, cu_seqlens)
        assert images == len(cu_seqlens) - 1, "an image without tokens, or tokens without an image"
        self.lengths = np.diff(cu_seqlens).tolist()
        self.cu_seqlens = torch.from_numpy(cu_seqlens)
        self.token_index = torch.from_numpy(token_index[:tokens])
        self.sample_sizes = self.sample_starts = None
        if self.samples.numel():
            assert np.array_equal(self.samples.numpy() > 0, mask), "samples and images must be in the same columns"
            self.sample_sizes, self.sample_starts = count_samples(self.samples.numpy())
        else:
            self.samples = one_image_samples(mask)
        if not self.frames.numel():
            self.frames = torch.zeros_like(self.samples)

    def __repr__(self) -> str:
        """A few lines: shapes, fill, images and position, without waiting for a device."""
        (B, L), device, labels = self.segment_ids.shape, self.patches.device, self.labels
        ends = sorted({min(self.lengths), max(self.lengths)}) if self.lengths else []
        lengths = f", {' to '.join(map(str, ends))} tokens each" if ends else ""
        dtype = {name: str(getattr(self, name).dtype).removeprefix("torch.") for name in ("patches", "labels")}
        sizes = [size for pack in self.sample_sizes or [] for size in pack]
        ends = sorted({min(sizes), max(sizes)}) if sizes else []
        samples = f"  samples: {len(sizes):,}, {' to '.join(map(str, ends))} images each\n" if sizes else ""
        return (
            f"PackedBatch of {counted(B, 'pack')} with {L} token slots, {floor_percent(self.num_tokens, B * L)} full\n"
            f"  images: {self.num_images:,}{lengths}\n{samples}"
            f"  patches: {dtype['patches']} {tuple(self.patches.shape)} on {device}, patch size {self.patch_size}\n"
            f"  labels: {dtype['labels']} {tuple(labels.shape)}; extras: {', '.join(self.extras) or 'none'}\n"
            f"  epoch {self.epoch}, step {self.step}, position {self.position}"
        )

    def _repr_html_(self) -> str:
        """The first packs as a picture, for notebooks."""
        from patchnpack.packer.batch.drawing import draw_html

        return draw_html(self)

    @property
    def num_images(self) -> int:
        """Number of images in the batch; a host int, so reading it never waits for a device."""
        return len(self.lengths)

    @property
    def num_samples(self) -> int:
        """Number of samples in the batch; a host int."""
        return self.num_images if self.sample_sizes is None else sum(map(len, self.sample_sizes))

    @property
    def num_tokens(self) -> int:
        """Number of valid tokens in the batch; a host int."""
        return sum(self.lengths)

    @property
    def max_seqlen(self) -> int:
        """Tokens of the longest image, or of a `padded` batch `seqlen_bound`; a host int, 0 for an empty batch."""
        return self.seqlen_bound or max(self.lengths, default=0)

    @property
    def padding_fraction(self) -> float:
        """Share of the B*L token slots that hold no token."""
        return 1.0 - self.num_tokens / self.segment_ids.numel()

    @property
    def column_index(self) -> torch.Tensor:
        """Position of each image in the flattened B*K columns, int64 (N,); B*K for images that `padded` adds.

        Indexing with it never waits for a device, as indexing with `image_mask` does.
        """
        (_, L), (B, K), slots = self.segment_ids.shape, self.image_mask.shape, self.token_index
        first = slots[self.cu_seqlens[:-1].clamp(max=max(len(slots) - 1, 0))]
        columns = first // L * K + self.segment_ids.flatten()[first] - 1
        return columns.where(self.cu_seqlens.diff() > 0, B * K) if self.seqlen_bound else columns

    def _map(self, move: Any) -> PackedBatch:
        moved = object.__new__(PackedBatch)
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            setattr(moved, f.name, move(value) if isinstance(value, torch.Tensor) else value)
        return moved

    def sample_numbers(self) -> np.ndarray:
        """Number of each image's sample in the batch, from 0, int64 (N,), on the host."""
        sizes = [1] * self.num_images if self.sample_sizes is None else [n for pack in self.sample_sizes for n in pack]
        return np.repeat(np.arange(len(sizes)), sizes)

    def by_sample(self) -> PackedBatch:
        """The same tokens in the same slots, where a segment is a whole sample: the batch for scope "sample".

        A sample becomes one tall image, its images one below another, left-aligned:

        ```
        samples      1 1 2                      1 2
        segment_ids  1 1 1 1 2 2 3 3 3   ->     1 1 1 1 1 1 2 2 2
        grids        (2,2) (1,2) (3,1)          (2,4) (3,1)
        ```

        Column s - 1 is sample s: `labels`, `rows`, `keys` and `extras` are those of its first image, and `image_mask`
        says where there is a sample. `cu_seqlens`, `lengths` and `max_seqlen` are those of samples, and
        `attention_mask()` lets a token attend to its whole sample. Works on any device without waiting for it. A batch
        whose samples are single images returns itself.
        """
        return self if self.sample_sizes is None else PackedBatch.from_dict(merge_samples(self.to_dict()))

    def padded(self, max_images: int | None = None, max_tokens: int | None = None) -> PackedBatch:
        """The same batch with `cu_seqlens`, `token_index` and `sample_starts` of fixed lengths, for CUDA graphs.

        ```
        cu_seqlens   0 6 10 15  ->  0 6 10 15 15 15       its last offset repeated, int32 (max_images + 1,)
        token_index  0 1 ... 14 ->  0 1 ... 14 0 0        slot 0 repeated, int64 (max_tokens,)
        ```

        Then every tensor has a shape that depends only on the arguments and on B, L and K, and `max_seqlen` is a bound:
        L, into which a sample fits, too. `lengths`, `num_images` and `num_tokens` still count real images and tokens.
        `NaViT` computes the same outputs; other code must ignore tokens after the last offset.

        Args:
            max_images: images in `cu_seqlens`; None is B*K, which always suffices.
            max_tokens: tokens in `token_index`; None is B*L, which always suffices.

        Raises:
            ValueError: the batch holds more images or tokens, or is padded already.
        """
        (B, L), K = self.segment_ids.shape, self.image_mask.shape[1]
        if self.seqlen_bound:
            raise ValueError("the batch is padded already; call padded() on the batch that the loader yields")
        images, tokens = B * K if max_images is None else max_images, B * L if max_tokens is None else max_tokens
        for name, value, held in (("max_images", images, self.num_images), ("max_tokens", tokens, self.num_tokens)):
            check_whole(name, value)
            if value < held:
                raise ValueError(f"{name} is {value}, but the batch holds {held}; give at least {held}, or None")
        batch = self._map(lambda tensor: tensor)
        last = self.cu_seqlens[-1:].expand(images - self.num_images)
        batch.cu_seqlens = torch.cat([self.cu_seqlens, last])
        batch.token_index = F.pad(self.token_index, (0, tokens - self.num_tokens))
        if self.sample_starts is not None:
            last = self.sample_starts[-1:].expand(images + 1 - len(self.sample_starts))
            batch.sample_starts = torch.cat([self.sample_starts, last])
        batch.seqlen_bound = min(L, tokens)
        return batch

    def select(self, mask: torch.Tensor) -> PackedBatch:
        """The batch of the images where `mask` is True; the slots of the others become padding.

        ```
        segment_ids  1 1 1 1 2 2 3 3 3    mask  True False True    ->    1 1 1 1 0 0 2 2 2
        ```

        Tokens stay in their slots, and shapes stay (B, L) and (B, K). Images close ranks in the columns, and samples in
        their numbers; `frames` stay. With V views per picture of which the first two are global,
        `batch.select(batch.frames % V < 2)` holds the global views. Select before `to(device)`: on a GPU, `select`
        waits for `mask`.

        Args:
            mask: bool (B, K). Columns without an image do not count.

        Raises:
            ValueError: `mask` has another shape or dtype.
        """
        return PackedBatch.from_dict(select_images(self.to_dict(), mask))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackedBatch:
        """A batch with the tensors on `device`; keys and extras are shared."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> PackedBatch:
        """A copy of the batch in page-locked memory, for `to(device, non_blocking=True)`."""
        return self._map(torch.Tensor.pin_memory)

    def attention_mask(self) -> torch.Tensor:
        """Mask for plain SDPA: bool (B, L, L), True where query and key belong to the same image.

        Rows of padding are all False; `scaled_dot_product_attention` returns 0 there.
        """
        segments = self.segment_ids
        return (segments[:, :, None] == segments[:, None, :]) & (segments > 0)[:, :, None]

    def normalized_patches(
        self,
        mean: export.Channels = 0.5,
        std: export.Channels = 0.5,
        dtype: torch.dtype = torch.float32,
    ) -> torch.Tensor:
        """(patches / 255 - mean) / std in `dtype`, shape (B, L, P*P*C), padding 0.

        `mean` and `std` are one value, or one per channel; patches of another type than uint8 are not divided by 255.
        Only models that cannot take uint8 need this: `NaViT` folds the normalisation into its patch embedding.
        """
        normalized = normalize(self.patches, self.patches.shape[-1] // self.patch_size**2, mean, std, dtype)
        return normalized * (self.segment_ids > 0)[..., None]

    def to_dict(self) -> dict[str, Any]:
        """The fields as a plain dict, for trainers that take keyword arguments."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> PackedBatch:
        """Rebuild the batch from the dict of `to_dict`; tensors may have moved to another device since."""
        batch = object.__new__(cls)
        if "sample_sizes" not in fields:
            sizes, starts = count_samples(fields["samples"].numpy())
            fields = {**fields, "sample_sizes": sizes, "sample_starts": starts}
        fields = {"seqlen_bound": 0, **fields}
        for f in dataclasses.fields(cls):
            setattr(batch, f.name, fields[f.name])
        return batch

    def to_siglip2(
        self,
        max_num_patches: int | None = None,
        mean: export.Channels = 0.5,
        std: export.Channels = 0.5,
        dtype: torch.dtype = torch.float32,
        samples: bool = False,
    ) -> dict[str, torch.Tensor]:
        """pixel_values, pixel_attention_mask, spatial_shapes: see `export.to_siglip2`."""
        return export.to_siglip2(self, max_num_patches, mean, std, dtype, samples)

    def to_naflex(
        self,
        max_num_patches: int | None = None,
        mean: export.Channels = 0.5,
        std: export.Channels = 0.5,
        dtype: torch.dtype = torch.float32,
        samples: bool = False,
    ) -> dict[str, torch.Tensor]:
        """patches, patch_coord, patch_valid for timm: see `export.to_naflex`."""
        return export.to_naflex(self, max_num_patches, mean, std, dtype, samples)

    def to_qwen2_vl(
        self,
        mean: export.Channels = export.CLIP_MEAN,
        std: export.Channels = export.CLIP_STD,
        dtype: torch.dtype = torch.float32,
        merge_size: int = 2,
        temporal_patch_size: int = 2,
        samples: bool = False,
        video: bool = False,
    ) -> dict[str, torch.Tensor]:
        """pixel_values, image_grid_thw, or those of videos: see `export.to_qwen2_vl`."""
        return export.to_qwen2_vl(self, mean, std, dtype, merge_size, temporal_patch_size, samples, video)

    def to_pixtral(
        self,
        mean: export.Channels = export.CLIP_MEAN,
        std: export.Channels = export.CLIP_STD,
        dtype: torch.dtype = torch.float32,
        samples: bool = False,
    ) -> dict[str, torch.Tensor]:
        """pixel_values, image_sizes: see `export.to_pixtral`."""
        return export.to_pixtral(self, mean, std, dtype, samples)

    def images(self) -> Iterator[PackedImage]:
        """Iterate over the images, pack by pack: one record per image."""
        ends, samples = np.cumsum(self.lengths), self.sample_numbers()
        flat_coords, flat_patches = self.coords.flatten(0, 1), self.patches.flatten(0, 1)
        columns, frames = self.image_mask.nonzero().tolist(), self.frames[self.image_mask].tolist()
        for i, ((b, j), end, length) in enumerate(zip(columns, ends, self.lengths, strict=True)):
            slots = self.token_index[end - length : end]
            label = self.labels[b, j]
            gw, gh = self.grids[b, j].tolist()
            yield PackedImage(
                key=self.keys[b][j],
                label=label if self.labels.ndim == 3 else int(label),
                grid=(gw, gh),
                coords=flat_coords[slots],
                patches=flat_patches[slots],
                patch_size=self.patch_size,
                sample=int(samples[i]),
                frame=frames[i],
            )

    def images_by_sample(self) -> Iterator[PackedSample]:
        """Iterate over the samples, pack by pack: one record per sample, with its images in order."""
        for _, images in itertools.groupby(self.images(), lambda image: image.sample):
            yield PackedSample(images=tuple(images))
