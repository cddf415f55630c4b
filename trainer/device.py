"""`find_device`: the device of a model."""

from __future__ import annotations

import os

import torch


def find_device(name: str) -> torch.device:
    """The device for `name`; "auto" is CUDA if available, else the CPU.

    Under torchrun, which starts one process per GPU, "cuda" is the GPU of this process.

    Raises:
        ValueError: the device does not exist.

    >>> find_device("cpu")
    device(type='cpu')
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if name == "cuda" else name)
    except RuntimeError as error:
        raise ValueError(f"device is {name!r}; give 'auto', 'cpu', 'cuda', or a single GPU such as 'cuda:1'") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device is {name!r}, but torch {torch.__version__} finds {torch.cuda.device_count()} GPUs; give 'cpu' or "
            "'auto' (`patchnpack doctor` lists the devices)"
        )
    return device
