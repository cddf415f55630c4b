"""Train a NaViT with Lightning, and resume mid-epoch from Lightning's own checkpoint.

    python examples/with_lightning.py [FOLDER]

Trains three epochs, then resumes from the checkpoint of step 16, mid-epoch. Expected, after 10 seconds:

    from the start: 192 + 192 + 192 images
    from step=16.ckpt: 73 + 192 images, same weights bit for bit: True
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from patchnpack import FitTokens, PackedBatch, PackedImageLoader, Packing
from patchnpack.models import NaViT, NaViTConfig

sys.path.insert(0, str(Path(__file__).parent))
from shapes import CLASSES, draw_shapes


class Epochs:
    """The loader without `len`, which Lightning would query only once."""

    def __init__(self, loader: PackedImageLoader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[PackedBatch]:
        yield from self.loader


class Module(LightningModule):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        shards, packing = f"{folder}/train-*.tar", Packing(seq_len=256, resolution=FitTokens(64))
        self.loader = PackedImageLoader(shards, packing, batch_size=4, shuffle=True, label="cls")
        self.model = NaViT(NaViTConfig(num_classes=len(CLASSES), width=48, depth=2))
        self.images = Counter[int]()  # per epoch

    def train_dataloader(self) -> Epochs:
        return Epochs(self.loader)

    def training_step(self, batch: PackedBatch, _: int) -> torch.Tensor:
        self.used = batch  # Lightning has already fetched the next batch
        self.images[batch.epoch] += batch.num_images
        over_ranks = self.all_gather(torch.tensor(batch.num_images, device=self.device)).sum().clamp(min=1)
        return self.model.loss(batch, reduction="sum") * self.trainer.world_size / over_ranks

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["loader"] = self.loader.state_dict(after=self.used)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.loader.load_state_dict(checkpoint["loader"])


def train(folder: Path, checkpoint: Path | None = None) -> Module:
    run, save = Module(folder), ModelCheckpoint(folder, "{step}", every_n_train_steps=16, enable_version_counter=False)
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    Trainer(max_epochs=3, callbacks=[save], **options).fit(run, ckpt_path=checkpoint)
    return run


if __name__ == "__main__":
    draw_shapes(folder := Path(sys.argv[1] if len(sys.argv) > 1 else "lightning"), 192, 1)
    whole, rest = train(folder), train(folder, folder / "step=16.ckpt")
    same = all(map(torch.equal, whole.parameters(), rest.parameters()))
    print(f"from the start: {' + '.join(map(str, whole.images.values()))} images")
    print(f"from step=16.ckpt: {' + '.join(map(str, rest.images.values()))} images, same weights bit for bit: {same}")
