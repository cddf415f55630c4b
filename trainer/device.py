"""Where a model is computed."""

from __future__ import annotations

import os

import torch


def find_device(name: str) -> torch.device:
    """The device that `name` stands for: "auto" is CUDA where there is one, else the CPU.

    Under torchrun, which starts a process for each GPU, "cuda" is the GPU of this process.

    Raises:
        ValueError: there is no such device.

    >>> find_device("cpu")
    device(type='cpu')
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if name == "cuda" else name)
    except RuntimeError as error:
        raise ValueError(f"device is {name!r}; give 'auto', 'cpu', 'cuda', or one GPU: 'cuda:1'") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device is {name!r}, and torch {torch.__version__} sees {torch.cuda.device_count()} GPUs; give 'cpu' or "
            "'auto' (`patchnpack doctor` tells what there is)"
        )
    return device
