"""Draw the demo's data set: shapes whose class only the true aspect ratio reveals.

    python examples/shapes.py OUT [--files]

writes `OUT/train-000000.tar` ..., `OUT/validation-000000.tar` and `OUT/classes.txt`: webdataset shards whose samples
are `KEY.jpg` and `KEY.cls`, the class as a number; or with --files `OUT/CLASS/00000.jpg` ... The classes are `tall`
(1:3), `even` (1:1) and `wide` (3:1), each an ellipse or a diamond. The sides of an image are drawn independently of its
class: 48 to 384 pixels, 1:4 to 4:1.

No model can tell the classes reliably once the images are squares. Resizing W x H to a square divides a shape's aspect
ratio by W/H, and only the quotient remains visible. In octaves, the image's aspect ratio is uniform over -2 to 2, and
the shape's is -1.58, 0 or 1.58. A quotient from -0.42 to 0.42 therefore fits all three classes equally well, and most
others fit two. The best guess for each quotient is right in (length of the union of the three ranges) / (sum of their
lengths) = 7.17 / 12 = 60 % of the images. Everything behind the shape is drawn in coordinates of the image's sides, so
that it stretches too and gives nothing away.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from webdataset import ShardWriter

Floats = NDArray[np.float64]

CLASSES = ("tall", "even", "wide")
ASPECTS = (1 / 3, 1.0, 3.0)
MIN_SIDE, MAX_SIDE, MAX_ASPECT = 48, 384, 4.0

_DARK = np.array([(38, 70, 83), (29, 53, 87), (61, 37, 77), (20, 83, 74), (94, 33, 41), (52, 58, 64)])
LIGHT = np.array([(244, 241, 222), (255, 209, 102), (168, 218, 220), (250, 177, 160), (202, 231, 185), (214, 196, 240)])


def draw_size(rng: np.random.Generator, sides: tuple[int, int] | None = None) -> tuple[int, int]:
    """Draw (width, height) in pixels; the logarithms of the aspect and of the shorter side are uniform."""
    low, high = sides or (MIN_SIDE, MAX_SIDE)
    aspect = MAX_ASPECT ** rng.uniform(-1.0, 1.0)
    ratio = max(aspect, 1 / aspect)
    short = round(low * (high / low / ratio) ** rng.uniform())
    long = min(high, round(short * ratio))
    return (long, short) if aspect > 1 else (short, long)


def draw_image(label: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw an image, uint8 (height, width, 3), with a shape of aspect `ASPECTS[label]`.

    >>> draw_image(2, np.random.default_rng(0)).dtype
    dtype('uint8')
    """
    size = width, height = draw_size(rng)
    fit = rng.uniform(0.7, 0.95) * min(width / ASPECTS[label], height)
    a, b = fit * ASPECTS[label] / 2, fit / 2
    cover = draw_cover(size, (float(rng.uniform(a, width - a)), float(rng.uniform(b, height - b))), (a, b), rng)
    blend = cover[..., None]
    picture: Floats = background(width, height, rng) * (1 - blend) + LIGHT[rng.integers(len(LIGHT))] * blend
    return np.round(picture).astype(np.uint8)


def draw_cover(
    size: tuple[int, int], centre: tuple[float, float], radii: tuple[float, float], rng: np.random.Generator
) -> Floats:
    """Draw an ellipse or a diamond; return the share of each pixel that it covers, float64 (height, width)."""
    dx, dy = np.arange(0.5, size[0]) - centre[0], np.arange(0.5, size[1])[:, None] - centre[1]
    cover: Floats = np.clip(0.5 - (_ellipse, _diamond)[rng.integers(2)](dx, dy, *radii), 0.0, 1.0)
    return cover


def draw_shapes(
    folder: str | Path, images: int = 480, validation: int = 120, *, seed: int = 0, images_per_shard: int = 120
) -> None:
    """Write `images` training samples and `validation` validation samples as shards into `folder`.

    The classes are equally frequent. The same arguments write the same bytes, for one build of PIL's JPEG encoder.

    Raises:
        ValueError: a count is below 1, or the folder holds shards that this call would not overwrite.
    """
    for name, value in (("images", images), ("validation", validation), ("images_per_shard", images_per_shard)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    folder = Path(folder).resolve()
    splits = {"train": images, "validation": validation}
    expected = {f"{split}-{i:06d}.tar" for split, n in splits.items() for i in range(-(-n // images_per_shard))}
    if others := sorted({path.name for path in folder.glob("*.tar")} - expected):
        raise ValueError(
            f"{folder} holds shards of another data set ({others[0]}); remove them, or name another folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    for part, (split, count) in enumerate(splits.items()):
        labels = np.random.default_rng((seed, part)).permutation(np.arange(count) % len(CLASSES))
        pattern = f"{folder}/{split}-".replace("%", "%%") + "%06d.tar"
        with ShardWriter(pattern, maxcount=images_per_shard, verbose=0, encoder=False, mtime=0) as shards:
            for i, label in enumerate(labels.tolist()):
                pixels = draw_image(label, np.random.default_rng((seed, part, i)))
                jpeg = io.BytesIO()
                Image.fromarray(pixels).save(jpeg, "JPEG", quality=92)
                shards.write({"__key__": f"{split}-{i:05d}", "jpg": jpeg.getvalue(), "cls": str(label).encode()})


def draw_files(folder: str | Path, images: int = 480, *, seed: int = 0) -> None:
    """Write `images` JPEG files into `folder`, with one sub-folder per class."""
    for i in range(images):
        path = Path(folder, CLASSES[i % len(CLASSES)], f"{i:05d}.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = draw_image(i % len(CLASSES), np.random.default_rng((seed, 2, i)))
        Image.fromarray(pixels).save(path, "JPEG", quality=92)


# Each returns the distance to the outline in pixels, negative inside, at (dx, dy) from the centre of a 2a x 2b shape.
def _ellipse(dx: Floats, dy: Floats, a: float, b: float) -> Floats:
    # First-order approximation: the implicit function divided by the length of its gradient.
    radius = np.maximum(np.sqrt((dx / a) ** 2 + (dy / b) ** 2), 1e-6)
    return (radius - 1) * radius / np.maximum(np.sqrt((dx / a**2) ** 2 + (dy / b**2) ** 2), 1e-9)


def _diamond(dx: Floats, dy: Floats, a: float, b: float) -> Floats:
    slope = float(np.hypot(1 / a, 1 / b))
    return (np.abs(dx) / a + np.abs(dy) / b - 1) / slope


def background(width: int, height: int, rng: np.random.Generator) -> Floats:
    """Draw a colour gradient with soft spots, stretched with the image, float64 (height, width, 3)."""
    first, second = rng.permutation(_DARK)[:2]
    x, y = (np.arange(width) + 0.5) / width, ((np.arange(height) + 0.5) / height)[:, None]
    slope = rng.uniform(-1, 1, 2)
    blend = np.clip(0.5 + slope[0] * (x - 0.5) + slope[1] * (y - 0.5), 0, 1)
    shade = np.zeros((height, width))
    for _ in range(4):
        cx, cy, radius, amount = rng.uniform((0, 0, 0.15, -26), (1, 1, 0.4, 26))
        shade += amount * np.clip(1 - ((x - cx) ** 2 + (y - cy) ** 2) / radius**2, 0, 1) ** 2
    mixed: Floats = first * (1 - blend[..., None]) + second * blend[..., None]
    return np.clip(mixed + shade[..., None], 0, 255)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the demo's data set of shapes as webdataset shards.")
    parser.add_argument("out", type=Path, help="folder for the shards and classes.txt")
    parser.add_argument("--images", type=int, default=480, help="number of training images")
    parser.add_argument("--validation", type=int, default=120, help="number of validation images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--files", action="store_true", help="write one folder of files per class instead, without validation images"
    )
    args = parser.parse_args()
    if args.files:
        draw_files(args.out, args.images, seed=args.seed)
        print(f"{args.images} images of {', '.join(CLASSES)} shapes in {args.out}")
        return
    draw_shapes(args.out, args.images, args.validation, seed=args.seed)
    print(f"{args.images} + {args.validation} images of {', '.join(CLASSES)} shapes in {args.out}")


if __name__ == "__main__":
    main()
