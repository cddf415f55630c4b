"""Patch embedding on raw bytes: the image normalisation is folded into the weight and the bias."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

# T valid tokens, P patch size, C channels, D width


class PatchEmbed(nn.Module):
    """Embeds uint8 patches (T, P*P*C) as (T, D), equal to a linear layer on (pixels / 255 - mean) / std.

    `weight` (D, P*P*C), pixels in row, column, channel order, and `bias` (D,) belong to normalised pixels, so a
    checkpoint does not depend on how the normalisation is done. Each forward folds it into them,

        W (x / 255 - mean) / std + b  =  W' x + (b - W' 255 mean)      with  W' = W / (255 std),

    which is exact and costs about as much as one more token. Edge pixels that padding made are pixels of value 0. The
    matrix product runs in the autocast dtype; bytes are exact in bfloat16 too.

    Args:
        patch_size, channels, width: P, C and D.
        mean, std: for each channel, on the scale where pixels are 0 to 1.

    >>> PatchEmbed(2, 3, 8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))(torch.zeros(5, 12, dtype=torch.uint8)).shape
    torch.Size([5, 8])
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self, patch_size: int, channels: int, width: int, *, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        super().__init__()
        pixels = patch_size * patch_size
        self.weight = nn.Parameter(torch.empty(width, pixels * channels))
        self.bias = nn.Parameter(torch.zeros(width))
        nn.init.trunc_normal_(self.weight, std=(pixels * channels) ** -0.5)
        # on the scale of bytes; not in the state dict, since the configuration holds them
        self.register_buffer("mean", 255 * torch.tensor(mean).repeat(pixels), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).repeat(pixels), persistent=False)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        device = patches.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.weight.dtype
        with torch.autocast(device, enabled=False):
            weight = self.weight / self.std
            bias = self.bias - weight @ self.mean
            return F.linear(patches.to(dtype), weight.to(dtype), bias.to(dtype))
