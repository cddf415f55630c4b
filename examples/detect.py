"""Detect shapes in pictures of any size: one box per token, as in OWL-ViT, from packs of crops at native resolution.

    python examples/detect.py [--epochs 10] [--picture detect.png]

draws the pictures and boxes of `scenes.py` as shards and trains a small NaViT on them, once at native resolution, on
random crops that are mirrored at random, and once on mirrored squares of as many tokens. The loader carries the boxes
through the same crop, resize and mirroring as their picture. Each token predicts one box, relative to its own place,
and a logit per class (OWL-ViT, arXiv 2205.06230, section 3.1). The matching of least cost assigns a token to each known
box, and the other tokens learn to find nothing (DETR, arXiv 2005.12872, section 3.1). Needs scipy. Prints the average
precision on 240 held-out pictures, at an IoU of 0.5 and as the mean over 0.5 to 0.95:

    resolution   AP50    AP50:95
    native       0.788   0.463
    square       0.489   0.319
"""

from __future__ import annotations

import argparse
import io
import tempfile
from pathlib import Path
from typing import Any

import scenes
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from patchnpack import Boxes, Native, PackedBatch, PackedImageLoader, Packing, RandomResizedCrop, Square
from patchnpack.metrics import Found, Known, generalized_iou, mean_average_precision
from patchnpack.models import NaViT, NaViTConfig
from patchnpack.trainer import Objective, Outcome, TrainConfig, train

# Resolutions of training and evaluation; squares have 81 tokens, and pictures that are not cropped 79 on average.
RUNS: dict[str, tuple[Any, Any]] = {
    "native": (RandomResizedCrop(scale=(0.5, 1), ratio=(1 / 4, 4)), Native()),
    "square": (Square(144), Square(144)),
    "uncropped": (Native(), Native()),
}
BOXES = Boxes(
    "json:objects.bbox", format="xywh", labels="json:objects.category", classes=scenes.CLASSES, min_visible=0.3
)
IOUS = [0.5 + 0.05 * i for i in range(10)]  # of COCO's main metric
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

    def prepare(self, model: NaViT, batch: PackedBatch, rng: Any = None) -> tuple[PackedBatch, ...]:
        """Check the batch."""
        model.check(batch)
        return (batch,)

    def count(self, batch: PackedBatch) -> int:
        """Count images."""
        return batch.num_images

    def predict(self, model: NaViT, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """Return class logits (T, C) and boxes (T, 4), in patches from the upper left corner of the packed image.

        Layers that give 0 predict the token's own patch.
        """
        tokens = model.features(batch).tokens
        offset, size = self.box(tokens).float().chunk(2, 1)
        centre, half = places(batch) + offset, size.exp() / 2
        return self.classes(tokens).float(), torch.cat([centre - half, centre + half], 1)

    def forward(self, model: NaViT, *batches: PackedBatch) -> Outcome:
        """Sum the losses of the images; a hit is an image whose objects all have a token of the right class."""
        (batch,) = batches
        logits_TC, boxes = self.predict(model, batch)
        total, hits = logits_TC.sum() * 0 + boxes.sum() * 0, 0  # also without an image, all parameters have a gradient
        objects: Any = batch.targets["boxes"]
        parts = zip(*(each.split(batch.lengths) for each in (logits_TC, boxes, places(batch))), strict=True)
        for i, (logits, found, place) in enumerate(parts):
            known = objects.of(i)
            loss, hit = image_loss(logits, found, place, known.boxes / batch.patch_size, known.labels)
            total, hits = total + loss, hits + hit
        return Outcome(total, torch.tensor(batch.num_images), torch.tensor(hits))


def places(batch: PackedBatch) -> Tensor:
    """Return the centres of the tokens, (T, 2), in patches from the upper left corner of their image."""
    return batch.coords.flatten(0, 1)[batch.token_index] + 0.5


def focal_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Focal loss of each logit (Lin et al. 2017, arXiv 1708.02002, equation 5), alpha 0.25 and gamma 2."""
    entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    alpha = 0.25 * wanted + 0.75 * (1 - wanted)
    return alpha * (1 - torch.exp(-entropy)) ** 2 * entropy


def box_loss(found: Tensor, true: Tensor) -> Tensor:
    """Distance of boxes, in patches, and generalised IoU, (...,); the leading dimensions broadcast."""
    return 0.5 * (found - true).abs().sum(-1) + 2 * (1 - generalized_iou(found, true))


def image_loss(logits: Tensor, found: Tensor, place: Tensor, true: Tensor, labels: Tensor) -> tuple[Tensor, bool]:
    """Return the loss of an image with n known boxes, and whether all have a token of the right class."""
    token, known = match(logits, found, place, true, labels)
    wanted = torch.zeros_like(logits)
    wanted[token, labels[known]] = 1
    loss = 2 * focal_loss(logits, wanted).sum() + box_loss(found[token], true[known]).sum()
    # A token inside a box learns this box, matched or not; with the matched tokens alone, few tokens would learn boxes.
    inside = ((place[:, None] > true[:, :2]) & (place[:, None] < true[:, 2:])).all(-1)
    every = box_loss(found[:, None], true)[inside].sum() / max(int(inside.sum()), 1)
    return loss / max(len(true), 1) + every, bool((logits[token].argmax(1) == labels[known]).all())


@torch.no_grad()
def match(logits: Tensor, found: Tensor, place: Tensor, true: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Assign a token to each known box: tokens and boxes, int64 (min(t, n),), of the matching of least cost.

    The way from the token to the middle of the box counts too, so that one of many tokens with good boxes stands out.
    """
    as_class = focal_loss(logits, torch.ones_like(logits)) - focal_loss(logits, torch.zeros_like(logits))
    way = (place[:, None] - (true[:, :2] + true[:, 2:]) / 2).norm(dim=-1)
    cost = 2 * as_class[:, labels] + box_loss(found[:, None], true) + way
    token, known = (torch.from_numpy(each).to(logits.device) for each in linear_sum_assignment(cost.cpu().numpy()))
    return token, known


@torch.no_grad()
def evaluate(model: NaViT, head: Detection, loader: PackedImageLoader) -> tuple[list[Found], list[Known]]:
    """Return the boxes found and known in each image, in pixels of its source."""
    all_found, all_known, device = [], [], next(model.parameters()).device
    for batch in loader:
        objects: Any = batch.targets["boxes"]
        logits_and_boxes = (each.cpu().split(batch.lengths) for each in head.predict(model, batch.to(device)))
        for i, (logits, boxes) in enumerate(zip(*logits_and_boxes, strict=True)):
            scores, labels = logits.sigmoid().max(1)
            known = objects.of(i)
            all_found.append((batch.to_source(boxes * batch.patch_size, i), labels, scores))
            all_known.append((batch.to_source(known.boxes, i), known.labels))
    return all_found, all_known


def draw(loader: PackedImageLoader, found: list[Found], path: Path) -> None:
    """Draw the boxes with a score of at least 0.3 into the loader's first pictures."""
    canvas = Image.new("RGB", (260 * len(found), 260), "white")
    files = (file for batch in loader for pack in batch.extras["jpg"] for file in pack)
    for i, ((boxes, labels, scores), file) in enumerate(zip(found, files, strict=False)):
        picture = Image.open(io.BytesIO(file))
        for box, label, score in zip(boxes.tolist(), labels.tolist(), scores.tolist(), strict=True):
            if score >= 0.3:
                ImageDraw.Draw(picture).rectangle(box, outline=COLOURS[label], width=2)
        canvas.paste(picture, (260 * i, 0))
    canvas.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=960)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path, help="PNG of a few held-out pictures with the boxes found")
    parser.add_argument("--width", type=int, default=64, help="width of the model, a multiple of 8")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=["native", "square"])
    options = parser.parse_args()
    config = NaViTConfig(num_classes=0, width=options.width, depth=3, heads=2, pooling="mean", position="rope")
    with tempfile.TemporaryDirectory() as folder:
        scenes.draw_scenes(folder, options.images, max(options.images // 4, 1))

        def loader(split: str, resolution: Any, flip: float = 0.0) -> PackedImageLoader:
            packing = Packing(seq_len=512, patch_size=16, resolution=resolution, flip=flip, vflip=flip)
            choices: Any = {"shuffle": split == "train", "seed": options.seed, "extras": ["jpg"]}
            files, targets = f"{folder}/{split}-*.tar", {"boxes": BOXES}
            return PackedImageLoader(files, packing, batch_size=1, targets=targets, **choices)

        print("resolution   AP50    AP50:95")
        for name in options.runs:
            learn, test = RUNS[name]
            torch.manual_seed(options.seed)
            head = Detection(config)
            settings = TrainConfig(epochs=options.epochs, lr=2e-3, seed=options.seed, eval_every=10**6)
            model = train(config, loader("train", learn, 0.5), config=settings, objective=head).model
            found, known = evaluate(model, head, loader("validation", test))
            scores = [mean_average_precision(found, known, ious) for ious in ([0.5], IOUS)]
            print(f"{name:12} {scores[0]:.3f}   {scores[1]:.3f}", flush=True)
            if name == "native" and options.picture:
                draw(loader("validation", test), found[:8], options.picture)


if __name__ == "__main__":
    main()
