"""Sharded modules and their files, on a process group of one rank; test_ranks.py has those of several."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from patchnpack.models import NaViT, NaViTConfig
from patchnpack.trainer import Contrastive, TrainConfig, load_checkpoint, train
from patchnpack.trainer.optim import freeze
from patchnpack.trainer.sharding import fill, load_shards, local, save_shards, shard, whole, whole_model
from tests.closeness import assert_near

Draw = Callable[..., Any]
Pack = Callable[..., Any]


@pytest.fixture
def group() -> Iterator[None]:
    dist.init_process_group("gloo", store=torch._C._distributed_c10d.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def batches(draw: Draw, pack: Pack) -> list[Any]:
    images = [draw(2 + i % 3, 3, label=i % 2, seed=i) for i in range(12)]
    return [pack([images[i : i + 2], images[i + 2 : i + 4]], slots=24, columns=3) for i in range(0, 12, 4)]


def test_a_sharded_model_computes_the_same_and_is_gathered_whole(
    group: None, config: NaViTConfig, batches: list[Any]
) -> None:
    model = NaViT(config)
    expected = model(batches[0])
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    shard(model)
    assert all(hasattr(p, "to_local") for p in model.parameters())
    with torch.no_grad():
        assert torch.equal(model(batches[0]), expected)
    assert all(hasattr(p, "to_local") for p in model.parameters()), "sharded again after an evaluation"
    copy = whole_model(model)
    assert not any(hasattr(p, "to_local") for p in copy.parameters())
    assert all(torch.equal(weights[name], weight) for name, weight in copy.state_dict().items())
    name = "blocks.0.qkv.weight"
    assert torch.equal(whole(model.get_parameter(name)), weights[name])
    assert torch.equal(local(model.get_parameter(name)), weights[name])
    assert local(weights[name]) is whole(weights[name]) is weights[name]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0:RuntimeWarning")
def test_frozen_compiled_and_recomputed_blocks_are_sharded_with_equal_gradients(
    group: None, config: NaViTConfig, batches: list[Any]
) -> None:
    gradients = []
    for sharded in (False, True):
        torch.manual_seed(0)
        model = NaViT(dataclasses.replace(config, depth=3)).train()
        freeze(model, 1)
        model.activation_checkpointing = sharded
        for block in model.blocks if sharded else ():
            block.compile(dynamic=True, backend="eager")
        if sharded:
            shard(model)
        model.loss(batches[0]).backward()
        gradients.append({name: whole(p.grad) for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert not any(name.startswith(("blocks.0", "patch_embed")) for name in gradients[0])
    for name, gradient in gradients[0].items():
        assert_near(gradients[1][name], gradient, 1e-5)


def test_an_objective_with_scalars_is_sharded(group: None, config: NaViTConfig) -> None:
    model = NaViT(dataclasses.replace(config, num_classes=0))
    shard(model, objective := Contrastive(model, embed=8, tower={"width": 12, "depth": 1, "heads": 2}))
    assert all(hasattr(p, "to_local") for p in objective.parameters())


def test_values_fill_tensors_that_are_sharded_and_those_that_are_not(group: None, config: NaViTConfig) -> None:
    source, sharded, plain = (NaViT(config) for _ in range(3))
    shard(sharded)
    for model in (sharded, plain):
        fill({"model": model.state_dict()}, {"model": source.state_dict()})
        assert all(torch.equal(whole(p), q) for p, q in zip(model.parameters(), source.parameters(), strict=True))


def test_shards_are_read_into_tensors_and_in_whole_and_a_lost_file_is_an_error(
    tmp_path: Path, config: NaViTConfig
) -> None:
    folder = tmp_path / "shards-1"
    model, other = NaViT(config), NaViT(config)
    moments = {3: {"step": torch.tensor(2.0), "exp_avg": torch.ones(2, 3)}}
    assert save_shards(folder, {"model": model.state_dict(), "optimizer": moments}) == 1
    read = load_shards(folder, 1)
    assert read["optimizer"]["3.exp_avg"].tolist() == [[1.0] * 3] * 2
    assert read["optimizer"]["3.step"] == 2
    load_shards(folder, 1, {"model": other.state_dict()})
    for name, weight in model.state_dict().items():
        assert torch.equal(read["model"][name], weight)
        assert torch.equal(other.state_dict()[name], weight)
    with pytest.raises(ValueError, match=r"holds 1 of the 2 files of a sharded checkpoint; copy the folder together"):
        load_shards(folder, 2)


def test_a_sharded_run_on_one_rank_is_kept_resumed_and_read(
    tmp_path: Path, batches: list[Any], config: NaViTConfig
) -> None:
    small = dataclasses.replace(config, num_classes=2, width=12)
    settings: dict[str, Any] = {"lr": 3e-3, "precision": "float32", "ema": 0.9, "keep": 2}
    plain = train(small, batches, config=TrainConfig(**settings, epochs=3), out=tmp_path / "plain")
    for epochs in (2, 3):  # each epoch is one more session; the last one extends the run
        result = train(small, batches, config=TrainConfig(**settings, epochs=epochs, sharding="fsdp"), out=tmp_path)
    whole_run = train(small, batches, config=TrainConfig(**settings, epochs=2), out=tmp_path / "other")
    assert result.losses[:6] == whole_run.losses
    assert len(plain.losses) == len(result.losses) == 9
    assert sorted(path.name for path in tmp_path.glob("shards-*")) == [
        "shards-00002-0000000006",
        "shards-00003-0000000009",
    ]
    for path, step in ((tmp_path / "checkpoint.pt", 9), (tmp_path / "checkpoint-0000000006.pt", 6)):
        assert load_checkpoint(path).step == step
    read = load_checkpoint(tmp_path / "checkpoint.pt").model.state_dict()
    assert all(torch.equal(read[name], weight) for name, weight in result.model.state_dict().items())
    train(small, batches, config=TrainConfig(**settings, epochs=1), out=tmp_path, resume=False)
    assert not list(tmp_path.glob("shards-*")), "a new run deletes the shards of the old one"


def test_a_sharded_run_that_is_interrupted_resumes_bit_for_bit(
    tmp_path: Path, batches: list[Any], config: NaViTConfig
) -> None:
    class Interrupted(Exception):
        pass

    def interrupt(step: int, scalars: dict[str, float]) -> None:
        if step == 6:
            raise Interrupted

    small = dataclasses.replace(config, num_classes=2, width=12)
    settings: dict[str, Any] = {"lr": 3e-3, "precision": "float32", "ema": 0.9, "epochs": 3, "log_steps": 1}
    whole_run = train(small, batches, config=TrainConfig(**settings))
    sharded = TrainConfig(**settings, sharding="fsdp", save_every=2)
    with pytest.raises(Interrupted):
        train(small, batches, config=sharded, out=tmp_path, log=interrupt)
    assert [path.name for path in tmp_path.glob("shards-*")] == ["shards-00001-0000000005"]
    resumed = train(small, batches, config=sharded, out=tmp_path)
    assert resumed.losses == whole_run.losses
    ours, theirs = resumed.model.state_dict(), whole_run.model.state_dict()
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())


def test_sharding_without_safetensors_is_refused_before_the_first_step(
    tmp_path: Path, batches: list[Any], config: NaViTConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"epochs": 1, "precision": "float32", "sharding": "fsdp"}
    small = dataclasses.replace(config, num_classes=2)
    train(small, batches, config=TrainConfig(**settings), out=tmp_path / "before")
    message = (
        r"sharding 'fsdp' need safetensors.*run: pip install 'patchnpack\[weights\]', or train with sharding='ddp'"
    )
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "safetensors", None)
        with pytest.raises(ValueError, match=message):
            train(small, batches, config=TrainConfig(**settings), out=tmp_path / "out", started=pytest.fail)
        with pytest.raises(ValueError, match=message):
            load_checkpoint(tmp_path / "before" / "checkpoint.pt")
        assert not (tmp_path / "out").exists()
        assert len(train(small, batches, config=TrainConfig(**settings)).losses) == 3, "nothing is written without out"
    monkeypatch.setattr(torch, "__version__", "2.8.0+cpu")
    with pytest.raises(ValueError, match=r"torch 2\.9 or later \(it is too old; torch is 2\.8\.0\+cpu\)"):
        train(small, batches, config=TrainConfig(**settings), out=tmp_path / "out")


def test_an_unknown_sharding_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sharding is 'zero'; choose 'ddp' or 'fsdp'"):
        TrainConfig(steps=1, sharding="zero")
