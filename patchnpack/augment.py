"""Transforms for the loader: they keep shape and dtype, and draw from a generator seeded per image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

# H, W height and width in pixels, C channels

Transform = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def mirror_half(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirror an image with probability 1/2, uint8 (H, W, C)."""
    return image[:, ::-1] if rng.random() < 0.5 else image


@dataclass(frozen=True, slots=True)
class Compose:
    """Apply several transforms in order."""

    transforms: Sequence[Transform]

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        for transform in self.transforms:
            image = transform(image, rng)
        return image


@dataclass(frozen=True, slots=True)
class RandAugment:
    """Apply `count` random operations out of 14 to each image (RandAugment, arXiv 1909.13719, section 2).

    At magnitude 10, an operation rotates by 30 degrees, shears by 0.3, shifts by a third of a side, solarises from 0,
    posterises to 4 bits, or changes colour, contrast, brightness or sharpness by 90 %. The sign is random. Uncovered
    pixels become grey. The size of the image does not change, so the plan of the packs stays valid.

    Args:
        count: operations per image.
        magnitude: strength of the operations, 0 to 10.

    >>> image = np.zeros((4, 6, 3), np.uint8)
    >>> RandAugment(2, 9)(image, np.random.default_rng(0)).shape
    (4, 6, 3)
    """

    count: int = 2
    magnitude: float = 9.0

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.magnitude <= 10:
            raise ValueError(
                f"RandAugment has count {self.count} and magnitude {self.magnitude}; count must be at least 1 and "
                "magnitude from 0 to 10"
            )

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if image.shape[2] not in (1, 3):
            raise ValueError(
                f"the image has {image.shape[2]} channels, but RandAugment takes 1 (grey) or 3 (RGB); set image_mode "
                "to L or RGB"
            )
        picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
        for name in rng.choice(OPERATIONS, self.count):
            sign = 1 if rng.random() < 0.5 else -1
            picture = operate(picture, str(name), sign * self.magnitude / 10)
        return np.asarray(picture).reshape(image.shape)


_ENHANCERS = {
    "color": ImageEnhance.Color,
    "contrast": ImageEnhance.Contrast,
    "brightness": ImageEnhance.Brightness,
    "sharpness": ImageEnhance.Sharpness,
}
OPERATIONS = (
    "identity",
    "autocontrast",
    "equalize",
    "rotate",
    "solarize",
    "posterize",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    *_ENHANCERS,
)


def operate(picture: Image.Image, name: str, strength: float) -> Image.Image:
    """Apply one of `OPERATIONS` at a strength from -1 to 1; solarize and posterize use the absolute value."""
    if name == "identity":
        return picture
    if name in _ENHANCERS:
        return _ENHANCERS[name](picture).enhance(1 + 0.9 * strength)
    if name == "autocontrast":
        return ImageOps.autocontrast(picture)
    if name == "equalize":
        return ImageOps.equalize(picture)
    if name == "solarize":
        return ImageOps.solarize(picture, int(256 * (1 - abs(strength))))
    if name == "posterize":
        return ImageOps.posterize(picture, 8 - round(4 * abs(strength)))
    grey = 128 if picture.mode == "L" else (128,) * 3
    if name == "rotate":
        return picture.rotate(30 * strength, Image.Resampling.BILINEAR, fillcolor=grey)
    width, height = picture.size
    matrix = {
        "shear_x": (1, 0.3 * strength, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, 0.3 * strength, 1, 0),
        "translate_x": (1, 0, width / 3 * strength, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, height / 3 * strength),
    }[name]
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=grey)


def parse_augment(text: str) -> RandAugment | None:
    """Parse "COUNT:MAGNITUDE"; an empty text means no augmentation.

    >>> parse_augment("2:9")
    RandAugment(count=2, magnitude=9.0)
    """
    if not text:
        return None
    count, _, magnitude = text.partition(":")
    try:
        return RandAugment(int(count), float(magnitude))
    except ValueError as error:
        raise ValueError(f"augment is {text!r}; it must be COUNT:MAGNITUDE, such as 2:9 ({error})") from None
