"""Transforms for the loader: they keep shape and dtype, and draw from a generator seeded per image."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

from patchnpack.packer.checks import kind_of

# H, W height and width in pixels, C channels

Transform = Callable[[np.ndarray, np.random.Generator], np.ndarray]


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


def from_pil(transform: Callable[[Image.Image], Any]) -> Transform:
    """Adapt a transform of PIL images, such as one of torchvision or timm, for the loader.

    Such transforms draw from the global generators of Python, numpy and torch. Each call seeds all three from the
    image's own generator, under a lock, and restores their state afterwards. The batches are therefore the same for any
    number of threads, workers and ranks, and after a resume. torch's CUDA generators are not touched.

    ```
    uint8 (H, W, C)  ->  PIL image  ->  transform  ->  PIL image or uint8 of the same size  ->  uint8 (H, W, C)
    ```

    One thread at a time runs a transform. The lock does not stop other code of the process: a training loop that draws
    from a global CPU generator during a call, such as dropout on the CPU, disturbs the transform, and its own draws
    repeat, since the state is restored. Worker processes (`as_dataset`) avoid both, and decode in parallel.

    Args:
        transform: called with a PIL image of mode L, RGB or RGBA. Returns a PIL image of any mode, which is converted
            back, uint8 (H, W, C) or (H, W) as an array, or uint8 (C, H, W) as a tensor, of the same height and width.

    Raises:
        ValueError: `transform` is not callable. When called: the transform changed the size or returned another type.

    >>> def flip(image):
    ...     return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else image
    >>> image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    >>> [from_pil(flip)(image, np.random.default_rng(seed))[0, 0, 0].item() for seed in range(6)]
    [3, 0, 0, 0, 0, 3]
    """
    given: object = transform
    if not callable(given) or isinstance(given, type):
        raise ValueError(
            f"transform is {transform!r}; it must be a function of a PIL image, such as "
            "torchvision.transforms.Compose([...])"
        )
    return FromPil(transform)


@dataclass(frozen=True, slots=True)
class FromPil:
    """What `from_pil` returns; it can be pickled if its transform can."""

    transform: Callable[[Image.Image], Any]

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
        with _seeded_global_generators(rng):
            out = self.transform(picture)
        if isinstance(out, Image.Image):
            if out.size == picture.size:
                out = out if out.mode == picture.mode else out.convert(picture.mode)
            pixels = np.asarray(out)
        elif isinstance(out, torch.Tensor):
            pixels = out.numpy(force=True)
            pixels = pixels.transpose(1, 2, 0) if pixels.ndim == 3 else pixels
        else:
            pixels = np.asarray(out)
        shape = pixels.shape if pixels.ndim == 3 else (*pixels.shape, 1)
        if pixels.dtype != np.uint8 or shape[2:] != image.shape[2:]:
            raise ValueError(
                f"{_name(self.transform)} returned a {kind_of(out)} of {pixels.dtype} {tuple(np.shape(out))}; it must "
                f"return a PIL image, or uint8 {image.shape}: leave out ToTensor, Normalize and what follows, since "
                "batches hold uint8 and the model normalises"
            )
        if shape != image.shape:
            raise ValueError(
                f"{_name(self.transform)} returned {shape[1]}x{shape[0]} pixels for an image of "
                f"{image.shape[1]}x{image.shape[0]}; sizes are planned before images are decoded: leave out Resize, "
                "crops and rotations that expand, and set the size with Packing(resolution=...), for example "
                "RandomResizedCrop()"
            )
        return pixels.reshape(image.shape)


# One lock for all transforms, since the generators belong to the process. Reentrant, since transforms may be nested.
_generators = threading.RLock()


def _new_lock() -> None:
    global _generators
    _generators = threading.RLock()


if hasattr(os, "register_at_fork"):
    # A thread that held the lock in the parent does not exist in a forked child.
    os.register_at_fork(after_in_child=_new_lock)


@contextmanager
def _seeded_global_generators(rng: np.random.Generator) -> Iterator[None]:
    """Seed the global generators of Python, numpy and torch's CPU from `rng`; restore them at the end."""
    of_python, of_numpy, of_torch = rng.integers(1 << 32, size=3).tolist()
    with _generators:
        before = random.getstate(), np.random.get_state(), torch.default_generator.get_state()  # noqa: NPY002
        try:
            random.seed(of_python)
            np.random.seed(of_numpy)  # noqa: NPY002
            torch.default_generator.manual_seed(of_torch)
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])  # noqa: NPY002
            torch.default_generator.set_state(before[2])


def _name(transform: object) -> str:
    return str(getattr(transform, "__name__", type(transform).__name__))


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
    wanted = f"augment is {text!r}; it must be COUNT:MAGNITUDE, such as 2:9"
    try:
        numbers = int(count), float(magnitude)
    except ValueError:
        raise ValueError(wanted) from None
    try:
        return RandAugment(*numbers)
    except ValueError as error:
        raise ValueError(f"{wanted} ({error})") from None
