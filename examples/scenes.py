"""Draw pictures of several shapes, with a mask and boxes, as webdataset shards.

    python examples/scenes.py OUT [--images 960] [--validation 240]

writes `OUT/train-000000.tar` ..., `OUT/validation-000000.tar` and `OUT/classes.txt`. A sample is

    KEY.jpg       a picture of 64 to 256 pixels a side, 1:4 to 4:1, with one to four shapes that do not overlap
    KEY.seg.png   its mask: 0 background, 1 tall, 2 even, 3 wide
    KEY.json      {"objects": [{"bbox": [left, top, width, height], "category": "tall"}, ...]}, in pixels

Shapes, backgrounds and sides are those of `shapes.py`, so a picture resized to a square hides which class a shape is
of. `segment.py` learns the masks, `detect.py` the boxes.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from shapes import ASPECTS, CLASSES, LIGHT, background, draw_cover, draw_size
from webdataset import ShardWriter

SIDES = (64, 256)


class Scene(NamedTuple):
    """A picture, uint8 (H, W, 3), its mask, uint8 (H, W), and n boxes (left, top, width, height) with their classes."""

    picture: np.ndarray
    mask: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray


def draw_scene(rng: np.random.Generator) -> Scene:
    """Draw one to four shapes of `CLASSES`, each in a place that is still free.

    >>> scene = draw_scene(np.random.default_rng(0))
    >>> scene.picture.shape[:2] == scene.mask.shape, len(scene.boxes) == len(scene.labels)
    (True, True)
    """
    width, height = size = draw_size(rng, SIDES)
    picture, mask = background(width, height, rng), np.zeros((height, width), np.uint8)
    boxes, labels = np.zeros((0, 4)), list[int]()
    for _ in range(rng.integers(1, 5)):
        for _ in range(20):
            label = int(rng.integers(len(CLASSES)))
            h = rng.uniform(0.3, 0.95) * min(width / ASPECTS[label], height)
            w = h * ASPECTS[label]
            x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
            if min(w, h) < 8:
                continue
            apart = (np.abs(boxes[:, 0] + boxes[:, 2] / 2 - x - w / 2) > (boxes[:, 2] + w) / 2 + 2) | (
                np.abs(boxes[:, 1] + boxes[:, 3] / 2 - y - h / 2) > (boxes[:, 3] + h) / 2 + 2
            )
            if apart.all():
                cover = draw_cover(size, (x + w / 2, y + h / 2), (w / 2, h / 2), rng)
                picture += cover[..., None] * (LIGHT[rng.integers(len(LIGHT))] - picture)
                mask[cover > 0.5] = 1 + label
                boxes, labels = np.vstack([boxes, (x, y, w, h)]), [*labels, label]
                break
    return Scene(np.round(picture).astype(np.uint8), mask, boxes, np.array(labels))


def draw_scenes(folder: str | Path, images: int = 960, validation: int = 240, *, seed: int = 0) -> None:
    """Write the shards of both splits, up to 240 samples each, into `folder`."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    Path(folder, "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    for part, (split, count) in enumerate({"train": images, "validation": validation}.items()):
        pattern = f"{folder}/{split}-".replace("%", "%%") + "%06d.tar"
        with ShardWriter(pattern, maxcount=240, verbose=0, encoder=False, mtime=0) as shards:
            for i in range(count):
                scene = draw_scene(np.random.default_rng((seed, part, i)))
                named = zip(scene.boxes.round(2).tolist(), scene.labels.tolist(), strict=True)
                objects = [{"bbox": box, "category": CLASSES[label]} for box, label in named]
                files = {"jpg": (scene.picture, "JPEG"), "seg.png": (scene.mask, "PNG")}
                sample: dict[str, str | bytes] = {"__key__": f"{split}-{i:05d}"}
                for member, (pixels, kind) in files.items():
                    file = io.BytesIO()
                    Image.fromarray(pixels).save(file, kind)
                    sample[member] = file.getvalue()
                shards.write({**sample, "json": json.dumps({"objects": objects}).encode()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the shards and classes.txt")
    parser.add_argument("--images", type=int, default=960, help="number of training pictures")
    parser.add_argument("--validation", type=int, default=240, help="number of validation pictures")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draw_scenes(args.out, args.images, args.validation, seed=args.seed)
    print(f"{args.images} + {args.validation} pictures of {', '.join(CLASSES)} shapes in {args.out}")


if __name__ == "__main__":
    main()
