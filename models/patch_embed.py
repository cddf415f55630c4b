"""Patch embedding on raw bytes, at any patch size: normalisation and resizing are folded into the weight."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import nn

from patchnpack.models.linear import linear

# T tokens, P patch size of the weight, S patch size of a batch, C channels, D width

RESIZES = ("bilinear", "bicubic")


@functools.cache
def resize_matrix(old: int, new: int, mode: str) -> np.ndarray:
    """float64 (new, old): what resizing does to each row and each column of an image.

    Args:
        old, new: sides in pixels.
        mode: "bilinear", without antialias (FlexiViT, arXiv 2212.08013, section 3.4), or "bicubic", with it (timm).

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
    """float32 (S, P), the transposed pseudo-inverse of the resize from P to S."""
    return np.ascontiguousarray(np.linalg.pinv(resize_matrix(P, S, mode)).T, np.float32)


def pi_resize(weight: torch.Tensor, P: int, S: int, mode: str = "bilinear") -> torch.Tensor:
    """Patch embedding weights (D, P*P*C) for patches of S pixels a side, (D, S*S*C), float32 (FlexiViT, section 3.4).

    With B the resize of a patch from P to S, w' = (B^T)^+ w. Where S >= P a resized patch gives the same token,
    <Bx, w'> = <x, w>; where S < P it is the least-squares solution for patches of independent pixels (eq. 2 to 5). The
    resize takes rows and columns apart, so its pseudo-inverse does too.

    >>> pi_resize(torch.ones(8, 16 * 16 * 3), 16, 32).shape
    torch.Size([8, 3072])
    """
    if P == S:
        return weight
    with torch.autocast(weight.device.type, enabled=False):
        A_SP = torch.from_numpy(_pi_matrix(P, S, mode)).to(weight)
        rows = A_SP @ weight.unflatten(1, (P, -1))  # (D, S, P*C)
        return (A_SP @ rows.unflatten(2, (P, -1))).flatten(1)


class PatchEmbed(nn.Module):
    """Embeds uint8 patches (T, S*S*C) as (T, D), equal to a linear layer on (pixels / 255 - mean) / std.

    `weight` (D, P*P*C), pixels in row, column, channel order, and `bias` (D,) belong to normalised pixels and patches
    of P pixels a side, so a checkpoint does not depend on how the normalisation is done. At another size S each forward
    resizes them, always from P (`pi_resize`). Then it folds the normalisation in,

        W (x / 255 - mean) / std + b  =  W' x + (b - W' 255 mean)      with  W' = W / (255 std),

    which is exact and costs about as much as one more token. Edge pixels that padding made are pixels of value 0. The
    matrix product runs in the autocast dtype; bytes are exact in bfloat16 too.

    Args:
        patch_size, channels, width: P, C and D.
        mean, std: for each channel, on the scale where pixels are 0 to 1.
        resize: of `pi_resize`, "bilinear" or "bicubic".

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
        self.weight = nn.Parameter(torch.empty(width, pixels))
        self.bias = nn.Parameter(torch.zeros(width))
        nn.init.trunc_normal_(self.weight, std=pixels**-0.5)
        # on the scale of bytes; not in the state dict, since the configuration holds them
        self.register_buffer("mean", 255 * torch.tensor(mean), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std), persistent=False)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        device, C = patches.device.type, len(self.mean)
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.weight.dtype
        S = round((patches.shape[1] / C) ** 0.5)
        with torch.autocast(device, enabled=False):
            weight = pi_resize(self.weight, self.patch_size, S, self.resize).unflatten(1, (-1, C)) / self.std
            bias = self.bias - weight.sum(1) @ self.mean
            return linear(patches.to(dtype), weight.flatten(1).to(dtype), bias.to(dtype))
