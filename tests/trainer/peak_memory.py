"""Print by how many bytes one training step of a model of 12 blocks on 4,096 tokens raises the peak of the process.

Started by test_activation_checkpointing.py: peak_memory.py 0|1.
"""

from __future__ import annotations

import resource
import sys

import numpy as np
import torch

from patchnpack import Packing, pack_stream
from patchnpack.models import NaViT, NaViTConfig


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    torch.set_num_threads(1)
    images = [(np.random.default_rng(i).integers(0, 256, (512, 512, 3), dtype=np.uint8), i % 2) for i in range(4)]
    (batch,) = pack_stream(images, Packing(seq_len=4096), batch_size=1, num_threads=0)
    assert batch.num_tokens == 4096
    model = NaViT(NaViTConfig(num_classes=2, width=96, depth=12, heads=3)).train()
    model.activation_checkpointing = bool(int(sys.argv[1]))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = peak()
    model.loss(batch).backward()
    print(peak() - before)


if __name__ == "__main__":
    main()
