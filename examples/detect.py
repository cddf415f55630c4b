"""Detect shapes in pictures of any size: one box per token, as in OWL-ViT, from packs of crops at native resolution.

    python examples/detect.py [--epochs 24] [--picture detect.png]

draws the pictures and boxes of `scenes.py` as shards and trains a small NaViT on them, once at native resolution, on
random crops that are mirrored at random, and once on mirrored squares of as many tokens. The loader carries the boxes
through the same crop, resize and mirroring as their picture. Each token predicts one box, relative to its own place,
and a logit per class (OWL-ViT, arXiv 2205.06230, section 3.1). A matching of least cost assigns a token to each known
box; the other tokens learn to find nothing (DETR, arXiv 2005.12872, section 3.1). Needs scipy. Prints

    TABLE
"""

from __future__ import annotations

import argparse
import io
import itertools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import scenes
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from scipy.optimize import linear_sum_assignment
from torch import nn

from patchnpack import Native, PackedBatch, PackedImageLoader, Packing, RandomResizedCrop, Square
from patchnpack.loaders import Boxes
from patchnpack.metrics import Found, Known, generalized_iou, mean_average_precision
from patchnpack.models import NaViT, NaViTConfig
from patchnpack.packer import PackedImage
from patchnpack.trainer import Objective, Outcome, TrainConfig, train

COLOURS = ("#e63946", "#2a9d8f", "#4567e6")
# T tokens of all images of a batch, t of one image, n known boxes of an image, C classes


class Detection(Objective):
    """A head of a box and a logit per class on each token, and the loss of the matching with known boxes."""

    def __init__(self, config: NaViTConfig) -> None:
        super().__init__()
        D = config.width
        self.classes = nn.Linear(D, len(scenes.CLASSES))
        self.box = nn.Sequential(nn.Linear(D, D), nn.GELU(), nn.Linear(D, D), nn.GELU(), nn.Linear(D, 4))
        nn.init.constant_(self.classes.bias, -4.0)  # at first, no token finds anything (arXiv 1708.02002, section 3.3)

    def prepare(
        self, model: NaViT, batch: PackedBatch, rng: np.random.Generator | None = None
    ) -> tuple[PackedBatch, ...]:
        """Check the batch."""
        model.check(batch)
        return (batch,)

    def count(self, batch: PackedBatch) -> int:
        """Count images."""
        return batch.num_images

    def predict(self, model: NaViT, batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return class logits (T, C) and boxes (T, 4), in patches from the upper left corner of the packed image.

        Layers that give 0 predict the token's own patch.
        """
        tokens = model.features(batch).tokens
        place = batch.coords.flatten(0, 1)[batch.token_index] + 0.5
        offset, size = self.box(tokens).float().chunk(2, 1)
        centre, half = place + offset, size.exp() / 2
        return self.classes(tokens).float(), torch.cat([centre - half, centre + half], 1)

    def forward(self, model: NaViT, *batches: PackedBatch) -> Outcome:
        """Sum the losses of the images; a hit is an image whose objects all have a token of the right class."""
        (batch,) = batches
        every_logits, every_box = self.predict(model, batch)
        total, hits = every_logits.sum() * 0 + every_box.sum() * 0, 0
        for i, (logits, found) in enumerate(
            zip(*(x.split(batch.lengths) for x in (every_logits, every_box)), strict=True)
        ):
            known = batch.targets["boxes"].of(i)
            true = known.boxes / batch.patch_size
            token, object = match(logits, found, true, known.labels)
            wanted = torch.zeros_like(logits)
            wanted[token, known.labels[object]] = 1
            near, far = found[token], true[object]
            loss = focal_loss(logits, wanted).sum()
            loss = loss + 0.5 * (near - far).abs().sum() + 2 * (1 - generalized_iou(near, far)).sum()
            total = total + loss / max(len(true), 1)
            hits += int((logits[token].argmax(1) == known.labels[object]).all())
        return Outcome(total, torch.tensor(batch.num_images), torch.tensor(hits))


def focal_loss(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Focal loss of each logit (Lin et al. 2017, arXiv 1708.02002, equation 5), alpha 0.25 and gamma 2."""
    entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    alpha = 0.25 * wanted + 0.75 * (1 - wanted)
    return alpha * (1 - torch.exp(-entropy)) ** 2 * entropy


@torch.no_grad()
def match(
    logits: torch.Tensor, found: torch.Tensor, true: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Assign a token to each known box: tokens and boxes, int64 (min(t, n),), of the matching of least cost."""
    as_class = focal_loss(logits, torch.ones_like(logits)) - focal_loss(logits, torch.zeros_like(logits))
    distance = (found[:, None] - true).abs().sum(-1)
    cost = 2 * as_class[:, labels] + 0.5 * distance - 2 * generalized_iou(found[:, None], true)
    token, object = (torch.from_numpy(each).to(logits.device) for each in linear_sum_assignment(cost.cpu().numpy()))
    return token, object


@torch.no_grad()
def evaluate(model: NaViT, head: Detection, loader: PackedImageLoader) -> tuple[list[Found], list[Known]]:
    """Return the boxes found and known in each image, in pixels of its source."""
    all_found, all_known = [], []
    for batch in loader:
        predictions = (each.split(batch.lengths) for each in head.predict(model, batch))
        for i, (image, logits, boxes) in enumerate(zip(batch.images(), *predictions, strict=True)):
            scores, labels = logits.sigmoid().max(1)
            known = batch.targets["boxes"].of(i)
            all_found.append((to_source(boxes * batch.patch_size, image), labels, scores))
            all_known.append((to_source(known.boxes, image), known.labels))
    return all_found, all_known


def to_source(boxes: torch.Tensor, image: PackedImage) -> torch.Tensor:
    """Map boxes of the packed image to its source."""
    return (
        torch.from_numpy(image.geometry.to_source(boxes.view(-1, 2).numpy())).view(-1, 2, 2).sort(1).values.flatten(1)
    )


def draw(pictures: list[Image.Image], found: list[Found], path: Path) -> None:
    """Draw the boxes with a score of at least 0.3 into pictures."""
    canvas = Image.new("RGB", (260 * len(pictures), 260), "white")
    for i, (picture, (boxes, labels, scores)) in enumerate(zip(pictures, found, strict=False)):
        pen = ImageDraw.Draw(picture)
        for box, label, score in zip(boxes.tolist(), labels.tolist(), scores.tolist(), strict=True):
            if score >= 0.3:
                pen.rectangle(box, outline=COLOURS[label], width=2)
        canvas.paste(picture, (260 * i, 0))
    canvas.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=960)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path, help="PNG of a few held-out pictures with the boxes found")
    parser.add_argument("--width", type=int, default=64, help="width of the model, a multiple of 32")
    parser.add_argument(
        "--runs",
        nargs="+",
        choices=["native", "square", "uncropped"],
        default=["native", "square"],
        help="uncropped: native without crops, as the squares",
    )
    parser.add_argument("--position", default="rope")
    parser.add_argument("--lr", type=float, default=2e-3)
    options = parser.parse_args()
    heads = max(options.width // 32, 1)
    config = NaViTConfig(
        num_classes=0,
        width=options.width,
        depth=3,
        heads=heads,
        patch_size=16,
        pooling="mean",
        position=options.position,
    )
    crop, square = (
        RandomResizedCrop(scale=(0.5, 1), ratio=(1 / 4, 4)),
        Square(144),
    )  # 81 tokens; uncropped, the mean is 79
    ways: dict[str, tuple[Any, Any]] = {
        "native": (crop, Native()),
        "square": (square, square),
        "uncropped": (Native(), Native()),
    }
    with tempfile.TemporaryDirectory() as folder:
        scenes.draw_scenes(folder, options.images, max(options.images // 4, 1))

        def loader(split: str, resolution: Any, flip: float = 0.0) -> PackedImageLoader:
            packing = Packing(seq_len=512, patch_size=16, resolution=resolution, flip=flip, vflip=flip)
            choices: Any = {"shuffle": split == "train", "seed": options.seed, "extras": ["jpg"]}
            boxes = Boxes(
                "json:objects.bbox",
                format="xywh",
                labels="json:objects.category",
                classes=scenes.CLASSES,
                min_visible=0.3,
            )
            return PackedImageLoader(
                f"{folder}/{split}-*.tar", packing, batch_size=1, targets={"boxes": boxes}, **choices
            )

        print("resolution   AP50    AP50:95")
        for name in options.runs:
            learn, test = ways[name]
            torch.manual_seed(options.seed)
            head = Detection(config)
            settings = TrainConfig(epochs=options.epochs, lr=options.lr, seed=options.seed, eval_every=10**6)
            model = train(config, loader("train", learn, 0.5), config=settings, objective=head).model
            held_out = loader("validation", test)
            found, known = evaluate(model, head, held_out)
            ap50, ap = (
                mean_average_precision(found, known, ious) for ious in ([0.5], [0.5 + 0.05 * i for i in range(10)])
            )
            print(f"{name:12} {ap50:.3f}  {ap:.3f}", flush=True)
            if name == "native" and options.picture:
                files = itertools.islice(
                    (file for batch in held_out for pack in batch.extras["jpg"] for file in pack), 8
                )
                draw([Image.open(io.BytesIO(file)) for file in files], found, options.picture)


if __name__ == "__main__":
    main()
