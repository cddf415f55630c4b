"""Segment pictures of any size: a class for every pixel, from packs of crops at native resolution.

    python examples/segment.py [--epochs 24] [--picture segment.png]

draws the pictures and masks of `scenes.py` as shards and trains a small NaViT on them, once at native resolution, on
random crops that are mirrored at random, and once on mirrored squares of as many tokens. The loader carries each mask
through the same crop, resize and mirroring as its picture. On each token, one linear layer predicts the classes of the
token's P x P pixels. The predictions are laid back over the source's own pixels and compared with the mask there.
Prints

    TABLE
"""

from __future__ import annotations

import argparse
import io
import itertools
import time
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import scenes
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from patchnpack import Native, PackedBatch, PackedImageLoader, Packing, RandomResizedCrop, Square
from patchnpack.loaders import Mask
from patchnpack.metrics import class_iou, confusion_matrix
from patchnpack.models import NaViT, NaViTConfig, token_maps
from patchnpack.trainer import Objective, Outcome, TrainConfig, train

CLASSES = ("background", *scenes.CLASSES)
COLOURS = np.array([(0, 0, 0), (230, 57, 70), (42, 157, 143), (69, 103, 230)])
# T tokens of all images of a batch, P patch size, S = P*P pixels of a patch, C classes; H x W pixels of a source


class Segmentation(Objective):
    """Cross entropy over pixels, with a linear layer that predicts the classes of a token's pixels."""

    def __init__(self, config: NaViTConfig) -> None:
        super().__init__()
        self.pixels = config.patch_size**2
        self.head = nn.Linear(config.width, self.pixels * len(CLASSES))

    def prepare(
        self, model: NaViT, batch: PackedBatch, rng: np.random.Generator | None = None
    ) -> tuple[PackedBatch, ...]:
        """Check the batch."""
        model.check(batch)
        return (batch,)

    def count(self, batch: PackedBatch) -> int:
        """Count tokens: the loss of a step is the mean over its tokens."""
        return batch.num_tokens

    def logits(self, model: NaViT, batch: PackedBatch) -> torch.Tensor:
        """Logits of the classes of each token's pixels, (T, S, C)."""
        return self.head(model.features(batch).tokens).unflatten(1, (self.pixels, len(CLASSES)))

    def forward(self, model: NaViT, *batches: PackedBatch) -> Outcome:
        """Compare logits and mask; a hit is the share of a token's pixels whose class is right."""
        (batch,) = batches
        logits_TSC = self.logits(model, batch).float()
        mask_TS = batch.targets["mask"].flatten(0, 1)[batch.token_index].long()
        loss = F.cross_entropy(logits_TSC.flatten(0, 1), mask_TS.flatten(), ignore_index=255, reduction="sum")
        hits = (logits_TSC.argmax(-1) == mask_TS).sum()
        return Outcome(loss / self.pixels, torch.tensor(batch.num_tokens), hits / self.pixels)


@torch.no_grad()
def predict(model: NaViT, head: Segmentation, batch: PackedBatch) -> Iterator[np.ndarray]:
    """Yield the class found for each pixel of each source, int64 (H, W)."""
    P, found_TS = batch.patch_size, head.logits(model, batch).argmax(-1)
    sizes = batch.image_sizes[batch.image_mask].tolist()
    for i, ((W, H), its) in enumerate(zip(sizes, token_maps(found_TS, batch), strict=True)):
        packed = its.features.unflatten(2, (P, P)).transpose(1, 2).flatten(2).flatten(0, 1)
        centres = torch.cartesian_prod(torch.arange(W) + 0.5, torch.arange(H) + 0.5)
        x, y = batch.to_image(centres, i).long().T
        yield packed[y.clamp(0, len(packed) - 1), x.clamp(0, packed.shape[1] - 1)].view(W, H).T.numpy()


@torch.no_grad()
def evaluate(model: NaViT, head: Segmentation, loader: PackedImageLoader) -> torch.Tensor:
    """Return the IoU of each class over the pixels of all sources."""
    confusion = torch.zeros(len(CLASSES), len(CLASSES), dtype=torch.int64)
    for batch in loader:
        masks = itertools.chain(*batch.extras["seg.png"])
        for png, found in zip(masks, predict(model, head, batch), strict=True):
            known = torch.from_numpy(np.array(Image.open(io.BytesIO(png))))
            confusion += confusion_matrix(known, torch.from_numpy(found), len(CLASSES))
    return class_iou(confusion)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=960)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=["native", "square"])
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--position", default="absolute")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--tokens", type=int, default=1024)
    options = parser.parse_args()
    config = NaViTConfig(
        num_classes=0,
        width=options.width,
        depth=options.depth,
        heads=options.width // 32,
        patch_size=16,
        pooling="mean",
        position=options.position,
    )
    with tempfile.TemporaryDirectory() as folder:
        scenes.draw_scenes(folder, options.images, max(options.images // 4, 1))

        def loader(split: str, resolution, **choices) -> PackedImageLoader:
            packing = Packing(seq_len=options.tokens, patch_size=16, resolution=resolution)
            return PackedImageLoader(
                f"{folder}/{split}-*.tar",
                packing,
                batch_size=1,
                shuffle=split == "train",
                targets={"mask": Mask("seg.png")},
                **choices,
            )

        for name, resolution in {"native": Native(), "square": Square(144)}.items():
            if options.only not in (None, name):
                continue
            torch.manual_seed(0)
            head = Segmentation(config)
            c = time.process_time()
            settings = TrainConfig(
                epochs=options.epochs, lr=options.lr, seed=options.seed, eval_every=10**6, precision=options.precision
            )
            model = train(config, loader("train", resolution), config=settings, objective=head).model
            c = time.process_time() - c
            iou = evaluate(model, head, loader("validation", resolution, extras=["seg.png"]))
            print(name, f"{iou.mean():.3f}", iou, f"{c:.0f} s", flush=True)


if __name__ == "__main__":
    main()
