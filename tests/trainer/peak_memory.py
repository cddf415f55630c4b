"""Print by how many bytes a training step of a model of 12 blocks on 4,096 tokens raises the peak of the process.

The first line is with activation checkpointing, the second without. Started by test_activation_checkpointing.py.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from patchnpack import Packing, pack_stream
from patchnpack.models import NaViT, NaViTConfig


def peak() -> int:
    # Not `ru_maxrss`, in which the process that started this one lives on.
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def main() -> None:
    torch.set_num_threads(1)
    sides = [16, *[256] * 16]
    images = [
        (np.random.default_rng(i).integers(0, 256, (side, side, 3), dtype=np.uint8), i % 2)
        for i, side in enumerate(sides)
    ]
    packing = Packing(seq_len=4096)
    (small,), (batch,) = (pack_stream(part, packing, batch_size=1, num_threads=0) for part in (images[:1], images[1:]))
    assert batch.num_tokens == 4096
    model = NaViT(NaViTConfig(num_classes=2, width=96, depth=12, heads=3)).train()
    model.activation_checkpointing = True
    model.loss(small).backward()  # makes the gradients, and what torch imports and allocates once
    before = peak()
    for model.activation_checkpointing in (True, False):  # in this order, since the peak only grows
        model.loss(batch).backward()
        print(peak() - before)


if __name__ == "__main__":
    main()
