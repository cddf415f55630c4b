"""Colours, hatching and text of the pictures of packs."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, features

# Okabe and Ito's colours, which colour-blind readers can distinguish; the order alternates light and dark.
COLOURS = ((0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (213, 94, 0), (86, 180, 233))
PAPER, INK, FAINT, RULE = (255, 255, 255), (33, 37, 41), (99, 107, 115), (222, 226, 230)
GROUND, STROKE = (238, 240, 243), (173, 181, 189)


def rgb(pixels: np.ndarray) -> Image.Image:
    """Convert uint8 (height, width, C) to an RGB picture; transparent pixels become white."""
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    if picture.mode == "RGBA":
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, PAPER), picture)
    return picture.convert("RGB")


def as_colors(patches: torch.Tensor, channels: int, shown: torch.Tensor) -> torch.Tensor:
    """Patches (..., P*P*C) of any type and number of bands C as those of grey or RGB pixels, uint8 (..., P*P*1 or 3).

    Grey shows the first of one or two bands, RGB the first three of more. Each band is scaled from its 1st to its 99th
    percentile over the patches where `shown`, bool (...), is True.
    """
    values = patches.cpu().numpy().reshape(*patches.shape[:-1], -1, channels)
    values = values[..., : 3 if channels > 2 else 1].astype(np.float32)
    seen = values[shown.cpu().numpy()].reshape(-1, values.shape[-1])
    low, high = np.percentile(seen, (1, 99), axis=0) if len(seen) else (np.zeros(1), np.ones(1))
    scaled = ((values - low) / np.maximum(high - low, np.finfo(np.float32).tiny)).clip(0, 1) * 255
    return torch.from_numpy(np.rint(scaled).astype(np.uint8).reshape(*patches.shape[:-1], -1))


def hatch(height: int, width: int, *, back: bool = False) -> np.ndarray:
    """A pattern of slanted lines, uint8 (height, width, 3); `back` mirrors the slant."""
    y, x = np.ogrid[:height, :width]
    stroke = np.take([0.5, 1.0, 0.5, 0, 0, 0, 0, 0], (x - y if back else x + y) % 8)[..., None]
    colours: np.ndarray = GROUND * (1 - stroke) + np.multiply(STROKE, stroke)
    return np.round(colours).astype(np.uint8)


def colour_of(number: int) -> tuple[int, int, int]:
    return COLOURS[(number - 1) % len(COLOURS)]


def text_on(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    return INK if np.dot(colour, (0.299, 0.587, 0.114)) > 125 else PAPER


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    # PIL built without FreeType has only one small bitmap font.
    return ImageFont.load_default(size) if features.check("freetype2") else ImageFont.load_default_imagefont()


def printable(text: str) -> str:
    text = "".join(c if c.isprintable() else "?" for c in text)
    # The bitmap font supports Latin-1 only.
    return text if features.check("freetype2") else text.encode("latin-1", "replace").decode("latin-1")


def write(draw: ImageDraw.ImageDraw, x: float, y: float, text: str, size: int, fill: tuple[int, int, int]) -> float:
    """Write `text` with its upper left corner at (x, y); returns the x at which it ends."""
    text, face = printable(text), font(size)
    draw.text((x, y), text, fill, face)
    return x + face.getlength(text)
