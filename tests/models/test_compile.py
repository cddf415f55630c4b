"""Blocks compiled one by one: one graph for all of them, and for batches of all lengths."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from patchnpack.models import NaViT, NaViTConfig
from patchnpack.trainer import TrainConfig, train
from tests.closeness import assert_near

Draw = Callable[..., Any]
Pack = Callable[..., Any]
Build = Callable[..., Any]

pytestmark = [
    pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0:RuntimeWarning"),  # torch, there alone
    # Dynamo looks at the gradient of each input, and of those between blocks there is none.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),  # inductor uses it
]


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def of_many_lengths(draw: Draw, pack: Pack) -> list[Any]:
    sizes = [[(5, 3), (3, 5)], [(4, 4)], [(2, 6), (6, 2), (3, 3), (1, 4)], [(7, 5), (2, 2), (2, 2)], [(6, 6), (3, 2)]]
    return [pack([[draw(gw, gh, label=i % 2, seed=i) for gw, gh in each]]) for i, each in enumerate(sizes)]


@pytest.mark.parametrize("variant", [{}, {"position": "rope", "registers": 2}, {"backend": "dense"}])
def test_all_blocks_and_batches_of_all_lengths_share_their_graphs(
    variant: dict[str, Any], draw: Draw, pack: Pack, build: Build, config: NaViTConfig
) -> None:
    model: NaViT = build(dataclasses.replace(config, depth=3, drop_path=0.5, **variant)).train()
    eager = build(model.config).train()
    for block in model.blocks:
        block.compile(dynamic=True, backend="eager")
    batches = of_many_lengths(draw, pack)
    for i, batch in enumerate(batches):
        gradients = []
        for each in (model, eager):
            each.zero_grad()
            torch.manual_seed(0)
            with torch._dynamo.config.patch(error_on_recompile=i > 0):
                each.loss(batch).backward()
            gradients.append([p.grad for p in each.parameters() if p.grad is not None])
        assert_near(gradients[0], gradients[1], 1e-5)
    assert 0 < graphs() <= 4, "the parts before and after attention, for the first block, which skips no branch, too"


def test_a_run_compiles_its_blocks_once(
    draw: Draw, pack: Pack, config: NaViTConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    small = dataclasses.replace(config, num_classes=2, depth=3)
    settings: dict[str, Any] = {"lr": 1e-3, "precision": "float32", "ema": 0.9}
    batches = of_many_lengths(draw, pack)
    counts: list[int] = []
    result = train(
        small,
        batches,
        config=TrainConfig(steps=5, log_steps=1, compile=True, **settings),
        validation=batches[:2],
        log=lambda *_: counts.append(graphs()),
    )
    assert_near(result.losses, train(small, batches, config=TrainConfig(steps=5, **settings)).losses, 1e-4)
    assert counts[-1] == counts[1] > 0
    checkpointed = TrainConfig(steps=5, compile=True, activation_checkpointing=True, **settings)
    assert_near(train(small, batches, config=checkpointed).losses[:1], result.losses[:1], 1e-5)


@pytest.mark.soak
def test_a_run_compiles_with_inductor(draw: Draw, pack: Pack, config: NaViTConfig) -> None:
    small = dataclasses.replace(config, num_classes=2, depth=2)
    settings: dict[str, Any] = {"lr": 1e-3, "precision": "float32", "steps": 5}
    batches = of_many_lengths(draw, pack)
    compiled = train(small, batches, config=TrainConfig(compile=True, **settings))
    assert_near(compiled.losses, train(small, batches, config=TrainConfig(**settings)).losses, 1e-3)
