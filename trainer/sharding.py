"""FSDP2: weights and optimizer states shared out over the ranks, and the checkpoints that they write together."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from patchnpack.models.navit import NaViT
from patchnpack.trainer.ranks import is_distributed, over_ranks, rank_and_size

# Tensors: nested dicts of tensors. A sharded tensor is a `DTensor`, of which a rank holds some rows.
Tensors = dict[Any, Any]


def shard(*modules: nn.Module) -> None:
    """Share out the parameters of modules over all ranks. Each block of a `NaViT` is gathered when it is used."""
    from torch.distributed.fsdp import fully_shard

    for module in modules:
        for block in module.blocks if isinstance(module, NaViT) else ():
            fully_shard(block)
        if any(True for _ in module.parameters()):
            fully_shard(module, reshard_after_forward=True)  # so that parameters are sharded between steps


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The rows of a tensor that this rank holds; a tensor that is not sharded itself."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All rows of a tensor, from all ranks. Every rank must call it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def whole_model(model: NaViT) -> NaViT:
    """A copy of a sharded model with all its rows; another model itself. Every rank must call it."""
    if not hasattr(model.patch_embed.weight, "full_tensor"):
        return model
    weights = {name: whole(weight) for name, weight in model.state_dict().items()}
    copy = NaViT(model.config).to(model.patch_embed.bias.device, model.patch_embed.bias.dtype)
    copy.load_state_dict(weights, assign=True)
    return copy


def checkpoints() -> tuple[Any, Any]:
    """torch's distributed checkpoints, and their safetensors storage; ValueError if they cannot be written or read."""
    try:
        import safetensors.torch  # noqa: F401  # it reads the files
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint import hf_storage

        if [*map(int, torch.__version__.split(".")[:2])] < [2, 9]:
            raise ImportError("it is too old")
    except ImportError as error:
        raise ValueError(
            f"checkpoints of sharding 'fsdp' need safetensors, and torch 2.9 or later ({error}; torch is "
            f"{torch.__version__}); run: pip install 'patchnpack[weights]', or train with sharding='ddp'"
        ) from error
    return dcp, hf_storage


def save_shards(folder: Path, tensors: Tensors) -> int:
    """Replace a folder by a file of safetensors per rank; returns their number. Every rank must call it."""
    dcp, storage = checkpoints()
    if rank_and_size()[0] == 0:
        shutil.rmtree(folder, ignore_errors=True)
    over_ranks(torch.zeros(1), next(iter(tensors["model"].values())).device)  # a barrier
    with warnings.catch_warnings(action="ignore"):  # without a process group, torch says so
        writer = storage.HuggingFaceStorageWriter(str(folder), save_distributed=True)
        dcp.save(tensors, storage_writer=writer, no_dist=not is_distributed())
    return len(list(folder.glob("*.safetensors")))


def load_shards(folder: Path, files: int, tensors: Tensors | None = None) -> Tensors:
    """Read the `files` files of `save_shards`, written on any number of ranks; ValueError if some are missing.

    Each rank reads its own rows of `tensors`, which are filled; with None it reads everything, by itself.
    """
    if (found := len(list(folder.glob("*.safetensors")))) != files:
        raise ValueError(
            f"{folder} holds {found} of the {files} files of a sharded checkpoint; copy the folder together with its "
            "checkpoint.pt"
        )
    dcp, storage = checkpoints()
    reader, alone = storage.HuggingFaceStorageReader(str(folder)), tensors is None or not is_distributed()
    if tensors is None:
        tensors = {}
        for name, saved in reader.read_metadata().state_dict_metadata.items():
            part, rest = name.split(".", 1)
            tensors.setdefault(part, {})[rest] = torch.empty(saved.size, dtype=saved.properties.dtype)
    planner = dcp.DefaultLoadPlanner(allow_partial_load=True)  # a parameter without a gradient has no moments
    with warnings.catch_warnings(action="ignore"):
        dcp.load(tensors, storage_reader=reader, planner=planner, no_dist=alone)
    return tensors


def fill(tensors: Tensors, values: Tensors) -> None:
    """Copy values that every rank has in whole into tensors, sharded or not."""
    for name, value in values.items():
        if isinstance(value, dict):
            fill(tensors.get(name, {}), value)  # a part may be absent where its values are none
        elif hasattr(tensor := tensors[name], "placements"):
            from torch.distributed.tensor import distribute_tensor

            tensor.copy_(distribute_tensor(value.to(tensor.device), tensor.device_mesh, tensor.placements))
        else:
            tensor.copy_(value)
