"""Exports: convert a batch to the inputs of SigLIP 2, NaFlexVit, Qwen2-VL and Pixtral.

Each export returns a dict of tensors on the batch's device, with the names that the model's processor uses. Images are
in the order of `batch.labels[batch.image_mask]`: pack by pack, column by column. All of these models derive positions
from the size of an image's grid. An image with dropped tokens would get wrong positions, so it raises ValueError.

An export has one row, or one grid, per image; with `samples=True`, its key "samples", int64 (N,), says which sample of
the batch each belongs to, from 0.

The models' own processors decode an image at full size and then resize it, as `Packing(scaled_decode=False)` does. Of
other batches, the first with an image that shrinks at least twofold warns.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from patchnpack.packer.batch.normalize import normalize
from patchnpack.packer.checks import check_whole

# N images of the batch, T tokens of all images, M token slots per row, P patch size, C channels, D = P*P*C,
# F frames per patch, (gw, gh) an image's patches across and down, (H, W) pixels of the largest grid

Channels = float | Sequence[float]

# Mean and standard deviation of CLIP's training images (arXiv 2103.00020), which Qwen2-VL and Pixtral also use.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class ExportableBatch(Protocol):
    """The fields of a `PackedBatch` that an export reads; `PackedBatch` documents each."""

    patches: torch.Tensor
    coords: torch.Tensor
    grids: torch.Tensor
    image_sizes: torch.Tensor
    image_mask: torch.Tensor
    keys: list[list[str]]
    patch_size: int
    scaled_decode: bool
    token_index: torch.Tensor
    lengths: list[int]

    def sample_numbers(self) -> np.ndarray: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tokens:
    """The tokens of a batch without padding, image by image, each image complete and in raster order.

    Attributes:
        patches: uint8 (T, D).
        image: int64 (T,), number of each token's image.
        start: int64 (N,), first token of each image.
        coords: int64 (T, 2), (x, y).
        grids: int64 (N, 2), (gw, gh).
        sizes: `grids` on the host.
    """

    patches: torch.Tensor
    image: torch.Tensor
    start: torch.Tensor
    coords: torch.Tensor
    grids: torch.Tensor
    sizes: np.ndarray

    def place(self) -> torch.Tensor:
        """Position of each token in its image, int64 (T,)."""
        return torch.arange(len(self.image), device=self.image.device) - self.start[self.image]


def _name(batch: ExportableBatch, image: int) -> str:
    """The key of an image, quoted for error messages."""
    return repr([key for pack in batch.keys for key in pack][image])


def _tokens(batch: ExportableBatch, model: str) -> _Tokens:
    """The tokens of every image.

    The grids of a batch on a GPU are copied to the host, to check them first.

    Raises:
        ValueError: an image has dropped tokens.
    """
    device, lengths = batch.patches.device, np.array(batch.lengths, np.int64)
    grids = batch.grids[batch.image_mask].long()
    sizes = grids.cpu().numpy()
    whole = sizes.prod(1)
    if len(dropped := np.flatnonzero(lengths != whole)):
        i = int(dropped[0])
        raise ValueError(
            f"image {_name(batch, i)} holds {lengths[i]} of its {whole[i]} tokens ({len(dropped)} of {len(lengths)} "
            f"images have dropped tokens); {model} takes complete images only, since it derives positions from the "
            "grid's size. Use Packing(token_drop=NoDrop()) without oversize='drop' and fill='trim'"
        )
    if batch.scaled_decode:
        source = batch.image_sizes[batch.image_mask].cpu().numpy()
        if (source >= 2 * batch.patch_size * sizes).all(1).any():
            _warn_of_scaled_decode()
    image = torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths))
    start = torch.from_numpy(np.cumsum(lengths) - lengths)
    return _Tokens(
        patches=batch.patches.flatten(0, 1)[batch.token_index],
        image=image.to(device),
        start=start.to(device),
        coords=batch.coords.flatten(0, 1)[batch.token_index].long(),
        grids=grids,
        sizes=sizes,
    )


@functools.cache  # once per process
def _warn_of_scaled_decode() -> None:
    warnings.warn(
        "scaled_decode is True: JPEGs that shrink at least twofold are decoded at a lower scale, so their pixels "
        "differ from those of the model's own processor; use Packing(scaled_decode=False) for the same pixels",
        stacklevel=5,
    )


def _channels(batch: ExportableBatch) -> int:
    return int(batch.patches.shape[-1]) // batch.patch_size**2


def _row_length(batch: ExportableBatch, max_num_patches: int | None) -> int:
    """M: `max_num_patches`, or the tokens of the longest image."""
    longest = max(batch.lengths, default=0)
    if max_num_patches is None:
        return longest
    check_whole("max_num_patches", max_num_patches)
    if longest > max_num_patches:
        raise ValueError(
            f"max_num_patches is {max_num_patches} and image {_name(batch, batch.lengths.index(longest))} has "
            f"{longest} tokens; give at least {longest}, or smaller images: "
            f"Packing(resolution=FitTokens({max_num_patches}))"
        )
    return max_num_patches


def _samples(batch: ExportableBatch, wanted: bool) -> dict[str, torch.Tensor]:
    return {"samples": torch.from_numpy(batch.sample_numbers()).to(batch.patches.device)} if wanted else {}


def to_siglip2(
    batch: ExportableBatch,
    max_num_patches: int | None = None,
    mean: Channels = 0.5,
    std: Channels = 0.5,
    dtype: torch.dtype = torch.float32,
    samples: bool = False,
) -> dict[str, torch.Tensor]:
    """Inputs of transformers' `Siglip2VisionModel`: one row per image.

    See SigLIP 2, arXiv 2502.14786, section 2.4.2.

    Args:
        batch: images without dropped tokens.
        max_num_patches: M, slots per row; None means the tokens of the longest image.
        mean, std: one value, or one per channel, on the scale where pixels are 0 to 1.
        dtype: dtype of the pixels.
        samples: whether to add "samples", the number of each image's sample.

    Returns:
        pixel_values (N, M, D) with padding 0; pixel_attention_mask int32 (N, M), 1 for tokens;
        spatial_shapes int64 (N, 2), (gh, gw).

    Raises:
        ValueError: an image has dropped tokens, or more than M tokens.

    >>> import numpy as np
    >>> from patchnpack import Packing, pack_stream
    >>> images = [(np.zeros((32, 64, 3), np.uint8), 0), (np.zeros((32, 32, 3), np.uint8), 1)]
    >>> (batch,) = pack_stream(images, Packing(seq_len=16), batch_size=1)
    >>> {name: list(tensor.shape) for name, tensor in to_siglip2(batch).items()}
    {'pixel_values': [2, 8, 768], 'pixel_attention_mask': [2, 8], 'spatial_shapes': [2, 2]}
    """
    row = _row_length(batch, max_num_patches)
    tokens = _tokens(batch, "SigLIP 2")
    values, mask, _ = _rows(batch, tokens, row, normalize(tokens.patches, _channels(batch), mean, std, dtype))
    made = {"pixel_values": values, "pixel_attention_mask": mask.int(), "spatial_shapes": tokens.grids.flip(1)}
    return made | _samples(batch, samples)


def to_naflex(
    batch: ExportableBatch,
    max_num_patches: int | None = None,
    mean: Channels = 0.5,
    std: Channels = 0.5,
    dtype: torch.dtype = torch.float32,
    samples: bool = False,
) -> dict[str, torch.Tensor]:
    """Inputs of timm's `NaFlexVit`: one row per image.

    A model that resizes its patch embedding to the patch size of the batch (`enable_patch_interpolator`) needs to see
    that size: pass `patches.unflatten(2, (P, P, C))`.

    Args:
        batch: images without dropped tokens.
        max_num_patches: M, slots per row; None means the tokens of the longest image.
        mean, std: one value, or one per channel, on the scale where pixels are 0 to 1.
        dtype: dtype of the pixels.
        samples: whether to add "samples", the number of each image's sample.

    Returns:
        patches (N, M, D) with padding 0; patch_coord int64 (N, M, 2), (y, x), 0 in padding; patch_valid bool (N, M).

    Raises:
        ValueError: an image has dropped tokens, or more than M tokens.

    >>> import numpy as np
    >>> from patchnpack import Packing, pack_stream
    >>> images = [(np.zeros((32, 64, 3), np.uint8), 0), (np.zeros((32, 32, 3), np.uint8), 1)]
    >>> (batch,) = pack_stream(images, Packing(seq_len=16), batch_size=1)
    >>> {name: list(tensor.shape) for name, tensor in to_naflex(batch).items()}
    {'patches': [2, 8, 768], 'patch_coord': [2, 8, 2], 'patch_valid': [2, 8]}
    """
    row = _row_length(batch, max_num_patches)
    tokens = _tokens(batch, "NaFlexVit")
    patches, valid, slots = _rows(batch, tokens, row, normalize(tokens.patches, _channels(batch), mean, std, dtype))
    coord = tokens.coords.new_zeros((*valid.shape, 2))
    coord.flatten(0, 1)[slots] = tokens.coords.flip(1)
    return {"patches": patches, "patch_coord": coord, "patch_valid": valid} | _samples(batch, samples)


def _rows(
    batch: ExportableBatch, tokens: _Tokens, row: int, values: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Arrange values in one row per image.

    Returns values (N, M, D), valid slots, bool (N, M), and each token's slot of the N*M, int64 (T,).
    """
    slots = tokens.image * row + tokens.place()
    rows = values.new_zeros((len(batch.lengths), row, values.shape[1]))
    valid = torch.zeros(rows.shape[:2], dtype=torch.bool, device=values.device)
    rows.flatten(0, 1)[slots] = values
    valid.flatten()[slots] = True
    return rows, valid, slots


def to_qwen2_vl(
    batch: ExportableBatch,
    mean: Channels = CLIP_MEAN,
    std: Channels = CLIP_STD,
    dtype: torch.dtype = torch.float32,
    merge_size: int = 2,
    temporal_patch_size: int = 2,
    samples: bool = False,
    video: bool = False,
) -> dict[str, torch.Tensor]:
    """Inputs of Qwen2-VL (arXiv 2409.12191): all images or videos in one row, tokens by merge block.

    A patch spans F frames. With `video`, these are F consecutive images of a sample, and the last image is repeated
    where their number is not a multiple of F, as the model's processor does. Otherwise each image is repeated F times.
    The vision model alone calls the two inputs `hidden_states` and `grid_thw`.

    Args:
        batch: images without dropped tokens, whose grids are multiples of `merge_size`: `Packing(grid_multiple=2)`.
        mean, std: one value, or one per channel, on the scale where pixels are 0 to 1.
        dtype: dtype of the pixels.
        merge_size: side of a merge block, in tokens; blocks are in raster order, and so are the tokens in each.
        temporal_patch_size: F.
        samples: whether to add "samples", the number of each image's sample; a video is a sample already.
        video: whether each sample is a video; its images must have equal grids.

    Returns:
        pixel_values (T, C*F*P*P) in the order channel, frame, row, column; image_grid_thw int64 (N, 3), (1, gh, gw).
        With `video`, pixel_values_videos, and video_grid_thw int64 (S, 3) for S samples, (images / F rounded up, gh,
        gw).

    Raises:
        ValueError: an image has dropped tokens, its grid does not divide into blocks, or a video has unequal grids.

    >>> import numpy as np
    >>> from patchnpack import Packing, pack_stream
    >>> images = [(np.zeros((32, 64, 3), np.uint8), 0), (np.zeros((32, 32, 3), np.uint8), 1)]
    >>> (batch,) = pack_stream(images, Packing(seq_len=16), batch_size=1)
    >>> {name: list(tensor.shape) for name, tensor in to_qwen2_vl(batch).items()}
    {'pixel_values': [12, 1536], 'image_grid_thw': [2, 3]}
    """
    check_whole("merge_size", merge_size)
    check_whole("temporal_patch_size", temporal_patch_size)
    if video and samples:
        raise ValueError("samples is True with video=True, where row i is sample i; leave one out")
    m, F, tokens = merge_size, temporal_patch_size, _tokens(batch, "Qwen2-VL")
    if len(odd := np.flatnonzero((tokens.sizes % m).any(1))):
        gw, gh = tokens.sizes[odd[0]].tolist()
        raise ValueError(
            f"image {_name(batch, int(odd[0]))} has a grid of {gw}x{gh} patches, and Qwen2-VL merges {m}x{m} of them "
            f"into one: both sides must be multiples of {m}; use Packing(grid_multiple={m})"
        )
    P, C, device = batch.patch_size, _channels(batch), batch.patches.device
    unit, place, counts = _clips(batch, tokens, video)
    sizes, steps = tokens.sizes[place == 0], -(-counts // F)
    rows = steps * sizes.prod(1)
    start = (np.cumsum(rows) - rows)[unit] + place // F * tokens.sizes.prod(1)
    end = np.where(place == counts[unit] - 1, F, place % F + 1)  # the last image fills the patch that it is in
    x, y = tokens.coords.T
    across = tokens.grids[tokens.image, 0] // m
    block, within = y // m * across + x // m, y % m * m + x % m
    row = torch.from_numpy(start).to(device)[tokens.image] + block * m**2 + within
    values = normalize(tokens.patches, C, mean, std, dtype).view(-1, P, P, C).permute(0, 3, 1, 2)
    frames = values.new_empty((int(rows.sum()), C, F, P, P))
    if len(counts) == len(unit):  # single images: one write for all frames
        frames[row] = values[:, :, None]
    for f in range(F if len(counts) < len(unit) else 0):
        chosen = torch.from_numpy(np.flatnonzero(np.repeat((place % F <= f) & (f < end), batch.lengths))).to(device)
        frames[row[chosen], :, f] = values[chosen]
    thw = torch.from_numpy(np.column_stack([steps, sizes[:, ::-1]]).astype(np.int64)).to(device)
    names = ("pixel_values_videos", "video_grid_thw") if video else ("pixel_values", "image_grid_thw")
    return dict(zip(names, (frames.flatten(1), thw), strict=True)) | _samples(batch, samples)


def _clips(batch: ExportableBatch, tokens: _Tokens, video: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Number of each image's clip, its place in it, and the number of images of each clip, each int64.

    A clip is a sample, or without `video` a single image.
    """
    N = len(tokens.sizes)
    unit = batch.sample_numbers() if video else np.arange(N)
    counts = np.bincount(unit)
    place = np.arange(N) - (np.cumsum(counts) - counts)[unit]
    if len(other := np.flatnonzero((tokens.sizes != tokens.sizes[place == 0][unit]).any(1))):
        two = int(other[0])
        one = two - int(place[two])
        (gw, gh), (gw2, gh2) = tokens.sizes[one].tolist(), tokens.sizes[two].tolist()
        raise ValueError(
            f"the images {_name(batch, one)} and {_name(batch, two)} of one sample have grids of {gw}x{gh} and "
            f"{gw2}x{gh2} patches, but the frames of a video must have equal grids; give them one size, such as "
            "Packing(resolution=Square(224)), or leave out video=True"
        )
    return unit, place, counts


def to_pixtral(
    batch: ExportableBatch,
    mean: Channels = CLIP_MEAN,
    std: Channels = CLIP_STD,
    dtype: torch.dtype = torch.float32,
    samples: bool = False,
) -> dict[str, torch.Tensor]:
    """Inputs of Pixtral (arXiv 2410.07073): whole images, padded to the largest.

    Args:
        batch: images without dropped tokens.
        mean, std: one value, or one per channel, on the scale where pixels are 0 to 1.
        dtype: dtype of the pixels.
        samples: whether to add "samples", the number of each image's sample.

    Returns:
        pixel_values (N, C, H, W), padded with 0 at the right and the bottom; image_sizes int64 (N, 2), (height, width)
        in pixels.

    Raises:
        ValueError: an image has dropped tokens.

    >>> import numpy as np
    >>> from patchnpack import Packing, pack_stream
    >>> images = [(np.zeros((32, 64, 3), np.uint8), 0), (np.zeros((32, 32, 3), np.uint8), 1)]
    >>> (batch,) = pack_stream(images, Packing(seq_len=16), batch_size=1)
    >>> {name: list(tensor.shape) for name, tensor in to_pixtral(batch).items()}
    {'pixel_values': [2, 3, 32, 64], 'image_sizes': [2, 2]}
    """
    P, C, tokens = batch.patch_size, _channels(batch), _tokens(batch, "Pixtral")
    gw, gh = tokens.sizes.max(0, initial=0).tolist()
    values = normalize(tokens.patches, C, mean, std, dtype).view(-1, P, P, C)
    canvas = values.new_zeros((len(batch.lengths), C, gh, P, gw, P))
    x, y = tokens.coords.T
    # A view in the order of `values`, so that the pixels are written once.
    canvas.permute(0, 2, 4, 3, 5, 1)[tokens.image, y, x] = values
    made = {"pixel_values": canvas.flatten(4, 5).flatten(2, 3), "image_sizes": tokens.grids.flip(1) * P}
    return made | _samples(batch, samples)
