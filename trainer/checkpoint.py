"""Checkpoints: a model and the state to resume its training, written atomically."""

from __future__ import annotations

import pickle
import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from patchnpack.models.config import NaViTConfig
from patchnpack.models.navit import NaViT
from patchnpack.packer.files import atomic_write
from patchnpack.trainer.sharding import load_shards

FORMAT = "patchnpack.navit.2"


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """The content of a checkpoint.

    Attributes:
        model: the model in evaluation mode, with its weights, or their moving average if the run kept one.
        optimizer: state dict of the optimizer; empty if none was saved.
        step: number of optimizer steps.
        train_config: fields of the `TrainConfig`; empty if none was saved.
        metrics: metrics of the last evaluation.
        state: everything else that `train` needs to resume; empty if none was saved.
    """

    model: NaViT
    optimizer: dict[str, Any] = field(default_factory=dict)
    step: int = 0
    train_config: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(
    path: str | Path,
    model: NaViT,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    step: int = 0,
    train_config: dict[str, Any] | None = None,
    metrics: dict[str, float] | None = None,
    state: dict[str, Any] | None = None,
    shards: dict[str, Any] | None = None,
) -> None:
    """Write a checkpoint of tensors and plain dicts, which `torch.load(path, weights_only=True)` reads.

    `load_checkpoint` loads `state["ema"]`, a state dict of the model, in preference to the weights of `model`. With
    `shards`, the tensors are in that "folder" beside the file, in so many "files" (see `save_shards`).
    """
    content = {
        "format": FORMAT,
        "model_config": asdict(model.config),
        "model": {} if shards else model.state_dict(),
        "optimizer": optimizer.state_dict() if optimizer and not shards else {},
        "step": step,
        "train_config": train_config or {},
        "metrics": metrics or {},
        "state": state or {},
        "shards": shards or {},
    }
    atomic_write(path, lambda file: torch.save(content, file))


def read_checkpoint(path: str | Path, device: torch.device | str = "cpu", *, whole: bool = True) -> dict[str, Any]:
    """Read the content of a checkpoint as a dict, if `whole` with sharded tensors; raises as `load_checkpoint` does."""
    if not Path(path).exists():
        raise FileNotFoundError(
            f"checkpoint {str(path)!r} does not exist (looked from {Path.cwd()}); `train` writes OUT/checkpoint.pt"
        )
    if Path(path).is_dir():
        raise ValueError(f"checkpoint {str(path)!r} is a folder; give a file: `train` writes OUT/checkpoint.pt")
    remedy = f"{path} is not a patchnpack checkpoint; give a file that train(out=...) or save_checkpoint wrote"
    with Path(path).open("rb") as file:
        if not zipfile.is_zipfile(file):  # also detects a truncated file: a zip archive ends with its directory
            raise ValueError(remedy)
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise ValueError(f"{remedy} ({error})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(remedy)
    if whole and (shards := content.get("shards")):
        tensors = load_shards(Path(path).parent / shards["folder"], shards["files"])
        content["model"], content["state"]["ema"] = tensors["model"], tensors.get("ema", {})
        content["state"]["objective"]["weights"] = tensors.get("objective", {})
    return content


def load_checkpoint(path: str | Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Read a checkpoint. No code in the file is executed.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not a checkpoint of this library.
    """
    content = read_checkpoint(path, device)
    model = NaViT(NaViTConfig(**content["model_config"])).to(device)
    model.load_state_dict(content["state"].get("ema") or content["model"])
    return Checkpoint(
        model=model.eval(),
        **{name: content[name] for name in ("optimizer", "step", "train_config", "metrics", "state")},
    )
