"""Train without labels with DINO (Caron et al., arXiv 2104.14294), on packs of several crops per picture.

    python examples/dino.py [--seeds 1 2 3] [--picture dino.png]

draws pictures of crowds of light shapes on a dark ground, 64 to 192 pixels a side. All shapes of a picture are ellipses
or all are diamonds, and all are tall, even or wide: six classes. Their sizes and places, and both colours, are random.

`Packing(views=...)` makes two global and eight local crops of each picture from one decode, as neighbours in one pack.
Each crop is recoloured in its own way. The student sees all ten crops and learns to predict, for each, the teacher's
outputs for the other global crops. The teacher, a moving average of the student, sees only the global crops:
`batch.select(batch.frames < 2)`. Centred and sharpened targets keep the outputs from becoming equal for all pictures.
No label is used in training. Prints how often the nearest training pictures vote for a held-out picture's own class:

    seed   random network   DINO
    1      0.354            0.727
    2      0.315            0.598
    3      0.371            0.696
    mean   0.347            0.674
"""

from __future__ import annotations

import argparse
import copy
import io
import math
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from webdataset import ShardWriter

from patchnpack import FitTokens, PackedBatch, PackedImageLoader, Packing, RandomResizedCrop, Views
from patchnpack.models import NaViT, NaViTConfig
from patchnpack.packer.batch.drawing import draw_packs

ASPECTS = (1 / 3, 1.0, 3.0)
CLASSES = tuple(f"{aspect} {shape}" for shape in ("ellipses", "diamonds") for aspect in ("tall", "even", "wide"))
GLOBALS = 2
VIEWS = Views(
    (GLOBALS, RandomResizedCrop(scale=(0.5, 1), ratio=(1 / 2, 2), max_tokens=36)),
    (8, RandomResizedCrop(scale=(0.15, 0.5), ratio=(1 / 2, 2), max_tokens=16)),
)
STUDENT, TEACHER = 0.1, 0.04  # temperatures
V = VIEWS.count
# S pictures of a batch, N pictures of a loader, V views of a picture, D width of the model, O outputs of the head


def draw_crowd(label: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a picture of light shapes of class `CLASSES[label]` on a dark ground, uint8 (H, W, 3).

    >>> draw_crowd(2, np.random.default_rng(0)).dtype
    dtype('uint8')
    """
    width, height = rng.integers(64, 193, 2)
    x, y = np.arange(0.5, width), np.arange(0.5, height)[:, None]
    size, aspect = rng.uniform(7, 12), ASPECTS[label % 3]
    dark, light = rng.uniform(0, 110, 3), rng.uniform(140, 255, 3)
    cover = np.zeros((height, width))
    for _ in range(round(width * height / size**2 * rng.uniform(0.09, 0.15))):
        a, b = size * rng.uniform(0.8, 1.25) * np.array([aspect**0.5, aspect**-0.5])  # half of the sides
        dx, dy = np.abs(x - rng.uniform(0, width)) / a, np.abs(y - rng.uniform(0, height)) / b
        radius = np.hypot(dx, dy) if label < 3 else dx + dy
        cover = np.maximum(cover, np.clip((1 - radius) * min(a, b) + 0.5, 0, 1))
    picture = dark + (light - dark) * cover[..., None] + rng.normal(0, 4, (height, width, 3))
    return np.clip(picture, 0, 255).astype(np.uint8)


def draw_crowds(folder: str | Path, pictures: dict[str, int]) -> None:
    """Write shards of a number of pictures per split; the classes are equally frequent."""
    for part, (split, count) in enumerate(pictures.items()):
        with ShardWriter(f"{folder}/{split}-%06d.tar", maxcount=240, verbose=0, encoder=False, mtime=0) as shards:
            for i in range(count):
                jpeg = io.BytesIO()
                pixels = draw_crowd(i % len(CLASSES), np.random.default_rng((part, i)))
                Image.fromarray(pixels).save(jpeg, "JPEG", quality=92)
                label = str(i % len(CLASSES)).encode()
                shards.write({"__key__": f"{split}-{i:05d}", "jpg": jpeg.getvalue(), "cls": label})


def recolour(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Exchange the channels of an image, uint8 (H, W, 3), and change their contrast and brightness."""
    gain, shift = rng.uniform(0.5, 1.2, 3), rng.uniform(-40, 40, 3)
    return np.clip(image[..., rng.permutation(3)] * gain + shift, 0, 255).astype(np.uint8)


class Network(nn.Module):
    """A NaViT and the head of DINO: O cosines per image.

    Unlike the paper's ViTs, it ends in a batch normalization, with which so small a network learns faster.
    """

    def __init__(self, D: int = 96, outputs: int = 64) -> None:
        super().__init__()
        self.body = NaViT(NaViTConfig(num_classes=0, width=D, depth=3, heads=3, patch_size=16, pooling="mean"))
        norm = nn.BatchNorm1d(64, affine=False, track_running_stats=False)
        self.head = nn.Sequential(nn.Linear(D, 256), nn.GELU(), nn.Linear(256, 64), norm)
        self.prototypes = nn.Parameter(torch.randn(outputs, 64))

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        images = self.body(batch)[batch.image_mask]  # (S * views, D), picture by picture and view by view
        return F.linear(F.normalize(self.head(images), dim=-1), F.normalize(self.prototypes, dim=-1))


def dino_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Compute the cross entropy of each view under the teacher's other ones, a mean over pairs and pictures.

    Args:
        student: logits of all views at the student's temperature, (S, V, O).
        teacher: probabilities of the global views, (S, GLOBALS, O).
    """
    pairs = -torch.einsum("sgo,svo->gv", teacher, student.log_softmax(-1)) / len(student)
    other = 1 - torch.eye(*pairs.shape)
    return (pairs * other).sum() / other.sum()


def pretrain(loader: PackedImageLoader, epochs: int, seed: int, lr: float = 1e-3) -> tuple[NaViT, NaViT, list[float]]:
    """Train for some epochs; return the random network, the teacher and the loss of each step."""
    torch.manual_seed(seed)
    student = Network()
    random, teacher, centre = copy.deepcopy(student.body), copy.deepcopy(student).requires_grad_(False), torch.zeros(1)
    optimizer = torch.optim.AdamW(student.parameters(), lr, weight_decay=0.04)
    losses: list[float] = []
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        for batch in loader:
            progress = len(losses) / loader.total_steps(epochs)
            anneal = (1 + math.cos(math.pi * progress)) / 2
            optimizer.param_groups[0]["lr"] = lr * min(10 * progress, anneal)
            with torch.no_grad():
                outputs = teacher(batch.select(batch.frames < GLOBALS)).unflatten(0, (-1, GLOBALS))
                targets = ((outputs - centre) / TEACHER).softmax(-1)
                centre = 0.9 * centre + 0.1 * outputs.mean((0, 1))
            loss = dino_loss(student(batch).unflatten(0, (-1, V)) / STUDENT, targets)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            if epoch == 0:  # as in the paper, the last layer waits for an epoch
                student.prototypes.grad = None
            optimizer.step()
            with torch.no_grad():
                for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
                    slow.lerp_(fast, 0.02 * anneal)
            losses.append(loss.item())
    return random.eval(), teacher.body.eval(), losses


@torch.no_grad()
def features(model: NaViT, loader: PackedImageLoader) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the features (N, D) and labels (N,) of whole pictures."""
    found = [(model(batch)[batch.image_mask], batch.labels[batch.image_mask]) for batch in loader]
    vectors, labels = map(torch.cat, zip(*found, strict=True))
    return vectors, labels


def knn_accuracy(model: NaViT, known: PackedImageLoader, held_out: PackedImageLoader, k: int = 10) -> float:
    """Classify held-out pictures by the votes of their k nearest known pictures, weighted as in the paper."""
    (known_vectors, known_labels), (vectors, labels) = features(model, known), features(model, held_out)
    mean = known_vectors.mean(0)  # subtracted, or all cosines of a random network are near 1
    cosines = F.normalize(vectors - mean, dim=-1) @ F.normalize(known_vectors - mean, dim=-1).T
    nearest = cosines.topk(min(k, len(known_labels)))
    weights = (nearest.values / 0.07).exp()[..., None]
    votes = (F.one_hot(known_labels[nearest.indices], len(CLASSES)) * weights).sum(1)
    return float((votes.argmax(1) == labels).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=960, help="to train on; half as many are held out")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--picture", type=Path, help="PNG of a pack of crops")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        draw_crowds(folder, {"train": options.pictures, "validation": max(options.pictures // 2, 1)})
        train, validation = (f"{folder}/{split}-*.tar" for split in ("train", "validation"))
        whole = Packing(seq_len=1024, patch_size=16, resolution=FitTokens(36))
        known, held_out = (PackedImageLoader(files, whole, batch_size=2, label="cls") for files in (train, validation))
        crops = Packing(seq_len=1024, patch_size=16, max_images=160, views=VIEWS)
        if options.picture:
            small = PackedImageLoader(train, crops.replace(seq_len=420), batch_size=1, shuffle=True, transform=recolour)
            draw_packs(next(iter(small)), max_packs=1, width=1600).save(options.picture)
        print("seed   random network   DINO")
        rows = []
        for seed in options.seeds:
            loader = PackedImageLoader(train, crops, batch_size=2, shuffle=True, seed=seed, transform=recolour)
            random, teacher, _ = pretrain(loader, options.epochs, seed)
            rows.append([knn_accuracy(model, known, held_out) for model in (random, teacher)])
            print("{:<6} {:<16.3f} {:.3f}".format(seed, *rows[-1]), flush=True)
        print("mean   {:<16.3f} {:.3f}".format(*map(statistics.mean, zip(*rows, strict=True))))


if __name__ == "__main__":
    main()
