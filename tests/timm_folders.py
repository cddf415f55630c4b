"""Folders of timm's models as the Hugging Face Hub serves them, from recorded weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

GOLDEN = Path(__file__).resolve().parent / "golden"
FOLDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "naflex": (
        "naflexvit_learned_bicubic_map",
        {"architecture": "naflexvit_base_patch16_map", "global_pool": "map", "model_args": {"num_heads": 3}},
    ),
    "vit": ("vit_token", {"architecture": "vit_base_patch16_224", "global_pool": "token"}),
}


def write_timm_folders(parent: Path) -> None:
    """Write `naflex`, whose config states the heads, and `vit`, whose config does not."""
    for name, (variant, about) in FOLDERS.items():
        with np.load(GOLDEN / f"{variant}.npz") as arrays:
            weights = {key[3:]: torch.from_numpy(arrays[key]) for key in arrays.files if key.startswith("sd/")}
        folder = parent / name
        folder.mkdir()
        save_file(weights, folder / "model.safetensors")
        size = {"mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, 128, 128]}
        (folder / "config.json").write_text(json.dumps({**about, "pretrained_cfg": size}))
