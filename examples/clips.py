"""Classify clips by the order of their frames.

    python examples/clips.py [--picture clips.png]

draws clips of 4 to 6 frames as webdataset samples with the members `p0.png`, `p1.png` ... and `cls`. In a clip of class
`growing`, a disc grows. A clip of class `shrinking` is drawn in the same way and then reversed, so neither a frame nor
the set of a clip's frames gives the class away: only their order does. Each clip has its own size, colours and noise. A
small NaViT of scope "sample" attends to whole clips, and its `time` says which frame a token is from. Prints

    time         accuracy on 240 held-out clips
    none         0.542
    learned      1.000
    sinusoidal   1.000
    rope         1.000
"""

from __future__ import annotations

import argparse
import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from webdataset import ShardWriter

from patchnpack import PackedImageLoader, Packing
from patchnpack.models import NaViTConfig
from patchnpack.packer.batch.pictures.drawing import draw_packs
from patchnpack.trainer import TrainConfig, evaluate, train

CLASSES = ("growing", "shrinking")
TIMES = ("none", "learned", "sinusoidal", "rope")
# F frames of a clip, H x W pixels


def draw_clip(label: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a clip of class `CLASSES[label]`, uint8 (F, H, W, 3).

    >>> growing, shrinking = (draw_clip(label, np.random.default_rng(0)) for label in (0, 1))
    >>> bool((growing == shrinking[::-1]).all())
    True
    """
    frames, (width, height) = rng.integers(4, 7), 16 * rng.integers(2, 5, 2)
    x, y = np.arange(0.5, width), np.arange(0.5, height)[:, None]
    distance = np.hypot(x - rng.uniform(0.3, 0.7) * width, y - rng.uniform(0.3, 0.7) * height)
    radius = np.sort(rng.uniform(2, 24, frames)) + 2 * np.arange(frames)  # the disc always grows
    cover = np.clip(radius[:, None, None] + 0.5 - distance, 0, 1)[..., None]
    dark, light = rng.uniform(0, 110, 3), rng.uniform(140, 255, 3)
    noise = rng.normal(0, 4, (frames, height, width, 1))
    clip: np.ndarray = np.clip(dark + (light - dark) * cover + noise, 0, 255).astype(np.uint8)
    return clip if label == 0 else clip[::-1]


def draw_clips(path: str | Path, clips: int, seed: int) -> None:
    """Write a shard of `clips` clips, equally many of each class."""
    labels = np.random.default_rng((seed, 0)).permutation(np.arange(clips) % len(CLASSES))
    with ShardWriter(str(path), maxcount=clips, verbose=0, encoder=False, mtime=0) as shards:
        for i, label in enumerate(labels.tolist()):
            sample = {"__key__": f"clip-{i:05d}", "cls": str(label).encode()}
            for f, pixels in enumerate(draw_clip(label, np.random.default_rng((seed, 1, i)))):
                png = io.BytesIO()
                Image.fromarray(pixels).save(png, "PNG")
                sample[f"p{f}.png"] = png.getvalue()
            shards.write(sample)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=480)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--times", nargs="+", choices=TIMES, default=TIMES)
    parser.add_argument("--picture", type=Path, help="PNG of a few packs of clips")
    options = parser.parse_args()
    held_out = max(options.clips // 2, 2)
    with tempfile.TemporaryDirectory() as folder:
        draw_clips(f"{folder}/train-%06d.tar", options.clips, options.seed)
        draw_clips(f"{folder}/validation-%06d.tar", held_out, options.seed + 1)

        def loader(split: str, seq_len: int = 512) -> PackedImageLoader:
            packing, files = Packing(seq_len=seq_len, patch_size=16, scope="sample"), f"{folder}/{split}-*.tar"
            choices: Any = {"sample": "members", "label": "cls", "shuffle": split == "train", "seed": options.seed}
            return PackedImageLoader(files, packing, batch_size=2, **choices)

        if options.picture:
            draw_packs(next(iter(loader("validation", 256))), max_packs=1, classes=CLASSES).save(options.picture)
        print(f"time         accuracy on {held_out} held-out clips")
        for time in options.times:
            config = NaViTConfig(
                num_classes=len(CLASSES), width=64, depth=2, heads=2, patch_size=16, scope="sample", time=time
            )
            settings = TrainConfig(
                epochs=options.epochs, lr=2e-3, seed=options.seed, eval_every=10**6, precision="float32"
            )
            model = train(config, loader("train"), config=settings).model
            print(f"{time:12} {evaluate(model, loader('validation'))['accuracy']:.3f}", flush=True)


if __name__ == "__main__":
    main()
