"""Patch embedding of pixels of any depth, at any patch size.

Normalisation and resize are folded into the weight.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

# T tokens, P patch size of the weight, S patch size of a batch, C channels, D width

RESIZES = ("bilinear", "bicubic")


@functools.cache
def resize_matrix(old: int, new: int, mode: str) -> np.ndarray:
    """Matrix that resizes each row and each column of an image, float64 (new, old).

    Args:
        old, new: sides in pixels.
        mode: "bilinear" without antialias (FlexiViT, arXiv 2212.08013, section 3.4), or "bicubic" with antialias
            (timm).

    >>> resize_matrix(2, 4, "bilinear").tolist()
    [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]]
    """
    scale = max(old / new, 1.0) if mode == "bicubic" else 1.0
    away = np.abs(np.arange(old) + 0.5 - (np.arange(new)[:, None] + 0.5) * old / new) / scale
    if mode == "bicubic":  # Keys' cubic with a = -0.5
        weights = np.where(away < 1, (1.5 * away - 2.5) * away**2 + 1, ((-0.5 * away + 2.5) * away - 4) * away + 2)
        weights *= away < 2
    else:
        weights = np.maximum(1 - away, 0)
    return np.asarray(weights / weights.sum(1, keepdims=True))


@functools.cache
def _pi_matrix(P: int, S: int, mode: str) -> np.ndarray:
    """Transposed pseudo-inverse of the resize from P to S, float32 (S, P)."""
    return np.ascontiguousarray(np.linalg.pinv(resize_matrix(P, S, mode)).T, np.float32)


def pi_resize(weight: torch.Tensor, P: int, S: int, mode: str = "bilinear") -> torch.Tensor:
    """Resize patch embedding weights from patch size P to S: (D, P*P*C) to (D, S*S*C), float32.

    This is PI-resize (FlexiViT, arXiv 2212.08013, section 3.4). With B the resize of a patch from P to S, w' = (B^T)^+
    w. Where S >= P, a resized patch gives the same token, <Bx, w'> = <x, w>. Where S < P, w' is the least-squares
    solution for patches of independent pixels (eq. 2 to 5). The resize is separable into rows and columns, and so is
    its pseudo-inverse.

    >>> pi_resize(torch.ones(8, 16 * 16 * 3), 16, 32).shape
    torch.Size([8, 3072])
    """
    if P == S:
        return weight
    with torch.autocast(weight.device.type, enabled=False):
        A_SP = torch.from_numpy(_pi_matrix(P, S, mode)).to(weight, non_blocking=True)
        rows = A_SP @ weight.unflatten(1, (P, -1))  # (D, S, P*C)
        return (A_SP @ rows.unflatten(2, (P, -1))).flatten(1)


class PatchEmbed(nn.Module):
    """Embed patches (T, S*S*C) as (T, D): a linear layer on (pixels - mean) / std, where uint8 is pixels / 255.

    `weight` (D, P*P*C), pixels in row, column, channel order, and `bias` (D,) apply to normalised patches of P pixels
    per side, so a checkpoint does not depend on how pixels are normalised. At another patch size S each forward resizes
    the weight, always from P (`pi_resize`). Then it folds the normalisation in,

        W (x / 255 - mean) / std + b  =  W' x + (b - W' 255 mean)      with  W' = W / (255 std),

    which is exact and costs about as much as one more token. Padding at the edges counts as pixels of value 0. The
    matrix product runs in the autocast dtype; bytes are exact in bfloat16, too. Of other types than uint8, the mean is
    subtracted before, in float32: bfloat16 would round large values, and a large mean would cancel in the product.

    Args:
        patch_size, channels, width: P, C and D.
        mean, std: one value per channel, on the scale of the pixels: of uint8, 0 to 1.
        resize: mode of `pi_resize`, "bilinear" or "bicubic".

    >>> embed = PatchEmbed(2, 3, 8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    >>> embed(torch.zeros(5, 12, dtype=torch.uint8)).shape, embed(torch.zeros(5, 48, dtype=torch.uint8)).shape
    (torch.Size([5, 8]), torch.Size([5, 8]))
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        patch_size: int,
        channels: int,
        width: int,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        resize: str = "bilinear",
    ) -> None:
        super().__init__()
        self.patch_size, self.resize, pixels = patch_size, resize, patch_size * patch_size * channels
        self.weight = nn.Parameter(nn.init.trunc_normal_(torch.empty(width, pixels), std=pixels**-0.5))
        self.bias = nn.Parameter(torch.zeros(width))
        # Not in the state dict, since the configuration holds them.
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        device, C = patches.device.type, len(self.mean)
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.weight.dtype
        S = round((patches.shape[1] / C) ** 0.5)
        mean, std = (255 * self.mean, 255 * self.std) if patches.dtype == torch.uint8 else (self.mean, self.std)
        with torch.autocast(device, enabled=False):
            weight = pi_resize(self.weight, self.patch_size, S, self.resize).unflatten(1, (-1, C)) / std
            if patches.dtype != torch.uint8:
                patches, mean = (patches.float().unflatten(1, (-1, C)) - mean).flatten(1), torch.zeros_like(mean)
            bias = self.bias - weight.sum(1) @ mean
            return F.linear(patches.to(dtype), weight.flatten(1).to(dtype), bias.to(dtype))
