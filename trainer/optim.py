"""Optimizer, learning rate schedule and moving average of the weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable

import torch
from torch import nn

from patchnpack.models.navit import NaViT
from patchnpack.trainer.train_config import TrainConfig


def learning_rate(progress: float, config: TrainConfig) -> float:
    """The learning rate at `progress` (0 to 1) of the budget: linear warm-up, then `config.schedule`.

    >>> [round(learning_rate(p, TrainConfig(steps=100, lr=1.0, warmup=0.1)), 2) for p in (0.0, 0.05, 0.1, 0.55, 1.0)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    >>> rsqrt = TrainConfig(steps=100, lr=1.0, schedule="rsqrt", warmup=0.1, cooldown=0.2)
    >>> [round(learning_rate(p, rsqrt), 3) for p in (0.05, 0.1, 0.4, 0.9, 1.0)]
    [0.5, 1.0, 0.5, 0.167, 0.0]
    """
    if progress < config.warmup:
        return config.lr * progress / config.warmup
    if config.schedule == "rsqrt":
        end = min(max(1 - progress, 0) / config.cooldown, 1.0) if config.cooldown else 1.0
        return config.lr * math.sqrt(config.warmup / progress) * end
    return config.lr * 0.5 * (1 + math.cos(math.pi * min((progress - config.warmup) / (1 - config.warmup), 1.0)))


def _height(name: str, depth: int) -> int:
    """How far a parameter is from the head: 0 for head and pooling, 1 for the last block, depth + 1 for embeddings."""
    part, _, rest = name.partition(".")
    if part in ("patch_embed", "pos_embed", "frame_embed", "prefix"):
        return depth + 1
    return depth - int(rest.partition(".")[0]) if part == "blocks" else 0


def freeze(model: NaViT, first: int | str) -> None:
    """Freeze the embeddings and the `first` blocks, or with "backbone" everything except the head; see `TrainConfig`.

    Raises:
        ValueError: the model has fewer blocks.
    """
    depth, whole = model.config.depth, first == "backbone"
    blocks = depth if whole else int(first)
    if blocks > depth:
        raise ValueError(f"freeze is {first}, but the model has {depth} blocks; give at most {depth}, or 'backbone'")
    for name, parameter in model.named_parameters():
        if not name.startswith("head.") and (whole or (blocks and _height(name, depth) > depth - blocks)):
            parameter.requires_grad_(False)
    for block in list(model.blocks)[:blocks]:
        block.drop_path = 0.0  # type: ignore[assignment]  # a Block's float


def make_optimizer(model: NaViT, config: TrainConfig, others: Iterable[nn.Parameter] = ()) -> torch.optim.AdamW:
    """Make AdamW with weight decay on matrices only; `scale` of each group multiplies its learning rate.

    With `layer_decay` d the head and the pooling have scale 1, the last block d, the block before it d squared and so
    on, and the embeddings have the smallest. `others` are parameters outside the model, with scale 1. Frozen parameters
    are left out.
    """
    depth, groups = model.config.depth, dict[tuple[float, bool], list[nn.Parameter]]()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decayed = parameter.ndim > 1 and not name.startswith(("pos_embed.", "frame_embed", "pool.query", "prefix"))
            groups.setdefault((config.layer_decay ** _height(name, depth), decayed), []).append(parameter)
    for parameter in others:
        groups.setdefault((1.0, parameter.ndim > 1), []).append(parameter)
    settings = [
        {"params": groups[key], "weight_decay": config.weight_decay if key[1] else 0.0, "scale": key[0]}
        for key in sorted(groups, reverse=True)
    ]
    return torch.optim.AdamW(settings, lr=config.lr, betas=config.betas, fused=True)


def start_moments(optimizer: torch.optim.Optimizer) -> None:
    """Give AdamW the states of step 0 that its first step would make, for a checkpoint to fill."""
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = {"step": torch.zeros((), device=parameter.device), **moments}


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of each group to `lr` times its `scale`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["scale"]


class Average:
    """Exponential moving average of a model's weights, as `model` (arXiv 1703.01780, section 2).

    >>> from patchnpack.models import NaViTConfig
    >>> average = Average(NaViT(NaViTConfig(num_classes=2, width=6, depth=1)), decay=0.999)
    """

    def __init__(self, model: NaViT, decay: float) -> None:
        self.model, self.decay = copy.deepcopy(model).eval().requires_grad_(False), decay

    @torch.no_grad()
    def update(self, model: NaViT, step: int, good: torch.Tensor) -> None:
        """Move towards `model` by 1 - decay, or more in the first steps, when there is little to average.

        Unless `good`, 0-d bool on the model's device, nothing moves.
        """
        share = good * (1 - min(self.decay, (1 + step) / (10 + step)))
        for average, new in zip(self.model.parameters(), model.parameters(), strict=True):
            average.lerp_(new, share.to(average.dtype))
