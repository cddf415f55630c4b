"""Train a NaViT with Accelerate on two processes, and resume mid-epoch from its checkpoint.

    torchrun --standalone --nproc-per-node 2 examples/with_accelerate.py [FOLDER]

The loader is not prepared: it already gives each process its own packs, and Accelerate would shard them again. The
loader has a state, so it is registered for checkpointing. The script draws shapes into the folder, trains two epochs,
then returns to the checkpoint of step 7 and trains to the end again. Expected, after 20 seconds:

    2 processes, 20 steps: 192 images, each 2 times
    from step 7: same weights bit for bit: True
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from patchnpack import FitTokens, PackedImageLoader, Packing
from patchnpack.models import NaViT, NaViTConfig, classification_loss

sys.path.insert(0, str(Path(__file__).parent))
from shapes import CLASSES, draw_shapes

EPOCHS, SAVED = 2, 7


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "accelerate")
    accelerator = Accelerator(cpu=True)
    if accelerator.is_main_process:
        draw_shapes(folder, 192, 1)
    accelerator.wait_for_everyone()

    # The loader takes rank and world size from the process group that Accelerator has started.
    shards, packing = f"{folder}/train-*.tar", Packing(seq_len=256, resolution=FitTokens(64))
    loader = PackedImageLoader(shards, packing, batch_size=2, shuffle=True, repeat=True, label="cls")
    torch.manual_seed(0)
    model = NaViT(NaViTConfig(num_classes=len(CLASSES), width=48, depth=2))
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-3))
    accelerator.register_for_checkpointing(loader)
    steps, keys = loader.total_steps(EPOCHS), list[str]()

    def train(done: int) -> torch.Tensor:
        """Train from step `done` to the last step; return all weights as one tensor."""
        for step, batch in enumerate(loader, done + 1):
            total, images = classification_loss(model(batch), batch)
            over_ranks = accelerator.reduce(images.detach().float()).clamp(min=1)
            accelerator.backward(total * accelerator.num_processes / over_ranks)  # DDP averages the gradients
            optimizer.step()
            optimizer.zero_grad()
            keys.extend(key for pack in batch.keys for key in pack)
            if step == SAVED:
                accelerator.save_state(str(folder / "checkpoint"))
            if step == steps:
                break
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    weights = train(0)
    times = Counter(gather_object(keys))
    accelerator.print(
        f"{accelerator.num_processes} processes, {steps} steps: {len(times)} images, each",
        *sorted(set(times.values())),
        "times",
    )
    accelerator.wait_for_everyone()
    accelerator.load_state(str(folder / "checkpoint"))
    accelerator.print(f"from step {SAVED}: same weights bit for bit: {torch.equal(train(SAVED), weights)}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
