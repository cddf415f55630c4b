"""Compare a model's layers across patch sizes with linear CKA, as FlexiViT does.

    python examples/cka.py [--picture cka.png]

trains two small NaViTs on the shapes of `shapes.py`, 48 to 192 pixels a side, for equally many steps: one at random
patch sizes (FlexiViT, arXiv 2212.08013), one at 16 pixels only. Both then see the same held-out images at 8, 16 and 32
pixels. A layer is represented by its block's output, averaged over an image's tokens. Linear CKA (Kornblith et al.,
arXiv 1905.00414) compares two layers over all images; 1 means that they agree up to rotation and scale. Prints

    231 steps each, patch sizes 8, 16, 32
    trained at     accuracy             CKA of equal layers
    random sizes   0.983  0.983  0.950  8-16 0.863, 8-32 0.708, 16-32 0.741, mean 0.771
    16 only        1.000  0.996  0.821  8-16 0.916, 8-32 0.486, 16-32 0.532, mean 0.645
"""

from __future__ import annotations

import argparse
import tempfile
from itertools import combinations
from pathlib import Path

import numpy as np
import shapes
import torch

from patchnpack import PackedImageLoader, Packing, PatchSizes
from patchnpack.models import NaViT, NaViTConfig
from patchnpack.trainer import TrainConfig, evaluate, train

shapes.MAX_SIDE = 192
SIZES, DEPTH = (8, 16, 32), 4
# N images, D and E widths, M blocks of the model


def linear_cka(x: torch.Tensor, y: torch.Tensor) -> float:
    """Linear CKA of x (N, D) and y (N, E) over the same N images, from 0 to 1.

    >>> x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    >>> round(linear_cka(x, 3 * x.flip(1) + 1), 4)  # the same up to permutation, scale and shift
    1.0
    """
    x, y = (z.double() - z.double().mean(0) for z in (x, y))
    return float((x.T @ y).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm()))


@torch.no_grad()
def layers(model: NaViT, loader: PackedImageLoader) -> torch.Tensor:
    """The output of each block, averaged over the tokens of each image, (M, N, D) in the order of the index."""
    outputs: list[torch.Tensor] = []
    hooks = [block.register_forward_hook(lambda _, __, output: outputs.append(output)) for block in model.blocks]
    pooled, rows = [], []
    for batch in loader:
        model(batch)
        stream = model.stream(batch)  # the blocks compute in the order of the stream, which may differ from the batch
        sums = torch.zeros(len(outputs), len(stream.columns), model.config.width)
        sums.index_add_(1, stream.unit, torch.stack(outputs))
        pooled.append(sums / stream.unit.bincount(minlength=len(stream.columns))[:, None])
        rows.append(batch.rows.flatten()[stream.columns])
        outputs.clear()
    for hook in hooks:
        hook.remove()
    return torch.cat(pooled, 1)[:, torch.cat(rows).argsort()]


def draw(matrices: dict[str, np.ndarray], path: Path) -> None:
    """Draw one matrix per model, with the layers at each patch size as rows and columns."""
    from matplotlib.figure import Figure  # only --picture needs it

    figure = Figure(figsize=(4.2 * len(matrices) + 0.8, 4.3), layout="constrained")
    axes = figure.subplots(1, len(matrices))
    names = [f"patch {size}" for size in SIZES]
    for each, (name, matrix) in zip(axes, matrices.items(), strict=True):
        drawn = each.imshow(matrix, vmin=0, vmax=1)
        middle = np.arange(len(SIZES)) * DEPTH + (DEPTH - 1) / 2
        each.set_xticks(middle, names)
        each.set_yticks(middle, names, rotation=90, va="center")
        for edge in middle[1:] - DEPTH / 2:
            each.axhline(edge, color="white")
            each.axvline(edge, color="white")
        each.set_title(f"trained at {name}", fontsize=11)
    figure.colorbar(drawn, ax=axes, shrink=0.8, label="linear CKA")
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=960)
    parser.add_argument(
        "--epochs", type=int, default=3, help="epochs at patch size 16; the other model takes as many steps"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path, help="PNG of the CKA of both models; needs matplotlib")
    options = parser.parse_args()
    matrices = {}
    with tempfile.TemporaryDirectory() as folder:
        shapes.draw_shapes(folder, options.images, max(options.images // 4, 3))

        def loader(split: str, size: int | PatchSizes) -> PackedImageLoader:
            packing, files, seed = Packing(seq_len=576, patch_size=size), f"{folder}/{split}-*.tar", options.seed
            return PackedImageLoader(files, packing, batch_size=1, shuffle=split == "train", seed=seed, label="cls")

        steps = loader("train", 16).total_steps(options.epochs)
        times = TrainConfig(steps=steps, lr=1e-3, seed=options.seed, eval_every=10**6)
        config = NaViTConfig(num_classes=3, width=96, depth=DEPTH, heads=3, patch_size=16)
        print(f"{steps} steps each, patch sizes 8, 16, 32\ntrained at     accuracy             CKA of equal layers")
        variants: dict[str, int | PatchSizes] = {"random sizes": PatchSizes(SIZES), "16 only": 16}
        for name, size in variants.items():
            model = train(config, loader("train", size), config=times).model.eval()
            accuracies = "  ".join(f"{evaluate(model, loader('validation', s))['accuracy']:.3f}" for s in SIZES)
            outputs = [layer for s in SIZES for layer in layers(model, loader("validation", s))]
            matrices[name] = np.array([[linear_cka(x, y) for y in outputs] for x in outputs])
            blocks = matrices[name].reshape(len(SIZES), DEPTH, len(SIZES), DEPTH)
            pairs = {(a, b): np.trace(blocks[a, :, b]) / DEPTH for a, b in combinations(range(len(SIZES)), 2)}
            similarities = ", ".join(f"{SIZES[a]}-{SIZES[b]} {value:.3f}" for (a, b), value in pairs.items())
            print(f"{name:13}  {accuracies}  {similarities}, mean {np.mean(list(pairs.values())):.3f}", flush=True)
    if options.picture:
        draw(matrices, options.picture)


if __name__ == "__main__":
    main()
