"""Train on the ranks that torchrun starts, and save losses and weights. Started by test_ranks.py.

ranks_agree.py SHARDS DIE_BEFORE_STEP OUT:BATCH_SIZE:ACCUMULATE:SHARDING ...; 0 is to live. Runs share one start,
since importing takes longer than training.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.optim.optimizer import register_optimizer_step_pre_hook

from patchnpack import PackedImageLoader, Packing
from patchnpack.models import NaViTConfig
from patchnpack.trainer import TrainConfig, train

CONFIG = {"epochs": 2, "lr": 1e-4, "ema": 0.9, "precision": "float32", "save_every": 2, "warmup": 0.0}


def main() -> None:
    shards, die, *runs = sys.argv[1:]
    steps = 0

    def count(*_: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == int(die) and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    # Ranks add gradients up in another order. Where a gradient is near 0, Adam turns float32 noise into whole steps.
    torch.set_default_dtype(torch.float64)
    register_optimizer_step_pre_hook(count)
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    for run in runs:
        out, batch_size, accumulate, sharding = run.rsplit(":", 3)
        record = take(Path(out), shards, int(batch_size), int(accumulate), sharding)
        torch.save(record, Path(out) / f"rank-{os.environ.get('RANK', 0)}.pt")
    if dist.is_initialized():
        dist.destroy_process_group()


def take(out: Path, shards: str, batch_size: int, accumulate: int, sharding: str) -> dict[str, Any]:
    packing, keys = Packing(seq_len=16, fill="none"), list[str]()
    loader = PackedImageLoader(
        shards, packing, batch_size=batch_size, shuffle=True, label="cls", num_threads=1, block=2
    )
    held_out = PackedImageLoader(shards, packing, batch_size=2, label="cls", num_threads=1)
    model = NaViTConfig(num_classes=2, width=12, depth=2, heads=2)
    config = TrainConfig(**CONFIG, accumulate=accumulate, sharding=sharding)  # type: ignore[arg-type]
    begin = PackedImageLoader.__iter__

    def noted(loader: PackedImageLoader) -> Any:
        for batch in begin(loader):
            keys.extend(f"{batch.epoch}/{key}" for pack in batch.keys for key in pack)
            yield batch

    loader.__class__ = type("Noting", (PackedImageLoader,), {"__iter__": noted})
    result = train(model, loader, config=config, validation=held_out, out=out)
    weights = torch.cat([p.detach().flatten() for p in result.model.parameters()])
    return {"losses": result.losses, "weights": weights, "metrics": result.metrics, "keys": keys}


if __name__ == "__main__":
    main()
