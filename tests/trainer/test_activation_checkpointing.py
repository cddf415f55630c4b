from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from patchnpack.models import NaViT, NaViTConfig
from patchnpack.trainer import TrainConfig, train

Draw = Callable[..., Any]
Pack = Callable[..., Any]
Build = Callable[..., Any]


@pytest.mark.parametrize("backend", ["split", "dense"])
@pytest.mark.parametrize("variant", [{}, {"pooling": "cls", "registers": 2, "position": "rope"}])
def test_gradients_are_equal_bit_for_bit_also_where_branches_are_skipped(
    variant: dict[str, Any], backend: str, draw: Draw, pack: Pack, build: Build, config: NaViTConfig
) -> None:
    model: NaViT = build(dataclasses.replace(config, drop_path=0.5, depth=4, backend=backend, **variant)).train()
    batch = pack([[draw(3, 4, 1), draw(5, 2, 2)], [draw(4, 4, 0)]])
    gradients = []
    for recompute in (False, True):
        model.activation_checkpointing = recompute
        model.zero_grad()
        torch.manual_seed(0)
        loss = model.loss(batch)
        torch.manual_seed(1)  # whatever is drawn between forward and backward
        loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(list(model.parameters()))
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_a_run_has_the_same_losses_and_may_change_it_when_it_is_resumed(
    tmp_path: Path, draw: Draw, pack: Pack, config: NaViTConfig
) -> None:
    batches = [pack([[draw(3, 4, i % 2, seed=i), draw(2, 2, 1 - i % 2, seed=i)]]) for i in range(4)]
    small = dataclasses.replace(config, num_classes=2, drop_path=0.3)
    settings: dict[str, Any] = {"precision": "float32", "lr": 1e-3, "ema": 0.9}
    plain = train(small, batches, config=TrainConfig(epochs=2, **settings))
    train(small, batches, config=TrainConfig(epochs=1, **settings), out=tmp_path)
    half = train(small, batches, config=TrainConfig(epochs=2, activation_checkpointing=True, **settings), out=tmp_path)
    whole = train(small, batches, config=TrainConfig(epochs=2, activation_checkpointing=True, **settings))
    assert whole.losses == plain.losses
    assert len(half.losses) == len(plain.losses)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the peak of a process on Linux alone")
def test_a_step_of_twelve_blocks_on_4096_tokens_needs_at_most_half_of_the_memory() -> None:
    script = str(Path(__file__).with_name("peak_memory.py"))
    done = subprocess.run([sys.executable, "-P", script], capture_output=True, text=True, check=True)
    recomputed, kept = map(int, done.stdout.split())
    assert kept > 200e6, "the measure sees the activations"
    assert recomputed < kept / 2
