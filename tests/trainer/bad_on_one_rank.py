"""Train on the ranks that torchrun starts, with a loss that is infinite on rank 1 alone in some steps.

Started by test_ranks.py: bad_on_one_rank.py OUT SKIP_BAD_STEPS STEP...
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from patchnpack import PackedBatch, Packing, pack_stream
from patchnpack.models import NaViT, NaViTConfig
from patchnpack.trainer import Classification, TrainConfig, train
from patchnpack.trainer.objectives.losses import Outcome


class InfiniteOnOneRank(Classification):
    """A loss that is infinite, with gradients of 0, on rank 1 in the given steps."""

    def __init__(self, steps: set[int]) -> None:
        super().__init__()
        self.steps, self.step = steps, 0

    def forward(self, model: NaViT, *batches: PackedBatch) -> Outcome:
        outcome = super().forward(model, *batches)
        if torch.is_grad_enabled():
            self.step += 1
            if self.step in self.steps and dist.get_rank() == 1:
                outcome = outcome._replace(total=outcome.total * 0 + math.inf)
        return outcome


def main() -> None:
    out, skip, *steps = sys.argv[1:]
    dist.init_process_group("gloo")
    rng = np.random.default_rng(dist.get_rank())
    images = [(rng.integers(0, 256, (32, 48, 3), dtype=np.uint8), i % 2) for i in range(8)]
    batches = list(pack_stream(images, Packing(seq_len=16), batch_size=1, num_threads=0))
    torch.manual_seed(0)
    model = NaViT(NaViTConfig(num_classes=2, width=12, depth=1, heads=2))
    config = TrainConfig(steps=6, precision="float32", save_every=1, skip_bad_steps=int(skip))
    record: dict[str, Any] = {}
    try:
        result = train(model, batches, config=config, objective=InfiniteOnOneRank(set(map(int, steps))), out=out)
        record |= {"losses": result.losses, "skipped": result.skipped_steps}
    except FloatingPointError as error:
        record["error"] = str(error)
    record["weights"] = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    torch.save(record, Path(out) / f"rank-{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
