from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from patchnpack.models import NaViTConfig
from patchnpack.trainer import TrainConfig, load_checkpoint, save_checkpoint
from patchnpack.trainer.optim import make_optimizer


def test_a_checkpoint_restores_outputs_step_optimizer_and_configuration(
    tmp_path: Path, draw: Callable[..., Any], pack: Callable[..., Any], build: Callable[..., Any], config: NaViTConfig
) -> None:
    model, batch, path = build(config), pack([[draw(5, 3), draw(4, 4)]]), tmp_path / "model.pt"
    optimizer = make_optimizer(model, TrainConfig(steps=1))
    model.loss(batch).backward()
    optimizer.step()
    save_checkpoint(path, model, optimizer=optimizer, step=7, train_config={"lr": 0.1}, metrics={"accuracy": 0.5})
    loaded = load_checkpoint(path)
    assert loaded.model.config == config
    assert torch.equal(loaded.model(batch), model(batch))
    assert (loaded.step, loaded.train_config, loaded.metrics) == (7, {"lr": 0.1}, {"accuracy": 0.5})
    again = make_optimizer(loaded.model, TrainConfig(steps=1))
    again.load_state_dict(loaded.optimizer)
    for each, which in ((model, optimizer), (loaded.model, again)):  # both continue equally
        which.zero_grad()
        each.loss(batch).backward()
        which.step()
    assert torch.equal(loaded.model(batch), model(batch))


class Hostile:
    """An object that creates a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    torch.save(Hostile(tmp_path / "executed"), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"model\.pt is not a patchnpack checkpoint"):
        load_checkpoint(tmp_path / "model.pt")
    assert not (tmp_path / "executed").exists()


def test_a_file_that_is_not_a_checkpoint_is_refused(
    tmp_path: Path, build: Callable[..., Any], config: NaViTConfig
) -> None:
    path = tmp_path / "model.pt"
    with pytest.raises(
        FileNotFoundError,
        match=r"^checkpoint '.*model\.pt' does not exist \(looked from .*\); `train` writes OUT/checkpoint\.pt$",
    ):
        load_checkpoint(path)
    with pytest.raises(ValueError, match=r"is a folder; give a file: `train` writes OUT/checkpoint\.pt"):
        load_checkpoint(tmp_path)
    save_checkpoint(path, build(config))
    whole = path.read_bytes()
    for content in (b"", b"not a checkpoint", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"model\.pt is not a patchnpack checkpoint; give a file"):
            load_checkpoint(path)
    records: list[object] = [{"state_dict": {}}, [1, 2]]
    for record in records:
        torch.save(record, path)
        with pytest.raises(ValueError, match=r"is not a patchnpack checkpoint"):
            load_checkpoint(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "no tensors here")
    with pytest.raises(ValueError, match=r"is not a patchnpack checkpoint"):
        load_checkpoint(path)
