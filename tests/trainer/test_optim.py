from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import nn

from patchnpack.models import NaViT, NaViTConfig
from patchnpack.trainer import TrainConfig, learning_rate
from patchnpack.trainer.optim import Average, freeze, make_optimizer, set_learning_rate


def settings(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"steps": 12, "lr": 1.0, **changes})


def test_cosine_and_rsqrt_follow_their_formulas() -> None:
    cosine = settings(warmup=0.2)
    rsqrt = settings(schedule="rsqrt", warmup=0.1, cooldown=0.25)
    for p in (0.3, 0.5, 0.9):
        assert learning_rate(p, cosine) == pytest.approx(0.5 + 0.5 * math.cos(math.pi * (p - 0.2) / 0.8))
    for p in (0.2, 0.5, 0.74):
        assert learning_rate(p, rsqrt) == pytest.approx(math.sqrt(0.1 / p))
    assert learning_rate(0.875, rsqrt) == pytest.approx(0.5 * math.sqrt(0.1 / 0.875))
    for config in (cosine, rsqrt):
        assert learning_rate(config.warmup / 4, config) == pytest.approx(0.25)
        assert learning_rate(1.0, config) == pytest.approx(0)
    assert learning_rate(1.0, settings(schedule="rsqrt", cooldown=0.0)) == pytest.approx(math.sqrt(0.1))


def test_weight_decay_spares_norms_biases_positions_and_the_pooling_query(config: NaViTConfig) -> None:
    model = NaViT(config)
    decayed, spared = make_optimizer(model, settings(weight_decay=0.3)).param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.3, 0.0)
    names = {id(p): name for name, p in model.named_parameters()}
    assert len(decayed["params"]) + len(spared["params"]) == len(names)
    spared_names = {names[id(p)] for p in spared["params"]}
    assert {"pos_embed.x", "pos_embed.y", "pool.query", "head.bias", "patch_embed.bias", "norm.weight"} <= spared_names
    assert all(p.ndim == 2 for p in decayed["params"])


def test_the_table_of_frames_is_spared_and_learns_at_the_embeddings_rate(config: NaViTConfig) -> None:
    model = NaViT(dataclasses.replace(config, time="learned"))
    groups = make_optimizer(model, settings(weight_decay=0.3, layer_decay=0.5)).param_groups
    (group,) = (group for group in groups if any(parameter is model.frame_embed for parameter in group["params"]))
    assert (group["weight_decay"], group["scale"]) == (0.0, 0.5 ** (config.depth + 1))


def test_class_token_and_registers_are_spared_and_learn_at_the_embeddings_rate(config: NaViTConfig) -> None:
    model = NaViT(dataclasses.replace(config, pooling="cls", registers=2))
    groups = make_optimizer(model, settings(weight_decay=0.3, layer_decay=0.5)).param_groups
    (group,) = (group for group in groups if any(parameter is model.prefix for parameter in group["params"]))
    assert (group["weight_decay"], group["scale"]) == (0.0, 0.5 ** (config.depth + 1))


def test_layers_further_from_the_head_learn_more_slowly(config: NaViTConfig) -> None:
    model, other = NaViT(dataclasses.replace(config, depth=3)), nn.Parameter(torch.ones(2, 2))
    optimizer = make_optimizer(model, settings(layer_decay=0.5), [other])
    set_learning_rate(optimizer, 0.8)
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    rates = {name: rate[id(p)] for name, p in model.named_parameters()}
    assert len(rate) == len(rates) + 1
    assert rates["head.weight"] == rates["pool.query"] == rates["norm.weight"] == rate[id(other)] == 0.8
    assert [rates[f"blocks.{i}.qkv.weight"] for i in (2, 1, 0)] == [0.4, 0.2, 0.1]
    assert rates["patch_embed.weight"] == rates["pos_embed.x"] == 0.05


@pytest.mark.parametrize(
    ("first", "trained"),
    [
        (0, {"patch_embed", "pos_embed", "prefix", "blocks.0", "blocks.1", "blocks.2", "norm", "pool", "head"}),
        (2, {"blocks.2", "norm", "pool", "head"}),
        (3, {"norm", "pool", "head"}),
        ("backbone", {"head"}),
    ],
)
def test_frozen_parts_have_no_gradient_no_optimizer_state_and_no_stochastic_depth(
    first: int | str, trained: set[str], config: NaViTConfig
) -> None:
    model = NaViT(dataclasses.replace(config, depth=3, registers=1, drop_path=0.3))
    freeze(model, first)
    parts = {
        ".".join(name.split(".")[: 2 if name.startswith("blocks") else 1])
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    assert parts == trained
    held = {id(p) for group in make_optimizer(model, settings()).param_groups for p in group["params"]}
    assert held == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    blocks: Any = model.blocks
    dropped = [block.drop_path for block in blocks]
    assert dropped == [0.0 if first == "backbone" or i < int(first) else 0.15 * i for i in range(3)]


def test_more_frozen_blocks_than_there_are_is_an_error(config: NaViTConfig) -> None:
    with pytest.raises(ValueError, match=rf"freeze is 9, but the model has {config.depth} blocks; give at most"):
        freeze(NaViT(config), 9)


def test_the_average_follows_its_formula(config: NaViTConfig) -> None:
    model = NaViT(config)
    average, bias = Average(model, 0.8), model.get_parameter("head.bias")
    expected = bias.detach().clone()
    for step in range(1, 60):
        with torch.no_grad():
            bias.add_(step)
        average.update(model, step, torch.tensor(True))
        decay = min(0.8, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * bias.detach()
    torch.testing.assert_close(average.model.get_parameter("head.bias"), expected)
    assert not average.model.training
    assert not any(p.requires_grad for p in average.model.parameters())
