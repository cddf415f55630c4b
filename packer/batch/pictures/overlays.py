"""Overlays: the targets of packed images as pictures, masks tinted over the pixels and objects drawn in them."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image, ImageDraw

from patchnpack.packer.batch.objects import PackedObjects
from patchnpack.packer.batch.packed_image import PackedImage
from patchnpack.packer.batch.pictures.canvas import (
    COLOURS,
    GROUND,
    INK,
    PAPER,
    as_colors,
    colour_of,
    hatch,
    rgb,
    text_on,
    write,
)
from patchnpack.packer.text import counted

# B packs, L token slots per pack, P patch size, V values per token, C values per pixel, n tokens of an image

_MOST_CLASSES = 64  # a target of more different whole numbers is drawn as a map
_TINT, _FILL_TINT = 0.55, 0.7  # share of a class's colour, and of grey where a mask says nothing
_FILL = (128, 128, 128)
_DOT, _NAMED = 2, 48  # radius of a point; width of an object, in drawn pixels, that has room for its class


class HasTargets(Protocol):
    """What overlays need of a `PackedBatch`."""

    targets: dict[str, torch.Tensor | PackedObjects]
    target_fill: dict[str, float]
    segment_ids: torch.Tensor
    token_index: torch.Tensor
    lengths: list[int]
    patch_size: int


class Overlays(NamedTuple):
    """The targets of one image.

    Attributes:
        masks: by name, the values of its n tokens, (n, V), and the value that stands for none.
        maps: by name, the colours of its n tokens as uint8 (n, V).
        objects: by name.
    """

    masks: Mapping[str, tuple[np.ndarray, float]] = {}
    maps: Mapping[str, np.ndarray] = {}
    objects: Mapping[str, PackedObjects] = {}

    @property
    def pictures(self) -> int:
        """Number of pictures that `thumbs` returns."""
        return max(1, len(self.masks)) + len(self.maps)

    def captions(self) -> list[str]:
        """Return one line for each target."""
        objects = [f"{name}: {counted(len(each), 'object')}" for name, each in self.objects.items()]
        return [*self.masks, *objects, *self.maps]


def overlays_of(batch: HasTargets) -> Iterator[Overlays]:
    """Yield the targets of each image of a batch, pack by pack.

    Whole numbers of at most 64 different values are a mask, other values per token a map.
    """
    shown = (batch.segment_ids > 0).flatten().cpu().numpy()
    masks: dict[str, tuple[np.ndarray, float]] = {}
    maps: dict[str, np.ndarray] = {}
    objects: dict[str, PackedObjects] = {}
    for name, target in batch.targets.items():
        if isinstance(target, PackedObjects):
            objects[name] = target
            continue
        values = target.cpu().numpy().reshape(len(shown), -1)  # torch counts few things in uint16
        if values.dtype.kind in "iu" and len(np.unique(values[shown])) <= _MOST_CLASSES:
            masks[name] = values, batch.target_fill.get(name, -1)
            continue
        numbers = torch.from_numpy(np.nan_to_num(values.astype(np.float32), posinf=0, neginf=0))
        channels = _channels(values.shape[1], batch.patch_size)
        maps[name] = as_colors(numbers, channels, torch.from_numpy(shown)).numpy()
    end = 0
    for i, length in enumerate(batch.lengths):
        slots = batch.token_index[end : end + length].cpu().numpy()
        end += length
        yield Overlays(
            {name: (values[slots], fill) for name, (values, fill) in masks.items()},
            {name: colours[slots] for name, colours in maps.items()},
            {name: each.of(i) for name, each in objects.items()},
        )


def thumbs(image: PackedImage, overlays: Overlays, scale: float) -> list[Image.Image]:
    """Return an image with its first mask and its objects, then with each other mask, then its maps.

    The images are assembled from patches at `scale` pixels per patch; dropped patches are hatched.
    """
    pixels = np.asarray(rgb(image.pixels()))
    first, *others = overlays.masks.values() or [None]
    with_objects = thumb(image, pixels if first is None else _tinted(pixels, image, *first), scale)
    _draw_objects(with_objects, image, overlays)
    return [
        with_objects,
        *(thumb(image, _tinted(pixels, image, *mask), scale) for mask in others if mask is not None),
        *(thumb(image, np.asarray(rgb(_map_pixels(image, colours))), scale) for colours in overlays.maps.values()),
    ]


def thumb(image: PackedImage, pixels: np.ndarray, scale: float) -> Image.Image:
    """Draw pixels (gh*P, gw*P, 3) of an image at `scale` pixels per patch; dropped patches are hatched."""
    (gw, gh), P = image.grid, image.patch_size
    size = max(2, round(gw * scale)), max(2, round(gh * scale))
    kept = np.zeros((gh, gw), np.uint8)
    x, y = image.coords.cpu().numpy().T
    kept[y, x] = 255
    pixels = pixels.copy()
    pixels[np.repeat(np.repeat(kept == 0, P, 0), P, 1)] = GROUND
    picture = Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)
    mask = Image.fromarray(kept).resize(size, Image.Resampling.NEAREST)
    return Image.composite(picture, Image.fromarray(hatch(size[1], size[0], back=True)), mask)


def _tinted(pixels: np.ndarray, image: PackedImage, values: np.ndarray, fill: float) -> np.ndarray:
    """Tint pixels (gh*P, gw*P, 3) by a mask (n, V): a colour for each class but 0, grey where it is `fill`."""
    labels = _laid_out(image, values, np.zeros((), values.dtype))[..., 0]
    out = pixels.astype(np.float32)
    for value in np.unique(labels).tolist():
        if value == fill or value:
            share = _FILL_TINT if value == fill else _TINT
            where = labels == value
            out[where] = out[where] * (1 - share) + np.array(_FILL if value == fill else class_colour(value)) * share
    return np.rint(out).astype(np.uint8)


def _map_pixels(image: PackedImage, colours: np.ndarray) -> np.ndarray:
    """Lay a map's colours (n, V) out as a picture, uint8 (gh*P, gw*P, 1 or 3)."""
    return _laid_out(image, colours, np.zeros((), np.uint8))


def _draw_objects(picture: Image.Image, image: PackedImage, overlays: Overlays) -> None:
    """Draw the boxes, outlines and points of an image in its picture, at the scale of the picture."""
    draw = ImageDraw.Draw(picture)
    scale = np.array(picture.size) / (np.array(image.grid) * image.patch_size)
    for objects in overlays.objects.values():
        labels = objects.labels.tolist()
        colours = [class_colour(i + 1 if label < 0 else label) for i, label in enumerate(labels)]
        if objects.boxes is not None:
            for box, label, colour in zip(objects.boxes.cpu().numpy(), labels, colours, strict=True):
                _draw_box(draw, (box.reshape(2, 2) * scale).tolist(), label, colour)
        if objects.points is not None:
            assert objects.visible is not None
            assert objects.lengths is not None
            points, visible = objects.points.cpu().numpy() * scale, objects.visible.cpu().numpy()
            edges = np.cumsum(objects.lengths.cpu().numpy())[:-1]
            for ring, seen, colour in zip(np.split(points, edges), np.split(visible, edges), colours, strict=False):
                _draw_points(draw, ring, seen, colour, closed=objects.outlines)


def class_colour(number: int) -> tuple[int, int, int]:
    """Return the colour of class `number`; those beside 1 to 6 differ in hue by the golden ratio.

    >>> class_colour(1), class_colour(7) != class_colour(8)
    ((0, 114, 178), True)
    """
    if 0 < number <= len(COLOURS):
        return colour_of(number)
    red, green, blue = colorsys.hsv_to_rgb(number * 0.6180339887 % 1, 0.65, 0.9)
    return round(red * 255), round(green * 255), round(blue * 255)


def _channels(values: int, patch_size: int) -> int:
    """Values per pixel of V values per token: the token's own, unless they are those of its pixels."""
    return values // patch_size**2 if values % patch_size**2 == 0 else values


def _laid_out(image: PackedImage, values: np.ndarray, empty: np.ndarray) -> np.ndarray:
    """Values of tokens (n, V) as (gh*P, gw*P, C); a value of a token is that of its pixels."""
    (gw, gh), P = image.grid, image.patch_size
    C = _channels(values.shape[1], P)
    side = P if values.shape[1] == P * P * C else 1
    canvas = np.full((gh, gw, side, side, C), empty, values.dtype)
    x, y = image.coords.cpu().numpy().T
    canvas[y, x] = values.reshape(len(x), side, side, C)
    pixels = canvas.transpose(0, 2, 1, 3, 4).reshape(gh * side, gw * side, C)
    return pixels if side == P else pixels.repeat(P, 0).repeat(P, 1)


def _draw_box(draw: ImageDraw.ImageDraw, corners: list[list[float]], label: int, colour: tuple[int, int, int]) -> None:
    (left, top), (right, bottom) = corners
    # The last pixel that a box covers is the one before its right and bottom edges.
    right, bottom = max(left, right - 1), max(top, bottom - 1)
    draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=PAPER)
    draw.rectangle((left, top, right, bottom), outline=colour, width=2)
    if label >= 0 and right - left >= _NAMED // 2:
        text = str(label)
        draw.rectangle((left, top, left + 7 * len(text) + 5, top + 13), colour)
        write(draw, left + 3, top, text, 12, text_on(colour))


def _draw_points(
    draw: ImageDraw.ImageDraw, points: np.ndarray, visible: np.ndarray, colour: tuple[int, int, int], *, closed: bool
) -> None:
    if closed:
        ring = [*map(tuple, points.tolist()), tuple(points[0].tolist())]
        draw.line(ring, PAPER, 4, joint="curve")
        draw.line(ring, colour, 2, joint="curve")
        return
    for x, y in points[visible].tolist():
        draw.ellipse((x - _DOT - 1, y - _DOT - 1, x + _DOT + 1, y + _DOT + 1), INK)
        draw.ellipse((x - _DOT, y - _DOT, x + _DOT, y + _DOT), colour)
