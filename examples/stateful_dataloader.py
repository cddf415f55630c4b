"""Use torchdata's StatefulDataLoader, and resume mid-epoch from its own state.

    python examples/stateful_dataloader.py [FOLDER]

Draws shapes into the folder and trains two epochs with two decoding workers. It then creates everything again, loads
the state of step 7 and trains to the end. The state requires the same number of workers. Expected, after 10 seconds:

    from the start: 192 + 192 images
    from step 7: 50 + 192 images, same weights bit for bit: True
"""

from __future__ import annotations

import copy
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torchdata.stateful_dataloader import StatefulDataLoader

from patchnpack import FitTokens, PackedImageLoader, Packing
from patchnpack.models import NaViT, NaViTConfig

sys.path.insert(0, str(Path(__file__).parent))
from shapes import CLASSES, draw_shapes

EPOCHS, SAVED = 2, 7


class Run:
    """A model, its optimizer and its data: everything in a checkpoint."""

    def __init__(self, folder: Path) -> None:
        shards, packing = f"{folder}/train-*.tar", Packing(seq_len=256, resolution=FitTokens(64))
        loader = PackedImageLoader(shards, packing, batch_size=4, shuffle=True, label="cls", num_threads=1)
        self.data = StatefulDataLoader(loader.as_dataset(), batch_size=None, num_workers=2)
        self.model = NaViT(NaViTConfig(num_classes=len(CLASSES), width=48, depth=2))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.epoch, self.step, self.images = 0, 0, Counter[int]()  # images per epoch

    def state_dict(self) -> dict[str, Any]:
        parts = {"model": self.model, "optimizer": self.optimizer, "data": self.data}
        state = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}
        return {"epoch": self.epoch, "step": self.step, **state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.step = state["epoch"], state["step"]
        for name in ("model", "optimizer", "data"):
            getattr(self, name).load_state_dict(state[name])

    def train(self) -> dict[str, Any]:
        """Train to the end; return the state at step SAVED."""
        saved: dict[str, Any] = {}
        while self.epoch < EPOCHS:
            for batch in self.data:
                self.optimizer.zero_grad()
                self.model.loss(batch).backward()
                self.optimizer.step()
                self.step += 1
                self.images[batch.epoch] += batch.num_images
                if self.step == SAVED:
                    saved = self.state_dict()
            self.epoch += 1
        return saved


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "stateful")
    draw_shapes(folder, 192, 1)
    whole, rest = Run(folder), Run(folder)
    rest.load_state_dict(whole.train())
    rest.train()
    same = all(map(torch.equal, whole.model.parameters(), rest.model.parameters()))
    print(f"from the start: {' + '.join(map(str, whole.images.values()))} images")
    print(f"from step {SAVED}: {' + '.join(map(str, rest.images.values()))} images, same weights bit for bit: {same}")
