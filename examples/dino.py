"""Train without labels with DINO (Caron et al., arXiv 2104.14294), on packs of several crops per picture.

    python examples/dino.py [--seeds 0 1 2] [--speed "SHARDS"] [--picture dino.png]

`Packing(views=...)` makes two global and eight local crops of each picture of `shapes.py`, 48 to 192 pixels a side,
from one decode, as neighbours in one pack. The student sees all ten. For each, it learns to predict what the teacher, a
moving average of the student, gives for the other global views. Centring and sharpening of the teacher's outputs keep
the two from giving every picture the same answer. `batch.select(batch.frames < 2)` is the teacher's batch of the global
views. Colours differ between views, so that they do not give a picture away, and between pictures. Afterwards,
held-out pictures get the class of their nearest neighbours, by the features of the random network and of the trained
teacher. Prints

"""

from __future__ import annotations

import argparse
import copy
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import shapes
import torch
import torch.nn.functional as F
from torch import nn

from patchnpack import FitTokens, PackedBatch, PackedImageLoader, Packing, RandomResizedCrop, Views
from patchnpack.models import NaViT, NaViTConfig
from patchnpack.packer.batch.drawing import draw_packs

shapes.MAX_SIDE = 192
LARGE = RandomResizedCrop(scale=(0.5, 1), ratio=(1 / 3, 3), max_tokens=64)
SMALL = RandomResizedCrop(scale=(0.05, 0.5), ratio=(1 / 2, 2), max_tokens=16)
GLOBALS, LOCALS = 2, 8
V = GLOBALS + LOCALS  # views of a picture
STUDENT, TEACHER = 0.1, 0.04  # temperatures
# S pictures of a batch, N images of a loader, D width of the model, O outputs of the head


def recolour(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Exchange the channels of an image, uint8 (H, W, 3), and change their contrast and brightness."""
    gain, shift = rng.uniform(0.5, 1.2, 3), rng.uniform(-40, 40, 3)
    return np.clip(image[..., rng.permutation(3)] * gain + shift, 0, 255).astype(np.uint8)


class Network(nn.Module):
    """A NaViT and the head of DINO: O outputs per image."""

    def __init__(self, D: int = 96, outputs: int = 256) -> None:
        super().__init__()
        self.body = NaViT(NaViTConfig(num_classes=0, width=D, depth=3, heads=3, patch_size=16, pooling="mean"))
        self.head = nn.Sequential(nn.Linear(D, 256), nn.GELU(), nn.Linear(256, 64))
        self.prototypes = nn.Parameter(torch.randn(outputs, 64))

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        images = self.body(batch)[batch.image_mask]  # (S * views, D), picture by picture and view by view
        return F.linear(F.normalize(self.head(images), dim=-1), F.normalize(self.prototypes, dim=-1))


def dino_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Cross entropy of the student's views under the teacher's other ones, a mean over pairs and pictures.

    Args:
        student: logits at the student's temperature, (S, V, O).
        teacher: probabilities, (S, GLOBALS, O), of the first views.
    """
    pairs = -torch.einsum("sgo,svo->gv", teacher, student.log_softmax(-1)) / len(student)
    other = 1 - torch.eye(*pairs.shape)
    return (pairs * other).sum() / other.sum()


def pretrain(loader: PackedImageLoader, epochs: int, seed: int, lr: float = 1e-3) -> tuple[NaViT, NaViT]:
    """Train on all epochs of the loader; return the random network and the teacher."""
    torch.manual_seed(seed)
    student = Network()
    teacher, centre = copy.deepcopy(student).requires_grad_(False), torch.zeros(1)
    random = copy.deepcopy(student.body)
    optimizer = torch.optim.AdamW(student.parameters(), lr, weight_decay=0.04)
    total, step = loader.total_steps(epochs), 0
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        for batch in loader:
            with torch.no_grad():
                seen = teacher(batch.select(batch.frames < GLOBALS)).unflatten(0, (-1, GLOBALS))
                known = ((seen - centre) / TEACHER).softmax(-1)
                centre = 0.9 * centre + 0.1 * seen.mean((0, 1))
            loss = dino_loss(student(batch).unflatten(0, (-1, V)) / STUDENT, known)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            progress, step = step / total, step + 1
            for group in optimizer.param_groups:
                group["lr"] = lr * min(progress / 0.1, (1 + math.cos(math.pi * progress)) / 2)
            if epoch == 0:  # as in the paper, the last layer waits for an epoch
                student.prototypes.grad = None
            optimizer.step()
            decay = 1 - 0.02 * (1 + math.cos(math.pi * progress)) / 2
            with torch.no_grad():
                for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
                    slow.lerp_(fast, 1 - decay)
    return random.eval(), teacher.body.eval()


@torch.no_grad()
def features(model: NaViT, loader: PackedImageLoader) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (N, D) of unit length and labels (N,) of whole pictures."""
    found = [(model(batch)[batch.image_mask], batch.labels[batch.image_mask]) for batch in loader]
    vectors, labels = map(torch.cat, zip(*found, strict=True))
    return F.normalize(vectors - vectors.mean(0), dim=-1), labels


def knn_accuracy(model: NaViT, known: PackedImageLoader, held_out: PackedImageLoader, k: int = 10) -> float:
    """Share of held-out pictures whose class is the most frequent one among the k nearest of the known pictures."""
    (known_vectors, known_labels), (vectors, labels) = features(model, known), features(model, held_out)
    nearest = (vectors @ known_vectors.T).topk(k).indices
    votes = F.one_hot(known_labels[nearest], len(shapes.CLASSES)).sum(1)
    return float((votes.argmax(1) == labels).float().mean())


def compare_speed(shards: str, rounds: int = 3) -> None:
    """Print pictures per second of CPU: one loader of ten views, and ten loaders of one view each, in turn."""
    options: Any = {"batch_size": 1, "shuffle": True, "num_threads": 1}
    large, small = (RandomResizedCrop(scale=each, max_tokens=n) for each, n in (((0.25, 1), 196), ((0.05, 0.25), 36)))
    packed = [
        PackedImageLoader(shards, Packing(seq_len=4096, views=Views((GLOBALS, large), (LOCALS, small))), **options)
    ]
    single = [
        PackedImageLoader(
            shards, Packing(seq_len=4096, resolution=large if view < GLOBALS else small), seed=view, **options
        )
        for view in range(V)
    ]
    rates: dict[str, list[float]] = {"one loader of ten views": [], "ten loaders of one view": []}
    for _ in range(rounds):
        for name, loaders in zip(rates, (packed, single), strict=True):
            start, images = time.process_time(), 0
            for loader in loaders:
                images += sum(batch.num_images for batch in loader)
            rates[name].append(images / (time.process_time() - start))
    for name, values in rates.items():
        print(f"{name}: {np.median(values):.0f} crops per second of CPU")
    one, ten = rates.values()
    print(f"ratio: {np.median(np.divide(one, ten)):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=960)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--speed", metavar="SHARDS", help="only compare the speed of the two ways to load crops")
    parser.add_argument("--picture", type=Path, help="PNG of a pack of crops")
    options = parser.parse_args()
    if options.speed:
        compare_speed(options.speed)
        return
    crops = Packing(seq_len=1024, max_images=160, views=Views((GLOBALS, LARGE), (LOCALS, SMALL)))
    with tempfile.TemporaryDirectory() as folder:
        shapes.draw_shapes(folder, options.images, max(options.images // 2, 10))
        train = f"{folder}/train-*.tar"
        whole = Packing(seq_len=1024, resolution=FitTokens(64))
        known, held_out = (
            PackedImageLoader(shards, whole, batch_size=2, label="cls", transform=recolour)
            for shards in (train, f"{folder}/validation-*.tar")
        )
        print("seed   random network   DINO   accuracy of 10 nearest neighbours")
        for seed in options.seeds:
            loader = PackedImageLoader(train, crops, batch_size=2, shuffle=True, seed=seed, transform=recolour)
            if options.picture and seed == options.seeds[0]:
                draw_packs(next(iter(loader)), max_packs=1, width=1200).save(options.picture)
            accuracies = (knn_accuracy(model, known, held_out) for model in pretrain(loader, options.epochs, seed))
            print("{:<6} {:<16.3f} {:.3f}".format(seed, *accuracies), flush=True)


if __name__ == "__main__":
    main()
