"""`normalize`: normalised float pixels, for models without a built-in normalisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch

# D values of a patch, P*P*C; C channels


def normalize(
    patches: torch.Tensor,
    channels: int,
    mean: float | Sequence[float] = 0.5,
    std: float | Sequence[float] = 0.5,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """(pixels - mean) / std, computed in at least float32 and returned as `dtype`; same shape.

    Pixels are `patches / 255` of uint8, and otherwise `patches` as they are.

    Args:
        patches: uint8, uint16, int16 or float32 (..., D), channels last within each pixel.
        channels: C.
        mean, std: one value, or one per channel, on the scale of the pixels: of uint8, 0 to 1.
        dtype: dtype of the result.

    Raises:
        ValueError: the number of values is neither 1 nor C, a `std` is not above 0, or `dtype` is not a float dtype.

    >>> pixel = torch.tensor([0, 51, 255], dtype=torch.uint8)
    >>> normalize(pixel, 3, mean=(0.0, 0.2, 0.5), std=(1.0, 1.0, 0.5)).tolist()
    [0.0, 0.0, 1.0]
    """
    if not dtype.is_floating_point:
        raise ValueError(f"dtype is {dtype}; normalised pixels are fractions: use a float dtype such as torch.float32")
    exact = torch.promote_types(dtype, torch.float32)
    shift, scale = (torch.as_tensor(value, dtype=exact) for value in (mean, std))
    for name, value in (("mean", shift), ("std", scale)):
        if value.numel() not in (1, channels):
            raise ValueError(
                f"{name} has {value.numel()} values for {channels} channels; give one value, or one per channel"
            )
    if not (scale > 0).all():
        raise ValueError(f"std is {std}; it must be above 0")
    normalized = patches.to(exact, copy=True)
    pixels = normalized.unflatten(-1, (-1, channels))  # a view: the steps below work in place
    if patches.dtype == torch.uint8:
        pixels.div_(255)
    pixels.sub_(shift.to(patches.device)).div_(scale.to(patches.device))
    return normalized.to(dtype)
