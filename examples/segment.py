"""Segment pictures of any size: a class for every pixel, from packs of crops at native resolution.

    python examples/segment.py [--epochs 6] [--picture segment.png]

draws the pictures and masks of `scenes.py` as shards and trains a small NaViT on them, once at native resolution, on
random crops that are mirrored at random, and once on mirrored squares of as many tokens. The loader carries each mask
through the same crop, resize and mirroring as its picture. On each token, one linear layer predicts the classes of the
token's P x P pixels. `batch.maps` lays the predictions back over the pixels of the source, where they are compared with
its mask. Prints the IoU on 240 held-out pictures:

    resolution   mean IoU   background   tall   even   wide
    native          0.910   0.982  0.876  0.886  0.896
    square          0.525   0.984  0.487  0.246  0.383

`--runs uncropped` trains at native resolution without crops, as the squares.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import scenes
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from patchnpack import Mask, Native, PackedBatch, PackedImageLoader, Packing, RandomResizedCrop, Square
from patchnpack.metrics import class_iou, confusion_matrix
from patchnpack.models import NaViT, NaViTConfig
from patchnpack.trainer import Objective, Outcome, TrainConfig, train

CLASSES = ("background", *scenes.CLASSES)
# Resolutions of training and evaluation; squares have 81 tokens, and pictures that are not cropped 79 on average.
RUNS: dict[str, tuple[Any, Any]] = {
    "native": (RandomResizedCrop(scale=(0.5, 1), ratio=(1 / 4, 4)), Native()),
    "square": (Square(144), Square(144)),
    "uncropped": (Native(), Native()),
}
COLOURS = np.array([(0, 0, 0), (230, 57, 70), (42, 157, 143), (69, 103, 230)])
Shown = tuple[np.ndarray, np.ndarray]  # a picture and the class found for each of its pixels
# T tokens of all images of a batch, P patch size, S = P*P pixels of a patch, C classes; H x W pixels of a source


class Segmentation(Objective):
    """Cross entropy over pixels, with a linear layer that predicts the classes of a token's pixels."""

    def __init__(self, config: NaViTConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.head = nn.Linear(config.width, config.patch_size**2 * len(CLASSES))

    def prepare(self, model: NaViT, batch: PackedBatch, rng: Any = None) -> tuple[PackedBatch, ...]:
        """Check the batch."""
        model.check(batch)
        return (batch,)

    def count(self, batch: PackedBatch) -> int:
        """Count tokens: the loss of a step is the mean over its tokens."""
        return batch.num_tokens

    def logits(self, model: NaViT, batch: PackedBatch) -> torch.Tensor:
        """Logits of the classes of each token's pixels, (T, S, C)."""
        logits: torch.Tensor = self.head(model.features(batch).tokens).unflatten(1, (-1, len(CLASSES)))
        return logits

    def forward(self, model: NaViT, *batches: PackedBatch) -> Outcome:
        """Compare logits and mask; a hit is the share of a token's pixels whose class is right."""
        (batch,) = batches
        logits_TSC = self.logits(model, batch).float()
        mask: Any = batch.targets["mask"]
        mask_TS = mask.flatten(0, 1)[batch.token_index].long()
        loss = F.cross_entropy(logits_TSC.flatten(0, 1), mask_TS.flatten(), ignore_index=255, reduction="sum")
        hits = (logits_TSC.argmax(-1) == mask_TS).sum()
        S = self.patch_size**2
        return Outcome(loss / S, torch.tensor(batch.num_tokens), hits / S)


@torch.no_grad()
def evaluate(model: NaViT, head: Segmentation, loader: PackedImageLoader) -> tuple[list[float], list[Shown]]:
    """Return the IoU of each class over the pixels of all sources, and the first sources with what was found."""
    confusion, shown = torch.zeros(len(CLASSES), len(CLASSES), dtype=torch.int64), list[Shown]()
    P, device = head.patch_size, next(model.parameters()).device
    for batch in loader:
        found_TS = head.logits(model, batch.to(device)).argmax(-1).cpu()
        maps = batch.maps(found_TS.unflatten(1, (P, P)), outside=0)  # (H, W) of each source
        for found, jpg, png in zip(maps, *(chain(*batch.extras[name]) for name in ("jpg", "seg.png")), strict=True):
            picture, known = (np.array(Image.open(io.BytesIO(file))) for file in (jpg, png))
            confusion += confusion_matrix(torch.from_numpy(known), found, len(CLASSES))
            shown = [*shown, (picture, found.numpy())][:8]
    return class_iou(confusion).tolist(), shown


def draw(shown: list[Shown], path: Path) -> None:
    """Draw pictures above the classes found for their pixels."""
    canvas = Image.new("RGB", (260 * len(shown), 520), "white")
    for i, (picture, found) in enumerate(shown):
        for row, pixels in enumerate((picture, 0.3 * picture + 0.7 * COLOURS[found])):
            canvas.paste(Image.fromarray(np.round(pixels).astype(np.uint8)), (260 * i, 260 * row))
    canvas.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=960)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path, help="PNG of a few held-out pictures with the masks found")
    parser.add_argument("--width", type=int, default=64, help="width of the model, a multiple of 8")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=["native", "square"])
    options = parser.parse_args()
    config = NaViTConfig(num_classes=0, width=options.width, depth=3, heads=2, pooling="mean", position="rope")
    with tempfile.TemporaryDirectory() as folder:
        scenes.draw_scenes(folder, options.images, max(options.images // 4, 1))

        def loader(split: str, resolution: Any, flip: float = 0.0, extras: Sequence[str] = ()) -> PackedImageLoader:
            packing = Packing(seq_len=512, patch_size=16, resolution=resolution, flip=flip, vflip=flip)
            choices: Any = {"shuffle": split == "train", "seed": options.seed, "extras": extras}
            targets = {"mask": Mask("seg.png", num_classes=len(CLASSES))}
            return PackedImageLoader(f"{folder}/{split}-*.tar", packing, batch_size=1, targets=targets, **choices)

        print(f"resolution   mean IoU   {'   '.join(CLASSES)}", flush=True)
        for name in options.runs:
            learn, test = RUNS[name]
            torch.manual_seed(options.seed)
            head = Segmentation(config)
            settings = TrainConfig(epochs=options.epochs, lr=2e-3, seed=options.seed, eval_every=10**6)
            model = train(config, loader("train", learn, 0.5), config=settings, objective=head).model
            each, shown = evaluate(model, head, loader("validation", test, extras=("jpg", "seg.png")))
            columns = "  ".join(f"{iou:.3f}" for iou in each)
            print(f"{name:12} {np.mean(each):8.3f}   {columns}", flush=True)
            if name == "native" and options.picture:
                draw(shown, options.picture)


if __name__ == "__main__":
    main()
