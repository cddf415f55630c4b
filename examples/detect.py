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
import tempfile
from pathlib import Path

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

    def predict(self, model: NaViT, batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return class logits (T, C), boxes (T, 4) as shares of the sides, and the sides (T, 2) of their image.

        A layer that gives 0 predicts the token's own patch.
        """
        tokens = model.features(batch).tokens
        xy = batch.coords.flatten(0, 1)[batch.token_index]
        lengths = torch.tensor(batch.lengths, device=xy.device)
        grids = batch.grids[batch.image_mask].repeat_interleave(lengths, 0)
        patch = torch.cat([(xy + 0.5) / grids, 1 / grids], 1).logit(eps=1e-3)
        centre, size = torch.sigmoid(self.box(tokens).float() + patch).chunk(2, 1)
        boxes = torch.cat([centre - size / 2, centre + size / 2], 1)
        return self.classes(tokens).float(), boxes, grids * batch.patch_size

    def forward(self, model: NaViT, *batches: PackedBatch) -> Outcome:
        """Sum the losses of the images; a hit is an image whose objects all have a token of the right class."""
        (batch,) = batches
        logits_TC, boxes, sides = self.predict(model, batch)
        total, hits = logits_TC.sum() * 0 + boxes.sum() * 0, 0
        for i, (logits, found, (side, *_)) in enumerate(
            zip(*(each.split(batch.lengths) for each in (logits_TC, boxes, sides)), strict=True)
        ):
            known = batch.targets["boxes"].of(i)
            true = known.boxes / side.repeat(2)
            token, object = match(logits, found, true, known.labels)
            wanted = torch.zeros_like(logits)
            wanted[token, known.labels[object]] = 1
            near, far = found[token], true[object]
            loss = focal_loss(logits, wanted).sum()
            loss = loss + 5 * (near - far).abs().sum() + 2 * (1 - generalized_iou(near, far)).sum()
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
    cost = 2 * as_class[:, labels] + 5 * distance - 2 * generalized_iou(found[:, None], true)
    token, object = (torch.from_numpy(each).to(logits.device) for each in linear_sum_assignment(cost.cpu().numpy()))
    return token, object
