"""Run a small version of examples/ddp.py, and record the images, gradients and weights of each rank and step.

ddp_trial.py LOG BATCH_SIZE DIE_BEFORE SHARDS CHECKPOINT; rank 1 exits before step DIE_BEFORE, never if it is 0.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from patchnpack import FitTokens, PackedBatch, PackedImageLoader, Packing

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "ddp.py"
SMALL = Packing(seq_len=64, resolution=FitTokens(16))
SAVE_EVERY = 2


def small_example(batch_size: int) -> ModuleType:
    """Load the example as a module with a smaller configuration."""
    spec = importlib.util.spec_from_file_location("ddp", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    smaller = {"PACKING": SMALL, "BATCH_SIZE": batch_size, "EPOCHS": 2, "SAVE_EVERY": SAVE_EVERY}
    for name, value in smaller.items():
        assert hasattr(module, name)
        setattr(module, name, value)
    return module


def digest(tensors: Iterable[torch.Tensor]) -> str:
    return hashlib.sha256(b"".join(tensor.detach().numpy().tobytes() for tensor in tensors)).hexdigest()


def parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def main() -> None:
    log, batch_size, die_before, shards, checkpoint = sys.argv[1:]
    rank, steps, begin = os.environ["RANK"], 0, PackedImageLoader.__iter__
    file = Path(f"{log}.{rank}").open("w", buffering=1)  # noqa: SIM115 -- stays open until the rank exits

    def write(**record: object) -> None:
        file.write(json.dumps(record) + "\n")

    def before(optimizer: torch.optim.Optimizer, *_: object) -> None:
        nonlocal steps
        steps += 1
        if rank == "1" and steps == int(die_before):
            os._exit(1)
        grads = [parameter.grad for parameter in parameters(optimizer) if parameter.grad is not None]
        norm = sum(float(grad.double().square().sum()) for grad in grads) ** 0.5
        write(grads=digest(grads), norm=norm, missing=len(parameters(optimizer)) - len(grads))

    def after(optimizer: torch.optim.Optimizer, *_: object) -> None:
        write(weights=digest(parameters(optimizer)))

    def recorded(loader: PackedImageLoader) -> Iterator[PackedBatch]:
        for batch in begin(loader):
            write(keys=[key for pack in batch.keys for key in pack], epoch=batch.epoch)
            yield batch

    # Ranks add gradients up in another order. Where a gradient is near 0, Adam turns float32 noise into whole steps.
    torch.set_default_dtype(torch.float64)
    register_optimizer_step_pre_hook(before)
    register_optimizer_step_post_hook(after)
    PackedImageLoader.__iter__ = recorded  # type: ignore[method-assign]
    Path(checkpoint).parent.mkdir(parents=True, exist_ok=True)
    small_example(int(batch_size)).main(shards, Path(checkpoint))


if __name__ == "__main__":
    main()
