"""Train a NaViT with Hugging Face's Trainer, and resume mid-epoch from its checkpoint.

    python examples/with_trainer.py [FOLDER]

Batches pass through `to_dict`, because Trainer gives them to the model as keyword arguments. The script draws shapes
into the folder and trains two epochs with a checkpoint every 7 steps. It then creates everything again and resumes from
the first checkpoint. Expected, after 15 seconds:

    from the start: 192 + 192 images
    from checkpoint-7: 50 + 192 images, same weights bit for bit: True
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from patchnpack import FitTokens, PackedBatch, PackedImageLoader, Packing
from patchnpack.models import NaViT, NaViTConfig

sys.path.insert(0, str(Path(__file__).parent))
from shapes import CLASSES, draw_shapes


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = NaViT(NaViTConfig(num_classes=len(CLASSES), width=48, depth=2))
        self.images = Counter[int]()  # per epoch

    def forward(self, num_items_in_batch: torch.Tensor, **fields: Any) -> dict[str, torch.Tensor]:
        batch = PackedBatch.from_dict(fields)
        self.images[batch.epoch] += batch.num_images
        # Trainer has counted the labels over ranks and accumulated batches, except labels of -100.
        return {"loss": self.model.loss(batch, reduction="sum") / num_items_in_batch.clamp(min=1)}


class Dicts(TrainerCallback):
    """The batches for Trainer; it would shard a dataset over the ranks a second time."""

    def __init__(self, folder: Path) -> None:
        shards, packing = f"{folder}/train-*.tar", Packing(seq_len=256, resolution=FitTokens(64))
        self.loader = PackedImageLoader(shards, packing, batch_size=4, shuffle=True, repeat=True, label="cls")

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (batch.to_dict() for batch in self.loader)

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        saved = Path(str(args.output_dir), f"checkpoint-{state.global_step}", "loader.json")
        saved.write_text(json.dumps(self.loader.state_dict()))


def train(folder: Path, checkpoint: Path | None = None) -> Model:
    dicts, model = Dicts(folder), Model()
    if checkpoint is not None:
        dicts.loader.load_state_dict(json.loads((checkpoint / "loader.json").read_text()))
    quiet: dict[str, Any] = {"report_to": "none", "disable_tqdm": True, "logging_strategy": "no", "use_cpu": True}
    steps = {"max_steps": dicts.loader.total_steps(2), "save_steps": 7, "ignore_data_skip": True}
    trainer = Trainer(model, TrainingArguments(str(folder), **steps, **quiet), callbacks=[dicts])
    trainer.get_train_dataloader = lambda: dicts
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    return model


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "trainer")
    draw_shapes(folder, 192, 1)
    whole, rest = train(folder), train(folder, folder / "checkpoint-7")
    same = all(map(torch.equal, whole.parameters(), rest.parameters()))
    print(f"from the start: {' + '.join(map(str, whole.images.values()))} images")
    print(f"from checkpoint-7: {' + '.join(map(str, rest.images.values()))} images, same weights bit for bit: {same}")
